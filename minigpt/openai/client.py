"""Completions: whole answers of a server that speaks OpenAI's HTTP API, one request each.

    client = Client("http://localhost:1234/v1", key=None, timeout=120)
    client.models()                          # ["qwen3-8b", …]
    answer = client.ask({"model": "qwen3-8b", "messages": messages, "max_tokens": 2048})
    answer.text, answer.cut, answer.completion_tokens

What goes wrong is a Failure (worth another try), Refused (this question alone) or Useless (this
server), and says what the server said: bounded, printable, without the key. The server is the
user's own choice; minigpt/arena/endpoints.py streams from those that strangers name.
"""

import email.utils
import http.client
import json
import math
import os
import re
import socket
import threading
import time
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.common.report import one_line
from minigpt.common.urls import is_local

CONNECT_SECONDS = 10.0
MODELS_SECONDS = 30.0  # to tell what it serves
MAX_BYTES = 8 << 20  # of one answer, what a model thinks beforehand included
_PIECE = 1 << 16  # bytes that one read asks for
_READ = 1 << 14  # characters of what a server says that are looked at
_NAMES = 20  # of models, in a message


class Refused(UserError):
    """This question has no answer, others may: it is too long, or not wanted."""


class Failure(Exception):
    """What may go well another time. kind: "timeout", "refused", "http 429", …; overload: whether
    fewer questions at a time may help; retry_after: seconds that the server asks for, or None."""

    def __init__(self, kind, message, overload=False, retry_after=None):
        super().__init__(message)
        self.kind, self.overload, self.retry_after = kind, overload, retry_after


class Useless(Exception):
    """Why a server cannot answer any question: its key, its model, its address."""


class _Unfit(Exception):
    """The name of a field that the server does not take."""


class Answer(NamedTuple):
    """What a server wrote. cut: it had no tokens left; tokens: None where it does not count them;
    seconds: from asking to its end; server: the client's name."""

    text: str
    cut: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    server: str


# -- the client ------------------------------------------------------------------------------------

_RETRIED = {408, 409, 425, 429}  # and redirects, and all from 500 on: no fault of the question
_OVERLOAD = {408, 429, 503, 504}
# Fields that not every server takes → what one says that wants to be asked without it.
_FIELDS = {
    "response_format": re.compile(r"response.?format|json.?schema|structured|grammar|guided", re.I),
    "max_tokens": re.compile(r"use\W+max_completion_tokens", re.I),
    "seed": re.compile(r"\bseed\b", re.I),
}
_NO_MODEL = re.compile(
    r"\bmodel\b.{0,100}?\b(?:not (?:exist|found)|does not exist)\b|模型.{0,20}不存在"
    r"|\b(?:invalid|unknown|no such|not a valid|failed to load) model\b|\bno models? loaded",
    re.I,
)
_NO_KEY = re.compile(  # with status 400: Google's way
    r"\b(?:invalid|incorrect|missing)\b.{0,20}\bapi.?key|\bapi.?key\b.{0,20}\bnot valid\b",
    re.I,
)
_UNWELCOME = re.compile(r"moderat|flagged|content.?(?:policy|filter)|safety|inappropriate", re.I)


