"""What a run consists of before its first step: the checkpoint that it starts from, data, model."""

import contextlib
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from data_utils import Batches, Blocks, evaluation_batches, read_meta
from minigpt.common.errors import UserError
from minigpt.common.scripts import typed
from minigpt.interop import hf_import
from minigpt.models import checkpoint
from minigpt.models.lora import LoRA, attach
from minigpt.models.number_format import Format, fastest, try_step
from minigpt.tokenizer.huggingface import hf_name
from minigpt.training.objectives.dpo import Pairs
from minigpt.training.objectives.rollouts import Prompts
from minigpt.training.run_length import fit_run_length
from minigpt.training.settings import (
    check_ranges,
    inherit_settings,
    keep_step_size,
    prefer_max_iters,
)
from minigpt.training.state import TrainState
from model import GPT, GPTConfig, has_varlen_attention

# Devices whose fastest number format differs from one to the next: it is measured at the start.
MEASURED = ("mps",)
COMPILE_MINUTES = 20.0  # of a run from which on torch.compile, which takes a minute, is tried, too
GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


@contextlib.contextmanager
def lock_run(settings, distributed):
    """Within it the run's main process is the only one that writes to out_dir. UserError where
    another run does, and where the folder cannot be written."""
    with contextlib.ExitStack() as stack:
        if distributed.is_main:
            try:
                stack.enter_context(checkpoint.writer(settings.out_dir))
            except OSError as error:
                raise UserError(
                    f"{settings.out_dir}: cannot be written ({error.strerror}); give another "
                    "--out_dir"
                ) from None
        yield


def configure_torch(settings):
    """Precision, determinism and seed of this process."""
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")
    torch.set_flush_denormal(True)
    torch.manual_seed(settings.seed)  # all processes start from the same weights


# -- the checkpoint --------------------------------------------------------------------------------


def load_start(settings, world_size):
    """(parent, state): the Checkpoint that the run starts from, and the TrainState if it resumes
    that run; None where there is none. `settings` inherit what the checkpoint fixes.

    UserError where there is no such run, where it contradicts the settings, and where out_dir holds
    a run that would be lost.
    """
    parent, state = _load_start(settings, Path(settings.out_dir), world_size)
    prefer_max_iters(settings)
    return parent, state


def _load_start(settings, out_dir, world_size):
    if settings.init_from == "resume":
        hint = typed("train.py", *settings.words(without=("init_from", "out_dir")))
        parent = checkpoint.load(out_dir, hint=hint, merged=False)
        follow_moved_datasets(settings, parent)
        inherit_settings(settings, parent, resumed=True)
        check_ranges(settings)  # config.json may have been edited
        state = TrainState.from_dict(checkpoint.load_state(out_dir), out_dir)
        keep_step_size(settings, state.world, world_size)
        return parent, state
    if theirs := hf_name(out_dir):
        raise UserError(
            f"{out_dir}: holds a Hugging Face model; start from it with --init_from={theirs}, and "
            f"give another --out_dir"
        )
    if checkpoint.exists(out_dir) and not settings.overwrite:
        raise UserError(
            f"{out_dir}: already holds a run; continue it with --init_from=resume, keep it with "
            f"another --out_dir, or throw it away with --overwrite=true"
        )
    if settings.init_from == "scratch":
        return None, None
    if settings.init_from in GPT2_NAMES and not Path(settings.init_from).exists():
        name = hf_import.PREFIX + settings.init_from  # as nanoGPT calls them
        settings.set("init_from", name, settings.origin("init_from"))
    if settings.init_from.startswith(hf_import.PREFIX):
        parent = load_hf_parent(settings)
    else:
        start = Path(settings.init_from)
        if start.resolve() in (out_dir.resolve(), out_dir.resolve() / "best"):
            raise UserError(
                f"{out_dir}: overwriting it would throw away {start}, from which the run starts; "
                f"choose another --out_dir"
            )
        parent = checkpoint.load(start)
    inherit_settings(settings, parent)
    return parent, None


def load_hf_parent(settings):
    """The Hugging Face model of init_from as a Checkpoint, for blocks of the size given by hand.
    UserError for LoRA, DPO and GRPO, which need a run's folder to refer to."""
    if settings.lora_rank or settings.stage in ("dpo", "grpo"):
        raise UserError(
            f"{settings.origin('init_from')}: init_from={settings.init_from}: adapters, DPO and "
            f"GRPO start from a run, which they refer to; make it one first with the same "
            f"--init_from, --max_iters=0 and an --out_dir, and start from that"
        )
    size = None if settings.origin("block_size") == "default" else settings.block_size
    return hf_import.load(settings.init_from, size)


# -- data ------------------------------------------------------------------------------------------


