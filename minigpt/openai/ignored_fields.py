"""Fields of a request that cannot change its answer: found, named, and left out.

    body, ignored = without_ignored(body, ChatRequest)     # ignored: ["chat_id", "messages.name"]

Clients send more than OpenAI's fields: ids and tags for their own books, switches of other servers
that are off, and messages as they store them. What is left out here cannot change the answer. A
field that could stays, and the request's model refuses it by name.
"""

from minigpt.openai.request_reader import RequestRefused, similar_field, words_of

MOST_UNKNOWN = 64  # unknown fields of a request: no client sends more


def _words(text):
    return frozenset(text.split())


# A field with one of these words in its name, or its plural, is for the sender's books.
BOOKKEEPING = _words(
    """
    user username customer session conversation thread chat trace span tag label name title
    description store billing cost usage tier priority timeout ttl alive retry retries identifier
    fingerprint client device platform browser app application origin referer referrer source
    channel project organization org team tenant workspace account region provider api header time
    timestamp timing date created updated timezone locale version revision debug verbose log logging
    telemetry analytics tracking feedback progress note comment
    """
)
# Unless it has one of these, too: then it may name or hold something that the model should read.
CONTENT = _words(
    """
    token stop bos eos pad word logit bias penalty temperature beam seed sampler prompt input text
    content context history memory instruction system template schema format grammar guided search
    file document knowledge collection dataset vector image audio video voice tool function plugin
    model adapter lora response assistant agent persona character mode
    """
)
# Fields whose words do not say that they change nothing here.
NEVER_MATTER = frozenset(
    (
        # no tools are called, nothing is reasoned, and an answer is not made faster by a guess
        *("parallel_tool_calls", "include_reasoning", "separate_reasoning", "prediction"),
        # there is no such token to add, and no blank between tokens
        *("add_special_tokens", "spaces_between_special_tokens"),
        *("reasoning_format", "timings_per_token"),
        # parts of samplers that are off
        *("mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold", "repeat_last_n"),
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    )
)
# Settings of other servers → the value with which they change nothing, where it is not an "off".
NEUTRAL = {
    **dict(skip_special_tokens=True, add_generation_prompt=True, detokenize=True, do_sample=True),
    **dict(typical_p=1, typ_p=1, typical=1, tfs_z=1),
    **dict(repeat_penalty=1, encoder_repetition_penalty=1),
}
# Words of a message's fields that hold something to read beside its content.
_CARRIES = _words("image file audio video media attachment document tool function prefix partial")
_OFF = frozenset(("", "none", "off", "false", "no", "disabled", "disable", "default"))


def without_ignored(body, model):
    """(`body` without the fields that cannot change the answer, the names of those fields).

    model: the request's class; its own fields stay. A name has no index: "messages.name" is that
    of any message. RequestRefused where more than MOST_UNKNOWN fields are unknown.
    """
    known = model.model_fields
    unknown = [name for name in body if name not in known]
    if len(unknown) > MOST_UNKNOWN:
        raise RequestRefused(400, f"more than {MOST_UNKNOWN} unknown fields", unknown[0][:100])
    ignored = {name for name in unknown if _changes_nothing(name, body[name], known)}
    body = {name: value for name, value in body.items() if name not in ignored}
    ignored = sorted(ignored)
    options = body.get("stream_options")
    if isinstance(options, dict):  # whatever it says: a stream has the same text
        body["stream_options"], more = _only(options, {"include_usage"})
        ignored += [f"stream_options.{name}" for name in sorted(more)]
    if "messages" in known and isinstance(body.get("messages"), list):
        body["messages"], more = _messages(body["messages"])
        ignored += [f"messages.{name}" for name in sorted(more)]
    return body, ignored


def is_off(value):
    """Whether a value says nothing, or switches something off."""
    if isinstance(value, str):
        return value.lower() in _OFF
    if isinstance(value, dict):
        off = value.get("type", True)
        return is_off(off) or all(v == NEUTRAL.get(k) or is_off(v) for k, v in value.items())
    return all(map(is_off, value)) if isinstance(value, list) else not value


def _changes_nothing(name, value, known):
    if value is None or name in NEVER_MATTER:
        return True
    if name in NEUTRAL:
        return value == NEUTRAL[name]
    return _is_bookkeeping(name) or (is_off(value) and similar_field(name, known) is None)


def _is_bookkeeping(name):
    words = _singular(name)
    if words & {"cache", "metadata"}:
        return True
    if words & CONTENT:
        return False
    if words & {"id", "uuid"}:
        return True
    return bool(words & BOOKKEEPING) and "message" not in words


def _singular(name):
    """The words of a name, and those in the plural without their s, too."""
    words = words_of(name)
    return {*words, *(word.removesuffix("s") for word in words)}


def _only(values, names):
    """(the values with these names, the names of the others)."""
    kept = {name: value for name, value in values.items() if name in names}
    return kept, values.keys() - kept.keys()


# -- messages --------------------------------------------------------------------------------------


def _messages(messages):
    """(messages without what the model does not read, the names of what is left out)."""
    kept, ignored = [], set()
    for message in messages:
        if isinstance(message, dict):
            message, more = _read_fields(message, {"role", "content", "refusal"})
            ignored |= more
            if isinstance(message.get("content"), list):
                message["content"], more = _parts(message["content"])
                ignored |= {f"content.{name}" for name in more}
        kept.append(message)
    return kept, ignored


def _parts(parts):
    """The same for the parts of a content. What a model thought, handed back, is left out."""
    kept, ignored = [], set()
    for part in parts:
        if isinstance(part, dict):
            if part.get("type") in ("thinking", "reasoning", "redacted_thinking"):
                ignored.add(part["type"])
                continue
            part, more = _read_fields(part, {"type", "text", "refusal"})
            ignored |= more
        kept.append(part)
    return kept, ignored


def _read_fields(values, names):
    """(the fields called `names` and those that hold more to read, the names of the others)."""
    carried = {n for n, value in values.items() if _CARRIES & _singular(n) and not is_off(value)}
    kept, ignored = _only(values, names | carried)
    return kept, {name[:100] for name in ignored if values[name] is not None}
