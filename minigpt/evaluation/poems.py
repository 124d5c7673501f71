"""What can be counted in a Chinese poem: form, rhyme, tones, heads, repetition, novelty.

    form("春风吹晓水，玉树满山烟。", {"lines": 2, "characters": 5})    # 1.0
    rhyme(text)                                                  # 1.0: all even lines rhyme
    heads(text, {"heads": "春江花月"})                             # 0.25: one of four

Each is a number from 0 to 1 and takes the text of a poem alone, so that it is a measure for
tools/evaluations-poems.py and a reward for --stage=grpo alike. A record holds what was asked:
`lines`, `characters` (of a line) and `heads` (the first character of each line), as far as it was.

Rhyme and tones are those of modern Mandarin, by pypinyin: a stand-in. Tang poets rhymed by the
sounds of their time; some of these no longer rhyme, and words of the entering tone are now spread
over all four tones. book_rhyme() goes by the rhyme book instead.
"""

import functools
import itertools
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from minigpt.common.errors import UserError
from minigpt.data.shapes.poems import FORMS, MARKS, is_line, lines_of, measure_of
from minigpt.data.shapes.rhyme_book import groups_of

MOST = 56  # characters: a run of so many, or more, counts as this; a poem of eight lines of seven
CHUNK = 20_000  # training texts at a time
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a hash is lost
RHYMES = 0.75  # a poem rhymes if so many of its even lines end in one rhyme
# The thirteen rhymes of northern verse and opera (十三辙): each is a group of Mandarin finals. Its
# 一七 has i, ü, er and the vowel of zhi and si; its 中东 has eng and ong.
GROUPS = (
    ("发花", "a ia ua"),
    ("梭坡", "o uo e"),
    ("乜斜", "ie ve"),
    ("一七", "i v er"),
    ("姑苏", "u"),
    ("怀来", "ai uai"),
    ("灰堆", "ei uei"),
    ("遥条", "ao iao"),
    ("由求", "ou iou"),
    ("言前", "an ian uan van"),
    ("人辰", "en in uen vn"),
    ("江阳", "ang iang uang"),
    ("中东", "eng ing ueng ong iong"),
)
_RUN = re.compile(rf"[^{MARKS}\s]+")  # a line
_GROUP_OF = {final: name for name, finals in GROUPS for final in finals.split()}


# -- what was asked --------------------------------------------------------------------------------


def form(text, record):
    """The share of the lines that are as asked: of record["characters"] Chinese characters, and
    record["lines"] of them, those of record["given"], the beginning of the poem, among them.
    Missing and surplus lines count as wrong ones.

    Where the characters were not asked, all lines have to be of five, or all of seven; where the
    lines were not, their number has to be even. 1.0: the form is kept.
    """
    lines = lines_of((record.get("given") or "") + text)
    wanted = record.get("lines") or max(2, len(lines) + len(lines) % 2)
    lengths = [record["characters"]] if record.get("characters") else [5, 7]
    good = max(sum(is_line(line, length) for line in lines) for length in lengths)
    return min(good, wanted) / max(len(lines), wanted)


def heads(text, record):
    """The share of the lines that begin with the character asked for them (record["heads"]).
    Missing and surplus lines count as wrong ones; 1.0 where no heads were asked."""
    asked = record.get("heads") or ""
    if not asked:
        return 1.0
    lines = lines_of(text)
    good = sum(line.startswith(head) for line, head in zip(lines, asked, strict=False))
    return good / max(len(lines), len(asked))


# -- sound -----------------------------------------------------------------------------------------


def rhyme(text):
    """The share of the even lines that end in the same rhyme (GROUPS), from 0 to 1; a poem rhymes
    from RHYMES on. A character that ends two lines counts once: to repeat it is no rhyme. 0.0 for
    fewer than four lines, which have nothing to rhyme."""
    return _alike(text, lambda character: sound(character)[:1])


def rhyme_places(text):
    """Where rhyme() looks: the indices of the last characters of the even lines."""
    return [match.end() - 1 for match in _RUN.finditer(text)][1::2]


def book_rhyme(text):
    """As rhyme(), by the level rhymes of the rhyme book: those in which Tang poets rhymed."""
    return _alike(text, groups_of)


def _alike(text, groups_of):
    """The share of the even lines that end in the most frequent of the groups."""
    ends = [line[-1:] for line in lines_of(text)[1::2]]
    if len(ends) < 2:
        return 0.0
    groups = Counter(group for end in dict.fromkeys(ends) for group in groups_of(end) if group)
    most = max(groups.values(), default=0)
    return most / len(ends) if most > 1 else 0.0


