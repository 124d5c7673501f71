"""Generation: against a naive loop without a cache, and beside other requests."""

import dataclasses
import random

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from minigpt.common.errors import UserError
from minigpt.inference import engine as engine_module
from minigpt.inference.engine import Engine, Request

N_VOCAB = 50  # of the 64 rows; the rest are padding
SHAPES = {
    "modern": dict(n_kv_head=2, block_size=12),
    "classic": dict(
        position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True, block_size=12
    ),
    "odd": dict(block_size=11, tie_embeddings=False),
}


@pytest.fixture(params=SHAPES, scope="module")
def model(request, tiny_model):
    return tiny_model(seed=4, **SHAPES[request.param])


def naive(model, request):
    """Ids that greedy writing gives, the whole window through the model for every single one.

    The rule: when the text no longer fits into block_size, only its last half-block is kept.
    """
    block_size, window, written = model.config.block_size, list(request.ids), []
    while len(written) < request.max_new_tokens:
        if len(window) > block_size:
            window = window[len(window) - block_size // 2 :]
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([window])))[0, -1, :N_VOCAB]
        token = int(logits.argmax())
        if token in request.stop_ids:
            break
        written.append(token)
        window.append(token)
    return written


def ids(n, seed=0):
    return random.Random(seed).choices(range(N_VOCAB), k=n)


def greedy(n_prompt, n_new, seed=0, **keywords):
    return Request(ids(n_prompt, seed), n_new, temperature=0, **keywords)


@pytest.mark.parametrize("n_prompt", [1, 2, 5, 10, 11, 12, 13, 24, 40])
def test_cached_equals_uncached(model, n_prompt):
    """Prompts shorter than a block, a block long, longer; texts that outgrow it several times."""
    request = greedy(n_prompt, 40, seed=n_prompt)
    (ticket,) = Engine(model, N_VOCAB, n_slots=2).generate([request])
    assert ticket.ids == naive(model, request)
    assert ticket.finish_reason == "length" and ticket.rolled
    assert ticket.text == request.ids + ticket.ids


def test_rolled_says_whether_the_text_outgrew_the_block(tiny_model):
    model = tiny_model(block_size=12)
    for n_new, rolled in ((9, False), (10, True)):
        # The last token written is never read again: 4 + 9 - 1 = 12 tokens fit.
        (ticket,) = Engine(model, N_VOCAB).generate([greedy(4, n_new)])
        assert ticket.rolled is rolled


def mixed_requests(n):
    """Requests of many kinds, half of them sampled."""
    dice = random.Random(7)
    return [
        Request(
            ids(dice.randint(1, 30), seed=i),
            dice.randint(0, 30),
            temperature=dice.choice([0, 0, 0.7, 1.3]),
            top_k=dice.choice([0, 5]),
            top_p=dice.choice([1.0, 0.8]),
            min_p=dice.choice([0.0, 0.1]),
            repetition_penalty=dice.choice([1.0, 1.2]),
            presence_penalty=dice.choice([0.0, 0.5]),
            frequency_penalty=dice.choice([0.0, 0.3]),
            seed=i,
            stop_ids=tuple(ids(2, seed=-i)),
        )
        for i in range(n)
    ]


def test_neighbours_change_nothing(model):
    """More requests than slots, of all lengths: each text is the one that it is alone."""
    requests = mixed_requests(24)
    alone = [Engine(model, N_VOCAB, n_slots=1).generate([request])[0] for request in requests]
    ended = []
    engine = Engine(model, N_VOCAB, n_slots=5)
    together = engine.generate(requests, on_end=ended.append)
    assert len({ticket.finish_reason for ticket in alone}) == 2  # "stop" and "length" both happen
    for one, two, request in zip(alone, together, requests, strict=True):
        assert (one.ids, one.finish_reason) == (two.ids, two.finish_reason)
        assert one.rolled == two.rolled and two.request is request
    assert set(ended) == set(together) and len(ended) == 24
    assert not engine.active and not engine.waiting


