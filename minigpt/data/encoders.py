"""Samples → tokens and targets: what the model reads, and which of it is learned.

    encoder = encoder_of(Pair)                        # DialogueEncoder("qa")
    sample = encoder.fit(pair)                        # as this encoder takes it
    texts = encoder.texts(sample)                     # what the tokenizer encodes
    encoder.encode(sample, ids, cutter, "concat")     # Encoded: segments with their targets

One class for each kind of training, all with the interface SampleEncoder. The loss mask is made
here, where the parts of a sample are known: it is never searched for in the tokens later.
"""

import itertools
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from minigpt.data.formats import (
    BadRecord,
    Conversation,
    Entry,
    LeftOut,
    Pair,
    Preference,
    Prompt,
    to_conversation,
)
from minigpt.data.hashing import is_val
from minigpt.data.prompts import ids_of, question_parts, sample_parts
from minigpt.tokenizer.chat_template import Part, TemplateRefused, kind_of


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


class Rendered(NamedTuple):
    """A conversation in its prompt format: `parts` is what the model reads, [Part, …]."""

    id: str | None
    turns: tuple
    parts: list


class RenderedPreference(NamedTuple):
    """A Preference in its prompt format: the parts of the prompt with each of the answers."""

    preference: Preference
    chosen: list
    rejected: list

    @property
    def id(self):
        return self.preference.id


class RenderedPrompt(NamedTuple):
    """A Prompt in its prompt format: `parts` is what the model continues."""

    prompt: Prompt
    parts: list

    @property
    def id(self):
        return self.prompt.id


class SampleEncoder(Protocol):
    """How one type of sample becomes tokens.

    prompt_format: of the model that will be trained (minigpt/tokenizer/chat_template.py)
    held_out:      how much the automatic val_fraction holds out, in the unit of size()
    keeps_records: the training samples are kept as text too, in train.jsonl: a line a block
    """

    prompt_format: str
    held_out: int
    keeps_records = False

    def fit(self, sample):
        """The sample as the other methods take it. BadRecord where it is good, but not for this
        prompt format; LeftOut where it is not wanted."""
        return sample

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
class DialogueEncoder(SampleEncoder):
    """Pairs and conversations, in the prompt format "qa" or in a chat template. Targets are what
    the assistant says and the end of each of its turns.

    learn_prompt: all tokens are targets but the first
    too_long:     what happens to a sample that is longer than a block. "drop": it loses its last
                  turns, each whole, and is dropped where no turn of the assistant is left.
                  "truncate": it is cut at the end of the block, and dropped where no target is left
    """

    prompt_format: str
    learn_prompt: bool = False
    too_long: str = "drop"
    held_out = 3000  # pairs or conversations

    def fit(self, sample):
        id_, turns = to_conversation(sample)
        if self.prompt_format == "qa" and [role for role, _ in turns] != ["user", "assistant"]:
            raise BadRecord(
                "it has several turns or a system text, but --template=qa takes one question and "
                "its answer: give --template=chat"
            )
        return Rendered(id_, turns, _parts(self.prompt_format, turns))

    def content(self, sample):
        # Alike for all prompt formats: they hold out the same samples.
        if [role for role, _ in sample.turns] == ["user", "assistant"]:
            return "".join(content for _, content in sample.turns)
        return json.dumps(sample.turns, ensure_ascii=False)

    def texts(self, sample):
        return _texts(sample.parts)

    def encode(self, sample, ids, cutter, layout):
        ids, spans = _assembled(cutter.tokenizer, sample.parts, ids)
        lengths = [len(content) for _, content in sample.turns]
        size, characters = cutter.block_size, sum(lengths)
        if self.too_long == "truncate" and spans[-1][1] > size:
            kept = characters - len(cutter.tokenizer.decode(ids[size : spans[-1][1]]))
            spans = [(first, min(last, size)) for first, last in spans if first < size]
        else:
            # It ends with the last turn of the assistant that fits: a question without an answer
            # after it teaches nothing.
            spans = [span for span in spans if span[1] <= size]
            replies = [i for i, (role, _) in enumerate(sample.turns) if role == "assistant"]
            kept = sum(lengths[: replies[len(spans) - 1] + 1]) if spans else 0
        if not spans:
            return "too long"
        end = spans[-1][1]
        bounds = (1, end) if self.learn_prompt else itertools.chain(*spans)
        return Encoded([(ids[:end], *bounds)], max(kept, 0), characters - max(kept, 0))

    def to_json(self, sample):
        return {"id": sample.id} | _turns_json(self.prompt_format, sample.turns)


