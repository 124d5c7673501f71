"""The HTTP API: OpenAI's routes, and a plain-text one for people, over a RequestScheduler.

    service = Service(Options())
    app = make_app(service)                   # for minigpt/serving/wsgi.py; it answers 503 …
    service.open({"sft": served}, host)       # … until here

A request is checked as a whole before the first byte of its answer. An answer that nobody reads is
not generated: the server checks four times a second whether the client is still connected.
"""

import hmac
import json
import logging
import re
import time
from functools import partial

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from minigpt.data.prompts import TooLong, prompt_ids, stop_ids
from minigpt.openai import schemas
from minigpt.openai.events import END_OF_STREAM, HEARTBEAT, encode_event
from minigpt.openai.formats import ChatFormat, CompletionFormat
from minigpt.openai.ignored_fields import without_ignored
from minigpt.openai.openapi import JSON, SSE, TEXT, Route, describe
from minigpt.openai.request_reader import (
    RequestRefused,
    parse,
    parse_strings,
    read_form,
    read_json,
)
from minigpt.serving.engine_requests import (
    check_ids,
    check_prompt,
    encoded,
    engine_requests,
    read_conversation,
    read_prompt,
    room_of,
    too_long,
)
from minigpt.serving.streaming import Generation, Reader
from minigpt.tokenizer.huggingface import SPECIAL_TEXTS

KEEP_ALIVE_SECONDS = 5.0  # a stream without new text sends a heartbeat this often
RETRY_SECONDS = 2  # the Retry-After of 429 and 503
DROPPED = "X-Dropped-Turns"  # a header: how many turns of the conversation the model did not read
log = logging.getLogger("minigpt")


# -- answers ---------------------------------------------------------------------------------------


def _json(value, status=200):
    body = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Response(body, status, content_type=f"{JSON}; charset=utf-8")


def _answer(generation, form, asked):
    """The whole answer, or a stream of it, as the request wishes."""
    if asked.stream:
        events = _events(generation, form, asked.wants_usage)
        response = Response(events, content_type="text/event-stream; charset=utf-8")
        return _streamed(response, generation)
    try:
        if not generation.finish():
            return Response(status=499)  # the client is gone
        return _json(dict(form.whole(generation), usage=generation.usage()))
    finally:
        generation.close()


def _streamed(response, generation):
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"  # a proxy should pass it on at once
    response.call_on_close(generation.close)
    return response


def _events(generation, form, wants_usage):
    """The answer as server-sent events. Those that are ready together are one string: sending takes
    longer than writing them, and the engine has to wait meanwhile."""
    usage = {"usage": None} if wants_usage else {}
    yield from [encode_event({**chunk, **usage}) for chunk in form.opening(generation)]
    ready, spoke = [], time.monotonic()
    try:
        for piece in generation.pieces():
            if piece is not None:
                ready += [encode_event({**c, **usage}) for c in form.chunks(generation, piece)]
                if generation.ended:
                    continue  # the last events follow at once
            elif time.monotonic() - spoke < KEEP_ALIVE_SECONDS:
                continue
            else:
                ready = [HEARTBEAT]
            yield "".join(ready)
            ready, spoke = [], time.monotonic()
    except RequestRefused as refused:
        yield "".join([*ready, encode_event(refused.as_dict())])
        return
    if wants_usage:
        last = dict(form.head(generation), choices=[], usage=generation.usage())
        ready.append(encode_event(last))
    yield "".join([*ready, END_OF_STREAM])


def _plain_text(generation):
    """The text as it is generated, and a line break; a failure is a last line in brackets."""
    try:
        for piece in generation.pieces():
            if piece is not None and piece.text:
                yield piece.text
        yield "\n"
    except RequestRefused as refused:
        yield f"\n[{refused.message}]\n"


# -- routes ----------------------------------------------------------------------------------------


