"""Prompt formats: a question or a conversation → the ids that a model continues.

A checkpoint records its format, so nothing guesses: "plain" continues the text as it is, "qa" puts
the answer mark after a question, "chat" reads turns in ChatML's marks. Training data is encoded
here, too, so that a model is prompted exactly as it was trained.
"""

import math
from array import array

from minigpt.common.errors import UserError

FORMATS = ("plain", "qa", "chat")


class TooLong(UserError):
    """A prompt of `length` ids where there is room for `room`. is_least: it was not encoded, and
    has so many ids at least."""

    def __init__(self, length, room, is_least=False):
        self.length, self.room, self.is_least = length, room, is_least
        super().__init__(f"the prompt has {self.counted}; this model has room for {room}")

    @property
    def counted(self):
        """The length in words."""
        return f"at least {self.length} tokens" if self.is_least else f"{self.length} tokens"


def check_length(tokenizer, texts, room):
    """TooLong where the length of `texts` alone proves that their ids are more than `room`: what
    cannot fit is not encoded."""
    least = sum(map(tokenizer.fewest, texts))
    if least > room:
        raise TooLong(least, room, is_least=True)


def prompt_ids(tokenizer, prompt_format, text, room=math.inf):
    """The ids to continue for a person's `text`. TooLong, before it is encoded, where it is so long
    that they are certainly more than `room`; the caller checks their number."""
    check_length(tokenizer, [text], room)
    if prompt_format == "chat":
        return [*_encoded_turn(tokenizer, "user", text), *_opening_ids(tokenizer)]
    ids = tokenizer.encode(text)
    return [*ids, tokenizer.answer_mark] if prompt_format == "qa" else ids


def chat_ids(tokenizer, prompt_format, messages, room, truncate=None):
    """The ids to continue for a conversation: messages is [(role, content), …].

    "plain" and "qa" models read the last user message alone; "chat" models read every turn.
    truncate="oldest" reads the latest_turns() alone. UserError where no user speaks, TooLong where
    the ids are more than `room`.
    """
    last = _last_question(messages)
    if prompt_format != "chat":
        return _fitting(prompt_ids(tokenizer, prompt_format, messages[last][1], room), room)
    if truncate == "oldest":
        messages = latest_turns(tokenizer, messages, room)
    check_length(tokenizer, [content for _, content in messages], room)
    turns = [_encoded_turn(tokenizer, *message) for message in messages]
    return _fitting([*(id_ for turn in turns for id_ in turn), *_opening_ids(tokenizer)], room)


def latest_turns(tokenizer, messages, room):
    """The messages without the oldest turns, so many of them that at most `room` ids are left for
    a "chat" model: never the system's, never the last user message or what follows it. If these
    alone are more than `room`, they are returned. UserError where no user speaks.

    A turn is encoded only if its length allows that it fits.
    """
    last = _last_question(messages)
    kept = {i for i, (role, _) in enumerate(messages) if i >= last or role == "system"}
    if sum(tokenizer.fewest(messages[i][1]) for i in kept) > room:
        return [messages[i] for i in sorted(kept)]
    left = room - len(_opening_ids(tokenizer))
    left -= sum(len(_encoded_turn(tokenizer, *messages[i])) for i in kept)
    # Dropping the oldest turns until the others fit is keeping the latest ones as long as they fit.
    for i in (i for i in reversed(range(last)) if i not in kept):
        if tokenizer.fewest(messages[i][1]) > left:
            break
        left -= len(_encoded_turn(tokenizer, *messages[i]))
        if left < 0:
            break
        kept.add(i)
    return [messages[i] for i in sorted(kept)]


def _last_question(messages):
    """The index of the last user message; UserError where there is none."""
    asked = [i for i, (role, _) in enumerate(messages) if role == "user"]
    if not asked:
        raise UserError('messages: expected one with the role "user"')
    return asked[-1]


def _fitting(ids, room):
    if len(ids) > room:
        raise TooLong(len(ids), room)
    return ids


def turn_text(role, content):
    """The text of a turn that is encoded in one go. The content of the assistant is encoded alone,
    as a model generates it: its role is part of the prompt."""
    return content if role == "assistant" else f"{role}\n{content}"


def conversation_ids(tokenizer, roles, turns):
    """A whole conversation and its targets: (ids as array("I"), spans). The ids from the first to
    before the last of a span are the content of a turn of the assistant, and the turn's end.

    turns: for each turn the ids of its turn_text(). The ids up to a span are those of chat_ids()
    for the turns before it.
    """
    ids, spans = array("I"), []
    for role, content in zip(roles, turns, strict=True):
        ids.extend(_line_break(tokenizer) if ids else ())
        ids.extend(_turn_ids(tokenizer, role, content))
        if role == "assistant":
            spans.append((len(ids) - len(content) - 1, len(ids)))
    return ids, spans


def _encoded_turn(tokenizer, role, content):
    """A turn with the line break after it."""
    ids = tokenizer.encode(turn_text(role, content))
    return [*_turn_ids(tokenizer, role, ids), *_line_break(tokenizer)]


def _turn_ids(tokenizer, role, ids):
    """<|im_start|>role, line break, content, <|im_end|>: ChatML. ids: of the turn_text()."""
    start, end = tokenizer.special["IM_START"], tokenizer.special["IM_END"]
    opening = _opening_ids(tokenizer) if role == "assistant" else [start]
    return [*opening, *ids, end]


def _line_break(tokenizer):
    return tokenizer.encode("\n")


def _opening_ids(tokenizer):
    """The ids that start the assistant's turn."""
    return [tokenizer.special["IM_START"], *tokenizer.encode("assistant\n")]


def stop_ids(tokenizer):
    """Ids that end what a model generates."""
    return (tokenizer.eot, tokenizer.pad, tokenizer.special["IM_END"])
