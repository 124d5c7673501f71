"""Perplexity and bits per character against hand-worked numbers and naive loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import pack

from data_utils import Blocks
from minigpt.common.errors import UserError
from minigpt.evaluation.perplexity import (
    Passage,
    all_windows,
    answer_passages,
    block_perplexity,
    text_bits,
    text_passages,
    window_batches,
    windows,
)

SHORT, LONG = "黄河是中国第二长河。", "长江全长六千三百多千米，" * 4


def token_bits(model, context, token):
    """What a token costs after its context, by the whole softmax: the slow way."""
    logits = model.logits(model(torch.tensor([context])))[0, -1].double()
    return -float(torch.log_softmax(logits, 0)[token]) / math.log(2)


def naive_bits(model, ids, first, block_size):
    """One forward pass a token. Token t is scored in the first window that reaches it: that window
    begins at the least multiple of half a block from which a block covers t."""
    half = block_size // 2
    total = 0.0
    for t in range(max(first, 1), len(ids)):
        start = max(0, math.ceil((t - block_size + 1) / half) * half)
        total += token_bits(model, ids[start:t], ids[t])
    return total


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 120), st.integers(2, 70))
def test_windows_score_every_token_once_with_half_a_block_before_it(length, first, block_size):
    scored = []
    for start, stop, begin in windows(length, first, block_size):
        assert stop - start <= block_size and begin < stop
        for token in range(begin, stop):
            assert token - start >= min(token, block_size // 2)
            scored.append(token)
    assert scored == list(range(max(first, 1), length))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=8), st.integers(1, 5))
def test_batches_hold_every_scored_token_once_behind_its_own_context(sizes, batch_size):
    passages, number = [], 1
    for length, first in sizes:
        ids = np.arange(number, number + length)  # each token is the one before it plus 1
        passages.append(Passage("", ids, min(first, length)))
        number += length
    targets = []
    for batch in window_batches(passages, all_windows(passages, 8), batch_size):
        assert len(batch.x) <= batch_size and batch.x.size(1) <= 8
        assert torch.equal(batch.y[batch.loss_mask], batch.x[batch.loss_mask] + 1)
        targets += batch.y[batch.loss_mask].tolist()
    expected = [i for p in passages for i in p.ids[max(p.first, 1) :].tolist()]
    assert sorted(targets) == expected


def test_a_model_that_knows_nothing_costs_what_it_must(byte_tokenizer, tiny_model):
    model = tiny_model(padded_vocab_size=320, block_size=16)
    torch.nn.init.zeros_(model.wte.weight)  # tied: all logits are 0, over all 320 rows
    figures = text_bits(model, text_passages(byte_tokenizer, [SHORT, "a"]), n_vocab=261)
    bits = 2 * math.log2(261) + 29 * math.log2(320)  # 30 bytes and 1, the first of each unseen
    assert figures["bits"] == pytest.approx(bits)
    assert figures["bits_per_char"] == pytest.approx(bits / 11)
    assert figures["bits_per_byte"] == pytest.approx(bits / 31)
    assert figures["tokens_per_char"] == pytest.approx(31 / 11)
    counts = [figures[name] for name in ("texts", "characters", "bytes", "tokens")]
    assert counts == [2, 11, 31, 31]


@torch.no_grad()
@pytest.mark.parametrize("block_size", [8, 9])
def test_texts_equal_a_naive_loop_whatever_the_batch(byte_tokenizer, tiny_model, block_size):
    model = tiny_model(padded_vocab_size=320, block_size=block_size, dropout=0.5)
    passages = text_passages(byte_tokenizer, [SHORT, LONG, "a", ""])
    expected = 3 * math.log2(261)
    for passage in passages:
        expected += naive_bits(model, passage.ids.tolist(), 0, block_size)
    model.train()  # text_bits must switch dropout off by itself
    found = [text_bits(model, passages, 261, size)["bits"] for size in (1, 3, 100, 100)]
    assert found == pytest.approx([expected] * 4, rel=1e-6)
    assert found[2] == found[3]


@torch.no_grad()
def test_answers_are_coded_given_their_questions(byte_tokenizer, tiny_model):
    model = tiny_model(padded_vocab_size=320, block_size=16)
    pairs = [("谁？", "孔子。"), ("谁" * 12, "孔子，" * 5)]
    expected = 0.0
    for question, answer in pairs:
        asked = [*byte_tokenizer.encode(question), byte_tokenizer.answer_mark]
        expected += naive_bits(model, asked + byte_tokenizer.encode(answer), len(asked), 16)
    figures = text_bits(model, answer_passages(byte_tokenizer, pairs), 261)
    assert figures["bits"] == pytest.approx(expected, rel=1e-6)
    assert (figures["characters"], figures["tokens"]) == (3 + 15, 9 + 45)


def test_no_character_at_all_is_an_error(byte_tokenizer, tiny_model):
    with pytest.raises(UserError, match="no character"):
        text_bits(tiny_model(padded_vocab_size=320), text_passages(byte_tokenizer, [""]), 261)


def test_broken_weights_are_named(byte_tokenizer, tiny_model):
    model = tiny_model(padded_vocab_size=320)
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(UserError, match="weights of this run are broken"):
        text_bits(model, text_passages(byte_tokenizer, [SHORT]), 261)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_block_perplexity_equals_a_naive_loop_over_pieces(
    tmp_path, byte_tokenizer, tiny_model, write_blocks, batch_size
):
    first, second, third = ([*b"Yellow", 256], [*b"answer", 258, *b"so", 256], [*b"go", 256])
    rows = [[(first, 1), (second, 7)], [(third, 1)], [(second, 7), (third, 2)]]
    blocks = pack(byte_tokenizer, rows)
    folder = write_blocks(tmp_path / "data", byte_tokenizer, blocks, blocks)
    model = tiny_model(padded_vocab_size=320, block_size=32)
    bits = count = 0
    for ids, begin in itertools.chain(*rows):
        for t in range(begin, len(ids)):
            bits += token_bits(model, ids[:t], ids[t])
            count += 1
    loss = bits * math.log(2) / count
    figures = block_perplexity(model, Blocks(folder, "val"), batch_size)
    assert (figures["blocks"], figures["targets"]) == (3, count)
    assert figures["loss"] == pytest.approx(loss, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_a_split_without_targets_is_an_error(tmp_path, byte_tokenizer, tiny_model, write_blocks):
    blocks = pack(byte_tokenizer, [[([1, 2], 2)]])
    folder = write_blocks(tmp_path / "data", byte_tokenizer, blocks, blocks)
    with pytest.raises(UserError, match="val split has no targets"):
        block_perplexity(tiny_model(padded_vocab_size=320, block_size=32), Blocks(folder, "val"))
