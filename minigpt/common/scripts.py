"""Run scripts of the project from another script."""

import json
import os
import re
import subprocess
import sys

from minigpt.common.errors import ROOT, UserError


def typed(*words):
    """The command `python WORDS…` as one types it in a shell: values with other characters than
    those of names and paths are quoted."""
    shown = []
    for word in map(str, words):
        key, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        plain = re.fullmatch(r"[\w./,:~+-]*", value)
        shown.append(word if plain else f'{key}{equals}"{value}"')
    return " ".join(["python", *shown])


def show(*words):
    """Print a command as a user would type it."""
    print("$ python", *words, flush=True)


def call(*words, log=None, **environment):
    """Print a command and run it. Its output is appended to the file `log`, or dropped.

    environment: more environment variables. UserError with the last line of output if it fails.
    """
    show(*words)
    command, environment = [sys.executable, *map(str, words)], os.environ | environment
    if log is None:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        output = done.stderr
    else:
        with open(log, "ab") as file:
            begin = file.tell()
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        output = log.read_bytes()[begin:]
    if done.returncode:
        last = output.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
        where = f" (the whole output: {log})" if log else ""
        raise UserError(f"{words[0]}: exit code {done.returncode}: {last[0]}{where}")


def figures_of(*words):
    """The JSON that a script prints on its last line. UserError if it fails; its stderr goes to
    ours."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode:
        raise UserError(f"{words[0]}: exit code {done.returncode}; its arguments: {words[1:]}")
    return json.loads(done.stdout.splitlines()[-1])
