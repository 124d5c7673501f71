"""Checkpoints: the only code that reads or writes a run's folder.

    out/<run>/config.json          shape, tokenizer, prompt format, step, val loss, settings
    out/<run>/model.safetensors    weights, float32; a run with LoRA adapters (models/lora.py) has …
    out/<run>/adapter.safetensors  … only these: config.json names their base model and its hash
    out/<run>/state.pt             optimizers, RNG, position in the data: needed to resume
    out/<run>/tokenizer.*          a copy of the vocabulary: the folder is self-contained
    out/<run>/best/                the same without state.pt, from the best evaluation

A save is atomic: one rename commits all files as the folder `.staged`. They are then moved to their
places; after an interruption the next process that opens the folder moves them. Only one process
writes at a time: it holds the lock `.lock`. Readers take no lock: they read again if a save moved
files in the meantime.

A checkpoint is untrusted input: types, ranges and shapes are checked before a model is built
(minigpt/models/shapes.py).
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minigpt.common.errors import ROOT, UserError
from minigpt.common.files import read_json, read_unchanged, share, sync, sync_folder
from minigpt.common.locks import locked
from minigpt.common.types import typed
from minigpt.models.folders import FORMAT, STAGED, exists, not_a_run
from minigpt.models.lora import LoRA, adapters, attach, merge
from minigpt.models.shapes import check_adapters, check_weights, config_to_json, model_config
from minigpt.tokenizer.chat_template import from_json, load_template
from minigpt.tokenizer.huggingface import PREFIX, hf_name
from minigpt.tokenizer.tokenizer import load_tokenizer
from model import GPT

AGAIN = "train the run again"  # the remedy for a damaged file, if the run has no other save
WRITING, LOCK = ".writing", ".lock"
# The files of a save, in the order in which they are moved to their places.
FILES = ("model.safetensors", "state.pt", "adapter.safetensors")
FILES += ("tokenizer.tiktoken", "tokenizer.json", "config.json")
# Required and optional fields of config.json, with their types.
REQUIRED_FIELDS = dict(model=dict, tokenizer=str, tokenizer_hash=str, n_vocab=int)
REQUIRED_FIELDS |= dict(prompt_format=Literal["plain", "qa", "chat"], step=int, settings=dict)
OPTIONAL_FIELDS = dict(lora=dict, dataset=str, init_from=str, reference=str, reference_hash=str)
# Of an imported model its class in transformers; of each dataset the hash of its blocks.
OPTIONAL_FIELDS |= dict(architecture=str, dataset_hashes=dict, chat_template=str)
LORA_FIELDS = dict(rank=int, alpha=float, dropout=float, targets=list[str], first_block=int)
LORA_FIELDS |= dict(base_hash=str)
LORA_BASE_FIELDS = dict(base=str, base_from_here=str)


@dataclass
class Checkpoint:
    """A loaded run: the model on its device, its tokenizer, and config.json as a dict."""

    folder: Path
    model: GPT
    tokenizer: object
    meta: dict

    @property
    def prompt_format(self):
        """See minigpt/tokenizer/chat_template.py."""
        return from_json(self.meta)


def save(folder, model, tokenizer, meta, state=None):
    """Write a checkpoint: `meta` to config.json, the weights (of a model with adapters only the
    adapters), and `state` (tensors and plain values) if it is given. OSError if the disk is full;
    the previous checkpoint is then kept. UserError if another process writes to `folder`."""
    folder = Path(folder)
    with writer(folder):
        settle(folder)
        _save(folder, model, tokenizer, dict(meta), state)
        settle(folder)


def writer(folder):
    """A context manager: this process holds the write lock of `folder`; see locks.locked()."""
    return locked(Path(folder) / LOCK, folder, "--out_dir")


def _save(folder, model, tokenizer, meta, state):
    """save() up to the rename that commits it."""
    for leftover in folder.glob(f"{WRITING}*"):  # of an interrupted save
        shutil.rmtree(leftover, ignore_errors=True)
    writing = folder / f"{WRITING}-{secrets.token_hex(4)}"
    writing.mkdir()
    try:
        meta = dict(
            format=FORMAT,
            model=config_to_json(model.config),
            tokenizer=tokenizer.name,
            tokenizer_hash=tokenizer.hash,
            n_vocab=tokenizer.n_vocab,
            **meta,
        )
        weights, name = adapters(model), "adapter.safetensors"
        if weights:
            meta["lora"] = _lora_to_json(folder, model.lora)
        else:
            weights, name = dict(model.named_parameters()), "model.safetensors"  # tied ones once
        weights = {name: weight.detach().contiguous() for name, weight in weights.items()}
        try:
            save_file(weights, writing / name)
            if state is not None:
                torch.save(state, writing / "state.pt")
        except (SafetensorError, RuntimeError) as error:
            # The two libraries raise these when a write fails.
            raise OSError(f"is the disk full? {error}") from None
        tokenizer.copy_to(writing / "tokenizer")
        text = json.dumps(meta, ensure_ascii=False, indent=1)
        (writing / "config.json").write_text(text + "\n", encoding="utf-8")
        share(writing)
        sync(writing)
        writing.rename(folder / STAGED)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    sync_folder(folder)


def resave(folder, trained):
    """Write a loaded run to another folder as it is in memory, with merged adapters as plain
    weights. The copy cannot be resumed; another run may start from it."""
    # save() writes these itself.
    own = ("format", "model", "tokenizer", "tokenizer_hash", "n_vocab", "lora")
    meta = {name: value for name, value in trained.meta.items() if name not in own}
    save(folder, trained.model, trained.tokenizer, meta)


def settle(folder):
    """Finish a save that was interrupted after its commit. Several processes may do so at the
    same time: each skips the files that another has moved."""
    folder = Path(folder)
    staged = folder / STAGED
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            os.replace(staged / name, folder / name)
    with contextlib.suppress(FileNotFoundError):
        staged.rmdir()


def _read(folder, read):
    """read(), repeated until all files of the run in `folder` are from one save."""

    def pending():
        if not (folder / STAGED).is_dir():
            return None
        with contextlib.suppress(OSError):  # a read-only folder
            settle(folder)
        return (
            f"{folder}: a save is not finished and cannot be finished from here; read the run once "
            "as a user who may write there"
        )

    return read_unchanged(read, [folder / name for name in FILES], pending)


def discard(folder):
    """Remove the files of a run from `folder`, and no other files."""
    folder = Path(folder)
    for path in (*folder.glob(f"{WRITING}*"), folder / STAGED, folder / "best"):
        shutil.rmtree(path, ignore_errors=True)
    for name in (*FILES, "log.jsonl", "samples.txt"):
        (folder / name).unlink(missing_ok=True)


def _recipe_of(folder):
    """The recipe in config/ that trains into `folder`, as the project names it; None if none."""
    for path in sorted((ROOT / "config").glob("*.py")):
        found = re.search(r'^out_dir\b.*= "(.*)"', path.read_text(encoding="utf-8"), re.MULTILINE)
        if found and folder == Path(found[1]):
            return f"config/{path.name}"
    return None


def _remedy(folder):
    """The remedy if `folder` holds no run: the recipe that writes there, or sibling runs."""
    recipe = _recipe_of(folder.parent if folder.name == "best" else folder)
    runs = (path for path in folder.parent.glob("*") if exists(path) and not hf_name(path))
    beside = sorted(map(str, runs))
    beside = f"the folder of a run, such as {', '.join(beside[:5])}" if beside else ""
    if recipe:
        made = f"make one with: python train.py {recipe}"
        return f"{made}; or name {beside}" if beside else made
    if beside:
        return f"expected {beside}"
    return "expected the folder of a run: train.py makes one and says where (--out_dir)"


@contextlib.contextmanager
def _naming_other_save(folder):
    """Within it the UserError for a damaged file in `folder` names the run's other save, best/ or
    the last one, if that is whole."""
    try:
        yield
    except UserError as error:
        other = folder.parent if folder.name == "best" else folder / "best"
        text = str(error)
        if AGAIN in text and text.startswith(str(folder)) and _is_whole(other):
            remedy = f"the save in {other} is whole: use that, or train on with --init_from={other}"
            raise UserError(text.replace(AGAIN, remedy)) from None
        raise


def _is_whole(folder):
    try:
        return exists(folder) and bool(_read_meta(folder))
    except (UserError, OSError):
        return False


def read_meta(folder, hint=None):
    """config.json as a dict, validated, also against the weights. If there is no run, the UserError
    names the command that makes one: `hint`, or the one of the recipe that writes there."""
    folder = Path(folder)
    if theirs := not_a_run(folder):
        raise UserError(theirs)
    if not exists(folder):
        how = f"make one with: {hint} --out_dir={folder}" if hint else _remedy(folder)
        raise UserError(f"{folder}: no trained run here; {how}")
    with _naming_other_save(folder):
        return _read(folder, lambda: _read_meta(folder))


def _read_meta(folder):
    path = folder / "config.json"
    try:
        meta = read_json(path, AGAIN)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {AGAIN}") from None
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{folder}: checkpoint format {str(meta.get('format'))[:40]}, this version reads "
            f"{FORMAT}"
        )
    missing = [name for name in REQUIRED_FIELDS if name not in meta]
    if isinstance(meta.get("lora"), dict):
        missing += [f"lora: {name}" for name in (*LORA_FIELDS, "base") if name not in meta["lora"]]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; {AGAIN}")
    meta, problems = typed(meta, REQUIRED_FIELDS | OPTIONAL_FIELDS, path)
    if "lora" in meta and not problems:
        meta["lora"], problems = typed(
            meta["lora"], LORA_FIELDS | LORA_BASE_FIELDS, f"{path}: lora"
        )
    names = (REQUIRED_FIELDS | OPTIONAL_FIELDS).keys() - {"settings", "chat_template"}
    texts = {name: meta.get(name) for name in sorted(names)}
    problems += _string_problems(texts | meta.get("lora", {}) if not problems else texts, path)
    if "chat_template" in meta and not problems:
        try:
            load_template(meta["chat_template"])
        except UserError as error:
            problems.append(f"{path}: chat_template: {error}")
    if problems:
        raise UserError("\n".join(problems))
    config = model_config(meta["model"], path)
    if "lora" not in meta:  # else the base is checked when it is loaded
        check_weights(config, folder / "model.safetensors", path, AGAIN)
    meta["model"] = asdict(config)
    return meta


def _string_problems(fields, path):
    """An error line for each string that cannot be a file name."""
    return [
        f"{path}: {name}={value[:40]!r}: expected a name, at most 1,000 printable characters"
        for name, value in fields.items()
        if isinstance(value, str) and (len(value) > 1000 or not value.isprintable())
    ]


def load(
    folder,
    device="cpu",
    dtype=torch.float32,
    hint=None,
    merged=True,
):
    """The run in `folder` as a Checkpoint, its weights in `dtype` on `device`. Adapters are merged
    into their base model, so that every run is a plain GPT; merged=False keeps them separate.

    UserError if there is no run, if its files contradict each other, or if the base model of the
    adapters is missing or has changed.
    """
    folder = Path(folder)
    read_meta(folder, hint)  # a clear error if there is no run at all

    def read():
        meta = read_meta(folder)
        return meta, read_tokenizer(folder, meta), _load_model(folder, meta)

    with _naming_other_save(folder):
        meta, tokenizer, model = _read(folder, read)
    if merged:
        merge(model)
    return Checkpoint(folder, model.to(device=device, dtype=dtype), tokenizer, meta)


def _load_model(folder, meta):
    """The run's model with unmerged adapters; adapters of its base model are merged."""
    config = model_config(meta["model"], folder / "config.json")
    if "lora" not in meta:
        model = GPT(config)
        _load_weights(model, folder / "model.safetensors")
        return model
    candidates = _base_candidates(folder, meta)
    lora, model = _read(candidates[0], lambda: _load_base(folder, meta, candidates))
    merge(model)
    model.config.dropout = config.dropout
    if model.config != config:
        ours, theirs = config_to_json(config), config_to_json(model.config)
        other = [f"{name}={ours[name]}" for name in ours if ours[name] != theirs[name]]
        raise UserError(
            f"{folder}/config.json: model: {', '.join(other)}: expected the values of "
            f"its base {lora.base}; restore the file"
        )
    check_adapters(config, lora, folder / "adapter.safetensors", folder / "config.json")
    attach(model, lora)
    _load_weights(model, folder / "adapter.safetensors")
    return model


