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
from minigpt.data.hashing import SeenHashes
from minigpt.data.packing import Segments, SplitWriter

SPLITS = ("train", "val")
MOST_NAMES = 20  # of shapes and of unused fields that are counted


@dataclass
class EncodedChunk:
    """The samples of one chunk, in tokens.

    size: bytes of the file.  rejects: [Reject, …].  dropped: reason → samples.  shapes, unused: see
    Parsed in pipeline.py.
    Of the n samples that are kept: hashes (n,) uint64, of their contents; numbers (n, 3): segments,
    characters, characters left out; segments: those of all samples; val: index of a held-out
    sample → its line of val.jsonl.
    """

    size: int
    rejects: list
    dropped: Counter = field(default_factory=Counter)
    shapes: Counter = field(default_factory=Counter)
    unused: Counter = field(default_factory=Counter)
    hashes: np.ndarray | None = None
    numbers: np.ndarray | None = None
    segments: Segments | None = None
    val: dict = field(default_factory=dict)


class DatasetWriter:
    """Writes {train,val}.{bin,mask}, val.jsonl and rejects.jsonl, and counts."""

    def __init__(self, folder, layout, block_size, pad, dtype, skip_bad):
        self.counts = {"read": 0, "kept": 0, "dropped": Counter(), "cut": 0, "left_out": 0}
        self.counts |= {"shapes": Counter(), "unused": Counter()}
        self._skip_bad, self._rejects = skip_bad, None
        self._seen, self._rejects_path = SeenHashes(), folder / "rejects.jsonl"
        self._numbers = {split: {"entries": 0, "characters": 0} for split in SPLITS}
        self._writers = {
            split: SplitWriter(folder, split, layout, block_size, pad, dtype) for split in SPLITS
        }
        self._val_text = open(folder / "val.jsonl", "w", encoding="utf-8", newline="\n")

    def add(self, encoded):
        """Add an EncodedChunk. UserError for its first bad record, unless those are skipped."""
        dropped = self.counts["dropped"]
        self._add_rejects(encoded.rejects)
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
        for index, line in encoded.val.items():
            if fresh[index]:
                self._val_text.write(json.dumps(line, ensure_ascii=False) + "\n")
        kept = int(fresh.sum())
        if kept < len(fresh):
            dropped["duplicate"] += len(fresh) - kept
        self.counts["kept"] += kept
        self.counts["read"] += len(fresh) + encoded.dropped.total() + len(encoded.rejects)

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
        for reject in rejects:
            self.counts["dropped"]["bad"] += 1
            self._rejects.write(json.dumps(reject._asdict(), ensure_ascii=False) + "\n")

    def finish(self):
        """Write the segments that wait, close the files and return the counts."""
        for split, writer in self._writers.items():
            self.counts[split] = self._numbers[split] | writer.finish()
        for file in (self._val_text, self._rejects):
            if file:
                file.close()
        for name in ("dropped", "shapes", "unused"):
            self.counts[name] = dict(self.counts[name].most_common())
        return self.counts

    def abandon(self):
        """Close the files as they are: the folder will be removed."""
        for file in (*self._writers.values(), self._val_text, self._rejects):
            if file:
                with contextlib.suppress(OSError):  # the disk may be full
                    file.close()
