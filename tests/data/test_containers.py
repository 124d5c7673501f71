"""Any record in any container, compression and encoding is read back; what cannot be is named."""

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.data.pipeline import read_chunks, read_entries
from minigpt.data.readers import containers, json_values, records, tables
from minigpt.data.readers.chunks import Reject
from minigpt.data.readers.files import SourceFile, find_files, search
from minigpt.data.readers.records import records_in

pa = pytest.importorskip("pyarrow", reason="reads .parquet and .arrow")
zstandard = pytest.importorskip("zstandard", reason="reads .zst")
datasets = pytest.importorskip("datasets", reason="writes the folders that are read")
pq = pytest.importorskip("pyarrow.parquet")


def read(path):
    """Every record of a file, and the SourceFile."""
    source = SourceFile(path)
    found = [record for chunk in read_chunks(source) for _, record in records_in(chunk)]
    assert source.size == path.stat().st_size
    return found, source


# -- what the world writes -------------------------------------------------------------------------


def delimited(rows, delimiter):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def dumps(value, **how):
    return json.dumps(value, ensure_ascii=False, **how)


TEXTS = {
    "a.jsonl": lambda rows: "".join(dumps(row) + "\n" for row in rows),
    "crlf.jsonl": lambda rows: "".join(dumps(row) + "\r\n" for row in rows),
    "pretty.jsonl": lambda rows: "".join(dumps(row, indent=2) + "\n" for row in rows),
    "joined.jsonl": lambda rows: "".join(map(dumps, rows)),
    "commas.json": lambda rows: ",\n".join(map(dumps, rows)),
    "list.json": dumps,
    "pretty.json": lambda rows: dumps(rows, indent=1),
    "lists.jsonl": lambda rows: "".join(dumps([row]) + "\n" for row in rows),
    "wrapped.json": lambda rows: dumps(
        {"version": "1", "info": {"n": 2}, "data": rows, "end": [1]}
    ),
    "splits.json": lambda rows: dumps({"train": rows[:1], "test": rows[1:] or rows[:0]}, indent=1),
    "a.csv": lambda rows: delimited(rows, ","),
    "semicolons.csv": lambda rows: delimited(rows, ";"),
    "a.tsv": lambda rows: delimited(rows, "\t"),
    "no_suffix": lambda rows: "".join(dumps(row) + "\n" for row in rows),
    "wrong.txt": lambda rows: dumps(rows, indent=1) if len(rows) > 1 else dumps(rows[0]),
}


def zipped(data, name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.md", "about")
        archive.writestr("__MACOSX/._a", "x")
        archive.writestr(f"folder/{name}", data)
    return file.getvalue()


COMPRESSIONS = {
    "": lambda data, name: data,
    ".gz": lambda data, name: gzip.compress(data, 1),
    ".bz2": lambda data, name: bz2.compress(data, 1),
    ".xz": lambda data, name: lzma.compress(data, preset=0),
    ".zst": lambda data, name: zstandard.compress(data[:9]) + zstandard.compress(data[9:]),
    ".zip": zipped,
}
ENCODINGS = ["utf-8", "utf-8-sig", "gb18030", "big5", "utf-16", "utf-16-le", "utf-16-be"]
ENCODINGS += ["utf-32", "utf-32-le", "utf-32-be"]


def as_parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def as_arrow(rows, new):
    sink, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


TABLES = {
    "a.parquet": as_parquet,
    "file.arrow": lambda rows: as_arrow(rows, pa.ipc.new_file),
    "stream.arrow": lambda rows: as_arrow(rows, pa.ipc.new_stream),
    "parquet_without_suffix": as_parquet,
    "wrong.jsonl": as_parquet,
}

# Characters that are in each of the encodings; all but \\r, which a CSV may not keep.
LETTERS = "天下大勢分久必合春江潮水連海平明月共此時，。「」！abc xyz019\t\n\"\\,;{}[]:'"
texts = st.text(LETTERS, max_size=40).map(lambda text: "山高水長，天下大勢。" + text)
rows = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 99).map(str), "title": texts, "text": texts}),
    min_size=1,
    max_size=5,
)
quiet = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quiet
@given(
    rows, st.sampled_from(list(TEXTS)), st.sampled_from(ENCODINGS), st.sampled_from([*COMPRESSIONS])
)
def test_a_text_is_read_back(tmp_path, rows, name, encoding, suffix):
    data = TEXTS[name](rows).encode(encoding)
    if encoding.startswith("utf-16") and "." not in name and suffix == ".zip":
        return  # nothing tells that it is a text
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSIONS[suffix](data, name))
    assert read(path)[0] == rows


