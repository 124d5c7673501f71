"""The ledger: battles and the votes on them, in an SQLite file.

    ledger = Ledger("out/arena.sqlite")
    number = ledger.add_battle(BattleRecord("blind", prompt, settings, seed, voter, sides))
    ledger.vote(number, voter, 0)                       # its first side was the best
    ratings(ledger.decided("blind"), seed=0)            # minigpt.arena.ratings
    for record in ledger.battles(text="黄河"): …        # minigpt.arena.exports writes files

Threads may share a Ledger, and processes may share a file. When a method returns, its data is on
disk: write-ahead log, synchronous=FULL. Voters are random ids; nothing else about them is stored.
"""

import json
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path

from minigpt.arena.ratings import Decided, vote_choices
from minigpt.common.errors import UserError
from minigpt.common.text import replace_lone_surrogates

VERSION = 1  # of the schema, in the file's user_version
BUSY_SECONDS = 30.0  # how long another process may hold the file
KINDS = ("blind", "open")

_SCHEMA = """
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
"""

# Public battles: all except a blind battle that can still be voted on. answered() is has_answer().
_PUBLIC = (
    "(kind = 'open' OR choice IS NOT NULL OR "
    "(SELECT COUNT(*) FROM side WHERE battle = id AND answered(answer, error)) < 2)"
)
# instr() because LIKE treats % and _ as wildcards.
_CONTAINS = (
    "(instr(lower(prompt), lower(?)) OR "
    "EXISTS (SELECT 1 FROM side WHERE battle = id AND instr(lower(answer), lower(?))))"
)


@dataclass(frozen=True)
class SideRecord:
    """One side of a battle. error None: it ended normally."""

    model: str
    endpoint: str  # its name in the list of endpoints
    checkpoint: str | None  # the hash of the weights, if known
    answer: str
    first_token_seconds: float | None
    tokens_per_second: float | None
    tokens: int | None
    end_reason: str
    error: str | None = None

    @property
    def answered(self):
        """Whether it has an answer to vote on."""
        return has_answer(self.answer, self.error)


@dataclass(frozen=True)
class BattleRecord:
    """A battle that has ended. The ledger adds the id and the time, a vote adds the choice."""

    kind: str  # "blind" or "open"
    prompt: str
    settings: dict  # of all sides; JSON values
    seed: int | None
    voter: str
    sides: tuple  # of SideRecords, in the order on the page
    id: int | None = None
    time: float | None = None  # seconds since 1970
    choice: int | str | None = None  # the index of the best side, "tie", "none"; None: no vote

    @property
    def answered(self):
        """The indices of the sides that have an answer."""
        return [index for index, side in enumerate(self.sides) if side.answered]

    @property
    def choices(self):
        """The possible votes, among the sides that have an answer; empty if fewer than two have."""
        return vote_choices(self.answered)

    @property
    def votable(self):
        """Whether a vote is possible."""
        return bool(self.choices)


def has_answer(answer, error):
    """Whether a side answered: it ended normally, and its text is not blank."""
    return error is None and bool(answer.strip())


