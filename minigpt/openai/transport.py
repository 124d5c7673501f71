"""HTTP requests to a server's API, for both clients: bounded in time and size, ended from any
thread, and whatever goes wrong is an ApiError.

    transport = Transport("https://api.example.com/v1")
    with transport.exchange("POST", "/v1/chat/completions", body, key=key) as response:
        for data in response.chunks(): …

A redirect is not followed: a key goes to the address that it was given with and to no other.
"""

import contextlib
import http.client
import ipaddress
import json
import os
import selectors
import ssl
import threading
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

import certifi

from minigpt.common.errors import UserError
from minigpt.common.urls import is_local
from minigpt.openai.errors import ApiError, error_text, retry_after
from minigpt.openai.safe_http import ANYWHERE, CheckedConnection, Forbidden, ProxyError, UnknownHost

_PIECE = 1 << 16  # bytes that one read asks for
_ERROR_BYTES = 1 << 16  # of an HTTP error's body


@dataclass(frozen=True)
class Caps:
    """How much an answer may cost: seconds to connect, of silence, and in all; bytes as they come
    over the wire (in a stream some 200 for a token)."""

    connect_seconds: float = 5.0
    idle_seconds: float = 60.0
    total_seconds: float = 600.0
    max_bytes: int = 4 << 20


class Response:
    """An HTTP answer with status 200, which is read once."""

    def __init__(self, raw, max_bytes):
        self._raw, self._max_bytes = raw, max_bytes

    @property
    def content_type(self):
        """Such as "application/json"; "" where it has none."""
        return self._raw.headers.get_content_type() if "Content-Type" in self._raw.headers else ""

    def chunks(self):
        """Yield the body's bytes as they come. ApiError beyond max_bytes."""
        left = self._max_bytes
        while data := self._raw.read1(_PIECE):
            left -= len(data)
            if left < 0:
                size = f"{self._max_bytes / 2**20:.3g} MB"
                raise ApiError("too long", f"it sent more than {size}")
            yield data
        if self._raw.length:  # it said that it would send more
            raise http.client.IncompleteRead(b"", self._raw.length)

    def read(self):
        """The whole body."""
        return b"".join(self.chunks())


class Transport:
    """Requests to the server of `url`. Any number of threads may use it.

    allowed: networks that may be connected to (safe_http.Allowed). proxy: of http://host:port, or
    None. keep: how many idle connections are kept; 0: each request has its own. ca_bundle: a file
    of certificates to trust instead of the system's.
    """

    def __init__(self, url, *, allowed=ANYWHERE, proxy=None, keep=0, ca_bundle=None):
        self._url, self._allowed, self._proxy, self._keep = urlsplit(url), allowed, proxy, keep
        self._tls = _tls_context(ca_bundle) if self._url.scheme == "https" else None
        self._lock, self._idle = threading.Lock(), []

    def close(self):
        """Close the idle connections; requests that run may finish, and theirs are not kept."""
        with self._lock:
            idle, self._idle, self._keep = self._idle, [], 0
        for connection in idle:
            connection.release()

    @contextlib.contextmanager
    def exchange(self, method, path, body=None, *, key=None, caps=Caps(), started=None):
        """Send a request and yield its Response. ApiError for all that goes wrong, also inside the
        with block; no text of it holds the key.

        body: a JSON value. started(connection): called before anything is sent; its abort() ends
        the exchange from any thread.
        """
        connection = self._take(caps)
        deadline = _Deadline(caps.total_seconds, connection.abort)
        late = ApiError("timeout", f"timeout: it took more than {caps.total_seconds:g} s")
        raw = None
        try:
            if started:
                started(connection)
            raw = self._send(connection, method, path, body, key, caps)
            if raw.status != 200:
                raise _http_error(raw)
            yield Response(raw, caps.max_bytes)
            if deadline.stop():  # a body without a length may seem to be whole
                raise late
        except (ApiError, UserError, http.client.HTTPException, OSError, ValueError) as error:
            problem = late if deadline.stop() else _as_api_error(error, caps)
            raise problem.without(key) from None
        finally:
            is_usable = not deadline.stop() and raw and not raw.will_close and _is_read(raw)
            if raw:
                raw.close()
            self._give_back(connection, is_usable)

    def _send(self, connection, method, path, body, key, caps):
        """The http.client.HTTPResponse, of whatever status."""
        headers = {"Accept": "text/event-stream, application/json"}
        if not self._keep:
            headers["Connection"] = "close"
        if body is not None:
            # As ASCII: a lone surrogate in what a person pasted can be written so, too.
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        if connection.sock is None:
            self._connect(connection, caps)
        connection.sock.settimeout(caps.idle_seconds)
        target, more = connection.request_target(path)
        connection.request(method, target, body, headers | more)
        return connection.getresponse()

    def _connect(self, connection, caps):
        try:
            connection.connect()
        except TimeoutError:
            message = f"no connection in {caps.connect_seconds:g} s"
            raise ApiError("unreachable", message) from None

    def _take(self, caps):
        """A kept connection that is still open, or a new one, which is not connected yet."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return CheckedConnection(
                    *(self._url.scheme, self._url.hostname, self._url.port, self._allowed),
                    *(caps.connect_seconds, caps.idle_seconds),
                    tls=self._tls,
                    proxy=self._proxy,
                )
            if not _has_news(connection.sock):
                return connection
            connection.release()  # the server has closed it

    def _give_back(self, connection, is_usable):
        with self._lock:
            is_kept = is_usable and len(self._idle) < self._keep
            if is_kept:
                self._idle.append(connection)
        if not is_kept:
            connection.release()


def _is_read(raw):
    """Whether an answer was read to its end, so that another one may follow."""
    return raw.length == 0 or raw.isclosed()


class _Deadline:
    """Calls `end` after some seconds, unless stop() comes first. (A socket's timeout starts again
    with every byte.)"""

    def __init__(self, seconds, end):
        self._end, self._lock, self._stopped, self._passed = end, threading.Lock(), False, False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self):
        with self._lock:
            if not self._stopped:
                self._passed = True
                self._end()

    def stop(self):
        """Returns whether the time had passed."""
        self._timer.cancel()
        with self._lock:
            self._stopped = True
            return self._passed


def _has_news(sock):
    """Whether there is something to read on an idle connection: mostly that it was closed."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def _tls_context(ca_bundle):
    try:
        context = ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise UserError(f"{ca_bundle}: no certificates could be read ({error})") from None
    if ca_bundle is None:
        context.load_verify_locations(certifi.where())  # Python on macOS has none of its own
    return context


