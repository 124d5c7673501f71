"""A folder with entries and the script sft/sft_generate.py, run on it as a user runs it: for the
tests of the script."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter

import garden
from conftest import ROOT
from scripted_server import ScriptedServer, body, error, garbage, good, half, reset, stall
from tiny_run import run_here

from minigpt.synthesis.journal import beside

SCRIPT = "sft/sft_generate.py"


def writer(asked):
    """A server that writes three good pairs."""
    return good(garden.reply(asked.body["messages"]))


@contextlib.contextmanager
def serving(script):
    """A ScriptedServer to whom a request that was cut off, by a kill of either side, is no mistake
    of the script."""
    with ScriptedServer(script) as server:
        yield server
        server.errors[:] = [e for e in server.errors if not isinstance(e, json.JSONDecodeError)]


def lines(path):
    """The objects of a file, a line each; [] where there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


class Work:
    """A folder with entries, and the script that is run on it."""

    def __init__(self, folder):
        self.folder, self.output = folder, folder / "pairs.jsonl"
        self.input = folder / "wiki.jsonl"

    def words(self, server, *more):
        given = {word.partition("=")[0] for word in more}
        ours = [f"--input={self.input}", f"--output={self.output}", f"--base_url={server.base_url}"]
        ours += ["--patience=20", "--prompt=wiki"]
        return [*(word for word in ours if word.partition("=")[0] not in given), *more]

    def run(self, server, *more):
        """(exit code, stdout, stderr), run in this process, which spares a second each time."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return run_here(SCRIPT, *self.words(server, *more))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self, server, *more):
        """The same as a process of its own."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / SCRIPT), *self.words(server, *more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def wait_for(self, n, seconds=60):
        """Until n entries are finished."""
        deadline = time.monotonic() + seconds
        progress = beside(self.output)[0]
        while not progress.exists() or progress.read_bytes().count(b'"outcome"') < n:
            assert time.monotonic() < deadline, f"{n} entries were not finished in {seconds} s"
            time.sleep(0.01)

    def finished(self):
        """The entries that are not asked again, also while a run writes."""
        path = beside(self.output)[0]
        whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        records = [json.loads(line) for line in whole]
        return {r["entry"] for r in records if r.get("outcome") in ("done", "rejected")}

    @property
    def pairs(self):
        return lines(self.output)

    @property
    def progress(self):
        return [line for line in lines(beside(self.output)[0]) if "entry" in line]

    @property
    def rejects(self):
        return lines(beside(self.output)[1])


def check_whole(work, n, outcomes=None):
    """Every one of n entries is finished once, and has just the pairs that its line says."""
    progress, pairs = work.progress, work.pairs
    assert len(progress) == len({line["entry"] for line in progress}) == n
    if outcomes:
        assert Counter(line["outcome"] for line in progress) == outcomes
    n_pairs = {line["entry"]: line["pairs"] for line in progress if line["pairs"]}
    assert Counter(pair["entry"] for pair in pairs) == n_pairs
    assert len({pair["question"] for pair in pairs}) == len(pairs)
    assert len(work.rejects) == sum(line["outcome"] != "done" for line in progress)


# -- a server that goes through all faults ---------------------------------------------------------


def refused(message, status=400, **more):
    """A script of a server that refuses."""
    return lambda asked: error(status, {"error": {"message": message, **more}})


def picky(field):
    """A script of a server that does not take a field."""
    no = error(400, f"Unsupported parameter: '{field}'")
    return lambda asked: no if field in asked.body else writer(asked)


def cut(finish_reason):
    """A script of a server whose answer ends within its third pair."""

    def answer(asked):
        text = garden.reply(asked.body["messages"])
        return good(text[: text.rindex("。")], finish_reason=finish_reason)

    return answer


# Every fault of a server, or between us and it: name → script.
FAULTS = {
    "unloaded": lambda asked: error(400, {"error": "Model unloaded."}),
    "crashed": lambda asked: error(400, {"error": "The model has crashed. (Exit code: 1844)"}),
    "loading": refused("Loading model", 503),
    "internal": refused("internal", 500),
    "slow down": lambda asked: error(429, "slow down", {"Retry-After": "0"}),
    "busy, in Chinese": lambda asked: body('{"code": 500, "msg": "系统繁忙，请稍后再试"}'.encode()),
    "reset": lambda asked: reset(),
    "half an answer": lambda asked: half(),
    "a page": lambda asked: garbage(),
    "closed": lambda asked: stall(0.05),
    "gateway": lambda asked: body(b"<html><title>524: A timeout occurred</title>", 524),
    "no route": refused("404 page not found", 404),
    "quota": refused("You exceeded your current quota.", 429, code="insufficient_quota"),
    "credit": refused("余额不足，请充值。", 429, code="1113"),
    "key": refused("the key was revoked", 401),
    "unknown": lambda asked: error(400, f"no se puede (request id: {asked.number}f)"),
    "forbidden": refused("so nicht", 403),
    "context": lambda asked: error(400, f"the context length is 2048, asked {asked.number}"),
    "moderation": refused("系统检测到输入可能包含敏感内容", code="1301"),
    "temperature": picky("temperature"),
    "response_format": picky("response_format"),
    **{f"cut: {r}": cut(r) for r in ("content_filter", "sensitive", "error", None)},
    "cut: no resource": cut("insufficient_system_resource"),
    "empty": lambda asked: good(None, finish_reason="content_filter"),
}


class FaultsInTurn:
    """A script: so many good answers, then one of FAULTS so many times, and so on through all of
    them, again and again. met: Counter of faults."""

    def __init__(self, good_ones, bad_ones):
        self._good, self._round, self.met = good_ones, good_ones + bad_ones, Counter()

    def __call__(self, asked):
        if asked.text == "1":  # the pool's own question
            return good("1")
        turn, place = divmod(asked.number - 1, self._round)
        if place < self._good:
            return writer(asked)
        name = list(FAULTS)[turn % len(FAULTS)]
        self.met[name] += 1
        return FAULTS[name](asked)


def survive(work, server, kills, *words, most=60):
    """Give the same command until nothing is left to ask, `kills` times killed on the way (after
    equal shares of the entries); returns the exit codes."""
    n, codes = len(lines(work.input)), []
    targets = [n * i // (kills + 1) for i in range(1, kills + 1)]
    while len(codes) < most:
        process = work.start(server, *words)
        while targets and process.poll() is None:
            if len(work.finished()) >= targets[0]:
                process.kill()
                targets.pop(0)
            time.sleep(0.02)
        process.communicate(timeout=900)
        codes.append(process.returncode)
        if not targets and len(work.finished()) == n:
            return codes
    raise AssertionError(f"after {most} runs {len(work.finished())} of {n} entries: {codes}")
