"""Files → entries: formats, encodings, chunks, prose, and what a bad record says."""

import gzip
import hashlib
import itertools
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.data.formats import Entry
from minigpt.data.hashing import is_val
from minigpt.data.pipeline import read_chunks, read_entries
from minigpt.data.readers import containers, json_values, prose, records, tables
from minigpt.data.readers.chunks import Reject
from minigpt.data.readers.files import SourceFile, find_files
from minigpt.data.readers.prose import split_prose
from minigpt.data.readers.records import (
    records_in,
)

RECORDS = [
    {"id": "1", "title": "甲", "text": "甲\n\n天下大势，分久必合。"},
    {"id": 2, "text": "合久必分。\u2028“周末”七国……"},
    {"text": "并入于秦。🙂"},
]
ENTRIES = [("1", "天下大势，分久必合。"), ("2", "合久必分。“周末”七国……"), (None, "并入于秦。🙂")]


def as_lines(items, **keywords):
    return "".join(json.dumps(item, ensure_ascii=False, **keywords) + "\n" for item in items)


def read(path, **keywords):
    return [(entry.id, entry.text) for entry in read_entries(path, **keywords)]


def set_block(monkeypatch, size):
    for module in (containers, json_values, records, tables):
        monkeypatch.setattr(module, "READ_SIZE", size)


def all_records(path):
    return [pair for chunk in read_chunks(SourceFile(path)) for pair in records_in(chunk)]


# -- formats and encodings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        as_lines(RECORDS).encode(),
        as_lines(RECORDS).encode("utf-8-sig"),
        as_lines(RECORDS).encode("gb18030"),
        as_lines(RECORDS).replace("\n", "\r\n").encode(),
        ("\n \n" + as_lines(RECORDS).rstrip("\n")).encode(),
        "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),  # \uXXXX
        json.dumps(RECORDS, ensure_ascii=False).encode(),
        json.dumps(RECORDS, ensure_ascii=False, indent=2).encode("utf-8-sig"),
        json.dumps(RECORDS, ensure_ascii=False, indent="\t").encode("gb18030"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "A.JSON.GZ"])
@pytest.mark.parametrize("size", [2**18, 7])
def test_every_shape_of_json_reads_alike(tmp_path, monkeypatch, data, name, size):
    set_block(monkeypatch, size)  # 7: cut within lines and characters
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    found = read(path)
    assert [text for _, text in found] == [text for _, text in ENTRIES]
    assert [id_ for id_, _ in found][:2] == ["1", "2"]
    assert re.fullmatch(re.escape(path.as_posix()) + r":\d+", found[2][0])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("size", [2**18, 4096])
def test_prose(tmp_path, monkeypatch, encoding, size):
    set_block(monkeypatch, size)
    for module in (records, prose):
        monkeypatch.setattr(module, "ENTRY", 100)
    text = "".join(
        f"　　第{i}段。{'天下大势，' * (i % 9)}分久必合。\r\n\r\n" for i in range(1, 900)
    )
    path = tmp_path / "书.txt"
    path.write_bytes(text.encode(encoding))
    entries = list(read_entries(path, clean=False))
    assert "".join(entry.text for entry in entries) == text
    assert {entry.title for entry in entries} == {"书"}
    lines = text.split("\n")
    for entry in entries[1:]:
        name, _, line = entry.id.rpartition(":")
        assert name == "书" and entry.text.startswith(lines[int(line) - 1])
    assert all(re.fullmatch(r"第\d+段。.*。", entry.text) for entry in read_entries(path))


@pytest.mark.parametrize("name", ["A.txt.gz", "A.TXT.GZ"])
def test_the_title_has_no_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress("天下大势。\n".encode()))
    assert [entry.title for entry in read_entries(tmp_path / name)] == ["A"]


