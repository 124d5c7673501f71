"""From an API request to the engine's: prompts as ids, sampling settings, beams, constraints.

    ids, n_dropped = read_conversation(service, served, asked)
    requests = engine_requests(service, served, asked, [ids], stop_ids=ends)

What cannot be honoured is a RequestRefused that names the field.
"""

from minigpt.common.errors import UserError
from minigpt.data.prompts import TooLong, chat_ids, check_length, latest_turns, stop_ids
from minigpt.inference.engine import Request
from minigpt.openai.request_reader import RequestRefused
from minigpt.serving.json_constraint import JsonConstraint
from minigpt.tokenizer.chat_template import kind_of

SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


# -- prompts ---------------------------------------------------------------------------------------


def room_of(service, served):
    """How many ids a prompt may have."""
    return min(service.options.limits.prompt_tokens or served.block_size, served.block_size)


def read_conversation(service, served, asked):
    """(the ids of a ChatRequest's prompt, how many of its oldest turns are not among them). Where
    turns are dropped, the answer has room, up to half of what the model sees."""
    turns, room = [message.turn for message in asked.messages], room_of(service, served)
    kept = turns
    try:
        truncate = asked.truncate or service.options.truncate
        if kind_of(served.prompt_format) == "chat" and truncate == "oldest":
            answer = min(_max_new_tokens(service, asked), served.block_size // 2)
            room_beside = min(room, served.block_size - answer)
            kept = latest_turns(served.tokenizer, served.prompt_format, turns, room_beside)
        ids = chat_ids(served.tokenizer, served.prompt_format, kept, room)
    except TooLong as error:
        raise too_long("messages", error) from None
    except UserError as error:
        raise RequestRefused(400, str(error), "messages") from None
    check_prompt(service, served, ids, "messages")
    return ids, len(turns) - len(kept)


def read_prompt(service, served, prompt):
    """A completion's prompt, a text or ids, as ids."""
    if isinstance(prompt, str):
        ids = encoded(service, served, prompt)
    else:
        ids = prompt
        check_ids(served.tokenizer, ids, "prompt")
    check_prompt(service, served, ids)
    return ids


def encoded(service, served, text):
    """The ids of a text. RequestRefused before it is encoded where it cannot fit."""
    try:
        check_length(served.tokenizer, [text], room_of(service, served))
    except TooLong as error:
        raise too_long("prompt", error) from None
    return served.tokenizer.encode(text)


def check_prompt(service, served, ids, param="prompt"):
    """RequestRefused where a prompt is empty or too long."""
    if not ids:
        raise RequestRefused(400, f"{param}: empty; expected a text to continue", param)
    room = room_of(service, served)
    if len(ids) > room:
        raise too_long(param, TooLong(len(ids), room))


def check_ids(tokenizer, ids, param):
    """RequestRefused (422) where an id is none of the tokenizer's."""
    highest = tokenizer.n_vocab - 1
    if max(ids, default=0) > highest:
        message = f"{param}: {max(ids)} is no id of this tokenizer, which has 0 to {highest}"
        raise RequestRefused(422, message, param)


def too_long(param, error):
    """The RequestRefused for a TooLong."""
    message = f"{param}: {error.counted}; this model takes up to {error.room}"
    if param == "messages":
        message += ', or set truncate to "oldest" (for every request: server.py --truncate=oldest)'
    return RequestRefused(400, message, param, "context_length_exceeded")


# -- requests --------------------------------------------------------------------------------------


def engine_requests(service, served, asked, prompts, **more):
    """The engine's requests: n for each prompt, each with a seed of its own. more: further fields
    of engine.Request."""
    said = {name: getattr(asked, name) for name in SAMPLING}
    said = {name: value for name, value in said.items() if value is not None}
    if said.get("top_k") == -1:
        said["top_k"] = 0
    settings = {**service.options.defaults, **said, **more, **_beams(service, served, asked)}
    constraint = _constraint(served, asked)
    return [
        Request(
            ids,
            max_new_tokens=_max_new_tokens(service, asked),
            seed=None if asked.seed is None else asked.seed + number,
            constraint=constraint and constraint.copy(),
            **settings,
        )
        for ids in prompts
        for number in range(getattr(asked, "n", None) or 1)
    ]


def _max_new_tokens(service, asked):
    limits = service.options.limits
    if asked.max_tokens is None:
        return limits.default_max_tokens
    return limits.max_tokens if asked.max_tokens == -1 else asked.max_tokens


def _beams(service, served, asked):
    """The settings of a beam search, where the request wants one."""
    n = getattr(asked, "num_beams", None) or 1
    if n == 1:
        return {}
    most = service.host.engines[served.name].n_slots
    if n > most:
        raise RequestRefused(400, f"num_beams: this server takes up to {most}", "num_beams")
    penalty = 1.0 if asked.length_penalty is None else asked.length_penalty
    return dict(num_beams=n, length_penalty=penalty, temperature=0.0)


def _constraint(served, asked):
    """The JsonConstraint of a response_format, or None."""
    schema = getattr(asked, "schema_wanted", None)
    if schema is None:
        return None
    try:
        ends = stop_ids(served.tokenizer)
        return JsonConstraint.of_schema(served.json_table, schema, ends)
    except UserError as error:
        raise RequestRefused(400, f"response_format: {error}", "response_format") from None
