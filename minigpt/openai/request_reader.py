"""Requests as they arrive: bytes → checked values, or a RequestRefused that says what is wrong.

request = parse(ChatRequest, read_json(body))      # minigpt/openai/schemas.py has the models
"""

import difflib
import itertools
import json
import math
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from pydantic import ValidationError

MAX_DEPTH = 32  # of nested lists and objects in a body
MAX_DIGITS = 20  # of an integer: 64 bits have 19 or 20
CLOSE = 0.85  # difflib's ratio from which an unknown name is a known one, misspelled


class RequestRefused(Exception):
    """A request that gets no answer: the HTTP status, a message for its sender, the parameter
    that is wrong and a code, where there are any."""

    def __init__(self, status, message, param=None, code=None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def as_dict(self):
        """The error as OpenAI's clients read it."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = kinds.get(self.status, kind)
        error = dict(message=self.message, type=kind, param=self.param, code=self.code)
        return {"error": error}


@dataclass(frozen=True)
class RequestLimits:
    """How much one request may ask for."""

    body_bytes: int = 1 << 20
    prompt_tokens: int | None = None  # none: as many as the model sees at once
    max_tokens: int = 4096
    default_max_tokens: int = 225  # where a request does not say
    n: int = 8


# -- reading JSON ----------------------------------------------------------------------------------


def read_json(body):
    """The object that `body` (bytes) holds. RequestRefused (400) where it is not UTF-8, not JSON or
    not an object, is nested deeply, or holds NaN, infinity or an integer beyond 64 bits."""
    try:
        text = body.decode("utf-8")
        _check_depth(text)
        value = json.loads(
            text, parse_int=_integer, parse_float=_real, parse_constant=_no_such_number
        )
        if "\\u" in text:  # half of a surrogate pair can be spelled, but is no character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise RequestRefused(400, f"the body is not UTF-8: {error.reason}") from None
    except ValueError as error:
        raise RequestRefused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestRefused(400, "the body is not a JSON object: expected {…}")
    return value


# An unclosed string extends to the end, so that no text is searched twice.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


def _check_depth(text):
    # Before the parser sees it: that one calls itself for each level.
    brackets = re.findall(r"[\[{}\]]", _STRING.sub("", text))
    steps = (1 if bracket in "[{" else -1 for bracket in brackets)
    if max(itertools.accumulate(steps), default=0) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _integer(digits):
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
    return int(digits)


def _real(digits):
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number too large for a float")
    # JSON knows one kind of number: 5.0 is as good as 5.
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _no_such_number(name):
    raise ValueError(f"{name} is no JSON number")


def read_form(*parts):
    """The fields, name → text, of a query string and a form's body (bytes). RequestRefused (400)
    where they are not UTF-8, and where a field is given twice."""
    fields = {}
    for part in parts:
        try:
            pairs = parse_qsl(part.decode("utf-8"), keep_blank_values=True, errors="strict")
        except UnicodeError as error:
            raise RequestRefused(400, f"the request is not UTF-8: {error.reason}") from None
        for name, value in pairs:
            if name in fields:
                raise RequestRefused(400, f"{name[:100]}: given more than once", name[:100])
            fields[name] = value
    return fields


def parse(model, values):
    """`values` as a `model`. RequestRefused (400) names each wrong field, up to three of them."""
    return _checked(model.model_validate, values, model)


def parse_strings(model, values):
    """The same for values that are all text, as a query string or a form has them."""
    return _checked(model.model_validate_strings, values, model)


def words_of(name):
    """The words of a field's name, in snake_case or camelCase, in lower case."""
    return re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name[:100]).lower())


def similar_field(name, known):
    """The one of the `known` names that `name` may be meant for, or None."""
    close = difflib.get_close_matches("_".join(words_of(name)), known, 1, CLOSE)
    return close[0] if close else None


def _checked(validate, values, model):
    try:
        return validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        found = {_param(each["loc"], values): each for each in reversed(errors)}
        # By field: a union complains once for each of its types, and the first says enough.
        first = list(itertools.islice(reversed(found.items()), 3))
        message = "; ".join(_complaint(param, each, model) for param, each in first)
        message += "; …" if len(found) > 3 else ""
        raise RequestRefused(400, message, param=next(reversed(found)) or None) from None


def _param(place, values):
    """The dotted name of a field, without the names of types that pydantic puts behind it."""
    names = []
    for part in place:
        known = isinstance(values, dict) and (part in values or part == place[-1])
        if not known and not (isinstance(values, list) and isinstance(part, int)):
            continue
        names.append(str(part))
        values = values.get(part) if isinstance(values, dict) else values[part]
    return ".".join(names)


def _complaint(param, error, model):
    shown = param if len(param) <= 100 else param[:100] + "…"
    if error["type"] != "extra_forbidden":
        return f"{shown}: {error['msg'].removeprefix('Value error, ')}"
    meant = similar_field(param, model.model_fields)
    if meant is not None:
        return f"{shown}: unknown field; did you mean {meant}?"
    return f"{shown}: not supported by this server; leave it out"
