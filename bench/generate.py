"""Long runs of sft/sft_generate.py: speed with many workers, memory, kill -9.

    python bench/generate.py                        # all three; takes minutes
    python bench/generate.py --entries=500 --seconds=5

Runs the script against the tests' scripted server (tests/scripted_server.py) on a real socket. The
server gives good answers after a fixed time. Both share this machine.

speed    answers per second with 1 worker and with 8, from the first request to the last, without
         start and end of the process
memory   of the script's process after a fifth of the entries and near the end
kill -9  one request in five fails or gets a bad answer, and the script is killed five times; at the
         end every entry must be accounted for once, and no reported pair may be lost
"""

import contextlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))


from config.configurator import configure
from minigpt.common.errors import ROOT, UserError, preflight, run


class Settings:
    entries: int = 5000  # in the runs for memory and kill -9
    seconds: float = 20.0  # approximate duration of each run for speed
    latency: float = 0.2  # seconds before an answer in the runs for speed
    workers: int = 8  # compared with one


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import garden
from scripted_server import ScriptedServer, error, good, half, reset

from bench.processes import resident_memory
from minigpt.data.formats import parse_qa
from minigpt.data.pipeline import read_records
from minigpt.synthesis.journal import beside


def main():
    """Measure, and print a table for bench/README.md."""
    settings = read_settings()
    print(settings.describe(), flush=True)
    print("| what | figure |\n|---|---|")
    for measure in (speed, memory, killed):
        with tempfile.TemporaryDirectory() as folder:
            for what, figure in measure(settings, pathlib.Path(folder)):
                print(f"| {what} | {figure} |", flush=True)


def speed(settings, folder):
    """Yield rows: answers per second with one worker, with several, and their ratio."""
    rates = []
    for workers in (1, settings.workers):
        n = max(20, int(workers * settings.seconds / settings.latency))
        begun = []

        def answer(asked, begun=begun):
            begun.append(time.perf_counter())
            return good(garden.reply(asked.body["messages"]), after=settings.latency)

        place = folder / str(workers)
        with ScriptedServer(answer) as server, script(place, n, server, workers) as process:
            finish(process)
        rates.append((n - workers) / (begun[-1] - begun[0]))  # so many begin after the first ones
        limit = f"{workers / settings.latency:.0f} at most"
        crew = "1 worker" if workers == 1 else f"{workers} workers"
        yield f"{crew}, {settings.latency:g} s an answer", f"{rates[-1]:.1f}/s ({limit})"
    yield f"{settings.workers} workers ÷ 1", f"{rates[1] / rates[0]:.2f}"


def memory(settings, folder):
    """Yield rows: the script's memory, and its speed with a server that answers at once."""
    if not pathlib.Path("/proc/self/status").exists():
        return
    marks, found = [settings.entries // 5, settings.entries * 49 // 50], []
    with ScriptedServer(writer) as server, script(folder, settings.entries, server) as process:
        began = time.perf_counter()
        for mark in marks:
            wait_for(folder, mark, process)
            found.append(f"{resident_memory(process.pid):.0f} MB after {mark:,} entries")
        finish(process)
    yield "memory of the process", ", ".join(found)
    rate = settings.entries / (time.perf_counter() - began)
    yield "a server that answers at once, 8 workers", f"{rate:.0f} entries/s"


def killed(settings, folder):
    """Yield rows: the entries and pairs after kill -9 five times."""
    n, chance, lock = settings.entries, random.Random(0), threading.Lock()
    faults = [error(500, "internal"), error(429, "slow down"), reset(), half(), good("{"), good("")]

    def answer(asked):
        with lock:
            fault = chance.choice(faults) if chance.random() < 0.2 else None
        return fault or good(garden.reply(asked.body["messages"]))

    reported, began = {}, time.perf_counter()
    with ScriptedServer(answer) as server:
        for kill in range(1, 7):
            with script(folder, n, server, more=["--retries=8"]) as process:
                if kill == 6:
                    finish(process)
                    break
                wait_for(folder, n * kill // 6, process)
                process.kill()
                process.wait(60)
            reported.update((line["entry"], line["pairs"]) for line in progress(folder))
        server.errors[:] = [e for e in server.errors if not isinstance(e, ValueError)]  # cut off
    pairs = [record for _, _, record in read_records([folder / "pairs.jsonl"], parse_qa)]
    lines = progress(folder)
    kept = Counter(record["entry"] for record in pairs)
    outcomes = Counter(line["outcome"] for line in lines)
    yield (
        f"{n:,} entries, 20 % faults, 5 × kill -9",
        f"{len({line['entry'] for line in lines}):,} accounted for ({dict(outcomes)}), "
        f"{len(lines) - len({line['entry'] for line in lines})} twice",
    )
    yield (
        "pairs after that",
        f"{len(pairs):,} of {3 * n:,}; {len(pairs) - len({r['question'] for r in pairs})} doubled, "
        f"{sum(kept[entry] < n_pairs for entry, n_pairs in reported.items())} entries with fewer "
        f"than reported; {len(server.seen):,} requests, {time.perf_counter() - began:.0f} s",
    )


def writer(asked):
    """Three good pairs, without delay."""
    return good(garden.reply(asked.body["messages"]))


@contextlib.contextmanager
def script(folder, n, server, workers=8, more=()):
    """A process of sft_generate.py over n entries in `folder`; killed at the end of the block."""
    folder.mkdir(exist_ok=True)
    if not (folder / "wiki.jsonl").exists():
        garden.write_entries(folder / "wiki.jsonl", n)
    words = [f"--input={folder / 'wiki.jsonl'}", f"--output={folder / 'pairs.jsonl'}"]
    words += [f"--base_url={server.base_url}", f"--workers={workers}", *more]
    with open(folder / "output.txt", "a") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "sft" / "sft_generate.py"), *words],
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)


def finish(process):
    """Wait until it ends. UserError if it failed."""
    if process.wait():
        raise UserError("sft_generate.py failed; run it yourself to see why")


def wait_for(folder, n, process):
    """Wait until n entries are finished, or the process ends."""
    path, size, found = beside(folder / "pairs.jsonl")[0], 0, 0
    while process.poll() is None and found < n:
        if path.exists():
            with open(path, "rb") as file:
                file.seek(size)
                new = file.read()
            size += len(new)
            found += new.count(b'"outcome"')
        time.sleep(0.02)


def progress(folder):
    """The progress lines of finished entries, without an incomplete last line."""
    with open(beside(folder / "pairs.jsonl")[0], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    return [line for line in lines if "entry" in line]


if __name__ == "__main__":
    run(main)
