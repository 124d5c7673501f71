"""The whole way from files to a dataset folder: what data/prepare.py and data/prepare_sft.py share.

    meta = prepare(PlainText(), "data/sample", "data/processed", "zh", 512, "concat")
    print(table(meta))

This process reads the files and writes the blocks; the workers do what takes time: JSON, cleaning,
hashing, encoding, cutting. What is particular to plain text, to question–answer pairs and to
conversations is in one class each.
"""

import contextlib
import gc
import itertools
import json
import os
import shlex
import sys
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigpt.common import report
from minigpt.common.errors import UserError
from minigpt.data.block_format import FORMAT
from minigpt.data.cleaning import clean_all
from minigpt.data.packing import Pieces, SplitWriter, replacing, token_dtype
from minigpt.data.parallel import core_count, ordered_map
from minigpt.data.prompts import conversation_ids, spelled
from minigpt.data.readers import (
    CHUNK,
    Entry,
    Reject,
    Source,
    below,
    conversation_of,
    entry_of,
    find_files,
    hash_all,
    instruction_of,
    pair_of,
    records,
)
from minigpt.data.sentences import SMALLEST_BLOCK, Cutter
from minigpt.tokenizer.tokenizer import load_tokenizer

LARGEST_FRACTION = 0.1  # of the entries that an automatic val_fraction holds out
SAMPLE = 2**20  # bytes: up to here all of the input is looked at before the fraction is chosen

# -- kinds of data ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainText:
    """Entries to continue. Every token is a target but a piece's first, and the EOT of `pad`."""

    clean: bool = True  # drop title lines and leftovers
    prompt_format = "plain"
    held_out = 120_000  # characters, so that 100,000 are left however the hashes fall
    parse = staticmethod(entry_of)

    def ready(self, entries):
        """The entries as they are to be encoded, in their order; "" where nothing is left."""
        if not self.clean:
            return [entry if entry.text.strip() else "" for entry in entries]
        texts = clean_all([entry.text for entry in entries], [entry.title for entry in entries])
        return [
            Entry(entry.id, entry.title, text) if text else ""
            for entry, text in zip(entries, texts, strict=True)
        ]

    def content(self, entry):
        """What makes two entries duplicates."""
        return entry.text

    @property
    def source(self):
        """What decides between train and val: the cleaned text, so that cleaned and raw data of the
        same files hold out the same entries."""
        return self.content if self.clean else self.cleaned

    def cleaned(self, entry):
        return clean_all([entry.text], [entry.title])[0] or entry.text

    def amount(self, entry):
        """How much of `held_out` an entry is."""
        return len(entry.text)

    def texts(self, entry):
        """What of an entry is encoded."""
        return (entry.text,)

    def encode(self, entry, ids, cutter, layout):
        """([piece, …] as Pieces.of() takes them, characters in them, characters left out), or the
        reason for which the entry is dropped. ids: those of each of its texts()."""
        (ids,) = ids
        text = cutter.tokenizer.normalize(entry.text)  # what the ids spell
        if layout == "pad":
            kept = cutter.first_sentences(text, ids)
            if kept is None:
                return "no sentence end"
            ids, characters = kept
            return [(ids, 1, len(ids) - 1)], characters, len(text) - characters
        if layout == "packed":
            ids.append(cutter.tokenizer.eot)
            return [(ids, 0, len(ids))], len(text), 0
        return [(ids, 1, len(ids)) for ids in cutter.pieces(text, ids)], len(text), 0

    def as_text(self, entry):
        """An entry's line of val.jsonl."""
        return {"id": entry.id, "title": entry.title, "text": entry.text}


