"""The ledger: battles and the votes on them, in an SQLite file.

    ledger = Ledger("out/arena.sqlite")
    number = ledger.add_battle(BattleRecord("blind", prompt, settings, seed, voter, sides))
    ledger.vote(number, voter, 0)                       # its first side was the best
    ratings(ledger.decided("blind"), seed=0)            # minigpt.arena.ratings
    for line in jsonl(ledger.battles(text="黄河")): …

Many threads may share a Ledger, and several processes a file. What a call has returned from is on
the disk: write-ahead log, synchronous=FULL. Voters are random ids; nothing else is known of them.
"""

import json
import re
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path

from minigpt.arena.ratings import Decided
from minigpt.common.errors import UserError

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

# What may be listed: all but a blind battle that can still be voted on.
_TOLD = (
    "(kind = 'open' OR choice IS NOT NULL OR "
    "EXISTS (SELECT 1 FROM side WHERE battle = id AND error IS NOT NULL))"
)
# instr() and not LIKE, to which % and _ are more than signs.
_CONTAINS = (
    "(instr(lower(prompt), lower(?)) OR "
    "EXISTS (SELECT 1 FROM side WHERE battle = id AND instr(lower(answer), lower(?))))"
)


@dataclass(frozen=True)
class SideRecord:
    """What one side of a battle was, and did. error None: it ended as it should."""

    model: str
    endpoint: str  # the label under which its server is listed
    checkpoint: str | None  # the checkpoint's hash, where it is known
    answer: str
    first_token_seconds: float | None
    tokens_per_second: float | None
    tokens: int | None
    end_reason: str
    error: str | None = None


@dataclass(frozen=True)
class BattleRecord:
    """A battle that has ended. The ledger gives it its id and time, and a vote its choice."""

    kind: str  # "blind" or "open"
    prompt: str
    settings: dict  # what all sides got, as JSON can say it
    seed: int | None
    voter: str
    sides: tuple  # of SideRecords, in the order in which they were shown
    id: int | None = None
    time: float | None = None  # seconds since 1970
    choice: int | str | None = None  # the best side's place, "tie", "none"; None: no vote

    @property
    def votable(self):
        """Whether it can be voted on: every side ended without error."""
        return all(side.error is None for side in self.sides)


