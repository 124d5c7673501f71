"""The ledger: battles and the votes on them, in an SQLite file.

    ledger = Ledger("out/arena.sqlite")
    number = ledger.add_battle(BattleRecord("blind", prompt, settings, seed, voter, sides))
    ledger.vote(number, voter, 0)                       # its first side was the best
    ratings(ledger.decided("blind"), seed=0)            # minigpt.arena.ratings
    for record in ledger.battles(text="黄河"): …        # minigpt.arena.exports writes files

The file is minigpt.arena.database's: when a method returns, its data is on disk. Voters are random
ids, or those of a roster (minigpt.arena.classroom.roster); nothing else about them is stored.
"""

import json
import time
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import NamedTuple

from minigpt.arena.database import Database
from minigpt.arena.i18n import ArenaError
from minigpt.arena.ratings import Decided, vote_choices
from minigpt.common.errors import UserError
from minigpt.common.text import replace_lone_surrogates

KINDS = ("blind", "open")

# Battles that count: not those that the teacher has hidden, and those of a round after its end.
_COUNTED = (
    "(NOT hidden AND (round IS NULL OR EXISTS "
    "(SELECT 1 FROM round WHERE round.id = battle.round AND ended IS NOT NULL)))"
)
# Public battles: those that count, except a blind battle that can still be voted on. answered() is
# has_answer().
_PUBLIC = (
    f"({_COUNTED} AND (kind = 'open' OR choice IS NOT NULL OR "
    "(SELECT COUNT(*) FROM side WHERE battle = id AND answered(answer, error)) < 2))"
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
    hidden: bool = False  # by the teacher: it is not shown and does not count
    round: int | None = None  # of a class, and the number of the prompt in it
    task: int | None = None

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


class Vote(NamedTuple):
    """A vote for ratings: its voter, the Decided battle, its answers' lengths in characters."""

    voter: str
    decided: Decided
    lengths: tuple


def has_answer(answer, error):
    """Whether a side answered: it ended normally, and its text is not blank."""
    return error is None and bool(answer.strip())


class Ledger(Database):
    """See the module's docstring. Every method raises UserError if the file cannot be used."""

    def __init__(self, path):
        super().__init__(path)
        self.create_function("answered", 2, has_answer)

    # -- writing -----------------------------------------------------------------------------------

    def add_battle(self, battle):
        """Save a BattleRecord; returns its id, which is never reused. A voter has one battle for
        each prompt of a round: later ones are not saved, and the id of the first is returned."""
        row = (
            time.time() if battle.time is None else battle.time,
            battle.kind,
            _valid_utf8(battle.prompt),
            json.dumps(battle.settings),
            battle.seed,
            battle.voter,
            battle.round,
            battle.task,
        )
        with self.transaction("IMMEDIATE"):
            first = "SELECT id FROM battle WHERE round = ? AND task = ? AND voter = ?"
            found = self.execute(first, (battle.round, battle.task, battle.voter)).fetchone()
            if found:
                return found["id"]
            columns = "time, kind, prompt, settings, seed, voter, round, task"
            query = f"INSERT INTO battle ({columns}) VALUES ({_placeholders(row)})"
            battle_id = self.execute(query, row).lastrowid
            for place, side in enumerate(battle.sides):
                facts = (_valid_utf8(getattr(side, field.name)) for field in fields(side))
                values = (battle_id, place, *facts)
                self.execute(f"INSERT INTO side VALUES ({_placeholders(values)})", values)
        return battle_id

    def vote(self, battle_id, voter, choice, quota=None):
        """Save a vote: one of the battle's `choices`. Returns the BattleRecord.

        quota: how many battles outside of rounds the voter may vote on in total.

        Only the battle's own voter may vote. The vote on a blind battle is final, because it shows
        the names; the vote on an open battle can be changed until the voter's next battle.
        UserError otherwise, or if fewer than two sides have an answer.
        """
        with self.transaction("IMMEDIATE"):
            found = self._records("WHERE id = ?", (battle_id,))
            battle = found[0] if found else None
            self._check_vote(battle, voter, choice)
            if battle.round is None and battle.choice is None:
                self._check_quota(voter, quota)
            self.execute("UPDATE battle SET choice = ? WHERE id = ?", (choice, battle_id))
        return replace(found[0], choice=choice)

    def _check_vote(self, battle, voter, choice):
        """UserError if this vote is not allowed."""
        if battle is None or battle.voter != voter:  # one answer: do not reveal which exist
            raise ArenaError("vote_foreign")
        if not battle.votable:
            raise ArenaError("vote_blank")
        if type(choice) not in (int, str) or choice not in battle.choices:
            expected = ", ".join(map(str, battle.choices))
            raise UserError(f"vote: {choice!r}: expected one of {expected}")
        later = "SELECT 1 FROM battle WHERE voter = ? AND id > ?"
        changed = battle.choice not in (None, choice)
        if changed and battle.kind == "blind":
            raise ArenaError("vote_final")
        if changed and self.execute(later, (voter, battle.id)).fetchone():
            raise ArenaError("vote_late")

    def _check_quota(self, voter, quota):
        if quota is not None and self._n_free_votes(voter) >= quota:
            raise ArenaError("quota_used", n=quota)

    def hide(self, battle_id, hidden=True):
        """Hide a battle: it is not shown, exported or counted. hidden=False shows it again.
        UserError if there is no such battle."""
        with self.transaction("IMMEDIATE"):
            query = "UPDATE battle SET hidden = ? WHERE id = ?"
            if not self.execute(query, (int(hidden), battle_id)).rowcount:
                raise ArenaError("unknown_battle", n=battle_id)

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
        with self.transaction():
            return self._records(rest, (*values, -1 if limit is None else limit))

    def each_battle(self, batch_size=100):
        """Yield all battles(), read from the file in batches: the memory that an export needs does
        not grow with the ledger."""
        before = None
        while page := self.battles(limit=batch_size, before=before):
            yield from page
            before = page[-1].id

    def decided(self, kind=None):
        """All battles with a vote that count, of one kind or of both, as Decided
        (minigpt.arena.ratings): the vote is among the sides that have an answer."""
        return [vote.decided for vote in self.votes(kind)]

    def votes(self, kind=None, prompts=None, running=False):
        """Those of decided() as Votes. prompts: only battles with one of these prompts. running:
        also those of a round that has not ended."""
        query = (
            "SELECT battle, voter, choice, place, model, length(answer) AS length "
            "FROM side JOIN battle ON battle = battle.id "
            "WHERE choice IS NOT NULL AND kind IN (?, ?) AND answered(answer, error) "
            f"AND {'NOT hidden' if running else _COUNTED} "
            "AND (? IS NULL OR prompt IN (SELECT value FROM json_each(?))) ORDER BY battle, place"
        )
        asked = None if prompts is None else json.dumps(list(prompts))
        battles = {}
        with self.transaction():
            for row in self.execute(query, (*((kind, kind) if kind else KINDS), asked, asked)):
                battles.setdefault(row["battle"], []).append(row)
        return [
            Vote(
                rows[0]["voter"],
                Decided(tuple(row["model"] for row in rows), _among(rows, rows[0]["choice"])),
                tuple(row["length"] for row in rows),
            )
            for rows in battles.values()
            # Ledgers of earlier versions have votes on blank answers: they compare nothing.
            if rows[0]["choice"] in vote_choices([row["place"] for row in rows])
        ]

    def n_free_votes(self, voter):
        """How often a voter has voted outside of rounds."""
        with self.transaction():
            return self._n_free_votes(voter)

    def _n_free_votes(self, voter):
        query = "SELECT COUNT(*) FROM battle WHERE voter = ? AND choice NOT NULL AND round IS NULL"
        return self.execute(query, (voter,)).fetchone()[0]

    def battle(self, battle_id):
        """The BattleRecord with this id, public or not; None if there is none."""
        with self.transaction():
            found = self._records("WHERE id = ?", (battle_id,))
        return found[0] if found else None

    def voted_battles(self):
        """All BattleRecords with a vote, the oldest first, also hidden ones and those of a running
        round: for the teacher alone."""
        with self.transaction():
            return self._records("WHERE choice IS NOT NULL ORDER BY id", ())

    def pair_counts(self, names):
        """frozenset of two of the `names` → in how many battles both were, for choose_pair(). Every
        battle counts, with a vote or without, or a model that always fails would be paired again
        and again."""
        query = (
            "SELECT a.model, b.model, COUNT(DISTINCT a.battle) FROM side AS a JOIN side AS b "
            "ON a.battle = b.battle AND a.model < b.model GROUP BY a.model, b.model"
        )
        with self.transaction():
            found = {frozenset(row[:2]): row[2] for row in self.execute(query)}
        return {frozenset(pair): found.get(frozenset(pair), 0) for pair in combinations(names, 2)}

    def _records(self, rest, values):
        """The BattleRecords of `SELECT * FROM battle` followed by `rest`."""
        return [
            BattleRecord(
                **dict(
                    row,
                    settings=json.loads(row["settings"]),
                    hidden=bool(row["hidden"]),
                    sides=self._sides(row["id"]),
                )
            )
            for row in self.execute(f"SELECT * FROM battle {rest}", values).fetchall()
        ]

    def _sides(self, battle_id):
        names = ", ".join(field.name for field in fields(SideRecord))
        query = f"SELECT {names} FROM side WHERE battle = ? ORDER BY place"
        return tuple(SideRecord(*row) for row in self.execute(query, (battle_id,)))


def _among(rows, choice):
    """A vote by the index among `rows` (of sides) instead of the place."""
    return [row["place"] for row in rows].index(choice) if isinstance(choice, int) else choice


def _placeholders(values):
    return ", ".join("?" * len(values))


def _valid_utf8(value):
    """A text that SQLite can store: U+FFFD in place of half a surrogate pair, and of NUL, where
    SQLite would end the text. Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    return replace_lone_surrogates(value).replace("\0", "\ufffd")
