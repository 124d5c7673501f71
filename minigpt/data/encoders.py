"""Samples → tokens and targets: what the model reads, and which of it is learned.

    encoder = encoder_of(Pair)                    # PairEncoder()
    texts = encoder.texts(pair)                   # what the tokenizer encodes
    encoder.encode(pair, ids, cutter, "concat")   # Encoded: segments with their targets

One class for each type of sample, all with the interface SampleEncoder. The loss mask is made here,
where the parts of a sample are known: it is never searched for in the tokens later.
"""

import itertools
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from minigpt.data.formats import BadRecord, Conversation, Entry, Pair, Preference
from minigpt.data.prompts import conversation_ids, turn_text


class Encoded(NamedTuple):
    """A sample in tokens.

    segments:   [(ids as array("I"), first, last, …), …]: of each segment, the ids from `first` to
                before `last` are targets (Segments.of() in packing.py)
    characters: how many are encoded
    left_out:   how many are cut off, because they do not fit into a block
    """

    segments: list
    characters: int
    left_out: int


class SampleEncoder(Protocol):
    """How one type of sample becomes tokens.

    prompt_format: of the model that will be trained: "plain", "qa" or "chat"
    held_out:      how much the automatic val_fraction holds out, in the unit of size()
    """

    prompt_format: str
    held_out: int

    def check(self, sample):
        """Raise BadRecord where the sample is good, but not for this prompt format."""

    def size(self, sample) -> int:
        """How much of `held_out` the sample is; 0 where it is empty."""
        return 1

    def content(self, sample) -> str:
        """Samples with the same content are duplicates."""
        ...

    def split_key(self, sample) -> str:
        """Samples with the same key are all in train, or all in val."""
        return self.content(sample) if sample.id is None else sample.id

    def texts(self, sample) -> Sequence[str]:
        """The texts of the sample that the tokenizer encodes."""
        ...

    def encode(self, sample, ids, cutter, layout) -> Encoded | str:
        """Return the sample in tokens, or the reason why it is dropped.

        ids: of each of its texts(), array("I").  cutter: a Cutter, with tokenizer and block_size.
        """
        ...

    def to_json(self, sample) -> dict:
        """The sample's line in val.jsonl."""
        ...


@dataclass(frozen=True)
class TextEncoder(SampleEncoder):
    """Entries. Every token is a target but the first of a segment, and the EOT of the layout `pad`.

    Where a text is longer than a block, it is cut at the end of a sentence.
    """

    prompt_format = "plain"
    held_out = 120_000  # characters: whatever the hashes are, 100,000 are left

    def size(self, entry):
        return len(entry.text)

    def content(self, entry):
        return entry.text

    def split_key(self, entry):
        return entry.text

    def texts(self, entry):
        return (entry.text,)

    def encode(self, entry, ids, cutter, layout):
        if not entry.text:
            return "empty"
        (ids,) = ids
        text = cutter.tokenizer.normalize(entry.text)  # which the ids decode to
        if layout == "pad":
            kept = cutter.first_sentences(text, ids)
            if kept is None:
                return "no sentence end"
            ids, characters = kept
            return Encoded([(ids, 1, len(ids) - 1)], characters, len(text) - characters)
        if layout == "packed":
            ids.append(cutter.tokenizer.eot)
            return Encoded([(ids, 0, len(ids))], len(text), 0)
        return Encoded([(ids, 1, len(ids)) for ids in cutter.pieces(text, ids)], len(text), 0)

    def to_json(self, entry):
        return {"id": entry.id, "title": entry.title, "text": entry.text}


@dataclass(frozen=True)
class PairEncoder(SampleEncoder):
    """Question–answer pairs. Targets are the answer and its EOT. A pair is never cut: one that is
    longer than a block is dropped. Its id names the paragraph that it is about."""

    prompt_format = "qa"
    held_out = 3000  # pairs

    def content(self, pair):
        return pair.question + pair.answer

    def texts(self, pair):
        return pair.question, pair.answer

    def encode(self, pair, ids, cutter, layout):
        segment = _answered(cutter.tokenizer, *ids)
        if len(segment[0]) > cutter.block_size:
            return "too long"
        return Encoded([segment], len(pair.question) + len(pair.answer), 0)

    def to_json(self, pair):
        return {"id": pair.id, "question": pair.question, "answer": pair.answer}


