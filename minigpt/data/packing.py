"""Segments → block files: how texts fill blocks, the masks, and a folder that is replaced whole.

    with replacing("data/processed") as folder:
        writer = SplitWriter(folder, "train", "concat", 512, tokenizer.pad, dtype)
        writer.add(Segments.of([(ids, 1, len(ids)), …], dtype))  # targets: all but the first
        counts = writer.finish()

data_utils.py reads what is written here: {train,val}.bin, rows of block_size ids, and
{train,val}.mask, a byte a token, bits TARGET and IS_START.
"""

import contextlib
import errno
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.files import leftovers, written_whole
from minigpt.common.locks import lock_path, locked
from minigpt.data.block_format import IS_START, TARGET

FILES = (
    *(f"{split}.{kind}" for split in ("train", "val") for kind in ("bin", "mask")),
    *("train.jsonl", "val.jsonl", "rejects.jsonl", "meta.json"),
)
# What training/objectives/dpo.py keeps beside them, perhaps half written: useless without them.
OF_BLOCKS = re.compile(r"reference-.*\.npy|\.reference-.*\.npy\.(.*\.)?(partial|lock)")
WINDOW = 2**21  # tokens that `concat` looks over at once: 4 MB, however long the input


def token_dtype(n_vocab):
    """The little-endian type of ids below `n_vocab`."""
    return np.dtype("<u2" if n_vocab <= 2**16 else "<u4")


@dataclass
class Segments:
    """n segments as arrays.

    ids (N,): of all segments, one after the other; learned (N,) uint8: TARGET for each id that is a
    target; lengths (n,) int64: of each segment.
    """

    ids: np.ndarray
    learned: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, segments, dtype):
        """From a list of (ids as array("I"), first, last): targets are the ids from `first` to
        before `last`. With several spans of targets: (ids, first, last, first, last)."""
        ids = np.frombuffer(b"".join([each[0] for each in segments]), np.uintc).astype(dtype)
        lengths = np.array([len(each[0]) for each in segments], np.int64)
        n_bounds = np.array([len(each) - 1 for each in segments], np.int64)
        bounds = np.array([bound for each in segments for bound in each[1:]], np.int64)
        bounds += np.repeat(np.cumsum(lengths) - lengths, n_bounds)  # where each segment starts
        changes = np.zeros(len(ids) + 1, np.uint8)
        np.add.at(changes, bounds[::2], TARGET)
        np.subtract.at(changes, bounds[1::2], TARGET)
        return cls(ids, np.cumsum(changes[:-1], dtype=np.uint8), lengths)

    @classmethod
    def joined(cls, parts):
        """Join several Segments into one."""
        fields = ("ids", "learned", "lengths")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))

    def __len__(self):
        return len(self.lengths)

    def chosen(self, which):
        """Return the segments where `which` ((n,) bool) is true."""
        if which.all():
            return self
        of_them = np.repeat(which, self.lengths)
        return Segments(self.ids[of_them], self.learned[of_them], self.lengths[which])


