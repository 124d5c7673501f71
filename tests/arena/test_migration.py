"""A ledger of version 1 is opened: nothing of it is lost, and what version 2 adds works on it."""

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from minigpt.arena.database import VERSION
from minigpt.arena.ratings import Decided
from minigpt.arena.store import BattleRecord, Ledger, SideRecord
from minigpt.common.errors import UserError

# The tables as version 1 made them.
VERSION_1 = """
CREATE TABLE battle (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('blind', 'open')),
    prompt TEXT NOT NULL,
    settings TEXT NOT NULL,
    seed INTEGER,
    voter TEXT NOT NULL,
    choice CHECK (typeof(choice) IN ('null', 'integer') OR choice IN ('tie', 'none'))
);
CREATE INDEX battle_by_voter ON battle (voter, id);
CREATE TABLE side (
    battle INTEGER NOT NULL REFERENCES battle (id),
    place INTEGER NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    checkpoint TEXT,
    answer TEXT NOT NULL,
    first_token_seconds REAL,
    tokens_per_second REAL,
    tokens INTEGER,
    end_reason TEXT NOT NULL,
    error TEXT,
    PRIMARY KEY (battle, place)
) WITHOUT ROWID;
CREATE INDEX side_by_model ON side (model);
PRAGMA user_version = 1;
"""
CHOICES = [0, 1, "tie", "none", None]


@pytest.fixture
def old(tmp_path):
    """A file of version 1: a battle for each of CHOICES, with the ids 3, 6, 9, …"""
    path = tmp_path / "old.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.execute("PRAGMA journal_mode = WAL")
    for i, choice in enumerate(CHOICES, start=1):
        row = (3 * i, 1000.5 + i, "open", f"问 {i}", '{"top_k": 5}', i, f"v{i}", choice)
        connection.execute("INSERT INTO battle VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        for place, model in enumerate("ab"):
            side = (3 * i, place, model, model, None, f"答 {model}", 0.1, 9.0, 3, "stop", None)
            connection.execute(f"INSERT INTO side VALUES ({', '.join('?' * 11)})", side)
    connection.commit()
    connection.close()
    return path


def test_a_ledger_of_version_1_keeps_everything(old):
    ledger = Ledger(old)
    found = ledger.battles()
    assert [(b.id, b.time, b.choice) for b in found[::-1]] == [
        (3 * i, 1000.5 + i, choice) for i, choice in enumerate(CHOICES, start=1)
    ]
    first = found[-1]
    assert (first.prompt, first.settings, first.seed, first.voter) == (
        "问 1",
        {"top_k": 5},
        1,
        "v1",
    )
    assert [(s.model, s.answer, s.tokens) for s in first.sides] == [
        ("a", "答 a", 3),
        ("b", "答 b", 3),
    ]
    assert not first.hidden and first.round is None
    assert ledger.decided() == [Decided(("a", "b"), choice) for choice in CHOICES[:4]]
    assert ledger.execute("PRAGMA foreign_key_check").fetchall() == []
    assert ledger.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert ledger.execute("PRAGMA user_version").fetchone()[0] == VERSION
    ledger.close()
    Ledger(old).close()  # opened again: nothing is left to change


def test_a_migrated_ledger_can_do_what_a_new_one_can(old, tmp_path):
    migrated, new = Ledger(old), Ledger(tmp_path / "new.sqlite")
    names = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY 1, 2"
    tables = [list(map(tuple, each.execute(names))) for each in (migrated, new)]
    columns = [
        list(map(tuple, each.execute("PRAGMA table_info(battle)"))) for each in (migrated, new)
    ]
    assert tables[0] == tables[1] and columns[0] == columns[1]
    sides = tuple(SideRecord(m, m, None, "答", None, None, None, "stop") for m in "ab")
    number = migrated.add_battle(BattleRecord("open", "问", {}, None, "v9", sides))
    assert number == 16  # after the last id of the old file
    migrated.vote(15, "v5", 1)
    migrated.hide(3)
    assert migrated.decided() == [Decided(("a", "b"), c) for c in (1, "tie", "none", 1)]
    with pytest.raises(sqlite3.IntegrityError):  # its sides refer to the new table
        migrated.execute("DELETE FROM battle WHERE id = 3")
    migrated.execute("UPDATE battle SET choice = 'skip' WHERE id = 6")  # the old CHECK is gone
    migrated.close(), new.close()


def test_an_old_ledger_is_changed_once_by_processes_that_open_it_together(old):
    with ThreadPoolExecutor(8) as pool:
        found = [ledger.decided() for ledger in pool.map(Ledger, [old] * 8)]
    assert found == [found[0]] * 8 and len(found[0]) == 4


def test_a_ledger_that_cannot_be_changed_stays_as_it_was(old, tmp_path, monkeypatch):
    copy = tmp_path / "copy.sqlite"
    shutil.copy(old, copy)
    monkeypatch.setattr("minigpt.arena.database._FROM_1_TO_2", "DROP TABLE side; SELECT nonsense")
    with pytest.raises(UserError, match="cannot be read or written"):
        Ledger(copy)
    monkeypatch.undo()
    ledger = Ledger(copy)
    assert len(ledger.battles()) == len(CHOICES) and len(ledger.battles()[0].sides) == 2
    ledger.close()
