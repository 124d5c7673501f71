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
    truncate="oldest" drops turns, the oldest first, until at most `room` ids are left: never the
    system's, never the last user message or what follows it. UserError where no user speaks,
    TooLong where it does not fit.
    """
    asked = [i for i, (role, _) in enumerate(messages) if role == "user"]
    if not asked:
        raise UserError('messages: expected one with the role "user"')
    if prompt_format == "chat":
        return _chat_prompt(tokenizer, messages, asked[-1], room, truncate == "oldest")
    return _fitting(prompt_ids(tokenizer, prompt_format, messages[asked[-1]][1], room), room)


def _chat_prompt(tokenizer, messages, last_question, room, may_drop):
    """The ids of the turns that stay. A turn is encoded only if its length allows that it fits."""

    def is_kept(i):
        return not may_drop or i >= last_question or messages[i][0] == "system"

    kept = {i: message for i, message in enumerate(messages) if is_kept(i)}
    check_length(tokenizer, [content for _, content in kept.values()], room)
    turns = {i: _encoded_turn(tokenizer, *message) for i, message in kept.items()}
    opening = _opening_ids(tokenizer)
    left = room - len(opening) - sum(map(len, turns.values()))
    # Dropping the oldest turns until the others fit is keeping the latest ones as long as they fit.
    for i in (i for i in reversed(range(len(messages))) if i not in kept):
        if tokenizer.fewest(messages[i][1]) > left:
            break
        turn = _encoded_turn(tokenizer, *messages[i])
        if len(turn) > left:
            break
        turns[i] = turn
        left -= len(turn)
    return _fitting([*(id_ for i in sorted(turns) for id_ in turns[i]), *opening], room)


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
