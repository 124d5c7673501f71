"""Probabilities of tokens: of an answer that a model writes, and of a text that it reads.

    scores = scores_of(endpoint)                     # a local run or a server, alike
    answer = scores.answer("黄河发源于", settings)      # a Scored
    reading = scores.text("黄河发源于青藏高原。")
    summary(reading).perplexity

A server sends them as OpenAI does (logprobs, top_logprobs; echo for a text that it reads). What it
sends is untrusted: numbers are checked, counts are bounded. All failures are EndpointErrors.
"""

import math
import re
import time
from dataclasses import replace
from typing import NamedTuple

from minigpt.arena.access.sessions import message
from minigpt.arena.endpoints import EndpointError
from minigpt.arena.i18n import ArenaError
from minigpt.arena.local_runs import LocalRun
from minigpt.arena.window.labels import label, visible
from minigpt.common.errors import UserError
from minigpt.inference.request import MOST_LOGPROBS, Request
from minigpt.openai.answers import decode, read_json
from minigpt.tokenizer.tokenizer import load_tokenizer

MAX_TEXT_CHARS = 2000  # of a text whose tokens are shown
MAX_TOKENS = 2000  # that are shown; a token of foreign text may be a byte
MAX_ANSWER_TOKENS = 300
FEW_LOGPROBS = 5  # what a server accepts that refuses MOST_LOGPROBS
REFUSED = ("http 400", "http 422")
UNSUPPORTED = ("support", "allow", "permit", "unknown", "unrecogni", "extra", "不支持")
NO_ROUTE = ("http 404", "http 405", "http 501")


class ScoredToken(NamedTuple):
    """A token as label() writes it, its log-probability in nats (None: it has no context), and the
    likeliest tokens at its place, (label, logprob), best first."""

    label: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


class Scored(NamedTuple):
    """The tokens of a text. characters: of the text. first_bits: the cost of the first token, which
    has no context; 0 where all have one, None where it is unknown and not counted. unused: settings
    that the server does not take."""

    tokens: tuple[ScoredToken, ...]
    characters: int
    first_bits: float | None = 0.0
    unused: tuple[str, ...] = ()


class Summary(NamedTuple):
    """counted: tokens whose cost is known. bits: their sum. perplexity: 2 ** (bits / counted)."""

    counted: int
    bits: float
    perplexity: float
    bits_per_char: float


def summary(scored):
    """The Summary of a Scored; None if no token has a known cost."""
    costs = [bits(token) for token in scored.tokens if token.logprob is not None]
    if scored.first_bits and len(costs) < len(scored.tokens):
        costs.append(scored.first_bits)
    if not costs:
        return None
    total = math.fsum(costs)
    per_token = total / len(costs)
    perplexity = 2**per_token if per_token < 1000 else math.inf
    return Summary(len(costs), total, perplexity, total / max(1, scored.characters))


def bits(token):
    """The surprise of a token: −log2 of its probability."""
    return -token.logprob / math.log(2)


def after_sampling(logprobs, temperature, top_k, top_p):
    """([share, …], is_exact): what temperature, top_k and top_p, in this order, leave of the
    likeliest tokens; 0 for one that is dropped.

    logprobs: of the likeliest tokens, best first. The tokens below them are unknown. They do not
    matter where top_k drops them, and their sum is known at temperature 1; in other cases they
    count as nothing, so the shares are estimates and is_exact is False.
    """
    n = len(logprobs)
    if not n:
        return [], True
    if temperature == 0:
        return [1.0] + [0.0] * (n - 1), True
    is_cut = 0 < top_k <= n
    kept = logprobs[:top_k] if is_cut else logprobs
    weights = [math.exp((each - kept[0]) / temperature) for each in kept]
    total, is_exact = sum(weights), is_cut
    if temperature == 1 and not top_k:
        total, is_exact = math.exp(-kept[0]), True  # of all tokens the probabilities sum to 1
    shares, reached = [], 0.0
    for weight in weights:
        # top_p keeps all up to the token that crosses it.
        shares.append(weight / total if not shares or reached < top_p else 0.0)
        reached += shares[-1]
    if top_p < 1:
        if reached < top_p and not is_cut:  # some of the unknown ones are kept, too
            is_exact, reached = False, top_p
        shares = [share / reached for share in shares]
    return shares + [0.0] * (n - len(shares)), is_exact


# -- who scores ------------------------------------------------------------------------------------


def scores_of(endpoint, seconds=120.0):
    """What scores texts with an Endpoint or a LocalRun. seconds: the longest that one may take; of
    a server its Caps decide."""
    if isinstance(endpoint, LocalRun):
        return LocalScores(endpoint, seconds)
    return ServerScores(endpoint)


