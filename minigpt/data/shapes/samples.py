"""Samples: what records become, and the reasons why they do not."""

from typing import NamedTuple


class Entry(NamedTuple):
    """A text to continue; `id` as the file gives it, else "FILE:LINE"."""

    id: str | None
    title: str
    text: str


class Pair(NamedTuple):
    """A question with its answer; `id` names the entry they are about, None where there is none."""

    id: str | None
    question: str
    answer: str


class Conversation(NamedTuple):
    """The messages of a conversation: `turns` is ((role, content), …), with the roles system, user
    and assistant; `id` as the file gives it, None where there is none."""

    id: str | None
    turns: tuple


class Preference(NamedTuple):
    """A prompt with a chosen and a rejected answer. `turns` is the prompt, as in a Conversation;
    its last turn is the user's. `id` names what the prompt is about, `kind` what is wrong with the
    rejected answer; None where not given."""

    id: str | None
    turns: tuple
    chosen: str
    rejected: str
    kind: str | None


class Prompt(NamedTuple):
    """A prompt to which the model writes answers that a reward judges. `turns` as in a Preference;
    `record` holds what the reward may need: the fields of the record, the reference as `answer`."""

    id: str | None
    turns: tuple
    record: dict


class BadRecord(ValueError):
    """A record that cannot become a sample; the message is the reason."""


class LeftOut(BadRecord):
    """A record that is well-formed but teaches nothing, such as a question without an answer: it is
    left out and counted under its message."""