def test_ascii_until_late(tmp_path, monkeypatch):
    # The encoding is known at the first character that is not ASCII, here after several chunks.
    set_block(monkeypatch, 64)
    path = tmp_path / "a.txt"
    path.write_bytes(("plain\n" * 100 + "天下大势\n").encode("gb18030"))
    assert read(path)[-1][1].endswith("plain天下大势")


def test_one_broken_line_does_not_change_the_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("天下大势。\n".encode() * 3 + "分久必合。\n".encode("gb18030"))
    found = all_records(path)
    assert isinstance(found[0][1], Reject) and found[0][0] == 4
    assert found[1][1]["text"] == "天下大势。\n" * 3 + "\n"


def test_a_hash_over_the_whole_file(tmp_path):
    for name, data in [
        ("a.jsonl", as_lines(RECORDS).encode()),
        ("a.json", json.dumps(RECORDS).encode() + b"\n" * 2**19),
        ("b.json", b"[1, 2, x" + b" " * 2**19),
        ("a.txt.gz", gzip.compress(b"text\n" * 10_000)),
        ("empty.txt", b""),
    ]:
        path = tmp_path / name
        path.write_bytes(data)
        source = SourceFile(path)
        chunks = list(read_chunks(source))
        assert (source.size, source.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert sum(chunk.size for chunk in chunks) <= len(data)


def test_unclean_text_is_left_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text(as_lines(RECORDS), encoding="utf-8")
    found = read(tmp_path, clean=False)
    assert [text for _, text in found] == [record["text"] for record in RECORDS]


def test_half_a_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "甲\\ud83d乙\\ud83d\\ude42"}\n', encoding="utf-8")
    assert read(tmp_path)[0][1] == "甲\ufffd乙🙂"


def test_nothing_left(tmp_path):
    (tmp_path / "a.jsonl").write_text(as_lines([{"text": "（）"}, {"text": " "}, {"text": "甲"}]))
    assert [text for _, text in read(tmp_path)] == ["甲"]
    assert [text for _, text in read(tmp_path, clean=False)] == ["（）", "甲"]


items = st.recursive(
    st.text(max_size=4) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(deadline=None)
@given(
    st.lists(st.lists(items, max_size=6), min_size=1, max_size=3),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
)
def test_lists_in_parts_are_the_lists(lists, indent, size):
    """Several lists in a row: files were joined, or each line is a list."""
    data = "\n".join(json.dumps(a, indent=indent, ensure_ascii=False) for a in lists).encode()
    found = list(itertools.chain(*lists))
    blocks = (data[i : i + size] for i in range(0, len(data), size))
    chunks = list(records._list_items("a.json", blocks))
    read = [pair for chunk in chunks for pair in chunk.data]
    assert [json.loads(text) for _, text in read] == found
    for (line, text), (_, following) in itertools.pairwise([*read, (0, None)]):
        # The line on which an item begins: so many line breaks are before it.
        assert data.decode().split("\n")[line - 1].find(text.split("\n")[0]) >= 0
        assert following is None or line <= read[-1][0]


# -- what is bad -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "line", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text": }\n', 3, r'no JSON \(column 10\).*"\{"text": \}"'),
        ("a.jsonl", b'{"text": "a"}\n["a"]\n', 2, r'expected a JSON object.*"\["a"\]"'),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"}, {"text": "c"}\n', 2, r"no JSON \(column 14\)"),
        ("a.jsonl", b'{"title": "a"}\n', 1, "field `text` is missing"),
        ("a.jsonl", b'{"text": 7}\n', 1, "field `text`: expected text, found int"),
        ("a.jsonl", b'{"text": "' + b"[" * 10**5, 1, "no JSON"),
        ("a.jsonl", b'{"text": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", 1, "no JSON"),
        ("a.jsonl", '{"text": "甲"}\n{"text": "'.encode() + b'\xff"}\n', 2, "neither UTF-8 nor"),
        ("a.json", b'[{"text": "a"},\n\n {"text": "b"} x]', 3, 'no JSON from here on.*"x\\]"'),
        ("a.json", b'[{"text": "a"}\n', 2, "the list ends without ]"),
        ("a.json", b'[{"text": "a"}]\n{"text": "b"}', 2, "text after the end of the list"),
        (  # CESU-8: a character as two halves of three bytes each
            "a.jsonl",
            '{"text": "天下大势"}\n{"text": "'.encode() + b'\xed\xa0\xbd\xed\xb8\x80"}\n',
            2,
            "neither UTF-8 nor",
        ),
        ("a.json", b'[{"text": "a"},\n 5]', 2, 'expected a JSON object.*"5"'),
        ("a.json", b'[\n{"text": "a"},\n{"title": "b"}]', 3, "`text` is missing"),
        ("a.json", b'{"text": "a",\n "b": 1}', 1, "no JSON"),
        ("a.txt", "天下。\n大势".encode() + b"\xff\xff\n", 2, 'neither UTF-8 nor.*"大势'),
        ("a.txt", b"PK\x03\x04\x00\x00", 1, "no text in UTF-8 or GB18030.*save it as UTF-8"),
        ("a.txt", "天下".encode("utf-16"), 1, "no text in UTF-8 or GB18030"),
        ("a.jsonl.gz", gzip.compress(b'{"text": 7}\n'), 1, "found int"),
    ],
)
@pytest.mark.parametrize("size", [2**18, 12])
def test_a_bad_record_names_file_line_and_beginning(
    tmp_path, monkeypatch, name, data, line, says, size
):
    set_block(monkeypatch, size)
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        list(read_entries(path))
    message = str(error.value)
    assert message.startswith(f"{path.as_posix()}, line {line}: ") and "\n" not in message.strip()
    assert re.search(says, message, re.DOTALL), message
    assert len(message) < 400 + len(str(path))


