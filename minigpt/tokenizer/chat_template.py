"""Chat templates: Jinja, as Hugging Face has it; messages → text, and which of it is learned.

    text = find_template("alpaca")                  # a name of TEMPLATES, or FILE.jinja
    template = load_template(text)
    template.parts((("user", "Who?"), ("assistant", "Me.")))        # [Part, …], to train on
    template.parts((("user", "Who?"),), generate=True)              # the prompt

A prompt format is "plain", "qa", "chat" (the template chat.jinja), or the text of another template.
On the disk (meta.json, config.json) it is two fields: `prompt_format` is its kind, `chat_template`
the text, if there is one.

What is learned is found while the text is made: the assistant's contents are between two characters
that no message has. So a text that spells a special token, or a turn of the assistant, is text.
"""

import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minigpt.common.errors import UserError
from minigpt.tokenizer.huggingface import SPECIAL_TEXTS

FOLDER = Path(__file__).parent / "chat_templates"
TEMPLATES = ("chat", "alpaca", "vicuna", "gemma")  # the files in FOLDER
LONGEST = 2**16  # characters of a template
NAMED = ("plain", "qa", "chat")  # prompt formats that need no text
ENDS = ("EOT", "IM_END")  # the special tokens that end what a model generates
_NAMES = {text: name for name, text in SPECIAL_TEXTS.items()}
_SPECIAL = re.compile("|".join(map(re.escape, _NAMES)))
# What a template of foreign origin may raise, besides Jinja's own errors.
_FAILURES = (TemplateError, ArithmeticError, AttributeError, LookupError)
_FAILURES += (RecursionError, TypeError, ValueError)


class Part(NamedTuple):
    """A text that is encoded in one go, or a special token (`special` is its name, such as "EOT").
    learned: whether the model learns to generate it."""

    text: str
    special: str = ""
    learned: bool = False


class TemplateRefused(UserError):
    """A template that cannot be used, or messages that a template refuses."""


# -- prompt formats --------------------------------------------------------------------------------


def kind_of(prompt_format):
    """ "plain", "qa" or "chat": whether a prompt is a text, a question or a conversation."""
    return prompt_format if prompt_format in ("plain", "qa") else "chat"


def from_json(meta):
    """The prompt format of a meta.json or config.json."""
    return meta.get("chat_template", meta["prompt_format"])


def to_json(prompt_format):
    """The fields of meta.json and config.json for a prompt format."""
    fields = dict(prompt_format=kind_of(prompt_format))
    if prompt_format not in NAMED:
        fields["chat_template"] = prompt_format
    return fields


def find_template(name, flag="--template"):
    """The prompt format that a setting names: "qa", a name of TEMPLATES, or FILE.jinja. UserError
    where there is no such file, or where it cannot be used."""
    if name in ("qa", "chat"):
        return name
    path = FOLDER / f"{name}.jinja" if name in TEMPLATES else Path(name).expanduser()
    if path.suffix != ".jinja":
        known = ", ".join(("qa", *TEMPLATES))
        raise UserError(f"{flag}={name}: expected {known} or FILE.jinja")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"{flag}={name}: cannot be read ({reason})") from None
    if "bos_token" in text:  # our texts begin without one
        text = "{%- set bos_token = '' -%}\n" + text
    try:
        load_template(text)
    except TemplateRefused as error:
        raise UserError(f"{flag}={name}: {error}") from None
    return text


def name_of(prompt_format):
    """What --template calls a prompt format; a template of the user's own is "FILE.jinja"."""
    if prompt_format in NAMED:
        return prompt_format
    return next((name for name in TEMPLATES if _shipped(name) == prompt_format), "FILE.jinja")


def template_text(prompt_format):
    """The Jinja text of a prompt format whose kind is "chat"."""
    return _shipped("chat") if prompt_format == "chat" else prompt_format


@functools.cache
def _shipped(name):
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def load_template(prompt_format):
    """The ChatTemplate of a prompt format whose kind is "chat". TemplateRefused where it cannot be
    used."""
    return _compiled(template_text(prompt_format))


# -- rendering -------------------------------------------------------------------------------------