@dataclass(frozen=True)
class QuestionAnswers:
    """Question–answer pairs. The targets are the answer and its EOT; a pair is never cut."""

    prompt_format = "qa"
    held_out = 3000  # pairs
    parse = staticmethod(pair_of)

    def ready(self, pairs):
        """See PlainText: pairs need nothing more."""
        return pairs

    def content(self, pair):
        """See PlainText."""
        return pair.question + pair.answer

    def source(self, pair):
        """See PlainText. The id names the paragraph, which never stands on both sides."""
        return self.content(pair) if pair.id is None else pair.id

    def amount(self, pair):
        """See PlainText."""
        return 1

    def texts(self, pair):
        """See PlainText."""
        return pair.question, pair.answer

    def encode(self, pair, ids, cutter, layout):
        """See PlainText."""
        tokenizer, (question, answer) = cutter.tokenizer, ids
        ids = array("I", [*question, tokenizer.answer_mark, *answer, tokenizer.eot])
        if len(ids) > cutter.block_size:
            return "too long"
        # The mask is made here, where the parts are known: a question may hold the answer mark.
        return [(ids, len(question) + 1, len(ids))], len(pair.question) + len(pair.answer), 0

    def as_text(self, pair):
        """See PlainText."""
        return {"id": pair.id, "question": pair.question, "answer": pair.answer}


@dataclass(frozen=True)
class Conversations:
    """Conversations, in ChatML's marks. The targets are what the assistant says in each turn, and
    the turn's end. Of one that is longer than a block the last turns are left out, each whole."""

    parse: Callable = conversation_of  # a record → Conversation or Reject
    prompt_format = "chat"
    held_out = 3000  # conversations

    def ready(self, conversations):
        """See PlainText: conversations need nothing more."""
        return conversations

    def content(self, conversation):
        """See PlainText."""
        return json.dumps(conversation.turns, ensure_ascii=False)

    def source(self, conversation):
        """See PlainText. Conversations with one id never stand on both sides."""
        return self.content(conversation) if conversation.id is None else conversation.id

    def amount(self, conversation):
        """See PlainText."""
        return 1

    def texts(self, conversation):
        """See PlainText."""
        return [spelled(role, content) for role, content in conversation.turns]

    def encode(self, conversation, ids, cutter, layout):
        """See PlainText."""
        roles = [role for role, _ in conversation.turns]
        ids, spans = conversation_ids(cutter.tokenizer, roles, ids)
        spans = [span for span in spans if span[1] <= cutter.block_size]
        if not spans:
            return "too long"
        # It ends with the assistant's last turn that fits; without such a turn behind it, a
        # question teaches nothing.
        learned = [i for i, role in enumerate(roles) if role == "assistant"][: len(spans)]
        lengths = [len(content) for _, content in conversation.turns]
        kept = sum(lengths[: learned[-1] + 1])
        piece = ids[: spans[-1][1]], *itertools.chain(*spans)
        return [piece], kept, sum(lengths) - kept

    def as_text(self, conversation):
        """See PlainText."""
        messages = [{"role": role, "content": content} for role, content in conversation.turns]
        return {"id": conversation.id, "messages": messages}


SFT_FORMATS = {  # what data/prepare_sft.py reads
    "qa": QuestionAnswers(),
    "alpaca": Conversations(instruction_of),
    "chat": Conversations(conversation_of),
}


# -- the work of one process -----------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a worker has to know."""

    kind: PlainText | QuestionAnswers | Conversations
    tokenizer: str
    block_size: int
    layout: str
    val_fraction: float


@dataclass
class Batch:
    """What became of a chunk.

    dropped: reason → entries; rejects: [Reject, …]; of the n kept entries, hashes (n,) uint64 and
    numbers (n, 3): pieces, characters, characters left out; pieces: those of all; val: index →
    line of val.jsonl; size: bytes of the file.
    """

    size: int
    rejects: list
    dropped: Counter = field(default_factory=Counter)
    val: dict = field(default_factory=dict)
    hashes: np.ndarray | None = None
    numbers: np.ndarray | None = None
    pieces: Pieces | None = None


