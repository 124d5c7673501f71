"""What can be counted in a Chinese poem: form, rhyme, tones, heads, repetition, novelty.

    form("春风吹晓水，玉树满山烟。", {"lines": 2, "characters": 5})    # 1.0
    rhyme(text)                                                  # 1.0: all even lines rhyme
    heads(text, {"heads": "春江花月"})                             # 0.25: one of four

Each is a number from 0 to 1 and takes the text of a poem alone, so that it is a measure for
tools/evaluations-poems.py and a reward for --stage=grpo alike. A record holds what was asked:
`lines`, `characters` (of a line) and `heads` (the first character of each line), as far as it was.

Rhyme and tones are those of modern Mandarin, by pypinyin: a stand-in. A Tang poet rhymed by the
sounds of his time; some of these no longer rhyme, and words of the entering tone are now spread
over all four tones. Real poems show how much that costs: see real_poems in the results.
"""

import functools
from collections import Counter

from minigpt.common.errors import UserError
from minigpt.data.shapes.poems import is_line, lines_of

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
    return _alike(text, lambda character: sound(character)[0])


def _alike(text, group_of):
    """The share of the even lines that end in the most frequent group; see rhyme()."""
    ends = [line[-1:] for line in lines_of(text)[1::2]]
    if len(ends) < 2:
        return 0.0
    groups = Counter(filter(None, map(group_of, dict.fromkeys(ends))))
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