# -- proxies of the environment --------------------------------------------------------------------


def proxy_of_environment(url):
    """The proxy that the environment names for `url`, or None. None for this machine: the proxies
    in many people's variables are for other machines."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_local(host) or urllib.request.proxy_bypass(parts.netloc) or _is_excepted(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    if proxy and not proxy.lower().startswith("http://"):
        kind = urlsplit(proxy).scheme
        raise UserError(
            f"the environment names a proxy of kind {kind}: expected http://HOST:PORT in "
            f"{parts.scheme}_proxy, or {host} in no_proxy"
        )
    return proxy or None


def _is_excepted(host):
    """Whether no_proxy has a network that holds this address, such as 192.168.0.0/16."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        for entry in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
            with contextlib.suppress(ValueError):
                if "/" in entry and address in ipaddress.ip_network(entry.strip(), strict=False):
                    return True
    return False


# -- what goes wrong -------------------------------------------------------------------------------

# What a connection can raise → its kind and its message. The first that fits counts.
_KINDS = (
    (Forbidden, "forbidden", "{}"),
    (UnknownHost, "unknown host", "{}"),
    (ProxyError, "proxy", "no way through the proxy ({})"),
    (ConnectionRefusedError, "refused", "refused: nothing listens there; is the server running?"),
    (ssl.SSLError, "tls", "no TLS connection ({})"),
    (ConnectionError, "broken off", "it closed the connection"),
    (http.client.IncompleteRead, "broken off", "it ended in the middle of the answer"),
    (OSError, "unreachable", "there is no way to it ({})"),
)


def _as_api_error(error, caps):
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TimeoutError):
        return ApiError("timeout", f"timeout: {caps.idle_seconds:g} s of silence")
    for kinds, kind, message in _KINDS:
        if isinstance(error, kinds):
            return ApiError(kind, message.format(error))
    return ApiError("garbage", f"it does not speak HTTP ({type(error).__name__})")


def _http_error(raw):
    """The ApiError of an answer with another status than 200."""
    try:
        said = error_text(raw.read(_ERROR_BYTES))
    except (OSError, http.client.HTTPException):
        said = ""
    moved = " (another address, which is not followed)" if 300 <= raw.status < 400 else ""
    message = f"it answered {raw.status} {raw.reason}{moved}: {said}"
    wait = retry_after(raw.headers.get("Retry-After"))
    return ApiError(f"http {raw.status}", message, raw.status, said + moved, wait)