def test_the_records_around_a_bad_one_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n{"text": "b"}\n', encoding="utf-8")
    assert [type(record) for _, record in all_records(path)] == [dict, Reject, dict]


def test_a_file_that_cannot_be_unpacked(tmp_path):
    whole = gzip.compress(as_lines(RECORDS * 200).encode())
    for data in (whole[:-20], b"no gzip at all", whole[:200] + b"\0" * 100 + whole[300:]):
        (tmp_path / "a.jsonl.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be unpacked"):
            list(read_entries(tmp_path))


# -- files -----------------------------------------------------------------------------------------


def test_folders_are_walked_in_order(tmp_path):
    for name in ["b/x.txt", "b/a/y.jsonl.gz", "a.json", ".git/z.txt", "b/.z.txt", "b/read.md"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    prepared = tmp_path / "data/processed"
    prepared.mkdir(parents=True)
    for name in ["train.bin", "val.jsonl"]:
        (prepared / name).write_text("")
    assert find_files(tmp_path) == [
        tmp_path / "a.json",
        tmp_path / "b/x.txt",
        tmp_path / "b/a/y.jsonl.gz",
    ]
    assert find_files([tmp_path / "b", tmp_path]) == [
        *find_files(tmp_path / "b"),
        tmp_path / "a.json",
    ]
    assert find_files(f"{tmp_path / 'b'}, {tmp_path / 'a.json'}") == find_files(
        [tmp_path / "b", tmp_path]
    )
    odd = tmp_path / "a, b.txt"
    odd.write_text("")
    assert find_files(str(odd)) == [odd]


def test_what_wikiextractor_writes(tmp_path):
    """Its files have no suffix: an article a line, with --json."""
    (tmp_path / "AA").mkdir()
    line = {"id": "13", "revid": "7", "url": "…", "title": "数学", "text": "数学是研究数量的学科。"}
    (tmp_path / "AA" / "wiki_00").write_text(as_lines([line]), encoding="utf-8")
    (tmp_path / "AA" / "wiki_list").write_text("no text of it")
    assert list(read_entries(tmp_path)) == [Entry("13", "数学", "数学是研究数量的学科。")]


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    for paths, says in [
        ("", "no input: give --input=PATH"),
        ([], "no input: give --input=PATH"),
        (f"{tmp_path}/none", "no such file or folder"),
        (f"{tmp_path}/a.csv", r"expected a name that ends in \.jsonl"),
        (str(tmp_path), r"no file in this folder ends in \.jsonl"),
    ]:
        with pytest.raises(UserError, match=says):
            find_files(paths)


# -- prose -----------------------------------------------------------------------------------------


def texts_of(text, **keywords):
    return [text[start:end] for start, end in split_prose(text, **keywords)]


def test_an_entry_ends_before_a_chapter():
    chapters = [
        f"{heading}\n" + "　　话说天下大势。\n" * 80
        for heading in ["第一回 甲", "  第二十章：乙", "卷三　丙", "Chapter 4", "尾声"]
    ]
    assert texts_of("".join(chapters)) == chapters


def test_a_sentence_that_begins_like_a_heading_is_none():
    text = "第一回合他输了。\n" * 200
    assert texts_of(text) == [text]


def test_short_chapters_and_contents_stay_together():
    contents = "".join(f"第{i}章 名\n" for i in range(60))
    assert texts_of(contents) == [contents]


def test_an_entry_ends_at_the_nearest_paragraph():
    paragraph = "甲" * 298 + "。\n"
    # 2,000 is between 1,800 and 2,100; the last 5,400 are divided evenly.
    assert [len(text) for text in texts_of(paragraph * 25)] == [2100, 1800, 1800, 1800]
    wrapped = ("甲" * 39 + "\n") * 5 + "甲。\n"  # lines broken at a width end no sentence
    assert all(text.endswith("甲。\n") for text in texts_of(wrapped * 40))


def test_one_long_line():
    texts = texts_of("甲" * 99 + "。" + "乙，" * 4000 + "丙。" * 999)
    assert [text[-1] for text in texts] == ["，", "，", "，", "。", "。"]
    assert [len(text) for text in texts_of("甲" * 9000)] == [2000, 1750, 1750, 1750, 1750]


@settings(deadline=None)
@given(st.text(alphabet="甲。，\n 第一章 a.", max_size=300), st.integers(4, 60))
@example("aaaaaa aaa", 4)  # two and a half shares, and a blank far from the middle
def test_prose_is_lost_nowhere(text, about):
    parts = texts_of(text, about=about)
    assert "".join(parts) == text
    assert all(0 < len(part) <= about * 3 // 2 for part in parts)


def test_real_novels(shared_data, monkeypatch):
    path = shared_data / "novels/三国演义.txt"
    set_block(monkeypatch, 2**15)
    entries = list(read_entries(path, clean=False))
    assert "".join(entry.text for entry in entries) == path.read_text(encoding="utf-8")
    lengths = [len(entry.text) for entry in entries]
    assert max(lengths) <= 3000 and 1500 < sum(lengths) / len(lengths) < 2100
    # All 120 chapters but those near a chunk's end begin an entry, and entries end with sentences.
    assert sum(bool(re.match(r"\s*第.{1,5}回\s", entry.text)) for entry in entries) > 100
    ended = sum(entry.text.rstrip().endswith(tuple("。！？”：…")) for entry in entries)
    assert ended > 0.98 * len(entries)


# -- train or val ----------------------------------------------------------------------------------


def test_is_val_by_the_first_bytes_of_blake2b():
    # blake2b("甲") begins with these bytes (b2sum prints them); the rule is as it is written.
    share = int.from_bytes(hashlib.blake2b("甲".encode()).digest()[:8], "big") / 2**64
    assert is_val("甲", share * 1.000001) and not is_val("甲", share * 0.999999)


def test_a_larger_fraction_holds_out_the_same_and_more():
    keys = [str(i) for i in range(4000)]
    small, large = ({key for key in keys if is_val(key, f)} for f in (0.05, 0.1))
    assert small < large and 150 < len(small) < 250 and 340 < len(large) < 460
