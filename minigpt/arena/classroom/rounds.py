"""A round: a list of prompts on which every pupil judges the same answers.

    rounds = Rounds(arena)
    rounds.start(["黄河有多长？", …], settings)        # the answers are written in the background
    battle = rounds.next_battle(voter)                # a BattleRecord to vote on; None: all judged
    rounds.vote(battle.id, voter, 0)
    rounds.progress()
    rounds.end()                                      # now its votes are public and count

Each prompt has one pair of models, and its two answers are written once: thirty pupils cost as much
as one, and their votes on a prompt can be compared. The pairs take turns, so that all of them meet
about equally often. Every pupil sees the two answers in a random order. Names stay hidden until the
end: pupils who have voted sit beside those who have not.
"""

import json
import logging
import random
import threading
import time
from collections import Counter
from dataclasses import asdict
from typing import NamedTuple

from minigpt.arena.arena import check_prompt
from minigpt.arena.battles import choose_pair
from minigpt.arena.i18n import ArenaError
from minigpt.arena.store import BattleRecord, SideRecord
from minigpt.common.errors import UserError

MAX_PROMPTS = 100

log = logging.getLogger("minigpt")


class Task(NamedTuple):
    """A prompt of a round. sides: its two SideRecords; None while they are written."""

    place: int
    prompt: str
    names: tuple  # of the two endpoints
    settings: dict  # for the answers; with the seed
    sides: tuple | None

    @property
    def has_ended(self):
        """Whether its answers are written, or could not be."""
        return self.sides is not None

    @property
    def votable(self):
        """Whether both models have answered."""
        return self.has_ended and len(self.sides) == 2 and all(s.answered for s in self.sides)


class Progress(NamedTuple):
    """The progress of a round."""

    tasks: list  # of Tasks
    votes: Counter  # voter → number of prompts judged
    votes_of_task: Counter  # place → number of votes

    @property
    def n_votable(self):
        """The number of prompts to judge, as far as is known."""
        return sum(task.votable or not task.has_ended for task in self.tasks)

    @property
    def n_written(self):
        """The number of prompts whose answers have ended."""
        return sum(task.has_ended for task in self.tasks)

    def n_finished(self, voters):
        """How many of `voters` have judged all prompts."""
        return sum(self.votes[voter] >= self.n_votable for voter in voters)


