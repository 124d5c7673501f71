"""The project's scripts, run by another script of it."""

import json
import os
import subprocess
import sys

from minigpt.common.errors import ROOT, UserError


def show(*words):
    """A script and its words, as a person would type them."""
    print("$ python", *words, flush=True)


def call(*words, log=None, **environment):
    """Run a script, shown, to its end; what it prints is added to the file `log`, or dropped.

    environment: variables that it has besides ours. UserError with its last line where it fails.
    """
    show(*words)
    command, environment = [sys.executable, *map(str, words)], os.environ | environment
    if log is None:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        told = done.stderr
    else:
        with open(log, "ab") as file:
            begin = file.tell()
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        told = log.read_bytes()[begin:]
    if done.returncode:
        last = told.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        where = f" (all of it: {log})" if log else ""
        raise UserError(f"{words[0]}: exit code {done.returncode}: {last[0]}{where}")


def figures_of(*words):
    """The JSON that a script prints on its last line. UserError where it fails; what it says of
    that stands on the screen."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode:
        raise UserError(f"{words[0]}: exit code {done.returncode}; its words: {words[1:]}")
    return json.loads(done.stdout.splitlines()[-1])