@quiet
@given(rows, st.sampled_from(list(TABLES)), st.sampled_from(list(COMPRESSIONS)))
def test_a_table_is_read_back(tmp_path, rows, name, suffix):
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSIONS[suffix](TABLES[name](rows), name))
    assert read(path)[0] == rows


ROWS = [
    {"id": str(i), "title": f"题{i}", "text": f"天下大势，“分”久,\n必合{i}。"} for i in range(30)
]


@pytest.mark.parametrize("name", [*TEXTS, *TABLES])
def test_small_blocks_change_nothing(tmp_path, monkeypatch, name):
    for module in (containers, json_values, records, tables):
        monkeypatch.setattr(module, "READ_SIZE", 50)
    data = (TEXTS | TABLES)[name](ROWS)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(data.encode() if isinstance(data, str) else data))
    assert read(path)[0] == ROWS
    numbers = [n for chunk in read_chunks(SourceFile(path)) for n, _ in records_in(chunk)]
    assert all(a <= b for a, b in itertools.pairwise(numbers))


def test_several_members(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.jsonl", TEXTS["a.jsonl"](ROWS[:9]))
        archive.writestr("/b.json.gz", gzip.compress(dumps(ROWS[9:20]).encode()))
        archive.writestr("c.parquet", as_parquet(ROWS[20:]))
        archive.writestr("picture.png", b"\x89PNG")
    found, source = read(path)
    assert found == ROWS
    assert [name.rpartition("/")[2] for name, _ in source.passed_over] == ["picture.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]  # nothing is written anywhere


def test_strings_and_lists_of_messages_are_records(tmp_path):
    path = tmp_path / "a.json"
    turns = [{"role": "user", "content": "早"}, {"role": "assistant", "content": "好"}]
    shared = [{"from": "human", "value": "早"}, {"from": "gpt", "value": "好"}]
    for value, expected in [
        (["甲", "乙"], [{"text": "甲"}, {"text": "乙"}]),
        ([turns, shared], [{"messages": turns}, {"conversations": shared}]),
        ({"data": ["甲", "乙"]}, [{"text": "甲"}, {"text": "乙"}]),
        (turns, [{"messages": turns}]),
    ]:
        path.write_text(dumps(value))
        assert read(path)[0] == expected
    path.write_text(dumps(turns) + "\n" + dumps(shared))  # a conversation a line
    assert read(path)[0] == [{"messages": turns}, {"conversations": shared}]


def test_empty_cells_and_other_types(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["甲", None]),
            "raw": pa.array([b"\xe4\xb8\x99", None], pa.binary()),
            "n": pa.array([1.5, float("nan")]),
            "turns": pa.array([[{"role": "user"}], None]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0] == [
        {"text": "甲", "raw": "丙", "n": 1.5, "turns": [{"role": "user"}]},
        {"text": None, "raw": None, "n": None, "turns": None},
    ]


def test_folders_of_datasets(tmp_path):
    made = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=made, test=made.select(range(3))).save_to_disk(tmp_path / "saved")
    repository = tmp_path / "repository"
    repository.mkdir()
    made.to_parquet(repository / "train-00000-of-00001.parquet")
    for name in ("README.md", "dataset_info.json", ".gitattributes"):
        (repository / name).write_text("{}")
    for folder, n in (("saved", 33), ("repository", 30)):
        found = [entry for file in find_files(tmp_path / folder) for entry in read(file)[0]]
        assert len(found) == n and found[-1] in ROWS
        reasons = {reason for _, reason in search(tmp_path / folder).passed_over}
        assert reasons == {"metadata"}


# -- what cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.pdf", b"%PDF-1.7 ...", "a PDF document; expected text"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Word or Excel document"),
        ("a.txt", zipped(b"x", "[Content_Types].xml"), None),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
        ("a.tar", b"\0" * 257 + b"ustar\0", "a tar archive; unpack it"),
        ("a.parquet", b"PAR1" + bytes(range(99)) + b"PAR1", "cannot be read .*copy it again"),
        ("a.zst", zstandard.compress(b"x" * 9999)[:-4], "cannot be unpacked .*too early"),
        ("a.xz", lzma.compress(b"x" * 9999)[:-40], "cannot be unpacked"),
        ("a.bz2", bz2.compress(b"x" * 9999)[:-4], "cannot be unpacked"),
        ("a.zip", b"PK\3\4" + b"\0" * 99, "cannot be unpacked .*copy it again"),
        (
            "a.gz",
            gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"a")))),
            "more than 3 times",
        ),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    if says is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("[Content_Types].xml", "")
        says = "an office document"
    with pytest.raises(UserError, match=rf"{name}.*{says}") as error:
        list(read_entries(path))
    assert "\n" not in str(error.value)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MOST_UNPACKED", 2**20)
    for suffix in (".gz", ".bz2", ".xz", ".zst", ".zip"):
        path = tmp_path / f"a.txt{suffix}"
        data = b"a" * 2**23
        packed = gzip.compress(data) if suffix == ".gz" else COMPRESSIONS[suffix](data, "a.txt")
        path.write_bytes(packed)
        with pytest.raises(UserError, match="unpacks to more than 500 times its size"):
            read(path)


