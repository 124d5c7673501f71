"""Beam search: against transformers' generate(), against a search without a cache, against trying
every text; beside other requests.

python -m pytest tests/inference/test_engine_beams.py
"""

import dataclasses
import itertools
import random

import pytest
import torch
from tiny_run import run_here, save_run

from minigpt.common.errors import UserError
from minigpt.data.prompts import stop_ids
from minigpt.inference.engine import Engine, Request, window_start

N_ROWS = 64
GPT2 = dict(
    position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True, norm_eps=1e-5
)
SHAPES = {"qwen3": dict(n_kv_head=2, head_dim=12), "gpt2": GPT2}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Prompts of a few tokens are read in several chunks."""
    monkeypatch.setattr("minigpt.inference.engine.PREFILL_CHUNK", 5)


@pytest.fixture(params=SHAPES, scope="module")
def shape(request):
    return request.param


@pytest.fixture(scope="module")
def model(shape, tiny_model):
    """Its block is so short that texts outgrow it."""
    return tiny_model(seed=4, block_size=12, **SHAPES[shape])


def ids(n, seed=0, below=N_ROWS):
    return random.Random(seed).choices(range(below), k=n)


def beams(n_prompt, n_new, num_beams, seed=0, **keywords):
    return Request(ids(n_prompt, seed), n_new, temperature=0, num_beams=num_beams, **keywords)


def write(model, request, n_vocab=None):
    """The Ticket of a request that has an engine for itself."""
    engine = Engine(model, n_vocab, request.num_beams)
    (ticket,) = engine.generate([request])
    assert not engine.active and not engine.waiting and not engine.rows
    return ticket


# -- transformers ----------------------------------------------------------------------------------


def as_transformers(model, kind):
    """transformers' model of the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

    c = model.config
    if kind == "gpt2":
        shape = dict(n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd)
        peer = GPT2LMHeadModel(GPT2Config(vocab_size=N_ROWS, n_positions=c.block_size, **shape))
        names = {"wte": "transformer.wte", "wpe": "transformer.wpe", "norm": "transformer.ln_f"}
        layer, parts = (
            "transformer.h",
            {
                "attn_norm": "ln_1",
                "attn.qkv": "attn.c_attn",
                "attn.proj": "attn.c_proj",
                "mlp_norm": "ln_2",
                "mlp.fc": "mlp.c_fc",
                "mlp.proj": "mlp.c_proj",
            },
        )
    else:
        peer = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=N_ROWS,
                hidden_size=c.n_embd,
                num_hidden_layers=c.n_layer,
                num_attention_heads=c.n_head,
                num_key_value_heads=c.n_kv_head,
                head_dim=c.head_dim,
                intermediate_size=c.n_hidden,
                max_position_embeddings=c.block_size,
                rms_norm_eps=c.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
                tie_word_embeddings=True,
            )
        )
        names = {"wte": "model.embed_tokens", "norm": "model.norm"}
        layer, parts = (
            "model.layers",
            {
                "attn_norm": "input_layernorm",
                "attn.q_norm": "self_attn.q_norm",
                "attn.k_norm": "self_attn.k_norm",
                "attn.qkv": "self_attn.{q,k,v}_proj",
                "attn.proj": "self_attn.o_proj",
                "mlp_norm": "post_attention_layernorm",
                "mlp.fc": "mlp.{gate,up}_proj",
                "mlp.proj": "mlp.down_proj",
            },
        )
    for i, (ours, theirs) in itertools.product(range(c.n_layer), parts.items()):
        names[f"blocks.{i}.{ours}"] = f"{layer}.{i}.{theirs}"
    modules, weights = dict(model.named_modules()), {}
    for ours, theirs in names.items():
        head, _, rest = theirs.partition("{")
        several, _, tail = rest.partition("}")
        for sort, weight in modules[ours].named_parameters():
            sizes = modules[ours].sizes if several else len(weight)
            # GPT-2's Conv1D keeps its matrices as (in, out).
            turn = ".c_" in theirs and sort == "weight"
            for name, part in zip(several.split(","), weight.split(sizes), strict=True):
                weights[f"{head}{name}{tail}.{sort}"] = part.t() if turn else part
    theirs = dict(peer.named_parameters())
    assert set(weights) == set(theirs)
    with torch.no_grad():
        for name, weight in weights.items():
            theirs[name].copy_(weight)
    return peer.eval()


