"""Perplexity and bits per character: how well a model predicts a given text.

Perplexity is e to the mean loss of a token: it compares runs with the same tokenizer and blocks.
Bits per character and per byte do not depend on the tokens: over the same text they compare any
runs, with any tokenizers, layouts and block sizes.

Every character is scored exactly once. The first token of a text has no context (there is no BOS
token), so it costs log2(n_vocab) bits, as if every token were equally likely. A text longer than a
block is read in windows of one block that overlap by half; a window scores only the tokens that the
previous one did not contain, so every token has at least half a block of context where the text is
long enough. An answer is scored given its question, an assistant's turn given the turns before it.
EOT is no character and costs nothing here; in the perplexity of a run's blocks it counts where it
is a target.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from data_utils import Batch, evaluation_batches
from minigpt.common.errors import UserError
from minigpt.common.report import progress
from minigpt.data.block_format import TARGET
from minigpt.data.prompts import chat_ids, prompt_ids, reply_text
from minigpt.training.losses import next_token, total_loss


class Passage(NamedTuple):
    """A text to score: the ids from `first` on are the tokens of `text`. The ids before `first`
    (a question) are context."""

    text: str
    ids: np.ndarray  # (n,)
    first: int


def text_passages(tokenizer, texts):
    """Texts as Passages, scored from the first character on."""
    texts = list(texts)
    rows = tokenizer.encode_batch(texts)
    return [Passage(t, np.asarray(ids, np.int64), 0) for t, ids in zip(texts, rows, strict=True)]


def answer_passages(tokenizer, pairs):
    """(question, answer) pairs as Passages: the answer, scored given its question."""
    passages = []
    for question, answer in pairs:
        asked = prompt_ids(tokenizer, "qa", question)
        ids = np.asarray([*asked, *tokenizer.encode(answer)], np.int64)
        passages.append(Passage(answer, ids, len(asked)))
    return passages


def reply_passages(tokenizer, conversations, prompt_format="chat"):
    """Conversations as Passages, one for each assistant turn after a user turn, scored given the
    turns before it in a chat template."""
    passages = []
    for conversation in conversations:
        asked = False
        for i, (role, content) in enumerate(conversation.turns):
            asked = asked or role == "user"
            if role == "assistant" and asked:
                before = chat_ids(tokenizer, prompt_format, conversation.turns[:i], math.inf)
                reply = tokenizer.encode(reply_text(prompt_format, content))
                ids = np.asarray([*before, *reply], np.int64)
                passages.append(Passage(content, ids, len(before)))
    return passages


def windows(length, first, block_size):
    """Windows that score tokens first … length-1 once each: [(start, stop, scored)]. A window reads
    tokens start … stop-1 and scores tokens scored … stop-1. Token 0 is never scored.

    A window has at most block_size (2 or more) tokens; windows begin half a block apart.
    """
    spans, start, done = [], 0, max(first, 1)
    while done < length:
        stop = min(start + block_size, length)
        if stop > done:
            spans.append((start, stop, done))
            done = stop
        start += block_size // 2
    return spans


def all_windows(passages, block_size):
    """The windows of all passages, (index of the passage, start, stop, scored), longest first: the
    rows of a batch then need little padding, and the first batch is the largest."""
    spans = [
        (number, *window)
        for number, passage in enumerate(passages)
        for window in windows(len(passage.ids), passage.first, block_size)
    ]
    return sorted(spans, key=lambda span: span[1] - span[2])


def window_batches(passages, spans, batch_size):
    """Yield Batches on the CPU, one window a row, padded at the end (attention is causal)."""
    for i in range(0, len(spans), batch_size):
        rows = spans[i : i + batch_size]
        width = max(stop - start for _, start, stop, _ in rows)
        tokens = np.zeros((len(rows), width), np.int64)  # (B, T)
        mask = np.zeros((len(rows), width), np.uint8)
        for row, (number, start, stop, scored) in enumerate(rows):
            tokens[row, : stop - start] = passages[number].ids[start:stop]
            mask[row, scored - start : stop - start] = TARGET
        yield Batch.of(tokens, mask, isolated=False)


def total_nats(model, batches, dtype=torch.float32):
    """(nats, count): the loss summed over all targets of the batches, and the number of targets."""
    model.eval()
    device = str(model.wte.weight.device)
    batches = (batch.to(device) for batch in batches)
    nats, count = total_loss(next_token, model, batches, device, dtype)
    if not math.isfinite(nats):
        raise UserError(f"the loss is {nats}: the weights of this run are broken; train it again")
    return nats, count


def block_perplexity(model, blocks, batch_size=32, dtype=torch.float32):
    """Over every target of a split: {"blocks", "targets", "loss" (nats a token), "perplexity"}."""
    batches = evaluation_batches(blocks, batch_size)
    total = math.ceil(len(blocks) / batch_size)
    nats, count = total_nats(model, _with_progress(batches, total, "blocks"), dtype)
    if count == 0:
        raise UserError(
            f"{blocks.folder}: the {blocks.split} split has no targets; prepare it again"
        )
    loss = nats / count
    return dict(blocks=len(blocks), targets=count, loss=loss, perplexity=float(np.exp(loss)))


def text_bits(model, passages, n_vocab, batch_size=32, dtype=torch.float32):
    """Over all passages: {"texts", "characters", "bytes", "tokens", "bits", "tokens_per_char",
    "bits_per_char", "bits_per_byte"}. UserError if they have no characters."""
    characters = sum(len(passage.text) for passage in passages)
    if characters == 0:
        raise UserError("there is no character to score: the text is empty")
    size = sum(len(passage.text.encode()) for passage in passages)
    tokens = sum(len(passage.ids) - passage.first for passage in passages)
    unseen = sum(passage.first == 0 and len(passage.ids) > 0 for passage in passages)
    spans = all_windows(passages, model.config.block_size)
    batches = window_batches(passages, spans, batch_size)
    total = math.ceil(len(spans) / batch_size)
    nats, _ = total_nats(model, _with_progress(batches, total, "text"), dtype)
    bits = nats / math.log(2) + unseen * math.log2(n_vocab)
    return dict(
        texts=len(passages),
        characters=characters,
        bytes=size,
        tokens=tokens,
        bits=bits,
        tokens_per_char=tokens / characters,
        bits_per_char=bits / characters,
        bits_per_byte=bits / size,
    )


def _with_progress(batches, total, name):
    """The batches, with progress(total, name)."""
    with progress(total, name) as advance:
        for batch in batches:
            yield batch
            advance()
