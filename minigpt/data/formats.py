"""Formats: every shape of record that is read, in one registry.

    FORMATS["qa"].parse({"question": "谁？", "answer": "我。"})  # Pair(None, "谁？", "我。")
    any_of(formats_of(Pair, Conversation))        # a Format that recognizes which one a record has
    read_record(record, parse_qa, "a.jsonl", 7)   # a Pair, a LeftOut, or a Reject: file and line
    recognize(record)                             # the Format by the record's fields, or None

To add a format, write a function record → Entry, Pair, Conversation, Preference or Prompt
(minigpt/data/shapes/), and add a Format to the registry. The knob --format, --help, error messages,
the training of tokenizers and the evaluations read the registry.
"""

import difflib
import functools
import itertools
import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from minigpt.data.readers.chunks import Reject
from minigpt.data.shapes.dialogues import (
    ANSWER,
    ANSWERS,
    HISTORY,
    INPUT,
    INSTRUCTION,
    MESSAGES,
    QUESTION,
    SYSTEM,
    TOOLS,
    parse_alpaca,
    parse_chat,
    parse_qa,
    parse_squad,
)
from minigpt.data.shapes.fields import first_name, is_empty, normalized
from minigpt.data.shapes.poems import AUTHOR, PARAGRAPHS, TITLE, parse_poem
from minigpt.data.shapes.preferences import CHOSEN, PROMPT, REJECTED, parse_preference
from minigpt.data.shapes.prompts import ASKED, parse_prompt
from minigpt.data.shapes.samples import (
    BadRecord,
    Conversation,
    Entry,
    LeftOut,
    Pair,
    Preference,
    Prompt,
)

# -- texts -----------------------------------------------------------------------------------------


# Fields of a text and of its title, in any case; the first that a record has counts.
TEXT_FIELDS = (
    "text",
    "content",
    "正文",
    "body",
    "article",
    "document",
    "raw_content",
    "paragraphs",
)
TEXT_FIELDS += ("markdown", "passage", "story", "内容", "文本", "文章", "全文", "內容", "原文")
TITLE_FIELDS = ("title", "标题", "標題", "题目", "題目", "headline")


def parse_text(record, text_field="", title_field=""):
    """A text (see TEXT_FIELDS; a list of lines is joined), optional title and `id` → Entry (not
    cleaned). text_field and title_field: the names of other fields."""
    found = _field(record, (text_field,) if text_field else TEXT_FIELDS)
    if found is None:
        missing = f"field `{text_field or 'text'}` is missing"
        if recognize(record) is None:
            names = ", ".join(map(str, itertools.islice(record, 12))) or "none"
            missing += (
                f" (it has: {names}; name the text with --text_field=NAME; questions with answers "
                f"are for data/prepare_sft.py)"
            )
        raise BadRecord(missing)
    text = record[found]
    if isinstance(text, list) and all(isinstance(line, str) for line in text):
        text = "\n".join(text)
    if text is not None:  # an empty cell
        _check_text(f"field `{found}`", text)
    title = record.get(_field(record, (title_field,) if title_field else TITLE_FIELDS))
    return Entry(_id_of(record), title if isinstance(title, str) else "", text or "")


def text_format(text_field="", title_field=""):
    """TEXTS, or the Format "text" with other names of fields; "" leaves the usual ones."""
    usual = FORMATS["text"]
    if not (text_field or title_field):
        return TEXTS
    parse = functools.partial(parse_text, text_field=text_field, title_field=title_field)
    fields = ((text_field.lower(),),) if text_field else usual.fields
    example = {title_field or "title": "黄河", text_field or "text": usual.example["text"]}
    return replace(usual, parse=parse, fields=fields, example=example)


def _field(record, names):
    """Return the first of `names` that a record has as a field, in any case; None if none."""
    for name in names:
        if name in record:
            return name
    by_lower = {field.strip().lower(): field for field in record if isinstance(field, str)}
    return next((by_lower[name.lower()] for name in names if name.lower() in by_lower), None)


def _check_text(name, value):
    if value is None:
        raise BadRecord(f"{name} is missing")
    if not isinstance(value, str):
        raise BadRecord(f"{name}: expected text, found {type(value).__name__}")


