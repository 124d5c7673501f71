"""What goes wrong with a server, and what follows: the one table of failures.

An ApiError is what happened. `ApiError.meaning()` reads RULES, the table of status codes and words,
and gives a Fault: whose fault it is, and so what follows for the question and for the server. Words
of one more provider are added to RULES. What no rule knows is Fault.UNKNOWN: no one failure decides
there, only ten in a row do (minigpt/synthesis/pool.py).
"""

import email.utils
import enum
import json
import math
import re
import time
from contextlib import suppress
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.common.report import one_line

_READ = 1 << 14  # characters of an error's body that are looked at
_SAID = 1500  # of its message, in which words are searched


class ApiError(Exception):
    """Why there is no answer, or no more of it: a message for people and `kind`:

    "forbidden" (its network is not allowed), "unknown host", "refused" (nothing listens),
    "unreachable", "proxy", "tls", "timeout", "broken off", "http 500" (any status but 200),
    "garbage" (not what the API says), "too long" (more bytes than it may send), "error" (the server
    reports one within an answer).

    status: the HTTP status, or the one that an error within an answer names; said: what the body of
    the error says, its codes in brackets at the end; retry_after: seconds that the server asks for.
    Each may be None.
    """

    def __init__(self, kind, message, status=None, said="", retry_after=None):
        super().__init__(message)
        self.kind, self.message = kind, message
        self.status, self.said, self.retry_after = status, said, retry_after

    def without(self, key):
        """The same, its message in one line, and without the key, should the server repeat it."""
        message, said = one_line(without(key, self.message)), without(key, self.said)
        return ApiError(self.kind, message, self.status, said, self.retry_after)

    def meaning(self, fields=()):
        """(Fault, field): the first of RULES that fits. fields: of the request; field: the one of
        them that is not supported, where the Fault is FIELD, else None."""
        if self.status is None:
            return (Fault.BUSY if self.kind == "timeout" else Fault.DOWN), None
        for rule in RULES:
            found = rule.field(fields, self.said) if rule.fault is Fault.FIELD else None
            if rule.fits(self.status, self.said) and (found or rule.fault is not Fault.FIELD):
                return rule.fault, found
        return Fault.UNKNOWN, None

    @property
    def reason(self):
        """What two refusals with the same reason have in common: the status and the words, without
        numbers, identifiers and quotations."""
        words = _QUOTED.sub("", self.said[:_SAID])
        return self.status, " ".join(re.findall(r"[^\W\d_]+", _NUMBERED.sub("", words)))[:160]


_QUOTED = re.compile(r"\"[^\"]{0,400}\"|'[^']{0,400}'|“[^”]{0,400}”|`[^`]{0,400}`|「[^」]{0,400}」")
_NUMBERED = re.compile(r"[\w-]{0,60}\d[\w-]{0,60}", re.ASCII)


def without(key, text):
    """`text` with "(the key)" for each `key`; None: no key."""
    return (text if key is None else text.replace(key, "(the key)"))[:_READ]


# -- what follows ----------------------------------------------------------------------------------


class TemporaryError(Exception):
    """The same question may be answered another time. kind: as an ApiError's; overload: whether
    fewer questions at a time may help; retry_after: seconds that the server asks for, or None."""

    def __init__(self, kind, message, overload=False, retry_after=None):
        super().__init__(message)
        self.kind, self.overload, self.retry_after = kind, overload, retry_after

    @property
    def is_of_server(self):
        """Whether no question can be the cause."""
        return self.kind in _OF_SERVER


_OF_SERVER = {
    "refused",
    "unreachable",
    "unknown host",
    "proxy",
    "tls",
    "http 429",
    "http 503",
    "http 529",
}


class QuestionRefused(UserError):
    """This question gets no answer here, others may. reason: equal for refusals that say the same,
    None where the server refuses only what this question says (moderation); remedy: what may help,
    if it refuses every question so."""

    def __init__(self, message, reason=None, remedy=""):
        super().__init__(message)
        self.reason, self.remedy = reason, remedy


class ServerUnusable(Exception):
    """Why a server cannot answer any question: its key, its model, its address."""


class Fault(enum.Enum):
    """Whose fault a failure is → what follows."""

    ENTRY = "it refuses what this question says: QuestionRefused"
    LENGTH = "the question is too long for it: QuestionRefused; ten in a row: the server's fault"
    UNKNOWN = "any other refusal: the same"
    FIELD = "it does not support a field of the request: asked again without it"
    BUSY = "too much at a time: TemporaryError, and fewer questions at a time"
    DOWN = "it fails at the moment: TemporaryError"
    CREDIT = "nothing is left to pay with: ServerUnusable"
    KEY = "the key is missing or wrong: ServerUnusable"
    ACCESS = "it does not admit this user: ServerUnusable; if it has answered before, as UNKNOWN"
    MODEL = "no such model, or no API here: ServerUnusable; if it has answered before, as DOWN"


