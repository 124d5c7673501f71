"""Checkpoints: the only code that reads or writes a run's folder.

    out/<run>/config.json          shape, tokenizer, prompt format, step, val loss, settings
    out/<run>/model.safetensors    weights, float32; or, of a run with adapters (models/lora.py) …
    out/<run>/adapter.safetensors  … these alone: config.json names their base and its hash
    out/<run>/state.pt             optimizers, RNG, position: what resuming needs
    out/<run>/tokenizer.*          a copy of the vocabulary: the folder stands alone
    out/<run>/best/                the same without state.pt, from the best evaluation

A save is whole or absent: all files are staged in `.staged`, and one rename of that folder is the
moment at which the save has happened. Whoever opens the folder next finishes moving them.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minigpt.common.errors import ROOT, UserError
from minigpt.models.lora import LoRA, adapters, attach, merge
from minigpt.tokenizer.tokenizer import load_tokenizer
from model import GPT, GPTConfig

FORMAT = 1
WRITING, STAGED = ".writing", ".staged"
# What a save may write, in the order in which it is moved to its place.
FILES = ("model.safetensors", "state.pt", "adapter.safetensors")
FILES += ("tokenizer.tiktoken", "tokenizer.json", "config.json")
LORA_FACTS = ("rank", "alpha", "dropout", "targets", "first_block", "base_hash")
FACTS = ("model", "tokenizer", "tokenizer_hash", "n_vocab", "prompt_format", "step", "settings")


@dataclass
class Checkpoint:
    """A loaded run: the model on its device, its tokenizer, and config.json as a dict."""

    folder: Path
    model: GPT
    tokenizer: object
    meta: dict

    @property
    def prompt_format(self):
        return self.meta["prompt_format"]


def save(folder, model, tokenizer, meta, state=None):
    """Write a checkpoint: `meta` to config.json, the weights (where the model has adapters, those
    alone), and `state` (tensors and plain values) if there is one. OSError where the disk is full;
    the last checkpoint then stands."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    writing = folder / WRITING
    shutil.rmtree(writing, ignore_errors=True)  # of a save that was interrupted
    writing.mkdir()
    try:
        meta = dict(
            format=FORMAT,
            model=_shape_to_json(model.config),
            tokenizer=tokenizer.name,
            tokenizer_hash=tokenizer.hash,
            n_vocab=tokenizer.n_vocab,
            **meta,
        )
        weights, name = adapters(model), "adapter.safetensors"
        if weights:
            meta["lora"] = _lora_facts(folder, model.lora)
        else:
            weights, name = dict(model.named_parameters()), "model.safetensors"  # tied ones once
        weights = {name: weight.detach().contiguous() for name, weight in weights.items()}
        try:
            save_file(weights, writing / name)
            if state is not None:
                torch.save(state, writing / "state.pt")
        except (SafetensorError, RuntimeError) as error:
            # This is how the two libraries say that a write failed.
            raise OSError(f"is the disk full? {error}") from None
        tokenizer.copy_to(writing / "tokenizer")
        text = json.dumps(meta, ensure_ascii=False, indent=1)
        (writing / "config.json").write_text(text + "\n", encoding="utf-8")
        for path in writing.iterdir():
            _flush(path)
        writing.rename(folder / STAGED)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    settle(folder)


def resave(folder, trained):
    """Write a loaded run to another folder as it is in memory: what was merged stands alone there.
    It cannot be resumed; another run may start from it."""
    own = ("format", "model", "tokenizer", "tokenizer_hash", "n_vocab", "lora")  # save() says them
    meta = {name: value for name, value in trained.meta.items() if name not in own}
    save(folder, trained.model, trained.tokenizer, meta)


def settle(folder):
    """Finish a save that was interrupted after its decisive rename. A run and those who read it
    may do so at once: what one has moved, the other finds gone."""
    folder = Path(folder)
    staged = folder / STAGED
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            os.replace(staged / name, folder / name)
    with contextlib.suppress(FileNotFoundError):
        staged.rmdir()