@pytest.mark.parametrize("prefill_chunk", [1, 3])
def test_requests_join_and_leave_between_steps(model, prefill_chunk, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", prefill_chunk)
    requests = mixed_requests(16)
    alone = [Engine(model, N_VOCAB, n_slots=1).generate([request])[0] for request in requests]
    engine, dice = Engine(model, N_VOCAB, 3), random.Random(1)
    tickets, seen, left = [], {}, list(requests)
    cancelled = set()
    while left or engine.active or engine.waiting:
        if left and dice.random() < 0.3:
            tickets.append(engine.submit(left.pop(0)))
        if dice.random() < 0.05 and tickets:
            ticket = dice.choice(tickets)
            if ticket.finish_reason is None:
                cancelled.add(ticket)
            engine.cancel(ticket)
        for ticket, token in engine.step():
            seen.setdefault(ticket, []).append(token)
        assert len(engine.active) <= 3
    assert cancelled and len(cancelled) < len(tickets) == 16
    for one, two in zip(alone, tickets, strict=True):
        assert two.ids == seen.get(two, [])  # step() returned every token, once
        if two in cancelled:
            assert two.finish_reason == "cancelled" and two.ids == one.ids[: len(two.ids)]
        else:
            assert (two.ids, two.finish_reason) == (one.ids, one.finish_reason)


def test_a_long_prompt_does_not_hold_up_the_others(tiny_model, monkeypatch):
    """Of forty tokens a step reads four; the others write one in each of these steps."""
    model = tiny_model(block_size=64)
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 4)
    engine = Engine(model, N_VOCAB, n_slots=3)
    short = engine.submit(greedy(2, 30, seed=1))
    engine.step()
    long, later = engine.submit(greedy(41, 5, seed=2)), engine.submit(greedy(9, 5, seed=3))
    widths = []
    model.register_forward_pre_hook(lambda module, args: widths.append(args[0].size(1)))
    steps = 0
    while not long.tokens:
        engine.step()
        steps += 1
        assert len(short.tokens) == steps + 1
    assert steps == 10 and max(widths) == 4
    assert not later.tokens  # who came first is read first
    while engine.active:
        engine.step()
    for ticket in (short, long, later):
        assert ticket.ids == naive(model, ticket.request)


@settings(max_examples=8, stateful_step_count=100, deadline=None)
class Slots(RuleBasedStateMachine):
    """Any order of submitting, stepping, cancelling: no slot is lost, no request forgotten. 800
    events."""

    def __init__(self):
        super().__init__()
        self.engine = Engine(SLOTS_MODEL[0], N_VOCAB, n_slots=3)
        self.tickets = []

    @rule(n_prompt=st.integers(1, 20), n_new=st.integers(0, 9), seed=st.integers(0, 5))
    def submit(self, n_prompt, n_new, seed):
        stop = tuple(ids(8, seed + 50))
        request = Request(ids(n_prompt, seed), n_new, temperature=1.0, seed=seed, stop_ids=stop)
        self.tickets.append(self.engine.submit(request))

    @rule(which=st.integers(0, 10**6))
    def cancel(self, which):
        if self.tickets:
            self.engine.cancel(self.tickets[which % len(self.tickets)])

    @rule()
    def step(self):
        self.engine.step()

    @invariant()
    def every_request_is_in_one_place(self):
        engine = self.engine
        open_ones = {ticket for ticket in self.tickets if ticket.finish_reason is None}
        held = [*engine.active, *engine.waiting]
        assert len(held) == len(set(held)) and set(held) == open_ones
        assert len(engine.active) <= 3
        assert engine.n_submitted == len(self.tickets)

    def teardown(self):
        steps = 0
        while self.engine.active or self.engine.waiting:
            self.engine.step()
            steps += 1
            assert steps < 20 * (len(self.tickets) + 1)
        for ticket in self.tickets:
            if ticket.finish_reason != "cancelled":
                key = repr(ticket.request)
                if key not in ALONE:
                    lonely = Engine(SLOTS_MODEL[0], N_VOCAB, n_slots=1)
                    ALONE[key] = lonely.generate([ticket.request])[0].ids
                assert ticket.ids == ALONE[key]


