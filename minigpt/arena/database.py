"""The SQLite file of the arena: its tables, its versions, its transactions.

    database = Database("out/arena.sqlite")
    with database.transaction("IMMEDIATE"):
        database.execute("INSERT …", values)

Threads may share a Database, and processes may share a file. When a transaction ends, its data is
on disk: write-ahead log, synchronous=FULL.
"""

import sqlite3
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from minigpt.common.errors import UserError

VERSION = 2  # of the tables, in the file's user_version
BUSY_SECONDS = 30.0  # how long another process may hold the file

# choice has no CHECK: Ledger.vote() decides which votes exist, so a new one needs no new table.
_BATTLE = """
CREATE TABLE battle (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('blind', 'open')),
    prompt TEXT NOT NULL,
    settings TEXT NOT NULL,
    seed INTEGER,
    voter TEXT NOT NULL,
    choice,
    hidden INTEGER NOT NULL DEFAULT 0,
    round INTEGER REFERENCES round (id),
    task INTEGER
);
CREATE INDEX battle_by_voter ON battle (voter, id);
CREATE UNIQUE INDEX battle_of_task ON battle (round, task, voter) WHERE round IS NOT NULL;
"""
_SIDE = """
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
"""
# A class: which browser has joined with which seat of the roster, the teacher's settings, rounds.
_CLASS = """
CREATE TABLE browser (
    id TEXT PRIMARY KEY,
    seat TEXT NOT NULL,
    time REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE class_setting (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE round (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    ended REAL
);
CREATE TABLE task (
    round INTEGER NOT NULL REFERENCES round (id),
    place INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    names TEXT NOT NULL,
    settings TEXT NOT NULL,
    sides TEXT,
    PRIMARY KEY (round, place)
) WITHOUT ROWID;
"""
# A table's CHECK cannot be changed: SQLite's way is a new table under the old name.
_FROM_1_TO_2 = f"""
DROP INDEX battle_by_voter;
ALTER TABLE battle RENAME TO old_battle;
{_CLASS}
{_BATTLE}
INSERT INTO battle (id, time, kind, prompt, settings, seed, voter, choice)
    SELECT id, time, kind, prompt, settings, seed, voter, choice FROM old_battle;
DROP TABLE old_battle;
"""


class Database:
    """See the module's docstring. Every method raises UserError if the file cannot be used."""

    def __init__(self, path):
        """Opens the file, or creates it; a file of an earlier version is changed to this one.
        UserError if it is another kind of file or from a newer version."""
        self.path = Path(path)
        self._lock = threading.Lock()  # one connection for all threads, one of them at a time
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self.execute("PRAGMA synchronous = FULL")
            self.execute("PRAGMA legacy_alter_table = ON")  # a renamed table's name stays in `side`
        with self.transaction("IMMEDIATE"):
            self._make_tables()
        with self._errors():
            self.execute("PRAGMA foreign_keys = ON")  # not earlier: a new version drops a table
            self._use_wal()

    def close(self):
        """Close the file."""
        with self._lock:
            self._connection.close()

    def execute(self, query, values=()):
        """Run a statement, within a transaction; returns its cursor of sqlite3.Rows."""
        return self._connection.execute(query, values)

    @contextmanager
    def transaction(self, kind="DEFERRED"):
        """Everything executed inside, or nothing. IMMEDIATE: locks out other writers at once."""
        with self._lock, self._errors():
            self.execute(f"BEGIN {kind}")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self.execute("ROLLBACK")
                raise

    def create_function(self, name, n_arguments, function):
        """Make a Python function of its arguments alone available in statements."""
        self._connection.create_function(name, n_arguments, function, deterministic=True)

    @contextmanager
    def _errors(self):
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise UserError(
                f"{self.path}: the ledger of battles cannot be read or written ({error}); "
                "check the disk, or give another file"
            ) from error

    def _use_wal(self):
        """Switch the file to write-ahead logging, for good. For this statement SQLite does not wait
        for a lock, so processes that open a new file at the same time would get an error."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return self.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _make_tables(self):
        version = self.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise UserError(
                f"{self.path}: a ledger of version {version}, and this program supports {VERSION}: "
                "use the newest program, or give another file"
            )
        if version == VERSION:
            return
        statements = _FROM_1_TO_2
        if version == 0:
            if self.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise UserError(
                    f"{self.path}: a database, but no ledger of battles: give another file"
                )
            statements = _CLASS + _BATTLE + _SIDE
        for statement in statements.split(";"):  # executescript() would end the transaction
            self.execute(statement)
        self.execute(f"PRAGMA user_version = {VERSION}")
