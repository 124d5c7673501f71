"""Probabilities of tokens: against the model's own logits, text_bits(), and figures by hand; of a
local run, of our own server on a real socket, and of servers that send none or nonsense."""

import contextlib
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gradio as gr
import pytest
import torch
from local_server import serve_runs
from test_chat_tab import Request
from tiny_run import save_run

from minigpt.arena.access.rate_limit import VisitorLimits
from minigpt.arena.access.voters import Voters
from minigpt.arena.arena import Arena
from minigpt.arena.endpoints import Endpoint, EndpointError, Endpoints
from minigpt.arena.i18n import CHINESE, ENGLISH
from minigpt.arena.local_runs import LocalModel, LocalRun
from minigpt.arena.ui.context import PageContext
from minigpt.arena.ui.tokens import TokensTab
from minigpt.arena.window.labels import label, visible
from minigpt.arena.window.probabilities import (
    MAX_TEXT_CHARS,
    Cut,
    Scored,
    ScoredToken,
    after_sampling,
    check_text,
    cuts,
    scores_of,
    summary,
)
from minigpt.arena.window.tokens_html import cut_texts, scored_text
from minigpt.common.errors import UserError
from minigpt.data.prompts import chat_ids, stop_ids
from minigpt.evaluation.perplexity import text_bits, text_passages
from minigpt.inference.engine import Engine
from minigpt.inference.scheduler import RequestScheduler
from minigpt.tokenizer.tokenizer import load_tokenizer

TEXT = "黄河发源于青藏高原。The river is long."  # longer than a block of 16 bytes
SETTINGS = dict(temperature=0, top_k=0, top_p=1.0, max_tokens=5, seed=1)


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(padded_vocab_size=320, block_size=16)


@contextlib.contextmanager
def local_run(model, tokenizer, n_vocab):
    def encode(turns):
        return chat_ids(tokenizer, "qa", turns, 16, truncate="oldest")

    host = RequestScheduler({"own": Engine(model, n_vocab, 2)})
    try:
        yield LocalRun("own").start(LocalModel(host, tokenizer, encode, stop_ids(tokenizer)))
    finally:
        host.drain(0)


@pytest.fixture(scope="module")
def local(model, byte_tokenizer):
    with local_run(model, byte_tokenizer, byte_tokenizer.n_vocab) as run:
        yield run


@pytest.fixture(scope="module")
def server(model, byte_tokenizer, tmp_path_factory):
    folder = save_run(tmp_path_factory.mktemp("runs") / "own", model, byte_tokenizer, "qa")
    with serve_runs([folder], byte_tokenizer) as url:
        yield Endpoint("lab", url, "own")


# -- by hand ---------------------------------------------------------------------------------------


def test_a_summary_by_hand():
    halves = [ScoredToken("a", math.log(0.5)), ScoredToken("b", math.log(0.125))]  # 1 and 3 bits
    found = summary(Scored((ScoredToken("^", None), *halves), 8, first_bits=5.0))
    assert found == pytest.approx((3, 9.0, 2**3, 9 / 8))
    found = summary(Scored((ScoredToken("^", None), *halves), 8, first_bits=None))
    assert found == pytest.approx((2, 4.0, 2**2, 0.5))
    assert summary(Scored((), 0)) is None


HALF, QUARTER, EIGHTH = math.log(0.5), math.log(0.25), math.log(0.125)


@pytest.mark.parametrize(
    "settings, shares, is_exact",
    [
        ((1, 0, 1), [0.5, 0.25, 0.125], True),
        ((0, 0, 1), [1, 0, 0], True),
        ((1, 2, 1), [2 / 3, 1 / 3, 0], True),
        ((0.5, 2, 1), [4 / 5, 1 / 5, 0], True),  # squares: 1/4 and 1/16
        ((2, 2, 1), [2**0.5 / (1 + 2**0.5), 1 / (1 + 2**0.5), 0], True),
        ((1, 0, 0.5), [1, 0, 0], True),
        ((1, 0, 0.6), [2 / 3, 1 / 3, 0], True),  # the one that crosses it stays
        ((1, 3, 0.9), [4 / 7, 2 / 7, 1 / 7], True),
        ((1, 0, 0.95), [0.5 / 0.95, 0.25 / 0.95, 0.125 / 0.95], False),  # unknown ones stay, too
        ((0.5, 0, 1), [16 / 21, 4 / 21, 1 / 21], False),
        ((1, 50, 1), [4 / 7, 2 / 7, 1 / 7], False),
    ],
)
def test_what_sampling_leaves(settings, shares, is_exact):
    found = after_sampling([HALF, QUARTER, EIGHTH], *settings)
    assert found[0] == pytest.approx(shares) and found[1] == is_exact