@pytest.mark.parametrize("package", ["pyarrow", "zstandard"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    name, data = {
        "pyarrow": ("a.parquet", as_parquet(ROWS)),
        "zstandard": ("a.jsonl.zst", COMPRESSIONS[".zst"](TEXTS["a.jsonl"](ROWS).encode(), "")),
    }[package]
    (tmp_path / name).write_bytes(data)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=f"{name}.*pip install {package}"):
        read(tmp_path / name)


# -- broken items ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"indent": 1}, {"separators": (",", ":")}])
@pytest.mark.parametrize(
    "damage",
    [
        lambda item: item.replace('": "', '"  "', 1),  # a colon is lost
        lambda item: item[:-2] + "}",  # a quote at the end
        lambda item: item[: len(item) // 2],  # half of it
        lambda item: item.replace("}", ""),
        lambda item: item + "}}]",
        lambda item: "",
    ],
)
def test_reading_goes_on_behind_a_broken_item(tmp_path, how, damage):
    items = [dumps({"text": f"甲{i}，" + "乙" * 90}, **how) for i in range(60)]
    whole = [json.loads(item) for item in items]
    items[5] = damage(items[5])
    with contextlib.suppress(ValueError):
        return json.loads(items[5])  # this damage needs another layout
    path = tmp_path / "a.json"
    path.write_text("[" + ", ".join(items) + "]")
    found, _ = read(path)
    good = [record for record in found if not isinstance(record, Reject)]
    bad = [record for record in found if isinstance(record, Reject)]
    assert all(record in good for record in whole[:5] + whole[7:]) and len(bad) <= 2
    if items[5]:
        assert bad and bad[0].size > 0 and "no JSON" in bad[0].reason


def test_a_row_with_a_lost_quote_costs_its_line_alone(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f'{i},"甲，\n乙{i}"' for i in range(50)]
    rows[7] = '7,"甲，乙7'
    path.write_text("id,text\n" + "\n".join(rows) + "\n")
    found, _ = read(path)
    good = [record for record in found if isinstance(record, dict)]
    assert len(good) >= 47 and all(record["text"].startswith("甲，\n乙") for record in good)
    bad = [record for record in found if isinstance(record, Reject)]
    assert bad[0].line == 16 and "quote" in bad[0].reason
