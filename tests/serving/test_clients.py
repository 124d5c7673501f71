"""What clients send, over real sockets: each request is answered, and nothing is lost in silence.

The bodies of desktop programs are written here, not recorded from them: docs/en/clients.md says for
which of them after their public source.
"""

import json

import pytest
import requests
from api_server import BLOCK, PATIENCE, chat, events, raw, until

from minigpt.data.prompts import chat_ids
from minigpt.openai.request_reader import RequestLimits
from minigpt.serving.app import DROPPED
from minigpt.serving.service import Options

pytest_plugins = ["api_server"]

QUESTION = dict(role="user", content="首都？")
TALK = [QUESTION, dict(role="assistant", content=""), QUESTION]
USAGE = {"include_usage": True}
PROGRAMS = {
    # chat.completions.create of a session, with the parameters that its settings set
    "Open WebUI": dict(
        messages=[dict(role="system", content="答。"), *TALK],
        **dict(stream=True, temperature=0.8, top_p=0.9, max_tokens=20, frequency_penalty=0),
        **dict(seed=1, stop=[], stream_options=USAGE),
        **dict(chat_id="c-1", session_id="s-1", id="m-1", metadata={"features": {"x": False}}),
    ),
    "Open WebUI, a chat's title": dict(messages=[QUESTION], stream=False, max_completion_tokens=9),
    "LobeChat": dict(
        messages=[dict(role="system", content=""), QUESTION],
        **dict(stream=True, temperature=1, top_p=1, presence_penalty=0, frequency_penalty=0),
        **dict(user="u-1", stream_options=USAGE),
    ),
    "Cherry Studio": dict(
        messages=TALK,
        **dict(stream=True, temperature=0.05, top_p=0.08, stream_options=USAGE),
        **dict(keep_alive="5m", enable_thinking=False),
    ),
    "Chatbox": dict(  # and others on Vercel's AI SDK
        messages=[dict(role="system", content="You are helpful."), QUESTION],
        **dict(stream=True, temperature=0.7, top_p=1, stream_options=USAGE, verbosity=None),
    ),
    "Dify": dict(
        messages=[dict(role="user", content=[{"type": "text", "text": "首都？"}])],
        **dict(stream=True, max_tokens=20, temperature=0.7, user="difyai-user-1"),
        **dict(chat_template_kwargs={"enable_thinking": False}, thinking={"type": "disabled"}),
    ),
    "Dify, the check of a key": dict(messages=[dict(role="user", content="ping")], max_tokens=5),
    "n8n": dict(  # by LangChain.js
        messages=[dict(role="user", content="首都？", name="li")],
        **dict(stream=True, temperature=0.7, n=1, logit_bias={}, stream_options=USAGE, stop=None),
        **dict(frequency_penalty=0, presence_penalty=0, max_tokens=-1, parallel_tool_calls=False),
    ),
    "continue.dev": dict(
        messages=[dict(role="system", content="You code."), dict(role="user", content="首都？")],
        **dict(stream=True, max_tokens=40, temperature=0.5, stop=["\n\n"], tool_choice="none"),
        **dict(prediction={"type": "content", "content": "x"}),
    ),
    "llama.cpp's page": dict(
        messages=[dict(role="user", content="首都？", timestamp=1)],
        **dict(stream=True, cache_prompt=True, reasoning_format="auto", timings_per_token=True),
        **dict(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, typ_p=1, max_tokens=-1),
        **dict(dynatemp_range=0, dynatemp_exponent=1, xtc_probability=0, xtc_threshold=0.1),
        **dict(repeat_last_n=64, repeat_penalty=1, presence_penalty=0, frequency_penalty=0),
        **dict(dry_multiplier=0, dry_base=1.75, dry_allowed_length=2, dry_penalty_last_n=-1),
    ),
    "vLLM's clients": dict(
        messages=[QUESTION],
        **dict(top_k=-1, min_p=0, repetition_penalty=1, length_penalty=1, use_beam_search=False),
        **dict(ignore_eos=False, min_tokens=0, skip_special_tokens=True, guided_json=None),
        **dict(add_generation_prompt=True, priority=0, stop_token_ids=[], best_of=None),
    ),
    "LiteLLM": dict(
        messages=[QUESTION], user="u", metadata={"trace_id": "t", "tags": ["a"]}, timeout=600
    ),
    "lm_eval": dict(
        messages=[dict(QUESTION, type="text")],
        **dict(max_tokens=20, temperature=0, stop=["\n\n"], seed=1234),
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_request_of_a_program_is_answered(api, program):
    body = {"model": "sft", **PROGRAMS[program]}
    answer = api.post("/v1/chat/completions", body)
    assert answer.ok, answer.text
    if body.get("stream"):
        chunks = events(answer)
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    assert text == ("北京。" if body.get("max_tokens", 20) not in range(1, 9) else "北\ufffd")


def test_what_is_ignored_is_named_once_in_the_log(make_server, caplog):
    caplog.set_level("INFO", logger="minigpt")
    server = make_server()
    for session in ("a", "b"):
        more = dict(chat_id=session, enable_thinking=False)
        assert server.post("/v1/chat/completions", chat(**more)).ok
    assert server.post("/v1/chat/completions", chat(chat_id="c", trace_id="d")).ok
    lines = [r.getMessage() for r in caplog.records if "are ignored" in r.getMessage()]
    assert [line.partition(": ")[2] for line in lines] == ["chat_id, enable_thinking", "trace_id"]


def test_a_refused_field_is_named(api):
    for name, value in (("guided_json", {"type": "object"}), ("min_tokens", 3), ("tools", [{}])):
        refused = api.post("/v1/chat/completions", chat(**{name: value}))
        error = refused.json()["error"]
        assert refused.status_code == 400 and error["param"] == name and name in error["message"]


def test_the_harness_asks_by_chat(api, tmp_path, monkeypatch):
    """lm-evaluation-harness, local-chat-completions: a question a record, compared as a whole."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    records = [
        dict(question=f"首都{i}？", answer="北京。" if i % 3 else "天津。") for i in range(6)
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    task = dict(
        **dict(task="capitals", dataset_path="json", test_split="test"),
        dataset_kwargs=dict(data_files={"test": str(path)}, cache_dir=str(tmp_path / "cache")),
        **dict(output_type="generate_until", generation_kwargs=dict(until=["\n"], max_gen_toks=20)),
        **dict(doc_to_text="{{question}}", doc_to_target="{{answer}}"),
        metric_list=[dict(metric="exact_match")],
    )
    found = lm_eval.simple_evaluate(
        "local-chat-completions",
        model_args=dict(model="sft", base_url=f"{api.url}/v1/chat/completions", max_retries=1),
        **dict(tasks=[task], task_manager=TaskManager(include_defaults=False)),
        **dict(apply_chat_template=True, bootstrap_iters=0),
    )
    assert found["results"]["capitals"]["exact_match,none"] == pytest.approx(4 / 6)


# -- conversations that are too long ---------------------------------------------------------------


def turns_of(n):
    """A conversation that the tiny model cannot see at once, with a system message."""
    roles = ["user", "assistant"] * n
    talk = [dict(role=role, content=f"{i % 10}" * 5) for i, role in enumerate(roles[: 2 * n - 1])]
    return [dict(role="system", content="S"), *talk]


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_drops_the_oldest_turns_and_says_so(make_server, caplog, stream, byte_tokenizer):
    caplog.set_level("INFO", logger="minigpt")
    options = Options(limits=RequestLimits(max_tokens=100), truncate="oldest")
    server = make_server(options)
    turns, max_tokens = turns_of(6), 10
    body = dict(model="chat", messages=turns, max_tokens=max_tokens, stream=stream)
    more = dict(stream_options=USAGE) if stream else {}
    answer = server.post("/v1/chat/completions", body | more)
    usage = events(answer)[-1]["usage"] if stream else answer.json()["usage"]
    n_dropped = int(answer.headers[DROPPED])

    def n_ids(n):
        kept = [turns[0], *turns[1 + n :]]
        pairs = [(turn["role"], turn["content"]) for turn in kept]
        return len(chat_ids(byte_tokenizer, "chat", pairs, 10**9))

    assert usage["prompt_tokens"] == n_ids(n_dropped) <= BLOCK - max_tokens
    assert n_ids(n_dropped - 1) > BLOCK - max_tokens  # no turn too many
    until(lambda: f"{n_dropped} oldest turns dropped" in caplog.text)


def test_a_conversation_goes_on_for_ever(make_server):
    """As a desktop program has it: every turn is sent again."""
    server = make_server(Options(limits=RequestLimits(default_max_tokens=4), truncate="oldest"))
    talk = []
    for i in range(8):
        talk.append(dict(role="user", content=f"问{i}"))
        answer = server.post("/v1/chat/completions", dict(model="chat", messages=talk))
        assert answer.ok, answer.text
        talk.append(answer.json()["choices"][0]["message"])
    assert int(answer.headers[DROPPED]) > 0


def test_what_fits_is_not_cut_and_what_cannot_fit_is_refused(make_server, api):
    server = make_server(Options(truncate="oldest"))
    short = dict(model="chat", messages=[dict(role="user", content="a")], max_tokens=1)
    assert DROPPED not in server.post("/v1/chat/completions", short).headers
    # No room for the answer beside it, but it is the question: the context moves on, as ever.
    question = [*turns_of(3), dict(role="user", content="b" * 12)]
    long = dict(model="chat", messages=question, max_tokens=100)
    assert server.post("/v1/chat/completions", long).ok
    huge = dict(short, messages=[dict(role="user", content="b" * 100)])
    refused = server.post("/v1/chat/completions", huge)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    refused = api.post("/v1/chat/completions", dict(short, messages=turns_of(6)))
    assert refused.status_code == 400 and "--truncate=oldest" in refused.text
    asked = dict(short, messages=turns_of(6), truncate="oldest")
    assert int(api.post("/v1/chat/completions", asked).headers[DROPPED]) > 0


# -- beams -----------------------------------------------------------------------------------------


def test_beams(api):
    body = dict(model="plain", prompt="天a", max_tokens=6, logprobs=0)

    def score(**more):
        choice = api.post("/v1/completions", {**body, **more}).json()["choices"][0]
        return sum(choice["logprobs"]["token_logprobs"]), choice["text"]

    greedy, beams = score(temperature=0), score(num_beams=4, length_penalty=0)
    assert beams[0] >= greedy[0] - 1e-4
    assert score(num_beams=4, length_penalty=0) == beams
    answer = api.post("/v1/chat/completions", chat(num_beams=3)).json()
    assert answer["choices"][0]["message"]["content"] == "北京。"
    assert api.post("/v1/chat/completions", chat(num_beams=1, temperature=1, stream=True)).ok


# -- HTTP ------------------------------------------------------------------------------------------


def test_every_json_answer_names_its_encoding(api):
    paths = (
        "/v1/models",
        "/v1/models/sft",
        "/health",
        "/openapi.json",
        "/tokenizer_info?model=sft",
    )
    answers = [api.get(path) for path in (*paths, "/nowhere", "/v1/completions")]
    answers += [api.post("/v1/chat/completions", chat(**more)) for more in ({}, {"n": 0})]
    answers += [api.post("/tokenize", data="x"), api.post("/tokenize", {"prompt": "x" * 2**20})]
    for answer in answers:
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8", answer.url
        json.loads(answer.content.decode("utf-8"))
    sock, received = api.connect(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"), b""
    while data := sock.recv(65536):
        received += data
    assert b"Content-Type: application/json; charset=utf-8\r\n" in received


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1//models", "///v1////models", "/v1/models/", "//v1/models//"]
)
def test_slashes_too_many_are_no_redirect(api, path):
    sock, received = api.connect(f"GET {path} HTTP/1.0\r\n\r\n".encode()), b""
    while data := sock.recv(65536):
        received += data
    assert received.startswith(b"HTTP/1.0 200 OK") and b'"object": "list"' in received
    body = raw("/" + path.replace("models", "chat/completions"), chat(max_tokens=1))
    sock = api.connect(body.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert sock.recv(65536).startswith(b"HTTP/1.0 200 OK")


def test_a_key_is_asked_for_whatever_the_slashes(make_server):
    server = make_server(Options(api_key="k"))
    for path in ("//v1/models", "/v1/models/", "/v1//chat/completions", "//generate?prompt=x"):
        assert server.get(path).status_code in (401, 405), path
    assert server.get("//health/").ok


def test_the_list_of_models_says_enough(api):
    listed = api.get("/v1/models").json()
    assert listed["object"] == "list"
    for model in listed["data"]:
        assert model == api.get(f"/v1/models/{model['id']}").json()
        assert model["object"] == "model" and model["owned_by"] == "minigpt"
        assert type(model["created"]) is int and model["name"] == model["id"]
        assert model["context_length"] == model["max_model_len"] == BLOCK
        assert model["max_output_tokens"] == 10**6
        assert model["prompt_format"] in ("plain", "qa", "chat")


def test_a_page_may_read_what_was_dropped(make_server):
    server = make_server(Options(cors_origins=("*",)))
    answer = server.get("/v1/models", headers={"Origin": "http://a.example"})
    assert answer.headers["Access-Control-Expose-Headers"] == DROPPED
    assert requests.head(f"{server.url}/v1/models", timeout=PATIENCE).ok
