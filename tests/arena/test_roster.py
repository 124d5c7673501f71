"""The roster: its file, joining by a code, and codes that are revoked."""

import csv
import os
import stat

import pytest

from minigpt.arena.access.voters import KEY_BYTES, Voters
from minigpt.arena.classroom.roster import (
    ALPHABET,
    MAX_BROWSERS,
    Roster,
    normalized,
    read_roster,
    write_roster,
)
from minigpt.arena.store import Ledger
from minigpt.common.errors import UserError

VOTERS = Voters(b"k" * KEY_BYTES)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "arena.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "class.csv"
    path.write_text("name,code\n王芳,AAAA-3333\n李明,CCCC-4444\n", encoding="utf-8")
    return path


@pytest.fixture
def roster(path, ledger):
    return Roster(path, VOTERS, ledger)


# -- the file --------------------------------------------------------------------------------------


def test_a_new_roster_has_codes_to_print(tmp_path, ledger):
    path = tmp_path / "class.csv"
    write_roster(path, 30)
    pupils = read_roster(path)
    codes = {normalized(pupil.code) for pupil in pupils}
    assert len(codes) == len({pupil.name for pupil in pupils}) == 30
    assert all(len(code) == 8 and set(code) <= set(ALPHABET) for code in codes)
    assert not set(ALPHABET) & set("01258BILOSUVZ")
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(encoding="utf-8-sig", newline="") as file:
        assert next(csv.reader(file)) == ["name", "code"]
    with pytest.raises(UserError, match="exists already"):
        write_roster(path, 2)
    with pytest.raises(UserError, match="cannot be written"):
        write_roster(tmp_path / "no" / "class.csv", 2)
    assert Roster(path, VOTERS, ledger).join("b", pupils[7].code.lower()) == pupils[7]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_roster_that_a_spreadsheet_has_saved(tmp_path, encoding):
    path = tmp_path / "class.csv"
    text = "code, name ,班\r\nAAAA-3333, 王芳 ,1\r\n,李明,1\r\n,,\r\n"
    path.write_bytes(text.encode(encoding))
    assert read_roster(path) == [("王芳", "AAAA-3333"), ("李明", "")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected name,code"),
        ("name;code\na;b\n", "first line is name;code; expected name,code"),
        ("name,code\n", "0 pupils; expected 1 to"),
        ("name,code\na,AAAA\n,CCCC\n", "line 3: no name"),
        ("name,code\na,A-1\n", "line 2: code 'A-1': expected at least 4"),
        ("name,code\na,AAAA\nb,CCCC\na,DDDD\n", "line 4: the same name as in line 2"),
        ("name,code\na,AAAA\nb,aa-aa\n", "line 3: the same code as in line 2"),
        ('name,code\na,"AAAA\n', "no CSV"),
        ("name,code\na\n,DDDD\n", "line 3: no name"),
    ],
)
def test_a_file_that_is_no_roster_says_why(tmp_path, text, problem):
    path = tmp_path / "class.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"class\.csv") as caught:
        read_roster(path)
    assert problem in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_roster(tmp_path / "missing.csv")


# -- joining ---------------------------------------------------------------------------------------


def test_two_browsers_with_one_code_are_one_voter(roster, ledger):
    assert roster.voter("phone") is None and roster.voter(None) is None
    for browser in ("phone", "laptop"):
        assert roster.join(browser, "AAAA-3333").name == "王芳"
    roster.join("other", "cccc 4444")
    assert roster.voter("phone") == roster.voter("laptop") != roster.voter("other")
    assert roster.names() == {roster.voter("phone"): "王芳", roster.voter("other"): "李明"}
    rows = "\n".join(str(tuple(row)) for row in ledger.execute("SELECT * FROM browser"))
    assert "AAAA" not in rows and "王芳" not in rows  # nothing of the roster is in the ledger


def test_a_browser_is_one_pupil_at_a_time(roster):
    roster.join("b", "AAAA-3333")
    roster.join("b", "CCCC-4444")
    assert roster.pupil("b").name == "李明"
    roster.leave("b")
    assert roster.pupil("b") is None


@pytest.mark.parametrize("given", ["aaaa3333", " AAAA 3333 ", "ＡＡＡＡ－３３３３", "aaaa–3333"])
def test_spellings_of_a_code(roster, given):
    assert roster.join("b", given).name == "王芳"


@pytest.mark.parametrize(
    "given", ["", "-", "AAAA-333", "AAAA-33333", "王芳", "\0", "\ud83d", "İ" * 9]
)
def test_a_wrong_code_changes_nothing(roster, given):
    roster.join("b", "AAAA-3333")
    assert roster.join("b", given) is None and roster.pupil("b").name == "王芳"


def test_a_pupil_has_a_limited_number_of_browsers(roster, ledger):
    for i in range(MAX_BROWSERS + 5):
        roster.join(f"b{i}", "AAAA-3333")
    assert ledger.execute("SELECT COUNT(*) FROM browser").fetchone()[0] == MAX_BROWSERS
    assert roster.voter("b0") is None and roster.voter(f"b{MAX_BROWSERS + 4}")


# -- revoking --------------------------------------------------------------------------------------


def change(path, text):
    """Save another roster; the time of the file differs, however coarse the clock is."""
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(path.stat().st_mtime_ns + 10**9,) * 2)


@pytest.mark.parametrize("line", ["王芳,", "", "王芳,DDDD-6666"])
def test_a_code_is_revoked_by_a_change_of_the_file(roster, path, line):
    for browser, code in (("b", "AAAA-3333"), ("other", "CCCC-4444")):
        roster.join(browser, code)
    before = roster.voter("b")
    change(path, f"name,code\n{line}\n李明,CCCC-4444\n")
    assert roster.voter("b") is None and roster.join("b", "AAAA-3333") is None
    assert roster.pupil("other").name == "李明"
    if "DDDD" in line:  # a new code, the same voter
        roster.join("b", "DDDD-6666")
        assert roster.voter("b") == before


def test_a_joined_browser_survives_a_restart(roster, path, ledger):
    roster.join("b", "AAAA-3333")
    again = Roster(path, VOTERS, ledger)
    assert again.voter("b") == roster.voter("b")
    assert Roster(path, Voters(b"x" * KEY_BYTES), ledger).voter("b") is None


def test_a_broken_or_missing_file_leaves_the_roster_as_it_was(roster, path):
    roster.join("b", "AAAA-3333")
    change(path, "name,code\nonly one column\n,\n,xx\n")
    assert roster.pupil("b").name == "王芳" and "line 4" in roster.problem
    path.unlink()
    assert roster.pupil("b").name == "王芳" and "cannot be read" in roster.problem
    path.write_text("name,code\n李明,CCCC-4444\n", encoding="utf-8")
    assert roster.pupil("b") is None and roster.problem is None