def check_text(text):
    """UserError if a text is empty or too long to be shown token by token."""
    if not text.strip():
        raise ArenaError("text_empty")
    if len(text) > MAX_TEXT_CHARS:
        raise ArenaError("text_long", n=len(text), most=MAX_TEXT_CHARS)


class LocalScores:
    """Probabilities of a LocalRun, from its engine's logits."""

    def __init__(self, local, seconds):
        self._local, self._deadline = local, time.monotonic() + seconds
        self._names = {number: name for name, number in local.tokenizer.special.items()}
        self._labels = {}

    def answer(self, question, settings):
        """The answer to a question, Scored. settings: as EndpointStream.stream()."""
        given = {name: value for name, value in settings.items() if name in self._local.takes}
        given["max_tokens"] = min(given.get("max_tokens") or 225, MAX_ANSWER_TOKENS)
        request = self._local.request([message("user", question)], given)
        ticket = self._run(replace(request, logprobs=MOST_LOGPROBS))
        tokens = tuple(self._scored(token) for token in ticket.tokens)
        return Scored(tokens, len(self._local.tokenizer.decode(ticket.ids)))

    def text(self, text):
        """The text as the model reads it, Scored: in the windows of evaluations-perplexity.py, so
        that the bits are the same. The first token costs log2 of the vocabulary."""
        from minigpt.evaluation.perplexity import windows  # here: it loads PyTorch

        engine = self._local.host.engines[self._local.name]
        ids = list(self._local.tokenizer.encode(text))
        if len(ids) > MAX_TOKENS:
            raise ArenaError("text_tokens", n=len(ids), most=MAX_TOKENS)
        tokens = [ScoredToken(self._label(number), None) for number in ids[:1]]
        for start, stop, scored in windows(len(ids), 0, engine.block_size):
            part = Request(ids[start:stop], 0, logprobs=MOST_LOGPROBS, echo=True)
            read = self._run(part).prompt_tokens[scored - start :]
            tokens += [self._scored(token) for token in read]
        return Scored(tuple(tokens), len(text), math.log2(engine.n_vocab))

    def _run(self, request):
        """The engine's Ticket of a request that has ended."""
        stream = self._local.submit(request)
        try:
            for _ in stream:
                if time.monotonic() > self._deadline:
                    raise EndpointError("timeout", f"{self._local.name}: it took too long")
        finally:
            stream.cancel()
        if stream.finish_reason not in ("stop", "length"):
            why = stream.error or "its host was stopped"
            raise EndpointError(stream.finish_reason, f"{self._local.name}: {why}")
        return stream.ticket

    def _scored(self, token):
        top = tuple((self._label(number), logprob) for number, logprob in token.top)
        return ScoredToken(self._label(token.id), token.logprob, top)

    def _label(self, number):
        if number not in self._labels:
            data = self._local.tokenizer.decode_bytes([number])
            name = self._names.get(number, number)
            self._labels[number] = label(data) if data else f"⟨{name}⟩"
        return self._labels[number]


class ServerScores:
    """Probabilities of an Endpoint, as far as it sends them."""

    def __init__(self, endpoint):
        self._endpoint = endpoint

    def answer(self, question, settings):
        """As LocalScores.answer()."""
        takes = self._endpoint.takes
        given = {name: value for name, value in settings.items() if name in takes}
        given["max_tokens"] = min(given.get("max_tokens") or 225, MAX_ANSWER_TOKENS)
        body = self._endpoint.body([message("user", question)], given, None)
        body.pop("stream_options", None)
        body |= dict(stream=False, logprobs=True, top_logprobs=MOST_LOGPROBS)
        answer = self._ask("/chat/completions", body, "top_logprobs")
        try:
            choice = answer["choices"][0]
            entries = choice["logprobs"]["content"]
            tokens = tuple(_chat_token(entry) for entry in entries[:MAX_TOKENS])
            characters = len(choice["message"]["content"] or "")
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            tokens = None
        if tokens is None:
            raise self._no_logprobs()
        unused = tuple(sorted(settings.keys() - given.keys()))
        return Scored(tokens, characters, unused=unused)

    def text(self, text):
        """As LocalScores.text(), by the completions route with echo. The first token's cost is
        unknown."""
        body = dict(model=self._endpoint.body([], {}, None)["model"], prompt=text)
        body |= dict(max_tokens=0, temperature=0, echo=True, logprobs=MOST_LOGPROBS)
        answer = self._ask("/completions", body, "logprobs")
        try:
            choice = answer["choices"][0]
            is_echo = choice["text"].startswith(text)
            tokens = _completion_tokens(choice["logprobs"]) if is_echo else None
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            tokens = None
        if not tokens:
            raise self._no_logprobs("no echo")
        return Scored(tokens, len(text), None)

    def _ask(self, route, body, count):
        """The JSON that the server answers. count: the field with the number of alternatives, which
        becomes FEW_LOGPROBS where the server refuses more."""
        try:
            return self._send(route, body)
        except EndpointError as error:
            if error.kind not in (*REFUSED, *NO_ROUTE):
                raise
            if error.kind in NO_ROUTE and route == "/completions":
                raise self._no_logprobs("no echo") from None
        try:
            return self._send(route, {**body, count: FEW_LOGPROBS})
        except EndpointError as error:
            if not _is_unsupported(error):
                raise
            kind = "no echo" if route == "/completions" else "no logprobs"
            raise self._no_logprobs(kind) from None

    def _send(self, route, body):
        path, caps = self._endpoint.api(route), self._endpoint.caps
        with self._endpoint.exchange("POST", path, caps, body) as response:
            return read_json(decode(response.read()))

    def _no_logprobs(self, kind="no logprobs"):
        return EndpointError(kind, f"{self._endpoint.name}: it sends no probabilities")


