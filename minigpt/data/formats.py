"""Formats: every shape of record that is read, in one registry.

    FORMATS["qa"].parse({"question": "谁？", "answer": "我。"})  # Pair(None, "谁？", "我。")
    read_record(record, parse_qa, "a.jsonl", 7)   # a Pair, or a Reject that names file and line
    recognize(record)                             # the Format by the record's fields, or None

To add a format, write a function record → Entry, Pair, Conversation or Preference, and add a Format
to the registry. The knob --format, --help, error messages, the training of tokenizers and the
evaluations read the registry.
"""

import itertools
import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from minigpt.data.readers.chunks import Reject

ROLES = ("system", "user", "assistant")  # of the messages in a conversation


# -- samples: what records become ------------------------------------------------------------------


class Entry(NamedTuple):
    """A text to continue; `id` as the file gives it, else "FILE:LINE"."""

    id: str | None
    title: str
    text: str


class Pair(NamedTuple):
    """A question with its answer; `id` names the entry they are about, None where there is none."""

    id: str | None
    question: str
    answer: str


class Conversation(NamedTuple):
    """The messages of a conversation: `turns` is ((role, content), …), with the roles of ROLES;
    `id` as the file gives it, None where there is none."""

    id: str | None
    turns: tuple


class Preference(NamedTuple):
    """A prompt with a chosen and a rejected answer. `turns` is the prompt, as in a Conversation;
    its last turn is the user's. `id` names what the prompt is about, `kind` what is wrong with the
    rejected answer; None where not given."""

    id: str | None
    turns: tuple
    chosen: str
    rejected: str
    kind: str | None


class BadRecord(ValueError):
    """A record that cannot become a sample; the message is the reason."""


# -- record → sample -------------------------------------------------------------------------------


def parse_text(record):
    """Fields `text`, optional `title` and `id` → Entry (not cleaned)."""
    _check_text("field `text`", record.get("text"))
    title = record.get("title")
    return Entry(_id_of(record), title if isinstance(title, str) else "", record["text"])


def parse_qa(record):
    """Fields `question` and `answer`, optional `id` → Pair, both texts stripped."""
    return Pair(_id_of(record), _stripped(record, "question"), _stripped(record, "answer"))


def parse_alpaca(record):
    """Fields `instruction` and `output`, optional `input` and `id` → Conversation of two turns. The
    user's turn is the instruction, a blank line and the input."""
    asked = [_stripped(record, "instruction")]
    more = record.get("input")
    if more is not None and str(more).strip():
        asked.append(_stripped(record, "input"))
    turns = ("user", "\n\n".join(asked)), ("assistant", _stripped(record, "output"))
    return Conversation(_id_of(record), turns)


def parse_chat(record):
    """Field `messages`, [{"role": one of ROLES, "content": text}, …], optional `id` → Conversation,
    each content stripped. After a turn of the user there must be one of the assistant."""
    turns = _turns(record.get("messages"), "messages")
    roles = [role for role, _ in turns]
    if "assistant" not in itertools.dropwhile(lambda role: role != "user", roles):
        raise BadRecord("no turn of the assistant after one of the user")
    return Conversation(_id_of(record), turns)


def parse_preference(record):
    """Fields `prompt` (a text, or a list of messages that ends with the user's), `chosen` and
    `rejected`, optional `id` and `kind` → Preference, all texts stripped."""
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        if not prompt:
            raise BadRecord("field `prompt` is empty")
        turns = _turns(prompt, "prompt")
        if turns[-1][0] != "user":
            raise BadRecord(
                f"field `prompt`: the last message is the {turns[-1][0]}'s, not the user's"
            )
    else:
        turns = (("user", _stripped(record, "prompt")),)
    chosen, rejected = _stripped(record, "chosen"), _stripped(record, "rejected")
    kind = record.get("kind")
    return Preference(_id_of(record), turns, chosen, rejected, None if kind is None else str(kind))


def _turns(messages, field):
    """A list of messages → ((role, content), …)."""
    if messages is None:
        raise BadRecord(f"field `{field}` is missing")
    if not isinstance(messages, list):
        raise BadRecord(f"field `{field}`: expected a list, found {type(messages).__name__}")
    turns = []
    for number, message in enumerate(messages, start=1):
        where = f"message {number}" if field == "messages" else f"field `{field}`, message {number}"
        if not isinstance(message, dict):
            raise BadRecord(f"{where}: expected a JSON object, found {type(message).__name__}")
        role = message.get("role")
        if role not in ROLES:
            raise BadRecord(f"{where}: its role is {role!r}; expected one of {', '.join(ROLES)}")
        content = message.get("content")
        _check_words(f"{where}: `content`", content)
        turns.append((role, content.strip()))
    return tuple(turns)


def _stripped(record, field):
    """A field's text, blanks at both ends removed. BadRecord where nothing is left."""
    _check_words(f"field `{field}`", record.get(field))
    return record[field].strip()


def _check_words(name, value):
    if isinstance(value, str) and not value.strip():
        raise BadRecord(f"{name} is empty")
    _check_text(name, value)


def _check_text(name, value):
    if value is None:
        raise BadRecord(f"{name} is missing")
    if not isinstance(value, str):
        raise BadRecord(f"{name}: expected text, found {type(value).__name__}")


def _id_of(record):
    id_ = record.get("id")
    return None if id_ is None else str(id_)