class Client:
    """A server's API at `url` (…/v1). Any number of threads may use it.

    name: how messages call it. connections: how many are kept. timeout: seconds for an answer, from
    its first byte to its last. warn(text): told when the server has to be asked another way.
    """

    def __init__(self, url, key=None, name=None, *, connections=4, timeout=120.0, warn=print):
        self.name, self._url, self._key = name or url, url, key
        self._timeout, self._warn = timeout, warn
        self._lock, self._left_out = threading.Lock(), frozenset()
        self._session = session = requests.Session()
        # The environment is read once and in part: a password in ~/.netrc would replace the key.
        # The proxies that many people's variables name are for other machines than this one.
        session.trust_env = False
        local = is_local(urlsplit(url).hostname or "")
        session.proxies = {} if local else requests.utils.get_environ_proxies(url)
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
        session.headers.update({"Accept": "application/json", "Content-Type": "application/json"})
        if key is not None:
            session.headers["Authorization"] = f"Bearer {key}"
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(pool_maxsize=connections, max_retries=0))

    def close(self):
        """Close the connections that nobody uses; what runs may finish."""
        self._session.close()

    def models(self):
        """The names of what it serves; None where it does not tell. Raises Failure, Useless."""
        seconds = min(MODELS_SECONDS, self._timeout)
        status, headers, data = self._exchange("GET", "/models", None, seconds)
        if status in (404, 405, 501):
            return None
        if status != 200:
            raise self._error(status, headers, data, {})
        try:
            names = [model["id"] for model in self._read(_read_json, data)["data"]]
        except (KeyError, TypeError):
            return None
        return [self._shown(name, 80) for name in names if isinstance(name, str)]

    def ask(self, question):
        """The Answer to `question`, the fields of a chat completion. A field that the server turns
        out not to take (response_format, seed, the name max_tokens) is left out. Raises Failure,
        Refused, Useless."""
        left_out = self._left_out
        while True:
            try:
                answer = self._post(_without(question, left_out))
            except _Unfit as unfit:
                left_out = left_out | {str(unfit)}
                continue
            self._remember(left_out)
            return answer

    def _remember(self, left_out):
        """A question was answered without these fields, so the next ones are asked without."""
        with self._lock:
            news = left_out - self._left_out
            self._left_out |= news
        for name in sorted(news):
            self._warn(f"{self.name}: it does not take {name}; it is asked without from now on")

    def _post(self, body):
        began = time.monotonic()
        sent = json.dumps(body).encode()  # as ASCII: a lone surrogate can be spelled so, too
        status, headers, data = self._exchange("POST", "/chat/completions", sent, self._timeout)
        if status != 200:
            raise self._error(status, headers, data, body)
        said = self._read(_read_json, data)
        if isinstance(said, dict) and said.get("error"):  # some gateways' way
            code = said["error"].get("code") if isinstance(said["error"], dict) else None
            is_status = type(code) is int and 400 <= code < 600
            raise self._error(code if is_status else 500, headers, data, body)
        answer = self._read(_read_answer, said)
        return answer._replace(seconds=time.monotonic() - began, server=self.name)

    def _exchange(self, method, path, data, seconds):
        """(status, headers, the bytes of the answer). Raises Failure."""
        late = Failure("timeout", f"timeout after {seconds:g} s", overload=True)
        with _Deadline(seconds) as deadline:
            try:
                with self._session.request(
                    *(method, self._url + path),
                    data=data,
                    stream=True,
                    timeout=(min(CONNECT_SECONDS, seconds), seconds),
                    allow_redirects=False,
                ) as response:
                    content = b"".join(_pieces(response))
            except _ERRORS as error:
                raise late if deadline.passed else self._failure(error, late) from None
            if deadline.passed:  # what has no length may seem to be whole
                raise late
            return response.status_code, response.headers, content

    def _failure(self, error, late):
        """The Failure that anything raised on the way is; `late`: that of an answer too late."""
        causes = list(_causes(error))
        for kinds, kind, message in _KINDS:
            cause = next((cause for cause in causes if isinstance(cause, kinds)), None)
            if cause is not None:
                return Failure(kind, self._shown(message.format(cause))) if kind else late
        return Failure("garbage", self._shown(f"no HTTP answer ({error})"))

    def _error(self, status, headers, data, body):
        """The exception that an answer with an error is."""
        said = _complaint(data)
        message = self._shown(f"{status} {said}".strip())
        no_key = status == 401 or (status == 400 and _NO_KEY.search(said))
        if no_key or (status == 403 and not _UNWELCOME.search(said)):
            wants = "it wants a key: name its variable in api_key_env"
            return Useless(f"{'it refuses the key' if self._key else wants} ({message})")
        if status == 402:
            return Useless(f"it wants to be paid ({message})")
        if status in (400, 422, 500, 501):
            for name, pattern in _FIELDS.items():
                if name in body and pattern.search(said):
                    return _Unfit(name)
        if status in _RETRIED or status >= 500 or status < 400:
            moved = " (another address, which is not followed)" if 300 <= status < 400 else ""
            wait = _retry_after(headers.get("Retry-After"))
            return Failure(f"http {status}", message + moved, status in _OVERLOAD, wait)
        if status in (404, 405) or _NO_MODEL.search(said):
            return Useless(self._unknown(message, body))
        return Refused(f"{self.name}: {message}")

    def _unknown(self, message, body):
        """Why there is no such route, or no such model."""
        names = None
        with suppress(Failure, Useless):
            names = self.models()
        if names:
            return f"it has no model {body.get('model')}, but {listed(names)} ({message})"
        return f"no model {body.get('model')}, or no OpenAI API at this address ({message})"

    def _read(self, read, data):
        """read(data), and what is not understood as a Failure."""
        try:
            return read(data)
        except _Garbage as error:
            raise Failure("garbage", self._shown(str(error))) from None

    def _shown(self, text, *most):
        """What is told of a server's words: without the key, should it repeat it."""
        return one_line(text if self._key is None else text.replace(self._key, "(the key)"), *most)


def _without(question, left_out):
    """The question as a server takes it: max_tokens has another name, the rest no substitute."""
    body = {name: value for name, value in question.items() if name not in left_out}
    if "max_tokens" in question and "max_tokens" in left_out:
        body["max_completion_tokens"] = question["max_tokens"]
    return body


def _pieces(response):
    """Yield what an answer holds."""
    left = MAX_BYTES
    for piece in response.iter_content(_PIECE):
        left -= len(piece)
        if left < 0:
            raise _TooLong
        yield piece


# -- what goes wrong on the way --------------------------------------------------------------------


class _Garbage(Exception):
    """What a server sent is nothing that the API has."""


class _TooLong(Exception):
    """An answer has more bytes than it may."""