def _flush(path):
    """Have the system put a file on the disk before anything relies on it."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def exists(folder):
    """Whether `folder` holds a checkpoint."""
    folder = Path(folder)
    return (folder / "config.json").exists() or (folder / STAGED).is_dir()


def discard(folder):
    """Remove a run from `folder`: the files of a run, and nothing else that may lie there."""
    folder = Path(folder)
    for name in (WRITING, STAGED, "best"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (*FILES, "log.jsonl", "samples.txt"):
        (folder / name).unlink(missing_ok=True)


def _how_to_make(folder):
    """What helps where `folder` holds no run: the recipe that writes there, or the runs beside."""
    name = folder.parent.name if folder.name == "best" else folder.name
    recipe = {"pretrain": "train_config", "sft": "train_config_sft"}.get(name, name)
    beside = sorted(str(path) for path in folder.parent.glob("*") if exists(path))
    beside = f"the folder of a run, such as {', '.join(beside[:5])}" if beside else ""
    if folder.parts[:1] == ("out",) and (ROOT / "config" / f"{recipe}.py").is_file():
        made = f"make one with: python train.py config/{recipe}.py"
        return f"{made}; or name {beside}" if beside else made
    if beside:
        return f"expected {beside}"
    return "expected the folder of a run: train.py makes one and says where (--out_dir)"


def read_meta(folder, hint=None):
    """config.json as a dict; where there is none, UserError says which command makes one: `hint`,
    or that of the recipe which writes there."""
    folder = Path(folder)
    if not exists(folder):
        how = f"make one with: {hint} --out_dir={folder}" if hint else _how_to_make(folder)
        raise UserError(f"{folder}: no trained run here; {how}")
    settle(folder)
    try:
        meta = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(meta, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise UserError(f"{folder}/config.json: not JSON ({error}); train the run again") from None
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{folder}: checkpoint format {meta.get('format')}, this version reads {FORMAT}"
        )
    missing = [name for name in FACTS if name not in meta]
    if "lora" in meta:
        missing += [f"lora: {name}" for name in (*LORA_FACTS, "base") if name not in meta["lora"]]
    if missing:
        raise UserError(f"{folder}/config.json: lacks {', '.join(missing)}; train the run again")
    meta["model"] = _shape_from_json(meta["model"])
    unknown = sorted(set(meta["model"]) - set(GPTConfig.__dataclass_fields__))
    if unknown:
        raise UserError(
            f"{folder}/config.json: a model with {', '.join(unknown)}, which this version does not "
            f"know; use the version of MiniGPT that trained it"
        )
    return meta


# GPTConfig fields that have another name in config.json (format 1).
JSON_NAMES = {"padded_vocab_size": "n_rows"}


def _shape_to_json(config):
    """A GPTConfig as config.json's "model"."""
    return {JSON_NAMES.get(name, name): value for name, value in asdict(config).items()}


def _shape_from_json(shape):
    """config.json's "model" with the field names of GPTConfig; those are accepted, too."""
    names = {old: name for name, old in JSON_NAMES.items()}
    return {names.get(name, name): value for name, value in shape.items()}


def load(
    folder,
    device="cpu",
    dtype=torch.float32,
    hint=None,
    merged=True,
):
    """The run in `folder` as a Checkpoint, its weights in `dtype` on `device`. Adapters are merged
    into their base, so that every run is a plain GPT; merged=False: they stay apart.

    UserError where there is none, where its files contradict one another, and where the base of
    adapters is gone or has changed.
    """
    folder = Path(folder)
    meta = read_meta(folder, hint)
    tokenizer = read_tokenizer(folder, meta)
    model = _load_model(folder, meta)
    if merged:
        merge(model)
    return Checkpoint(folder, model.to(device=device, dtype=dtype), tokenizer, meta)