@dataclass(frozen=True)
class MixedEncoder(TextEncoder):
    """Entries, and conversations as texts to pretrain on.

    template: "plain": their contents, with blank lines between, are a text like another; else the
              prompt format in which they are encoded, whole turns to a block, all tokens targets
    share:    of the conversations that are taken, drawn at random (seed)
    """

    template: str = "plain"
    share: float = 1.0
    seed: int = 0

    def fit(self, sample):
        if isinstance(sample, Entry):
            return sample
        id_, turns = to_conversation(sample)
        text = "\n\n".join(content for _, content in turns)
        if self.share < 1 and not is_val(f"{self.seed} {text}", self.share):
            raise LeftOut("conversation not drawn")
        if self.template == "plain":
            return Rendered(id_, turns, [Part(text)])
        return DialogueEncoder(self.template).fit(sample)

    def size(self, sample):
        return len(self.content(sample))

    def content(self, sample):
        if isinstance(sample, Entry):
            return sample.text
        return "\n\n".join(content for _, content in sample.turns)

    def split_key(self, sample):
        return self.content(sample)

    def texts(self, sample):
        return super().texts(sample) if isinstance(sample, Entry) else _texts(sample.parts)

    def encode(self, sample, ids, cutter, layout):
        if isinstance(sample, Entry) or self.template == "plain":
            return super().encode(self._entry(sample), ids, cutter, layout)
        dialogue = DialogueEncoder(self.template, learn_prompt=True)
        return dialogue.encode(sample, ids, cutter, layout)

    def to_json(self, sample):
        return super().to_json(self._entry(sample))

    def _entry(self, sample):
        return sample if isinstance(sample, Entry) else Entry(sample.id, "", self.content(sample))


@dataclass(frozen=True)
class PreferenceEncoder(SampleEncoder):
    """Preferences, for models of the prompt format "qa" or of a chat template. Each becomes two
    segments: the prompt with the chosen answer, and with the rejected one. So in the layout `pad`
    blocks 2i and 2i + 1 are preference i (minigpt/training/objectives/dpo.py). Targets are both
    answers and their ends.
    """

    prompt_format: str
    held_out = 3000  # preferences

    def fit(self, sample):
        if self.prompt_format == "qa" and [role for role, _ in sample.turns] != ["user"]:
            raise BadRecord(
                "field `prompt`: several messages, but --template=qa takes one question: give "
                "--template=chat"
            )
        if sample.chosen == sample.rejected:
            raise LeftOut("equal answers")
        answers = sample.chosen, sample.rejected
        wholes = [(*sample.turns, ("assistant", answer)) for answer in answers]
        return RenderedPreference(sample, *(_parts(self.prompt_format, each) for each in wholes))

    def content(self, sample):
        return json.dumps(sample.preference[1:4], ensure_ascii=False)

    def split_key(self, sample):
        # As for pairs; without an id, those with the same prompt are on one side.
        if sample.id is not None:
            return sample.id
        return json.dumps(sample.preference.turns, ensure_ascii=False)

    def texts(self, sample):
        return [*_texts(sample.chosen), *_texts(sample.rejected)]

    def encode(self, sample, ids, cutter, layout):
        encoded = iter(ids)
        segments = []
        for parts in (sample.chosen, sample.rejected):
            ids, spans = _assembled(cutter.tokenizer, parts, encoded)
            # Earlier turns of the assistant are the same on both sides: only the last is judged.
            segments.append((ids[: spans[-1][1]], *spans[-1]))
        if max(len(each[0]) for each in segments) > cutter.block_size:
            return "too long"
        _, turns, chosen, rejected, _ = sample.preference
        asked = sum(len(content) for _, content in turns)
        return Encoded(segments, 2 * asked + len(chosen) + len(rejected), 0)

    def to_json(self, sample):
        """The chosen answer as data/prepare_sft.py would write it, so that the evaluations read it,
        and the rejected answer."""
        _, turns, chosen, rejected, kind = sample.preference
        whole = _turns_json(self.prompt_format, (*turns, ("assistant", chosen)))
        return {"id": sample.id} | whole | {"rejected": rejected, "kind": kind}


