"""Sampling: against a plain reference in Python, and against transformers' processors.

python -m pytest tests/inference/test_sampling.py
"""

import dataclasses
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.inference.engine import Request
from minigpt.inference.sampling import sample, with_logprobs


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def random_logits(*shape, seed):
    return 3 * torch.randn(*shape, generator=generator_of(seed))


def choose(logits, request, generator, text):
    """One row's next token."""
    return sample(logits[None], [request], [generator], [text])[0]


# -- the rules, in plain Python --------------------------------------------------------------------


def reference(logits, request, generator, text):
    """The next token of one row, rule by rule; torch.multinomial makes the draw. What a seed draws
    is part of the contract: noise goes to the tokens in the order of their probability if top_k or
    top_p apply, else in the order of their ids."""
    scores = dict(enumerate(logits.tolist()))
    for token in set(text):
        factor = request.repetition_penalty
        scores[token] *= 1 / factor if scores[token] > 0 else factor
    for token in text[len(request.ids) :]:
        scores[token] -= request.frequency_penalty
    for token in set(text[len(request.ids) :]):
        scores[token] -= request.presence_penalty
    ranked = sorted(scores, key=lambda token: -scores[token])
    if request.temperature == 0:
        return ranked[0]
    has_top_k = 0 < request.top_k < len(scores)
    kept = ranked[: request.top_k] if has_top_k else ranked
    best = scores[ranked[0]]
    weights = {token: math.exp((scores[token] - best) / request.temperature) for token in kept}
    total = sum(weights.values())
    probs = {token: weight / total for token, weight in weights.items()}
    if request.top_p < 1:
        before = 0.0  # the probability of all better tokens
        for token in kept:
            probability, before = probs[token], before + probs[token]
            if before - probability >= request.top_p and token != ranked[0]:
                probs[token] = 0.0
    highest = max(probs.values())
    for token in kept:
        if probs[token] < request.min_p * highest:
            probs[token] = 0.0
    order = kept if has_top_k or request.top_p < 1 else sorted(kept)
    row = torch.tensor([probs[token] for token in order])
    return order[int(torch.multinomial(row, 1, generator=generator))]


def random_request(dice, n_vocab):
    return Request(
        ids=dice.choices(range(n_vocab), k=dice.randint(1, 9)),
        temperature=dice.choice([0, 0.1, 0.7, 1.0, 2.5]),
        top_k=dice.choice([0, 0, 1, 5, 20, 10**6]),
        top_p=dice.choice([1.0, 1.0, 0.95, 0.5, 1e-9]),
        min_p=dice.choice([0.0, 0.0, 0.1, 0.6]),
        repetition_penalty=dice.choice([1.0, 1.0, 1.3, 0.7]),
        presence_penalty=dice.choice([0.0, 0.0, 0.5, -0.3]),
        frequency_penalty=dice.choice([0.0, 0.0, 0.4, -0.2]),
    )


@pytest.mark.parametrize("n_vocab", [2, 40, 3000])
def test_a_batch_equals_the_reference_row_by_row(n_vocab):
    """Sixteen rows with settings and seeds of their own, drawn together, twenty times over."""
    dice = random.Random(n_vocab)
    for round in range(20):
        requests = [random_request(dice, n_vocab) for _ in range(16)]
        texts = [[*r.ids, *dice.choices(range(n_vocab), k=dice.randint(0, 9))] for r in requests]
        logits = random_logits(16, n_vocab, seed=round)
        untouched = logits.clone()
        found = sample(logits, requests, [generator_of(i) for i in range(16)], texts)
        assert torch.equal(logits, untouched)
        for i, (row, request, text) in enumerate(zip(logits, requests, texts, strict=True)):
            assert found[i] == reference(row, request, generator_of(i), text), request
            assert found[i] == choose(row, request, generator_of(i), text), request


def test_equal_logits_do_not_depend_on_the_other_rows():
    """Ties, as bfloat16 makes them by the dozen: which of them top_k keeps, and their order."""
    dice = random.Random(0)
    logits = random_logits(8, 500, seed=0).mul(2).round()
    requests = [Request([1], top_k=k, top_p=p) for k in (0, 3, 20, 100) for p in (1.0, 0.8)]
    for _ in range(10):
        rows = dice.sample(range(8), 8)
        generators = [generator_of(row) for row in rows]
        found = sample(logits[rows], [requests[row] for row in rows], generators, [[1]] * 8)
        for row, token in zip(rows, found, strict=True):
            assert token == choose(logits[row], requests[row], generator_of(row), [1])


def test_broken_weights_are_named():
    logits = torch.full((2, 8), math.nan)
    with pytest.raises(UserError, match=r"not finite.*train it again"):
        sample(logits, [Request([1])] * 2, [generator_of(0)] * 2, [[1]] * 2)


# -- transformers ----------------------------------------------------------------------------------


