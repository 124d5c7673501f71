"""How the arena bears a class: sessions that battle and vote at once, over two servers.

    python quickstart.py                                        # makes out/quickstart_sft
    python bench/arena.py --out_dir=out/quickstart_sft          # 20 sessions, 30 s

Starts two real server.py processes with the same run, and lets each session, a thread with a voter
of its own, ask, wait for both answers, vote and often change its mind, as sample_gradio.py does it
by minigpt.arena.arena: no browser takes part, and everything shares this machine. At the end the
ledger is opened anew and must hold exactly the battles and votes that were reported as saved.
"First token" is of each side, from the start of its battle; "battle" is that of the slower side.
"""

import contextlib
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.arena.arena import Arena
from minigpt.arena.endpoints import Endpoint, Endpoints
from minigpt.arena.store import Ledger
from minigpt.common.errors import ROOT, UserError, run
from minigpt.common.report import table
from minigpt.evaluation.examples import read_pairs


class Settings:
    out_dir: str = "out/quickstart_sft"  # the run that both servers serve
    input: str = "sft/sft_saves.jsonl"  # whose questions are asked
    sessions: int = 20  # at once
    seconds: float = 30.0
    max_tokens: int = 64
    slots: int = 16  # of each server
    dtype: str = "auto"  # of the servers


def main():
    settings = configure(Settings, doc=__doc__)
    questions = [pair.question for pair in read_pairs(settings.input)]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        servers = [stack.enter_context(server(settings)) for _ in range(2)]
        endpoints = [Endpoint(f"server {i}", url) for i, url in enumerate(servers, start=1)]
        for endpoint in endpoints:
            endpoint.probe()  # learns which settings it takes
        path = pathlib.Path(folder) / "arena.sqlite"
        ledger = stack.enter_context(contextlib.closing(Ledger(path)))
        arena = Arena(Endpoints(endpoints), ledger, max_battles=settings.sessions)
        sessions = battle_all(arena, questions, settings)
        show(sessions, settings)
        compare(sessions, stack.enter_context(contextlib.closing(Ledger(path))))


@contextlib.contextmanager
def server(settings):
    """A server.py process on a free port; its address, once it serves."""
    words = [f"--out_dir={settings.out_dir}", "--port=0", f"--slots={settings.slots}"]
    command = [sys.executable, str(ROOT / "server.py"), *words, f"--dtype={settings.dtype}"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        for line in process.stdout:
            if found := re.search(r"http://[\w.]+:\d+", line):
                break
        else:
            raise UserError("server.py did not start; run it by hand to see why")
        yield found[0]
    finally:
        process.terminate()
        process.wait(60)


@dataclass
class Session:
    """What one session did, as it was told."""

    saved: dict = field(default_factory=dict)  # battle's number → (names, vote)
    failed: int = 0  # battles without a vote
    refused: int = 0  # votes
    firsts: list = field(default_factory=list)  # seconds
    totals: list = field(default_factory=list)  # seconds


def battle_all(arena, questions, settings):
    """All sessions at once, for so long; returns them."""
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
    """Battle after battle: ask, read, vote, and one time in three vote again."""
    dice = random.Random(number)
    while time.monotonic() < until:
        asked = dict(temperature=1.0, max_tokens=settings.max_tokens, seed=dice.randrange(2**31))
        bout = arena.begin(f"voter {number}", dice.choice(questions), asked)
        bout.battle.wait(600)
        arena.record(bout)
        states = bout.battle.snapshot()
        session.firsts += [s.first_token_seconds for s in states if s.first_token_seconds]
        session.totals.append(max(state.elapsed for state in states))
        if not bout.votable:
            session.failed += 1
            continue
        for _ in range(dice.choice((1, 1, 2))):
            try:
                arena.vote(bout, dice.choice((0, 1, "tie", "none")))
            except UserError:
                session.refused += 1
        session.saved[bout.record_id] = (bout.names, bout.choice)


def show(sessions, settings):
    """The table that stands in bench/README.md."""
    firsts = [seconds for session in sessions for seconds in session.firsts]
    totals = [seconds for session in sessions for seconds in session.totals]
    rows = [(name, *shares(times)) for name, times in (("first token", firsts), ("battle", totals))]
    print(f"{len(sessions)} sessions, {settings.seconds:g} s: {len(totals)} battles")
    print(table(["ms", "p50", "p95", "longest"], rows))


def shares(seconds):
    """The median, the 95th percentile and the longest, in ms as text."""
    if len(seconds) < 2:
        return ("–",) * 3
    percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
    return [f"{1000 * value:.0f}" for value in (percentiles[49], percentiles[94], max(seconds))]


def compare(sessions, ledger):
    """UserError unless the ledger holds what the sessions were told, no more and no less."""
    told = {number: vote for session in sessions for number, vote in session.saved.items()}
    held = {
        battle.id: (tuple(side.endpoint for side in battle.sides), battle.choice)
        for battle in ledger.battles()
        if battle.choice is not None
    }
    failed, refused = sum(s.failed for s in sessions), sum(s.refused for s in sessions)
    print(f"votes saved: {len(told)}; in the ledger: {len(held)}; counted: ", end="")
    print(f"{len(ledger.decided())}; battles that failed: {failed}; votes refused: {refused}")
    lost = [number for number in told if number not in held]
    wrong = [number for number in held if held[number] != told.get(number)]
    twice = sum(len(session.saved) for session in sessions) - len(told)
    if lost or wrong or twice or len(ledger.decided()) != len(told):
        raise UserError(f"lost: {lost}; not as they were cast: {wrong}; numbers twice: {twice}")
    print("no vote was lost, changed or counted twice")


if __name__ == "__main__":
    run(main)