def _load_model(folder, meta):
    """The run's model, adapters apart; their base's own adapters are merged."""
    if "lora" not in meta:
        model = GPT(GPTConfig(**meta["model"]))
        _fill(model, folder / "model.safetensors", dict(model.named_parameters()))
        return model
    lora = _read_lora(folder, meta)
    model = _load_model(lora.base, read_meta(lora.base))
    merge(model)
    model.config.dropout = meta["model"]["dropout"]
    attach(model, lora)
    _fill(model, folder / "adapter.safetensors", adapters(model))
    return model


def _fill(model, path, expected):
    """Read the tensors of a file into the model; `expected` has the names that it must hold."""
    folder = path.parent
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); train the run again") from None
    try:
        _, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # tensors of another size, a line each
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{path}: does not fit {folder}/config.json: {reason}") from None
    missing = [name for name in expected if name not in weights]
    if missing or unexpected:
        raise UserError(f"{path}: lacks {missing or 'nothing'}, has also {unexpected or 'nothing'}")


def weights_hash(folder):
    """The SHA-256 of a run's weights as they lie in its folder; of adapters, with their base's."""
    folder = Path(folder)
    meta = read_meta(folder)
    digest = hashlib.sha256()
    if "lora" in meta:
        digest.update(meta["lora"]["base_hash"].encode())
    path = folder / ("adapter.safetensors" if "lora" in meta else "model.safetensors")
    try:
        with open(path, "rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); train the run again") from None
    return digest.hexdigest()


def _lora_facts(folder, lora):
    """What config.json says of adapters. Their base stands there twice, as seen from the run's
    folder and as it was given: so either may move."""
    facts = {name: getattr(lora, name) for name in LORA_FACTS}
    with contextlib.suppress(ValueError):  # on another drive of Windows
        relative = os.path.relpath(lora.base, folder)
        facts["base_from_here"] = Path(relative).as_posix()
    return {**facts, "base": lora.base.as_posix()}


def _read_lora(folder, meta):
    """config.json's "lora" as a LoRA whose base is found and is what it was. UserError if not."""
    facts = meta["lora"]
    given = Path(facts["base"])
    here = Path(os.path.normpath(folder / facts.get("base_from_here", given)))
    there = [place for place in dict.fromkeys((here, given)) if exists(place)]
    if not there:
        raise UserError(
            f"{folder}: adapters, whose base {given} is gone; put it back, or write where it is "
            f"now into {folder}/config.json (lora, base)"
        )
    for place in there:
        if weights_hash(place) == facts["base_hash"]:
            return LoRA(**{name: facts[name] for name in LORA_FACTS}, base=place)
    raise UserError(
        f"{folder}: adapters, whose base {there[0]} has other weights than those they were trained "
        f"on (SHA-256 {facts['base_hash'][:16]}…); bring those back, or train the adapters again"
    )


def read_tokenizer(folder, meta):
    """The tokenizer of a run, checked against the hash in its config.json."""
    name, copy = meta["tokenizer"], Path(folder) / "tokenizer.tiktoken"
    tokenizer = load_tokenizer(copy, called=name) if copy.exists() else load_tokenizer(name)
    if tokenizer.hash != meta["tokenizer_hash"]:
        raise UserError(
            f"{folder}: trained with tokenizer {name} ({meta['tokenizer_hash']}), but its "
            f"tokenizer is now another ({tokenizer.hash}); bring back the run's own files"
        )
    return tokenizer


def load_state(folder):
    """state.pt: what train.py gave save(). UserError where the folder has none."""
    path = Path(folder) / "state.pt"
    if not path.exists():
        raise UserError(
            f"{path}: missing, so the run cannot be resumed; start another from its weights with "
            f"--init_from={folder} --out_dir=…"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        raise UserError(
            f"{path}: damaged, so the run cannot be resumed; start another from its weights with "
            f"--init_from={folder} --out_dir=…"
        ) from None


def model_names(folders):
    """What clients call the runs in `folders` (strings): the path below the last "out", or the
    folder's own name; where two would have the same, the later ones get a number."""
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
