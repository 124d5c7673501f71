"""The arena: starts battles, records them in the ledger, takes votes. It knows nothing of the page.

arena = Arena(endpoints, ledger)
arena_battle = arena.begin(voter, "黄河发源于哪里？", settings)   # blind: two random sides
while not arena_battle.settled.wait(0.1):                       # until it has ended and is recorded
    show(arena_battle.battle.snapshot())
arena.vote(arena_battle, 0)                                     # the first side was the best
"""

import random
import threading
from dataclasses import dataclass, field

from minigpt.arena.battles import Battle, choose_pair
from minigpt.arena.i18n import ArenaError
from minigpt.arena.store import BattleRecord, SideRecord
from minigpt.common.errors import UserError

MAX_SIDES = 4
MAX_PROMPT_CHARS = 20_000
MAX_ANSWER_CHARS = 20_000


def check_prompt(prompt):
    """UserError if a prompt is empty or too long."""
    if not prompt.strip():
        raise ArenaError("prompt_empty")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise ArenaError("prompt_long", n=len(prompt), most=MAX_PROMPT_CHARS)


class TooManyBattles(ArenaError):
    """The voter, or the arena, already runs as many battles as are allowed."""


@dataclass(eq=False)
class ArenaBattle:
    """A Battle with the names of its sides, its voter and its place in the ledger."""

    kind: str  # "blind" or "open"
    voter: str
    prompt: str
    names: tuple[str, ...]  # of the endpoints, in the order of the sides
    models: tuple[str, ...]  # their names in the ledger
    seed: int | None
    battle: Battle
    record_id: int | None = None  # in the ledger, once recorded
    choices: list = field(default_factory=list)  # the possible votes; empty: none is possible
    choice: int | str | None = None  # the vote
    problem: str | None = None  # why the ledger cannot record it
    settled: threading.Event = field(default_factory=threading.Event)  # recorded, or has a problem

    @property
    def votable(self):
        """Whether a vote is possible: at least two sides have answered."""
        return bool(self.choices)

    @property
    def silent_names(self):
        """The names of the sides without an answer, once the battle has ended."""
        states = self.battle.snapshot()
        return [n for n, s in zip(self.names, states, strict=True) if not s.answered]

    @property
    def names_visible(self):
        """Whether the page may show the names of the models."""
        return self.kind == "open" or self.choice is not None or self.failed

    @property
    def failed(self):
        """Whether it ended with nothing to vote on."""
        return self.record_id is not None and not self.votable

    @property
    def vote_is_final(self):
        """Whether the vote cannot change: on a blind battle, because it shows the names."""
        return self.kind == "blind" and self.choice is not None