@dataclass(frozen=True)
class ConversationEncoder(SampleEncoder):
    """Conversations, in ChatML's marks. Targets are the content and the end of each turn of the
    assistant. One that is longer than a block loses its last turns, each whole."""

    prompt_format = "chat"
    held_out = 3000  # conversations

    def content(self, conversation):
        return json.dumps(conversation.turns, ensure_ascii=False)

    def texts(self, conversation):
        return [turn_text(role, content) for role, content in conversation.turns]

    def encode(self, conversation, ids, cutter, layout):
        roles = [role for role, _ in conversation.turns]
        ids, spans = conversation_ids(cutter.tokenizer, roles, ids)
        spans = [span for span in spans if span[1] <= cutter.block_size]
        if not spans:
            return "too long"
        # It ends with the last turn of the assistant that fits: a question without an answer after
        # it teaches nothing.
        learned = [i for i, role in enumerate(roles) if role == "assistant"][: len(spans)]
        lengths = [len(content) for _, content in conversation.turns]
        kept = sum(lengths[: learned[-1] + 1])
        segment = ids[: spans[-1][1]], *itertools.chain(*spans)
        return Encoded([segment], kept, sum(lengths) - kept)

    def to_json(self, conversation):
        return {"id": conversation.id, "messages": _messages(conversation.turns)}


@dataclass(frozen=True)
class PreferenceEncoder(SampleEncoder):
    """Preferences, for models of the prompt format "qa" or "chat". Each becomes two segments: the
    prompt with the chosen answer, and with the rejected one. So in the layout `pad` blocks 2i and
    2i + 1 are preference i (minigpt/training/dpo.py). Targets are both answers and their ends.
    """

    prompt_format: str
    held_out = 3000  # preferences

    def check(self, preference):
        if self.prompt_format == "qa" and [role for role, _ in preference.turns] != ["user"]:
            raise BadRecord("field `prompt`: several messages, as --format=chat takes them")

    def content(self, preference):
        return json.dumps(preference[1:4], ensure_ascii=False)

    def split_key(self, preference):
        # As for pairs; without an id, those with the same prompt are on one side.
        if preference.id is not None:
            return preference.id
        return json.dumps(preference.turns, ensure_ascii=False)

    def texts(self, preference):
        """The turns, then both answers."""
        prompt = [content for _, content in preference.turns]
        if self.prompt_format == "chat":
            prompt = [turn_text(role, content) for role, content in preference.turns]
        return *prompt, preference.chosen, preference.rejected

    def encode(self, preference, ids, cutter, layout):
        if preference.chosen == preference.rejected:
            return "equal answers"
        *prompt, chosen, rejected = ids
        roles = [role for role, _ in preference.turns]
        answers = chosen, rejected
        segments = [self._segment(cutter.tokenizer, roles, prompt, each) for each in answers]
        if max(len(each[0]) for each in segments) > cutter.block_size:
            return "too long"
        asked = sum(len(content) for _, content in preference.turns)
        return Encoded(segments, 2 * asked + len(preference.chosen) + len(preference.rejected), 0)

    def _segment(self, tokenizer, roles, prompt, answer):
        if self.prompt_format == "chat":
            # Earlier turns of the assistant are the same on both sides: only the last is judged.
            ids, spans = conversation_ids(tokenizer, [*roles, "assistant"], [*prompt, answer])
            return ids, *spans[-1]
        return _answered(tokenizer, *prompt, answer)

    def to_json(self, preference):
        """The chosen answer as data/prepare_sft.py would write it, so that the evaluations read it,
        and the rejected answer."""
        found = {"id": preference.id}
        if self.prompt_format == "chat":
            found["messages"] = _messages((*preference.turns, ("assistant", preference.chosen)))
        else:
            found |= {"question": preference.turns[0][1], "answer": preference.chosen}
        return found | {"rejected": preference.rejected, "kind": preference.kind}


def _answered(tokenizer, question, answer):
    """The segment (ids, first, last) of a question and its answer, in the prompt format "qa"."""
    ids = array("I", [*question, tokenizer.answer_mark, *answer, tokenizer.eot])
    return ids, len(question) + 1, len(ids)


def _messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


_ENCODERS = {
    Entry: TextEncoder(),
    Pair: PairEncoder(),
    Conversation: ConversationEncoder(),
    Preference: PreferenceEncoder("chat"),
}


def encoder_of(sample_type):
    """The SampleEncoder of a type of sample."""
    return _ENCODERS[sample_type]
