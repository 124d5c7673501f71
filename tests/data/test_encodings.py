"""Encodings are recognized on real text and short samples; damage is one behaviour, counted."""

import json

import pytest

from minigpt.common.errors import UserError
from minigpt.data.readers import encodings
from minigpt.data.readers.encodings import Decoding, Undecodable, check_encoding, to_utf8

NOVEL = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。\n楚汉分争，又并入于汉。\n"
TRADITIONAL = "紅樓夢第一回。此開卷第一回也。作者自云：因曾歷過一番夢幻之後，故將真事隱去。\n"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.\n"
FRENCH = "Où l'été était déjà là, les êtres humains naissent libres et égaux.\n"
WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def decode(data, encoding="auto", size=2**16):
    decoding = Decoding(encoding)
    blocks = (data[i : i + size] for i in range(0, len(data), size))
    return b"".join(to_utf8(blocks, decoding)).decode(), decoding


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (NOVEL, ["utf-8", "utf-8-sig", "gb18030", "gbk", *WIDE]),
        (TRADITIONAL, ["utf-8", "big5", "gb18030", *WIDE]),
        (JAPANESE, ["utf-8", "shift_jis", "euc-jp", *WIDE]),
        (KOREAN, ["utf-8", "euc-kr", *WIDE]),
        (FRENCH, ["utf-8", "latin-1", "cp1252", *WIDE]),
    ],
)
@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("size", [2**16, 5])
def test_an_encoding_is_recognized(text, names, n, size):
    text = "plain text\n" + "".join(f"{i} {text}" for i in range(n))
    for name in names:
        found, decoding = decode(text.encode(name), size=size)
        assert found == text, name
        assert bool(decoding.notes()) == (not name.startswith("utf-8")), name


def test_real_text_cut_to_samples(shared_data):
    novel = (shared_data / "novels/西游记.txt").read_text(encoding="utf-8")
    lines = (shared_data / "wiki_traditional/drcd.jsonl").read_text(encoding="utf-8").splitlines()
    traditional = "\n".join(json.loads(line)["text"] for line in lines)
    for text, name in [(novel, "gb18030"), (traditional, "big5"), (traditional, "gb18030")]:
        for start in range(5000, 200_000, 40_000):
            data = text[start : start + 300].encode(name, "ignore")
            assert decode(data)[0] == data.decode(name)


@pytest.mark.parametrize("place", [1, 50, 5000])
@pytest.mark.parametrize("name", ["utf-8", "gb18030"])
def test_damage_is_the_same_everywhere(place, name):
    for size in (2**16, 999):
        lines = [f"第{i}行，天下大势。".encode(name) for i in range(9000)]
        expected = b"\n".join(lines).decode(name)
        lines[place] = b"\0" + lines[place] + b"\0"
        found, decoding = decode(b"\n".join(lines), size=size)
        assert found == expected
        assert f"2 NUL bytes left out, the first in line {place + 1:,}" in decoding.notes()

        lines[place] = lines[place].strip(b"\0") + b"\xff"
        found, decoding = decode(b"\n".join(lines), size=size)
        assert found == expected
        assert f"1 broken byte left out, the first in line {place + 1:,}" in decoding.notes()


@pytest.mark.parametrize(("ours", "theirs"), [("utf-8", "gb18030"), ("gb18030", "utf-8")])
@pytest.mark.parametrize("size", [2**16, 300])
def test_lines_in_two_encodings(monkeypatch, ours, theirs, size):
    monkeypatch.setattr(encodings, "SAMPLE", 1000)
    halves = [f"第{i}行，天下大势，分久必合。" for i in range(200)]
    data = "\n".join(halves).encode(ours) + b"\n" + "\n".join(halves[:90]).encode(theirs)
    found, decoding = decode(data, size=size)
    assert found == "\n".join([*halves, *halves[:90]])
    assert decoding.lines == {theirs: 90}


def test_characters_of_gb18030_are_not_utf_8():
    text = "小\n小小小\n甲甲甲甲\n" + NOVEL
    assert decode(text.encode("gb18030"))[0] == text


def test_surrogates_of_other_programs():
    data = "天下大势".encode() + b"\xed\xa0\xbd\xed\xb8\x80"  # CESU-8
    found, decoding = decode(data)
    assert found == "天下大势😀" and not decoding.broken


def test_what_is_no_text():
    for data in (bytes(range(256)) * 40, b"\1\0\2\0\3" * 99):
        with pytest.raises(Undecodable, match="no text"):
            decode(data)
    with pytest.raises(Undecodable, match="--encoding=NAME"):
        decode(NOVEL.encode("gb18030") * 20 + b"\x80\xff\xfe" * 30)


def test_the_encoding_that_is_given_counts():
    assert decode("天下".encode("big5"), "big5")[0] == "天下"
    assert decode(b"\xe9", "latin-1")[0] == "é"
    with pytest.raises(Undecodable, match="no text in Big5"):
        decode(NOVEL.encode() * 20, "big5")
    for wrong in ("none", "rot13", "hex"):
        with pytest.raises(UserError, match=f"--encoding={wrong}: no known encoding"):
            check_encoding(wrong)


def test_a_line_without_end_is_cut_where_no_character_is_torn(monkeypatch):
    monkeypatch.setattr(encodings, "_LONGEST_LINE", 100)
    for name in ("utf-8", "gb18030", "big5"):
        for text in ("天下, 大勢" * 500, "天下大勢分久必合" * 500):
            if name == "utf-8" or "," in text:
                found, decoding = decode(text.encode(name) + b"\n", size=64)
                assert found == text + "\n" and not decoding.broken, name
