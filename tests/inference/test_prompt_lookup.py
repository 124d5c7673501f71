"""Prompt lookup: the same texts as without it, in fewer forward passes."""

import dataclasses
import random

import pytest
import torch

from minigpt.inference import engine as engine_module
from minigpt.inference.decoding.prompt_lookup import PromptLookup
from minigpt.inference.engine import Engine, Request

N_VOCAB = 50  # of the 64 rows; the rest are padding
SHAPES = {
    "modern": dict(n_kv_head=2, block_size=24),
    "classic": dict(
        position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True, block_size=19
    ),
}


@pytest.fixture(params=SHAPES, scope="module")
def model(request, tiny_model):
    return tiny_model(seed=4, **SHAPES[request.param])


def slow_draft(text, most, n=3):
    """What followed the last place at which the last three tokens occurred before, if the last n
    agree there; it is read on in what is copied."""
    for end in range(len(text) - 1, 2, -1):
        if text[end - 3 : end] == text[-3:]:
            if end < n or text[end - n : end] != text[-n:]:
                return []
            longer = list(text)
            while len(longer) < len(text) + most:
                longer.append(longer[end + len(longer) - len(text)])
            return longer[len(text) :]
    return []


def test_a_draft_follows_the_last_occurrence():
    assert PromptLookup([1, 2, 3, 4, 5, 9, 1, 2, 3]).draft(4) == [4, 5, 9, 1]
    assert PromptLookup([1, 2, 3, 4, 9, 2, 3]).draft(4) == []  # two tokens are not enough
    assert PromptLookup([1]).draft(4) == [] and PromptLookup([1, 1, 1]).draft(4) == []
    assert PromptLookup([7, 1, 2, 8, 7, 1, 2, 9, 7, 1, 2]).draft(2) == [9, 7]  # the later one
    assert PromptLookup([5, 1, 2, 1, 2, 1]).draft(5) == [2, 1, 2, 1, 2]  # beyond the text's end
    assert PromptLookup([1, 1, 1, 1]).draft(3) == [1, 1, 1] and PromptLookup([1] * 9).draft(0) == []


def test_drafts_agree_with_a_search_of_the_whole_text():
    dice = random.Random(0)
    for _ in range(50):
        text = [dice.randrange(3)]
        lookup, n = PromptLookup(text), 3
        for _ in range(30):
            most = dice.randint(0, 6)
            assert lookup.draft(most) == slow_draft(text, most, n)
            if dice.random() < 0.2:
                right = dice.random() < 0.5
                lookup.verified(4, 4 if right else 1)  # a wrong draft: more tokens must agree
                n = max(3, n // 2) if right else min(16, 2 * n)
            text += dice.choices(range(3), k=dice.randint(1, 3))


def test_half_right_changes_nothing():
    lookup = PromptLookup([8, 1, 2, 3, 9, 1, 2, 3])
    lookup.verified(4, 2)
    assert lookup.draft(1) == [9]
    lookup.verified(4, 1)
    assert lookup.draft(1) == []  # three tokens agree, six must
    lookup.verified(4, 4)
    assert lookup.draft(1) == [9]


def varied_requests(n):
    """Requests of many kinds, half of them sampled. Prompts repeat themselves."""
    dice = random.Random(7)
    requests = []
    for i in range(n):
        phrase = dice.choices(range(N_VOCAB), k=dice.randint(1, 5))
        request = Request(
            (phrase * 6)[: dice.randint(1, 30)],
            dice.randint(0, 40),
            temperature=dice.choice([0, 0, 0.2, 1.3]),
            top_k=dice.choice([0, 3]),
            top_p=dice.choice([1.0, 0.8]),
            repetition_penalty=dice.choice([1.0, 1.0, 1.2]),
            frequency_penalty=dice.choice([0.0, 0.0, 0.3]),
            seed=i,
            stop_ids=tuple(dice.choices(range(N_VOCAB), k=dice.choice([0, 2]))),
            logprobs=dice.choice([None, 2]),
        )
        if request.temperature == 0 and i % 8 == 0:
            request = dataclasses.replace(request, num_beams=2)
        requests.append(request)
    return requests


def test_the_texts_are_the_same(model, monkeypatch):
    """Drawn tokens too, by the same seed: past the block, with stop ids, penalties and beams, while
    others join and leave."""
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 5)
    requests = varied_requests(24)
    plain = Engine(model, N_VOCAB, n_slots=3).generate(requests)
    engine = Engine(model, N_VOCAB, n_slots=3, draft_tokens=15)
    drafted = engine.generate(requests)
    for one, two in zip(plain, drafted, strict=True):
        assert (one.ids, one.finish_reason, one.rolled) == (two.ids, two.finish_reason, two.rolled)
        assert one.stop == two.stop or one.stop.id == two.stop.id
        assert one.text == two.text
        for left, right in zip(one.tokens, two.tokens, strict=True):
            assert left.logprob == pytest.approx(right.logprob, abs=1e-4)
    n_accepted = sum(ticket.n_accepted for ticket in drafted)
    assert 0 < n_accepted < sum(ticket.n_drafted for ticket in drafted)  # both happened
    assert any(ticket.rolled for ticket in plain)
    assert not engine.active and not engine.rows


def test_a_text_that_repeats_itself_takes_fewer_steps(tiny_model):
    model = tiny_model(seed=4, block_size=64)
    request = Request([1, 2, 3], 60, temperature=0)
    (plain,) = Engine(model, N_VOCAB).generate([request])
    engine = Engine(model, N_VOCAB, draft_tokens=8)
    ticket = engine.submit(request)
    streamed, steps = [], 0
    while ticket.finish_reason is None:
        streamed += [token for _, token in engine.step()]
        steps += 1
    assert streamed == ticket.ids == plain.ids
    assert steps == 60 - ticket.n_accepted < 30


def test_readers_share_the_drafts(tiny_model):
    """The more texts at once, the fewer tokens are guessed for each."""
    model = tiny_model(seed=4, block_size=64)
    widths = []
    model.register_forward_pre_hook(lambda module, args: widths.append(args[0].size(1)))
    for n_texts, widest in ((1, 9), (2, 5), (8, 2), (9, 1)):
        widths.clear()
        requests = [Request([1 + i, 2] * 3, 30, temperature=0) for i in range(n_texts)]
        engine = Engine(model, N_VOCAB, n_slots=16, prefill=4, draft_tokens=8)
        tickets = [engine.submit(request) for request in requests]
        while any(len(ticket.rows) and ticket.rows[0].missing > 1 for ticket in tickets):
            engine.step()  # the prompts are read
        widths.clear()
        for _ in range(5):
            engine.step()
        assert max(widths) <= widest
        assert any(ticket.n_drafted for ticket in tickets) is (n_texts <= 8)


def test_no_randomness_is_spent_on_what_is_refused(tiny_model):
    """A request's generator ends where it would without drafts."""
    model = tiny_model(seed=4, block_size=32)
    request = Request([3, 4] * 5, 20, temperature=1.0, top_k=4, seed=3)
    states = []
    for draft_tokens in (0, 6):
        engine = Engine(model, N_VOCAB, draft_tokens=draft_tokens)
        (ticket,) = engine.generate([request])
        states.append(ticket.generator.get_state())
    assert ticket.n_drafted > ticket.n_accepted
    assert torch.equal(*states)
