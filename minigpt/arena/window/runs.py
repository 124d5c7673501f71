"""Runs: what train.py and the evaluations write into a folder, read while they write it.

    folders = RunFolders("out")
    views = [read_view(name, folder) for name, folder in folders.by_name().items()]

Files alone are read, so a training in another terminal or on a mounted folder can be watched. A
line that is being written is left out; what cannot be read is named in the view's problems.
"""

import functools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.training.log import RunLog, read_runlog, run_names

MAX_RUNS = 100  # that are listed, the newest first
MAX_LOG_BYTES = 64 << 20
MAX_TEXT_BYTES = 4 << 20  # of samples.txt, config.json and a file of scores
MAX_SAMPLES = 40  # of a run that are shown, from the first to the last
MAX_SCORES = 20  # figures of one file
NO_SCORES = {"config.json", "tokenizer.json", "task.json"}  # JSON files that hold no figures
FACTS = ("tokenizer", "prompt_format", "init_from", "dataset")  # of config.json, beside settings
FOLDER_SETTINGS = {"out_dir"}  # that differ in any two runs


@dataclass
class RunView:
    """What a run's folder holds. log: a RunLog, or None; settings: by name, {} before the first
    checkpoint; scores: (file, figure) → number; samples: [(step, text), …]; problems: lines about
    what cannot be read."""

    name: str
    log: RunLog | None = None
    settings: dict = field(default_factory=dict)
    scores: dict = field(default_factory=dict)
    samples: list = field(default_factory=list)
    problems: list = field(default_factory=list)


class RunFolders:
    """The folders of runs: those in `root`, one or two levels deep, and `further` ones."""

    def __init__(self, root="out", further=()):
        self._root, self._further = Path(root), [Path(folder) for folder in further]

    def by_name(self):
        """{name: folder} of the folders that hold a log, the one that was written last first."""
        found = {}
        for folder in [*self._further, *self._root.glob("*"), *self._root.glob("*/*")]:
            try:
                found[folder.resolve()] = folder, (folder / "log.jsonl").stat().st_mtime
            except OSError:
                continue  # no run, or one that was deleted meanwhile
        newest = sorted(found.values(), key=lambda each: (-each[1], str(each[0])))[:MAX_RUNS]
        folders = [folder for folder, _ in newest]
        return dict(zip(run_names(folders), folders, strict=True))


def read_view(name, folder):
    """The RunView of a folder."""
    view, folder = RunView(name), Path(folder)
    for part, read, file in (
        ("log", _log, "log.jsonl"),
        ("settings", _settings, "config.json"),
        ("samples", _samples, "samples.txt"),
    ):
        _read_part(view, part, read, folder / file)
    for path in sorted(folder.glob("*.json")):
        if path.name not in NO_SCORES:
            _read_part(view, "scores", _scores, path)
    return view


def _read_part(view, part, read, path):
    """Read a file into a part of the view. It is parsed again only when it has changed."""
    try:
        stamp = path.stat()
        value = read(path, stamp.st_mtime_ns, stamp.st_size)
    except FileNotFoundError:
        return
    except (OSError, UserError, ValueError) as error:
        view.problems.append(str(error) if isinstance(error, UserError) else f"{path}: {error}")
        return
    if part == "scores":
        view.scores.update(value)
    else:
        setattr(view, part, value)


def _text(path, size):
    """The text of a file. A character that is only half written at its end is left out."""
    if size > MAX_TEXT_BYTES:
        raise UserError(f"{path}: {size:,} bytes; expected at most {MAX_TEXT_BYTES:,}")
    return path.read_bytes().decode("utf-8", "replace").rstrip("\ufffd")


@functools.lru_cache(maxsize=MAX_RUNS)
def _log(path, _mtime, size):
    if size > MAX_LOG_BYTES:
        raise UserError(f"{path}: {size:,} bytes; expected at most {MAX_LOG_BYTES:,}")
    return read_runlog(path.parent)


@functools.lru_cache(maxsize=MAX_RUNS)
def _settings(path, _mtime, size):
    meta = _object(path, size)
    settings = meta.get("settings")
    settings = dict(settings) if isinstance(settings, dict) else {}
    return settings | {name: meta[name] for name in FACTS if name in meta}


@functools.lru_cache(maxsize=MAX_RUNS)
def _samples(path, _mtime, size):
    return split_samples(_text(path, size))


def split_samples(text):
    """[(step, sample), …] of the text of a samples.txt."""
    parts = re.split(r"^step (\d{1,18}): ", text, flags=re.MULTILINE)
    return [
        (int(step), text.rstrip("\n")) for step, text in zip(parts[1::2], parts[2::2], strict=True)
    ]


@functools.lru_cache(maxsize=4 * MAX_RUNS)
def _scores(path, _mtime, size):
    return {(path.stem, name): value for name, value in _figures(_object(path, size), "", 3)}


def _object(path, size):
    try:
        value = parse_json(_text(path, size))
    except ValueError:
        raise UserError(f"{path}: no JSON (yet): it may be written just now") from None
    return value if isinstance(value, dict) else {}


def _figures(values, prefix, depth):
    """Up to MAX_SCORES (name, number) of nested objects, but not of settings."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and depth and name != "settings":
            found += _figures(value, f"{prefix}{name}.", depth - 1)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((f"{prefix}{name}", _float(value)))
    return found[:MAX_SCORES]


def _float(value):
    """A number as float; an integer beyond its range is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def thinned(items, n=MAX_SAMPLES):
    """At most n of the items, evenly spaced, the first and the last among them."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def differences(views):
    """[(setting, [value of each view as text, or None where it is unknown]), …] of the settings
    that are not equal in all views that have settings."""
    known = [view for view in views if view.settings]
    names = dict.fromkeys(name for view in known for name in view.settings)
    rows = []
    for name in names:
        if name in FOLDER_SETTINGS:
            continue
        values = [_shown(view.settings[name]) if name in view.settings else None for view in views]
        if len({value for value, view in zip(values, views, strict=True) if view.settings}) > 1:
            rows.append((name, values))
    return rows


def _shown(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