def _id_of(record):
    id_ = record.get("id")
    return None if id_ is None else str(id_)


# -- the registry ----------------------------------------------------------------------------------

MOST_SHAPES = 1000  # of a format's records, that are remembered


@dataclass(frozen=True)
class Format:
    """One shape of record.

    name:        the value of --format
    fields:      groups of names: a record that has a name of each group is of this format
    parse:       record, as shapes.fields.normalized() returns it → Entry, Pair, Conversation,
                 Preference or Prompt; BadRecord where it cannot be used
    description: one line for --help and the documents
    example:     a record of this format
    optional:    groups of names of more fields that are read
    """

    name: str
    fields: tuple[tuple[str, ...], ...]
    parse: Callable
    description: str
    example: dict
    optional: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def sample_type(self):
        """The type of what parse() returns for the example, such as Pair."""
        return type(self.parse(self.example))

    def matches(self, record):
        """Return whether a record has the fields of this format."""
        return all(any(map(record.__contains__, group)) for group in self.fields)

    def used(self, record):
        """The names of the fields that are read of a record."""
        groups = (*self.fields, *self.optional)
        return [name for name in dict.fromkeys(itertools.chain(*groups)) if name in record]

    def shape_of(self, record):
        """(shape, unused) of a record that was read: the format with the fields that are read and
        hold something, and the names of the fields that are not read."""
        record = normalized(record)
        key = tuple(record), tuple(map(is_empty, record.values()))
        if key not in self._shapes:
            if len(self._shapes) == MOST_SHAPES:
                self._shapes.clear()
            self._shapes[key] = self._shape_of(record)
        return self._shapes[key]

    @cached_property
    def _shapes(self):
        """Names of a record's fields, and which are empty → its shape: few in most files."""
        return {}

    def _shape_of(self, record):
        names = [first_name(record, group) for group in self.fields]
        more = [first_name(record, group) for group in self.optional]
        names += [name for name in more if name is not None and not is_empty(record[name])]
        read = {"id", *itertools.chain(*self.fields, *self.optional)}
        shape = f"{self.name} ({', '.join(dict.fromkeys(filter(None, names)))})"
        return shape, [name[:40] for name in record if name not in read]


