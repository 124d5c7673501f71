"""Beam search: which beams of a request go on after a step, and when the search ends.

    growing = extend(ticket, logits)    # [(score, beam, Token), …], or None: ticket.ended has it

The engine keeps the beams in its slots and moves the cache; here scores are compared.
"""

from typing import NamedTuple

import torch

from minigpt.inference.sampling import Token, penalize, with_logprobs


class Hypothesis(NamedTuple):
    """A finished beam. score: its log-probability / length ** length_penalty."""

    score: float
    tokens: list[Token]
    reason: str  # "stop" or "length"


def extend(ticket, logits):
    """The num_beams best continuations over all beams of a ticket, [(score, beam, Token), …]; None
    where the search is over. logits (n_beams, n_vocab), in the order of ticket.rows.

    Beams that end go to ticket.ended, best first, num_beams of them at most.
    """
    request, n = ticket.request, ticket.request.num_beams
    length = len(ticket.rows[0].tokens) + 1
    growing = []
    for rank, (score, row, token) in enumerate(_candidates(ticket, logits)):
        stopped = token.id in request.stop_ids
        if not stopped and length < request.max_new_tokens:
            growing.append((score, row, token))
        elif rank < n:  # a worse one ranks below n beams that go on
            tokens, reason = ([], "stop") if stopped else ([token], "length")
            score = _normalized(score, length, request)
            ticket.ended.append(Hypothesis(score, [*row.tokens, *tokens], reason))
    ticket.ended = sorted(ticket.ended, key=lambda hypothesis: -hypothesis.score)[:n]
    if not growing:
        return None
    # No running beam is better at its present length: the search is over.
    best_running = _normalized(growing[0][0], length, request)
    if len(ticket.ended) == n and best_running <= ticket.ended[-1].score:
        return None
    return growing[:n]


def _candidates(ticket, logits):
    """[(score, beam, Token), …], best first: enough that num_beams go on even if all stop ids are
    among them. logits (n_beams, n_vocab)."""
    request, rows = ticket.request, ticket.rows
    requests = [request] * len(rows)
    scores = penalize(logits.log_softmax(-1), requests, [row.text for row in rows])
    total = torch.tensor([[row.score] for row in rows], device=scores.device)
    scores = (scores + total).flatten()
    # A row has at most one candidate for each stop id.
    most = request.num_beams * (1 + len(request.stop_ids))
    values, indices = scores.topk(min(most, len(scores)))
    n_vocab = logits.size(1)
    parents, ids = zip(*(divmod(index, n_vocab) for index in indices.tolist()), strict=True)
    tokens = with_logprobs(logits[list(parents)], ids, [request] * len(ids))
    return [
        (score, rows[parent], token)
        for score, parent, token in zip(values.tolist(), parents, tokens, strict=True)
    ]


def _normalized(score, length, request):
    """A beam's score, comparable between lengths."""
    return score / length**request.length_penalty
