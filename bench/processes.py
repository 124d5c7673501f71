"""What several benchmarks share: a running server.py, the memory of a process, percentiles."""

import contextlib
import pathlib
import re
import subprocess
import sys

from minigpt.common.errors import ROOT, UserError


@contextlib.contextmanager
def running_server(*words):
    """(URL, process) of a server.py with these arguments, on a free port."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "server.py"), "--port=0", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        for line in process.stdout:
            if found := re.search(r"http://[\w.]+:\d+", line):
                break
        else:
            raise UserError("server.py did not start; run it yourself to see why")
        yield found[0], process
    finally:
        process.terminate()
        process.wait(60)


def resident_memory(pid):
    """MB of memory that a process uses. UserError without Linux's /proc."""
    status = pathlib.Path(f"/proc/{pid}/status")
    if not status.exists():
        raise UserError("measuring the memory of a process needs Linux's /proc")
    lines = status.read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def percentile(seconds, fraction):
    """A percentile of a list of times, in ms as text."""
    if not seconds:
        return "–"
    index = min(len(seconds) - 1, int(fraction * len(seconds)))
    return f"{1000 * sorted(seconds)[index]:.0f}"
