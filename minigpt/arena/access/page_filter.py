"""ASGI middleware of the arena's page: allowed routes, size limits, same origin, password.

    app = PageFilter(app, voters, AllowedHosts(), auth="class:SECRET")    # around the page's app

Gradio serves some ninety routes; the page uses a dozen (ROUTES). The filter answers all others
(uploads, files, proxies, streams, recordings, run history, …) with 404, so Gradio never sees them.
A request from another origin gets no CORS headers, and may not POST. At most MAX_BODY_BYTES of a
request are read.
"""

import base64
import hmac
import logging
import re
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from minigpt.arena.access.rate_limit import Backoff, RateLimit, address_key
from minigpt.arena.exports import EXPORTS

MAX_BODY_BYTES = 1 << 18  # a question of MAX_PROMPT_CHARS, each written as \uXXXX, and the settings
COOKIE = "minigpt_voter"
COOKIE_SECONDS = 365 * 24 * 3600

# Method → the paths that the page uses. Everything else is refused, so a new version of Gradio
# cannot open a route. tests/arena/test_page_filter.py compares this with the installed Gradio.
ROUTES = {
    "GET": re.compile(
        r"/|/config|/theme\.css|/favicon\.ico"
        r"|/assets/[\w.@/-]+|/static/[\w.@/-]+"
        r"|/gradio_api/(app_id|queue/data|heartbeat/\w{1,64})"
        rf"|/download/({'|'.join(map(re.escape, EXPORTS))})",
        re.ASCII,
    ),
    # run/predict serves the events without a queue (Stop, Clear); Gradio refuses others there.
    "POST": re.compile(r"/gradio_api/(queue/join|run/predict|cancel|reset)", re.ASCII),
}
ROUTES["HEAD"] = ROUTES["GET"]
PAGE_PARAMETERS = {"__theme", "__lang", "view"}  # of "/"; deep_link and page are removed

# The page loads nothing from other servers, and sends nothing to them.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; connect-src 'self'; frame-ancestors 'self'; "
        "object-src 'none'; base-uri 'self'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

log = logging.getLogger("minigpt")


class PageFilter:
    """ASGI middleware; see the module's docstring.

    app: the ASGI app of the page. voters: the Voters whose cookie "/" sets. hosts: an AllowedHosts
    (minigpt/serving/allowed_hosts.py); pages of the host names that the owner set may POST too,
    because a proxy may change the Host header. auth: "NAME:PASSWORD" for all requests, or "".
    """

    def __init__(self, app, voters, hosts, auth=""):
        self._app, self._voters, self._hosts, self._auth = app, voters, hosts, auth
        self._passwords = Backoff(free=10)
        self._new_voters = RateLimit(burst=60, per_minute=12)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            request = _Request(scope)
            refusal = self._refusal(request)
            body = b"" if refusal else await _read_body(request, receive)
            if body is None:
                refusal = 413, f"a request may have at most {MAX_BODY_BYTES} bytes", {}
            if refusal:
                await _refuse(send, *refusal)
            else:
                send = self._with_headers(request, send)
                await self._app(request.cleaned(), _replayed(body, receive), send)
        else:  # the page uses no WebSocket
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, request):
        """(status, text, headers) for a request that is refused, or None."""
        if not self._hosts.allows(request.host):
            return 403, self._hosts.refusal(request.host), {}
        if self._auth:
            refusal = self._wrong_password(request)
            if refusal:
                return refusal
        routes = ROUTES.get(request.method)
        if routes is None or not routes.fullmatch(request.path):
            return 404, "not found", {}
        if request.method == "POST" and not self._is_same_origin(request):
            origin = ascii(request.header("origin"))[:100]
            return 403, f"a page of {origin} may not send requests to this one", {}
        return None

    def _wrong_password(self, request):
        given = request.header("authorization")
        wait = self._passwords.wait(request.address)
        if given and wait:
            seconds = f"{max(1, round(wait))}"
            return 429, f"wrong passwords: wait {seconds} s", {"Retry-After": seconds}
        if _has_password(given, self._auth):
            self._passwords.succeeded(request.address)
            return None
        if given:  # a browser's first request has none
            self._passwords.failed(request.address)
            log.warning("wrong password for the page from %s", request.address)
        return 401, "expected a name and a password", {"WWW-Authenticate": 'Basic realm="MiniGPT"'}

    def _is_same_origin(self, request):
        """Whether our own page, or no page at all, sent the request."""
        origin = request.header("origin")
        if not origin:
            return request.header("sec-fetch-site") in ("", "same-origin", "none")
        try:
            parts = urlsplit(origin)
            name = parts.hostname or ""
        except ValueError:
            return False
        return parts.netloc.lower() == request.host.lower() or name in self._hosts.given

    def _with_headers(self, request, send):
        """A `send` that adds our headers and the voter's cookie, and removes those of CORS."""
        headers = dict(HEADERS)
        is_new = request.path == "/" and self._voters.id_of(request.cookie(COOKIE)) is None
        if is_new and not self._new_voters.wait(request.address):
            options = f"Max-Age={COOKIE_SECONDS}; Path=/; HttpOnly; SameSite=Lax"
            headers["Set-Cookie"] = f"{COOKIE}={self._voters.new_cookie()}; {options}"

        async def sending(message):
            if message["type"] == "http.response.start":
                kept = [
                    (name, value)
                    for name, value in message.get("headers", ())
                    if not name.lower().startswith(b"access-control-")
                ]
                message = {**message, "headers": [*kept, *_encoded(headers)]}
            await send(message)

        return sending


