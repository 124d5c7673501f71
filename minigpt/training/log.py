"""A run's log: Log writes <run>/log.jsonl while train.py runs, read_runlog() reads it as arrays.

A line of log.jsonl is a step (TRAIN) or an evaluation (VAL); both have the objective's metrics too.
"""

import difflib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.files import written_whole
from minigpt.common.json_text import parse_json
from minigpt.common.report import duration, write_text

TRAIN = ("step", "tokens", "minutes", "loss", "lr", "rate")
VAL = ("step", "tokens", "minutes", "val_loss")
STOPPED = "stopped; go on with"  # how train.py's last line begins if a signal stopped it


# -- writing ---------------------------------------------------------------------------------------


class Log:
    """Progress lines on the screen; log.jsonl, samples.txt and TensorBoard in the run's folder.

    resumed_at: the step at which the run continues, None for a new run; lines of later steps, which
    will be taken again, are removed. peak_rate: tokens a second at the machine's peak, for the MFU
    (model FLOPs utilisation); None if unknown.

    UserError for tensorboard=true without TensorBoard, and for a line that train.py did not write.
    """

    def __init__(self, folder, settings, resumed_at=None, peak_rate=None):
        self.path, self.samples = folder / "log.jsonl", folder / "samples.txt"
        self.settings, self.peak_rate, self.board = settings, peak_rate, None
        self._seconds = self._tokens = 0  # since the last progress line
        if resumed_at is not None:
            _keep_lines(self.path, resumed_at)
            _keep_samples(self.samples, resumed_at)
        if settings.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("tensorboard=true: first, pip install tensorboard") from None
            first_step = 0 if resumed_at is None else resumed_at + 1
            self.board = SummaryWriter(folder, purge_step=first_step)

    def step(self, state, result, progress):
        """A step is done: a progress line, every log_interval steps. state: a TrainState; result: a
        StepResult; progress: the share of the run that is done."""
        self._seconds += result.seconds
        self._tokens += result.tokens
        if state.step % self.settings.log_interval and state.step != 1:
            return
        rate = self._tokens / self._seconds
        self._seconds = self._tokens = 0
        record = dict(step=state.step, tokens=state.tokens, minutes=state.minutes)
        self._write(record | dict(loss=result.loss, lr=result.lr, rate=rate) | result.metrics)
        mfu = f" | mfu {rate / self.peak_rate:4.0%}" if self.peak_rate else ""
        left = state.spent * 60 * (1 / progress - 1) if progress < 1 else 0
        print(
            f"step {state.step:>6}/{self.settings.max_iters} | loss {result.loss:7.4f}"
            f"{_shown(result.metrics)} | lr {result.lr:.2e} | {rate:8,.0f} tok/s{mfu} | "
            f"{duration(left)} left",
            flush=True,
        )

    def evaluation(self, state, metrics, is_best):
        """An evaluation is done. metrics: figures by name; is_best: whether best/ now has these
        weights."""
        record = dict(step=state.step, tokens=state.tokens, minutes=state.minutes)
        self._write(record | dict(val_loss=state.val_loss, best=is_best) | metrics)
        best = " (best)" if is_best else ""
        print(
            f"step {state.step:>6}: val loss {state.val_loss:.4f}{best}{_shown(metrics)}",
            flush=True,
        )

    def sample(self, step, text):
        """A text that the model wrote; "" is not logged."""
        if text:
            with open(self.samples, "a", encoding="utf-8") as file:
                file.write(f"step {step}: {text}\n\n")
            print(f"  sample: {text}", flush=True)

    def close(self):
        """Write what TensorBoard still holds back."""
        if self.board:
            self.board.close()

    def _write(self, record):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.board:
            for name, value in record.items():
                if name not in ("step", "best") and value is not None:
                    self.board.add_scalar(name, value, record["step"])


def _shown(metrics):
    """Metrics for a line on the screen."""
    return "".join(f" | {name} {value:.3f}" for name, value in metrics.items())