class Ledger:
    """See the module's docstring. Every method raises UserError if the file cannot be used."""

    def __init__(self, path):
        """Opens the file, or creates it. UserError if it is another kind of file or from a newer
        version."""
        self.path = Path(path)
        self._lock = threading.Lock()  # one connection for all threads, one of them at a time
        with self._database_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.create_function("answered", 2, has_answer, deterministic=True)
            self._execute("PRAGMA synchronous = FULL")
            self._execute("PRAGMA foreign_keys = ON")
        with self._transaction("IMMEDIATE"):
            self._make_tables()
        with self._database_errors():
            self._use_wal()

    def close(self):
        """Close the file."""
        with self._lock:
            self._connection.close()

    # -- writing -----------------------------------------------------------------------------------

    def add_battle(self, battle):
        """Save a BattleRecord; returns its id, which is never reused."""
        row = (
            time.time() if battle.time is None else battle.time,
            battle.kind,
            _valid_utf8(battle.prompt),
            json.dumps(battle.settings),
            battle.seed,
            battle.voter,
        )
        with self._transaction("IMMEDIATE"):
            columns = "time, kind, prompt, settings, seed, voter"
            query = f"INSERT INTO battle ({columns}) VALUES ({_placeholders(row)})"
            battle_id = self._execute(query, row).lastrowid
            for place, side in enumerate(battle.sides):
                facts = (_valid_utf8(getattr(side, field.name)) for field in fields(side))
                values = (battle_id, place, *facts)
                self._execute(f"INSERT INTO side VALUES ({_placeholders(values)})", values)
        return battle_id

    def vote(self, battle_id, voter, choice):
        """Save a vote: one of the battle's `choices`. Returns the BattleRecord.

        Only the battle's own voter may vote. The vote on a blind battle is final, because it shows
        the names; the vote on an open battle can be changed until the voter's next battle.
        UserError otherwise, or if fewer than two sides have an answer.
        """
        with self._transaction("IMMEDIATE"):
            found = self._records("WHERE id = ?", (battle_id,))
            problem = self._vote_problem(found[0] if found else None, voter, choice)
            if problem:
                raise UserError(problem)
            self._execute("UPDATE battle SET choice = ? WHERE id = ?", (choice, battle_id))
        return replace(found[0], choice=choice)

    def _vote_problem(self, battle, voter, choice):
        """Why this vote is not allowed, or None."""
        if battle is None or battle.voter != voter:  # one answer: do not reveal which exist
            return "this battle is not yours to vote on"
        if not battle.votable:
            return "fewer than two sides of this battle have an answer: nothing to vote on"
        if type(choice) not in (int, str) or choice not in battle.choices:
            return f"vote: {choice!r}: expected one of {', '.join(map(str, battle.choices))}"
        later = "SELECT 1 FROM battle WHERE voter = ? AND id > ?"
        changed = battle.choice not in (None, choice)
        if changed and battle.kind == "blind":
            return "the vote on a blind battle is final: it has shown the names"
        if changed and self._execute(later, (voter, battle.id)).fetchone():
            return "a vote can be changed until your next battle, and that has begun"
        return None

    # -- reading -----------------------------------------------------------------------------------

    def battles(self, text="", model="", kind=None, limit=None, before=None):
        """The BattleRecords, newest first, whose prompt or an answer contains `text` (ASCII letters
        match in either case) and in which `model` took part.

        A blind battle without its vote is not listed, because the models must stay hidden.
        limit: the maximum number; before: only battles with a smaller id.
        """
        where, values = [_PUBLIC], []
        if text:
            where.append(_CONTAINS)
            values += [_valid_utf8(text)] * 2
        if model:
            where.append("id IN (SELECT battle FROM side WHERE model = ?)")
            values.append(_valid_utf8(model))
        if kind:
            where.append("kind = ?")
            values.append(kind)
        if before is not None:
            where.append("id < ?")
            values.append(before)
        rest = f"WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        with self._transaction():
            return self._records(rest, (*values, -1 if limit is None else limit))

    def each_battle(self, batch_size=100):
        """Yield all battles(), read from the file in batches: the memory that an export needs does
        not grow with the ledger."""
        before = None
        while page := self.battles(limit=batch_size, before=before):
            yield from page
            before = page[-1].id

    def decided(self, kind=None):
        """All battles with a vote, of one kind or of both, as Decided (minigpt.arena.ratings): the
        vote is among the sides that have an answer."""
        query = (
            "SELECT battle, choice, place, model FROM side JOIN battle ON battle = id "
            "WHERE choice IS NOT NULL AND kind IN (?, ?) AND answered(answer, error) "
            "ORDER BY battle, place"
        )
        sides, choices = {}, {}
        with self._transaction():
            for row in self._execute(query, (kind, kind) if kind else KINDS):
                sides.setdefault(row["battle"], {})[row["place"]] = row["model"]
                choices[row["battle"]] = row["choice"]
        return [
            Decided(tuple(models.values()), _among(models, choices[battle_id]))
            for battle_id, models in sides.items()
            # Ledgers of earlier versions have votes on blank answers: they compare nothing.
            if choices[battle_id] in vote_choices(models)
        ]

    def pair_counts(self, names):
        """frozenset of two of the `names` → in how many battles both were, for choose_pair(). Every
        battle counts, with a vote or without, or a model that always fails would be paired again
        and again."""
        query = (
            "SELECT a.model, b.model, COUNT(DISTINCT a.battle) FROM side AS a JOIN side AS b "
            "ON a.battle = b.battle AND a.model < b.model GROUP BY a.model, b.model"
        )
        with self._transaction():
            found = {frozenset(row[:2]): row[2] for row in self._execute(query)}
        return {frozenset(pair): found.get(frozenset(pair), 0) for pair in combinations(names, 2)}

    def _records(self, rest, values):
        """The BattleRecords of `SELECT * FROM battle` followed by `rest`."""
        return [
            BattleRecord(
                **dict(row, settings=json.loads(row["settings"])), sides=self._sides(row["id"])
            )
            for row in self._execute(f"SELECT * FROM battle {rest}", values).fetchall()
        ]

    def _sides(self, battle_id):
        names = ", ".join(field.name for field in fields(SideRecord))
        query = f"SELECT {names} FROM side WHERE battle = ? ORDER BY place"
        return tuple(SideRecord(*row) for row in self._execute(query, (battle_id,)))

    # -- the file ----------------------------------------------------------------------------------

    def _execute(self, query, values=()):
        return self._connection.execute(query, values)

    @contextmanager
    def _transaction(self, kind="DEFERRED"):
        """Everything executed inside, or nothing. IMMEDIATE: locks out other writers at once."""
        with self._lock, self._database_errors():
            self._execute(f"BEGIN {kind}")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._execute("ROLLBACK")
                raise

    @contextmanager
    def _database_errors(self):
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
                return self._execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _make_tables(self):
        version = self._execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise UserError(
                f"{self.path}: a ledger of version {version}, and this program supports {VERSION}: "
                "use the newest program, or give another file"
            )
        if version == VERSION:
            return
        if self._execute("SELECT 1 FROM sqlite_master").fetchone():
            raise UserError(f"{self.path}: a database, but no ledger of battles: give another file")
        for statement in _SCHEMA.split(";"):  # executescript() would end the transaction
            self._execute(statement)
        self._execute(f"PRAGMA user_version = {VERSION}")


def _among(models, choice):
    """A vote by the index among `models` (place → model) instead of the place."""
    return list(models).index(choice) if isinstance(choice, int) else choice


def _placeholders(values):
    return ", ".join("?" * len(values))


def _valid_utf8(value):
    """A text that SQLite can store: U+FFFD in place of half a surrogate pair, and of NUL, where
    SQLite would end the text. Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    return replace_lone_surrogates(value).replace("\0", "\ufffd")