class _Generation(Extension):
    """The block {% generation %}: others mark with it what is learned; here it is its contents."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message):
    raise TemplateError(message)


# Options, extensions and names as transformers has them, so that it gives the same text.
_JINJA = ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.loopcontrols", _Generation],
)
_JINJA.globals["raise_exception"] = _refuse


class ChatTemplate:
    """A compiled template.

    end:      the special token that ends each turn of the assistant, "EOT" or "IM_END"
    lead:     blanks between the prompt and the assistant's content; they are learned with it
    pairwise: whether it refuses a conversation that does not begin with the user
    """

    def __init__(self, text):
        if len(text) > LONGEST:
            raise TemplateRefused(f"a template of more than {LONGEST} characters")
        # As in tokenizer_config(): chat.jinja spells its end.
        self._eos = SPECIAL_TEXTS["EOT"]
        try:
            self._jinja = _JINJA.from_string(text)
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise TemplateRefused(f"not a Jinja template (line {line}: {error.message})") from None
        self.lead, self.end = "", None
        self._measure()
        self.pairwise = self._refuses_answer_first()

    def parts(self, turns, generate=False):
        """The Parts of ((role, content), …). generate: they end where the assistant's next content
        begins, and nothing in them is to be generated. TemplateRefused where the template refuses
        the messages or loses a turn of the assistant."""
        shield, begin, end = _unused(turns, 3)
        rendered = self._render(_shielded(turns, shield, begin, end), generate)
        if rendered.count(begin) != sum(role == "assistant" for role, _ in turns):
            raise TemplateRefused("the template leaves out a turn of the assistant")
        found, waiting, learned, closing = [], "", False, False
        for piece in re.split(f"({_SPECIAL.pattern}|{begin}|{end})", rendered):
            if piece == begin:
                if closing:
                    break
                before = waiting.removesuffix(self.lead) if self.lead else waiting
                _add(found, before, False)
                waiting, learned = waiting[len(before) :], True
            elif piece == end:
                closing = True
            elif piece in _NAMES:
                _add(found, waiting, learned)
                found.append(Part(piece, _NAMES[piece], learned))
                waiting = ""
                if closing and _NAMES[piece] in ENDS:
                    learned = closing = False
            else:
                waiting += piece.replace(shield, "")
        if closing:
            raise TemplateRefused(
                "a turn of the assistant does not end with a token that ends generation: write "
                "{{ eos_token }} or <|im_end|> after its content"
            )
        _add(found, waiting, learned)
        return found

    def _render(self, messages, generate):
        try:
            return self._jinja.render(
                messages=messages,
                add_generation_prompt=generate,
                eos_token=self._eos,
                pad_token=SPECIAL_TEXTS["PAD"],
                tools=None,
                documents=None,
            )
        except _FAILURES as error:
            raise TemplateRefused(f"the template refuses the messages: {error}") from None

    def _measure(self):
        """Set `lead` and `end`. TemplateRefused unless a conversation begins with the prompts that
        lead to its answers: else a model would be asked for other ids than it learned."""
        turns = [("user", "Q"), ("assistant", "A")]
        for asked in (turns[:1], [*turns, *turns[:1]]):
            whole = self._render(_shielded([*asked, turns[1]], "", "\0", "\0"), False)
            prompt = self._render(_shielded(asked, "", "\0", "\0"), True)
            before = whole[: whole.rfind("\0A\0")]
            lead = before.removeprefix(prompt)
            if not before.startswith(prompt) or lead.strip() or (asked[1:] and lead != self.lead):
                raise TemplateRefused(
                    "the text of a conversation does not begin with the prompt for its answer "
                    "(add_generation_prompt), so a model cannot learn to continue that prompt"
                )
            self.lead = lead
        self.end = [part.special for part in self.parts(tuple(turns)) if part.learned][-1]

    def _refuses_answer_first(self):
        try:
            self.parts((("assistant", "A"), ("user", "Q")), generate=True)
        except TemplateRefused:
            return True
        return False


_compiled = functools.lru_cache(maxsize=16)(ChatTemplate)


def _unused(turns, count):
    """`count` characters that are in none of the turns."""
    used = set().union(*(content for _, content in turns))
    private = map(chr, range(0xF0000, 0x110000))
    return list(itertools.islice((char for char in private if char not in used), count))


def _shielded(turns, shield, begin, end):
    """Turns as messages: no content spells a special token, the assistant's are marked."""
    messages = []
    for role, content in turns:
        if "<|" in content:
            content = _SPECIAL.sub(lambda found: f"<{shield}{found[0][1:]}", content)
        if role == "assistant":
            content = begin + content + end
        messages.append({"role": role, "content": content})
    return messages


def _add(parts, text, learned):
    if text:
        parts.append(Part(text, "", learned))
