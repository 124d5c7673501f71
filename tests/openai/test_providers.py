"""What providers say when something goes wrong, each body as its documentation or users show it, on
a real socket: whose fault it is, and so what follows."""

import json

import pytest
from scripted_server import body, error, good

from minigpt.openai.client import Client
from minigpt.openai.errors import (
    ApiError,
    Fault,
    QuestionRefused,
    ServerUnusable,
    TemporaryError,
    error_in,
    error_text,
)

QUESTION = {
    **dict(model="scripted", messages=[{"role": "user", "content": "首都？"}], stream=False),
    **dict(temperature=0.45, top_p=0.9, max_tokens=2048, seed=7),
    "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}},
}

pytestmark = pytest.mark.usefixtures("no_proxy")


def said(message, code=None, type_=None, param=None):
    """OpenAI's form."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


# Nothing is left to pay with: the server is out.
CREDIT = [
    (429, said("You exceeded your current quota, please check your plan.", "insufficient_quota")),
    (402, said("Insufficient Balance", "invalid_request_error")),  # DeepSeek
    (402, said("This request requires more credits, or fewer max_tokens.")),  # OpenRouter
    (403, {"code": 30001, "message": "Sorry, your account balance is insufficient"}),  # SiliconFlow
    (429, {"error": {"code": "1113", "message": "您的账户已欠费，请充值后重试。"}}),  # Zhipu
    (400, said("Access denied, please make sure your account is in good standing.", "Arrearage")),
    (403, said("The free tier of the model has been exhausted.", "AllocationQuota.FreeTierOnly")),
    (
        429,
        said(
            "Your account is suspended, please check your plan and billing details",
            None,
            "exceeded_current_quota_error",
        ),
    ),  # Moonshot
    (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API.",
            },
        },
    ),
    (
        403,
        said(
            "The request failed because your account has an overdue balance.", "AccountOverdueError"
        ),
    ),  # Volcengine
    (400, said("Budget has been exceeded! Current cost: 0.5, Max budget: 0.1")),  # LiteLLM
    (403, said("用户额度不足，剩余额度：¥0.00", "insufficient_user_quota")),  # one-api
    (200, {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}),  # MiniMax
    (200, {"error_code": 336000, "error_msg": "账户余额不足"}),  # Qianfan
    (
        200,
        {
            "Response": {
                "Error": {
                    "Code": "FailedOperation.ResourcePackExhausted",
                    "Message": "资源包已用尽",
                }
            }
        },
    ),  # Hunyuan
]
# Too much at a time, or a bad moment: it is asked again.
MOMENT = [
    (
        429,
        said(
            "Rate limit reached on tokens per day. Please try again in 7m12s. Need more tokens? "
            "Upgrade at https://console.groq.com/settings/billing",
            "rate_limit_exceeded",
        ),
    ),
    (
        429,
        said(
            "You exceeded your current quota, please check your plan and billing details. "
            "Please retry in 34.07s.",
            429,
        ),
    ),  # Gemini's limit of a minute
    (429, said("您当前使用该API的并发数过高，请降低并发，或联系客服增加限额。", "1302")),
    (429, said("Requests rate limit exceeded, please try again later.", "limit_requests")),
    (403, {"code": 50603, "message": "Request was rejected due to rate limiting."}),
    (200, {"error_code": 336501, "error_msg": "Rate limit reached for RPM"}),
    (400, {"error": "Model unloaded."}),  # LM Studio
    (400, {"error": "The model has crashed without additional information. (Exit code: 1844)"}),
    (400, {"error": "Channel Error"}),
    (500, {"error": "llama runner process has terminated: exit status 2"}),  # Ollama
    (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
    (500, {"detail": "EngineCore encountered an issue."}),  # vLLM
    (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    (499, {"message": "client closed"}),
    (200, {"code": 500, "msg": "系统繁忙，请稍后再试", "success": False}),
    (200, {"header": {"code": 10008, "message": "服务容量不足"}, "payload": {}}),  # Spark
    (400, said("服务器内部错误，请稍后重试", "InternalError")),
]
# What one question says: it is refused, and says nothing about the server.
ENTRY = [
    (
        400,
        {
            "contentFilter": [{"level": 1}],
            "error": {
                "code": "1301",
                "message": "系统检测到输入或生成内容可能包含不安全或敏感内容",
            },
        },
    ),
    (400, said("Input data may contain inappropriate content.", "data_inspection_failed")),
    (400, said("Content Exists Risk", "invalid_request_error")),  # DeepSeek
    (
        400,
        said(
            "The request was rejected because it was considered high risk", None, "content_filter"
        ),
    ),  # Moonshot
    (
        400,
        said(
            "The response was filtered due to the prompt triggering Azure OpenAI's content "
            "management policy.",
            "content_filter",
            param="prompt",
        ),
    ),
    (403, said("Your input was flagged by moderation")),  # OpenRouter
    (451, said("输入内容违规")),
    (400, said("The input text may contain sensitive information", "SensitiveContentDetected")),
    (200, {"error_code": 336104, "error_msg": "内容安全审核未通过"}),
    (200, {"header": {"code": 10013, "message": "输入内容审核不通过，涉嫌违规"}}),
]
# Too long for the context.
LENGTH = [
    (
        400,
        said(
            "This model's maximum context length is 2048 tokens. However, you requested 2600 "
            "tokens. Please reduce the length of the messages.",
            400,
            "BadRequestError",
        ),
    ),
    (
        400,
        said(
            "'max_tokens' is too large: 2048. This model's maximum context length is 2048 tokens "
            "and your request has 552 input tokens."
        ),
    ),
    (
        400,
        {
            "error": {
                "code": 400,
                "type": "exceed_context_size_error",
                "message": "the request exceeds the available context size, try increasing it",
            }
        },
    ),
    (400, {"error": "Trying to keep the first 4321 tokens when context the overflows."}),
    (400, said("Range of input length should be [1, 6000]", "InvalidParameter")),
    (400, {"error": {"code": "1261", "message": "Prompt 超长"}}),
    (413, said("Request Entity Too Large")),
    (200, {"error_code": 336007, "error_msg": "the max length of current question is 2000"}),
]
# A refusal that no rule knows.
UNKNOWN = [
    (400, said("parameter.enable_thinking must be set to false for non-streaming calls")),
    (400, said("Параметр не поддерживается")),
    (422, {"detail": [{"loc": ["body", "x"], "msg": "field required", "input": {"seed": 1}}]}),
    (400, said("API 调用参数有误，请检查文档。", "1210")),
    (418, {}),
]
# The key, the account or the model: the server is out.
UNUSABLE = [
    (401, said("Incorrect API key provided: sk-x.", "invalid_api_key"), "it wants a key"),
    (401, {"error": {"code": "1002", "message": "Authorization Token非法"}}, "it wants a key"),
    (400, said("API key not valid. Please pass a valid API key.", 400), "it wants a key"),
    (200, {"error_code": 110, "error_msg": "Access token invalid or no longer valid"}, "a key"),
    (200, {"code": 1001, "msg": "api key无效"}, "it wants a key"),
    (403, said("Country, region, or territory not supported", "unsupported_country_region"), "403"),
    (403, {"error": {"code": "1220", "message": "您无权访问该模型。"}}, "403"),
    (404, {"error": "model 'qwen3:8b' not found, try pulling it first"}, "no model scripted"),
    (400, said("No models loaded. Please load a model in the developer page."), "no model"),
    (400, {"error": {"code": "1211", "message": "模型不存在，请检查模型代码。"}}, "no model"),
    (404, said("The model `gpt-9` does not exist or you do not have access to it."), "no model"),
]


def answered(serve, status, data):
    """What a client raises for this answer, from a server that has not answered yet."""
    server = serve(body(json.dumps(data, ensure_ascii=False).encode(), status))
    with pytest.raises((TemporaryError, QuestionRefused, ServerUnusable)) as caught:
        Client(server.base_url, timeout=20, warn=print).ask(QUESTION)
    return caught.value, server


@pytest.mark.parametrize(("status", "data"), CREDIT)
def test_a_quota_that_is_gone(serve, status, data):
    caught, server = answered(serve, status, data)
    assert isinstance(caught, ServerUnusable) and "it wants to be paid" in str(caught)
    assert len(server.seen) == 1


@pytest.mark.parametrize(("status", "data"), MOMENT)
def test_a_bad_moment(serve, status, data):
    caught, server = answered(serve, status, data)
    assert isinstance(caught, TemporaryError) and len(server.seen) == 1


@pytest.mark.parametrize(("status", "data"), ENTRY)
def test_what_one_question_says(serve, status, data):
    caught, server = answered(serve, status, data)
    assert isinstance(caught, QuestionRefused) and caught.reason is None
    assert len(server.seen) == 1


@pytest.mark.parametrize(("status", "data"), LENGTH)
def test_too_long(serve, status, data):
    caught, _ = answered(serve, status, data)
    assert isinstance(caught, QuestionRefused) and "--text_max" in caught.remedy and caught.reason


@pytest.mark.parametrize(("status", "data"), UNKNOWN)
def test_what_no_rule_knows(serve, status, data):
    caught, _ = answered(serve, status, data)
    assert isinstance(caught, QuestionRefused) and "--extra_body" in caught.remedy and caught.reason


@pytest.mark.parametrize(("status", "data", "message"), UNUSABLE)
def test_the_key_the_account_or_the_model(serve, status, data, message):
    caught, _ = answered(serve, status, data)
    assert isinstance(caught, ServerUnusable) and message in str(caught)


@pytest.mark.parametrize(
    ("field", "status", "data"),
    [
        (
            "temperature",
            400,
            said(
                "Unsupported value: 'temperature' does not support 0.45 with this "
                "model. Only the default (1) value is supported.",
                "unsupported_value",
                param="temperature",
            ),
        ),
        ("temperature", 400, said("invalid temperature: only 0.6 is allowed for this model")),
        ("temperature", 422, {"detail": [{"loc": ["body", "temperature"], "msg": "less than 1"}]}),
        ("temperature", 200, {"error_code": 336003, "error_msg": "temperature 参数不支持"}),
        ("top_p", 400, said("`temperature` and `top_p` cannot both be specified", param="top_p")),
        ("seed", 400, said("Unrecognized request argument supplied: seed")),
        ("response_format", 400, said("This response_format type is unavailable now")),
        ("response_format", 400, said("Failed to generate JSON.", "json_validate_failed")),
        (
            "response_format",
            400,
            said(
                "'messages' must contain the word 'json' in some form, to use "
                "'response_format' of type 'json_object'."
            ),
        ),
        ("max_tokens", 400, said("Invalid max_tokens value, the valid range is [1, 1024]")),
        ("max_tokens", 400, said("Range of max_tokens should be [1, 1024]")),
        (
            "max_tokens",
            400,
            said(
                "Unsupported parameter: 'max_tokens' is not supported with this "
                "model. Use 'max_completion_tokens' instead."
            ),
        ),
        (
            "stream",
            400,
            said(
                "This model only support stream mode, please enable the stream "
                "parameter to access the model."
            ),
        ),
        ("stream", 400, {"error": {"code": "x", "message": "该模型仅支持流式调用"}}),
    ],
)
def test_a_field_is_left_out_and_the_question_asked_again(serve, field, status, data):
    def script(asked):
        if field in asked.body and not (field == "stream" and asked.body["stream"]):
            if field == "top_p" and "temperature" not in asked.body:
                return good("x")
            return body(json.dumps(data, ensure_ascii=False).encode(), status)
        return good("x")

    server, news = serve(script=script), []
    lab = Client(server.base_url, name="lab", timeout=20, warn=news.append)
    assert [lab.ask(QUESTION).text for _ in range(3)] == ["x"] * 3
    assert len(server.seen) == 4 and len(news) == 1 and "asked without from now on" in news[0]
    last = server.seen[-1].body
    if "max_completion_tokens" in str(data):
        assert last["max_completion_tokens"] == 2048 and "max_tokens" not in last


def test_a_name_that_is_refused_too(serve):
    """max_tokens becomes max_completion_tokens, and that is refused as well."""

    def script(asked):
        names = [name for name in asked.body if name.endswith("_tokens")]
        return (
            error(400, f"{names[0]} is not known; max_completion_tokens?") if names else good("x")
        )

    server = serve(script=script)
    assert Client(server.base_url, timeout=20, warn=print).ask(QUESTION).text == "x"
    assert len(server.seen) == 3 and not [n for n in server.seen[-1].body if "tokens" in n]


def test_a_server_that_refuses_both_ways_of_streaming(serve):
    server = serve(error(400, "This model only supports stream mode"))
    with pytest.raises(QuestionRefused):
        Client(server.base_url, timeout=20, warn=print).ask(QUESTION)
    assert [asked.body["stream"] for asked in server.seen] == [False, True]


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (404, "404 page not found", TemporaryError),
        (400, "No models loaded", TemporaryError),
        (403, "so nicht", QuestionRefused),
        (401, "the key was revoked", ServerUnusable),
        (402, "no credit", ServerUnusable),
    ],
)
def test_a_server_that_has_answered_has_a_model_and_lets_us_in(serve, status, message, kind):
    server = serve(script=lambda a: good("x") if a.number == 1 else error(status, message))
    lab = Client(server.base_url, timeout=20)
    lab.ask(QUESTION)
    with pytest.raises(kind):
        lab.ask(QUESTION)


@pytest.mark.parametrize(
    ("reason", "cut"),
    [
        *((reason, False) for reason in ("stop", "STOP", "eos", "tool_calls", None)),
        *((reason, True) for reason in ("length", "content_filter", "sensitive", "error", "abort")),
        ("insufficient_system_resource", True),
    ],
)
def test_why_an_answer_ended(serve, reason, cut):
    answer = Client(serve(good("x", finish_reason=reason)).base_url, timeout=20).ask(QUESTION)
    assert (answer.finish_reason, answer.cut) == (reason, cut)


@pytest.mark.parametrize("path", ["/api/chat/completions", "/x/chat/completions"])
def test_a_full_address_is_taken_as_it_is(serve, path):
    server = serve(good("x"))
    url = server.base_url.removesuffix("/v1") + path
    with pytest.raises(ServerUnusable):  # the scripted server has another path
        Client(url, timeout=20).ask(QUESTION)
    assert Client(server.base_url + "/chat/completions", timeout=20).ask(QUESTION).text == "x"


def test_reasons_are_equal_where_only_numbers_names_and_quotations_differ():
    def reason(text, status=400):
        return ApiError("http 400", "", status, text).reason

    same = reason("too long: 2600 tokens (request id: 20240501abc-7f)")
    assert same == reason("too long: 311 tokens (request id: 99999999ffe-0a)")
    assert reason("Invalid value '松柏' for 「甲」") == reason('Invalid value "梅" for “乙”')
    assert reason("a") != reason("b") and reason("a", 400) != reason("a", 422)


def test_no_echo_of_the_question_is_searched_for_words():
    """An error that repeats the entry says nothing by the entry's words."""
    echoed = {"detail": [{"loc": ["body", "x"], "msg": "bad", "input": "账户余额不足，敏感内容"}]}
    assert "余额" not in error_text(json.dumps(echoed).encode())
    fault, _ = ApiError("http 422", "", 422, error_text(json.dumps(echoed).encode())).meaning()
    assert fault is Fault.UNKNOWN


def test_an_answer_that_says_it_went_well_is_no_error():
    for answer in (
        {"choices": [], "code": 0, "message": "Success", "usage": {}},
        {"choices": None, "base_resp": {"status_code": 0, "status_msg": "success"}},
        {"choices": [], "usage": {}},
        {"message": {"role": "assistant", "content": "余额不足"}, "done": True},
        {"type": "ping"},
    ):
        assert error_in(answer) is None
