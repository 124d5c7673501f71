"""The arena: who may battle whom, what has become of it, and who voted. No page is known here.

arena = Arena(endpoints, ledger)
bout = arena.begin(voter, "黄河发源于哪里？", settings)      # blind: two sides drawn at random
while not bout.battle.ended: show(bout.battle.snapshot())
arena.record(bout)                                           # once it has ended
arena.vote(bout, 0)                                          # its first side was the best
"""

import random
import threading
from dataclasses import dataclass

from minigpt.arena.battles import Battle, choose_pair
from minigpt.arena.store import BattleRecord, SideRecord
from minigpt.common.errors import UserError

MOST_SIDES = 4
MAX_PROMPT_CHARS = 20_000


def check_prompt(prompt):
    """UserError for a prompt that is empty or too long."""
    if not prompt.strip():
        raise UserError("prompt: empty; expected a question or the beginning of a text")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise UserError(
            f"prompt: {len(prompt):,} characters; expected at most {MAX_PROMPT_CHARS:,}"
        )


class Crowded(UserError):
    """So many battles run already that this one has to wait."""


@dataclass(eq=False)
class Bout:
    """A Battle with the names behind its sides, and its place in the ledger."""

    kind: str  # "blind" or "open"
    voter: str
    names: tuple[str, ...]  # the endpoints', in the order of the sides
    models: tuple[str, ...]  # what the ledger calls them
    seed: int | None
    battle: Battle
    number: int | None = None  # in the ledger, once recorded
    votable: bool = False
    choice: int | str | None = None  # the vote

    @property
    def told(self):
        """Whether the page may say who the sides are."""
        return self.kind == "open" or self.choice is not None or self.failed

    @property
    def failed(self):
        """Whether it has ended without anything to vote on."""
        return self.number is not None and not self.votable


class Arena:
    """See the module's docstring.

    endpoints: minigpt.arena.endpoints.Endpoints; ledger: minigpt.arena.store.Ledger; checkpoints:
    name of a local run → hash of its weights; deadline_seconds, cap_chars: of each side; most:
    battles that may run at once.
    """

    def __init__(
        self, endpoints, ledger, checkpoints=None, deadline_seconds=120.0, cap_chars=20_000, most=32
    ):
        self.endpoints, self.ledger = endpoints, ledger
        self._checkpoints = checkpoints or {}
        self._caps = dict(deadline_seconds=deadline_seconds, cap_chars=cap_chars)
        self._most = most
        self._dice = random.SystemRandom()
        self._lock = threading.Lock()
        self._running = []

    def begin(self, voter, prompt, settings, names=None, how="random"):
        """Start a battle; returns its Bout.

        names: two to four endpoints for an open battle; None draws two for a blind one, any pair
        or (how="least") one that has met least. UserError where that cannot be; Crowded where the
        voter's last battle, or too many others', still run.
        """
        check_prompt(prompt)
        if names is not None and not 2 <= len(set(names)) == len(names) <= MOST_SIDES:
            raise UserError(f"models: {len(names)} chosen; expected 2 to {MOST_SIDES}")
        kind = "blind" if names is None else "open"
        with self._lock:
            self._check_room(voter)
            chosen = tuple(names or self._draw(how))
            entries = [self.endpoints.get(name) for name in chosen]
            sides = [entry.side() for entry in entries]
            models = tuple(_model_of(entry) for entry in entries)
            battle = Battle(prompt, settings, sides, **self._caps)
            bout = Bout(kind, voter, chosen, models, settings.get("seed"), battle)
            self._running.append(bout)
        return bout

    def _check_room(self, voter):
        self._running = [bout for bout in self._running if not bout.battle.ended]
        if any(bout.voter == voter for bout in self._running):
            raise Crowded("your last battle still runs: stop it, or wait for its end")
        if len(self._running) >= self._most:
            raise Crowded(f"{self._most} battles run already: try again in a moment")

    def _draw(self, how):
        by_model = {}
        for name in self.endpoints.names():
            by_model[_model_of(self.endpoints.get(name))] = name
        counts = self.ledger.pair_counts(list(by_model))
        return [by_model[m] for m in choose_pair(list(by_model), counts, self._dice, how)]

    def record(self, bout):
        """Put a battle that has ended into the ledger, once."""
        with self._lock:
            if bout.number is not None:
                return
            sides = tuple(
                SideRecord(
                    model=model,
                    endpoint=name,
                    checkpoint=self._checkpoints.get(name),
                    answer=state.text,
                    first_token_seconds=state.first_token_seconds,
                    tokens_per_second=state.tokens_per_second,
                    tokens=state.tokens,
                    end_reason=state.end_reason,
                    error=state.error,
                )
                for name, model, state in zip(
                    bout.names, bout.models, bout.battle.snapshot(), strict=True
                )
            )
            settings = {k: v for k, v in bout.battle.settings.items() if k != "seed"}
            record = BattleRecord(
                bout.kind, bout.battle.prompt, settings, bout.seed, bout.voter, sides
            )
            number = self.ledger.add_battle(record)
            bout.votable = record.votable  # before the number: a vote may come between the two
            bout.number = number

    def vote(self, bout, choice):
        """Save a vote on a recorded battle: a side's number, "tie" or "none". UserError where it
        may not be cast."""
        if bout.number is None:
            raise UserError("this battle still runs: vote when all sides have ended")
        self.ledger.vote(bout.number, bout.voter, choice)
        bout.choice = choice


def _model_of(endpoint):
    """What a model is called in the ledger: the endpoint's name, which two of them never share."""
    return endpoint.name