# What may help against a fault that QuestionRefused reports for every question.
REMEDIES = {
    Fault.LENGTH: "give it a longer context, or a smaller --text_max or --max_tokens",
    Fault.UNKNOWN: "a field that it wants in a request can be given by --extra_body",
}


class Rule(NamedTuple):
    """A row of RULES. It fits a failure if its status is in `statuses` (None: any) and its words
    match `words` (None: whatever they are)."""

    fault: Fault
    statuses: range | set | None = None
    words: re.Pattern | None = None

    def fits(self, status, said):
        """Whether this row is about such a failure."""
        is_status = self.statuses is None or status in self.statuses
        return is_status and (self.words is None or bool(self.words.search(said[:_SAID])))

    @staticmethod
    def field(fields, said):
        """The one of the request's `fields` that the words name, or None."""
        for name, pattern in FIELDS.items():
            if name in fields and pattern.search(said[:_SAID]):
                return name
        return None


def _words(*patterns):
    return re.compile("|".join(patterns), re.IGNORECASE)


# Fields that not every server supports → words by which it refuses one.
FIELDS = {
    "response_format": _words(
        r"response.?format|json.?schema|json.?object|structured|grammar|guided|json_validate|"
        r"generate json|json.?mode"
    ),
    # A limit that is too high for the context is no matter of this field, nor is one too low.
    "max_tokens": re.compile(
        r"(?is)^(?!.*(?:context|prompt|上下文|输入|at least|more than))"
        r"(?=.*(?:\bmax_?tokens\b|max_completion_tokens))|use\W+max_completion_tokens"
    ),
    "max_completion_tokens": _words(r"max_completion_tokens"),
    "temperature": _words(r"(?<![a-z])temperature(?![a-z])|温度"),
    "top_p": _words(r"(?<![a-z])top_?p(?![a-z])|nucleus"),
    "seed": _words(r"(?<![a-z])seed(?![a-z])|随机种子"),
    "stream_options": _words(r"stream_options|include_usage"),
    "stream": _words(
        r"only supports?.{0,20}stream|\bstream\b.{0,30}(?:must|should|to) be (?:set to )?true"
        r"|enable.{0,20}\bstream|(?:只|仅)支持(?:流|stream)"
    ),
}

_SECRET = r"(?:api|access|auth\w{0,20}|bearer|secret)[ _-]?(?:key|token)s?"
_BAD = r"invalid|incorrect|missing|wrong|expired|revoked|disabled|malformed"

