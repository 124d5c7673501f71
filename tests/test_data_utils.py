"""Blocks → batches: order, sharding, masks and segments by hand, and every error message."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils import IS_START, TARGET, Batch, Batches, Blocks, evaluation_batches, read_meta
from minigpt.common.errors import UserError


class FakeBlocks:
    """n blocks of 4 tokens that hold their own number."""

    isolated = False
    batch = Blocks.batch

    def __init__(self, n):
        self.tokens = np.arange(n, dtype=np.uint16)[:, None].repeat(4, 1)
        self.mask = np.full((n, 4), TARGET, np.uint8)

    def __len__(self):
        return len(self.tokens)


# -- the order of blocks ---------------------------------------------------------------------------

ORDERS = dict(
    n=st.integers(1, 23),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 2**40),
    in_order=st.booleans(),
)


def drawn(n, batch_size, n_batches, **keywords):
    batches = Batches(FakeBlocks(n), batch_size, **keywords)
    return [batches.rows(i).tolist() for i in range(n_batches)]


@given(**ORDERS)
@settings(max_examples=40)
def test_every_epoch_takes_each_block_once(n, batch_size, seed, in_order):
    batches = drawn(n, batch_size, 3 * n // batch_size + 1, seed=seed, in_order=in_order)
    rows = [row for batch in batches for row in batch]
    for epoch in range(3):
        part = rows[epoch * n : (epoch + 1) * n]
        assert sorted(part) == list(range(n))
        assert not in_order or part == list(range(n))


@given(**ORDERS, world=st.integers(1, 4))
@settings(max_examples=40)
def test_ranks_share_out_the_global_batch(n, batch_size, seed, in_order, world):
    """Process by process, what one process with `world` times the micro-batches takes."""
    keywords = dict(seed=seed, in_order=in_order)
    one = drawn(n, batch_size, 4 * world, **keywords)
    many = [drawn(n, batch_size, 4, rank=rank, world=world, **keywords) for rank in range(world)]
    assert [many[i % world][i // world] for i in range(4 * world)] == one


@given(**ORDERS, order=st.permutations(range(8)))
@settings(max_examples=40)
def test_batch_i_depends_on_nothing_but_i(n, batch_size, seed, in_order, order):
    wanted = drawn(n, batch_size, 8, seed=seed, in_order=in_order)
    batches = Batches(FakeBlocks(n), batch_size, seed, in_order)
    for i in order:
        assert batches.rows(i).tolist() == wanted[i]
        batch = batches[i]  # and through the thread that reads ahead
        assert batch.rows.tolist() == wanted[i]
        assert batch.x[:, 0].tolist() == wanted[i]


def test_epochs_and_seeds_differ():
    order = drawn(50, 50, 3, seed=1)
    assert order[0] != order[1] != order[2] and order[0] != list(range(50))
    assert order != drawn(50, 50, 3, seed=2)
    assert Batches(FakeBlocks(50), 4, world=2).per_epoch == 50 / 8


@given(n=st.integers(1, 23), batch_size=st.integers(1, 7), world=st.integers(1, 4))
@settings(max_examples=40)
def test_evaluation_takes_each_block_once_and_always_the_same(n, batch_size, world):
    def rows(**keywords):
        return [
            batch.rows.tolist()
            for batch in evaluation_batches(FakeBlocks(n), batch_size, **keywords)
        ]

    whole = rows()
    assert Counter(row for batch in whole for row in batch) == Counter(range(n))
    assert all(len(batch) == batch_size for batch in whole[:-1])
    assert rows() == whole
    assert rows(n_batches=2) == whole[:2]
    shared = [rows(rank=rank, world=world) for rank in range(world)]
    assert sorted(batch for part in shared for batch in part) == sorted(whole)


def test_a_few_evaluation_batches_come_from_all_over_the_split():
    (batch,) = evaluation_batches(FakeBlocks(1000), 50, 1)
    assert batch.rows.min() < 200 and batch.rows.max() > 800
    assert batch.rows.tolist() == sorted(batch.rows)  # read from the disk in order
    assert batch.x.shape == (50, 4) and batch.x[:, 0].tolist() == batch.rows.tolist()


# -- one batch by hand -----------------------------------------------------------------------------


def test_shift_and_mask_by_hand():
    tokens = np.array([[5, 6, 7, 8, 9]], np.uint16)
    mask = np.array([[TARGET | IS_START, 0, TARGET, 0, TARGET]], np.uint8)
    batch = Batch.of(tokens, mask, isolated=False)
    assert batch.x.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.y[0, :4].tolist() == [6, 7, 8, 9]
    # Targets are 7 (after 6) and 9 (after 8); 5 has no token before it, and 9 none after it.
    assert batch.loss_mask.tolist() == [[False, True, False, True, False]]
    assert batch.count == 2
    assert batch.x.dtype == batch.y.dtype == torch.int64 and batch.loss_mask.dtype == torch.bool
    assert batch.segment_ids is None and batch.positions is None and batch.cu_seqlens is None
    assert batch.target_indices.tolist() == [1, 3]


def test_segments_and_positions_by_hand():
    # Three segments in the first row (IS_START is 2), two in the second, whose first bit is not
    # needed.
    mask = np.array([[2, 1, 1, 2, 1, 2], [0, 0, 0, 0, 2, 0]], np.uint8)
    batch = Batch.of(np.zeros((2, 6), np.uint16), mask, isolated=True)
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 3], [1, 1, 1, 1, 2, 2]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]
    assert batch.segment_ids.dtype == batch.positions.dtype == torch.int64
    assert batch.count == 3
    # Read as one row of twelve: the first ends at 3, the last at 12.
    assert (
        batch.cu_seqlens.tolist() == [0, 3, 5, 6, 10, 12] and batch.cu_seqlens.dtype == torch.int32
    )


def test_padding_to_few_lengths():
    mask = np.array([[2, 1, 1, 2, 1, 2], [0, 0, 0, 0, 2, 0]], np.uint8)
    batch = Batch.of(np.zeros((2, 6), np.uint16), mask, isolated=True)
    assert batch.target_indices.tolist() == [0, 1, 3]
    padded = batch.padded(targets=4, segments=4)
    assert padded.target_indices.tolist() == [0, 1, 3, 11]  # the last token is never a target
    assert padded.cu_seqlens.tolist() == [0, 3, 5, 6, 10, 12, 12, 12]
    assert padded.count == 3


@given(st.lists(st.booleans(), min_size=8, max_size=8))
@settings(max_examples=40)
def test_positions_restart_with_each_segment(is_start):
    mask = np.array([is_start], np.uint8) * IS_START
    batch = Batch.of(np.zeros((1, 8), np.uint16), mask, isolated=True)
    position, segment = -1, 0
    for i, start in enumerate(is_start):
        position, segment = (0, segment + 1) if start or i == 0 else (position + 1, segment)
        assert batch.positions[0, i] == position and batch.segment_ids[0, i] == segment


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path, write_blocks, byte_tokenizer):
    """A good dataset: 3 train blocks and 1 val block of 8 tokens."""
    tokens = np.arange(24).reshape(3, 8)
    mask = np.tile(np.array([IS_START, 1, 1, 1, IS_START, 1, 1, 1], np.uint8), (3, 1))
    one = tokens[:1], mask[:1]
    return write_blocks(tmp_path / "blocks", byte_tokenizer, (tokens, mask), one)


def error_of(dataset, split="train", tokenizer=None, block_size=None):
    with pytest.raises(UserError) as caught:
        Blocks(dataset, split, tokenizer, block_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_meta(dataset, **facts):
    path = dataset / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**meta, **facts}), encoding="utf-8")


MAKE = "run again: python data/prepare.py --input=texts"  # the command that meta.json records


def test_a_good_dataset(dataset, byte_tokenizer):
    blocks = Blocks(dataset, "train", byte_tokenizer, 8)
    assert len(blocks) == 3 and blocks.isolated and blocks.block_size == 8
    assert blocks.tokens.tolist() == np.arange(24).reshape(3, 8).tolist()
    assert isinstance(blocks.tokens, np.memmap)
    assert blocks.target_fraction == 18 / 24
    batches = Batches(blocks, 2, in_order=True)
    assert batches[1].rows.tolist() == [2, 0]
    assert batches[1].x.tolist() == [list(range(16, 24)), list(range(8))]
    assert batches[1].positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("layout", "isolated"), [("pad", False), ("split", False), ("concat", True), ("packed", False)]
)
def test_only_concat_separates_segments(dataset, layout, isolated):
    change_meta(dataset, layout=layout)
    assert Blocks(dataset, "train").isolated is isolated


def test_wider_ids(dataset):
    """A vocabulary above 65,536 ids: uint32, as meta.json says."""
    tokens = np.array([[70000, 1, 2, 3]], "<u4")
    (dataset / "train.bin").write_bytes(tokens.tobytes())
    (dataset / "train.mask").write_bytes(bytes(4))
    counts = {split: {"blocks": 1, "targets": 1} for split in ("train", "val")}
    change_meta(dataset, dtype="uint32", n_vocab=80000, block_size=4, counts=counts)
    assert Blocks(dataset, "train").tokens.tolist() == tokens.tolist()


def test_nothing_there_says_what_to_run(tmp_path):
    text = error_of(tmp_path / "nowhere")
    assert "nowhere" in text and "data/prepare.py" in text and "--dataset=" in text
    with pytest.raises(UserError, match=r"python data/prepare_sft\.py --dataset="):
        read_meta(tmp_path, "python data/prepare_sft.py")


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "{}", '{"format": 1}', "\ufeff"])
def test_a_broken_meta_json(dataset, text):
    (dataset / "meta.json").write_text(text, encoding="utf-8")
    assert "meta.json" in error_of(dataset) and "run again" in error_of(dataset)


def test_another_format(dataset):
    change_meta(dataset, format=99)
    text = error_of(dataset)
    assert "format 99" in text and "reads 1" in text and MAKE in text


def test_another_tokenizer(dataset, byte_tokenizer):
    change_meta(dataset, tokenizer="other", tokenizer_hash="0123456789abcdef")
    text = error_of(dataset, tokenizer=byte_tokenizer)
    for words in ("other", "0123456789abcdef", byte_tokenizer.hash, "--tokenizer=other"):
        assert words in text
    assert f"--tokenizer={byte_tokenizer.name}" in text


def test_another_block_size(dataset):
    text = error_of(dataset, block_size=16)
    assert "8" in text and "--block_size=16" in text and "--block_size=8" in text


@pytest.mark.parametrize("name", ["train.bin", "train.mask"])
def test_a_missing_file(dataset, name):
    (dataset / name).unlink()
    text = error_of(dataset)
    assert name in text and "missing" in text and MAKE in text
    Blocks(dataset, "val")  # the other split is complete


@pytest.mark.parametrize(("name", "row"), [("train.bin", 16), ("train.mask", 8)])
def test_a_truncated_file(dataset, name, row):
    data = (dataset / name).read_bytes()
    (dataset / name).write_bytes(data[:-3])
    text = error_of(dataset)
    assert name in text and f"{len(data) - 3} bytes" in text and f"multiple of {row}" in text
    assert MAKE in text
    (dataset / name).write_bytes(data[:-row])  # one row fewer than meta.json has
    text = error_of(dataset)
    assert name in text and "2 blocks" in text and "meta.json has 3" in text and MAKE in text


def test_no_blocks(dataset):
    for name in ("val.bin", "val.mask"):
        (dataset / name).write_bytes(b"")
    text = error_of(dataset, "val")
    assert "val.bin" in text and "no blocks" in text and MAKE in text


def test_ids_outside_the_vocabulary(dataset):
    change_meta(dataset, n_vocab=23)
    text = error_of(dataset)
    assert "token id 23" in text and "ends at 22" in text and MAKE in text
    change_meta(dataset, n_vocab=24)
    Blocks(dataset, "train")