@functools.lru_cache(maxsize=2**15)
def sound(character):
    """(rhyme, tone) of a character in Mandarin: a name of GROUPS, and 1 to 4. (None, None) where
    pypinyin does not know it. Of several readings the most usual one counts."""
    try:
        from pypinyin import Style, pinyin
    except ImportError:
        raise UserError("rhyme and tones need the package pypinyin: pip install pypinyin") from None
    found = pinyin(character, style=Style.FINALS_TONE3, errors="ignore", strict=True)
    if not found or not found[0][0]:
        return None, None
    final = found[0][0]
    tone = int(final[-1]) if final[-1].isdigit() else None  # None: the neutral tone
    return _GROUP_OF.get(final.rstrip("1234")), tone


def tones(text):
    """The share of the tone rules (平仄) of regulated verse that a poem keeps, from 0 to 1; chance
    gives a half. 0.0 for a poem that has not four or eight lines of five or seven characters.

    Tones 1 and 2 are level, 3 and 4 oblique. In a line the second and the fourth character differ,
    in one of seven the sixth and the fourth, too; the second characters of a couplet's lines
    differ (对), those of two lines between couplets are alike (粘); even lines end level, odd ones
    oblique, except that the first may end either way.
    """
    lines = lines_of(text)
    if measure_of(lines) not in FORMS:
        return 0.0
    level = [[_is_level(character) for character in line] for line in lines]
    rules = []
    for i, line in enumerate(level):
        rules += [_differ(line[k], line[k + 2]) for k in range(1, len(line) - 2, 2)]
        if i:
            differ = _differ(level[i - 1][1], line[1])
            rules.append(differ if i % 2 else differ is False)
            rules.append(line[-1] is (i % 2 == 1))
    return sum(rule is True for rule in rules) / len(rules)


def _is_level(character):
    """Whether a character has a level tone; None where its tone is not known."""
    tone = sound(character)[1]
    return None if tone is None else tone <= 2


def _differ(one, other):
    return None if None in (one, other) else one is not other


# -- words -----------------------------------------------------------------------------------------


def repeated(text):
    """The share of the characters that occurred before in the poem. A character right after itself
    (萧萧) is one word, and does not count."""
    characters = "".join(lines_of(text))
    single = [c for i, c in enumerate(characters) if characters[i - 1 : i] != c]
    return 1 - len(set(single)) / len(single) if single else 0.0


# -- novelty ---------------------------------------------------------------------------------------


class Novelty(NamedTuple):
    """lines: of the text; copied: how many of them are a line of a training text; longest: the most
    characters in a row, across the ends of lines, that are so in a training text."""

    copied: int
    lines: int
    longest: int


def novelty(texts, training):
    """A Novelty for each text. training: an iterable of texts; it is read once, some at a time, so
    the memory does not depend on how many there are."""
    lines = [lines_of(text) for text in texts]
    wanted, seen = set(itertools.chain(*lines)), set()
    longest = np.zeros(len(texts), int)
    ours, owners = _codes(lines, 0)
    training = iter(training)
    while chunk := [lines_of(text) for text in itertools.islice(training, CHUNK)]:
        seen.update(wanted.intersection(itertools.chain(*chunk)))
        _grow(longest, ours, owners, _codes(chunk, 1)[0])
    return [
        Novelty(sum(line in seen for line in found), len(found), int(n))
        for found, n in zip(lines, longest, strict=True)
    ]


def _codes(texts, separator):
    """(characters as uint64 (n,), the index of the text of each (n,)) of texts in lines; after each
    text there is a separator."""
    joined = [*("".join(lines) + chr(separator) for lines in texts)]
    codes = np.frombuffer("".join(joined).encode("utf-32-le", "replace"), "<u4").astype(np.uint64)
    return codes, np.repeat(np.arange(len(joined)), [len(text) for text in joined])


def _grow(longest, ours, owners, theirs):
    """Raise longest[i] to the longest run of text i that is in `theirs`. Only places where a run of
    n - 1 characters is in both are looked at for one of n."""
    at, there = np.arange(len(ours)), np.arange(len(theirs))
    ours_hash, theirs_hash = ours, theirs
    for n in range(1, MOST + 1):
        both = np.intersect1d(ours_hash, theirs_hash)
        kept, kept_there = np.isin(ours_hash, both), np.isin(theirs_hash, both)
        at, ours_hash = at[kept], ours_hash[kept]
        there, theirs_hash = there[kept_there], theirs_hash[kept_there]
        if not len(at):
            return
        np.maximum.at(longest, owners[at], n)
        # The two separators differ, so a run never goes past one; the last one ends the array.
        ours_hash, theirs_hash = (
            hashes * _FACTOR + codes[np.minimum(places + n, len(codes) - 1)]
            for hashes, places, codes in ((ours_hash, at, ours), (theirs_hash, there, theirs))
        )