_ALL = (  # a record may match several: the first one counts
    Format(
        "preference",
        fields=(CHOSEN, REJECTED),
        parse=parse_preference,
        description="`chosen`, `rejected` (texts or lists of messages) and `prompt` (a text or a "
        "list of messages; `instruction` and `input`; `conversations`; or the common beginning of "
        "both), optional `system`, `history`, `kind`",
        example={"prompt": "黄河有多长？", "chosen": "五千四百多公里。", "rejected": "很长。"},
        optional=(PROMPT, INSTRUCTION, INPUT, MESSAGES, SYSTEM, HISTORY, ("kind",)),
    ),
    Format(
        "chat",
        fields=(MESSAGES,),
        parse=parse_chat,
        description="`messages` or `conversations`, a list of `role` and `content`, or of `from` "
        "and `value` (system, user or human, assistant or gpt, tool, …), optional `system`, "
        "`tools`: a conversation",
        example={
            "messages": [
                {"role": "user", "content": "早。"},
                {"role": "assistant", "content": "你好。"},
            ]
        },
        optional=(SYSTEM, TOOLS),
    ),
    Format(
        "alpaca",
        fields=(INSTRUCTION, ("output", *ANSWER)),
        parse=parse_alpaca,
        description="`instruction`, `output` (or `response`), optional `input`, `history`, "
        "`system`: a conversation; the user's turn is instruction, blank line, input",
        example={"instruction": "把数字翻倍。", "input": "21", "output": "42"},
        optional=(INPUT, HISTORY, SYSTEM, TOOLS),
    ),
    Format(
        "qa",
        fields=(QUESTION, ANSWER),
        parse=parse_qa,
        description="`question`, `answer` (or prompt, query, input; response, completion, output, "
        "target), optional `input`, `history`, `system`: a pair, or with the last two a "
        "conversation",
        example={"question": "黄河有多长？", "answer": "五千四百多公里。"},
        optional=(INPUT, HISTORY, SYSTEM, TOOLS),
    ),
    Format(
        "squad",
        fields=(("question", "query_text", "query"), ANSWERS),
        parse=parse_squad,
        description="`question`, `answers` as in SQuAD, CMRC and DRCD, also nested in `paragraphs` "
        "and `qas`: a pair; the paragraph is not learned",
        example={"question": "黄河有多长？", "answers": [{"text": "五千四百多公里"}]},
        optional=(("context_id",),),
    ),
    Format(
        "poem",
        fields=(PARAGRAPHS, AUTHOR),
        parse=parse_poem,
        description="`paragraphs` (a list of couplets) and `author`, optional `title`: a poem, as "
        "in chinese-poetry; one with lost characters (□) is left out",
        example={"title": "静夜思", "author": "李白", "paragraphs": ["床前明月光，疑是地上霜。"]},
        optional=(TITLE,),
    ),
    Format(
        "text",
        fields=(TEXT_FIELDS,),
        parse=parse_text,
        description="`text` (or `content`, `body`, `正文`, …), optional `title`: a text",
        example={"title": "黄河", "text": "黄河是中国的第二长河。"},
        optional=(TITLE_FIELDS,),
    ),
    Format(
        "prompt",
        fields=(ASKED,),
        parse=parse_prompt,
        description="`prompt` (or question, instruction and input, messages), optional `answer` "
        "and any field that a reward reads: a prompt; the last answer of a conversation is the "
        "reference",
        example={"prompt": "写一句五言诗。", "lines": 1, "characters": 5},
        optional=(ANSWER, INPUT, HISTORY, SYSTEM),
    ),
)
FORMATS = {format.name: format for format in _ALL}
# The script that prepares each type of sample.
SCRIPTS = {
    Entry: "data/prepare.py",
    Pair: "data/prepare_sft.py",
    Conversation: "data/prepare_sft.py",
    Preference: "data/prepare_dpo.py",
    Prompt: "data/prepare_prompts.py",
}


def formats_of(*sample_types):
    """Name → Format of those formats whose records become one of these types of sample."""
    return {name: format for name, format in FORMATS.items() if format.sample_type in sample_types}


# What a tokenizer is trained on. Preferences are left out: half of their answers are wrong.
TRAINED_ON = formats_of(Entry, Pair, Conversation)


def recognize(record, among=FORMATS):
    """Return the Format (of `among`, name → Format) whose fields a record has, or None."""
    return next((format for format in among.values() if format.matches(record)), None)


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnyFormat:
    """Several formats of which each record has one (--format=auto), or fields with names of the
    user's own; it is used like a Format.

    formats: name → Format.  names: ours → theirs, of --question_field=… and its like.
    default: the Format of records that no format recognizes; its errors say what is wrong
    """

    formats: dict
    names: dict
    default: Format | None = None

    @property
    def sample_type(self):
        """That of the first format."""
        return next(iter(self.formats.values())).sample_type

    def format_of(self, record):
        """The Format of a record, or None."""
        if len(self.formats) == 1:
            return next(iter(self.formats.values()))
        return recognize(record, self.formats) or self.default

    def shape_of(self, record):
        """As Format.shape_of()."""
        record = normalized(record, self.names)
        return self.format_of(record).shape_of(record)

    def parse(self, record):
        """Record → sample. BadRecord says which fields are wanted where none is recognized."""
        record = normalized(record, self.names)
        format = self.format_of(record)
        if format is None:
            raise BadRecord(_unknown(record, self.formats.values()))
        return format.parse(record)


def any_of(formats, names=None, default=None):
    """The AnyFormat of formats (name → Format)."""
    names = {ours: theirs for ours, theirs in (names or {}).items() if theirs}
    return AnyFormat(dict(formats), names, default)


TEXTS = any_of(formats_of(Entry), default=FORMATS["text"])  # what data/prepare.py reads


def field_names(settings):
    """Ours → theirs of the settings NAME_field."""
    values = settings.as_dict()
    return {k.removesuffix("_field"): v for k, v in values.items() if k.endswith("_field") and v}