def pack_best_fit(lengths, capacity):
    """Best-fit packing: [[index, …], …], the segments with these `lengths` in rows of `capacity`
    (the longest first, each into the fullest row that has room). O(n log n).

    Rows, and the segments in a row, keep the order of the input.
    """
    lengths = np.asarray(lengths)
    rows, with_room = [], [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set if a row has room r: the lowest bit that fits is the best fit
    order = np.argsort(-lengths, kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            row.append(index)
        else:
            room, row = capacity, [index]
            rows.append(row)
        room -= length
        if room:
            with_room[room].append(row)
            rooms |= 1 << room
    for row in rows:
        row.sort()
    return sorted(rows)


class SplitWriter:
    """Writes <split>.bin and <split>.mask in one layout. finish() returns the counts: blocks,
    tokens (without PAD), targets, pieces (that is, segments) and padding (tokens of PAD)."""

    def __init__(self, folder, split, layout, block_size, pad, dtype):
        self.layout, self.block_size, self.pad, self.dtype = layout, block_size, pad, dtype
        self.counts = {"blocks": 0, "tokens": 0, "targets": 0, "pieces": 0, "padding": 0}
        self._waiting, self._waiting_tokens = [], 0
        self._rest = np.empty(0, dtype), np.empty(0, np.uint8)  # of `packed`: less than a row
        self._files = []
        try:
            for kind in ("bin", "mask"):
                self._files.append(open(Path(folder, f"{split}.{kind}"), "wb"))
        except OSError:
            self.close()
            raise

    def add(self, segments):
        """Take Segments. In pad and split each is a row; in concat and packed several are."""
        self.counts["pieces"] += len(segments)
        self.counts["tokens"] += len(segments.ids)
        self._waiting.append(segments)
        self._waiting_tokens += len(segments.ids)
        if self._waiting_tokens >= WINDOW:
            self._write_waiting()

    def finish(self):
        """Write the segments that wait, close the files and return the counts."""
        self._write_waiting()
        tokens, mask = self._rest
        if len(tokens):
            missing = self.block_size - len(tokens)
            tokens = np.append(tokens, np.full(missing, self.pad, self.dtype))
            self._write_stream(tokens, np.append(mask, np.zeros(missing, np.uint8)))
        for file in self._files:
            file.close()
        room = self.counts["blocks"] * self.block_size
        self.counts["padding"] = room - self.counts["tokens"]
        return self.counts

    def close(self):
        """Close the files as they are."""
        for file in self._files:
            file.close()

    def _write_waiting(self):
        if not self._waiting:
            return
        segments = Segments.joined(self._waiting)
        self._waiting, self._waiting_tokens = [], 0
        if self.layout == "concat":
            self._write_rows(segments, pack_best_fit(segments.lengths, self.block_size))
        elif self.layout == "packed":
            tokens, mask = self._rest
            tokens, mask = np.append(tokens, segments.ids), np.append(mask, segments.learned)
            self._write_stream(tokens, mask)
        else:
            self._write_rows(segments, [[i] for i in range(len(segments))])

    def _write_rows(self, segments, rows):
        """Write rows: each has the segments with these indices, then PAD."""
        tokens = np.full((len(rows), self.block_size), self.pad, self.dtype)
        mask = np.zeros(tokens.shape, np.uint8)
        ids, learned = segments.ids, segments.learned
        stops, lengths = np.cumsum(segments.lengths).tolist(), segments.lengths.tolist()
        for row_tokens, row_mask, row in zip(tokens, mask, rows, strict=True):
            at = 0
            for i in row:
                row_tokens[at : at + lengths[i]] = ids[stops[i] - lengths[i] : stops[i]]
                row_mask[at : at + lengths[i]] = learned[stops[i] - lengths[i] : stops[i]]
                row_mask[at] |= IS_START
                at += lengths[i]
            if at < self.block_size:
                row_mask[at] = IS_START  # the padding is a piece of its own
        self._write(tokens, mask)

    def _write_stream(self, tokens, mask):
        """Write one long stream of tokens, cut every block_size; the rest waits for more."""
        whole = len(tokens) // self.block_size * self.block_size
        self._rest = tokens[whole:], mask[whole:]
        mask = mask[:whole].reshape(-1, self.block_size)
        mask[:, 0] = IS_START  # the first token of a row has no context: no target
        self._write(tokens[:whole].reshape(-1, self.block_size), mask)

    def _write(self, tokens, mask):
        for file, rows in zip(self._files, (tokens, mask), strict=True):
            file.write(rows.data)
        self.counts["blocks"] += len(tokens)
        self.counts["targets"] += int(np.count_nonzero(mask & TARGET))


# -- a folder that is replaced whole ---------------------------------------------------------------


@contextlib.contextmanager
def replacing(folder):
    """Give a folder to write into, which replaces `folder` at the end (see files.written_whole).
    UserError where nothing can be written, where another process writes there, and where `folder`
    has files that are not a dataset's: they would be lost."""
    folder = Path(folder).resolve()  # through a link: the folder itself is replaced
    try:
        # Held from the start, without waiting: a preparation may take hours.
        with locked(lock_path(folder), folder, "--dataset"):
            for place in (folder, *leftovers(folder)):
                _check_only_ours(place)
            with written_whole(folder) as partial:
                partial.mkdir()
                yield partial
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        remedy = "make room, or choose another disk with --dataset=…" if full else "is it in use?"
        kept = "; the data that was there is untouched" if folder.exists() else ""
        raise UserError(f"{folder}: cannot be written ({error.strerror}){kept}: {remedy}") from None


def _check_only_ours(folder):
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; --dataset= names a folder to write into")
    names = sorted(p.name for p in folder.iterdir() if not OF_BLOCKS.fullmatch(p.name))
    others = [name for name in names if name not in FILES]
    if others:
        raise UserError(
            f"{folder}: has files that are no prepared data ({', '.join(others[:3])}) and would be "
            "lost; give --dataset= a folder of its own"
        )
