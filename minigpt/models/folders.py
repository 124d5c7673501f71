"""Folders of runs: found, named, and distinguished from other folders, without loading PyTorch.

    runs, problems = find_runs("out")      # [Path, …], the newest first; ["out/x: why it is none"]
    model_names(runs), prompt_format(runs[0])

minigpt/models/checkpoint.py reads and checks what is in them.
"""

import re
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.common.files import read_json
from minigpt.tokenizer.chat_template import from_json, kind_of
from minigpt.tokenizer.huggingface import PREFIX, hf_name

FORMAT = 1  # of config.json
STAGED = ".staged"  # a save that has not been moved to its place


def exists(folder):
    """Whether `folder` holds a checkpoint."""
    folder = Path(folder)
    return (folder / "config.json").exists() or (folder / STAGED).is_dir()


def not_a_run(folder):
    """Of a Hugging Face model a line that says so, and what to do with it; None for others."""
    theirs = str(folder) if str(folder).startswith(PREFIX) else hf_name(folder)
    if theirs is None:
        return None
    return (
        f"{folder}: a Hugging Face model, not a run; make a run of it with: python train.py "
        f"--init_from={theirs} --out_dir=out/…"
    )


def find_runs(root):
    """(the runs in the folder `root`, the newest first; a line for each other folder there that
    looks like a model). Folders without a config.json are no models and not named."""
    runs, problems = {}, []
    for folder in sorted(Path(root).glob("*")):
        if not exists(folder):
            continue
        try:
            prompt_format(folder)
            runs[folder] = _changed(folder)
        except UserError as error:
            problems.append(str(error))
    return sorted(runs, key=lambda run: (-runs[run], run)), problems


def _changed(folder):
    path = folder / "config.json"
    try:
        return path.stat().st_mtime
    except OSError:
        return (folder / STAGED).stat().st_mtime


def prompt_format(folder):
    """ "plain", "qa" or "chat", as config.json says; None while a save is not yet in its place.
    UserError if the folder holds no run of this version."""
    folder = Path(folder)
    if theirs := not_a_run(folder):
        raise UserError(theirs)
    path = folder / "config.json"
    try:
        meta = read_json(path, "train the run again")
    except FileNotFoundError:
        if not exists(folder):
            raise UserError(f"{folder}: no trained run here") from None
        return None
    if meta.get("format") != FORMAT or not isinstance(meta.get("prompt_format"), str):
        raise UserError(f"{folder}: its config.json is not that of a run of this version")
    return kind_of(from_json(meta))


def model_names(folders):
    """The model names that clients use for the runs in `folders` (strings): the path below the last
    "out", or the folder's own name. Duplicates get a number."""
    names = []
    for folder in folders:
        # "." has no name of its own, and "/" has none at all.
        parts = _parts(folder) or _parts(str(Path(folder).resolve())) or ["model"]
        if "out" in parts[:-1]:
            parts = parts[len(parts) - parts[::-1].index("out") :]
        else:
            parts = parts[-2:] if parts[-1] == "best" else parts[-1:]
        name = base = "/".join(parts)
        number = 1
        while name in names:
            number += 1
            name = f"{base}-{number}"
        names.append(name)
    return names


def _parts(path):
    return [part for part in re.split(r"[/\\]+", path) if part not in ("", ".")]