@dataclass
class Data:
    """train, val: Blocks, Pairs for DPO, or Prompts for GRPO. forgetting: the Blocks of the
    forgetting check, or None. batches: the training batches of this process, by number. notes:
    lines about settings that were fitted to the amount of data."""

    train: Blocks
    val: Blocks
    forgetting: Blocks | None
    batches: Batches
    notes: list[str]


def prepare_command(settings, script=None):
    """The command that prepares data for this run: with its recipes, and with each setting that is
    from elsewhere. script: none: the one for the run's stage."""
    if script is None:
        is_base = settings.init_from in ("scratch", "resume")
        script = "data/prepare.py" if is_base else "data/prepare_sft.py"
        by_stage = {"dpo": "data/prepare_dpo.py", "grpo": "data/prepare_prompts.py"}
        script = by_stage.get(settings.stage, script)
    recipes = [word for word in settings.words() if not word.startswith("-")]
    names = ["tokenizer", "block_size"] + ["layout"] * (settings.stage not in ("dpo", "grpo"))
    known = ("default", *(f"{recipe}:" for recipe in recipes))
    flags = [
        f"--{name}={settings.as_dict()[name]}"
        for name in names
        if not settings.origin(name).startswith(known)
    ]
    return typed(script, *recipes, "--input=PATH", *flags)


def load_data(settings, tokenizer, distributed):
    """The run's Data. Sets max_iters where `epochs` is given, and fits a new run to little data.
    UserError where data are missing or do not fit the settings."""
    size = settings.block_size
    for folder in filter(None, (settings.dataset, settings.val_dataset)):
        read_meta(folder, prepare_command(settings))  # an error says how to make it
    kind = {"dpo": Pairs, "grpo": Prompts}.get(settings.stage, Blocks)
    train = kind(settings.dataset, "train", tokenizer, size, settings.isolate)
    val = kind(settings.val_dataset or settings.dataset, "val", tokenizer, size)
    forgetting = None
    if settings.guard_dataset:
        read_meta(settings.guard_dataset, prepare_command(settings, "data/prepare_sft.py"))
        forgetting = Blocks(settings.guard_dataset, "val", tokenizer, size)
    settings.inherit({"layout": train.meta["layout"]}, settings.dataset)
    notes = fit_run_length(settings, len(train), distributed.world_size)
    batches = Batches(
        train,
        settings.batch_size,
        settings.seed,
        in_order=not settings.shuffle,
        rank=distributed.rank,
        world=distributed.world_size,
        device=distributed.device,
        prefetch=settings.gradient_accumulation_steps,
    )
    return Data(train, val, forgetting, batches, notes)


DATASETS = ("dataset", "val_dataset", "guard_dataset")
HASHED = 2**26  # bytes of a file that blocks_hash() reads