SLOTS_MODEL, ALONE = [], {}


def test_no_slot_leaks(tiny_model, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 4)
    SLOTS_MODEL[:] = [tiny_model(seed=4, block_size=12, n_layer=1)]
    run_state_machine_as_test(Slots)


# -- how a text ends -------------------------------------------------------------------------------


def test_a_stop_id_ends_the_text_and_is_no_part_of_it(model):
    seed = next(i for i in range(100) if len(set(naive(model, greedy(3, 12, seed=i)))) > 2)
    free = naive(model, greedy(3, 12, seed=seed))
    stop = next(token for token in free if token != free[0])
    request = greedy(3, 12, seed=seed, stop_ids=(stop, -1))
    (ticket,) = Engine(model, N_VOCAB).generate([request])
    assert ticket.ids == free[: free.index(stop)] and ticket.finish_reason == "stop"
    assert ticket.ids == naive(model, request)


def test_nothing_to_write(model):
    engine = Engine(model, N_VOCAB)
    ended = []
    (ticket,) = engine.generate([greedy(3, 0)], ended.append)
    assert ticket.ids == [] and ticket.finish_reason == "length" and ended == [ticket]
    assert list(engine.stream(greedy(3, 0))) == []
    assert engine.step() == [] and engine.generate([]) == []


def test_cancelling_frees_the_slot(model):
    engine = Engine(model, N_VOCAB, n_slots=2)
    first, second, third = (engine.submit(greedy(4, 20, seed=i)) for i in range(3))
    engine.step()
    assert first.ids and second.ids and not third.ids  # the third waits
    engine.cancel(first)
    assert first.finish_reason == "cancelled" and len(first.ids) == 1
    engine.step()
    assert third.ids and len(first.ids) == 1
    engine.cancel(first)  # once more does no harm
    waiting = engine.submit(greedy(4, 20))
    engine.cancel(waiting)  # before it ran
    assert waiting.finish_reason == "cancelled" and waiting not in engine.waiting
    while engine.active:
        engine.step()
    assert second.ids == naive(model, second.request)
    assert third.ids == naive(model, third.request)


def test_streaming_yields_what_generate_gives(model):
    request = greedy(3, 20)
    engine = Engine(model, N_VOCAB)
    assert list(engine.stream(request)) == naive(model, request)
    stream = engine.stream(request)
    next(stream)
    (ticket,) = engine.active
    stream.close()  # the reader went away
    assert ticket.finish_reason == "cancelled" and not engine.active


def test_two_readers_take_turns(model):
    """Whoever steps the engine, no reader loses a token."""
    requests = [greedy(3, 15, seed=1), greedy(5, 25, seed=2)]
    engine = Engine(model, N_VOCAB)
    streams, texts = [engine.stream(request) for request in requests], [[], []]
    for turn in range(40):
        for text, stream in zip(texts, streams, strict=True):
            text += [token for token in (next(stream, None),) if token is not None]
        if turn == 5:
            engine.step()  # and a third one
    assert texts == [naive(model, request) for request in requests]


def test_generation_leaves_the_worlds_randomness_alone(model):
    before = torch.get_rng_state()
    Engine(model, N_VOCAB).generate([Request(ids(3), 5, seed=1), Request(ids(3), 5)])
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds(model):
    engine = Engine(model, N_VOCAB)

    def text(seed):
        return engine.generate([Request(ids(3), 30, seed=seed)])[0].ids

    assert text(5) == text(5) != text(6)
    assert text(None) != text(None)
    assert text(0) == text(0) and text(2**64 - 1) and text(-1)