def _keep_lines(path, last_step):
    """Remove from log.jsonl the lines of steps after `last_step`, and a torn last line."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    kept = [line for line in lines if line.endswith("}") and _step_of(line, path) <= last_step]
    if len(kept) < len(lines) or not text.endswith("\n"):
        write_text(path, "".join(line + "\n" for line in kept))


def _step_of(line, path):
    try:
        return int(parse_json(line)["step"])
    except (ValueError, LookupError, TypeError, OverflowError):
        raise UserError(f"{path}: {line[:40]!r}: train.py did not write this; delete it") from None


def _keep_samples(path, last_step):
    """Remove from samples.txt the samples of steps after `last_step`."""
    if not path.exists():
        return
    data = path.read_bytes()  # as bytes: a model may write any kind of line break
    samples = [part for part in re.split(rb"^(?=step \d{1,18}: )", data, flags=re.M) if part]
    kept = [part for part in samples if int(part[5:].split(b":")[0]) <= last_step]
    if len(kept) < len(samples):
        with written_whole(path) as partial:
            partial.write_bytes(b"".join(kept))


# -- reading ---------------------------------------------------------------------------------------


@dataclass
class RunLog:
    """What a run has logged. Each column is a float64 array (n,); numbers that are not finite are
    NaN. `tokens` and `minutes` count from the run's start, `rate` is tokens a second, losses are
    nats a token (with has_reward: minus the reward), `best` is 1 where train.py saved the weights
    as best/."""

    folder: Path
    train: dict  # column of TRAIN → (n_progress_lines,)
    val: dict  # column of VAL, or "best" → (n_evaluations,)
    has_reward: bool = False

    @property
    def best(self):
        """The index in `val` of the lowest val loss with which best/ was saved; None before the
        first evaluation. A preference run that forgot too much has lower losses, but not in best/.
        """
        losses = np.where(self.val["best"], self.val["val_loss"], np.nan)
        return None if np.isnan(losses).all() else int(np.nanargmin(losses))

    def end(self, column="step"):
        """The highest value of "step", "tokens" or "minutes" in any line."""
        return max(float(rows[column][-1]) for rows in (self.train, self.val) if len(rows[column]))


def read_runlog(folder):
    """The log of the run in `folder` as a RunLog.

    A torn last line (the run is writing it, or was killed meanwhile) is left out, and so are lines
    that are neither steps nor evaluations. UserError where there is no log, where it has no step
    yet, and where train.py did not write a line.
    """
    folder = Path(folder)
    path = folder / "log.jsonl"
    try:
        # A character torn in half must not keep the whole log from being read.
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing: --runs takes run folders, which train.py makes (--out_dir)"
            f"{_neighbours(folder)}"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); --runs takes run folders"
        ) from None

    train, val, has_reward = [], [], False
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
        has_reward = has_reward or "reward" in record
        row = _row(record, TRAIN if kind == "train" else VAL, f"{path}:{number}")
        if kind == "val":
            row.append(record.get("best", True) is True)
        # A run that continued from an older checkpoint took steps again: the later lines count.
        # The evaluation of a step comes after its progress line, and so keeps that line.
        while val and val[-1][0] >= row[0]:
            val.pop()
        while train and (train[-1][0] > row[0] or (kind == "train" and train[-1][0] == row[0])):
            train.pop()
        (train if kind == "train" else val).append(row)
    if not train and not val:
        raise UserError(f"{path}: holds no steps yet; wait for the run's first progress line")
    columns = _columns(train, TRAIN), _columns(val, (*VAL, "best"))
    return RunLog(folder, *columns, has_reward)


def read_runlogs(folders):
    """The logs of several runs, in order. UserError names all that cannot be read."""
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
    """A short name for each run: that of its folder, with as many parent folders as make it unique.
    `folders` are distinct, so the names are too."""
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
    """For a mistyped folder: "; runs beside it: …", the closest first; "" if there are none."""
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