def _load_base(folder, meta, candidates):
    """(LoRA, its base model)."""
    lora = _read_lora(folder, meta, candidates)
    return lora, _load_model(lora.base, read_meta(lora.base))


def _load_weights(model, path):
    """Load a .safetensors file, whose names and shapes were checked, into the model."""
    try:
        model.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from None
    except RuntimeError as error:  # other shapes: the file was replaced after the check
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: does not fit {path.parent}/config.json: {reason}") from None


def weights_hash(folder):
    """The SHA-256 of a run's weight file; for adapters it includes the hash of their base."""
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
        raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from None
    return digest.hexdigest()


def _lora_to_json(folder, lora):
    """The field "lora" of config.json. It has the path of the base model twice, relative to the
    run's folder and as given, so the pair or the run alone can be moved."""
    fields = {name: getattr(lora, name) for name in LORA_FIELDS}
    with contextlib.suppress(ValueError):  # another drive on Windows
        relative = os.path.relpath(lora.base, folder)
        fields["base_from_here"] = Path(relative).as_posix()
    return {**fields, "base": lora.base.as_posix()}


def _base_candidates(folder, meta):
    """The folders that may hold the adapters' base model. UserError if there are none."""
    fields = meta["lora"]
    given = Path(fields["base"])
    here = Path(os.path.normpath(folder / fields.get("base_from_here", given)))
    found = []
    with contextlib.suppress(OSError):  # a name too long for the system
        found = [place for place in dict.fromkeys((here, given)) if exists(place)]
    if not found:
        raise UserError(
            f"{folder}: the base model {given} of these adapters is missing; restore it, or write "
            f"its new path to {folder}/config.json (lora, base)"
        )
    return found


