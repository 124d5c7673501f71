"""Text cleaning: removes the leftovers of markup and templates in Chinese wiki dumps.

    clean("战国无双3\\n\\n《战国无双3》（）是由光荣开发的\\n第三续作。", title="战国无双3")
    → "《战国无双3》是由光荣开发的第三续作。"
    clean_light("vector<b> a\\u200b[] &lt; 3\\n")       # other texts: line breaks and code stay
    → "vector<b> a[] < 3\\n"

One rule per line, each with its example (the tests check every rule against its example). The
rules run repeatedly until none changes the text, because one rule can enable another:
`（《》）` → `（）` → nothing. So cleaning is idempotent. Changes counts what each rule changes.

The time is linear in the text: each rule is linear, and the number of passes is bounded. Deeper
nesting is vandalism, not an article. Then brackets, comments and entities are resolved at any depth
in one pass, and the remaining marks are dropped.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# Separators between removed words, and further punctuation of an empty bracket. A quote is empty
# with separators only, because speech can be punctuation alone: “……”, 「？！」.
S = r"\s，、；：。．·,;:.\-–/"
P = S + r"—…～~！？!?|*_=+"
# Only known tag names and valid attributes: `vector<int>`, `a<b and c>d` and `“<cls>”` are text.
BLOCK = "br|p|div|li|tr|hr|h[1-6]|table|ul|ol|dl|dd|dt|blockquote|center|gallery|poem|timeline"
INLINE = (
    "span|ref|references|small|big|sub|sup|b|i|u|s|a|q|em|strong|del|ins|tt|code|pre|math|font|"
    "td|th|tbody|thead|caption|img|abbr|cite|nowiki|noinclude|includeonly|onlyinclude|section|"
    "ruby|rb|rp|rt|chem|score|syntaxhighlight|source|templatestyles|imagemap"
)
ATTRIBUTES = r"(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*\s*/?"
ENTITY = r"nbsp|lt|gt|amp|quot|apos|[en][mn]?sp|thinsp|[mn]dash|middot|hellip|#\d{1,7}|#[xX]\w{1,6}"
INVISIBLE = r"\x00-\x08\x0e-\x1b\x7f\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
BREAK = r"\r\v\f\x1c-\x1e\x85\u2028\u2029"  # line breaks other than \n
BLANK = r" \t\xa0\u3000"
LABEL = "[\u4e00-\u9fff]{1,6}[语語文名音写寫称稱][：:]"

# -- replacement functions -------------------------------------------------------------------------

_SIMPLIFIED = ("zh-hans", "zh-cn", "zh-sg", "zh-my", "zh")  # the first available one is used
_NEXT_FORM = re.compile(r"[;；](?=(?:[^;；:：]*=>)?\s*zh(?:-\w+)?\s*[:：])", re.IGNORECASE)
_FORM = re.compile(r"(?:[^;；:：]*=>)?\s*(zh(?:-\w+)?)\s*[:：](.*)", re.IGNORECASE | re.DOTALL)
_FLAGS = re.compile(r"([A-Za-z;\s-]{0,40})\|(.*)", re.DOTALL)
_SILENT = {"H", "T", "-"}  # a rule for the rest of the page, or its title: shows nothing here


def _simplified(match):
    """The simplified Chinese form of -{ … }-."""
    body = match[1]
    if flags := _FLAGS.fullmatch(body.lstrip()):
        if _SILENT & {flag.strip().upper() for flag in flags[1].split(";")}:
            return ""
        body = flags[2]
    parts = [_FORM.fullmatch(part) for part in _NEXT_FORM.split(body)]
    if not all(parts):
        return body
    forms = {part[1].lower(): part[2].strip().rstrip(";；") for part in parts}
    return next((forms[code] for code in _SIMPLIFIED if code in forms), next(iter(forms.values())))


def _character(match):
    return html.unescape(match[0])


_ENDS_WORD = re.compile(r"[0-9A-Za-z\u00c0-\u04ff.,;:!?)\]%\"']")
_BEGINS_WORD = re.compile(r"[0-9A-Za-z\u00c0-\u04ff(\[$]")


def _joint(match):
    """The replacement of a line break: a space between words of a script with spaces, else ""."""
    text, start, end = match.string, match.start(), match.end()
    spaced = start and _ENDS_WORD.match(text, start - 1) and _BEGINS_WORD.match(text, end)
    return " " if spaced else ""


# -- the rules -------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """`pattern` is replaced by `replacement`; `example` ("before → after") shows the reason, and
    `name` is what the report calls it.

    needs: substrings, one of which is in every text that the rule can match; HIDDEN: any
    non-printable character except \\n. A substring search is many times faster than a pattern.
    """

    name: str
    example: str
    pattern: str
    needs: tuple[str | None, ...]
    replacement: str | Callable = ""


HIDDEN = None
INDENTED = (" \n", "\t\n", "\xa0\n", "\u3000\n")
DANGLING = ("，）", "、）", "；）", "：）")

RULES = (
    # entities first: they may encode a tag
    Rule(
        "entities", "列夫&middot;托尔斯泰 → 列夫·托尔斯泰", rf"&(?:{ENTITY});", ("&",), _character
    ),
    Rule(
        "-{…}-",
        "-{zh-hant:吋;zh-hans:寸}- → 寸",
        r"-\{((?:(?!-\{|\}-).)*)\}-",
        ("-{",),
        _simplified,
    ),
    Rule("comments", "人口<!-- 2010 -->五万 → 人口五万", r"<!--(?:(?!<!--).)*?-->", ("<!--",)),
    Rule(
        "block tags",
        "甲<br />乙<div class=x> → 甲乙",
        rf"</?(?:{BLOCK}){ATTRIBUTES}>",
        ("<",),
        "\n",
    ),
    Rule(
        "inline tags", "H<sub>2</sub>O<ref name=x> → H2O", rf"</?(?:{INLINE}){ATTRIBUTES}>", ("<",)
    ),
    # invisible characters, line breaks, spaces
    Rule(
        "invisible characters",
        "非石油及\u200b\u200b天然气 → 非石油及天然气",
        f"[{INVISIBLE}]+",
        (HIDDEN,),
    ),
    Rule("other line breaks", "甲\u2028乙\r丙 → 甲乙丙", f"[{BREAK}]+", (HIDDEN,), "\n"),
    Rule(
        "runs of blanks", "位于 \u3000埼玉县 → 位于 埼玉县", f"[{BLANK}]{{2,}}", ("  ", HIDDEN), " "
    ),
    Rule("blanks before a line break", "甲\u3000\n乙 → 甲乙", rf"[{BLANK}]\n", INDENTED, "\n"),
    Rule("line breaks", "to be\nor\n\n甲。\n　　乙 → to be or甲。乙", r"\n\s*", ("\n",), _joint),
    # the label of a foreign name whose template was removed
    Rule(
        "label of a lost name （法语：）",
        "谢尔（法语：） → 谢尔",
        f"（{LABEL}(?=[，；、）)])",
        ("（",),
        "（",
    ),
    Rule(
        "label of a lost name ，法语：）",
        "谢尔（Aa，法语：） → 谢尔（Aa）",
        f"[，；、]{LABEL}(?=[）)])",
        ("：）",),
    ),
    # brackets that hold only punctuation or spaces
    Rule("empty （）", "赵鹏（）和舜天（；）（，） → 赵鹏和舜天", f"（[{P}]*[）)]", ("（",)),
    Rule("empty ()", "西城男孩()的主音( ) → 西城男孩的主音", rf"\([{P}]*[）)]", ("(",)),
    Rule("empty 《》", "著有《》和《 》 → 著有和", f"《[{P}]*》", ("《",)),
    Rule("empty 〈〉", "著有〈〉 → 著有", f"〈[{P}]*〉", ("〈",)),
    Rule("empty 【】", "见【】 → 见", f"【[{P}]*】", ("【",)),
    Rule("empty 〔〕", "见〔 〕 → 见", f"〔[{P}]*〕", ("〔",)),
    Rule("empty ［］", "见［］ → 见", f"［[{P}]*］", ("［",)),
    Rule("empty []", "见[, ]注 → 见注", rf"\[[{P}]*\]", ("[",)),
    Rule("empty {}", "见{}注-{}- → 见注", rf"\{{[{P}]*\}}", ("{",)),
    Rule("empty “”", "又称“”或“，”，说：“……” → 又称或，说：“……”", f"“[{S}]*”", ("“",)),
    Rule("empty ‘’", "又称‘’ → 又称", f"‘[{S}]*’", ("‘",)),
    Rule("empty 「」", "参见「」條目，說「？」 → 参见條目，說「？」", f"「[{S}]*」", ("「",)),
    Rule("empty 『』", "參見『 』 → 參見", f"『[{S}]*』", ("『",)),
    # leftovers of such a template in a bracket that is not empty
    Rule(
        "marks after （",
        "十一管（，简称XI） → 十一管（简称XI）",
        r"（[，、；：]+\s*",
        ("（",),
        "（",
    ),
    Rule("marks after (", "十一管(，简称XI) → 十一管(简称XI)", r"\([，、；：]+\s*", ("(",), "("),
    Rule(
        "marks before ）",
        "尚恩（Shane，） → 尚恩（Shane）",
        "(?<![，、；：])[，、；：]+）",
        DANGLING,
        "）",
    ),
)
_STEPS = [(r.needs, re.compile(r.pattern, re.DOTALL), r.replacement, r.name) for r in RULES]


PASSES = 16  # over all rules; an article needs three or four


def clean(text, title="", changes=None):
    """`text` without title line, line breaks and leftovers; may be "".

    The title line is the first line, if it equals `title` and a blank line follows; without a
    `title`, if it is short and the text after the blank line begins with it.
    changes: Changes, in which is counted what the rules do.
    """
    return _clean_body(_without_title(text, title, changes), changes)


def _clean_body(text, changes):
    for name, flatten in _FLATTEN:
        before, text = text, flatten(text)
        if changes is not None and text != before:
            changes.add(name, before, text)
        for _ in range(PASSES):
            before = text
            text = _pass(text, changes)
            if text == before:
                return text
    return text


def _pass(text, changes):
    """One pass over all rules."""
    hidden = not text.replace("\n", "").isprintable()
    for needs, pattern, replacement, name in _STEPS:
        for part in needs:
            if part in text if part else hidden:
                after, n = pattern.subn(replacement, text)
                if n and changes is not None:
                    changes.add(name, text, after, n)
                text = after
                break
    return text.strip()


# -- light cleaning --------------------------------------------------------------------------------

# Characters that nobody should learn, in any text. A joiner stays in an emoji, and where a script
# needs it (Arabic to Malayalam); code that shows an entity keeps it.
_JOINED = "[\u0600-\u0dff\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]"
LIGHT = (
    Rule(
        "entities",
        "列夫&middot;托尔斯泰&amp;lt;3，`&lt;` → 列夫·托尔斯泰<3，`&lt;`",
        rf"```.*?```|`[^`\n]*`|&(?:amp;|#38;)*(?:{ENTITY});",
        ("&",),
        lambda match: match[0] if match[0][0] == "`" else _unescaped(match[0]),
    ),
    Rule(
        "line breaks of other systems",
        "甲\r\n乙\u2028丙 → 甲\n乙\n丙",
        rf"\r\n|[{BREAK}]",
        (HIDDEN,),
        "\n",
    ),
    Rule(
        "invisible characters",
        "天然\u200b气\ufeff\x07 → 天然气",
        rf"[\u200c\u200d](?!{_JOINED})|(?![\u200c\u200d])[{INVISIBLE}]",
        (HIDDEN,),
    ),
)
_LIGHT_STEPS = [(r.needs, re.compile(r.pattern, re.DOTALL), r.replacement, r.name) for r in LIGHT]
_LIGHT_START = re.compile(f"[&{INVISIBLE}{BREAK}]")


def clean_light(text, changes=None):
    """`text` without invisible and control characters and entities, with \\n as its line breaks; ""
    where nothing but blanks is left."""
    if _LIGHT_START.search(text):
        for _, pattern, replacement, name in _LIGHT_STEPS:
            after, n = pattern.subn(replacement, text)
            if after != text and changes is not None:
                changes.add(name, text, after, n)
            text = after
    return text if text.strip() else ""


def _unescaped(entity):
    name = entity[max(entity[:-1].rfind(";"), 0) :].lstrip(";&")
    return html.unescape("&" + name).replace("\xa0", " ")


# -- which rules a text gets -----------------------------------------------------------------------

_DUMP = {"url", "title", "text"}  # the fields of a record in a dump, with or without these:
_DUMP_MORE = {"id", "revid"}
_QUOTES_BEFORE = "《〈「『“‘(（"


def is_wiki(records):
    """Whether records (dicts) are of a wiki dump: their fields are those of WikiExtractor, or they
    have title lines, and many texts go on with the title, or are one paragraph each."""
    n = dumps = lines = again = paragraphs = 0
    for record in records:
        names = {name.lower() for name in record if isinstance(name, str)}
        text, title = record.get("text"), record.get("title")
        if not isinstance(text, str):
            continue
        n += 1
        dumps += names >= _DUMP and names <= _DUMP | _DUMP_MORE
        first, _, rest = text.partition("\n")
        blank, _, body = rest.partition("\n")
        first, body = first.strip(), body.strip()
        if first and body and not blank.strip() and title in (None, first):
            lines += 1
            again += body.lstrip(_QUOTES_BEFORE).startswith(first)
            paragraphs += title is not None and "\n" not in body
    has_titles = 10 * lines >= 9 * n and (3 * again >= n or 10 * paragraphs >= 9 * n)
    return n > 0 and (2 * dumps > n or has_titles)


# -- the report ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Change:
    """What a rule did: texts and characters that it changed, and [(before, after)] around the
    first places."""

    entries: int = 0
    characters: int = 0
    examples: list = field(default_factory=list)


class Changes(dict):
    """Rule → Change. examples: how many are kept of each rule."""

    def __init__(self, examples=1):
        super().__init__()
        self.examples = examples
        self._in_text = set()  # rules that have changed the current text

    def next_text(self):
        """What is added from now on is of another text."""
        self._in_text.clear()

    def add(self, rule, before, after, places=1):
        """Add that a rule has changed a text, at so many places. Counted are the characters that
        are gone; where they were replaced by as many, one for each place."""
        found = self.get(rule)
        if found is None:
            found = self[rule] = Change()
        if rule not in self._in_text:
            self._in_text.add(rule)
            found.entries += 1
            if len(found.examples) < self.examples:
                found.examples.append(_around(before, after))
        found.characters += max(places, abs(len(before) - len(after)))

    def merge(self, other):
        """Add the Changes of other texts."""
        for rule, change in other.items():
            found = self.setdefault(rule, Change())
            found.entries += change.entries
            found.characters += change.characters
            found.examples += change.examples[: self.examples - len(found.examples)]


def _around(before, after, margin=12):
    """The first place where two texts differ, with a little of what is around it."""
    pairs = enumerate(zip(before, after, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
    part = slice(max(0, start - margin), start + 2 * margin)
    return before[part], after[part]


# -- nesting too deep for the rules ----------------------------------------------------------------

_CLOSES = {
    **{"（": "）)", "(": "）)", "《": "》", "〈": "〉", "【": "】", "〔": "〕", "［": "］"},
    **{"[": "]", "{": "}", "“": "”", "‘": "’", "「": "」", "『": "』"},
}
_QUOTES = "“‘「『"  # empty with separators only
_MARKS = r"（(《〈【〔［\[{“‘「『）)》〉】〕］\]}”’」』"
_PARTS = re.compile(rf"[{_MARKS}]|[{S}]+|[{P}]+|[^{_MARKS}{P}]+")
_SEPARATORS, _PUNCTUATION = re.compile(f"[{S}]+"), re.compile(f"[{P}]+")
_COMMENT = re.compile("(<!--|-->)")
_ESCAPED = re.compile(rf"&(?:(?:amp|#0{{0,5}}38|#[xX]0{{0,4}}26);)+(?=(?:{ENTITY});)")


def _without_nesting(text):
    """`text` without comments, and without brackets that hold only brackets, punctuation and
    spaces, at any depth. Entities that were escaped several times become escaped once."""
    return _without_empty_brackets(_without_comments(_ESCAPED.sub("&", text)))


def _without_comments(text):
    kept, opened = [], []  # opened: the indices in `kept` of open comments
    for part in _COMMENT.split(text):
        kept.append(part)
        if part == "<!--":
            opened.append(len(kept) - 1)
        elif part == "-->" and opened:
            del kept[opened.pop() :]
    return "".join(kept)


def _without_empty_brackets(text):
    kept = []
    opened = []  # the indices in `kept` of open brackets that are empty so far
    quotes = []  # the indices in `opened` of the quotes among them
    for part in _PARTS.findall(text):
        if part in _CLOSES:
            if part in _QUOTES:
                quotes.append(len(opened))
            opened.append(len(kept))
            kept.append(part)
        elif opened and part in _CLOSES[kept[opened[-1]]]:
            del kept[opened.pop() :]
            if quotes and quotes[-1] == len(opened):
                quotes.pop()
        else:
            if not _PUNCTUATION.match(part):
                opened.clear()
                quotes.clear()
            elif quotes and not _SEPARATORS.match(part):
                # This quote is not empty, nor are the brackets around it.
                del opened[: quotes[-1] + 1]
                quotes.clear()
            kept.append(part)
    return "".join(kept)


def _without_marks(text):
    """`text` without the opening characters of all leftovers that can be nested."""
    return re.sub(rf"-\{{|\}}-|[&<>{_MARKS}]", "", text)


# Before the rules run, and again where they have run PASSES times.
_FLATTEN = (
    ("", lambda text: text),
    ("nested brackets", _without_nesting),
    ("marks of nesting", _without_marks),
)


_LONGEST_TITLE = 60  # characters of a title line without a field `title`


def _without_title(text, title, changes=None):
    first, _, rest = text.partition("\n")
    blank, line_break, body = rest.partition("\n")
    first = first.strip()
    if not line_break or blank.strip() or not first:
        return text
    if title:
        is_title = first == title.strip()
    else:
        is_title = len(first) <= _LONGEST_TITLE and body.lstrip(_QUOTES_BEFORE).startswith(first)
    if is_title and changes is not None:
        changes.next_text()
        changes.add("title line", text, body)
    return body if is_title else text


# -- many texts at once ----------------------------------------------------------------------------

# Most texts of a good corpus need no cleaning, but running every rule on each text takes half as
# long as tokenizing it. So one array of UTF-16 codes holds all texts for one search: only texts
# with a character at which a match can start are passed to clean().
_EDGE = "\uffff"  # a noncharacter: separates the texts
_ALONE, _OPEN, _LEFT, _SPACE = 1, 2, 8, 32  # a possible start of a leftover …
_SECOND = 1  # … the last three only before their second character, which has the next bit


def _classes():
    """(65536,) uint8: the bits of each UTF-16 code."""
    table = np.zeros(2**16, np.uint8)
    every = "".join(map(chr, range(0xD800))) + "".join(map(chr, range(0xE000, 2**16)))
    for pattern, bits in (
        (rf"[&<{{\n{INVISIBLE}{BREAK}]", _ALONE),
        (r"[（(《〈【〔［\[“‘「『]", _OPEN),
        (rf"[{P}）)》〉】〕］\]”’」』]", _OPEN << _SECOND),
        (r"[，、；：:]", _LEFT),
        (r"[，；、）)]", _LEFT << _SECOND),
        (rf"[\s{_EDGE}]", _SPACE | _SPACE << _SECOND),
    ):
        table[[ord(character) for character in re.findall(pattern, every)]] |= bits
    return table


_CLASSES = _classes()


def clean_all(texts, titles, changes=None):
    """[clean(text, title) for …], several times faster if few texts need cleaning."""
    texts = [_without_title(*pair, changes) for pair in zip(texts, titles, strict=True)]
    joined = _EDGE + "".join([text + _EDGE for text in texts])
    codes = np.frombuffer(joined.encode("utf-16-le", "surrogatepass"), "<u2")
    edges = np.flatnonzero(codes == ord(_EDGE))
    if len(edges) != len(texts) + 1:
        dirty = range(len(texts))
    else:
        bits = _CLASSES[codes]
        first, second = bits[:-1], bits[1:]
        begins = first & _ALONE | (first & (_OPEN | _LEFT | _SPACE)) << _SECOND & second
        places = np.flatnonzero(begins != 0)  # bools: several times faster
        dirty = np.unique(edges.searchsorted(places, side="right") - 1).tolist()
    for i in dirty:
        if changes is not None:
            changes.next_text()
        texts[i] = _clean_body(texts[i], changes)
    return texts
