"""Load test of the arena: many sessions that battle and vote at the same time, on two servers.

    python quickstart.py                                        # makes out/quickstart_sft
    python bench/arena.py --out_dir=out/quickstart_sft          # 20 sessions, 30 s

Starts two server.py processes with the same run. Each session is a thread with its own voter. It
asks, waits for both answers, votes and sometimes changes its vote, through minigpt.arena.arena as
sample_gradio.py does; no browser is involved, and everything shares this machine. At the end the
ledger is opened again and must hold exactly the battles and votes that were reported as saved.
"First token" is measured for each side from the start of its battle; "battle" is the slower side.
"""

import contextlib
import pathlib
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    out_dir: str = "out/quickstart_sft"  # the run that both servers serve
    input: str = "sft/sft_saves.jsonl"  # pairs whose questions are asked
    sessions: int = 20  # at the same time
    seconds: float = 30.0
    max_tokens: int = 64
    slots: int = 16  # of each server
    dtype: str = "auto"  # of the servers


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from bench.processes import percentile, running_server
from minigpt.arena.arena import Arena
from minigpt.arena.endpoints import Endpoint, Endpoints
from minigpt.arena.store import Ledger
from minigpt.common.report import table
from minigpt.evaluation.examples import read_pairs


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    questions = [pair.question for pair in read_pairs(settings.input)]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        names = ("out_dir", "slots", "dtype")
        words = [f"--{name}={getattr(settings, name)}" for name in names]
        servers = [stack.enter_context(running_server(*words)) for _ in range(2)]
        endpoints = [Endpoint(f"server {i}", url) for i, (url, _) in enumerate(servers, start=1)]
        for endpoint in endpoints:
            endpoint.probe()  # learns which settings it takes
        path = pathlib.Path(folder) / "arena.sqlite"
        ledger = stack.enter_context(contextlib.closing(Ledger(path)))
        arena = Arena(Endpoints(endpoints), ledger, max_battles=settings.sessions)
        sessions = battle_all(arena, questions, settings)
        show(sessions, settings)
        compare(sessions, stack.enter_context(contextlib.closing(Ledger(path))))


@dataclass
class Session:
    """What one session did, as the arena reported it."""

    saved: dict = field(default_factory=dict)  # battle's number → (names, vote)
    failed: int = 0  # battles without a vote
    refused: int = 0  # votes
    firsts: list = field(default_factory=list)  # seconds
    totals: list = field(default_factory=list)  # seconds


def battle_all(arena, questions, settings):
    """Run all sessions at the same time for settings.seconds; return them."""
    sessions = [Session() for _ in range(settings.sessions)]
    until = time.monotonic() + settings.seconds
    threads = [
        threading.Thread(target=attend, args=(session, i, arena, questions, settings, until))
        for i, session in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sessions


def attend(session, number, arena, questions, settings, until):
    """Run battles: ask, read, vote, and one time in three vote again."""
    rng = random.Random(number)
    while time.monotonic() < until:
        asked = dict(temperature=1.0, max_tokens=settings.max_tokens, seed=rng.randrange(2**31))
        bout = arena.begin(f"voter {number}", rng.choice(questions), asked)
        bout.battle.wait(600)
        arena.record(bout)
        states = bout.battle.snapshot()
        session.firsts += [s.first_token_seconds for s in states if s.first_token_seconds]
        session.totals.append(max(state.elapsed for state in states))
        if not bout.votable:
            session.failed += 1
            continue
        for _ in range(rng.choice((1, 1, 2))):
            try:
                arena.vote(bout, rng.choice((0, 1, "tie", "none")))
            except UserError:
                session.refused += 1
        session.saved[bout.record_id] = (bout.names, bout.choice)


def show(sessions, settings):
    """Print the table of bench/README.md."""
    firsts = [seconds for session in sessions for seconds in session.firsts]
    totals = [seconds for session in sessions for seconds in session.totals]
    rows = [
        [name, *(percentile(times, fraction) for fraction in (0.5, 0.95, 1))]
        for name, times in (("first token", firsts), ("battle", totals))
    ]
    print(f"{len(sessions)} sessions, {settings.seconds:g} s: {len(totals)} battles")
    print(table(["ms", "p50", "p95", "longest"], rows))


def compare(sessions, ledger):
    """UserError unless the ledger holds exactly what was reported to the sessions."""
    reported = {number: vote for session in sessions for number, vote in session.saved.items()}
    held = {
        battle.id: (tuple(side.endpoint for side in battle.sides), battle.choice)
        for battle in ledger.battles()
        if battle.choice is not None
    }
    failed, refused = sum(s.failed for s in sessions), sum(s.refused for s in sessions)
    print(f"votes saved: {len(reported)}; in the ledger: {len(held)}; counted: ", end="")
    print(f"{len(ledger.decided())}; battles that failed: {failed}; votes refused: {refused}")
    lost = [number for number in reported if number not in held]
    wrong = [number for number in held if held[number] != reported.get(number)]
    twice = sum(len(session.saved) for session in sessions) - len(reported)
    if lost or wrong or twice or len(ledger.decided()) != len(reported):
        raise UserError(f"lost: {lost}; changed: {wrong}; numbers twice: {twice}")
    print("no vote was lost, changed or counted twice")


if __name__ == "__main__":
    run(main)