# -- the registry ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One shape of record.

    name:        the value of --format
    fields:      a record that has all of them is recognized as this format
    parse:       record → Entry, Pair, Conversation or Preference; BadRecord where it cannot be used
    description: one line for --help and the documents
    example:     a record of this format
    """

    name: str
    fields: tuple[str, ...]
    parse: Callable
    description: str
    example: dict

    @cached_property
    def sample_type(self):
        """What parse() returns: Entry, Pair, Conversation or Preference."""
        return type(self.parse(self.example))

    def matches(self, record):
        """Return whether a record has the fields of this format."""
        return all(field in record for field in self.fields)


_ALL = (  # a record may match several: the first one counts
    Format(
        "qa",
        fields=("question",),
        parse=parse_qa,
        description="`question`, `answer`: question, answer mark, answer, EOT",
        example={"question": "黄河有多长？", "answer": "五千四百多公里。"},
    ),
    Format(
        "alpaca",
        fields=("instruction",),
        parse=parse_alpaca,
        description="`instruction`, `output`, optional `input`: a conversation of two turns; the "
        "user's is instruction, blank line, input",
        example={"instruction": "把数字翻倍。", "input": "21", "output": "42"},
    ),
    Format(
        "chat",
        fields=("messages",),
        parse=parse_chat,
        description="`messages`, a list of `role` (system, user, assistant) and `content`, as in "
        "OpenAI's API: the turns in ChatML's marks",
        example={
            "messages": [
                {"role": "user", "content": "早。"},
                {"role": "assistant", "content": "你好。"},
            ]
        },
    ),
    Format(
        "preference",
        fields=("prompt", "chosen", "rejected"),
        parse=parse_preference,
        description="`prompt` (a text, or a list of messages that ends with the user's), `chosen`, "
        "`rejected`, optional `kind`",
        example={"prompt": "黄河有多长？", "chosen": "五千四百多公里。", "rejected": "很长。"},
    ),
    Format(
        "text",
        fields=("text",),
        parse=parse_text,
        description="`text`, optional `title`: a text to continue",
        example={"title": "黄河", "text": "黄河是中国的第二长河。"},
    ),
)
FORMATS = {format.name: format for format in _ALL}
# The script that prepares each type of sample.
SCRIPTS = {
    Entry: "data/prepare.py",
    Pair: "data/prepare_sft.py",
    Conversation: "data/prepare_sft.py",
    Preference: "data/prepare_dpo.py",
}


def formats_of(*sample_types):
    """Name → Format of those formats whose records become one of these types of sample."""
    return {name: format for name, format in FORMATS.items() if format.sample_type in sample_types}


# What a tokenizer is trained on. Preferences are left out: half of their answers are wrong.
TRAINED_ON = formats_of(Entry, Pair, Conversation)


def recognize(record, among=FORMATS):
    """Return the Format (of `among`, name → Format) whose fields a record has, or None."""
    return next((format for format in among.values() if format.matches(record)), None)


def describe(formats):
    """Return the lines that --help shows of these formats: name, description, an example."""
    width = max(len(format.name) for format in formats)
    indent = " " * (width + 6)
    lines = []
    for format in formats:
        about = textwrap.fill(
            format.description, 100, initial_indent=indent, subsequent_indent=indent
        )
        lines.append(f"    {format.name:<{width}}  {about.removeprefix(indent)}")
        lines.append(indent + json.dumps(format.example, ensure_ascii=False))
    return "\n".join(lines)


def read_record(record, parse, source, line, check=None, unit="line"):
    """Return the sample of a record, or a Reject with where it is and why it cannot be used.

    parse: record → sample.  check: raises BadRecord for a sample that is good, but not wanted.
    """
    try:
        sample = parse(record)
        if check:
            check(sample)
    except BadRecord as error:
        reason = f"{error}{_hint(record, parse)}"
        text = json.dumps(record, ensure_ascii=False)
        return Reject(source, line, reason, text, unit, len(text.encode("utf-8", "replace")))
    if type(sample) is Entry and sample.id is None:
        sample = sample._replace(id=f"{source}:{line}")
    return sample


def summary(formats):
    """Return the formats in one line, for an error: names, and the fields that tell them."""
    return ", ".join(f"{format.name} ({', '.join(format.fields)})" for format in formats)


def _hint(record, parse):
    """What an error adds where a record has the fields of another format than the wanted one."""
    wanted = next((format for format in FORMATS.values() if format.parse is parse), None)
    found = recognize(record)
    if not wanted or not found or wanted.matches(record):
        return ""
    script = SCRIPTS[found.sample_type]
    of_script = [each for each in FORMATS.values() if SCRIPTS[each.sample_type] == script]
    what = f"--format={found.name} of" if len(of_script) > 1 else "data for"
    return f" (it looks like {what} {script})"


# -- any format as a conversation ------------------------------------------------------------------


def to_conversation(sample):
    """A Pair or a Conversation as a Conversation."""
    if isinstance(sample, Pair):
        return Conversation(sample.id, (("user", sample.question), ("assistant", sample.answer)))
    return sample


def parse_dialogue(record):
    """A record of any format that becomes a Pair or a Conversation → Conversation."""
    formats = formats_of(Pair, Conversation)
    format = recognize(record, formats) or formats["chat"]
    return to_conversation(format.parse(record))
