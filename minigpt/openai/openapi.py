"""/openapi.json: the routes of a server described from the table that also makes them.

routes = (Route("GET", "/health", view, "whether requests are taken", {JSON: HealthAnswer}), …)
description = describe(routes, limits, defaults, names, has_key)
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic.json_schema import models_json_schema

from minigpt.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ErrorAnswer,
    GenerateRequest,
    TokenizeRequest,
)

JSON, SSE, TEXT, FORM = (
    "application/json",
    "text/event-stream",
    "text/plain",
    "application/x-www-form-urlencoded",
)
WRITING = (ChatRequest, CompletionRequest, GenerateRequest)


@dataclass(frozen=True)
class Route:
    """What a server answers at a path.

    path: with {model} for a model's name. view: called with what the path has in braces. answers:
    content type → the model of its JSON (of one event, in a stream), or None. statuses: further
    than 200; errors: as answers, by status where one has another form than the rest. request: the
    model of the body's JSON; takes_form: a form may spell it, too. query: names or a model of what
    the query may have.
    """

    method: str
    path: str
    view: Callable
    summary: str
    answers: dict
    statuses: tuple[int, ...] = ()
    request: type | None = None
    takes_form: bool = False
    query: tuple[str, ...] | type = ()
    errors: dict = field(default_factory=lambda: {JSON: ErrorAnswer})
    errors_by_status: dict = field(default_factory=dict)

    @property
    def needs_key(self):
        """Whether a server that has a key answers only who sends it."""
        return 401 in self.statuses


MEANINGS = {
    200: "the answer; streamed where `stream` is true",
    400: "the request is wrong; the message names the field",
    401: "the key is missing or wrong",
    403: "the Host header is not a name of this server",
    404: "there is no such model",
    413: "the body is too large",
    415: "the body is no application/json",
    422: "an id is outside the vocabulary",
    429: "too many requests wait already; Retry-After says when to come again",
    500: "the model failed",
    503: "loading, stopping, or out of time; Retry-After says when to come again",
}


def describe(routes, limits, defaults, names, has_key):
    """The OpenAPI 3.1 description as a dict, with this server's limits, defaults (name → value)
    and the names of its models."""
    models = {route.request for route in routes if route.request} | {ErrorAnswer}
    models |= {model for route in routes for model in route.answers.values() if model}
    wanted = [(model, "validation") for model in sorted(models, key=lambda m: m.__name__)]
    _, schema = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    components = {"schemas": schema["$defs"]}
    _fill_in(components["schemas"], limits, defaults, names)
    paths = {}
    for route in routes:
        method, path = route.method.lower(), route.path
        operation = dict(summary=route.summary, operationId=f"{method} {path}")
        operation["responses"] = _responses(route, has_key)
        _describe_input(operation, route, components["schemas"], names)
        if has_key and route.needs_key:
            operation["security"] = [{"key": []}]
        paths.setdefault(path, {})[method] = operation
    if has_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    info = dict(title="MiniGPT", version="1", description="OpenAI's HTTP API for trained runs")
    return dict(openapi="3.1.0", info=info, paths=paths, components=components)


def _fill_in(schemas, limits, defaults, names):
    """Write this server's limits, defaults and models into the requests' schemas."""
    for model in WRITING:
        fields = schemas[model.__name__]["properties"]
        for name, value in {**defaults, "max_tokens": limits.default_max_tokens}.items():
            fields[name]["default"] = value
        most = {"max_tokens": limits.max_tokens, "max_completion_tokens": limits.max_tokens}
        for name, value in {**most, "n": limits.n}.items():
            if name in fields:
                fields[name]["anyOf"][0]["maximum"] = value
    for model in (*WRITING, TokenizeRequest, DetokenizeRequest):
        schemas[model.__name__]["properties"]["model"]["anyOf"][0]["enum"] = names
    if len(names) > 1:
        for model in WRITING:
            schemas[model.__name__]["required"].append("model")


def _responses(route, has_key):
    responses = {"200": dict(description=MEANINGS[200], content=_content(route.answers))}
    for status in sorted({403, *route.statuses} - (set() if has_key else {401})):
        content = _content(route.errors_by_status.get(status, route.errors))
        responses[str(status)] = dict(description=MEANINGS[status], content=content)
    return responses


def _content(answers):
    return {kind: {"schema": _schema_of(kind, model)} for kind, model in answers.items()}


def _schema_of(kind, model):
    if model is None:
        return {"type": "object" if kind == JSON else "string"}
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    if kind == JSON:
        return schema
    what = f"each event is a {model.__name__}, or an error; the last one of a text is [DONE]"
    schema = {"anyOf": [schema, {"$ref": "#/components/schemas/ErrorAnswer"}]}
    chunk = dict(type="string", contentMediaType=JSON, contentSchema=schema)
    data = {"anyOf": [{"const": "[DONE]"}, chunk]}
    return dict(type="object", description=what, required=["data"], properties={"data": data})


def _describe_input(operation, route, schemas, names):
    """The path's and the query's parameters, and the body."""
    name = {"name": "model", "schema": {"type": "string", "enum": names}}
    if "{model}" in route.path:
        operation["parameters"] = [{**name, "in": "path", "required": True}]
    if route.query == ("model",):
        operation["parameters"] = [{**name, "in": "query"}]
    elif route.query:
        form = _form_schema(schemas, route.query)
        operation["parameters"] = [
            dict(name=field, required=field in form["required"], schema=schema, **{"in": "query"})
            for field, schema in form["properties"].items()
        ]
    if route.request is not None:
        schema = {"$ref": f"#/components/schemas/{route.request.__name__}"}
        content = {JSON: {"schema": schema}}
        if route.takes_form:
            content[FORM] = {"schema": _form_schema(schemas, route.request)}
        operation["requestBody"] = dict(required=True, content=content)


def _form_schema(schemas, model):
    """What a form or a query can spell of a request: every field without its null."""
    schema = schemas[model.__name__]
    fields = {
        name: field["anyOf"][0] if "anyOf" in field else field
        for name, field in schema["properties"].items()
    }
    return {**schema, "properties": fields}
