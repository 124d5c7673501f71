"""Records of a chosen and a rejected answer → Preference."""

import itertools
import re

from minigpt.data.shapes.dialogues import (
    INSTRUCTION,
    MESSAGES,
    QUESTION,
    history_of,
    instruction_of,
    system_turns,
    turns_of,
)
from minigpt.data.shapes.fields import as_text, first_name, id_of, is_empty
from minigpt.data.shapes.samples import BadRecord, LeftOut, Preference

CHOSEN = ("chosen", "chosen_response", "response_chosen", "preferred", "response_j")
REJECTED = ("rejected", "rejected_response", "response_rejected", "dispreferred", "response_k")
PROMPT = ("prompt", *(name for name in QUESTION if name not in ("prompt", "input")))
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # Anthropic's HH: turns in one text


def parse_preference(record):
    """A chosen and a rejected answer, each a text, a message or a list of messages, with the prompt
    in a field of its own (a text or messages; instruction and input; conversations; optional system
    text and history), or as the common beginning of both → Preference, all texts stripped."""
    prompt = prompt_of(record)
    chosen, rejected = (_side(record, names) for names in (CHOSEN, REJECTED))
    together = [
        pair[0] for pair in itertools.takewhile(_alike, zip(chosen, rejected, strict=False))
    ]
    # A reply may be the same on both sides: the last turn is never the prompt's.
    n = min(len(together), len(chosen) - 1, len(rejected) - 1)
    common, chosen, rejected = tuple(together[:n]), chosen[n:], rejected[n:]
    turns = common if any(role == "user" for role, _ in common) else (*prompt, *common)
    if common and turns is common and prompt and prompt[0][0] == "system" != common[0][0]:
        turns = (prompt[0], *common)
    if not turns:
        raise BadRecord(
            f"no prompt: expected the field `{PROMPT[0]}`, or chosen and rejected conversations "
            "with a common beginning"
        )
    if turns[-1][0] != "user":
        raise BadRecord(f"field `prompt`: the last message is the {turns[-1][0]}'s, not the user's")
    if len(chosen) > 1 or len(rejected) > 1:
        raise LeftOut("answers of several turns")
    kind = record.get("kind")
    answers = chosen[0][1], rejected[0][1]
    return Preference(id_of(record), turns, *answers, None if is_empty(kind) else str(kind))


def _alike(pair):
    return pair[0] == pair[1]


def prompt_of(record):
    """The turns of the prompt's own fields (a text or messages; instruction and input;
    conversations; optional system text and history), () where there are none."""
    if (name := first_name(record, MESSAGES)) is not None:
        turns = turns_of(record[name], name)
    elif first_name(record, INSTRUCTION) is not None:
        turns = (("user", instruction_of(record)),)
    elif (name := first_name(record, PROMPT)) is not None:
        if is_empty(record[name]):
            raise LeftOut("empty prompt")
        turns = _turns(record[name], name, "user")
        if turns and turns[-1] == ("assistant", ""):  # HH: "… Assistant:" waits for the answer
            turns = turns[:-1]
    else:
        return ()
    if not turns or turns[0][0] != "system":
        turns = (*system_turns(record), *history_of(record), *turns)
    return turns


def _side(record, names):
    """The turns of an answer; the last one is the assistant's."""
    name = first_name(record, names)
    if name is None:
        raise BadRecord(f"field `{names[0]}` is missing")
    if is_empty(record[name]):
        raise LeftOut(f"empty {names[0]}")
    try:
        turns = _turns(record[name], name, "assistant")
    except LeftOut:
        turns = (("assistant", ""),)
    if turns and turns[-1] == ("assistant", ""):
        raise LeftOut(f"empty {names[0]}")
    if not turns or turns[-1][0] != "assistant":
        raise BadRecord(f"field `{name}`: the last message is not the assistant's")
    return turns


def _turns(value, name, role):
    """A text, a message or a list of messages as turns; a text is one of `role`, or several in the
    form of HH, of which the last may be empty."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith('[{"')):
        return turns_of(value, name)
    text = as_text(f"field `{name}`", value)
    speakers = list(_SPEAKER.finditer(text))
    if not speakers or speakers[0].start():
        return ((role, text),)
    ends = [match.start() for match in speakers[1:]] + [len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        (roles[match[1]], text[match.end() : end].strip())
        for match, end in zip(speakers, ends, strict=True)
    )
