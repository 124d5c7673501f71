"""Tables: delimiters, quotes, long cells, and what is wrong with a table, by its line."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.evaluation.tables import DELIMITERS, choose_delimiter, read_table


def write(path, text):
    path.write_bytes(text.encode())
    return path


CELLS = st.text(st.sampled_from('ab中,;|\t"\n '), max_size=6)


@given(
    st.sampled_from(list(DELIMITERS)),
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8),
)
def test_what_the_csv_module_writes_is_read(tmp_path_factory, delimiter, rows):
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["id", "text", "label"])
    writer.writerows(rows)
    path = write(tmp_path_factory.mktemp("t") / "a.csv", text.getvalue())
    found = read_table(path, ["label", "text"])
    assert [tuple(cells.values()) for _, cells in found.rows] == rows
    assert found.delimiter == delimiter and found.quoted


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("label;text\n0;a, b, c\n1;d, e\n", ";"),
        ("label\ttext\n0\ta, b; c\n", "\t"),
        ("a|b|c\n1|2|3\n", "|"),
        ("text\none column, with commas\n", ","),
        ("one, two;label\n1;2\n3;4\n", ";"),
        ("", ","),
    ],
)
def test_the_delimiter_is_found(text, delimiter):
    assert choose_delimiter(text) == delimiter


def test_the_wanted_columns_tell_the_delimiter():
    text = "label;title, long\n0;a, b\n1;c, d\n"
    assert choose_delimiter(text) == ","  # as many cells by both
    assert choose_delimiter(text, ["label"]) == ";"


def test_a_cell_may_be_long(tmp_path):
    long = "很" * 300_000
    found = read_table(write(tmp_path / "a.csv", f'label,text\n0,"{long}"\n'))
    assert found.rows == [(2, {"label": "0", "text": long})]


def test_rows_have_the_line_where_they_begin(tmp_path):
    table = 'a,b\r\n1,"x\ny"\r\n\r\n2,z\r\n'
    assert [line for line, _ in read_table(write(tmp_path / "a.csv", table)).rows] == [2, 5]


def test_columns_without_name_and_content_are_left_out(tmp_path):
    found = read_table(write(tmp_path / "a.csv", " a ,b,,\n1,2,,\n"))
    assert found.columns == ["a", "b"] and found.rows == [(2, {"a": "1", "b": "2"})]


def test_quotes_in_a_table_with_tabs_may_be_plain(tmp_path):
    table = 'label\ttext\n0\t"Hello" he said\n1\t"one\n0\tx\n'
    found = read_table(write(tmp_path / "a.tsv", table))
    assert [cells["text"] for _, cells in found.rows] == ['"Hello" he said', '"one', "x"]
    assert not found.quoted


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('l,t\n0,a\n1,"b\n0,c\n1,d\n', "line 3: a quote is opened and never closed"),
        ('l,t\n0,a\n1,"b\n0,"c"\n1,d\n', "line 3: up to line 4 there is text after a closing"),
        ('l,t\n0,"a"b\n', "line 2: there is text after a closing quote"),
        ('l\tt\n0\t"a"\n1\t"b\n0\t"c"\n', "line 3: up to line 4 there is text after"),
        ("l,t\n0,a\n1,b, c\n", "line 3: 3 cells, but the first line names 2 columns"),
        ("l;t\n0;a\n1\n", "line 3: 1 cells.*2 columns: a text that has a semicolon needs"),
        ("l,x\n0,a\n", r"no column t; its first line names l, x \(delimiter: comma\)"),
        ("t,t\n0,a\n", "several columns are called t"),
    ],
)
def test_mistakes_are_named_by_line(tmp_path, table, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "a.csv", table), ["t"])
