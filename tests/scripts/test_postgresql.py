"""A sweep on a real PostgreSQL server: several processes work on one study, and some are killed.

apt-get install postgresql; pip install psycopg[binary]       # else these tests are skipped
"""

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT
from forks import forked
from test_sweep import begun, recipe, rows_of  # noqa: F401

from tools.study import Plan, Study

pytest.importorskip("optuna", reason="a sweep needs it: pip install optuna")
pytest.importorskip("psycopg", reason="PostgreSQL's driver: pip install psycopg[binary]")
FOLDERS = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
INITDB = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *FOLDERS]))
pytestmark = pytest.mark.skipif(INITDB is None, reason="needs: apt-get install postgresql")


@pytest.fixture(scope="module")
def server():
    """The URL of a PostgreSQL server that is gone after the tests."""
    # It refuses to run as root, and its user could not enter pytest's folders.
    owner = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    as_owner = dict(user=owner.pw_uid, group=owner.pw_gid, cwd=folder) if os.getuid() == 0 else {}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_owner)
    words = ["-D", folder / "data", "-U", "class", "-A", "trust", "--no-sync"]
    subprocess.run([INITDB, *words], check=True, **quiet)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
    process = subprocess.Popen([Path(INITDB).with_name("postgres"), *words], **quiet)
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"postgresql://class@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # it closes all connections
        process.wait(30)
        shutil.rmtree(folder)


def test_no_trial_is_lost_or_run_twice(server, tmp_path):
    """Four processes take 24 trials of some milliseconds as fast as they can."""
    plan, notes = Plan({"n_layer": tuple(range(1, 25))}), tmp_path / "trained.txt"

    def train(values):
        with open(notes, "a") as file:
            file.write(f"{values['n_layer']}\n")
        return float(values["n_layer"]), {}

    def work():
        Study(server, "fast", plan, heartbeat=5).work(train)

    assert [code for code, _ in forked(work, tmp_path, world_size=4)] == [0] * 4
    assert sorted(map(int, notes.read_text().split())) == list(range(1, 25))
    trials = Study(server, "fast", plan).trials()
    assert [trial.score for trial in trials] == list(range(1, 25))


def test_a_killed_process_loses_no_trial(server, tmp_path, recipe):  # noqa: F811
    """kill -9 of one of two in the middle of a trial: the other one resumes it."""
    words = ["--grid", "learning_rate=1e-3,1e-2", "--metric=val_loss", "--max_iters=600"]
    words += ["--heartbeat=1", f"--storage={server}"]
    command = [sys.executable, str(ROOT / "tools/sweep.py"), str(recipe), *words]
    options = dict(cwd=tmp_path, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    doomed = subprocess.Popen(command, start_new_session=True, **options)
    other = subprocess.Popen(command, **options)
    folder = tmp_path / "out" / "sweeps" / "tiny"
    until(lambda: len(list(folder.glob("*/log.jsonl"))) == 2)  # each has a trial
    os.killpg(doomed.pid, signal.SIGKILL)
    doomed.communicate()
    output, _ = other.communicate(timeout=200)
    assert other.returncode == 0 and len(rows_of(output, "learning_rate")) == 2
    # The killed one began once more; the other trial did not.
    lives = sorted(sum(begun(run)) for run in folder.glob("learning_rate=*"))
    assert lives == [1, 2]


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
