"""Instructions made from poems: what a reader may ask, with the poem as the answer.

    collection = Collection(poems, author_poems=100)
    instructions(poem, collection, most=1)
    # [{"id": …, "kind": "form", "question": "以“春山”为题写一首五言绝句。", "answer": …,
    #   "lines": 4, "characters": 5}]
    rhyme_pair(poem)
    # {"id": …, "kind": "rhymes", "question": "哪些字和“烟”押韵？", "answer": "天，边，年。"}

All is decided by hashes of the poem, so a poem gives the same instructions in every run.
"""

import re
from collections import Counter

from minigpt.data.hashing import hash_all
from minigpt.data.shapes.poems import FORMS, HAN, MARKS, lines_of, measure_of
from minigpt.data.shapes.rhyme_book import groups_of

KINDS = ("title", "form", "first", "next", "heads", "style")
NOBODY = {"", "不详", "佚名", "无名氏"}
LEAST_THEME = 20  # in so many places a theme occurs in the poems
_SHORT_TITLE = re.compile(rf"[{HAN}]{{1,12}}")
_FIRST_LINE = re.compile(rf"([{HAN}]+[{MARKS}])\s*(.+)", re.DOTALL)


class Collection:
    """What is known of all poems together.

    authors: those of at least `author_poems` poems; themes: frequent words of two characters. Words
    begin at the odd characters of a line: 白日 依山 尽.
    """

    def __init__(self, poems, author_poems):
        authors = Counter(poem.author for poem in poems)
        self.authors = {
            author for author, n in authors.items() if n >= author_poems and author not in NOBODY
        }
        words = Counter(word for poem in poems for word in _words(poem.text))
        self.themes = {word for word, n in words.items() if n >= LEAST_THEME}


def instructions(poem, collection, most):
    """At most so many instructions of different kinds about a poem: dicts with id, kind, question,
    answer and what the question asks for. [] where its lines are not of one length."""
    lines = lines_of(poem.text)
    measure = measure_of(lines)
    if measure is None or len(lines) < 2 or len(lines) % 2:
        return []
    suited = {
        kind: found
        for kind, make in _MAKERS.items()
        if (found := make(poem, lines, measure, collection)) is not None
    }
    keys = hash_all([f"{kind} {poem.text}" for kind in suited])
    chosen = sorted(zip(keys.tolist(), suited, strict=True))[:most]
    return [{"id": poem.text, "kind": kind, **suited[kind]} for _, kind in chosen]


def rhyme_pair(poem):
    """The pair that asks which characters rhyme with the end of the second line; the answer is the
    ends of the other even lines. None where they are fewer than two different characters, or do not
    rhyme by the rhyme book."""
    lines = lines_of(poem.text)
    if measure_of(lines) is None or len(lines) % 2:
        return None
    first, *others = dict.fromkeys(line[-1] for line in lines[1::2])
    if not others or not set(groups_of(first)).intersection(*map(groups_of, others)):
        return None
    question, answer = f"哪些字和“{first}”押韵？", "，".join(others) + "。"
    return dict(id=poem.text, kind="rhymes", question=question, answer=answer)


def _words(text):
    return [line[i : i + 2] for line in lines_of(text) for i in range(0, len(line) - 2, 2)]


def _asked(measure):
    return dict(zip(("lines", "characters"), measure, strict=True))


# -- a function for each kind: poem → question, answer and what is asked, or None ------------------


def _title(poem, lines, measure, collection):
    if not _SHORT_TITLE.fullmatch(poem.title):
        return None
    form = FORMS.get(measure)
    question = f"写一首{form or '诗'}，题目是《{poem.title}》。"
    return dict(question=question, answer=poem.text) | (_asked(measure) if form else {})


def _form(poem, lines, measure, collection):
    themes = [word for word in _words(poem.text) if word in collection.themes]
    if measure not in FORMS or not themes:
        return None
    theme = themes[int(hash_all([poem.text])[0]) % len(themes)]
    question = f"以“{theme}”为题写一首{FORMS[measure]}。"
    return dict(question=question, answer=poem.text) | _asked(measure)


def _first(poem, lines, measure, collection):
    if measure not in FORMS:
        return None
    given, rest = _FIRST_LINE.fullmatch(poem.text).groups()
    question = f"把这首{FORMS[measure]}写完：{given}"
    return dict(question=question, answer=rest, given=given) | _asked(measure)


def _next(poem, lines, measure, collection):
    if measure not in FORMS:
        return None
    parts = re.findall(rf"[{HAN}]+[{MARKS}]?", poem.text)
    at = int(hash_all([poem.text])[0]) % (len(parts) // 2) * 2
    question = f"“{lines[at]}”的下一句是什么？"
    return dict(question=question, answer=parts[at + 1], lines=1, characters=measure[1])


def _heads(poem, lines, measure, collection):
    if measure not in FORMS:
        return None
    heads = "".join(line[0] for line in lines)
    question = f"写一首藏头的{FORMS[measure]}，每句的第一个字依次是：{heads}"
    return dict(question=question, answer=poem.text, heads=heads) | _asked(measure)


def _style(poem, lines, measure, collection):
    if measure not in FORMS or poem.author not in collection.authors:
        return None
    question = f"学{poem.author}的风格写一首{FORMS[measure]}。"
    return dict(question=question, answer=poem.text) | _asked(measure)


_MAKERS = dict(zip(KINDS, (_title, _form, _first, _next, _heads, _style), strict=True))