class Ledger:
    """See the module's docstring. Every method raises UserError where the file fails it."""

    def __init__(self, path):
        """Opens the file, or makes it. UserError where it is something else, or from a newer
        version."""
        self.path = Path(path)
        self._lock = threading.Lock()  # one connection for all threads, one of them at a time
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._execute("PRAGMA synchronous = FULL")
            self._execute("PRAGMA foreign_keys = ON")
        with self._transaction("IMMEDIATE"):
            self._make_tables()
        with self._explained():
            self._use_wal()

    def close(self):
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    # -- writing -----------------------------------------------------------------------------------

    def add_battle(self, battle):
        """Save a BattleRecord; returns its id, which no other battle has had or will have."""
        row = (
            time.time() if battle.time is None else battle.time,
            battle.kind,
            _whole(battle.prompt),
            json.dumps(battle.settings),
            battle.seed,
            battle.voter,
        )
        with self._transaction("IMMEDIATE"):
            columns = "time, kind, prompt, settings, seed, voter"
            number = self._execute(f"INSERT INTO battle ({columns}) VALUES ({_marks(row)})", row)
            number = number.lastrowid
            for place, side in enumerate(battle.sides):
                values = (number, place, *(_whole(getattr(side, f.name)) for f in fields(side)))
                self._execute(f"INSERT INTO side VALUES ({_marks(values)})", values)
        return number

    def vote(self, battle_id, voter, choice):
        """Save a vote: a side's place, "tie" (of two sides) or "none". Returns the BattleRecord.

        Only a battle's own voter may vote. The vote on a blind battle is final, since it shows the
        names; that on an open one may be changed until the voter's next battle. UserError
        otherwise, or where a side failed.
        """
        with self._transaction("IMMEDIATE"):
            found = self._records("WHERE id = ?", (battle_id,))
            problem = self._problem(found[0] if found else None, voter, choice)
            if problem:
                raise UserError(problem)
            self._execute("UPDATE battle SET choice = ? WHERE id = ?", (choice, battle_id))
        return replace(found[0], choice=choice)

    def _problem(self, battle, voter, choice):
        """Why this vote cannot be taken, or None."""
        if battle is None or battle.voter != voter:  # whose it is, is nobody else's affair
            return "this battle is not yours to vote on"
        if not battle.votable:
            return "a side of this battle failed: there is nothing to vote on"
        n = len(battle.sides)
        choices = [*range(n), "none"] + ["tie"] * (n == 2)
        if type(choice) not in (int, str) or choice not in choices:
            return f"vote: {choice!r}: expected one of {', '.join(map(str, choices))}"
        later = "SELECT 1 FROM battle WHERE voter = ? AND id > ?"
        changed = battle.choice not in (None, choice)
        if changed and battle.kind == "blind":
            return "the vote on a blind battle is final: it has shown the names"
        if changed and self._execute(later, (voter, battle.id)).fetchone():
            return "a vote can be changed until the next battle; this one has been followed"
        return None

    # -- reading -----------------------------------------------------------------------------------

    def battles(self, text="", model="", kind=None, limit=None, before=None):
        """The BattleRecords in which `text` stands, in the prompt or an answer (capitals of ASCII
        count as small letters), and in which `model` took part; the newest first.

        A blind battle that waits for its vote is not listed: the page must not tell who fought.
        limit: at most so many; before: only battles with a smaller id.
        """
        where, values = [_TOLD], []
        if text:
            where.append(_CONTAINS)
            values += [_whole(text)] * 2
        if model:
            where.append("id IN (SELECT battle FROM side WHERE model = ?)")
            values.append(_whole(model))
        if kind:
            where.append("kind = ?")
            values.append(kind)
        if before is not None:
            where.append("id < ?")
            values.append(before)
        rest = f"WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        with self._transaction():
            return self._records(rest, (*values, -1 if limit is None else limit))

    def each_battle(self, at_once=100):
        """Yield what battles() lists, read from the file `at_once` at a time: an export needs no
        more memory than that, however long the ledger is."""
        before = None
        while page := self.battles(limit=at_once, before=before):
            yield from page
            before = page[-1].id

    def decided(self, kind=None):
        """All battles with a vote, of one kind or of both, as minigpt.arena.ratings takes them."""
        query = (
            "SELECT battle, choice, model FROM side JOIN battle ON battle = id "
            "WHERE choice IS NOT NULL AND kind IN (?, ?) ORDER BY battle, place"
        )
        names, choices = {}, {}
        with self._transaction():
            for row in self._execute(query, (kind, kind) if kind else KINDS):
                names.setdefault(row["battle"], []).append(row["model"])
                choices[row["battle"]] = row["choice"]
        return [Decided(tuple(names[number]), choices[number]) for number in names]

    def pair_counts(self, names):
        """frozenset of two of the `names` → in how many battles both were, as choose_pair() takes
        it. Every battle counts, voted on or not: or a side that always fails would meet the same
        one again and again."""
        query = (
            "SELECT a.model, b.model, COUNT(DISTINCT a.battle) FROM side AS a JOIN side AS b "
            "ON a.battle = b.battle AND a.model < b.model GROUP BY a.model, b.model"
        )
        with self._transaction():
            found = {frozenset(row[:2]): row[2] for row in self._execute(query)}
        return {frozenset(pair): found.get(frozenset(pair), 0) for pair in combinations(names, 2)}

    def _records(self, rest, values):
        """The BattleRecords that `SELECT * FROM battle` gives with `rest` after it."""
        return [
            BattleRecord(
                **dict(row, settings=json.loads(row["settings"])), sides=self._sides(row["id"])
            )
            for row in self._execute(f"SELECT * FROM battle {rest}", values).fetchall()
        ]

    def _sides(self, number):
        names = ", ".join(field.name for field in fields(SideRecord))
        query = f"SELECT {names} FROM side WHERE battle = ? ORDER BY place"
        return tuple(SideRecord(*row) for row in self._execute(query, (number,)))

    # -- the file ----------------------------------------------------------------------------------

    def _execute(self, query, values=()):
        return self._connection.execute(query, values)

    @contextmanager
    def _transaction(self, kind="DEFERRED"):
        """All that is executed within, or nothing; IMMEDIATE: no one else writes meanwhile."""
        with self._lock, self._explained():
            self._execute(f"BEGIN {kind}")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self):
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise UserError(
                f"{self.path}: the ledger of battles cannot be read or written ({error}); "
                "check the disk, or give another file"
            ) from error

    def _use_wal(self):
        """Once for the life of the file. SQLite does not wait for others here as it does elsewhere,
        and several that open a new file at once would refuse one another."""
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
                f"{self.path}: a ledger of version {version}, and this program knows {VERSION}: "
                "take the newest program, or give another file"
            )
        if version == VERSION:
            return
        if self._execute("SELECT 1 FROM sqlite_master").fetchone():
            raise UserError(f"{self.path}: a database, but no ledger of battles: give another file")
        for statement in _SCHEMA.split(";"):  # executescript() would end the transaction
            self._execute(statement)
        self._execute(f"PRAGMA user_version = {VERSION}")


