"""Encoded chunks → a dataset: duplicates are dropped, and segments are packed and written.

writer = DatasetWriter(folder, "concat", 512, tokenizer.pad, dtype, skip_bad=False)
writer.add(encoded)           # in the order of the input
counts = writer.finish()      # for meta.json
"""

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from minigpt.common.errors import UserError
from minigpt.data.cleaning import Changes
from minigpt.data.hashing import SeenHashes
from minigpt.data.packing import Segments, SplitWriter

SPLITS = ("train", "val")
MOST_EXAMPLES = 1000  # of each rule of cleaning
FAR_ABOVE = 2  # times as many tokens a character as in the other files, of which each has so many
LEAST_CHARACTERS = 500
MOST_NAMES = 20  # of shapes and of unused fields that are counted


@dataclass
class EncodedChunk:
    """The samples of one chunk, in tokens.

    source: the name of its document.  size: bytes of the file.  rejects: [Reject, …].
    changes: what cleaning has changed (Changes).  dropped: reason → samples.  shapes, unused: see
    Parsed in pipeline.py.
    Of the n samples that are kept: hashes (n,) uint64, of their contents; split_hashes (n,) uint64,
    of what decides between train and val; numbers (n, 3): segments,
    characters, characters left out; segments: those of all samples; val: index of a held-out
    sample → its line of val.jsonl; train: of train.jsonl, if there is one.
    """

    source: str
    size: int
    rejects: list
    changes: Changes
    dropped: Counter = field(default_factory=Counter)
    shapes: Counter = field(default_factory=Counter)
    unused: Counter = field(default_factory=Counter)
    hashes: np.ndarray | None = None
    split_hashes: np.ndarray | None = None
    numbers: np.ndarray | None = None
    segments: Segments | None = None
    val: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)


@dataclass
class SourceCounts:
    """What was read of a document: bad records and their bytes; tokens and characters."""

    bad: int = 0
    bad_bytes: int = 0
    tokens: int = 0
    characters: int = 0


def source_notes(per_source):
    """Lines about documents (name → SourceCounts) that lost records, or that take far more tokens
    for a character than the others."""
    notes = []
    tokens = sum(counts.tokens for counts in per_source.values())
    characters = sum(counts.characters for counts in per_source.values())
    for name, counts in per_source.items():
        if counts.bad:
            notes.append(
                f"{name}: {counts.bad:,} bad record{'s' * (counts.bad > 1)} of it left out, "
                f"{counts.bad_bytes:,} bytes"
            )
        others = characters - counts.characters
        if min(others, counts.characters) < LEAST_CHARACTERS:
            continue
        rate, usual = counts.tokens / counts.characters, (tokens - counts.tokens) / others
        if rate > FAR_ABOVE * usual and rate > 1:
            notes.append(
                f"{name}: {rate:.2f} tokens a character, {usual:.2f} in the other files: is it in "
                f"another language, or in another encoding (--encoding=NAME)?"
            )
    return notes


def check_splits(counts, fraction):
    """UserError, with the reason, unless both splits have a block. counts: of DatasetWriter."""
    one_key, first_bad = counts.pop("one_key"), counts.pop("first_bad")
    if counts["train"]["blocks"] and counts["val"]["blocks"]:
        return
    read, kept, dropped = counts["read"], counts["kept"], counts["dropped"]
    reasons = ", ".join(f"{reason}: {n}" for reason, n in dropped.items())
    found = f"{read} entries read, {kept} kept" + (f" (dropped: {reasons})" if reasons else "")
    if not kept:
        why = f"; the first bad one: {first_bad}" if first_bad else ""
        raise UserError(f"nothing to train on: {found}{why}")
    if kept == 1 and dropped.get("duplicate", 0) == read - 1 > 0:
        raise UserError(f"{found}: all have the same content; train and val need two at least")
    if kept == 1:
        raise UserError(f"{found}: train and val need two at least; give more text")
    if one_key:
        raise UserError(
            f"{found}: all have the same `id`, so all are in the same split; give what is about "
            f"another subject another `id`, or leave it out"
        )
    empty, advice = ("train", "smaller") if counts["val"]["blocks"] else ("val", "larger")
    raise UserError(
        f"{found}, and none of them is in {empty} at val_fraction={fraction:.3g}: give more text, "
        f"or a {advice} --val_fraction"
    )


