"""Names of runs and classes in a picture: shortened, and in a font that has their characters.

names, families, notes = drawable(["out/pretrain", "微调"])
"""

import contextlib
import logging
from pathlib import Path

from matplotlib import font_manager

# Chinese fonts often have no bold face. Their regular face replaces it without a warning.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

NAME_LENGTH = 30  # characters of a name that a picture shows
OWN_FONT = "DejaVu Sans"  # it comes with matplotlib

# Chinese fonts of common systems, best first.
CJK_FONTS = [
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Microsoft YaHei",
    "Hiragino Sans GB",
    "Heiti SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "SimHei",
    "SimSun",
    "Arial Unicode MS",
]


def drawable(names):
    """(names, families, notes): the names to draw, the font families to draw them with, and notes
    to print for the user.

    Names are shortened to NAME_LENGTH. Where they have characters that matplotlib's own font
    lacks, an installed font that has all of these is added. Without such a font a name becomes
    "run 2", and a note says so.
    """
    own = font_manager.get_font(font_manager.findfont(OWN_FONT))
    names = shorten_all(names)
    missing = {c for name in names for c in name if not own.get_char_index(ord(c))}
    if not missing:
        return names, [OWN_FONT], []
    family = find_font(missing)
    if family:
        return names, [OWN_FONT, family], []
    renamed = []
    for i, name in enumerate(names):
        if missing & set(name):
            renamed.append(f"{name} is called run {i + 1}")
            names[i] = f"run {i + 1}"
    note = (
        f"note: no installed font can write these names, so {', '.join(renamed)} in the picture; "
        "install one that has Chinese, such as Noto Sans CJK SC"
    )
    return names, [OWN_FONT], [note]


def find_font(characters):
    """The family of an installed font that has all `characters`, or None."""
    known = sorted(
        font_manager.fontManager.ttflist,
        key=lambda font: CJK_FONTS.index(font.name) if font.name in CJK_FONTS else len(CJK_FONTS),
    )
    for font in known:
        # The font Last Resort has every character, as a box.
        if _has(font.fname, characters) and "Last Resort" not in font.name:
            return font.name
    # matplotlib caches its list of fonts, so newly installed fonts are missing from it.
    listed = {font.fname for font in known}
    for path in font_manager.findSystemFonts():
        if path not in listed and "lastresort" not in Path(path).name.lower():
            with contextlib.suppress(Exception):  # a damaged font file
                if _has(path, characters):
                    font_manager.fontManager.addfont(path)
                    return font_manager.fontManager.ttflist[-1].name
    return None


def _has(path, characters):
    try:
        font = font_manager.get_font(path)
        return all(font.get_char_index(ord(c)) for c in characters)
    except (OSError, RuntimeError):
        return False


def shorten_all(names):
    """Every name in at most NAME_LENGTH characters where different names stay different. If they
    differ only in the middle, their common beginning is dropped instead of the middle."""
    short = {name: shorten(name) for name in names}
    for same in {short[name] for name in names}:
        group = [name for name in short if short[name] == same]
        if len(group) > 1:
            # Keep four characters before the first difference.
            columns = enumerate(zip(*group, strict=False))
            first = next((i for i, column in columns if len(set(column)) > 1), 0)
            tails = [f"…{name[max(0, first - 4) :]}" for name in group]
            tails = [t if len(t) <= NAME_LENGTH else f"{t[: NAME_LENGTH - 1]}…" for t in tails]
            short |= zip(group, tails if len(set(tails)) == len(tails) else group, strict=True)
    return [short[name] for name in names]


def shorten(name):
    """A name of at most NAME_LENGTH characters; a longer one loses its middle."""
    half = NAME_LENGTH // 2
    return name if len(name) <= NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"