@pytest.fixture(scope="module")
def pair(shape, tiny_model):
    """A model and transformers' of the same weights."""
    model = tiny_model(seed=5, block_size=48, **SHAPES[shape])
    return model, as_transformers(model, shape)


def generated(peer, request):
    """What transformers' generate() writes for a request: its ids up to a stop id."""
    x = torch.tensor([request.ids])
    out = peer.generate(
        x,
        attention_mask=torch.ones_like(x),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        num_beams=request.num_beams,
        length_penalty=request.length_penalty,
        repetition_penalty=request.repetition_penalty,
        eos_token_id=list(request.stop_ids) or None,
        pad_token_id=0,
    )
    text = out[0, len(request.ids) :].tolist()
    return list(itertools.takewhile(lambda token: token not in request.stop_ids, text))


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_equals_transformers(pair, num_beams):
    model, peer = pair
    dice, reasons = random.Random(num_beams + 20), set()
    for seed in range(12):
        n_stops = [0, 1, 3, 16][seed % 4]
        request = beams(
            dice.randint(1, 16),
            dice.choice([1, 2, 7, 20, 31]) if n_stops < 16 else 31,
            num_beams,
            seed,
            stop_ids=tuple(dice.sample(range(N_ROWS), n_stops)),
            length_penalty=dice.choice([1.0, 1.0, 0.0, 2.5, -1.0]) if num_beams > 1 else 1.0,
            repetition_penalty=dice.choice([1.0, 1.0, 1.3, 0.8]),
        )
        ticket = write(model, request)
        assert ticket.ids == generated(peer, request), request
        reasons.add(ticket.finish_reason)
    assert reasons == {"stop", "length"}


# -- without a cache -------------------------------------------------------------------------------


def naive_logits(model, text, start, n_vocab):
    with torch.no_grad():
        return model.logits(model(torch.tensor([text[start:]])))[0, -1, :n_vocab]


def naive(model, request, n_vocab=N_ROWS):
    """(ids, reason): the search as the docstring of Request tells it, the whole context of every
    beam through the model for each of its tokens."""
    n, penalty = request.num_beams, request.length_penalty
    running, ended, start = [(0.0, [])], [], 0
    for length in range(1, request.max_new_tokens + 1):
        start = window_start(start, len(request.ids) + length - 1, model.config.block_size)
        found = []
        for score, written in running:
            text = request.ids + written
            logprobs = naive_logits(model, text, start, n_vocab).log_softmax(-1).tolist()
            for token in set(text):
                logprobs[token] *= request.repetition_penalty
            found += [(score + p, [*written, token]) for token, p in enumerate(logprobs)]
        found.sort(key=lambda beam: -beam[0])
        running = []
        for rank, (score, written) in enumerate(found):
            stopped = written[-1] in request.stop_ids
            if stopped or length == request.max_new_tokens:
                if rank < n:
                    text, reason = (written[:-1], "stop") if stopped else (written, "length")
                    ended.append((score / length**penalty, text, reason))
            elif len(running) < n:
                running.append((score, written))
        ended = sorted(ended, key=lambda end: -end[0])[:n]
        if running and len(ended) == n:
            best_running = running[0][0] / length**penalty
            if best_running <= ended[-1][0]:
                break
    return ended[0][1:]


@pytest.mark.parametrize("n_prompt", [1, 5, 11, 12, 13, 30])
def test_cached_equals_uncached(model, n_prompt):
    """Prompts shorter than a block and longer; texts that outgrow it several times."""
    for num_beams, stops in ((2, ()), (4, tuple(ids(2, n_prompt)))):
        request = beams(n_prompt, 20, num_beams, n_prompt, stop_ids=stops, repetition_penalty=1.1)
        ticket = write(model, request)
        assert (ticket.ids, ticket.finish_reason) == naive(model, request)
        assert ticket.rolled or len(ticket.text) <= 13
        assert ticket.text == request.ids + ticket.ids


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0, 3.0])
@pytest.mark.parametrize("n_prompt", [3, 11])  # with 11 the third token is in a new context
def test_with_beams_enough_it_is_the_best_of_all_texts(model, length_penalty, n_prompt):
    """Four ids, the last of which ends a text: of three tokens there are 40 texts."""
    stop, n_new = 3, 3
    request = beams(n_prompt, n_new, 40, n_prompt, stop_ids=(stop,), length_penalty=length_penalty)
    request = dataclasses.replace(request, ids=ids(n_prompt, below=4))
    best = None
    for length in range(1, n_new + 1):
        for text in itertools.product(range(4), repeat=length):
            if stop in text[:-1] or (text[-1] != stop and length < n_new):
                continue
            score, start = 0.0, 0
            for i, token in enumerate(text):
                whole = [*request.ids, *text[:i]]
                start = window_start(start, len(whole), 12)
                score += float(naive_logits(model, whole, start, 4).log_softmax(-1)[token])
            best = max(best or (-1e9,), (score / length**length_penalty, text))
    wanted = [token for token in best[1] if token != stop]
    assert write(model, request, n_vocab=4).ids == wanted