class DatasetWriter:
    """Writes {train,val}.{bin,mask}, val.jsonl and rejects.jsonl, and counts. With keep_records()
    also train.jsonl."""

    def __init__(self, folder, layout, block_size, pad, dtype, skip_bad):
        self.counts = {"read": 0, "kept": 0, "dropped": Counter(), "cut": 0, "left_out": 0}
        self.counts |= {"shapes": Counter(), "unused": Counter()}
        self._changes = Changes(MOST_EXAMPLES)
        self._per_source = {}  # name → SourceCounts
        self._split_hashes = set()  # of the kept samples; two are enough
        self._first_bad = None  # its message
        self._skip_bad, self._rejects = skip_bad, None
        self._seen, self._rejects_path = SeenHashes(), folder / "rejects.jsonl"
        self._numbers = {split: {"entries": 0, "characters": 0} for split in SPLITS}
        self._writers = {
            split: SplitWriter(folder, split, layout, block_size, pad, dtype) for split in SPLITS
        }
        self._folder, self._texts = folder, {}  # split → the file of its records
        self._open_text("val")

    def _open_text(self, split):
        path = self._folder / f"{split}.jsonl"
        self._texts[split] = open(path, "w", encoding="utf-8", newline="\n")

    def keep_records(self):
        """Write the training samples as text, too. Call it before add()."""
        self._open_text("train")

    def add(self, encoded):
        """Add an EncodedChunk. UserError for its first bad record, unless those are skipped."""
        dropped = self.counts["dropped"]
        self._add_rejects(encoded.rejects)
        self._changes.merge(encoded.changes)
        self._count_source(encoded)
        if len(self._split_hashes) < 2:
            self._split_hashes.update(np.unique(encoded.split_hashes)[:2].tolist())
        dropped.update(encoded.dropped)
        for name in ("shapes", "unused"):
            found = self.counts[name] + getattr(encoded, name)
            self.counts[name] = Counter(dict(found.most_common(MOST_NAMES)))
        fresh = self._seen.first_time(encoded.hashes)
        held_out = np.zeros(len(fresh), bool)
        held_out[list(encoded.val)] = True
        for split, chosen in (("train", fresh & ~held_out), ("val", fresh & held_out)):
            if chosen.any():
                self._add_to(split, encoded, chosen)
        for split, file in self._texts.items():
            for index, line in getattr(encoded, split).items():
                if fresh[index]:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        kept = int(fresh.sum())
        if kept < len(fresh):
            dropped["duplicate"] += len(fresh) - kept
        self.counts["kept"] += kept
        self.counts["read"] += len(fresh) + encoded.dropped.total() + len(encoded.rejects)

    def _count_source(self, encoded):
        counts = self._per_source.setdefault(encoded.source, SourceCounts())
        counts.bad += len(encoded.rejects)
        counts.bad_bytes += sum(reject.size for reject in encoded.rejects)
        counts.tokens += len(encoded.segments.ids)
        counts.characters += int(encoded.numbers[:, 1].sum())

    def _add_to(self, split, encoded, chosen):
        """Add those samples of a chunk to a split where `chosen` ((n,) bool) is true."""
        n_segments, characters, left_out = encoded.numbers.T
        self._writers[split].add(encoded.segments.chosen(np.repeat(chosen, n_segments)))
        self._numbers[split]["entries"] += int(chosen.sum())
        self._numbers[split]["characters"] += int(characters[chosen].sum())
        self.counts["cut"] += int(np.count_nonzero(left_out[chosen]))
        self.counts["left_out"] += int(left_out[chosen].sum())

    def _add_rejects(self, rejects):
        if rejects and not self._skip_bad:
            message = rejects[0].message()
            raise UserError(f"{message}. Fix it, or skip such records with --skip_bad=true")
        if rejects and not self._rejects:
            self._rejects = open(self._rejects_path, "w", encoding="utf-8", newline="\n")
        if rejects:
            self._first_bad = self._first_bad or rejects[0].message()
        for reject in rejects:
            self.counts["dropped"]["bad"] += 1
            self._rejects.write(json.dumps(reject._asdict(), ensure_ascii=False) + "\n")

    def finish(self):
        """Write the segments that wait, close the files and return the counts."""
        for split, writer in self._writers.items():
            self.counts[split] = self._numbers[split] | writer.finish()
        for file in (*self._texts.values(), self._rejects):
            if file:
                file.close()
        for name in ("dropped", "shapes", "unused"):
            self.counts[name] = dict(self.counts[name].most_common())
        self.counts["cleaning"] = self._changes
        self.counts["one_key"] = len(self._split_hashes) == 1
        self.counts["first_bad"] = self._first_bad
        self.counts["notes"] = source_notes(self._per_source)
        return self.counts

    def abandon(self):
        """Close the files as they are: the folder will be removed."""
        for file in (*self._writers.values(), *self._texts.values(), self._rejects):
            if file:
                with contextlib.suppress(OSError):  # the disk may be full
                    file.close()