def _marks(values):
    return ", ".join("?" * len(values))


def _whole(value):
    """A text as UTF-8 can hold it: U+FFFD for half a surrogate pair, and for NUL, at which SQLite
    would end it. Any other value as it is."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "\ufffd")


# -- exports ---------------------------------------------------------------------------------------


def jsonl(battles):
    """Yield each BattleRecord as a line of JSON. What is not for everyone is left out: the voter,
    for who knows the id could vote as its owner, and errors, which tell of the owner's network."""
    for battle in battles:
        record = asdict(battle)
        del record["voter"]
        for side in record["sides"]:
            del side["error"]
        yield json.dumps(record, ensure_ascii=False) + "\n"


def markdown(battles):
    """Yield each BattleRecord as a part of a Markdown text, which shows what the models wrote as
    it is and runs none of it."""
    for battle in battles:
        moment = f"{datetime.fromtimestamp(battle.time, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        settings = {**battle.settings, "seed": battle.seed}
        facts = [battle.kind, moment, *(f"{n} {v}" for n, v in settings.items() if v is not None)]
        parts = [f"## Battle {battle.id}", _line(facts), _fenced(battle.prompt)]
        for place, side in enumerate(battle.sides):
            parts += [f"### {_heading(battle, place)}", _line(_facts(side)), _fenced(side.answer)]
        yield "\n\n".join(parts) + "\n\n"


def preference_pairs(battles):
    """Yield {"prompt", "chosen", "rejected"} for each pair of answers of which one was chosen as
    the best, as training on preferences takes them; two that are the same say nothing."""
    for battle in battles:
        if not isinstance(battle.choice, int):
            continue
        chosen = battle.sides[battle.choice].answer
        for side in battle.sides:
            if side.answer != chosen:
                yield dict(prompt=battle.prompt, chosen=chosen, rejected=side.answer)


def _heading(battle, place):
    verdicts = {place: " – the best", "tie": " – a tie", "none": " – none was good"}
    letter, model = chr(ord("A") + place), _escaped(battle.sides[place].model)
    return f"{letter}: {model}{verdicts.get(battle.choice, '')}"


def _facts(side):
    yield side.endpoint
    if side.checkpoint is not None:
        yield f"checkpoint {side.checkpoint}"
    if side.first_token_seconds is not None:
        yield f"first token after {side.first_token_seconds:.2f} s"
    if side.tokens_per_second is not None:
        yield f"{side.tokens_per_second:.1f} tokens/s"
    yield f"end: {side.end_reason}"


def _line(facts):
    return " · ".join(map(_escaped, facts))


def _escaped(text):
    """Text of one line in which no sign is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#&|!~$])", r"\\\1", " ".join(text.split()))


def _fenced(text):
    """Text as it is, between fences longer than any that stands in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
