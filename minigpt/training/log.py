"""A run's log: the lines that train.py wrote into <run>/log.jsonl, as arrays."""

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json

TRAIN = ("step", "tokens", "minutes", "loss", "lr", "rate")
STOPPED = "stopped; go on with"  # how train.py's last line begins where it did not reach its end
VAL = ("step", "tokens", "minutes", "val_loss")


@dataclass
class RunLog:
    """What a run has logged. Each column is a float64 array (n,); a number that was not finite
    stands as NaN. `tokens` and `minutes` count from the run's start, `rate` is tokens a second,
    losses are nats a token, `best` is 1 where train.py kept the weights as best/."""

    folder: Path
    train: dict  # column of TRAIN → (n_progress_lines,)
    val: dict  # column of VAL, or "best" → (n_evaluations,)

    @property
    def best(self):
        """The index in `val` of the lowest val loss, the one that best/ was saved at; None before
        the first evaluation. A preference run that forgot too much has lower ones: they were no
        best."""
        losses = np.where(self.val["best"], self.val["val_loss"], np.nan)
        return None if np.isnan(losses).all() else int(np.nanargmin(losses))

    def end(self, column="step"):
        """The highest value of "step", "tokens" or "minutes" that any line has."""
        return max(float(rows[column][-1]) for rows in (self.train, self.val) if len(rows[column]))


def read_runlog(folder):
    """The log of the run in `folder` as a RunLog.

    A torn last line (the run is writing it, or was killed while it did) is left out, and so are
    lines of kinds that are neither progress nor evaluation. UserError where there is no log, where
    it holds no step yet, and where a line is not what train.py writes.
    """
    folder = Path(folder)
    path = folder / "log.jsonl"
    try:
        # A character torn in half must not keep the whole log from being read.
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing; make it with: python train.py config/train_config.py "
            f"--out_dir={folder}{_neighbours(folder)}"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); --runs takes run folders"
        ) from None

    train, val = [], []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError:
            if number == len(lines):
                break
            raise UserError(
                f"{path}:{number}: not JSON: {line[:40]!r}; delete that line or train the run again"
            ) from None
        kind = _kind(record)
        if kind is None:
            continue
        row = _row(record, TRAIN if kind == "train" else VAL, f"{path}:{number}")
        if kind == "val":
            row.append(record.get("best", True) is True)
        # A run that went on from an older checkpoint takes steps again: the later lines count.
        # At one step the evaluation follows the progress line, so it alone leaves that line be.
        while val and val[-1][0] >= row[0]:
            val.pop()
        while train and (train[-1][0] > row[0] or (kind == "train" and train[-1][0] == row[0])):
            train.pop()
        (train if kind == "train" else val).append(row)
    if not train and not val:
        raise UserError(f"{path}: holds no steps yet; wait for the run's first progress line")
    return RunLog(folder, _columns(train, TRAIN), _columns(val, (*VAL, "best")))


def read_runlogs(folders):
    """The logs of several runs, in order. UserError names every one that cannot be read."""
    logs, problems = [], []
    for folder in folders:
        try:
            logs.append(read_runlog(folder))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return logs


def run_names(folders):
    """A short name for each run: its folder's own, with as many folders before it as it takes to
    tell it from the others. `folders` are distinct; the names then are too."""
    parts = [Path(folder).resolve().parts for folder in folders]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = 1
        while any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names


def _neighbours(folder):
    """For a mistyped folder: "; runs beside it: …", the likest first; "" where there are none."""
    found = {path.parent.name: str(path.parent) for path in folder.parent.glob("*/log.jsonl")}
    names = difflib.get_close_matches(folder.name, found, n=4, cutoff=0)
    return f"; runs beside it: {', '.join(found[name] for name in names)}" if names else ""


def _kind(record):
    if not isinstance(record, dict):
        return None
    return "val" if "val_loss" in record else "train" if "loss" in record else None


def _row(record, columns, where):
    row = []
    for name in columns:
        value = record.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise UserError(
                f"{where}: {name} is {json.dumps(value)}, expected a number; "
                f"--runs takes folders that train.py made"
            )
        row.append(float(value) if math.isfinite(value) else math.nan)
    return row


def _columns(rows, names):
    table = np.array(rows, dtype=np.float64).reshape(-1, len(names))  # (n, columns)
    return {name: table[:, i] for i, name in enumerate(names)}
