"""Prompt formats: a question or a conversation → the ids that a model continues.

A checkpoint records its format, so nothing guesses: "plain" continues the text as it is, "qa" puts
the answer mark after a question, and all others read a conversation in a chat template
(minigpt/tokenizer/chat_template.py). Training data is encoded here, too, so that a model is
prompted exactly as it was trained.
"""

import bisect
import math
from array import array

from minigpt.common.errors import UserError
from minigpt.tokenizer.chat_template import NAMED, Part, kind_of, load_template

FORMATS = NAMED  # a template of its own is the fourth kind


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
    if kind_of(prompt_format) == "chat":
        parts = load_template(prompt_format).parts((("user", text),), generate=True)
        return list(ids_of(tokenizer, parts))
    ids = tokenizer.encode(text)
    return [*ids, tokenizer.answer_mark] if prompt_format == "qa" else ids


def chat_ids(tokenizer, prompt_format, messages, room, truncate=None):
    """The ids to continue for a conversation: messages is [(role, content), …].

    "plain" and "qa" models read the last user message alone; others read every turn.
    truncate="oldest" reads the latest_turns() alone. UserError where no user speaks, or where the
    chat template refuses the messages, TooLong where the ids are more than `room`.
    """
    last = _last_question(messages)
    if kind_of(prompt_format) != "chat":
        return _fitting(prompt_ids(tokenizer, prompt_format, messages[last][1], room), room)
    if truncate == "oldest":
        messages = latest_turns(tokenizer, prompt_format, messages, room)
    return _chat_prompt(tokenizer, load_template(prompt_format), messages, room)


def latest_turns(tokenizer, prompt_format, messages, room):
    """The messages without the oldest turns, so many of them that a chat prompt has at most `room`
    ids: never without the system's, the last user message or what follows it. If these alone are
    more than `room`, they are returned. UserError where no user speaks."""
    template, last = load_template(prompt_format), _last_question(messages)
    droppable = [i for i in range(last) if messages[i][0] != "system"]
    counts = [
        n
        for n, first in enumerate([*droppable, last])
        if not template.pairwise or messages[first][0] == "user"
    ]

    def without(n):
        dropped = set(droppable[:n])
        return [message for i, message in enumerate(messages) if i not in dropped]

    def fits(n):
        try:
            return bool(_chat_prompt(tokenizer, template, without(n), room))
        except TooLong:
            return False

    found = bisect.bisect_left(counts, True, key=fits)  # the more is dropped, the shorter it is
    return without(counts[min(found, len(counts) - 1)])


def _last_question(messages):
    """The index of the last user message; UserError where there is none."""
    asked = [i for i, (role, _) in enumerate(messages) if role == "user"]
    if not asked:
        raise UserError('messages: expected one with the role "user"')
    return asked[-1]


def _chat_prompt(tokenizer, template, messages, room):
    check_length(tokenizer, [content for _, content in messages], room)
    parts = template.parts(tuple(messages), generate=True)
    return _fitting(list(ids_of(tokenizer, parts)), room)


def _fitting(ids, room):
    if len(ids) > room:
        raise TooLong(len(ids), room)
    return ids


def sample_parts(prompt_format, turns):
    """The Parts of a whole sample to train on, ((role, content), …). For "qa" it is one question
    and its answer. TemplateRefused where a chat template refuses it."""
    if prompt_format == "qa":
        (_, question), (_, answer) = turns
        return [Part(question), Part("", "A"), Part(answer, "", True), Part("", "EOT", True)]
    return load_template(prompt_format).parts(turns)


def question_parts(prompt_format, turns):
    """The Parts that a model continues for a conversation whose last turn is the user's. "plain"
    and "qa" take one turn. TemplateRefused where a chat template refuses it."""
    if kind_of(prompt_format) == "chat":
        return load_template(prompt_format).parts(turns, generate=True)
    ((_, question),) = turns
    return [Part(question)] + [Part("", "A")] * (prompt_format == "qa")


def reply_text(prompt_format, text):
    """The text that is encoded after a prompt, for the reply `text`: a chat template may have a
    blank before it."""
    lead = load_template(prompt_format).lead if kind_of(prompt_format) == "chat" else ""
    return lead + text


def ids_of(tokenizer, parts, encoded=None):
    """The ids of Parts as array("I"). encoded: an iterator over the ids of their texts, if they are
    encoded already."""
    ids = array("I")
    for part in parts:
        if part.special:
            ids.append(tokenizer.special[part.special])
        else:
            ids.extend(tokenizer.encode(part.text) if encoded is None else next(encoded))
    return ids


def end_of(tokenizer, prompt_format):
    """The id that ends what a model of this format generates."""
    name = load_template(prompt_format).end if kind_of(prompt_format) == "chat" else "EOT"
    return tokenizer.special[name]


def stop_ids(tokenizer):
    """Ids that end what a model generates."""
    return (tokenizer.eot, tokenizer.pad, tokenizer.special["IM_END"])
