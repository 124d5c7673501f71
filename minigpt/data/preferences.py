"""Preference pairs: to one prompt an answer that is chosen and one that is rejected.

    meta = prepare(Preferences("qa"), "preferences.jsonl", "data/processed_dpo", …, layout="pad")
    records = make_preferences(read_pairs("qa.jsonl"))    # pairs of known right and wrong answers

Preferences is a kind of data as minigpt/data/pipeline.py has them. Each pair becomes two blocks of
the layout "pad", the chosen answer's and behind it the rejected one's, so that blocks 2i and 2i + 1
are pair i; minigpt/training/dpo.py reads them.
"""

import json
from array import array
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minigpt.data.prompts import conversation_ids, spelled
from minigpt.data.readers import Reject, conversation_of

FACTS = {"kind": "preferences"}  # what meta.json says of such blocks


class Preference(NamedTuple):
    """What was asked, `turns` as in a Conversation, the last of them the user's; both answers; `id`
    names what they are about, `kind` what is wrong with the rejected one; None where not given."""

    id: str | None
    turns: tuple
    chosen: str
    rejected: str
    kind: str | None


@dataclass(frozen=True)
class Preferences:
    """Preference pairs for models of this prompt format, "qa" or "chat". The targets are both
    answers and their ends; a pair of which one is longer than a block is dropped."""

    prompt_format: str
    held_out = 3000  # pairs

    def parse(self, record, source, line):
        """A record as a Preference, blanks at both ends of each text dropped, or a Reject: `prompt`
        (text, or for "chat" a list of messages of which the user's is the last), `chosen` and
        `rejected`, none of them empty; optional `id` and `kind`."""
        reason = _no_preference(record, self.prompt_format)
        if reason:
            return Reject(source, line, reason, json.dumps(record, ensure_ascii=False))
        id_, kind = (
            None if record.get(name) is None else str(record[name]) for name in ("id", "kind")
        )
        turns = [(message["role"], message["content"].strip()) for message in _messages(record)]
        answers = record["chosen"].strip(), record["rejected"].strip()
        return Preference(id_, tuple(turns), *answers, kind)

    def ready(self, preferences):
        """See preparation.PlainText: pairs need nothing more."""
        return preferences

    def content(self, preference):
        """See preparation.PlainText."""
        return json.dumps(preference[1:4], ensure_ascii=False)

    def source(self, preference):
        """See preparation.PlainText. As question–answer pairs have it: what shares an id never
        stands on both sides, nor, where there is none, what shares a prompt."""
        if preference.id is not None:
            return preference.id
        return json.dumps(preference.turns, ensure_ascii=False)

    def amount(self, preference):
        """See preparation.PlainText."""
        return 1

    def texts(self, preference):
        """See preparation.PlainText: the turns, then both answers."""
        asked = [content for _, content in preference.turns]
        if self.prompt_format == "chat":
            asked = [spelled(role, content) for role, content in preference.turns]
        return *asked, preference.chosen, preference.rejected

    def encode(self, preference, ids, cutter, layout):
        """See preparation.PlainText: two pieces, or none."""
        if preference.chosen == preference.rejected:
            return "equal answers"
        *asked, chosen, rejected = ids
        roles = [role for role, _ in preference.turns]
        pieces = [self._piece(cutter.tokenizer, roles, asked, said) for said in (chosen, rejected)]
        if max(len(piece[0]) for piece in pieces) > cutter.block_size:
            return "too long"
        prompt = sum(len(content) for _, content in preference.turns)
        return pieces, 2 * prompt + len(preference.chosen) + len(preference.rejected), 0

    def _piece(self, tokenizer, roles, asked, said):
        """(ids, first, last) of the prompt with an answer: Pieces.of() takes it."""
        if self.prompt_format == "chat":
            # Earlier turns of the assistant are the same on both sides: only the last is judged.
            ids, spans = conversation_ids(tokenizer, [*roles, "assistant"], [*asked, said])
            return ids, *spans[-1]
        (question,) = asked
        ids = array("I", [*question, tokenizer.answer_mark, *said, tokenizer.eot])
        return ids, len(question) + 1, len(ids)

    def as_text(self, preference):
        """A pair's line of val.jsonl: the chosen answer as data/prepare_sft.py would have it, so
        that the evaluations read it, and the rejected one beside it."""
        found = {"id": preference.id}
        if self.prompt_format == "chat":
            turns = (*preference.turns, ("assistant", preference.chosen))
            found["messages"] = [{"role": role, "content": content} for role, content in turns]
        else:
            found |= {"question": preference.turns[0][1], "answer": preference.chosen}
        return found | {"rejected": preference.rejected, "kind": preference.kind}


def _messages(record):
    prompt = record["prompt"]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _no_preference(record, prompt_format):
    """Why a record is no Preference; None where it is one."""
    for name in ("prompt", "chosen", "rejected"):
        value = record.get(name)
        if value is None:
            return f"field `{name}` is missing"
        if name == "prompt" and isinstance(value, list):
            if prompt_format != "chat":
                return "field `prompt` is a list of messages, as --format=chat takes it"
            if not value:
                return "field `prompt` is empty"
        elif not isinstance(value, str):
            return f"field `{name}`: expected text, found {type(value).__name__}"
        elif not value.strip():
            return f"field `{name}` is empty"
    messages = _messages(record)
    whole = conversation_of({"messages": [*messages, {"role": "assistant", "content": "…"}]}, "", 0)
    if isinstance(whole, Reject):
        return f"field `prompt`: {whole.reason}"
    if messages[-1]["role"] != "user":
        return f"field `prompt`: the last message is the {messages[-1]['role']}'s, not the user's"
    return None


# -- pairs that are made ---------------------------------------------------------------------------


def make_preferences(pairs, seed=0):
    """Question–answer Pairs as records that Preferences reads, three for each: the right answer is
    chosen; rejected are, by `kind`, the answer to `another` question, its first half (`cut`), and
    that half three times over (`loop`). What would be no other answer is left out. A pair without
    an id gets what stands for it in data/prepare_sft.py, so that both hold out the same pairs."""
    generator = np.random.default_rng(seed)
    records = []
    for pair in pairs:
        id_ = pair.question + pair.answer if pair.id is None else pair.id
        half = pair.answer[: len(pair.answer) // 2].strip()
        rejected = {
            "another": pairs[generator.integers(len(pairs))].answer,
            "cut": half,
            "loop": 3 * half,
        }
        records += [
            dict(id=id_, prompt=pair.question, chosen=pair.answer, rejected=text, kind=kind)
            for kind, text in rejected.items()
            if text and text != pair.answer
        ]
    return records