# First match wins, so the order matters: a provider's words are more exact than its status.
RULES = (
    Rule(Fault.CREDIT, {402}),
    Rule(
        Fault.CREDIT,  # some call it throttling, too
        None,
        _words(
            r"free (?:tier|quota|trial|allocated).{0,60}(?:exhaust|exceeded|expired|used up|ended)",
            r"insufficient[ _]?balance|credit balance|arrear|欠费|欠費|余额不足|餘額不足",
        ),
    ),
    Rule(
        Fault.BUSY,
        None,
        _words(
            r"allocated quota exceeded, please increase|rate.?limit|throttl|too many requests",
            r"too frequent|requests? per|tokens per",
            r"(?<![a-z])[rtq]p[msdh](?![a-z])|(?<![a-z])qps(?![a-z])|concurren",
            r"(?:try again|retry) (?:in|after)\b|限流|限速|频率|频繁|頻率|并发|請求過多|请求过多",
        ),
    ),
    Rule(
        Fault.CREDIT,
        None,
        _words(
            r"insufficient[ _-]?(?:user|account)?[ _-]?(?:quota|balance|credit|fund)",
            r"exceed\w{0,3}[ _](?:your[ _])?(?:current[ _])?quota|out of (?:quota|credit)",
            r"quota.{0,30}(?:exceeded|exhausted|used up|run out|insufficient|depleted)",
            r"(?:balance|credits?)\b.{0,40}(?:insufficient|too low|not enough|exhausted|depleted)",
            r"overdue|good standing|\bbilling|payment required|prepaid|\btop.?up\b|recharge",
            r"can only afford|more credits|spend(?:ing)? limit|budget.{0,20}exceeded",
            r"欠款|余额|餘額|充值|儲值|资源包|资源点",
            r"(?:额度|配额|額度|配額|套餐).{0,10}(?:不足|用尽|用完|耗尽|已用|已超|到期|过期|用罄)",
        ),
    ),
    Rule(Fault.KEY, {401}),
    Rule(
        Fault.KEY,
        range(200, 501),
        _words(
            rf"(?:{_BAD}|\bno|provide|supply|require).{{0,30}}{_SECRET}",
            rf"{_SECRET}.{{0,60}}(?:{_BAD}|not valid|not found|required|not exist|not provided)",
            r"unauthori[sz]ed|unauthenticated|authentication|invalid_iam_token",
            r"(?:密钥|密鑰|令牌|api ?key|身份|鉴权|认证|签名)"
            r".{0,12}(?:无效|無效|错误|失败|过期|非法|不正确|不存在|缺失|为空|未通过|失效)",
            r"无效的(?:令牌|密钥|api|身份)|未提供(?:令牌|密钥)|请先登录",
        ),
    ),
    Rule(
        Fault.ACCESS,
        range(200, 501),
        _words(
            r"account.{0,40}(?:suspended|disabled|deactivated|banned|blocked|locked|inactive)",
            r"(?:账户|账号|帐户|帐号).{0,20}(?:冻结|封禁|停用|禁用|锁定|异常|被封|未激活)",
            r"unsupported_country|your (?:country|region)|permission.?denied|access.?denied",
            r"无权|无访问权限|没有权限|未开通|白名单",
        ),
    ),
    Rule(
        Fault.ENTRY,
        {*range(200, 501)} - {404, 405, 429},
        _words(
            r"content[ _-]?(?:filter|policy|management|safety|moderat|security|violat|exists risk)",
            r"moderat|flagged|\bsafety|unsafe|inappropriate|(?<!case[ -])sensitive|inspection",
            r"prohibited|harmful|high.?risk|exists risk|responsible.?ai|risk.?control|offensive",
            r"violat\w{0,4} (?:our|usage|content|polic)|usage polic|policy violation|not comply",
            r"违规|違規|敏感|不安全|安全(?:策略|审|检|风险|过滤)|审核|审查|風控|风控|违禁|不合规",
            r"涉政|涉黄|色情|暴力|不当内容|不良|違反|违反.{0,8}(?:法|规|政策|协议|条例)|法律法规",
        ),
    ),
    Rule(Fault.FIELD, {*range(200, 300), 400, 403, 404, 405, 415, 422, 500, 501}),
    Rule(Fault.LENGTH, {413, 414}),
    Rule(
        Fault.LENGTH,
        {*range(200, 501)} - {429},
        _words(
            r"context.{0,20}(?:length|window|size|limit|overflow)|keep the first \d",
            r"(?:prompt|input|message|text|request|content)s?\b.{0,40}\btoo (?:long|large)",
            r"too many (?:input )?tokens|input length|max(?:imum)? (?:input|prompt|length)",
            r"reduce the (?:length|number)|exceeds?.{0,40}context|length of (?:the )?\w{1,20}\W",
            r"超长|过长|太长|超長|過長|上下文|(?:长度|字数).{0,10}(?:超|限|不能)",
            r"超(?:过|出).{0,20}(?:长度|字符)",
        ),
    ),
    Rule(Fault.BUSY, {408, 429, 503, 504, 529}),
    # Redirects are not followed. 460, 499: somebody between us and it gave up.
    Rule(Fault.DOWN, {*range(300, 400), 409, 425, 460, 499, *range(501, 1000)}),
    Rule(
        Fault.DOWN,
        None,
        _words(
            r"unloaded|not (?:currently )?loaded|crash|(?:is|still|being) (?:loading|starting)",
            r"loading model|not (?:yet )?ready",
            r"overload|\bbusy\b|try again later|temporar|unavailable|timed? ?out|out of memory",
            r"\bcuda\b|\boom\b|upstream|connection (?:reset|refused|error|closed)|terminated",
            r"internal (?:server )?error|server error|exit code|llama runner|no (?:free )?slot",
            r"channel error|cancell?ed|disconnected|shutting down|maintenance|enginedead",
            r"稍后|稍後|繁忙|忙碌|超时|超時|过载|負載|负载|拥挤|维护|服务(?:器)?(?:异常|错误|不可用|出错)",
            r"内部(?:错误|异常)|系统(?:异常|错误|忙)|网络(?:错误|异常)|加载中|未就绪|崩溃",
        ),
    ),
    Rule(Fault.MODEL, {404, 405}),
    Rule(
        Fault.MODEL,
        range(200, 501),
        _words(
            r"\bmodel\b.{0,100}?\b(?:not (?:exist|found)|does not exist)\b|decommissioned",
            r"\b(?:invalid|unknown|no such|not a valid|failed to load) model\b|\bno models? loaded",
            r"model_not_found|access to (?:the )?model|模型.{0,20}(?:不存在|未找到|无效|下线|下架)",
        ),
    ),
    Rule(Fault.DOWN, {*range(200, 300), 500}),
    Rule(Fault.ACCESS, {403, 407}),
)