class Arena:
    """See the module's docstring.

    endpoints: minigpt.arena.endpoints.Endpoints. ledger: minigpt.arena.store.Ledger. checkpoints:
    name of a local run → hash of its weights; more may be added later. deadline_seconds,
    max_answer_chars: of each side. max_battles: at the same time.
    """

    def __init__(
        self,
        endpoints,
        ledger,
        checkpoints=None,
        deadline_seconds=120.0,
        max_answer_chars=MAX_ANSWER_CHARS,
        max_battles=32,
    ):
        self.endpoints, self.ledger = endpoints, ledger
        self.max_battles = max_battles
        self._checkpoints = {} if checkpoints is None else checkpoints
        self.deadline_seconds = deadline_seconds
        self._limits = dict(deadline_seconds=deadline_seconds, max_chars=max_answer_chars)
        self._rng = random.SystemRandom()
        self._lock = threading.Lock()
        self._running = []

    def begin(self, voter, prompt, settings, names=None, pairing="random"):
        """Start a battle; returns its ArenaBattle.

        names: two to four endpoints for an open battle. None: a blind battle between two random
        models, or (pairing="least") between two that have met least often. UserError if the request
        is invalid; TooManyBattles if the voter's last battle, or too many others, still run.
        """
        check_prompt(prompt)
        if names is not None and not 2 <= len(set(names)) == len(names) <= MAX_SIDES:
            raise ArenaError("n_models", n=len(names), most=MAX_SIDES)
        kind = "blind" if names is None else "open"
        with self._lock:
            self._check_capacity(voter)
            names = tuple(names or self._choose_pair(pairing))
            arena_battle = self._start(kind, voter, prompt, settings, names)
            self._running.append(arena_battle)
        # In its own thread: a page that loses its connection loses no battle.
        threading.Thread(target=self._settle, args=[arena_battle], name="record").start()
        return arena_battle

    def chat(self, name, messages, settings):
        """Start the answer of the endpoint `name` to a conversation, as a Battle with one side."""
        return Battle(messages, settings, [self.endpoints.get(name).side()], **self._limits)

    def answers(self, prompt, settings, names):
        """The SideRecords of the answers of these endpoints, without a vote or a record. It returns
        when they have ended."""
        arena_battle = self._start("blind", "", prompt, settings, names)
        arena_battle.battle.wait(None)
        return self._side_records(arena_battle)

    def _start(self, kind, voter, prompt, settings, names):
        entries = [self.endpoints.get(name) for name in names]
        models = tuple(_model_of(entry) for entry in entries)
        messages = [{"role": "user", "content": prompt}]
        battle = Battle(messages, settings, [entry.side() for entry in entries], **self._limits)
        return ArenaBattle(kind, voter, prompt, names, models, settings.get("seed"), battle)

    def _settle(self, arena_battle):
        arena_battle.battle.wait(None)
        try:
            self.record(arena_battle)
        except UserError as error:
            arena_battle.problem = str(error)
        finally:
            arena_battle.settled.set()

    def _check_capacity(self, voter):
        self._running = [each for each in self._running if not each.battle.ended]
        if any(each.voter == voter for each in self._running):
            raise TooManyBattles("still_running")
        if len(self._running) >= self.max_battles:
            raise TooManyBattles("too_many_battles", n=self.max_battles)

    def _choose_pair(self, pairing):
        by_model = self.available()
        counts = self.ledger.pair_counts(list(by_model))
        pair = choose_pair(list(by_model), counts, self._rng, pairing)
        return [by_model[model] for model in pair]

    def available(self):
        """model → name of its endpoint, of the models that blind battles are between."""
        by_model = {}
        for entry in self.endpoints.all():
            by_model[_model_of(entry)] = entry.name
        alive = [_model_of(entry) for entry in self.endpoints.all() if entry.is_alive]
        if len(alive) >= 2:  # a dead server is not drawn while others answer
            by_model = {model: by_model[model] for model in alive}
        return by_model

    def record(self, arena_battle):
        """Add a battle that has ended to the ledger, once."""
        with self._lock:
            if arena_battle.record_id is not None:
                return
            battle = arena_battle.battle
            settings = {k: v for k, v in battle.settings.items() if k != "seed"}
            record = BattleRecord(
                kind=arena_battle.kind,
                prompt=arena_battle.prompt,
                settings=settings,
                seed=arena_battle.seed,
                voter=arena_battle.voter,
                sides=self._side_records(arena_battle),
            )
            record_id = self.ledger.add_battle(record)
            # Before record_id: a vote may come between the two.
            arena_battle.choices = record.choices
            arena_battle.record_id = record_id

    def _side_records(self, arena_battle):
        names, models = arena_battle.names, arena_battle.models
        return tuple(
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
                names, models, arena_battle.battle.snapshot(), strict=True
            )
        )

    def vote(self, arena_battle, choice, quota=None):
        """Save a vote on a recorded battle: the index of a side, "tie" or "none". quota: the most
        votes of the voter. UserError if the vote is not allowed."""
        if arena_battle.record_id is None:
            raise ArenaError("vote_early")
        self.ledger.vote(arena_battle.record_id, arena_battle.voter, choice, quota)
        arena_battle.choice = choice

    def vote_earlier(self, battle_id, voter, choice, quota=None):
        """As vote(), on a battle that the voter's page no longer shows: a click that arrived late,
        or twice."""
        record = self.ledger.battle(battle_id)
        if record is None or record.round is not None:  # rounds have votes of their own
            raise ArenaError("vote_foreign")
        self.ledger.vote(battle_id, voter, choice, quota)


def _model_of(endpoint):
    """The name of a model in the ledger: the name of its endpoint, which is unique."""
    return endpoint.name