class _Request:
    """What the filter reads of an ASGI scope."""

    def __init__(self, scope):
        self._scope = scope
        self._headers, hosts = {}, []
        for name, value in scope["headers"]:
            self._headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
            hosts += [value.decode("latin-1")] if name.lower() == b"host" else []
        self.host = ", ".join(hosts)  # two Host headers match no allowed host
        self.method, self.path = scope["method"], scope["path"]
        self.address = address_key((scope.get("client") or [None])[0])

    def header(self, name):
        """The first header of this name, or ""."""
        return self._headers.get(name, "")

    def cookie(self, name):
        """The value of a cookie, or None."""
        try:
            found = SimpleCookie(self.header("cookie")).get(name)
        except CookieError:
            return None
        return found.value if found else None

    def cleaned(self):
        """The scope for Gradio: without Origin, and on "/" only with PAGE_PARAMETERS."""
        headers = [(k, v) for k, v in self._scope["headers"] if k.lower() != b"origin"]
        scope = {**self._scope, "headers": headers}
        if self.path == "/":
            pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
            kept = [(name, value) for name, value in pairs if name in PAGE_PARAMETERS]
            scope["query_string"] = urlencode(kept).encode()
        return scope


def _has_password(header, auth):
    """Whether an Authorization header is HTTP Basic with this NAME:PASSWORD."""
    scheme, _, given = header.partition(" ")
    wanted = base64.b64encode(auth.encode()).decode()
    return scheme.lower() == "basic" and hmac.compare_digest(given.encode(), wanted.encode())


async def _read_body(request, receive):
    """The body of a request; None if it is longer than MAX_BODY_BYTES."""
    if request.method != "POST":
        return b""
    size = request.header("content-length")
    if size.isdigit() and int(size) > MAX_BODY_BYTES:
        return None
    parts, length = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        part = message.get("body", b"")
        length += len(part)
        if length > MAX_BODY_BYTES:
            return None
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body, receive):
    """A `receive` that returns a body which was read before, then the messages after it."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving():
        return pending.pop() if pending else await receive()

    return receiving


async def _refuse(send, status, text, headers):
    body = f"{text}\n".encode()
    headers = {
        **HEADERS,
        **headers,
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",  # the rest of a refused body is not read
    }
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def _encoded(headers):
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