def test_padding_rows_are_never_written(model):
    engine = Engine(model, N_VOCAB)
    tickets = engine.generate([Request(ids(3), 30, temperature=5.0, seed=i) for i in range(8)])
    written = {token for ticket in tickets for token in ticket.ids}
    assert max(written) < N_VOCAB and len(written) > 30
    wide = Engine(model).generate([Request(ids(3), 60, temperature=5.0, seed=i) for i in range(4)])
    assert max(token for ticket in wide for token in ticket.ids) >= N_VOCAB


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (dict(ids=[]), "ids"),
        (dict(ids=[3, -1]), "ids"),
        (dict(ids=[3, 50]), "ids"),
        (dict(max_new_tokens=-1), "max_new_tokens=-1"),
        (dict(temperature=-0.1), "temperature=-0.1"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(temperature=float("inf")), "temperature=inf"),
        (dict(top_k=-1), "top_k=-1"),
        (dict(top_p=0.0), "top_p=0.0"),
        (dict(top_p=1.1), "top_p=1.1"),
        (dict(repetition_penalty=0.0), "repetition_penalty=0.0"),
        (dict(min_p=-0.1), "min_p=-0.1"),
        (dict(min_p=1.1), "min_p=1.1"),
        (dict(presence_penalty=float("nan")), "presence_penalty=nan"),
        (dict(frequency_penalty=float("inf")), "frequency_penalty=inf"),
        (dict(logprobs=-1), "logprobs=-1"),
        (dict(logprobs=21), "logprobs=21"),
        (dict(ids=[3] * 17, echo=True), "echo"),
        (dict(seed=2**64), f"seed={2**64}"),
        (dict(seed=-(2**63) - 1), f"seed={-(2**63) - 1}"),
    ],
)
def test_each_wrong_setting_is_named(tiny_model, wrong, name):
    engine = Engine(tiny_model(), N_VOCAB)
    with pytest.raises(UserError) as caught:
        engine.submit(Request(**{"ids": [3], **wrong}))
    (line,) = str(caught.value).splitlines()
    assert name in line and "expected" in line
    assert not engine.waiting


def test_all_wrong_settings_are_named_at_once(tiny_model):
    with pytest.raises(UserError) as caught:
        Engine(tiny_model(), N_VOCAB).submit(
            Request([], -1, -1.0, -1, 2.0, -1.0, -1.0, logprobs=99)
        )
    assert len(str(caught.value).splitlines()) == 8


def test_one_wrong_request_leaves_none_behind(tiny_model):
    engine = Engine(tiny_model(), N_VOCAB)
    with pytest.raises(UserError):
        engine.generate([Request([3], 5), Request([3], -5)])
    assert not engine.waiting and not engine.active


# -- logprobs --------------------------------------------------------------------------------------


def test_logprobs_are_the_models_own(model, monkeypatch):
    """Beside each token, written or of the prompt: what the whole window gives without a cache."""
    request = Request(ids(7), 4, temperature=1.5, top_k=9, seed=3, logprobs=5, echo=True)
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 3)
    (ticket,) = Engine(model, N_VOCAB).generate([request])
    with torch.no_grad():
        hidden = model(torch.tensor([ticket.text]))
        wanted = model.logits(hidden)[0, :, :N_VOCAB].log_softmax(-1)
    tokens = ticket.prompt_tokens + ticket.tokens
    assert [token.id for token in tokens] == ticket.text and tokens[0] == (request.ids[0], None, ())
    for row, token in zip(wanted, tokens[1:], strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        values, best = row.topk(5)
        assert [i for i, _ in token.top] == best.tolist()
        torch.testing.assert_close(
            torch.tensor([v for _, v in token.top]), values, atol=1e-4, rtol=0
        )
        if token.id == best[0]:
            assert token.logprob == token.top[0][1]  # from one tensor, not rounded
    bare = Engine(model, N_VOCAB).generate(
        [dataclasses.replace(request, logprobs=None, echo=False)]
    )
    assert bare[0].ids == ticket.ids and bare[0].tokens[0].logprob is None


def test_only_the_prompts_logprobs(model, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 4)
    engine = Engine(model, N_VOCAB)
    for n_prompt in (1, 2, 4, 5, 11):
        (ticket,) = engine.generate([Request(ids(n_prompt), 0, logprobs=0, echo=True)])
        assert ticket.finish_reason == "length" and not ticket.ids
        assert [token.id for token in ticket.prompt_tokens] == ids(n_prompt)
        assert all(token.logprob < 0 and token.top == () for token in ticket.prompt_tokens[1:])
    assert not engine.active and not engine.waiting