def test_what_sampling_leaves_is_what_it_draws():
    """Against sample(): the share of many draws."""
    from minigpt.inference import request, sampling

    torch.manual_seed(0)
    logits = torch.randn(1, 20)
    asked = request.Request([0], temperature=0.7, top_k=6, top_p=0.8)
    generators = [torch.Generator().manual_seed(i) for i in range(4000)]
    n = len(generators)
    drawn = sampling.sample(logits.expand(n, -1), [asked] * n, generators, [[0]] * n)
    values, order = logits[0].log_softmax(-1).sort(descending=True)
    shares, is_exact = after_sampling(values.tolist(), 0.7, 6, 0.8)
    assert is_exact
    for number, share in zip(order.tolist(), shares, strict=True):
        assert drawn.count(number) / n == pytest.approx(share, abs=0.03)


def test_half_characters_and_what_cannot_be_seen_are_codes():
    assert label("黄".encode()) == "黄" and label(b" a\n") == " a\n"
    assert label("黄".encode()[:2]) == "⟨E9 BB⟩"
    assert label(b"\x84a\xe9") == "⟨84⟩a⟨E9⟩"
    assert label(b"\x00") == "⟨U+0000⟩" and visible("\u202e\ufffd") == "⟨U+202E⟩⟨?⟩"


def test_cuts_side_by_side(byte_tokenizer):
    text = "黄河"
    found = {cut.names: cut for cut in cuts(text, ("own", byte_tokenizer))}
    assert list(found) == ["zh", "gpt2", "own"]
    assert [name for _, name in found["zh"].tokens] == ["黄", "河"]
    assert [number for number, _ in found["own"].tokens] == list(text.encode())
    assert found["own"].tokens[0][1] == "⟨E9⟩"
    assert [cut.names for cut in cuts(text, ("run", load_tokenizer("zh")))] == ["zh = run", "gpt2"]


# -- a local run and our own server ----------------------------------------------------------------


def logprobs_of(model, ids, n_vocab):
    """From a plain forward pass: (T, n_vocab)."""
    with torch.no_grad():
        return model.logits(model(torch.tensor([ids])))[0, :, :n_vocab].log_softmax(-1)


def test_the_probabilities_of_an_answer_are_the_models(local, model, byte_tokenizer):
    scored = scores_of(local).answer("ab", SETTINGS)
    ids = [*b"ab", byte_tokenizer.answer_mark]
    assert 0 < len(scored.tokens) <= 5
    for token in scored.tokens:
        expected = logprobs_of(model, ids, byte_tokenizer.n_vocab)[-1]
        best, number = expected.max(-1)
        assert token.logprob == pytest.approx(best.item(), abs=1e-4)
        assert token.top[0] == (token.label, token.logprob) and len(token.top) == 20
        ids.append(number.item())


def test_a_text_costs_what_the_evaluation_says(model, byte_tokenizer):
    """The rows of padding count in the loss, and are as likely as others in a model at random: so
    they count in this engine."""
    rows = model.config.padded_vocab_size
    with local_run(model, byte_tokenizer, rows) as local:
        found = summary(scores_of(local).text(TEXT))
    expected = text_bits(model, text_passages(byte_tokenizer, [TEXT]), rows)
    assert found.counted == expected["tokens"] > 2 * 16
    assert found.bits == pytest.approx(expected["bits"], rel=1e-5)
    assert found.bits_per_char == pytest.approx(expected["bits_per_char"], rel=1e-5)
    assert found.perplexity == pytest.approx(2 ** (expected["bits"] / expected["tokens"]), rel=1e-5)


def test_a_text_of_one_token(local, byte_tokenizer):
    scored = scores_of(local).text("a")
    assert summary(scored).bits == pytest.approx(math.log2(byte_tokenizer.n_vocab))


def test_our_server_sends_the_same(local, server):
    here, there = scores_of(local), scores_of(server)
    mine, theirs = here.answer("ab", SETTINGS), there.answer("ab", SETTINGS)
    assert [token.label for token in mine.tokens] == [token.label for token in theirs.tokens]
    for one, other in zip(mine.tokens, theirs.tokens, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        # special ids have another name there
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-4)
    text = "黄河ab"
    mine, theirs = here.text(text), there.text(text)
    assert [token.label for token in theirs.tokens[:3]] == ["⟨E9⟩", "⟨BB⟩", "⟨84⟩"]
    first, *rest = summary(mine).bits - mine.first_bits, summary(theirs).bits
    assert first == pytest.approx(rest[0], rel=1e-4) and theirs.first_bits is None


# -- servers that do not ---------------------------------------------------------------------------


