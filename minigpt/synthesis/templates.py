"""Templates: prompt files, which ask a large model for question–answer pairs.

    template = load("sft/prompts/facts.md")
    template.messages(text=…, title="黄河", n_min=3, n_max=6, question_max=15, answer_max=300)
    → [{"role": "system", "content": …}, {"role": "user", "content": …}]

A file is UTF-8 text of three parts, divided by lines that hold --- and nothing else:

    source: text
    note: its purpose, for people
    ---
    the system message; may be empty
    ---
    the user message

With `source: topic` the prompt has only a topic, and answers are not compared with a text.
Placeholders are {text} {title} {n_min} {n_max} {question_max} {answer_min} {answer_max} {previous}
(the last pairs about a topic); other braces, such as those of JSON, are text. A paragraph with a
placeholder whose value is "" is left out: without a title there is no title line.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import ROOT, UserError

FOLDER = ROOT / "sft" / "prompts"  # those that come with the project
SOURCES = ("text", "topic")
HEADER = ("source", "note")
NAMES = ("text", "title", "n_min", "n_max", "question_max", "answer_min", "answer_max", "previous")
PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class Template(NamedTuple):
    """A prompt file. name: the file's, without suffix; version: 12 hex digits of the messages, so
    that another note is not another version; source: "text" or "topic"."""

    name: str
    version: str
    source: str
    note: str
    system: str
    user: str

    @property
    def uses_previous(self):
        """Whether earlier pairs change the prompt."""
        return "{previous}" in self.system + self.user

    def messages(
        self, *, text, title, n_min, n_max, question_max, answer_max, answer_min=1, previous=""
    ):
        """The messages as OpenAI's chat API takes them. Braces in the values are
        not filled in."""
        given = (text, title, n_min, n_max, question_max, answer_min, answer_max, previous)
        values = {name: str(value) for name, value in zip(NAMES, given, strict=True)}
        parts = {"system": self.system, "user": self.user}
        filled = {role: _fill(part, values) for role, part in parts.items()}
        return [{"role": role, "content": content} for role, content in filled.items() if content]


def _fill(part, values):
    kept = [
        paragraph
        for paragraph in part.split("\n\n")
        if all(values[name] for name in PLACEHOLDER.findall(paragraph))
    ]
    return PLACEHOLDER.sub(lambda match: values[match[1]], "\n\n".join(kept))


def load(path):
    """The Template in a file; UserError with all that is wrong with it."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        there = ", ".join(sorted(file.stem for file in FOLDER.glob("*.md")))
        raise UserError(f"{path}: no such prompt; there are {there}, or give a file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); save it as UTF-8 text") from None
    lines = [line.rstrip() for line in lines]
    first, second, *_ = [i for i, line in enumerate(lines) if line == "---"] + [None, None]
    if second is None:
        raise UserError(
            f"{path}: expected three parts, divided by lines of ---: lines `key: value`, the "
            "system message, the user message"
        )
    facts, problems = _header(lines[:first])
    system = "\n".join(lines[first + 1 : second]).strip()
    user = "\n".join(lines[second + 1 :]).strip()
    for i, line in enumerate(lines[first:], first + 1):
        for name in set(PLACEHOLDER.findall(line)) - set(NAMES):
            known = " ".join(f"{{{known}}}" for known in NAMES)
            problems.append(f"line {i}: {{{name}}} is unknown; expected {known}")
    if not user:
        problems.append("the user message, its third part, is empty")
    if facts.get("source") == "text" and "{text}" not in system + user:
        problems.append("nowhere is {text}; without it, its source is a topic: `source: topic`")
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    sent = "\n---\n".join([facts["source"], system, user])
    version = hashlib.sha256(sent.encode()).hexdigest()[:12]
    return Template(path.stem, version, facts["source"], facts.get("note", ""), system, user)


def _header(lines):
    """({key: value}, problems) of the lines above the first ---."""
    facts, problems = {}, []
    for i, line in enumerate(lines, 1):
        key, colon, value = (part.strip() for part in line.partition(":"))
        if colon and key in HEADER and key not in facts:
            facts[key] = value
        elif line:
            problems.append(f"line {i}: `{line}`; expected, once each, {', '.join(HEADER)}: value")
    if facts.get("source") not in SOURCES:
        found = facts.get("source", "missing")
        problems.append(f"source: {found}; expected {' or '.join(SOURCES)}")
    return facts, problems


def schema(n_min, n_max):
    """The JSON schema of a reply, for servers with constrained decoding."""
    text = {"type": "string"}
    pair = {
        "type": "object",
        "properties": {"question": text, "answer": text},
        "required": ["question", "answer"],
        "additionalProperties": False,
    }
    pairs = {"type": "array", "items": pair, "minItems": n_min, "maxItems": n_max}
    return {
        "type": "object",
        "properties": {"pairs": pairs},
        "required": ["pairs"],
        "additionalProperties": False,
    }