# -- what an error says ----------------------------------------------------------------------------


def error_text(data):
    """What the body of an HTTP error (bytes) says, whatever it is: JSON in any provider's form, a
    page, plain text."""
    text = data.decode("utf-8-sig", "replace")
    try:
        return _message_in(parse_json(text))
    except ValueError:
        # The words of a page are the proxy's, so only its title is kept.
        title = re.search(r"(?is)<title[^>]{0,99}>(.{0,300}?)</title", text[:_READ])
        return title[1] if title else re.sub(r"<[^<>]{0,200}>", " ", text[:_READ])


def error_in(answer):
    """The ApiError that an answer with status 200 holds, or None. Its status: the code in it, else
    500."""
    if not isinstance(answer, dict):
        return None
    codes = [code for level in _levels(answer) for code in _codes(level)]
    is_error = answer.get("object") == "error" or answer.get("error")
    if not is_error and (answer.get("choices") or not _seems_error(answer) or 0 in codes):
        return None
    status = next((code for code in codes if type(code) is int and 400 <= code < 600), 500)
    said = _message_in(answer)
    return ApiError("error", said, status, said)


# Keys under which providers put what went wrong: the first that an object has is followed.
_MESSAGES = ("error", "response", "base_resp", "header", "message", "detail", "msg", "error_msg")
_MESSAGES += ("error_message", "errmsg", "status_msg", "errors", "reason")
_CODES = ("code", "error_code", "errcode", "status_code", "param", "type", "status")
_ECHOES = {"input", "messages", "prompt", "failed_generation", "ctx", "url"}  # what we sent


def _seems_error(answer):
    """Whether an answer without choices says that something went wrong."""
    texts = ("message", "detail", "msg", "error_msg", "errmsg", "status_msg")
    codes = ("code", "error_code", "errcode", "base_resp", "header", "Response", "errors")
    return any(isinstance(answer.get(name), str) for name in texts) or any(map(answer.get, codes))


def _levels(value):
    """The objects from `value` inwards to the message, which comes last."""
    found = [value]
    while isinstance(value, dict) and len(found) < 9:
        keys = {key.lower(): key for key in value}
        name = next((keys[name] for name in _MESSAGES if value.get(keys.get(name))), None)
        if name is None:
            break
        value = value[name]
        if isinstance(value, str) and value.lstrip().startswith("{"):
            with suppress(ValueError):  # one provider's error in the message of another
                value = parse_json(value)
        found.append(value)
    return found


def _codes(level):
    """The values of an object that name an error."""
    if not isinstance(level, dict):
        return []
    keys = {key.lower(): key for key in level}
    return [level[keys[name]] for name in _CODES if name in keys]


def _message_in(value):
    *levels, last = _levels(value)
    if isinstance(last, dict):
        levels.append(last)
    is_text = isinstance(last, str)
    message = last if is_text else json.dumps(_without_echoes(last), ensure_ascii=False)
    message = message[:_SAID]
    raw = next((_raw(level) for level in levels if _raw(level)), "")
    # An HTTP status is shown anyway.
    codes = [str(c)[:60] for level in levels for c in _codes(level) if type(c) in (int, str)]
    new = [c for c in dict.fromkeys(codes) if c not in message and not re.fullmatch("[45]..|0", c)]
    more = ", ".join(filter(None, new)) if is_text else ""
    return message + raw + (f" [{more}]" if more else "")


def _raw(level):
    """What a provider behind a provider said (OpenRouter)."""
    metadata = level.get("metadata") if isinstance(level, dict) else None
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    return f" ({raw[:500]})" if isinstance(raw, str) else ""


def _without_echoes(value):
    """A JSON value without what repeats the question."""
    if isinstance(value, dict):
        return {k: _without_echoes(v) for k, v in value.items() if k not in _ECHOES}
    return [_without_echoes(v) for v in value] if isinstance(value, list) else value


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
