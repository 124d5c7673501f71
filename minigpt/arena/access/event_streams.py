"""ASGI middleware: an event that a page sends while its event stream ends is answered a bit later.

    app = EventStreams(app)    # around Gradio's app

Gradio sends the results of a page's events by one stream, and ends it after the last pending one.
For an event that is sent at this moment a page may read the reply of queue/join before it reads the
end of the stream, because they come by two connections. It would then take the ended stream for an
open one, and never get the result. So for PAUSE seconds after the end no reply is sent.
"""

import json
import time
from asyncio import sleep
from urllib.parse import parse_qs

PAUSE = 0.3  # seconds: far more than two connections of one browser differ
END = b'"close_stream"'  # in the last message of a stream
MAX_PAGES = 10_000


class EventStreams:
    """See the module's docstring."""

    def __init__(self, app, pause=PAUSE):
        self._app, self._pause = app, pause
        self._ended = {}  # session_hash → when its stream ended, the newest last

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "")
        if path.endswith("/queue/data"):
            await self._app(scope, receive, self._noticing_the_end(scope, send))
        elif path.endswith("/queue/join"):
            await self._app(scope, *self._after_the_end(receive, send))
        else:
            await self._app(scope, receive, send)

    def _noticing_the_end(self, scope, send):
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        session = query.get("session_hash", [""])[0]

        async def sending(message):
            if END in message.get("body", b""):
                self._ended.pop(session, None)
                self._ended[session] = time.monotonic()
                if len(self._ended) > MAX_PAGES:
                    del self._ended[next(iter(self._ended))]
            await send(message)

        return sending

    def _after_the_end(self, receive, send):
        body = bytearray()

        async def receiving():
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def sending(message):
            if message["type"] == "http.response.start":
                ended = self._ended.get(_session_of(body), -self._pause)
                await sleep(max(0.0, ended + self._pause - time.monotonic()))
            await send(message)

        return receiving, sending


def _session_of(body):
    """The session_hash in the body of a request to queue/join, or None."""
    try:
        session = json.loads(bytes(body))["session_hash"]
    except (ValueError, LookupError, TypeError):
        return None
    return session if isinstance(session, str) else None