class ChunkWorker:
    """Chunk → Batch."""

    def __init__(self, job):
        self.job = job
        # The workers are the threads: fastokens is to start none of its own.
        os.environ.update(FASTOKENS_BPE_THREADS="1", RAYON_NUM_THREADS="1")
        tokenizer = load_tokenizer(job.tokenizer)
        self.cutter = Cutter(tokenizer, job.block_size)
        self.dtype = token_dtype(tokenizer.n_vocab)
        gc.freeze()  # the vocabulary stays: the garbage collector need not go through it again

    def __call__(self, chunk):
        kind, layout = self.job.kind, self.job.layout
        entries, rejects = parse(kind, chunk)
        batch = Batch(chunk.size, rejects)
        kept, numbers, pieces = [], [], []
        ready = kind.ready(entries)
        texts = [kind.texts(entry) if entry else () for entry in ready]
        rows = iter(self.cutter.tokenizer.encode_batch(itertools.chain(*texts)))
        for entry, parts in zip(ready, texts, strict=True):
            ids = [next(rows) for _ in parts]
            encoded = kind.encode(entry, ids, self.cutter, layout) if entry else "empty"
            if isinstance(encoded, str):
                batch.dropped[encoded] += 1
                continue
            kept.append(entry)
            pieces += encoded[0]
            numbers.append((len(encoded[0]), *encoded[1:]))
        batch.hashes = hash_all(map(kind.content, kept))
        # Mostly both are one method, and one hash serves.
        sources = hash_all(map(kind.source, kept)) if kind.source != kind.content else batch.hashes
        held_out = np.flatnonzero(below(sources, self.job.val_fraction)).tolist()
        batch.val = {index: kind.as_text(kept[index]) for index in held_out}
        batch.numbers = np.array(numbers, np.int64).reshape(-1, 3)
        batch.pieces = Pieces.of(pieces, self.dtype)
        return batch


def parse(kind, chunk):
    """(entries, rejects) of a chunk."""
    entries, rejects = [], []
    for line, record in records(chunk):
        if not isinstance(record, Reject):
            record = kind.parse(record, chunk.source, line)
        (rejects if isinstance(record, Reject) else entries).append(record)
    return entries, rejects


# -- the whole -------------------------------------------------------------------------------------


class Seen:
    """A set of hashes: 8 bytes for each, and 12 more for a moment while it grows.

    Sorted arrays, each more than twice as long as the next, which are merged as they grow.
    """

    def __init__(self):
        self._levels = []

    def first_time(self, hashes):
        """(n,) bool: which of `hashes` ((n,) uint64) come for the first time; all are kept."""
        unique, first = np.unique(hashes, return_index=True)
        new = np.ones(len(unique), bool)
        for level in self._levels:
            places = np.minimum(np.searchsorted(level, unique), len(level) - 1)
            new &= level[places] != unique
        if new.any():
            self._add(unique[new])
        fresh = np.zeros(len(hashes), bool)
        fresh[first[new]] = True
        return fresh

    def _add(self, level):
        while self._levels and len(self._levels[-1]) <= 2 * len(level):
            level = np.concatenate([self._levels.pop(), level])
            level.sort(kind="stable")  # which merges two sorted runs in linear time
        self._levels.append(level)