class Views:
    """What answers the routes: a method reads the request and answers it, or raises
    RequestRefused."""

    def __init__(self, service):
        self.service, self.options = service, service.options
        self.limits = service.options.limits

    def index(self):
        """GET /"""
        names = ", ".join(self.service.models) or "(loading)"
        settings = ", ".join(f"{name}={value}" for name, value in self.options.defaults.items())
        here = request.host_url.rstrip("/")
        return _text(
            f"OpenAI's API at {here}/v1 (see {here}/openapi.json), models: {names}; {settings} "
            "unless a request says otherwise\n"
            f'by hand: curl -N "{here}/generate?prompt=…"\n'
        )

    def health(self):
        """GET /health"""
        status, host = self.service.status, self.service.host
        running, waiting = host.counts() if host else (0, 0)
        answer = dict(status=status, running=running, waiting=waiting)
        return _json(answer, 200 if status == "ok" else 503)

    def models(self):
        """GET /v1/models"""
        self.service.check_loaded()
        served = [model.as_dict(self.limits) for model in self.service.models.values()]
        return _json(dict(object="list", data=served))

    def model(self, model):
        """GET /v1/models/{model}"""
        return _json(self.service.served(model).as_dict(self.limits))

    def openapi(self):
        """GET /openapi.json"""
        names, has_key = list(self.service.models), self.options.api_key is not None
        return _json(describe(ROUTES, self.limits, self.options.defaults, names, has_key))

    def chat(self):
        """POST /v1/chat/completions"""
        asked, served = self._read(schemas.ChatRequest)
        ids, n_dropped = read_conversation(self.service, served, asked)
        more = dict(stop_ids=stop_ids(served.tokenizer))
        if asked.logprobs:
            more["logprobs"] = asked.top_logprobs or 0
        requests = engine_requests(self.service, served, asked, [ids], **more)
        generation = self._generation(
            served, "chatcmpl", requests, asked.stops, n_dropped=n_dropped
        )
        response = _answer(generation, ChatFormat(asked), asked)
        if n_dropped:
            response.headers[DROPPED] = str(n_dropped)
        return response

    def completions(self):
        """POST /v1/completions"""
        asked, served = self._read(schemas.CompletionRequest)
        prompts = [read_prompt(self.service, served, prompt) for prompt in asked.prompts]
        ends, echo = stop_ids(served.tokenizer), bool(asked.echo)
        if echo and asked.logprobs is not None:
            # Here the token that ends a text is listed, too: an evaluation harness asks for one
            # token beyond those that it scores, and drops the last one.
            more, form_ends = dict(logprobs=asked.logprobs, echo=True), ends
        else:
            more, form_ends = dict(logprobs=asked.logprobs, stop_ids=ends), ()
        requests = engine_requests(self.service, served, asked, prompts, **more)
        generation = self._generation(served, "cmpl", requests, asked.stops, form_ends, echo)
        return _answer(generation, CompletionFormat(asked), asked)

    def generate(self):
        """GET and POST /generate"""
        asked = self._read_generate()
        served = self.service.served(asked.model)
        self._check_settings(asked)
        room = room_of(self.service, served)
        try:
            ids = prompt_ids(served.tokenizer, served.prompt_format, asked.prompt, room)
        except TooLong as error:
            raise too_long("prompt", error) from None
        check_prompt(self.service, served, ids)
        if request.method == "HEAD":
            return _text("")
        ends = stop_ids(served.tokenizer)
        requests = engine_requests(self.service, served, asked, [ids], stop_ids=ends)
        generation = self._generation(served, "text", requests, asked.stops)
        response = Response(_plain_text(generation), content_type="text/plain; charset=utf-8")
        return _streamed(response, generation)

    def tokenize(self):
        """POST /tokenize. The name of the token that ends a text, alone, is that token: a harness
        finds its id so."""
        asked = parse(schemas.TokenizeRequest, self._json_body())
        served = self._tokenizing(asked.model)
        tokenizer = served.tokenizer
        names = {SPECIAL_TEXTS["EOT"]: tokenizer.eot, SPECIAL_TEXTS["PAD"]: tokenizer.pad}
        special = names.get(asked.prompt)
        ids = encoded(self.service, served, asked.prompt) if special is None else [special]
        return _json(dict(tokens=ids, count=len(ids), max_model_len=served.block_size))

    def detokenize(self):
        """POST /detokenize"""
        asked = parse(schemas.DetokenizeRequest, self._json_body())
        tokenizer = self._tokenizing(asked.model).tokenizer
        check_ids(tokenizer, asked.tokens, "tokens")
        return _json(dict(prompt=tokenizer.decode(asked.tokens)))

    def tokenizer_info(self):
        """GET /tokenizer_info"""
        tokenizer = self._tokenizing(request.args.get("model")).tokenizer
        return _json(
            dict(
                tokenizer=_bare(tokenizer.name),
                hash=tokenizer.hash,
                n_vocab=tokenizer.n_vocab,
                eos_token=SPECIAL_TEXTS["EOT"],
                bos_token=None,
                pad_token=SPECIAL_TEXTS["PAD"],
                chat_template=None,
            )
        )

    # -- shared by the views --

    def _json_body(self):
        if request.mimetype != "application/json":
            message = "expected the header Content-Type: application/json"
            raise RequestRefused(415, message)
        return read_json(request.get_data())

    def _read(self, model):
        """The request's body as a `model`, and the Served that it names."""
        body, ignored = without_ignored(self._json_body(), model)
        self.service.log_ignored(ignored)
        asked = parse(model, body)
        self._check_settings(asked)
        if (asked.n or 1) > self.limits.n:
            raise RequestRefused(400, f"n: this server takes up to {self.limits.n}", "n")
        return asked, self.service.served(asked.model)

    def _read_generate(self):
        body = request.get_data()
        if not body or request.mimetype == "application/x-www-form-urlencoded":
            return parse_strings(schemas.GenerateRequest, read_form(request.query_string, body))
        if request.mimetype != "application/json":
            raise RequestRefused(415, "expected a query, a form or JSON with its Content-Type")
        if request.query_string:
            raise RequestRefused(400, "a query and JSON: say everything in one of them")
        return parse(schemas.GenerateRequest, read_json(body))

    def _check_settings(self, asked):
        if (asked.max_tokens or 0) > self.limits.max_tokens:
            message = f"max_tokens: this server writes up to {self.limits.max_tokens}"
            raise RequestRefused(400, message, "max_tokens")

    def _generation(self, served, kind, requests, *rest, **more):
        """The Generation that answers the request at hand."""
        gone = request.environ.get("waitress.client_disconnected", lambda: False)
        reader = Reader(request.remote_addr, gone)
        generation = Generation(self.service, served, kind, requests, reader, *rest, **more)
        g.has_its_line = True  # in the log: its close() writes it
        return generation

    def _tokenizing(self, name):
        """The model called `name`; without a name any one, where all have the same tokenizer."""
        self.service.check_loaded()
        models = list(self.service.models.values())
        if name is None and len({model.tokenizer.hash for model in models}) == 1:
            return models[0]
        return self.service.served(name)


