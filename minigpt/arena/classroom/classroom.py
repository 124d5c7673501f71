"""A class: its roster, its rounds, the quota of votes, and what the teacher sees of it.

classroom = Classroom(Roster("class.csv", voters, ledger), arena)
classroom.quota = 20
for row in classroom.report(): …
"""

import csv
import io
import time
from typing import NamedTuple

from minigpt.arena.access.rate_limit import RateLimit
from minigpt.arena.classroom.rounds import Rounds
from minigpt.arena.classroom.trust import SUSPICIOUS, evidence
from minigpt.common.spreadsheet import csv_row

_VOTES = (
    "battle,time,name,kind,round,prompt,model_a,model_b,model_c,model_d,choice,chosen_model,hidden"
)


class PupilReport(NamedTuple):
    """What the teacher sees of a pupil, or of a voter who is no longer in the roster."""

    name: str | None
    free_votes: int  # outside of rounds
    round_votes: int  # in the running round
    evidence: float  # minigpt.arena.classroom.trust
    has_code: bool

    @property
    def is_suspicious(self):
        """Whether the votes look like coin tosses."""
        return self.evidence > SUSPICIOUS


class Classroom:
    """See the module's docstring. roster: Roster. arena: Arena."""

    def __init__(self, roster, arena):
        self.roster, self.ledger, self.rounds = roster, arena.ledger, Rounds(arena)
        # A class shares one address, and a wrong code costs a pupil little: 20 tries a minute never
        # find a code of eight characters.
        self._tries = {"browser": RateLimit(8, 6), "address": RateLimit(60, 20)}

    def join_wait(self, browser, address):
        """Count one attempt to join. Returns 0.0, or the seconds to wait (then it is refused)."""
        return self._tries["browser"].wait(browser) or self._tries["address"].wait(address)

    @property
    def quota(self):
        """The most votes of a pupil outside of rounds; None: no limit."""
        with self.ledger.transaction():
            query = "SELECT value FROM class_setting WHERE name = 'quota'"
            row = self.ledger.execute(query).fetchone()
        return row and row["value"]

    @quota.setter
    def quota(self, quota):
        with self.ledger.transaction("IMMEDIATE"):
            query = "INSERT OR REPLACE INTO class_setting VALUES ('quota', ?)"
            self.ledger.execute(query, (quota,))

    def quota_is_used_up(self, voter):
        """Whether the voter has no free vote left."""
        quota = self.quota
        return quota is not None and self.ledger.n_free_votes(voter) >= quota

    def report(self):
        """A PupilReport for each pupil, in the order of the roster; then one for each other voter
        of the ledger, without a name."""
        with self.ledger.transaction():
            query = "SELECT voter, COUNT(*) FROM battle WHERE choice NOT NULL AND round IS NULL"
            free = dict(map(tuple, self.ledger.execute(f"{query} GROUP BY voter")))
        progress = self.rounds.progress()
        in_round = progress.votes if progress else {}
        ratios = evidence(self.ledger.votes(running=True))
        names = self.roster.names()
        with_code = {pupil.name for pupil in self.roster.pupils if pupil.code}
        others = sorted({*free, *ratios, *in_round} - names.keys())
        return [
            PupilReport(
                name=names.get(voter),
                free_votes=free.get(voter, 0),
                round_votes=in_round.get(voter, 0),
                evidence=ratios.get(voter, 1.0),
                has_code=names.get(voter) in with_code,
            )
            for voter in [*names, *others]
        ]

    def votes_csv(self):
        """All votes with the names of the pupils, the oldest first, as CSV for spreadsheets. Hidden
        battles and those of a running round are among them."""
        names, text = self.roster.names(), io.StringIO()
        rows = csv.writer(text)
        rows.writerow(_VOTES.split(","))
        for battle in self.ledger.voted_battles():
            models = [side.model for side in battle.sides]
            is_side = isinstance(battle.choice, int)
            facts = [
                battle.id,
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(battle.time)),
                names.get(battle.voter, ""),
                battle.kind,
                battle.round,
                battle.prompt,
                *(models + [None] * 4)[:4],
                "ABCD"[battle.choice] if is_side else battle.choice,
                models[battle.choice] if is_side else None,
                int(battle.hidden),
            ]
            rows.writerow(csv_row(facts))
        return "\ufeff" + text.getvalue()  # spreadsheets recognize UTF-8 by the byte order mark
