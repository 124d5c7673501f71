"""Fields of a request that cannot change its answer, and those that could."""

import pytest

from minigpt.openai.ignored_fields import MOST_UNKNOWN, is_off, without_ignored
from minigpt.openai.request_reader import RequestRefused, parse
from minigpt.openai.schemas import ChatRequest, CompletionRequest

ASK = [{"role": "user", "content": "黄河？"}]

IGNORED = [
    dict(user="me", metadata={"a": {"b": [1]}}, store=True, service_tier="auto"),
    dict(metadata=[1, "a"]),
    dict(metadata="a"),
    dict(chat_id="1", session_id=2, conversationId="3", request_id={}, parent_message_id="4"),
    dict(trace_name="t", tags=["a"], generation_name="g", trace_metadata={"x": 1}),
    dict(prompt_cache_key="k", prompt_cache_options={"mode": "implicit"}, cache_salt="s"),
    dict(safety_identifier="s", priority=3, timeout=600, keep_alive="5m", ttl=60),
    dict(parallel_tool_calls=True, prediction={"type": "content", "content": "x"}),
    dict(chat_template_kwargs={}),
    dict(chat_template_kwargs={"enable_thinking": False, "add_generation_prompt": True}),
    dict(enable_thinking=False, thinking={"type": "disabled", "budget_tokens": 1024}),
    dict(thinkingConfig={"includeThoughts": False, "thinkingBudget": 0}),
    dict(use_beam_search=False, ignore_eos=False, min_tokens=0, stop_token_ids=[], bad_words=[]),
    dict(skip_special_tokens=True, spaces_between_special_tokens=True, add_special_tokens=False),
    dict(repeat_penalty=1.0, repeat_last_n=64, typical_p=1, mirostat=0, mirostat_tau=5.0),
    dict(guided_json=None, grammar="", functionCall=None, provider={"order": ["a"]}),
    dict(
        include_reasoning=True, usage={"include": True}, timings_per_token=True, cache_prompt=True
    ),
]


@pytest.mark.parametrize("more", IGNORED, ids=lambda more: ",".join(more))
def test_what_changes_no_answer_is_left_out_and_named(more):
    body, ignored = without_ignored({"messages": ASK, **more}, ChatRequest)
    assert body == {"messages": ASK} and ignored == sorted(more)
    parse(ChatRequest, body)


REFUSED = {
    "temprature": 0,  # misspelled: its value must not be lost
    "temperatur": 0.5,
    "maxTokens": 5,
    "topP": 1,
    "guided_json": {"type": "object"},
    "grammar": "root ::= x",
    "min_tokens": 3,
    "ignore_eos": True,
    "stop_token_ids": [5],
    "skip_special_tokens": False,
    "do_sample": False,
    "repeat_penalty": 1.1,
    "use_beam_search": True,
    "enable_thinking": True,
    "chat_template_kwargs": {"enable_thinking": True},
    "thinking": {"type": "enabled", "budget_tokens": 5},
    "system": "You are a pirate.",
    "user_prompt": "x",
    "user_message": "x",
    "file_ids": ["a"],
    "lora_id": "a",
    "previous_response_id": "a",
    "enable_search": True,
    "seeds": [1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_change_the_answer_is_refused_by_name(name):
    body, ignored = without_ignored({"messages": ASK, name: REFUSED[name]}, ChatRequest)
    assert not ignored
    with pytest.raises(RequestRefused, match=name) as caught:
        parse(ChatRequest, body)
    assert caught.value.param == name and caught.value.status == 400


def test_a_misspelled_field_is_told_what_it_may_be():
    for name, meant in (("temprature", "temperature"), ("maxTokens", "max_tokens")):
        with pytest.raises(RequestRefused, match=f"did you mean {meant}"):
            parse(ChatRequest, {"messages": ASK, name: 1})


def message(**more):
    return {"messages": [{"role": "user", "content": "x", **more}]}


@pytest.mark.parametrize(
    "more",
    [
        dict(name="li", type="text"),
        dict(id="1", createdAt=5, parentId=None, children=["a"], model="m"),
        dict(reasoning_content="hm", reasoning="hm", annotations=[{"type": "url_citation"}]),
        dict(tool_calls=[], function_call=None, audio=None, images=[], refusal=None),
        dict(cache_control={"type": "ephemeral"}, metadata={"a": 1}),
    ],
    ids=str,
)
def test_of_a_message_role_and_content_are_read(more):
    body, ignored = without_ignored(message(**more), ChatRequest)
    assert parse(ChatRequest, body).messages[0].turn == ("user", "x")
    given = {f"messages.{name}" for name, value in more.items() if value is not None}
    assert set(ignored) == given


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (dict(images=["aGk="]), "images"),
        (dict(experimental_attachments=[{}, {"url": "x"}]), "experimental_attachments"),
        (dict(tool_calls=[{"id": "1"}]), "tool_calls"),
        (dict(prefix=True), "prefix"),
        (dict(role="tool"), "role"),
        (dict(content=[{"type": "image_url", "image_url": {"url": "data:"}}]), "content.0"),
        (dict(content=[{"type": "input_audio", "input_audio": {}}]), "content.0"),
        (dict(content=[{"type": "text"}]), "content.0.text"),
        (dict(content=5), "content"),
    ],
    ids=str,
)
def test_what_a_message_carries_beside_its_text_is_refused(more, name):
    body, _ = without_ignored(message(**more), ChatRequest)
    with pytest.raises(RequestRefused) as caught:
        parse(ChatRequest, body)
    assert caught.value.param.startswith(f"messages.0.{name}")


