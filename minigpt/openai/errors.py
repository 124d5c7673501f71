"""What goes wrong with a server: what its error says, and what that means for the question.

An ApiError is what happened; its `fault` and `unsupported_field` say what it means. The tables of
patterns are the place where the words of one more provider are added.
"""

import email.utils
import enum
import json
import math
import re
import time
from contextlib import suppress

from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.common.report import one_line

_READ = 1 << 14  # characters of an error's body that are looked at


class ApiError(Exception):
    """Why there is no answer, or no more of it: a message for people and `kind`:

    "forbidden" (its network is not allowed), "unknown host", "refused" (nothing listens),
    "unreachable", "proxy", "tls", "timeout", "broken off", "http 500" (any status but 200),
    "garbage" (not what the API says), "too long" (more bytes than it may send), "error" (the server
    reports one within an answer).

    status: the HTTP status, or the one that an error within an answer names; said: what the body of
    the error says; retry_after: seconds that the server asks for. Each may be None.
    """

    def __init__(self, kind, message, status=None, said="", retry_after=None):
        super().__init__(message)
        self.kind, self.message = kind, message
        self.status, self.said, self.retry_after = status, said, retry_after

    def without(self, key):
        """The same, its message in one line, and without the key, should the server repeat it."""
        message, said = one_line(without(key, self.message)), without(key, self.said)
        return ApiError(self.kind, message, self.status, said, self.retry_after)

    @property
    def fault(self):
        """Whose Fault an error with a status is."""
        return _fault(self.status, self.said)

    def unsupported_field(self, fields):
        """The one of the request's `fields` that the server does not support, or None."""
        for name, pattern in _FIELDS.items():
            if self.status in _MAY_NAME_A_FIELD and name in fields and pattern.search(self.said):
                return name
        return None


def without(key, text):
    """`text` with "(the key)" for each `key`; None: no key."""
    return (text if key is None else text.replace(key, "(the key)"))[:_READ]


# -- what follows for the question -----------------------------------------------------------------


class TemporaryError(Exception):
    """The same question may be answered another time. kind: as an ApiError's; overload: whether
    fewer questions at a time may help; retry_after: seconds that the server asks for, or None."""

    def __init__(self, kind, message, overload=False, retry_after=None):
        super().__init__(message)
        self.kind, self.overload, self.retry_after = kind, overload, retry_after


class QuestionRefused(UserError):
    """This question gets no answer, others may: it is too long, or not wanted."""


class ServerUnusable(Exception):
    """Why a server cannot answer any question: its key, its model, its address."""


class Fault(enum.Enum):
    """Whose fault an error is."""

    KEY = "the key is missing or wrong"
    CREDIT = "nothing is left to pay with"
    MODEL = "there is no such model, or no API at this address"
    MOMENT = "another time may go well"
    QUESTION = "this question is refused"


_RETRIED = {408, 409, 425, 429}  # and redirects, and all from 500 on: no fault of the question
OVERLOAD = {408, 429, 503, 504}
_MAY_NAME_A_FIELD = {400, 422, 500, 501}
# Fields that not every server supports → what a server says that must be asked without it.
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


def _fault(status, said):
    no_key = status == 401 or (status == 400 and _NO_KEY.search(said))
    if no_key or (status == 403 and not _UNWELCOME.search(said)):
        return Fault.KEY
    if status == 402:
        return Fault.CREDIT
    if status in _RETRIED or status >= 500 or status < 400:
        return Fault.MOMENT
    if status in (404, 405) or _NO_MODEL.search(said):
        return Fault.MODEL
    return Fault.QUESTION


# -- what an error says ----------------------------------------------------------------------------


def error_text(data):
    """What the body of an HTTP error (bytes) says, whatever it is: JSON in any provider's form, a
    page, plain text."""
    text = data.decode("utf-8", "replace")
    try:
        return _message_in(parse_json(text))
    except ValueError:
        return re.sub(r"<[^<>]{0,200}>", " ", text[:_READ])


def error_in(answer):
    """The ApiError that an answer with status 200 holds, or None. Its status: the code in it, else
    500."""
    if not isinstance(answer, dict):
        return None
    error = answer if answer.get("object") == "error" else answer.get("error")
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    status = code if type(code) is int and 400 <= code < 600 else 500
    said = _message_in(error)
    return ApiError("error", said, status, said)


def _message_in(value):
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def retry_after(text):
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