def blocks_hash(folder):
    """16 hex digits of SHA-256 over a dataset's blocks: the sizes of its .bin and .mask files and
    their contents, of a file above 64 MB a thousand parts of it. UserError if it has no blocks."""
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix in (".bin", ".mask"))
    if not paths:
        read_meta(folder)  # says how to make it
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        parts = 1 if size <= HASHED else 1024
        with open(path, "rb") as file:
            for i in range(parts):
                file.seek(i * size // parts)
                digest.update(file.read(HASHED // parts))
    return digest.hexdigest()[:16]


def provenance(settings, parent):
    """What config.json records of the sources of a run: its datasets' hashes, and the architecture
    of the Hugging Face model that it descends from."""
    given = {name: getattr(settings, name) for name in DATASETS}
    found = dict(dataset_hashes={name: blocks_hash(at) for name, at in given.items() if at})
    if parent and "architecture" in parent.meta:
        found["architecture"] = parent.meta["architecture"]
    return found


def follow_moved_datasets(settings, parent):
    """Let a run be resumed with a dataset at another path, if its blocks are the same. UserError if
    they are not, and for a dataset that is missing while no other path is given."""
    saved, hashes = parent.meta["settings"], parent.meta.get("dataset_hashes", {})
    for name in DATASETS:
        old, new = saved.get(name), getattr(settings, name)
        if not isinstance(old, str):
            continue
        is_given = settings.origin(name) != "default" and new not in (None, old)
        trained = f"{settings.out_dir} was trained with it"
        if not is_given and not Path(old).exists():
            raise UserError(f"{old}: missing; {trained}: if it moved, say where with --{name}=…")
        if not is_given:
            continue
        known = hashes.get(name) or (blocks_hash(old) if Path(old).exists() else None)
        value = f"{settings.origin(name)}: {name}={new}"
        if known is None:
            raise UserError(
                f"{value}: cannot be compared with {old}, which is missing, and whose hash this "
                f"run did not record yet; move the folder back"
            )
        if known != blocks_hash(new):
            raise UserError(
                f"{value}: has other blocks than {old}: {trained}; leave {name} out, or start "
                f"another run from its weights with --init_from={settings.out_dir} --out_dir=…"
            )
        saved[name] = new


# -- model -----------------------------------------------------------------------------------------


def make_model(settings, parent, tokenizer):
    """The model of the Checkpoint `parent`, or a new one. UserError for an impossible shape."""
    if parent:
        parent.model.config.dropout = settings.dropout
        parent.model.activation_checkpointing = settings.activation_checkpointing
        return parent.model
    knobs = settings.as_dict()
    shape = {name: knobs[name] for name in GPTConfig.__dataclass_fields__ if name in knobs}
    config = GPTConfig(padded_vocab_size=tokenizer.padded_vocab_size, **shape)
    if config.problems():
        raise UserError("\n".join(config.problems()))
    model = GPT(config)
    model.activation_checkpointing = settings.activation_checkpointing
    return model


def attach_lora(model, settings, parent):
    """Attach adapters to the weights, which freezes these. UserError where the weights are of no
    run, and for a rank above theirs."""
    value = f"{settings.origin('lora_rank')}: lora_rank={settings.lora_rank}"
    if parent is None:
        raise UserError(
            f"{value}: adapters are trained beside the weights of a run: say which with "
            f"--init_from=out/…"
        )
    width = model.config.n_embd
    if settings.lora_rank > width:
        raise UserError(
            f"{value}: expected at most {width}, the model's width: its matrices have no higher "
            f"rank"
        )
    lora = LoRA(
        settings.lora_rank,
        settings.lora_alpha,
        settings.lora_dropout,
        settings.lora_targets,
        settings.freeze_layers,
        parent.folder,
        checkpoint.weights_hash(parent.folder),
    )
    attach(model, lora)


def freeze(model, settings):
    """Freeze the lower freeze_layers blocks and, with freeze_embeddings, the embeddings."""
    if settings.freeze_layers > len(model.blocks):
        raise UserError(
            f"freeze_layers={settings.freeze_layers}: the model has {len(model.blocks)} blocks"
        )
    frozen = list(model.blocks[: settings.freeze_layers])
    if settings.freeze_embeddings:
        frozen += [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    for module in frozen:
        module.requires_grad_(False)


def choose_attention(model, settings, distributed, train_blocks, dtype):
    """Let the model use the kernel for packed segments where it gives what the mask gives. Not with
    `deterministic`: it sums gradients in no fixed order."""
    if settings.deterministic:
        return
    model.use_varlen_attention = has_varlen_attention(
        distributed.device, dtype, model.config.head_dim
    )
    on_cuda = distributed.device.startswith("cuda")
    is_slow = settings.dropout > 0 or not model.use_varlen_attention
    if distributed.is_main and train_blocks.isolated and on_cuda and is_slow:
        why = "has no dropout" if model.use_varlen_attention else "does not fit here"
        print(f"attention within segments uses a mask: PyTorch's faster kernel {why}")


def choose_number_format(settings, model, objective, data, distributed, dtype):
    """The dtype to train in: `dtype`, or on a Mac's GPU with dtype=auto the one that a few steps
    show to be the fastest. Sets `dtype` and `compile` of the settings then, so that a resumed run
    continues with the same, and prints why. GRPO stays with `dtype`: the model would have to answer
    before a step could be tried."""
    device = distributed.device
    is_open = device.split(":")[0] in MEASURED and settings.dtype == "auto"
    if not is_open or settings.stage == "grpo":
        return dtype
    batch = next(evaluation_batches(data.train, settings.batch_size, 1, device=device))

    def step_loss(model):
        total, count = objective(model, batch)
        return total / max(count, 1)

    def attempt(number_format):
        return try_step(model, step_loss, device, number_format)

    model.eval()  # without dropout: all formats compute the same
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    chosen, lines = fastest([Format(kind, settings.compile) for kind in kinds], attempt)
    may_compile = settings.origin("compile") == "default"
    if may_compile and _minutes(settings, attempt(chosen).seconds) > COMPILE_MINUTES:
        chosen, more = fastest([chosen, Format(chosen.dtype, compile=True)], attempt)
        lines += more[1:]
    model.train()
    objective.metric_sums()  # of these steps: discarded
    origin = f"measured on {device}"
    settings.set("dtype", str(chosen.dtype).removeprefix("torch."), origin)
    settings.set("compile", chosen.compile, origin)
    print(f"number format: {chosen} ({'; '.join(lines)}); --dtype=… overrules", flush=True)
    return chosen.dtype


def _minutes(settings, seconds):
    """How long a run takes whose forward and backward pass of one batch takes so many seconds."""
    steps = settings.max_iters * settings.gradient_accumulation_steps
    return min(settings.max_minutes or math.inf, steps * seconds / 60)
