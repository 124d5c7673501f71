"""Records of question–answer pairs, instructions and conversations → Pair or Conversation.

Each parser takes a record as fields.normalized() returns it.
"""

import contextlib
import hashlib
import itertools
import json

from minigpt.common.json_text import parse_json
from minigpt.data.shapes.fields import (
    as_list,
    as_text,
    first_name,
    id_of,
    is_empty,
    optional_text,
    text_of,
)
from minigpt.data.shapes.samples import BadRecord, Conversation, LeftOut, Pair

ROLES = ("system", "user", "assistant")
# The names that people give to the same field; the first is ours.
QUESTION = ("question", "prompt", "query", "input", "problem", "user", "human", "问题", "提问")
ANSWER = ("answer", "response", "completion", "output", "target", "reply", "solution")
ANSWER += ("assistant", "gpt", "答案", "回答", "回复")
INSTRUCTION = ("instruction", "指令")
INPUT = ("input", "context", "输入")
SYSTEM = ("system", "system_prompt")
HISTORY = ("history",)
TOOLS = ("tools", "functions")
MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "dialogs", "chat")
ANSWERS = ("answers",)
_ROLE, _CONTENT = ("role", "from", "speaker"), ("content", "value", "text", "utterance")
# Names of roles → ours. What a tool returns is read as a turn of the user, a call is the
# assistant's: both are marked in the text.
_ROLE_NAMES = {
    **dict.fromkeys(("user", "human", "prompter", "用户"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard", "助手"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}


# -- pairs and instructions ------------------------------------------------------------------------


def parse_qa(record):
    """A question and its answer (QUESTION, ANSWER), optional input, system text and history → Pair,
    or a Conversation if the record has a field for a system text or earlier turns."""
    question = first_name(record, QUESTION)
    asked = text_of(record, *QUESTION)
    more = optional_text(record, *(name for name in INPUT if name != question))
    asked = f"{asked}\n\n{more}" if more else asked
    answer = text_of(record, *ANSWER)
    if any(name in record for name in (*SYSTEM, *HISTORY, *TOOLS)):
        return Conversation(
            id_of(record), (*_before(record), ("user", asked), ("assistant", answer))
        )
    return Pair(id_of(record), asked, answer)


def parse_alpaca(record):
    """`instruction` and `output` (or another of ANSWER), optional input, system text and history →
    Conversation. The user's turn is the instruction, a blank line and the input."""
    asked, answer = instruction_of(record), text_of(record, "output", *ANSWER)
    turns = *_before(record), ("user", asked), ("assistant", answer)
    return Conversation(id_of(record), turns)


def instruction_of(record):
    """The instruction, a blank line and the input; LeftOut where both are empty."""
    if not any(name in record for name in INSTRUCTION):
        raise BadRecord(f"field `{INSTRUCTION[0]}` is missing")
    asked = optional_text(record, *INSTRUCTION), optional_text(record, *INPUT)
    if not any(asked):
        raise LeftOut("empty instruction")
    return "\n\n".join(filter(None, asked))


def parse_squad(record):
    """A question with its `answers` about a paragraph (SQuAD, CMRC, DRCD) → Pair: the first answer.
    The paragraph is not learned; it names the entry (`id`), so that its questions are not torn."""
    answers = record.get("answers")
    if isinstance(answers, dict):  # of Hugging Face's datasets: {"text": [...], "answer_start": …}
        answers = answers.get("text")
    texts = [
        as_text("field `answers`", answer.get("text") if isinstance(answer, dict) else answer)
        for answer in (
            [answers] if isinstance(answers, str) else as_list("field `answers`", answers)
        )
    ]
    answer = next(filter(None, texts), None)
    if answer is None:
        raise LeftOut("empty answer")
    paragraph = optional_text(record, "context", "context_text")
    id_ = record.get("context_id")
    if is_empty(id_) and paragraph:
        id_ = hashlib.sha256(paragraph.encode("utf-8", "replace")).hexdigest()[:16]
    question = text_of(record, "question", "query_text", "query")
    return Pair(id_of(record) if is_empty(id_) else str(id_), question, answer)


def expanded(record):
    """The records in a record: an article of SQuAD, CMRC or DRCD has `paragraphs`, a paragraph has
    `qas`; each question becomes a record with its paragraph. Others are themselves."""
    paragraphs = record.get("paragraphs", [record])
    if not _all_have_questions(paragraphs):
        yield record
        return
    for paragraph in paragraphs:
        about = {name: paragraph[name] for name in ("context", "context_text") if name in paragraph}
        id_ = paragraph.get("context_id", paragraph.get("id"))
        for asked in paragraph["qas"]:
            yield {**asked, **about, "context_id": id_}


def _all_have_questions(paragraphs):
    return isinstance(paragraphs, list) and all(
        isinstance(each, dict)
        and isinstance(each.get("qas"), list)
        and all(isinstance(asked, dict) for asked in each["qas"])
        for each in paragraphs
    )


def _before(record):
    """The turns before a question: system text with tools, then the history."""
    return *system_turns(record), *history_of(record)


def system_turns(record):
    """The system's turn of a record, with the tools that it lists; none where both are empty."""
    name = first_name(record, TOOLS)
    value = None if name is None else record[name]
    text = value.strip() if isinstance(value, str) else value
    tools = "" if is_empty(text) or text == "[]" else _tools_text(text)
    text = "\n\n".join(filter(None, (optional_text(record, *SYSTEM), tools)))
    return (("system", text),) if text else ()


def history_of(record):
    """The earlier turns of a record: [[question, answer], …] or messages."""
    name = first_name(record, HISTORY)
    if name is None or is_empty(record[name]):
        return ()
    return turns_of(record[name], name)


# -- conversations ---------------------------------------------------------------------------------


def parse_chat(record):
    """A list of messages (MESSAGES), optional system text and tools → Conversation. After a turn of
    the user there must be one of the assistant."""
    name = first_name(record, MESSAGES)
    if name is None:
        raise BadRecord(f"field `{MESSAGES[0]}` is missing")
    turns = turns_of(record[name], name)
    if extra := system_turns(record):
        first = turns[0][1] if turns and turns[0][0] == "system" else ""
        text = "\n\n".join(filter(None, (first, extra[0][1] if extra[0][1] != first else "")))
        turns = (("system", text), *(turns[1:] if first else turns))
    roles = [role for role, _ in turns]
    if "assistant" not in itertools.dropwhile(lambda role: role != "user", roles):
        raise BadRecord("no turn of the assistant after one of the user")
    return Conversation(id_of(record), turns)


def turns_of(messages, field):
    """A list of messages → ((role, content), …), each content stripped. A message is an object with
    a role and a content, under the names of several data sets; a list or an object of a question
    and its answer is two. BadRecord names the message, LeftOut is for an empty one."""
    messages = as_list(f"field `{field}`", messages)
    turns, only_texts = [], bool(messages) and all(isinstance(each, str) for each in messages)
    for number, message in enumerate(messages, start=1):
        where = f"message {number}" if field == "messages" else f"field `{field}`, message {number}"
        if only_texts and len(messages) > 1:
            found = [("user" if number % 2 else "assistant", message)]
        elif isinstance(message, list | tuple) and len(message) == 2:
            found = list(zip(("user", "assistant"), message, strict=True))
        elif isinstance(message, dict):
            found = _message_turns(message, where)
        else:
            raise BadRecord(f"{where}: expected a JSON object, found {type(message).__name__}")
        for role, content in found:
            content = as_text(f"{where}: `content`", content)
            if content:
                _append(turns, role, content)
            elif role != "system":
                raise LeftOut(f"empty message of the {'assistant' if role == 'call' else role}")
    return tuple(turns)


def _append(turns, role, content):
    """Add a turn. Results of tools that follow one another are one turn of the user."""
    if role == "tool":
        content = f"<tool_response>\n{content}\n</tool_response>"
        if turns and turns[-1][0] == "user" and turns[-1][1].startswith("<tool_response>"):
            turns[-1] = ("user", f"{turns[-1][1]}\n{content}")
            return
        role = "user"
    elif role == "call":
        role, content = "assistant", f"<tool_call>\n{content}\n</tool_call>"
    turns.append((role, content))


def _message_turns(message, where):
    """A message as [(role, content)]; an object such as {"human": …, "assistant": …} is two."""
    name = first_name(message, _ROLE)
    if name is None:
        asked, answered = first_name(message, QUESTION), first_name(message, ANSWER)
        if asked and answered:
            return [("user", message[asked]), ("assistant", message[answered])]
    role = _ROLE_NAMES.get(str(message.get(name)).strip().lower())
    if role is None:
        raise BadRecord(
            f"{where}: its role is {message.get(name)!r}; expected one of {', '.join(ROLES)}, tool"
        )
    calls = message.get("tool_calls") or message.get("function_call")
    content = first_name(message, _CONTENT)
    if content is None and is_empty(calls):
        raise BadRecord(f"{where}: `content` is missing")
    text = "" if content is None else _joined(where, message[content])
    if not is_empty(calls):
        calls = as_list(f"{where}: `tool_calls`", [calls] if isinstance(calls, dict) else calls)
        texts = [f"<tool_call>\n{_call_text(call)}\n</tool_call>" for call in calls]
        text = "\n".join(filter(None, (as_text(where, text), *texts)))
    return [(role, text)]


def _joined(where, content):
    """The text of a content, which may be a list of parts as OpenAI's API has them."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, str):
            texts.append(part)
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadRecord(f"{where}: a part of the type {kind} is no text and cannot be learned")
    return "".join(texts)


# -- tools: as text --------------------------------------------------------------------------------


def _call_text(call):
    """A tool call as JSON in one line: name and arguments."""
    call = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(call, dict):
        return as_text("a tool call", call)
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # then it stays a text
            arguments = parse_json(arguments)
    found = {"name": call.get("name"), "arguments": arguments}
    return json.dumps(found, ensure_ascii=False)


def _tools_text(tools):
    """The tools that a conversation may call, for the system's turn."""
    if not isinstance(tools, str):
        many = tools if isinstance(tools, list) else [tools]
        tools = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in many)
    return f"<tools>\n{tools}\n</tools>"