_ERRORS = (_TooLong, OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError)
# What may be the cause of an error → its kind (None: it took too long) and how it is told. The
# first that fits counts.
_KINDS = (
    (_TooLong, "too long", f"it sent more than {MAX_BYTES >> 20} MB"),
    (requests.ConnectTimeout, "unreachable", f"no connection in {CONNECT_SECONDS:g} s"),
    ((requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError), None, ""),
    (requests.exceptions.ProxyError, "proxy", "no way through the proxy ({})"),
    (requests.exceptions.SSLError, "tls", "no TLS connection ({})"),
    (ConnectionRefusedError, "refused", "refused: nothing listens there; is the server running?"),
    (urllib3.exceptions.NameResolutionError, "unknown host", "the name has no address"),
    (urllib3.exceptions.NewConnectionError, "unreachable", "there is no way to it ({})"),
    (ConnectionError, "broken off", "it closed the connection"),
    (http.client.BadStatusLine, "garbage", "it does not speak HTTP ({})"),
    (urllib3.exceptions.IncompleteRead, "broken off", "it ended in the middle of the answer"),
    (urllib3.exceptions.ProtocolError, "broken off", "it broke off ({})"),
)


def _causes(error):
    """Yield an exception and those that it came of, which libraries wrap in many ways."""
    found, left = set(), [error]
    while left:
        error = left.pop(0)
        if isinstance(error, BaseException) and id(error) not in found:
            found.add(id(error))
            yield error
            left += [error.__cause__, error.__context__, getattr(error, "reason", None)]
            left += error.args


class _Deadline:
    """Ends what this thread exchanges with a server after some seconds. The timeout of a socket
    cannot: it begins anew with every byte."""

    _of_thread = threading.local()

    def __init__(self, seconds):
        self.passed = False
        self._lock, self._socket = threading.Lock(), None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self):
        self._of_thread.deadline = self
        self._timer.start()
        return self

    def __exit__(self, *_):
        self._timer.cancel()
        self._of_thread.deadline = None
        with self._lock:
            self._socket = None

    @classmethod
    def watch(cls, sock):
        """The answer to this thread's request comes through `sock`."""
        deadline = cls._of_thread.deadline
        with deadline._lock:
            deadline._socket = sock

    def _end(self):
        with self._lock:
            self.passed = True
            # There may be none yet; and within a TLS proxy it is of a kind that has no shutdown.
            with suppress(OSError, AttributeError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _Watched:
    def getresponse(self):
        _Deadline.watch(self.sock)
        return super().getresponse()


_WATCHED = {
    HTTPConnection: type("_WatchedHTTP", (_Watched, HTTPConnection), {}),
    HTTPSConnection: type("_WatchedHTTPS", (_Watched, HTTPSConnection), {}),
}


class _Adapter(HTTPAdapter):
    """Makes connections that a _Deadline can end."""

    def get_connection_with_tls_context(self, *args, **keywords):
        pool = super().get_connection_with_tls_context(*args, **keywords)
        pool.ConnectionCls = _WATCHED.get(pool.ConnectionCls, pool.ConnectionCls)
        return pool


# -- what a server says ----------------------------------------------------------------------------


def _read_json(data):
    try:
        return parse_json(data.decode("utf-8-sig", "replace"))
    except ValueError:
        start = data[:_READ].decode("utf-8", "replace")
        raise _Garbage(f"it sent no JSON: {start}") from None


def _read_answer(said):
    """The Answer in a chat completion, seconds and server apart."""
    try:
        choice = said["choices"][0]
        message, reason, usage = choice["message"], choice.get("finish_reason"), said.get("usage")
        text = _joined(message.get("content"))
        cut = reason in ("length", "max_tokens")
        if not (text.strip() or cut):
            # Some servers take all that a model wrote for its thoughts, if it never ends them.
            text = _joined(message.get("reasoning_content") or message.get("reasoning"))
        counts = usage if isinstance(usage, dict) else {}
        tokens = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
        tokens = [n if type(n) is int and 0 <= n < 2**31 else None for n in tokens]
        return Answer(_whole_pairs(text), cut, *tokens, 0.0, "")
    except (AttributeError, KeyError, IndexError, TypeError):
        raise _Garbage(f"it sent no answer: {json.dumps(said)[:_READ]}") from None


def _joined(content):
    """The text of a message's content: a string, a list of parts, or nothing."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = [part if isinstance(part, str) else part.get("text") for part in content]
    return "".join(text for text in texts if isinstance(text, str))


def _whole_pairs(text):
    """Join halves of surrogate pairs, as JSON can spell them; one that stays alone is U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _complaint(data):
    """What the body of an error says, whatever it is."""
    text = data.decode("utf-8", "replace")
    try:
        said = parse_json(text)
    except ValueError:
        return re.sub(r"<[^<>]{0,200}>", " ", text[:_READ])
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    return (said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))[:_READ]


def _retry_after(text):
    """Seconds that a Retry-After header asks for, by a number or an HTTP date; None where it is
    neither, or absent."""
    if text is None:
        return None
    with suppress(ValueError):
        seconds = float(text)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    with suppress(ValueError, OverflowError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def listed(names):
    """Names of models as a message tells them."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more if names else "none"