class Rounds:
    """See the module's docstring. arena: Arena. If a round was running when the program ended, its
    remaining answers are written now."""

    def __init__(self, arena):
        self._arena, self._ledger = arena, arena.ledger
        self._rng = random.SystemRandom()
        if self.current() is not None:
            self._write_in_background(self.current())

    def current(self):
        """The id of the running round; None if there is none."""
        with self._ledger.transaction():
            query = "SELECT MAX(id) FROM round WHERE ended IS NULL"
            return self._ledger.execute(query).fetchone()[0]

    def start(self, prompts, settings):
        """Start a round with these prompts; returns its id. A running one ends. settings: sampling
        settings of the answers, with a seed. UserError if a prompt is not valid, if there are none
        or more than MAX_PROMPTS, or if there are fewer than two models."""
        prompts = list(dict.fromkeys(prompt.strip() for prompt in prompts if prompt.strip()))
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise ArenaError("n_prompts", n=len(prompts), most=MAX_PROMPTS)
        for prompt in prompts:
            check_prompt(prompt)
        pairs = self._pairs(len(prompts))
        with self._ledger.transaction("IMMEDIATE"):
            self._end_all()
            query = "INSERT INTO round (time) VALUES (?)"
            round_id = self._ledger.execute(query, (time.time(),)).lastrowid
            for place, (prompt, names) in enumerate(zip(prompts, pairs, strict=True)):
                row = (round_id, place, prompt, json.dumps(names), json.dumps(settings))
                self._ledger.execute("INSERT INTO task VALUES (?, ?, ?, ?, ?, NULL)", row)
        self._write_in_background(round_id)
        return round_id

    def end(self):
        """End the running round, if there is one."""
        with self._ledger.transaction("IMMEDIATE"):
            self._end_all()

    def _end_all(self):
        self._ledger.execute("UPDATE round SET ended = ? WHERE ended IS NULL", (time.time(),))

    def _pairs(self, n):
        """n pairs of names of endpoints; all pairs of models are about equally frequent."""
        by_model, counts, pairs = self._arena.available(), Counter(), []
        for _ in range(n):
            pair = choose_pair(list(by_model), counts, self._rng, "least")
            counts[frozenset(pair)] += 1
            pairs.append([by_model[model] for model in pair])
        return pairs

    # -- the answers -------------------------------------------------------------------------------

    def _write_in_background(self, round_id):
        threading.Thread(target=self._write, args=[round_id], name="round", daemon=True).start()

    def _write(self, round_id):
        """Write the answers of a round that are missing, one prompt after the other, until it ends.
        An endpoint that is gone leaves its prompt without answers."""
        for task in self.tasks(round_id):
            if task.has_ended:
                continue
            if self.current() != round_id:
                return
            try:
                sides = self._arena.answers(task.prompt, task.settings, task.names)
            except UserError as error:
                log.warning("round %s, prompt %s: %s", round_id, task.place + 1, error)
                sides = ()
            self._save(round_id, task.place, sides)

    def _save(self, round_id, place, sides):
        """Save the answers of a prompt, unless another process has: they may be judged already."""
        text = json.dumps([asdict(side) for side in sides])
        with self._ledger.transaction("IMMEDIATE"):
            query = "UPDATE task SET sides = ? WHERE round = ? AND place = ? AND sides IS NULL"
            self._ledger.execute(query, (text, round_id, place))

    # -- votes -------------------------------------------------------------------------------------

    def next_battle(self, voter):
        """The BattleRecord of the first prompt that a voter has not judged, of those whose answers
        are written; None if there is none. Asked again, it is the same battle."""
        round_id = self.current()
        if round_id is None:
            return None
        judged = self._judged(round_id, voter)
        for task in self.tasks(round_id):
            if task.votable and task.place not in judged:
                return self._battle(round_id, task, voter)
        return None

    def _battle(self, round_id, task, voter):
        settings = {name: value for name, value in task.settings.items() if name != "seed"}
        sides = tuple(self._rng.sample(task.sides, 2))
        record = BattleRecord(
            kind="blind",
            prompt=task.prompt,
            settings=settings,
            seed=task.settings.get("seed"),
            voter=voter,
            sides=sides,
            round=round_id,
            task=task.place,
        )
        return self._ledger.battle(self._ledger.add_battle(record))

    def vote(self, battle_id, voter, choice):
        """Save the vote on a battle of next_battle(). It is final. Sent twice, it counts once.
        UserError if it is not allowed, or the round has ended."""
        battle = self._ledger.battle(battle_id)
        if battle is None or battle.round is None or battle.round != self.current():
            raise ArenaError("round_over")
        self._ledger.vote(battle_id, voter, choice)

    # -- progress ----------------------------------------------------------------------------------

    def tasks(self, round_id):
        """The Tasks of a round, in order."""
        query = "SELECT place, prompt, names, settings, sides FROM task WHERE round = ? ORDER BY 1"
        with self._ledger.transaction():
            rows = self._ledger.execute(query, (round_id,)).fetchall()
        return [
            Task(
                row["place"],
                row["prompt"],
                tuple(json.loads(row["names"])),
                json.loads(row["settings"]),
                _sides(row["sides"]),
            )
            for row in rows
        ]

    def _judged(self, round_id, voter):
        query = "SELECT task FROM battle WHERE round = ? AND voter = ? AND choice IS NOT NULL"
        with self._ledger.transaction():
            return {row["task"] for row in self._ledger.execute(query, (round_id, voter))}

    def progress(self):
        """The Progress of the running round; None if there is none."""
        round_id = self.current()
        if round_id is None:
            return None
        query = "SELECT voter, task FROM battle WHERE round = ? AND choice IS NOT NULL"
        with self._ledger.transaction():
            rows = self._ledger.execute(query, (round_id,)).fetchall()
        votes = Counter(row["voter"] for row in rows)
        return Progress(self.tasks(round_id), votes, Counter(row["task"] for row in rows))


def _sides(text):
    return None if text is None else tuple(SideRecord(**side) for side in json.loads(text))
