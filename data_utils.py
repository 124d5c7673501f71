"""Blocks → batches: the files of data/prepare.py, memory-mapped, as tensors for train.py.

    blocks = Blocks("data/wiki", "train")
    batch = Batches(blocks, batch_size=8, seed=1)[0]      # a Batch: x, y, loss_mask, …

A dataset folder has {train,val}.bin (tokens), {train,val}.mask (a byte per token) and meta.json.
Batch i is a function of the seed and of i alone, so a resumed run needs no state but its step.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from minigpt.common.errors import UserError
from minigpt.common.files import read_json, read_unchanged, set_aside
from minigpt.common.types import typed
from minigpt.data.block_format import FORMAT, IS_START, STAGES, TARGET

# The required fields of meta.json.
FACTS = dict(
    tokenizer=str,
    tokenizer_hash=str,
    n_vocab=int,
    dtype=Literal["uint16", "uint32"],
    block_size=int,
    layout=Literal["pad", "split", "concat", "packed"],
    prompt_format=Literal["plain", "qa", "chat"],
    counts=dict,
)
MORE_FACTS = dict(kind=str, command=str, chat_template=str)
COUNTS = dict(blocks=int, targets=int)  # per split


def read_meta(folder, make="python data/prepare.py --input=PATH"):
    """meta.json of a dataset folder as a dict. UserError if it is missing or wrong; `make` is the
    command that writes it."""
    path = Path(folder) / "meta.json"
    read = lambda: _read_meta(path, folder, make)  # noqa: E731
    return read_unchanged(read, [path], lambda: _pending(Path(folder), make))


def _pending(folder, make):
    """An error line if `folder` is missing because its replacement was interrupted; else None."""
    old = set_aside(folder.resolve())
    if folder.exists() or not old.exists():
        return None
    return (
        f"{folder}: the run that was replacing it was killed; run again: {make} --dataset={folder}"
    )


def _read_meta(path, folder, make):
    try:
        meta = read_json(path, f"run again: {make} --dataset={folder}")
    except FileNotFoundError:
        raise UserError(f"{path}: no prepared data here; run {make} --dataset={folder}") from None
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path}: block format {str(meta.get('format'))[:40]}, this version reads {FORMAT}; "
            f"run again: {_command(meta, folder, make)}"
        )
    missing = [name for name in FACTS if name not in meta]
    if missing:
        raise UserError(
            f"{path}: lacks {', '.join(missing)}; run again: {_command(meta, folder, make)}"
        )
    problems = _meta_problems(meta, path)
    if problems:
        problems[-1] += f"; run again: {_command(meta, folder, make)}"
        raise UserError("\n".join(problems))
    return meta


def _meta_problems(meta, path):
    """An error line for each bad value in meta.json."""
    _, problems = typed(meta, FACTS | MORE_FACTS, path)
    for split in ("train", "val") if not problems else ():
        counts = meta["counts"].get(split)
        if not isinstance(counts, dict) or not COUNTS.keys() <= counts.keys():
            problems.append(f"{path}: counts: {split}: expected an object with blocks and targets")
        else:
            problems += typed(counts, COUNTS, f"{path}: counts: {split}")[1]
    for name, least in dict(block_size=2, n_vocab=1).items() if not problems else ():
        if meta[name] < least:
            problems.append(f"{path}: {name}={meta[name]}: expected at least {least}")
    return problems


def _command(meta, folder, make="python data/prepare.py --input=PATH"):
    command = meta.get("command")
    return command if command and isinstance(command, str) else f"{make} --dataset={folder}"


class Blocks:
    """One split of a dataset, memory-mapped and checked.

    tokens: (n_blocks, block_size) token ids;  mask: the same shape, bits TARGET and IS_START.
    isolate: separate the segments of a block in the layout concat; false: a row is one segment.
    UserError if the files contradict meta.json, the tokenizer or the requested block size, if they
    hold another kind of data, or if isolate=False and the layout has no segments to separate.
    """

    kind = "blocks"  # the field of meta.json, and its default
    unit = "blocks"  # the name of the examples in train.py's messages

    def __init__(self, folder, split, tokenizer=None, block_size=None, isolate=True):
        self.folder, self.split = Path(folder), split
        paths = [self.folder / name for name in ("meta.json", f"{split}.bin", f"{split}.mask")]
        self.meta, self.tokens, self.mask = read_unchanged(self._open, paths)
        self._check(tokenizer, block_size, isolate)

    def _open(self):
        """(meta, tokens, mask) of the folder."""
        meta = read_meta(self.folder)
        if meta.get("kind", Blocks.kind) != self.kind:
            raise self.of_another_kind(meta)
        dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        return meta, self._map(meta, ".bin", dtype), self._map(meta, ".mask", np.dtype(np.uint8))

    def _check(self, tokenizer, block_size, isolate):
        """See the class."""
        meta, folder = self.meta, self.folder
        again = f"run again: {_command(meta, folder)}"
        name = f"{folder / self.split}.bin"
        if tokenizer is not None and meta["tokenizer_hash"] != tokenizer.hash:
            raise UserError(
                f"{name}: made with tokenizer {meta['tokenizer']} ({meta['tokenizer_hash']}), the "
                f"run uses {tokenizer.name} ({tokenizer.hash}); prepare the data with "
                f"--tokenizer={tokenizer.name}, or train with --tokenizer={meta['tokenizer']}"
            )
        if block_size is not None and meta["block_size"] != block_size:
            raise UserError(
                f"{name}: blocks of {meta['block_size']} tokens, the run expects {block_size}; "
                f"prepare the data with --block_size={block_size}, or, if the run starts from "
                f"scratch, train with --block_size={meta['block_size']}"
            )
        self.block_size = meta["block_size"]
        if not isolate and meta["layout"] != "concat":
            raise UserError(
                f"isolate=false: {name} has the layout {meta['layout']}, which has no "
                f"segments; prepare the data with --layout=concat, or leave isolate at true"
            )
        self.isolated = isolate and meta["layout"] == "concat"  # several segments in a block
        highest = max(int(part.max()) for part in np.array_split(self.tokens, _parts(self.tokens)))
        if highest >= meta["n_vocab"]:
            raise UserError(
                f"{name}: token id {highest}, but the vocabulary ends at {meta['n_vocab'] - 1}; "
                f"{again}"
            )

    def _map(self, meta, suffix, dtype):
        path, again = (
            self.folder / f"{self.split}{suffix}",
            f"run again: {_command(meta, self.folder)}",
        )
        if not path.exists():
            raise UserError(f"{path}: missing; {again}")
        size, block = path.stat().st_size, meta["block_size"] * dtype.itemsize
        if size % block:
            raise UserError(
                f"{path}: {size} bytes is not a multiple of {block} (block_size "
                f"{meta['block_size']}, {dtype.name}): truncated or another block_size; {again}"
            )
        if size == 0:
            raise UserError(f"{path}: no blocks; {again}")
        n_blocks = meta["counts"][self.split]["blocks"]
        if size != n_blocks * block:
            raise UserError(
                f"{path}: {size // block} blocks, but meta.json has {n_blocks}: truncated, or "
                f"files of two runs; {again}"
            )
        return np.memmap(path, dtype, "r").reshape(-1, meta["block_size"])

    def of_another_kind(self, meta):
        """The UserError for a folder with another kind of data."""
        kind = meta.get("kind", Blocks.kind)
        return UserError(
            f"{self.folder}: holds {kind}, only for --stage={STAGES.get(kind, kind)} of "
            f"train.py; give --dataset= a folder of data/prepare.py or data/prepare_sft.py"
        )

    def __len__(self):
        return len(self.tokens)

    @property
    def tokens_per_block(self):
        """The number of tokens of a block that the model reads."""
        return self.block_size

    def batch(self, rows):
        """The blocks with these numbers ((B,) int64) as a Batch on the CPU."""
        return Batch.of(self.tokens[rows], self.mask[rows], self.isolated, rows)

    @property
    def target_fraction(self):
        """Targets as a fraction of all tokens, 0 … 1."""
        return self.meta["counts"][self.split]["targets"] / self.tokens.size


def _parts(tokens):
    return min(len(tokens), tokens.nbytes // 2**26 + 1)  # scanned 64 MB at a time


@dataclass
class Batch:
    """B blocks of T tokens on a device.

    x: (B, T) int64, tokens in.
    y: (B, T) int64, targets: x shifted by one.
    loss_mask: (B, T) bool, which of y count in the loss; the last one of a row never does.
    segment_ids, positions: (B, T) int64, the segment of a token and its position in it; None if
        each row is one segment.
    cu_seqlens: (n + 1,) int32, 0 and where each segment ends, counted through the rows one after
        the other; None if segment_ids is.
    target_indices: (N,) int64, where loss_mask is true, counted in the same way; N = count, or more
        after padded().
    count: number of targets, an int, so that nothing waits for the device.
    rows: (B,) numbers of the blocks, for messages.
    """

    x: torch.Tensor
    y: torch.Tensor
    loss_mask: torch.Tensor
    segment_ids: torch.Tensor | None
    positions: torch.Tensor | None
    cu_seqlens: torch.Tensor | None
    target_indices: torch.Tensor
    count: int
    rows: np.ndarray

    @classmethod
    def of(cls, tokens, mask, isolated, rows=None):
        """A Batch on the CPU from arrays (B, T) of token ids and mask bytes. isolated: whether
        IS_START separates segments; false: each row is one segment."""
        tokens = tokens.astype(np.int64)  # (B, T)
        y = np.zeros_like(tokens)
        y[:, :-1] = tokens[:, 1:]
        loss_mask = np.zeros(tokens.shape, bool)
        loss_mask[:, :-1] = mask[:, 1:] & TARGET
        target_indices = np.flatnonzero(loss_mask)
        segment_ids = positions = cu_seqlens = None
        if isolated:
            is_start = (mask & IS_START) > 0  # (B, T)
            is_start[:, 0] = True
            columns = np.arange(tokens.shape[1])
            segment_ids = is_start.cumsum(1)
            positions = columns - np.maximum.accumulate(np.where(is_start, columns, 0), 1)
            cu_seqlens = np.append(np.flatnonzero(is_start), is_start.size).astype(np.int32)
        arrays = (tokens, y, loss_mask, segment_ids, positions, cu_seqlens, target_indices)
        tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
        return cls(*tensors, count=len(target_indices), rows=rows)

    def padded(self, targets=1024, segments=256):
        """The batch with target_indices and cu_seqlens padded to multiples of these lengths, so
        that compiled code meets few shapes.

        target_indices is padded with the last token, which is never a target; cu_seqlens with empty
        segments, in smaller steps because the attention kernel visits each of them.
        """

        def pad(tensor, multiple, value):
            return F.pad(tensor, (0, -len(tensor) % multiple), value=value)

        n_tokens = self.x.numel()
        cu_seqlens = self.cu_seqlens
        if cu_seqlens is not None:
            cu_seqlens = pad(cu_seqlens, segments, n_tokens)
        target_indices = pad(self.target_indices, targets, n_tokens - 1)
        return replace(self, target_indices=target_indices, cu_seqlens=cu_seqlens)

    def to(self, device):
        """The batch on `device`; for CUDA padded(), and copied asynchronously (pinned memory)."""
        kind = torch.device(device).type
        if kind == "cpu":
            return self
        batch = self.padded() if kind == "cuda" else self
        moved = {}
        for name, value in vars(batch).items():
            if isinstance(value, torch.Tensor):
                value = value.pin_memory() if kind == "cuda" else value
                moved[name] = value.to(device, non_blocking=kind == "cuda")
        return replace(batch, **moved)


class Batches:
    """Batch number i of a split, for i = 0, 1, 2 …: epoch after epoch, each block once in each.

    In random order (another permutation for each epoch, from `seed`) or, with in_order, in the
    order of the file. Of each global batch of world · batch_size blocks, process `rank` gets its
    own batch_size. A thread reads the next `prefetch` batches while the current one is used.
    """

    def __init__(
        self,
        blocks,
        batch_size,
        seed=0,
        in_order=False,
        rank=0,
        world=1,
        device="cpu",
        prefetch=1,
    ):
        self.blocks, self.batch_size, self.seed, self.in_order = blocks, batch_size, seed, in_order
        self.rank, self.world, self.device, self.prefetch = rank, world, device, prefetch
        self.per_epoch = len(blocks) / (batch_size * world)  # batches in an epoch, a float
        self._epoch, self._order = -1, None
        self._reader = ThreadPoolExecutor(1)  # one thread, so that only one uses _order
        self._futures = {}  # batch number → the future of its Batch

    def rows(self, i):
        """Numbers of the blocks in batch i of this process: (batch_size,) int64."""
        first = (i * self.world + self.rank) * self.batch_size
        return np.array([self._block(first + k) for k in range(self.batch_size)])

    def _block(self, index):
        """The number of block `index` of all epochs' blocks."""
        epoch, index = divmod(index, len(self.blocks))
        if self.in_order:
            return index
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, generator.permutation(len(self.blocks))
        return self._order[index]

    def _read(self, i):
        return self.blocks.batch(self.rows(i)).to(self.device)

    def state(self):
        """What a checkpoint stores of the batches: nothing, batch i is a function of i."""
        return None

    def __getitem__(self, i):
        wanted = range(i, i + 1 + self.prefetch)
        self._futures = {
            number: self._futures.get(number) or self._reader.submit(self._read, number)
            for number in wanted
        }
        return self._futures.pop(i).result()


def evaluation_batches(blocks, batch_size, n_batches=None, rank=0, world=1, device="cpu"):
    """Yield the same batches of a split every time: each block at most once, drawn from the whole
    split; the last batch may be smaller. n_batches: None takes all. Process `rank` of `world` gets
    every world-th batch."""
    order = np.random.default_rng(0).permutation(len(blocks))
    starts = range(0, len(blocks), batch_size)[:n_batches]
    for start in starts[rank::world]:
        rows = np.sort(order[start : start + batch_size])
        yield blocks.batch(rows).to(device)