def hugging_faces(logits, text, request):
    """Scores (n_vocab,) after transformers' processors, in the order that its generate() has."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList()
    if request.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(request.repetition_penalty))
    if request.temperature > 0:
        steps.append(TemperatureLogitsWarper(request.temperature))
        if request.top_k:
            steps.append(TopKLogitsWarper(request.top_k))
        if request.top_p < 1:
            steps.append(TopPLogitsWarper(request.top_p))
        if request.min_p:
            steps.append(MinPLogitsWarper(request.min_p))
    return steps(torch.tensor([text]), logits[None].clone())[0]


SETTINGS = st.builds(
    Request,
    ids=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    temperature=st.sampled_from([0, 0.1, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 8, 100]),
    top_p=st.sampled_from([1.0, 0.05, 0.5, 0.9, 0.99]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 5.0]),
)


@given(request=SETTINGS, seed=st.integers(0, 10**6))
@settings(max_examples=60)
def test_draws_follow_transformers_distribution(request, seed):
    logits = random_logits(8, seed=seed)
    scores = hugging_faces(logits, request.ids, request)
    n = 300 if request.temperature else 1
    rows = logits.expand(n, -1)
    drawn = sample(rows, [request] * n, [generator_of(seed)] * n, [request.ids] * n)
    if request.temperature == 0:
        assert drawn == [int(scores.argmax())]
        return
    wanted = torch.softmax(scores.double(), 0)
    found = torch.bincount(torch.tensor(drawn), minlength=8) / n
    assert found[wanted == 0].sum() == 0  # nothing that top_k or top_p took away
    deviation = (wanted * (1 - wanted) / n).sqrt()
    # Six deviations, and three draws for what is rarer than a draw in n.
    assert ((found - wanted).abs() <= 6 * deviation + 3 / n).all()


# -- by hand ---------------------------------------------------------------------------------------


def test_a_nucleus_by_hand():
    """Probabilities 0.5, 0.3, 0.15, 0.05: top_p 0.6 keeps the first two, as 0.5 alone is short."""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()

    def kept(**keywords):
        request, n = Request([0], **keywords), 200
        return set(sample(logits.expand(n, -1), [request] * n, [generator_of(0)] * n, [[0]] * n))

    assert kept(top_p=0.6) == {1, 3}
    assert kept(top_p=0.4) == {1}
    assert kept(top_p=0.9) == {0, 1, 3}
    assert kept(top_k=3) == {0, 1, 3}
    assert kept(top_k=2, top_p=0.6) == {1}  # of the two that are left, 0.625 is enough
    assert kept() == {0, 1, 2, 3}


def test_penalties_by_hand():
    """5 was written twice, 7 once, 2 is in the prompt only."""
    request = Request([2], temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    logits = torch.zeros(8)
    logits[[2, 3, 5, 7]] = torch.tensor([0.1, 0.22, 1.3, 1.0])

    def best(**changes):
        return choose(logits, dataclasses.replace(request, **changes), None, [2, 5, 7, 5])

    assert best() == 5  # 1.3 - 0.5 - 2 * 0.25 = 0.3; 7: 1.0 - 0.5 - 0.25 = 0.25; 3: 0.22
    assert best(frequency_penalty=0.3) == 3  # 5 and 7: 0.2
    assert best(frequency_penalty=-0.1, presence_penalty=0.0) == 5
    assert best(presence_penalty=2.0) == 3
    assert best(presence_penalty=2.0, repetition_penalty=9.0) == 3
    logits[2] = 3.0
    assert best() == 2  # what only the prompt says is not taken off
    assert best(repetition_penalty=20.0) == 3


def test_extreme_settings_are_still_a_choice():
    logits = 50 * random_logits(50, seed=3)
    generator = generator_of(0)
    likeliest = int(logits.argmax())
    for temperature in (1e-3, 1e-9, 1e-30, 1e-300, 5e-324):
        assert choose(logits, Request([0], temperature=temperature), generator, [0]) == likeliest
    for top_p in (1e-9, 5e-324):
        assert choose(logits, Request([0], top_p=top_p), generator, [0]) == likeliest
    assert 0 <= choose(logits, Request([0], temperature=1e30), generator, [0]) < 50


def test_logprobs_by_hand():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.3, 0.0]]).log()
    requests = [Request([0], logprobs=n) for n in (2, None, 1)]
    first, second, third = with_logprobs(logits, [0, 3, 2], requests)
    assert (first.id, first.logprob) == (0, pytest.approx(math.log(0.1)))
    assert [token for token, _ in first.top] == [3, 2]
    assert [p for _, p in first.top] == pytest.approx([math.log(0.4), math.log(0.3)])
    assert second == (3, None, ())
    assert (third.id, third.logprob) == (2, pytest.approx(math.log(0.3)))
    assert third.top == ((1, pytest.approx(math.log(0.5))),)
    assert with_logprobs(logits[:1], [3], [Request([0], logprobs=0)])[0].top == ()