def prepare(
    kind, paths, dataset, tokenizer, block_size, layout,
    workers=0, val_fraction=None, skip_bad=False, command="", facts=(),
):  # fmt: skip
    """Files → dataset folder; returns what its meta.json says.

    kind:         PlainText(), or one of SFT_FORMATS
    paths:        see corpus.find_files
    workers:      processes; 0 takes every core
    val_fraction: share of the entries held out; None chooses (see automatic_fraction)
    skip_bad:     copy bad records to rejects.jsonl instead of stopping at the first
    command:      what makes the same again, for meta.json
    facts:        more for meta.json, a dict

    UserError for bad input or values, and when train or val would be empty; the folder is then
    what it was.
    """
    _check(block_size, workers, val_fraction)
    files = find_files(paths)
    vocabulary = load_tokenizer(tokenizer)
    total = sum(file.stat().st_size for file in files)
    fraction = automatic_fraction(kind, files) if val_fraction is None else val_fraction
    processes = min(workers or core_count(), max(1, total // CHUNK))
    print(
        f"{len(files)} file{'s' * (len(files) > 1)}, {total / 1e6:.1f} MB, {processes} "
        f"process{'es' * (processes > 1)}; held out for val: {fraction:.2%} of the entries"
    )
    job = Job(kind, tokenizer, block_size, layout, fraction)
    dtype = token_dtype(vocabulary.n_vocab)
    with replacing(dataset) as folder:
        result = _Result(folder, layout, block_size, vocabulary.pad, dtype, skip_bad)
        sources = [Source(file) for file in files]
        chunks = (chunk for source in sources for chunk in source.chunks())
        try:
            with tqdm(total=total, unit="B", unit_scale=True, desc="preparing") as bar:
                for batch in ordered_map(ChunkWorker, job, chunks, processes):
                    result.add(batch)
                    bar.update(batch.size)
            counts = result.finish()
        except BaseException:
            result.abandon()
            raise
        _check_splits(counts, fraction)
        meta = {
            "format": FORMAT,
            "tokenizer": tokenizer,
            "tokenizer_hash": vocabulary.hash,
            "n_vocab": vocabulary.n_vocab,
            "dtype": dtype.name,
            "block_size": block_size,
            "layout": layout,
            "prompt_format": kind.prompt_format,
            "val_fraction": fraction,
            "counts": counts,
            "sources": [{"name": s.name, "bytes": s.size, "sha256": s.sha256} for s in sources],
            "command": command,
            **dict(facts),
        }
        text = json.dumps(meta, ensure_ascii=False, indent=2) + "\n"
        Path(folder, "meta.json").write_text(text, encoding="utf-8")
    return meta


class _Result:
    """Batches → the files of a dataset, and the counts."""

    def __init__(self, folder, layout, block_size, pad, dtype, skip_bad):
        self.counts = {"read": 0, "kept": 0, "dropped": Counter(), "cut": 0, "left_out": 0}
        self._skip_bad, self._rejects = skip_bad, None
        self._seen, self._rejects_path = Seen(), folder / "rejects.jsonl"
        self._numbers = {split: {"entries": 0, "characters": 0} for split in ("train", "val")}
        self._writers = {
            split: SplitWriter(folder, split, layout, block_size, pad, dtype)
            for split in ("train", "val")
        }
        self._val_text = open(folder / "val.jsonl", "w", encoding="utf-8", newline="\n")

    def add(self, batch):
        """Take a batch. UserError for its first bad record, unless such are left out."""
        dropped = self.counts["dropped"]
        self._reject(batch.rejects)
        dropped.update(batch.dropped)
        fresh = self._seen.first_time(batch.hashes)
        held_out = np.zeros(len(fresh), bool)
        held_out[list(batch.val)] = True
        for split, chosen in (("train", fresh & ~held_out), ("val", fresh & held_out)):
            if chosen.any():
                n_pieces, characters, left_out = batch.numbers.T
                self._writers[split].add(batch.pieces.chosen(np.repeat(chosen, n_pieces)))
                self._numbers[split]["entries"] += int(chosen.sum())
                self._numbers[split]["characters"] += int(characters[chosen].sum())
                self.counts["cut"] += int(np.count_nonzero(left_out[chosen]))
                self.counts["left_out"] += int(left_out[chosen].sum())
        for index, line in batch.val.items():
            if fresh[index]:
                self._val_text.write(json.dumps(line, ensure_ascii=False) + "\n")
        kept = int(fresh.sum())
        if kept < len(fresh):
            dropped["duplicate"] += len(fresh) - kept
        self.counts["kept"] += kept
        self.counts["read"] += len(fresh) + batch.dropped.total() + len(batch.rejects)

    def _reject(self, rejects):
        if rejects and not self._skip_bad:
            raise UserError(rejects[0].message())
        if rejects and not self._rejects:
            self._rejects = open(self._rejects_path, "w", encoding="utf-8", newline="\n")
        for reject in rejects:
            self.counts["dropped"]["bad"] += 1
            self._rejects.write(json.dumps(reject._asdict(), ensure_ascii=False) + "\n")

    def finish(self):
        """Write what still waits; returns the counts."""
        for split, writer in self._writers.items():
            self.counts[split] = self._numbers[split] | writer.finish()
        for file in (self._val_text, self._rejects):
            if file:
                file.close()
        self.counts["dropped"] = dict(self.counts["dropped"].most_common())
        return self.counts

    def abandon(self):
        """Close the files as they are: the folder is going to be removed."""
        for file in (*self._writers.values(), self._val_text, self._rejects):
            if file:
                with contextlib.suppress(OSError):  # the disk may be full
                    file.close()


def _check(block_size, workers, val_fraction):
    problems = []
    if block_size < SMALLEST_BLOCK:
        problems.append(f"block_size={block_size}: expected at least {SMALLEST_BLOCK} tokens")
    if workers < 0:
        problems.append(f"workers={workers}: expected 0 (every core) or a number of processes")
    if val_fraction is not None and not 0 < val_fraction < 1:
        problems.append(f"val_fraction={val_fraction}: expected a share between 0 and 1, or none")
    if problems:
        raise UserError("\n".join(problems))


def _check_splits(counts, fraction):
    """UserError unless both splits hold a block."""
    if counts["train"]["blocks"] and counts["val"]["blocks"]:
        return
    dropped = ", ".join(f"{reason}: {n}" for reason, n in counts["dropped"].items())
    found = f"{counts['read']} entries read, {counts['kept']} kept"
    found += f" (dropped: {dropped})" if dropped else ""
    if not counts["kept"]:
        raise UserError(f"nothing to train on: {found}")
    empty, advice = ("train", "smaller") if counts["val"]["blocks"] else ("val", "larger")
    raise UserError(
        f"{found}, and none of them fell to {empty} at val_fraction={fraction:.3g}: give more "
        f"text, or a {advice} --val_fraction"
    )


def automatic_fraction(kind, files):
    """The share to hold out: so much that val gets kind.held_out, but LARGEST_FRACTION at most.

    How much the files hold is reckoned from their sizes and a sample. Of an input that is small
    enough to be looked at whole, val gets one entry at least.
    """
    total = sum(file.stat().st_size for file in files)
    small = total <= SAMPLE
    size = amount = 0
    hashes = set()
    for file in files if small else files[:: -(-len(files) // 16)]:
        for chunk in Source(file).chunks():
            entries = [entry for entry in kind.ready(parse(kind, chunk)[0]) if entry]
            amount += sum(map(kind.amount, entries))
            hashes.update(hash_all(map(kind.source, entries)).tolist())
            size += chunk.size
            if not small:
                break
    if not hashes:
        return LARGEST_FRACTION
    fraction = min(LARGEST_FRACTION, kind.held_out / amount * size / total)
    if small and len(hashes) > 1:
        fraction = max(fraction, min(hashes) / 2**64 * (1 + 1e-9))
    return fraction


# -- what a script says ----------------------------------------------------------------------------


def command_line(script):
    """The command that was given, for meta.json."""
    return shlex.join(["python", script, *sys.argv[1:]])


def table(meta):
    """The report at the end, as text."""
    counts, block_size = meta["counts"], meta["block_size"]
    dropped = sum(counts["dropped"].values())
    lines = [f"read {counts['read']:,} = kept {counts['kept']:,} + dropped {dropped:,}"]
    lines += [f"    dropped: {reason} {n:,}" for reason, n in counts["dropped"].items()]
    if counts["left_out"]:
        characters = sum(counts[split]["characters"] for split in ("train", "val"))
        share = counts["left_out"] / (characters + counts["left_out"])
        lines.append(
            f"    cut away behind the block: {share:.1%} of the kept entries' characters, in "
            f"{counts['cut']:,} of them"
        )
    header = ["", "entries", "characters", "tokens", "tokens/char", "targets", "blocks", "padding"]
    rows = []
    for split in ("train", "val"):
        n = counts[split]
        rows.append(
            [split]
            + [f"{n[name]:,}" for name in ("entries", "characters", "tokens")]
            + [f"{n['tokens'] / max(1, n['characters']):.3f}"]
            + [f"{n[name]:,}" for name in ("targets", "blocks")]
            + [f"{n['padding'] / (n['blocks'] * block_size):.1%}"]
        )
    return "\n".join([*lines, report.table(header, rows)])