def _unknown(record, formats):
    """The error of a record that has no known shape: what it has, what is known, near misses."""
    groups = {group[0]: group for format in formats for group in format.fields}
    known = ", ".join(" + ".join(group[0] for group in format.fields) for format in formats)
    has = ", ".join(str(name)[:40] for name in [*record][:8]) or "none"
    ours_of = {name: ours for ours, group in groups.items() for name in group}
    near = {}  # ours → theirs
    for field in map(str, record):
        if field not in ours_of:
            close = difflib.get_close_matches(field[:40], ours_of, 1, cutoff=0.7)
            near.update({ours_of[name]: field[:40] for name in close})
    # Of a format of which the record has a part, what is missing.
    missing = [
        (group[0], f"; beside `{'`, `'.join(found)}` there is no `{'` or `'.join(group[:4])}`")
        for format in formats
        if (found := [name for name in format.used(record) if name in ours_of])
        for group in format.fields
        if not any(name in record for name in group)
    ]
    ours, lacks = missing[0] if missing else (next(iter(near), "question"), "")
    hint = ", ".join(f"{theirs} → {ours}" for ours, theirs in near.items())
    return (
        f"unknown shape: its fields are {has}{lacks}; known are {known}"
        + (f"; did you mean {hint}?" if hint else "")
        + f"; a field with another name is given as in --{ours}_field={near.get(ours, 'NAME')}"
    )


def read_record(record, parse, source, line, fit=None):
    """Return the sample of a record, a LeftOut where it teaches nothing, or a Reject with where it
    is and why it cannot be used.

    parse: record → sample.  fit: sample → the sample as an encoder takes it; it raises BadRecord
    for a sample that is good, but not wanted.
    """
    try:
        sample = parse(normalized(record))
        sample = fit(sample) if fit else sample
    except LeftOut as reason:
        return reason
    except BadRecord as error:
        reason = f"{error}{_hint(normalized(record), parse)}"
        return Reject(source, line, reason, json.dumps(record, ensure_ascii=False))
    if type(sample) is Entry and sample.id is None:
        sample = sample._replace(id=f"{source}:{line}")
    return sample


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


def summary(formats):
    """Return the formats in one line, for an error: names, and the fields that tell them."""
    return ", ".join(
        f"{format.name} ({', '.join(group[0] for group in format.fields)})" for format in formats
    )


def _hint(record, parse):
    """What an error adds where a record has the fields of another format than the wanted one."""
    parse = getattr(parse, "func", parse)
    if isinstance(getattr(parse, "__self__", None), AnyFormat):
        wanted = list(parse.__self__.formats.values())
    else:
        wanted = [format for format in FORMATS.values() if format.parse is parse]
    found = recognize(record)
    if not wanted or not found or any(format.matches(record) for format in wanted):
        return ""
    script = SCRIPTS[found.sample_type]
    of_script = [each for each in FORMATS.values() if SCRIPTS[each.sample_type] == script]
    has_knob = len(of_script) > 1 and found.sample_type is not Entry  # --format
    what = f"--format={found.name} of" if has_knob else "data for"
    return f" (it looks like {what} {script})"


# -- any format as a conversation, or as a pair ---------------------------------------------------


def to_conversation(sample):
    """A Pair or a Conversation as a Conversation."""
    if isinstance(sample, Pair):
        return Conversation(sample.id, (("user", sample.question), ("assistant", sample.answer)))
    return sample


def parse_pair(record):
    """A record of any format that becomes a Pair or a Conversation → Pair. BadRecord where it is
    more than one question and its answer."""
    format = recognize(record, formats_of(Pair, Conversation)) or FORMATS["qa"]
    id_, turns = to_conversation(format.parse(record))
    if [role for role, _ in turns] != ["user", "assistant"]:
        raise BadRecord("several turns or a system text; expected one question and its answer")
    return Pair(id_, *(content for _, content in turns))


def parse_dialogue(record):
    """A record of any format that becomes a Pair or a Conversation → Conversation."""
    return to_conversation(any_of(formats_of(Pair, Conversation)).parse(record))