@dataclass(frozen=True)
class PromptEncoder(SampleEncoder):
    """Prompts, for models of any prompt format. Each is a block in the layout `pad`, without
    targets: what the model writes after it is learned by its reward
    (minigpt/training/objectives/rollouts.py)."""

    prompt_format: str
    held_out = 3000  # prompts
    keeps_records = True

    def fit(self, sample):
        if kind_of(self.prompt_format) != "chat" and len(sample.turns) > 1:
            raise BadRecord(
                "field `prompt`: several messages, but this template takes one question: give "
                "--template=chat"
            )
        return RenderedPrompt(sample, _parts(self.prompt_format, sample.turns, question_parts))

    def content(self, sample):
        return json.dumps(sample.prompt[1:], ensure_ascii=False, sort_keys=True)

    def split_key(self, sample):
        # Without an id, those with the same prompt are on one side.
        if sample.id is not None:
            return sample.id
        return json.dumps(sample.prompt.turns, ensure_ascii=False)

    def texts(self, sample):
        return _texts(sample.parts)

    def encode(self, sample, ids, cutter, layout):
        ids = ids_of(cutter.tokenizer, sample.parts, iter(ids))
        if len(ids) >= cutter.block_size:
            return "too long"
        characters = sum(len(content) for _, content in sample.prompt.turns)
        return Encoded([(ids, len(ids), len(ids))], characters, 0)

    def to_json(self, sample):
        """The record for the reward, with the prompt, in a shape that the evaluations read."""
        id_, turns, record = sample.prompt
        asked = {"prompt": turns[-1][1]}
        if kind_of(self.prompt_format) == "chat":
            answer = [("assistant", record["answer"])] if "answer" in record else []
            asked |= _turns_json(self.prompt_format, (*turns, *answer))
        return {"id": id_} | asked | record


def _parts(prompt_format, turns, make=sample_parts):
    try:
        return make(prompt_format, turns)
    except TemplateRefused as error:
        raise BadRecord(str(error)) from None


def _texts(parts):
    return [part.text for part in parts if not part.special]


def _assembled(tokenizer, parts, encoded):
    """Parts as (ids as array("I"), spans): the ids from the first to before the last of a span are
    what the assistant says in a turn, and its end. encoded: the ids of the _texts() of the parts.
    """
    encoded = iter(encoded)
    ids, spans, is_open = array("I"), [], False
    for part in parts:
        first = spans.pop()[0] if is_open else len(ids)
        ids.extend(ids_of(tokenizer, [part], encoded))
        if part.learned:
            spans.append((first, len(ids)))
        is_open = part.learned and not part.special  # a special token ends the turn
    return ids, spans


def _turns_json(prompt_format, turns):
    """The turns as a line of val.jsonl has them."""
    if kind_of(prompt_format) == "chat":
        return {"messages": [{"role": role, "content": content} for role, content in turns]}
    (_, question), (_, answer) = turns
    return {"question": question, "answer": answer}


_ENCODERS = {
    Entry: TextEncoder(),
    Pair: DialogueEncoder("qa"),
    Conversation: DialogueEncoder("chat"),
    Preference: PreferenceEncoder("chat"),
    Prompt: PromptEncoder("qa"),
}


def encoder_of(sample_type):
    """The SampleEncoder of a type of sample."""
    return _ENCODERS[sample_type]
