"""Records of a prompt, with what a reward needs → Prompt."""

from minigpt.data.shapes.dialogues import (
    ANSWER,
    HISTORY,
    INPUT,
    INSTRUCTION,
    MESSAGES,
    QUESTION,
    SYSTEM,
    parse_alpaca,
    parse_qa,
)
from minigpt.data.shapes.fields import first_name, id_of
from minigpt.data.shapes.preferences import PROMPT, prompt_of
from minigpt.data.shapes.samples import BadRecord, Pair, Prompt

ASKED = (*PROMPT, *MESSAGES, *INSTRUCTION)  # any of them holds the prompt
_READ = {*ASKED, *ANSWER, *INPUT, *HISTORY, *SYSTEM}


def parse_prompt(record):
    """A prompt (see prompt_of) with an optional answer, the reference: a field of its own (ANSWER),
    or the last turn of a conversation → Prompt. All other fields stay in its record."""
    turns, answer = _turns_and_answer(record)
    if turns and turns[-1][0] == "assistant":
        turns, answer = turns[:-1], turns[-1][1]
    if not turns or turns[-1][0] != "user":
        raise BadRecord(f"field `{PROMPT[0]}` is missing: expected a text, or messages of a user")
    kept = {name: value for name, value in record.items() if name not in _READ}
    return Prompt(id_of(record), turns, kept | ({"answer": answer} if answer else {}))


def _turns_and_answer(record):
    if first_name(record, ANSWER) is None or first_name(record, MESSAGES) is not None:
        return prompt_of(record), ""
    is_instruction = first_name(record, INSTRUCTION) is not None
    if not is_instruction and first_name(record, QUESTION) is None:
        return (), ""
    sample = parse_alpaca(record) if is_instruction else parse_qa(record)
    if isinstance(sample, Pair):
        return (("user", sample.question),), sample.answer
    return sample.turns, ""