def test_an_image_is_refused_as_one():
    body, _ = without_ignored(message(content=[{"type": "image_url"}]), ChatRequest)
    with pytest.raises(RequestRefused, match=r"image_url: not supported .* text alone$"):
        parse(ChatRequest, body)


def test_parts_of_text_in_every_form():
    parts = [
        "a",
        {"type": "text", "text": "b", "cache_control": {}},
        {"type": "input_text", "text": "c"},
        {"type": "thinking", "thinking": "not read", "signature": "s"},
        {"type": "refusal", "refusal": "d"},
    ]
    body, ignored = without_ignored(message(content=parts), ChatRequest)
    assert parse(ChatRequest, body).messages[0].turn == ("user", "abcd")
    assert ignored == ["messages.content.cache_control", "messages.content.thinking"]


def test_an_answer_that_was_a_refusal_or_nothing_comes_back():
    for more, text in ((dict(refusal="no"), "no"), (dict(content=""), ""), ({}, "")):
        turns = [{"role": "assistant", "content": None, **more}, *ASK]
        asked = parse(ChatRequest, without_ignored({"messages": turns}, ChatRequest)[0])
        assert asked.messages[0].turn == ("assistant", text)


def test_options_of_a_stream():
    options = dict(include_usage=True, continuous_usage_stats=True, include_obfuscation=True)
    asked = dict(messages=ASK, stream=True, stream_options=options)
    body, ignored = without_ignored(asked, ChatRequest)
    names = ("continuous_usage_stats", "include_obfuscation")
    assert ignored == [f"stream_options.{name}" for name in names]
    assert parse(ChatRequest, body).wants_usage


@pytest.mark.parametrize("stop", [None, "", [], [""], [None]])
def test_stop_strings_that_are_none(stop):
    assert parse(CompletionRequest, dict(prompt="a", stop=stop)).stops == []


def test_logprobs_that_are_none():
    assert parse(CompletionRequest, dict(prompt="a", logprobs=False)).logprobs is None
    assert parse(ChatRequest, dict(messages=ASK, logprobs=False, top_logprobs=0))


def test_the_request_itself_is_not_changed():
    asked = dict(message(name="li"), chat_id=1, stream_options={"x": 1})
    without_ignored(asked, ChatRequest)
    assert asked == dict(message(name="li"), chat_id=1, stream_options={"x": 1})


def test_fields_without_end_are_refused():
    with pytest.raises(RequestRefused, match=str(MOST_UNKNOWN)):
        without_ignored({f"field{i}": i for i in range(MOST_UNKNOWN + 1)}, ChatRequest)


def test_what_is_off():
    for value in (None, False, 0, "", "none", "Off", [], {}, {"a": False}, {"type": "disabled"}):
        assert is_off(value), value
    for value in (True, 1, "on", "auto", [1], {"a": True}, {"type": "enabled"}):
        assert not is_off(value), value