def test_better_texts_than_greedy_ones(model):
    """What a search is for: the sums of log-probabilities are higher, if not for every prompt."""
    scores = {1: 0.0, 5: 0.0}
    for num_beams, seed in itertools.product(scores, range(8)):
        ticket = write(model, beams(4, 8, num_beams, seed, logprobs=0))
        scores[num_beams] += sum(token.logprob for token in ticket.tokens)
    assert scores[5] > scores[1]


# -- beside others ---------------------------------------------------------------------------------


def mixed_requests(n):
    """Requests of one text and of several beams, some of them sampled."""
    dice = random.Random(7)
    requests = []
    for i in range(n):
        num_beams = dice.choice([1, 1, 2, 3, 5])
        requests.append(
            Request(
                ids(dice.randint(1, 30), i),
                dice.randint(0, 20),
                temperature=dice.choice([0, 0.9]) if num_beams == 1 else 0,
                repetition_penalty=dice.choice([1.0, 1.2]),
                frequency_penalty=dice.choice([0.0, 0.3]),
                seed=i,
                stop_ids=tuple(ids(3, -i)),
                num_beams=num_beams,
                logprobs=dice.choice([None, 0, 2]),
                length_penalty=dice.choice([1.0, 0.5]),
            )
        )
    return requests


def test_neighbours_change_nothing(model):
    requests = mixed_requests(16)
    alone = [write(model, request) for request in requests]
    ended = []
    engine = Engine(model, n_slots=7)
    together = engine.generate(requests, on_end=ended.append)
    for one, two in zip(alone, together, strict=True):
        assert (one.ids, one.finish_reason, one.rolled) == (two.ids, two.finish_reason, two.rolled)
        assert [token.id for token in two.tokens] == two.ids
    assert set(ended) == set(together) and len(ended) == 16
    assert not engine.active and not engine.waiting and not engine.rows


@pytest.mark.parametrize("seed", range(2))
def test_requests_join_leave_and_are_cancelled(model, seed):
    """No slot is lost and none is used twice, whatever comes and goes; step() tells every token."""
    dice, left = random.Random(seed), mixed_requests(10)
    dice.shuffle(left)
    engine, tickets, seen = Engine(model, n_slots=6), [], {}
    while left or engine.active or engine.waiting:
        if left and dice.random() < 0.3:
            tickets.append(engine.submit(left.pop()))
        if tickets and dice.random() < 0.05:
            engine.cancel(dice.choice(tickets))
        for ticket, token in engine.step():
            seen.setdefault(ticket, []).append(token)
        assert sum(ticket.request.num_beams for ticket in engine.active) <= 6
        rows = [row for ticket in engine.active for row in ticket.rows]
        assert len(rows) == len(engine.rows) and set(rows) == set(engine.rows)
        for ticket in engine.active:
            assert 1 <= len(ticket.rows) <= ticket.request.num_beams
    for ticket in tickets:
        assert ticket.ids == seen.get(ticket, [])
        if ticket.finish_reason != "cancelled":
            assert ticket.ids == write(model, ticket.request).ids
        elif ticket.request.num_beams > 1:
            assert ticket.ids == []