@contextlib.contextmanager
def answering(status, answer):
    """An Endpoint whose server gives one answer to everything; `asked` are the bodies."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            chosen = answer(asked[-1]) if callable(answer) else (status, answer)
            data = json.dumps(chosen[1]).encode()
            self.send_response(chosen[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield Endpoint("theirs", f"http://127.0.0.1:{httpd.server_port}", "m"), asked
    finally:
        httpd.shutdown()
        httpd.server_close()


def chat(logprobs):
    return dict(choices=[dict(message=dict(content="好"), logprobs=logprobs)])


ENTRY = dict(token="好", logprob=-1.0, bytes=[229, 165, 189], top_logprobs=[])
NONSENSE = [
    None,
    {},
    dict(content=None),
    dict(content=[None]),
    dict(content=[{**ENTRY, "logprob": "x"}]),
    dict(content=[{**ENTRY, "logprob": True}]),
    dict(content=[{**ENTRY, "bytes": [999]}]),
    dict(content=[{**ENTRY, "bytes": None, "token": 3}]),
    dict(content=[{**ENTRY, "top_logprobs": [1]}]),
]


@pytest.mark.parametrize("logprobs", NONSENSE)
def test_a_server_without_probabilities(logprobs):
    server = answering(200, chat(logprobs))
    with server as (endpoint, _), pytest.raises(EndpointError) as caught:
        scores_of(endpoint).answer("问", SETTINGS)
    assert caught.value.kind == "no logprobs"


@pytest.mark.parametrize(
    "status, answer",
    [
        (404, {}),
        (200, dict(choices=[dict(text="", logprobs=None)])),
        (200, dict(choices=[dict(text="其他", logprobs=dict(tokens=["其"]))])),
        (400, dict(error=dict(message="echo is not supported", param="echo"))),
    ],
)
def test_a_server_that_scores_no_texts(status, answer):
    with answering(status, answer) as (endpoint, _), pytest.raises(EndpointError) as caught:
        scores_of(endpoint).text("问题")
    assert caught.value.kind == "no echo"


def test_a_server_that_takes_few_alternatives():
    def answer(body):
        if body["top_logprobs"] > 5:
            return 400, dict(error=dict(message="top_logprobs: at most 5", param="top_logprobs"))
        return 200, chat(dict(content=[ENTRY]))

    with answering(200, answer) as (endpoint, asked):
        scored = scores_of(endpoint).answer("问", {**SETTINGS, "repetition_penalty": 1.0})
    assert [token.label for token in scored.tokens] == ["好"]
    assert [body["top_logprobs"] for body in asked] == [20, 5] and not asked[0]["stream"]
    assert "repetition_penalty" in scored.unused  # a cautious few until its fields are known


# -- the page --------------------------------------------------------------------------------------


def test_hostile_texts_are_escaped():
    bad = '<img src=x onerror="alert(1)">'
    token = ScoredToken(visible(bad), -1.0, ((visible(bad), -1.0),))
    shown = scored_text(ENGLISH, Scored((token,), 9, unused=(bad,)), SETTINGS)
    shown += cut_texts(ENGLISH, [Cut(bad, ((1, visible(bad)),)), Cut("b", problem=bad)], 3)
    assert "<img" not in shown and shown.count("&lt;img") >= 6


@pytest.fixture
def tab(local, server):
    arena = Arena(Endpoints([local, server]), None)
    with gr.Blocks():
        yield TokensTab(PageContext(arena, [], Voters(b"k"), VisitorLimits(1000)))


def event(tab, handler, text, model="own"):
    values = {each: each.value for each in tab.sampling.components}
    return handler({**values, tab.model: model, tab.text: text}, Request())[tab.result]


@pytest.mark.parametrize("name", ["own", "lab"])
def test_the_tab_shows_tokens(tab, name):
    tab.context.limits = VisitorLimits(1000)
    shown = event(tab, tab.score, "黄河", name)
    assert shown.count('tabindex="0"') == 6 and "⟨E9⟩" in shown and "\ufffd" not in shown
    assert "perplexity" in shown and "bits of surprise" in shown
    assert 'tabindex="0"' in event(tab, tab.answer, "ab", name)
    assert event(tab, tab.cut, "黄河", name).count("<h4>") == (3 if name == "own" else 2)


def test_the_tab_says_what_is_wrong(tab):
    assert "empty" in event(tab, tab.score, "  ")
    assert "at most" in event(tab, tab.score, "长" * (MAX_TEXT_CHARS + 1))
    assert "no endpoint" in event(tab, tab.answer, "a", "gone")
    assert ENGLISH["no_question"] in tab.from_chat(Request())[tab.result]


def test_a_text_is_bounded():
    check_text("长" * MAX_TEXT_CHARS)
    with pytest.raises(UserError):
        check_text("长" * (MAX_TEXT_CHARS + 1))
    assert CHINESE.keys() == ENGLISH.keys()
