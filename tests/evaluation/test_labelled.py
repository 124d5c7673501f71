"""Labelled texts: tables in the forms in which they are saved, duplicates, stratified splits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.evaluation.labelled import (
    Labelled,
    excerpts,
    read_labelled_table,
    split,
    without_duplicates,
)


def labelled(*pairs):
    return [Labelled(str(i), text, label) for i, (text, label) in enumerate(pairs)]


# -- tables ----------------------------------------------------------------------------------------


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_a_table_is_read_as_spreadsheets_save_it(tmp_path, encoding):
    table = 'kind,text\r\nart," two  words\nof 画 "\r\nsport,run\r\n'
    path = write(tmp_path / "news.csv", table, encoding)
    rows = [
        Labelled("news.csv:2", "two words of 画", "art"),
        Labelled("news.csv:4", "run", "sport"),
    ]
    assert read_labelled_table(path, ["text"], "kind") == (rows, [])


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("a.csv", "kind,title,text\nart,T,a b\nsport,,c\n"),
        ("a.tsv", "kind\ttitle\ttext\nart\tT\ta b\nsport\t\tc\n"),
        ("b.csv", "kind;title;text\nart;T;a b\nsport;;c\n"),
        ("a.jsonl", '{"kind": "art", "title": "T", "text": "a b"}\n'
                    '{"kind": "sport", "title": null, "text": "c"}\n'),
        ("a.json", '[{"kind": "art", "title": "T", "text": "a b"},{"kind": "sport", "text": "c"}]'),
    ],
)  # fmt: skip
def test_several_columns_are_lines_of_the_text(tmp_path, name, table):
    path = write(tmp_path / name, table)
    rows, notes = read_labelled_table(path, ["title", "text"], "kind")
    assert [row[1:] for row in rows] == [("T\na b", "art"), ("c", "sport")]
    assert notes == []


def test_numbers_are_labels(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    rows, _ = read_labelled_table(path, ["text"], "label")
    assert [row.label for row in rows] == ["0", "1"]


def test_rows_without_text_or_label_are_counted(tmp_path):
    table = "kind,text\nart,a\nart,\n ,b\n\n" + "art, \n" * 5
    rows, notes = read_labelled_table(write(tmp_path / "a.csv", table), ["text"], "kind")
    assert [row.text for row in rows] == ["a"]
    rows = ", ".join(f"a.csv:{line}" for line in (3, 4, 6, 7, 8))
    assert notes == [f"7 rows without text or label left out: {rows}, …"]


def test_a_table_in_big5(tmp_path):
    good = [f"這間房子第{i}次來都很好，服務員態度熱情，下次還要再來。" for i in range(30)]
    table = "label,review\n" + "".join(f"{i % 2},{text}\n" for i, text in enumerate(good))
    rows, _ = read_labelled_table(write(tmp_path / "a.csv", table, "big5"), ["review"], "label")
    assert [row.text for row in rows] == good


def test_a_text_may_be_long(tmp_path):
    long = "很" * 300_000
    rows, _ = read_labelled_table(
        write(tmp_path / "a.csv", f'label,text\n0,"{long}"\n'), ["text"], "label"
    )
    assert [row.text for row in rows] == [long]


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("a.csv", "kind,words\nart,a\n", "line 2: no column text; its columns are kind, words"),
        ("a.csv", "kind;text x\nart;a\n", "line 2: no column text; its columns are kind, text x"),
        ("a.jsonl", '{"body": "a"}\n', "line 1: no column text, kind; its columns are body"),
        ("a.csv", 'kind,text\nart,a\nart,"b\nart,c\n', "line 3: a quote .* is not closed"),
        ("a.csv", 'kind,text\nart,"b\nart,"c"\n', "line 2: a quote .* is not closed"),
        ("a.csv", "kind,text\nart,b, c\n", "line 2: 3 fields, but the first row names 2"),
    ],
)
def test_mistakes_in_a_table(tmp_path, name, table, message):
    with pytest.raises(UserError, match=message):
        read_labelled_table(write(tmp_path / name, table), ["text"], "kind")


def test_a_column_that_no_row_has(tmp_path):
    path = write(tmp_path / "a.csv", "kind,text\nart,a\n")
    with pytest.raises(UserError, match="no column title; its columns are"):
        read_labelled_table(path, ["title", "text"], "kind")


# -- choosing --------------------------------------------------------------------------------------


def test_doubles_are_texts_that_begin_alike():
    rows = labelled(("one a", "x"), ("one b", "x"), ("two", "x"), ("two", "y"), ("three", "y"))
    kept, doubles, contradicted = without_duplicates(rows, 3)
    assert ([row.id for row in kept], doubles, contradicted) == (["0", "4"], 1, 2)
    kept, doubles, contradicted = without_duplicates(rows, 5)
    assert ([row.id for row in kept], doubles, contradicted) == (["0", "1", "4"], 0, 2)


@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=4), st.floats(0.01, 0.99), st.integers(0, 9)
)
def test_a_split_keeps_each_class_s_share(counts, fraction, seed):
    rows = [
        Labelled(f"{c}.{i}", "", str(c)) for i in range(30) for c, n in enumerate(counts) if i < n
    ]
    train, test = split(rows, fraction, seed)
    assert sorted(train + test) == sorted(rows)
    for part in (train, test):
        assert part == [row for row in rows if row in part]
    for c, n in enumerate(counts):
        assert sum(row.label == str(c) for row in test) == min(max(round(n * fraction), 1), n - 1)
    assert split(rows, fraction, seed) == (train, test)


def test_a_split_is_drawn():
    rows = labelled(*[(str(i), "x") for i in range(100)])
    first, second = split(rows, 0.2, 1)[1], split(rows, 0.2, 2)[1]
    assert len(first) == len(second) == 20 and first != second and first != rows[:20]
    with pytest.raises(UserError, match="class y: one text"):
        split([*rows, Labelled("", "", "y")], 0.2, 1)


@given(st.text("ab ", max_size=60).map(lambda text: " ".join(text.split())), st.integers(1, 12))
def test_excerpts_lose_nothing_but_blanks(text, length):
    parts = excerpts(text, length)
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert all(0 < len(part) <= length for part in parts)


def test_excerpts_end_at_words():
    assert excerpts("aaa bbb ccc", 8) == ["aaa bbb", "ccc"]
    assert excerpts("aaa bbb ccc", 7) == ["aaa bbb", "ccc"]
    assert excerpts("a bbbbbbbbb", 6) == ["a bbbb", "bbbbb"]  # a blank too early to end at
    assert excerpts("中文没有空格", 4) == ["中文没有", "空格"]


# -- real text -------------------------------------------------------------------------------------


def test_the_news_are_split_four_to_one(shared_data):
    rows, _ = read_labelled_table(shared_data / "bbc" / "bbc_news.csv", ["content"], "category")
    assert len(rows) == 1490 and len({row.text for row in rows}) == 1440
    kept, doubles, contradicted = without_duplicates(rows, 750)
    assert (len(kept), doubles, contradicted) == (1436, 54, 0)
    train, test = split(kept, 0.2, 1337)
    assert (len(train), len(test)) == (1150, 286)
    beginnings = {excerpts(row.text, 750)[0] for row in train}
    assert not beginnings & {excerpts(row.text, 750)[0] for row in test}