def _bare(name):
    """A tokenizer's name without its folder."""
    return re.split(r"[/\\]", name)[-1].removesuffix(".tiktoken").removesuffix(".json")


def _text(text, status=200):
    return Response(text, status, content_type="text/plain; charset=utf-8")


# -- the routes ------------------------------------------------------------------------------------

_BODY = (400, 401, 404, 413, 415, 503)  # statuses of a route that reads a body
_WRITES = (*_BODY, 429, 500)  # of one that writes text, too
_PLAIN = {TEXT: None}

# Flask's rules and /openapi.json are both made of this table.
ROUTES = (
    Route("GET", "/", Views.index, "how to use this server", _PLAIN),
    Route(
        *("GET", "/health", Views.health, "whether requests are taken"),
        {JSON: schemas.HealthAnswer},
        (503,),
        errors_by_status={503: {JSON: schemas.HealthAnswer}},
    ),
    Route("GET", "/v1/models", Views.models, "what is served", {JSON: schemas.Models}, (401, 503)),
    Route(
        *("GET", "/v1/models/{model}", Views.model, "one model"),
        {JSON: schemas.Model},
        (401, 404, 503),
    ),
    Route(
        *("POST", "/v1/chat/completions", Views.chat, "answer a conversation"),
        {JSON: schemas.ChatAnswer, SSE: schemas.ChatChunk},
        _WRITES,
        schemas.ChatRequest,
    ),
    Route(
        *("POST", "/v1/completions", Views.completions, "continue texts"),
        {JSON: schemas.CompletionAnswer, SSE: schemas.CompletionAnswer},
        (*_WRITES, 422),
        schemas.CompletionRequest,
    ),
    Route(
        *("POST", "/tokenize", Views.tokenize, "the ids of a text"),
        {JSON: schemas.Tokens},
        _BODY,
        schemas.TokenizeRequest,
    ),
    Route(
        *("POST", "/detokenize", Views.detokenize, "the text of ids"),
        {JSON: schemas.Text},
        (*_BODY, 422),
        schemas.DetokenizeRequest,
    ),
    Route(
        *("GET", "/tokenizer_info", Views.tokenizer_info, "what ends a text"),
        {JSON: schemas.TokenizerInfo},
        (400, 401, 404, 503),
        query=("model",),
    ),
    Route(
        *("GET", "/generate", Views.generate, "write, for people"),
        _PLAIN,
        _WRITES,
        query=schemas.GenerateRequest,
        errors=_PLAIN,
    ),
    Route(
        *("POST", "/generate", Views.generate, "write, for people"),
        _PLAIN,
        _WRITES,
        schemas.GenerateRequest,
        takes_form=True,
        errors=_PLAIN,
    ),
    Route("GET", "/openapi.json", Views.openapi, "this description", {JSON: None}),
)
OPEN_TO_ALL = {route.path for route in ROUTES if not route.needs_key}


