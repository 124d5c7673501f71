"""Sampling: logits in, the next token of each row out. Batched over rows, on the logits' device.

    tokens = sample(logits, requests, generators, texts)      # [id, …], one for each row
    scores = penalize(logits, requests, texts)                # repetition and presence penalties
    tokens = with_logprobs(logits, ids, requests)             # [Token, …]

The order is the usual one: penalties, temperature, top_k, top_p, min_p, then a draw. Each row has
its own settings and its own random generator, so its token does not depend on the other rows.
A `request` here is anything with the sampling fields of request.Request.
"""

from collections import defaultdict
from typing import NamedTuple

import torch

from minigpt.common.errors import UserError
from minigpt.inference.request import MOST_LOGPROBS

LOWEST_TEMPERATURE = 1e-30  # a lower one becomes 0 in float32


class Token(NamedTuple):
    """A generated token. If its request asks for logprobs: the log-probability that the model gives
    it, before temperature and penalties, and (id, logprob) of the most likely tokens, best first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(logits, requests, generators, texts):
    """The next token ids, a list of B ints. logits: float32 (B, n_vocab), not changed.

    generators: one CPU torch.Generator for each row, used where temperature > 0. texts: the ids of
    each row so far, prompt included, for the penalties. UserError if logits to draw from are not
    finite.
    """
    logits = penalize(logits, requests, texts)
    ids = logits.max(-1).indices  # (B,); three times as fast as argmax() on a CPU
    # Rows with the same candidates share one batch of tensor operations.
    groups = defaultdict(list)
    for row, request in enumerate(requests):
        if request.temperature > 0:
            top_k = request.top_k if 0 < request.top_k < logits.size(1) else 0
            groups[top_k, request.top_p < 1].append(row)
    for (top_k, has_top_p), rows in groups.items():
        chosen = [requests[row] for row in rows]
        drawn = _draw(logits[rows], chosen, [generators[row] for row in rows], top_k, has_top_p)
        ids[rows] = drawn
    return ids.tolist()


def _draw(logits, requests, generators, top_k, has_top_p):
    """Ids (R,) drawn from logits (R, n_vocab), for requests with the same top_k, all with top_p < 1
    or none of them."""
    ids = None
    if top_k:
        logits, ids = logits.topk(top_k)
    largest = logits.amax(-1, keepdim=True)  # (R, 1)
    if not largest.isfinite().all():
        raise UserError("the model's logits are not finite: its weights are broken; train it again")
    temperatures = [max(request.temperature, LOWEST_TEMPERATURE) for request in requests]
    # Subtracting the largest logit first keeps the division by a tiny temperature from overflowing.
    probs = ((logits - largest) / _column(temperatures, logits)).softmax(-1)
    if has_top_p:
        if ids is None:  # topk() has sorted them already
            probs, ids = probs.sort(descending=True, stable=True)
        # The smallest set whose probability reaches top_p: all up to the one that crosses it.
        kept = probs.cumsum(-1) - probs < _column([r.top_p for r in requests], logits)
        kept[:, 0] = True  # even if top_p is 0 in float32
        probs = probs * kept
    if any(request.min_p > 0 for request in requests):
        lowest = _column([r.min_p for r in requests], logits) * probs.amax(-1, keepdim=True)
        probs = probs * (probs >= lowest)
    # The largest of p / Exponential(1) is a draw from p; torch.multinomial does the same. Each
    # row draws its noise with its own CPU generator: a seed gives the same tokens on any device.
    noise = [torch.empty(probs.size(1)).exponential_(1, generator=g) for g in generators]
    drawn = (probs / torch.stack(noise).to(probs.device)).argmax(-1, keepdim=True)  # (R, 1)
    return (drawn if ids is None else ids.gather(1, drawn)).squeeze(1)


def _column(values, like):
    """(R, 1) in float32 on the device of `like`."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).unsqueeze(1)


def penalize(scores, requests, texts):
    """`scores` (B, n_vocab), logits or log-probabilities, after each request's penalties.

    texts: the ids of each row so far, prompt included. Rows without penalties stay as they are;
    `scores` itself is not changed.
    """
    rows = [row for row, request in enumerate(requests) if request.has_penalties]
    if not rows:
        return scores
    requests, n_vocab = [requests[row] for row in rows], scores.size(1)
    seen = _count([texts[row] for row in rows], n_vocab, scores.device) > 0
    generated = [texts[row][len(r.ids) :] for row, r in zip(rows, requests, strict=True)]
    count = _count(generated, n_vocab, scores.device)
    repetition = _column([r.repetition_penalty for r in requests], scores)
    frequency = _column([r.frequency_penalty for r in requests], scores)
    presence = _column([r.presence_penalty for r in requests], scores)
    own = scores[rows]  # (R, n_vocab)
    own = torch.where(seen, torch.where(own > 0, own / repetition, own * repetition), own)
    own = torch.where(count > 0, own - (frequency * count + presence), own)
    scores = scores.clone()
    scores[rows] = own
    return scores


def _count(texts, n_vocab, device):
    """(R, n_vocab): how often each id is in each text."""
    numbers = [row * n_vocab + token for row, text in enumerate(texts) for token in text]
    numbers = torch.tensor(numbers, dtype=torch.int64, device=device)
    return numbers.bincount(minlength=len(texts) * n_vocab).view(-1, n_vocab)


def with_logprobs(logits, ids, requests):
    """The chosen `ids` as Tokens, a list of B; logits (B, n_vocab). requests[i].logprobs says how
    many of the most likely tokens Token i names; None: it has no logprobs."""
    tokens = [Token(token) for token in ids]
    rows = [row for row, request in enumerate(requests) if request.logprobs is not None]
    if not rows:
        return tokens
    logprobs = logits[rows].log_softmax(-1)
    chosen = logprobs.gather(1, torch.tensor([[ids[row]] for row in rows], device=logits.device))
    # Always the same number, so that the order of equal ones does not depend on other rows.
    values, best = (part.tolist() for part in logprobs.topk(min(MOST_LOGPROBS, logits.size(1))))
    for i, (row, logprob) in enumerate(zip(rows, chosen[:, 0].tolist(), strict=True)):
        n = requests[row].logprobs
        tokens[row] = Token(ids[row], logprob, tuple(zip(best[i][:n], values[i][:n], strict=True)))
    return tokens