def _is_unsupported(error):
    """Whether a server says that it knows no logprobs, or no echo."""
    said = error.cause.said.lower() if error.cause else ""
    names = any(name in said for name in ("logprob", "echo"))
    return names and any(word in said for word in UNSUPPORTED)


def _chat_token(entry):
    top = [(_entry_label(each), _logprob(each["logprob"])) for each in entry["top_logprobs"]]
    return ScoredToken(_entry_label(entry), _logprob(entry["logprob"]), _best_first(top))


def _entry_label(entry):
    """The label of a token in the format of chat answers."""
    data = entry.get("bytes")
    return label(bytes(data)) if data else _label_of(entry["token"])


def _completion_tokens(logprobs):
    """ScoredTokens in the format of completions."""
    columns = (logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs"))
    tokens = []
    for name, value, top in zip(*columns, strict=True):
        best = [(_label_of(each), _logprob(p)) for each, p in (top or {}).items()]
        value = None if value is None else _logprob(value)
        tokens.append(ScoredToken(_label_of(name), value, _best_first(best)))
        if len(tokens) == MAX_TOKENS:
            break
    return tuple(tokens)


def _label_of(name):
    """The label of a token that a server names; bytes that are no whole character are written
    as bytes:\\xe4\\xb8."""
    codes = re.fullmatch(r"bytes:((?:\\x[0-9a-f]{2}){1,64})", name)
    return label(bytes.fromhex(codes[1].replace("\\x", ""))) if codes else visible(name)


def _best_first(top):
    return tuple(sorted(top[: 2 * MOST_LOGPROBS], key=lambda each: -each[1])[:MOST_LOGPROBS])


def _logprob(value):
    """A log-probability that a server sent; ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError
    return max(-10_000.0, min(0.0, float(value)))


# -- how a text is cut -----------------------------------------------------------------------------


class Cut(NamedTuple):
    """A text in the tokens of one vocabulary. names: of the vocabulary, and of the run that has it;
    tokens: (id, label); problem: why there are none, or ""."""

    names: str
    tokens: tuple[tuple[int, str], ...] = ()
    problem: str = ""


def cuts(text, own=None):
    """[Cut, …] of a text by zh, gpt2 and, where it is another one, a run's vocabulary. own: the
    name and the Tokenizer of the run, or None."""
    found, names = {}, {}
    for name in ("zh", "gpt2"):
        try:
            tokenizer = load_tokenizer(name)
        except UserError as error:
            names[name], found[name] = name, Cut(name, problem=str(error))
            continue
        names[tokenizer.hash], found[tokenizer.hash] = name, tokenizer
    if own:
        run, tokenizer = own
        is_shipped = tokenizer.hash in found
        names[tokenizer.hash] = f"{names[tokenizer.hash]} = {run}" if is_shipped else run
        found.setdefault(tokenizer.hash, tokenizer)
    return [
        each if isinstance(each, Cut) else _cut(names[key], each, text)
        for key, each in found.items()
    ]


def _cut(names, tokenizer, text):
    ids = list(tokenizer.encode(text))
    return Cut(names, tuple((n, label(tokenizer.decode_bytes([n]))) for n in ids))