def _read_lora(folder, meta, candidates):
    """The field "lora" of config.json as a LoRA. Its base is the first of the folders `candidates`
    with the recorded hash; UserError if none has it."""
    fields = meta["lora"]
    for place in candidates:
        if weights_hash(place) == fields["base_hash"]:
            return LoRA(**{name: fields[name] for name in LORA_FIELDS}, base=place)
    raise UserError(
        f"{folder}: the base model {candidates[0]} of these adapters has changed since they were "
        f"trained (SHA-256 {fields['base_hash'][:16]}…); restore its weights, or train the "
        "adapters again"
    )


def read_tokenizer(folder, meta):
    """The tokenizer of a run, checked against the hash in its config.json."""
    name, copy = meta["tokenizer"], Path(folder) / "tokenizer.tiktoken"
    if not copy.exists() and name.startswith(PREFIX):  # loading a run must not start a download
        raise UserError(f"{copy}: missing; a run with the tokenizer {name} keeps its copy: copy it")
    try:
        tokenizer = load_tokenizer(copy, called=name) if copy.exists() else load_tokenizer(name)
    except OSError as error:
        raise UserError(f"{folder}: tokenizer {name}: cannot be read ({error.strerror})") from None
    if tokenizer.hash != meta["tokenizer_hash"]:
        raise UserError(
            f"{folder}: trained with tokenizer {name} ({meta['tokenizer_hash']}), but its "
            f"tokenizer has changed ({tokenizer.hash}); restore the run's own files"
        )
    n_vocab, n_rows = meta["n_vocab"], meta["model"]["padded_vocab_size"]
    if n_vocab != tokenizer.n_vocab or n_rows < n_vocab:
        raise UserError(
            f"{folder}/config.json: n_vocab={n_vocab}, model: n_rows={n_rows}: expected "
            f"{tokenizer.n_vocab} ids, as its tokenizer has, and at least as many rows"
        )
    return tokenizer


def load_state(folder):
    """state.pt: the `state` that train.py passed to save(). UserError if there is none."""
    path = Path(folder) / "state.pt"
    if not path.exists():
        raise UserError(
            f"{path}: missing, so the run cannot be resumed; start another from its weights with "
            f"--init_from={folder} --out_dir=…"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file can raise anything in the unpickler
        state = None
    if not isinstance(state, dict):
        raise UserError(
            f"{path}: damaged, so the run cannot be resumed; start another from its weights with "
            f"--init_from={folder} --out_dir=…"
        )
    return state