# -- the app ---------------------------------------------------------------------------------------


def make_app(service):
    """The Flask app of a Service."""
    app, views = Flask("minigpt", static_folder=None), Views(service)
    app.config["MAX_CONTENT_LENGTH"] = service.options.limits.body_bytes
    app.config["MAX_FORM_MEMORY_SIZE"] = service.options.limits.body_bytes
    for route in ROUTES:
        rule, name = route.path.replace("{model}", "<path:model>"), f"{route.method} {route.path}"
        app.add_url_rule(rule, name, partial(route.view, views), methods=[route.method])
    app.wsgi_app = _with_plain_paths(app.wsgi_app)
    app.before_request(lambda: _check_host(service.options.allowed_hosts))
    app.before_request(lambda: _check_key(service.options.api_key))
    app.after_request(lambda response: _finish(response, service.options.cors_origins))
    app.register_error_handler(RequestRefused, _refuse)
    app.register_error_handler(HTTPException, _refuse_http)
    app.register_error_handler(Exception, _internal_error)
    return app


def _with_plain_paths(wsgi_app):
    """The WSGI app, for paths as clients join them: `//` is one slash, and the last one is none.
    Flask would redirect, and many clients do not follow a redirected POST."""

    def app(environ, start_response):
        path = re.sub("//+", "/", environ["PATH_INFO"])
        environ["PATH_INFO"] = path.removesuffix("/") or "/"
        return wsgi_app(environ, start_response)

    return app


def _check_host(allowed_hosts):
    host = request.headers.get("Host")
    if not allowed_hosts.allows(host):
        raise RequestRefused(403, allowed_hosts.refusal(host), code="host_not_allowed")


def _check_key(key):
    if key is None or request.path in OPEN_TO_ALL or request.method == "OPTIONS":
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), key.encode())
    if scheme.lower() != "bearer" or not right:
        message = "the header Authorization: Bearer <key> is missing or its key is wrong"
        raise RequestRefused(401, message, code="invalid_api_key")


def _refuse(refused):
    """An error as the route's clients read it: OpenAI's JSON, or for people a line of text."""
    if request.path == "/generate":
        response = _text(refused.message + "\n", refused.status)
    else:
        response = _json(refused.as_dict(), refused.status)
    if refused.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _refuse_http(error):
    """What Flask itself refuses: 404, 405, 413, …"""
    messages = {
        404: "there is no such route; GET / says what there is",
        405: f"this route takes {', '.join(sorted(getattr(error, 'valid_methods', None) or ()))}",
        413: "the body is larger than this server takes",
    }
    response = _refuse(RequestRefused(error.code, messages.get(error.code, error.name)))
    if error.code == 405:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return response


def _internal_error(error):
    log.error("internal error", exc_info=error)
    return _refuse(RequestRefused(500, "internal error of the server; its log says more"))


def _finish(response, cors_origins):
    """Set the headers of every answer; log a line for a refused request."""
    response.headers["X-Content-Type-Options"] = "nosniff"  # and browsers show a stream at once
    if response.status_code in (429, 503):
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    origin = request.headers.get("Origin")
    if cors_origins:
        response.headers["Vary"] = "Origin"
    if origin and (origin in cors_origins or "*" in cors_origins):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = DROPPED
        if request.method == "OPTIONS":
            wanted = request.headers.get("Access-Control-Request-Headers", "")
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            response.headers["Access-Control-Allow-Headers"] = wanted
            response.headers["Access-Control-Max-Age"] = "600"
    if response.status_code >= 400 and "has_its_line" not in g:
        line = f"{request.method} {request.path[:100]!r} {response.status_code}"
        log.info(f"- {request.remote_addr} {line}")
    return response