def test_a_search_waits_for_its_slots_and_nobody_overtakes_it(model):
    engine = Engine(model, n_slots=4)
    first = engine.submit(beams(3, 4, 2, seed=1))
    search = engine.submit(beams(3, 3, 3, seed=2))
    behind = engine.submit(beams(3, 2, 1, seed=3))
    while first.finish_reason is None:
        engine.step()
        assert engine.active in ([first], []) and behind.tokens == []
    engine.step()
    assert engine.active == [search, behind]
    while engine.active:
        engine.step()
    for ticket in (first, search, behind):
        assert ticket.ids == naive(model, ticket.request)[0]


def test_a_text_comes_whole(model):
    request = beams(3, 9, 3)
    engine = Engine(model, n_slots=3)
    ticket = engine.submit(request)
    seen = [engine.step() for _ in range(9)]
    assert seen[:-1] == [[]] * 8 and [token for _, token in seen[-1]] == ticket.ids
    assert list(engine.stream(request)) == ticket.ids and len(ticket.ids) == 9
    assert engine.generate([request])[0].ids == ticket.ids  # and always the same


def test_nothing_to_write(model):
    assert write(model, beams(3, 0, 4)).finish_reason == "length"
    ticket = write(model, beams(3, 0, 4, echo=True, logprobs=0))
    assert [token.id for token in ticket.prompt_tokens] == ids(3) and not ticket.ids


def test_logprobs_are_the_models_own(model):
    """Before penalties, like those of any other request."""
    request = beams(4, 6, 3, repetition_penalty=1.5, logprobs=2, echo=True)
    ticket = write(model, request)
    with torch.no_grad():
        wanted = model.logits(model(torch.tensor([ticket.text])))[0].log_softmax(-1)
    tokens = ticket.prompt_tokens + ticket.tokens
    assert [token.id for token in tokens] == ticket.text
    for row, token in zip(wanted, tokens[1:], strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert token.top[0][0] == int(row.argmax()) and len(token.top) == 2


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_prompt_is_echoed_once(model, num_beams):
    """The text outgrows the block; the second reading of the prompt adds no tokens."""
    ticket = write(model, beams(10, 12, num_beams, echo=True, logprobs=0))
    assert ticket.rolled
    assert [token.id for token in ticket.prompt_tokens] == ticket.request.ids


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (dict(num_beams=0), "num_beams=0: expected 1 (none) or more"),
        (dict(num_beams=9), "num_beams=9: expected at most 4, the slots here"),
        (
            dict(num_beams=2, temperature=0.7),
            "num_beams=2: beam search draws nothing; expected temperature=0, not 0.7",
        ),
        (dict(length_penalty=float("nan")), "length_penalty=nan: expected -10 to 10; 0 is none"),
        (dict(length_penalty=11.0), "length_penalty=11.0: expected -10 to 10; 0 is none"),
    ],
)
def test_each_mistake_is_named(model, wrong, line):
    engine = Engine(model, n_slots=4)
    with pytest.raises(UserError) as caught:
        engine.submit(Request(**{"ids": [3], "temperature": 0, **wrong}))
    assert str(caught.value) == line and not engine.waiting


# -- sample.py -------------------------------------------------------------------------------------


def test_sample_searches(tmp_path, byte_tokenizer, tiny_model):
    model = tiny_model(padded_vocab_size=320, block_size=32)
    run = save_run(tmp_path / "run", model, byte_tokenizer)
    words = [f"--out_dir={run}", "--start=abc", "--max_new_tokens=9"]
    code, out, err = run_here("sample.py", *words, "--num_beams=3", "--length_penalty=0")
    request = Request([*b"abc"], 9, 0, num_beams=3, length_penalty=0.0)
    request.stop_ids = stop_ids(byte_tokenizer)
    ticket = write(model, request, n_vocab=byte_tokenizer.n_vocab)
    text = byte_tokenizer.decode(ticket.ids).rstrip("\ufffd")
    assert code == 0 and out.startswith("abc" + text), err
    assert "temperature" in err and "(num_beams)" in err
    assert run_here("sample.py", *words, "--num_beams=3", "--length_penalty=0")[1] == out


def test_sample_names_what_beams_leave_no_use_for():
    words = ["--start=a", "--num_beams=2", "--temperature=0.5", "--top_k=7", "--top_p=1"]
    code, out, err = run_here("sample.py", *words)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "--temperature: temperature=0.5: num_beams=2 draws nothing: leave temperature out",
        "--top_k: top_k=7: num_beams=2 draws nothing: leave top_k out",
    ]
