"""DPO: the loss against trl's and by hand, the reference's file, and runs of train.py with it."""

import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from forks import forked, needs_fork
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_run import run_here, save_run

from data_utils import Batches, Blocks, evaluation_batches
from minigpt.common.errors import UserError
from minigpt.evaluation.perplexity import block_perplexity
from minigpt.models import checkpoint
from minigpt.training import losses
from minigpt.training.distributed import Distributed
from minigpt.training.objectives.dpo import (
    DPO,
    PairBatch,
    Pairs,
    add_reference,
    row_sums,
    target_logprobs,
)
from minigpt.training.trainer import Trainer
from model import GPT, GPTConfig

EOT, PAD, MARK = 256, 257, 258


def rows(n_pairs, seed, block_size=32):
    """(tokens, mask) of n_pairs pairs: a prompt, and two answers of unlike lengths with EOT."""
    dice = np.random.default_rng(seed)
    tokens = np.full((2 * n_pairs, block_size), PAD)
    mask = np.zeros(tokens.shape, np.uint8)
    for i in range(n_pairs):
        prompt = [*dice.integers(97, 123, dice.integers(1, 9)), MARK]
        for row in (2 * i, 2 * i + 1):
            # A good answer counts up, a bad one counts down.
            steps = np.arange(dice.integers(1, 9)) * (1 if row % 2 == 0 else -1)
            ids = [*prompt, *(100 + steps), EOT]
            tokens[row, : len(ids)] = ids
            mask[row, len(prompt) : len(ids)] = 1
    mask[:, 0] |= 2
    return tokens, mask


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory, write_blocks, byte_tokenizer):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    about = dict(layout="pad", prompt_format="qa", kind="preferences")
    return write_blocks(folder, byte_tokenizer, rows(20, 1), rows(6, 2), **about)


@pytest.fixture
def own_folder(tmp_path, pairs_folder):
    """A copy of the pairs, without the files of other tests' references."""
    folder = tmp_path / "pairs"
    return shutil.copytree(pairs_folder, folder, ignore=shutil.ignore_patterns("reference-*"))


@pytest.fixture(scope="module")
def models(tiny_model):
    """A model, and another one that is its reference."""
    return [tiny_model(seed, padded_vocab_size=320, block_size=32) for seed in (1, 2)]


def by_rows(model, pairs):
    """The log-probabilities of each row's targets, straight from all logits: [(n,) float64, …]."""
    found = []
    for ids, marks in zip(pairs.tokens, pairs.mask, strict=True):
        x = torch.from_numpy(ids.astype(np.int64))[None]
        with torch.no_grad():
            logprobs = model.logits(model(x))[0].double().log_softmax(-1)
        places = np.flatnonzero(marks & 1)
        found.append(logprobs[places - 1, x[0, places]])
    return found


def alone():
    """The only process of a run, on the CPU."""
    distributed = Distributed()
    distributed.start("cpu")
    return distributed


def referred(folder, reference, split="train"):
    pairs = Pairs(folder, split)
    add_reference(pairs, "hash", torch.float32, lambda: reference, alone())
    return pairs


def metrics_of(objective):
    """What one process shows after the batches so far."""
    return objective.metrics(objective.metric_sums().tolist())


# -- pairs -----------------------------------------------------------------------------------------


def test_a_batch_keeps_pairs_together_and_drops_padding(own_folder, models):
    pairs = referred(own_folder, models[1])
    expected = by_rows(models[1], pairs)
    batch = pairs.batch(np.array([7, 3]))
    assert batch.rows.tolist() == [14, 15, 6, 7] and batch.count == 2
    width = batch.x.shape[1]
    assert width == 16 or (pairs.lengths[batch.rows] > 16).any()
    assert np.array_equal(batch.x, pairs.tokens[batch.rows][:, :width])
    assert not (pairs.tokens[batch.rows][:, width:] != PAD).any()
    assert len(batch.reference) == len(batch.target_indices) == int(batch.loss_mask.sum())
    wanted = torch.cat([expected[row] for row in batch.rows])
    torch.testing.assert_close(batch.reference.double(), wanted, atol=1e-5, rtol=1e-5)


def test_an_epoch_has_every_pair_once(own_folder, models):
    pairs = referred(own_folder, models[1])
    batches = Batches(pairs, 4, seed=5)
    seen = [batches[i].rows for i in range(5)]
    assert batches.per_epoch == 5
    assert sorted(np.concatenate(seen).tolist()) == list(range(40))
    assert all((r[0::2] % 2 == 0).all() and (r[1::2] == r[0::2] + 1).all() for r in seen)
    assert [r.tolist() for r in seen] != [sorted(r.tolist()) for r in seen]
    val = list(evaluation_batches(pairs, 8))
    assert [batch.count for batch in val] == [8, 8, 4]


def test_what_cuda_pads_counts_for_nothing(own_folder, models):
    """Batch.padded() is what a GPU gets: longer `at`, the same loss and metrics."""
    pairs = referred(own_folder, models[1])
    batch = pairs.batch(np.arange(4))
    padded = batch.padded(64)
    extra = len(padded.target_indices) - len(batch.target_indices)
    assert extra > 0
    padded.reference = torch.nn.functional.pad(batch.reference, (0, extra))
    one, two = DPO(0.3), DPO(0.3)
    torch.testing.assert_close(one(models[0], batch)[0], two(models[0], padded)[0])
    assert metrics_of(one) == pytest.approx(metrics_of(two))


# -- the loss --------------------------------------------------------------------------------------


def test_logprobs_in_any_number_of_chunks(own_folder, models, monkeypatch):
    pairs = Pairs(own_folder, "train")
    batch = pairs.batch(np.arange(6))
    whole = target_logprobs(models[0], batch)
    expected = torch.cat([by_rows(models[0], pairs)[row] for row in batch.rows])
    torch.testing.assert_close(whole.double(), expected, atol=1e-5, rtol=1e-5)
    gradient = torch.autograd.grad(whole.square().sum(), models[0].lm_head.weight)
    monkeypatch.setattr(losses, "FEWEST_ROWS", 1)
    monkeypatch.setattr(losses, "CPU_CHUNK", 7 * 320)
    chunked = target_logprobs(models[0], batch)
    torch.testing.assert_close(chunked, whole)
    again = torch.autograd.grad(chunked.square().sum(), models[0].lm_head.weight)
    torch.testing.assert_close(again, gradient, atol=1e-3, rtol=1e-4)


def batch_of_changes(chosen, rejected, n_rows=320):
    """A PairBatch for which a model of even probabilities has these changes against the
    reference, a number a token."""
    tokens = np.full((2, 16), 65)
    mask = np.zeros((2, 16), np.uint8)
    mask[0, 2 : 2 + len(chosen)] = 1
    mask[1, 2 : 2 + len(rejected)] = 1
    batch = PairBatch.of(tokens, mask, False)
    batch.count = 1
    batch.reference = -math.log(n_rows) - torch.tensor([*chosen, *rejected])
    return batch


@pytest.fixture(scope="module")
def even(tiny_model):
    model = tiny_model(padded_vocab_size=320)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # also wte: every token is equally likely everywhere
    return model


def test_loss_and_metrics_by_hand(even):
    """Sums 1.2 and 0.4: beta 2 makes the margin 1.6."""
    objective = DPO(beta=2.0)
    loss, count = objective(even, batch_of_changes([0.2, 0.4, 0.6], [-0.1, 0.5]))
    assert count == 1 and loss.item() == pytest.approx(math.log(1 + math.exp(-1.6)), abs=1e-5)
    metrics = metrics_of(objective)
    assert metrics["margin"] == pytest.approx(1.6, abs=1e-5) and metrics["accuracy"] == 1
    kl = sum(math.exp(change) - 1 - change for change in (0.2, 0.4, 0.6)) / 3  # the chosen's alone
    assert metrics["kl"] == pytest.approx(kl, abs=1e-5)
    assert metrics_of(objective) == {}  # each batch counts once


def test_metrics_are_means_over_pairs_and_tokens(even):
    objective = DPO(beta=1.0)
    objective(even, batch_of_changes([0.5], [0.0]))
    objective(even, batch_of_changes([0.0, 0.0, 0.0], [2.0, -0.5]))
    metrics = metrics_of(objective)
    assert metrics["margin"] == pytest.approx((0.5 - 1.5) / 2, abs=1e-5)
    assert metrics["accuracy"] == 0.5
    assert metrics["kl"] == pytest.approx((math.exp(0.5) - 1.5) / 4, abs=1e-5)


def test_metrics_of_processes_are_those_of_one(even):
    batches = [batch_of_changes([0.5], [0.0]), batch_of_changes([0.1, 0.2], [0.7])]
    one, parts = DPO(), [DPO(), DPO(), DPO()]  # the third has no batch
    for batch, part in zip(batches, parts, strict=False):
        one(even, batch), part(even, batch)
    total = sum(part.metric_sums() for part in parts).tolist()
    assert DPO().metrics(total) == pytest.approx(metrics_of(one))


@given(seed=st.integers(0, 9), beta=st.floats(0.01, 5))
@settings(max_examples=10)
def test_ln_2_at_the_start_and_symmetric_gradients(pairs_folder, models, seed, beta):
    """Where the model is the reference, the loss is ln 2, and the gradients of the two answers'
    log-probabilities are −β/2 and β/2."""
    pairs = referred(pairs_folder, models[1])
    batch = pairs.batch(np.random.default_rng(seed).permutation(20)[:3])
    objective = DPO(beta)
    loss, count = objective(models[1], batch)
    assert loss.item() / count == pytest.approx(math.log(2), abs=1e-5)
    metrics = metrics_of(objective)
    assert metrics["margin"] == pytest.approx(0, abs=1e-4) and abs(metrics["kl"]) < 1e-6
    (found,) = torch.autograd.grad(loss, models[1].lm_head.weight)
    sums = row_sums(target_logprobs(models[1], batch), batch)
    by_hand = beta / 2 * (sums[1::2] - sums[0::2]).sum()
    (wanted,) = torch.autograd.grad(by_hand, models[1].lm_head.weight)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_equals_trl(tmp_path, byte_tokenizer, tiny_model):
    """The loss of trl's DPOTrainer over the same pairs on the models exported to Hugging Face."""
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from minigpt.interop.hf_export import write_hf

    shape = dict(
        padded_vocab_size=320, block_size=32, position="rope", mlp="swiglu", tie_embeddings=False
    )
    ours, theirs = [], []
    for seed in (1, 2):
        ours.append(tiny_model(seed, **shape))
        run = save_run(tmp_path / f"run{seed}", ours[-1], byte_tokenizer, "qa")
        write_hf(tmp_path / f"hf{seed}", checkpoint.load(run), "float32")
        theirs.append(AutoModelForCausalLM.from_pretrained(tmp_path / f"hf{seed}"))
    tokens, mask = rows(4, 3)
    examples = []
    for i in range(0, 8, 2):
        first, n = (int(f(np.flatnonzero(mask[i] & 1))) for f in (np.min, np.size))
        _, m = (int(f(np.flatnonzero(mask[i + 1] & 1))) for f in (np.min, np.size))
        row = tokens[i].tolist(), tokens[i + 1].tolist()
        examples.append(
            dict(
                prompt_ids=row[0][:first],
                chosen_ids=row[0][first : first + n],
                rejected_ids=row[1][first : first + m],
            )
        )

    config = trl.DPOConfig(
        str(tmp_path / "trl"),
        beta=0.3,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = trl.DPOTrainer(
        theirs[0],
        theirs[1],
        args=config,
        train_dataset=Dataset.from_list([dict(prompt="a", chosen="b", rejected="c")]),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "hf1"),
    )
    theirs[0].eval()
    with torch.no_grad():
        expected = float(trainer.compute_loss(trainer.model, trainer.data_collator(examples)))
    batch = PairBatch.of(tokens, mask, False)
    batch.reference = target_logprobs(ours[1], batch).detach()
    batch.count = 4
    loss, count = DPO(0.3)(ours[0], batch)
    assert loss.item() / count == pytest.approx(expected, abs=1e-5)


# -- the reference's file --------------------------------------------------------------------------


def test_the_reference_is_computed_once(own_folder, models):
    first = referred(own_folder, models[1])
    (path,) = own_folder.glob("reference-train-*.npy")
    again = Pairs(own_folder, "train")
    add_reference(again, "hash", torch.float32, None, alone())  # nothing is loaded: there is a file
    assert np.array_equal(first.reference, again.reference)
    wanted = torch.cat(by_rows(models[1], again))
    assert again.reference == pytest.approx(wanted.numpy(), abs=1e-5)
    path.write_bytes(path.read_bytes()[:-4])  # torn: it is computed again
    torn = referred(own_folder, models[1])
    assert np.array_equal(first.reference, torn.reference)


def test_another_base_other_pairs_or_another_dtype_is_another_file(own_folder, models):
    loaded = []

    def load():
        loaded.append(1)
        return models[1]

    def add(base="one", dtype=torch.float32):
        add_reference(Pairs(own_folder, "val"), base, dtype, load, alone())
        return len(loaded)

    assert [add(), add(), add("two"), add(dtype=torch.bfloat16), add("two")] == [1, 1, 2, 3, 3]
    data = bytearray((own_folder / "val.bin").read_bytes())
    data[2] ^= 1
    (own_folder / "val.bin").write_bytes(data)
    assert add() == 4


def test_processes_share_the_work(own_folder, models, monkeypatch):
    """Each of three computes its part; the sum is what one computes."""
    monkeypatch.setattr("minigpt.training.objectives.dpo.ROWS", 4)
    whole = referred(own_folder, models[1]).reference
    for path in own_folder.glob("reference-*"):
        path.unlink()
    parts = []
    for rank in range(3):
        pairs = Pairs(own_folder, "train")
        one = SimpleNamespace(
            rank=rank, world_size=3, is_main=rank == 0, device="cpu", sum=lambda values: values
        )
        add_reference(pairs, "hash", torch.float32, lambda: models[1], one)
        parts.append(pairs.reference)
        for path in own_folder.glob("reference-*"):
            path.unlink()
    assert np.array_equal(sum(parts), whole)
    assert all((part != 0).any() and (part == 0).any() for part in parts)


def test_a_folder_that_cannot_be_written_says_so(own_folder, models, monkeypatch):
    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"No space left.*beside the blocks"):
        referred(own_folder, models[1])
    assert not [path for path in own_folder.iterdir() if "reference" in path.name]


# -- runs ------------------------------------------------------------------------------------------

TINY = """
    --batch_size=4 --gradient_accumulation_steps=1 --max_iters=12 --eval_interval=4 --eval_iters=3
    --log_interval=1 --warmup_iters=0 --learning_rate=2e-3 --sample_tokens=4 --device=cpu
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer):
    torch.manual_seed(7)
    model = GPT(GPTConfig(320, 32, n_layer=2, n_head=2, n_embd=32))
    return save_run(tmp_path_factory.mktemp("base") / "sft", model, byte_tokenizer, "qa")


@pytest.fixture(scope="module")
def guard_folder(tmp_path_factory, write_blocks, byte_tokenizer):
    """Ordinary blocks: of text that counts up."""
    dice = np.random.default_rng(3)
    tokens = 97 + (dice.integers(0, 20, (8, 1)) + np.arange(32)) % 26
    blocks = tokens, np.ones((8, 32), np.uint8)
    return write_blocks(tmp_path_factory.mktemp("guard") / "sft", byte_tokenizer, blocks, blocks)


@pytest.fixture
def flags(own_folder, base):
    """What a tiny run needs but its --out_dir."""
    recipe = str(ROOT / "config" / "dpo.py")
    return [recipe, *TINY.split(), f"--dataset={own_folder}", f"--init_from={base}"] + [
        "--guard_dataset=none"
    ]


@pytest.fixture
def train():
    """train(*flags): train.py in this process; its stdout. train.fails(*flags): its one line."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*words):
        code, out, err = run_here("train.py", *words)
        assert code == 0, err
        return out

    def fails(*words):
        code, _, err = run_here("train.py", *words)
        assert code == 2, err
        return err

    run.fails = fails
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_flush_denormal(False)


def log_of(folder):
    """The lines of log.jsonl, without what depends on the clock."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    clock = ("minutes", "rate", "rollouts")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def assert_same_weights(one, two, **close):
    one, two = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, weight in one.items():
        if close:
            torch.testing.assert_close(weight, two[name], **close)
        else:
            assert torch.equal(weight, two[name]), name


def test_a_run_starts_at_ln_2_and_learns_to_prefer(tmp_path, train, flags, own_folder, base):
    out = tmp_path / "dpo"
    output = train(*flags, f"--out_dir={out}")
    log = log_of(out)
    judged = [line for line in log if "val_loss" in line]
    assert judged[0]["val_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert [line["step"] for line in judged] == [0, 4, 8, 12]
    assert judged[-1]["val_loss"] < 0.6 and judged[-1]["accuracy"] == 1
    assert judged[-1]["margin"] > 0.1 and judged[-1]["kl"] > judged[0]["kl"]
    steps = [line for line in log if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert all({"margin", "accuracy", "kl"} <= set(line) for line in log)
    tokens = Pairs(own_folder, "train").lengths.sum() / 20
    assert log[-1]["tokens"] == 12 * 4 * round(tokens)
    line = next(line for line in output.splitlines() if line.startswith("step     12: val loss"))
    for word in ("margin", "accuracy 1.000", "kl"):
        assert word in line
    meta = checkpoint.read_meta(out)
    assert meta["reference_hash"] == checkpoint.weights_hash(base)
    assert "20 train and 6 val pairs" in output


def test_the_next_run_takes_the_reference_as_it_is(tmp_path, train, flags, own_folder):
    train(*flags, f"--out_dir={tmp_path / 'one'}", "--max_iters=1")
    files = {path: path.read_bytes() for path in own_folder.glob("reference-*")}
    assert len(files) == 2
    for path in files:
        path.write_bytes(path.read_bytes()[:-4] + np.float32(-9).tobytes())  # to know it by
    train(*flags, f"--out_dir={tmp_path / 'two'}", "--max_iters=1", "--dpo_beta=0.5")
    assert sorted(own_folder.glob("reference-*")) == sorted(files)
    first = [log_of(tmp_path / name)[0]["val_loss"] for name in ("one", "two")]
    assert abs(first[1] - first[0]) > 1e-3


@needs_fork
def test_killed_and_resumed_is_the_run_that_was_not(
    tmp_path, train, monkeypatch, flags, own_folder, base, guard_folder
):
    """Also where the base is gone: its log-probabilities are beside the pairs."""
    moved = shutil.copytree(base, tmp_path / "base")
    flags = [*flags, f"--init_from={moved}", f"--guard_dataset={guard_folder}"]
    flags += ["--max_forgetting=none"]
    train(*flags, f"--out_dir={tmp_path / 'whole'}")
    step = Trainer.train_step

    def killed(trainer):
        if trainer.state.step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        words = [*flags, f"--out_dir={tmp_path / 'cut'}"]
        ((code, output),) = forked(lambda: train(*words), tmp_path)
    assert code == -signal.SIGKILL, output
    assert checkpoint.load_state(tmp_path / "cut")["step"] == 4
    shutil.rmtree(moved)
    train(f"--out_dir={tmp_path / 'cut'}", "--init_from=resume")
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")
    for path in own_folder.glob("reference-*"):
        path.unlink()
    words = [f"--out_dir={tmp_path / 'cut'}", "--init_from=resume", "--max_iters=13"]
    assert "no trained run here" in train.fails(*words)
    shutil.copytree(base, moved)
    train(*words)  # and from the base it is computed again
    assert log_of(tmp_path / "cut")[-1]["step"] == 13


def test_a_base_that_has_changed_is_no_reference(
    tmp_path, train, flags, own_folder, base, byte_tokenizer
):
    moved = shutil.copytree(base, tmp_path / "base")
    out = tmp_path / "dpo"
    train(*flags, f"--init_from={moved}", f"--out_dir={out}", "--max_iters=1")
    other = checkpoint.load(moved)
    with torch.no_grad():
        other.model.wte.weight[0, 0] += 1
    save_run(moved, other.model, byte_tokenizer, "qa")
    for path in own_folder.glob("reference-*"):
        path.unlink()
    words = [f"--out_dir={out}", "--init_from=resume", "--max_iters=2"]
    assert "its weights are not those of this run's reference" in train.fails(*words)


def test_accumulated_batches_are_one_batch(tmp_path, train, flags):
    size = ["--max_iters=3"]
    train(*flags, *size, f"--out_dir={tmp_path / 'one'}", "--batch_size=6")
    parts = ["--batch_size=2", "--gradient_accumulation_steps=3"]
    train(*flags, *size, *parts, f"--out_dir={tmp_path / 'three'}")
    for one, three in zip(log_of(tmp_path / "one"), log_of(tmp_path / "three"), strict=True):
        assert one == pytest.approx(three, abs=1e-5)
    assert_same_weights(tmp_path / "one", tmp_path / "three", atol=1e-5, rtol=1e-3)


@needs_fork
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one(tmp_path, train, flags, parallel):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(*flags, "--max_iters=3", "--eval_interval=3", f"--out_dir={whole}")
    for path in (tmp_path / "pairs").glob("reference-*"):
        path.unlink()
    words = [*flags, "--max_iters=3", "--eval_interval=3", "--batch_size=2"]
    words.append(f"--parallel={parallel}")
    results = forked(lambda: train(*words, f"--out_dir={halves}"), tmp_path, world_size=2)
    assert [code for code, _ in results] == [0, 0], results
    for one, two in zip(log_of(whole), log_of(halves), strict=True):
        assert one == pytest.approx(two, abs=1e-5)
    assert_same_weights(whole, halves, atol=1e-5, rtol=1e-3)


# -- the forgetting check --------------------------------------------------------------------------


def test_a_run_that_forgets_is_stopped(tmp_path, train, flags, guard_folder):
    """At a learning rate that wrecks the language the val loss falls and the guard's perplexity
    rises: best/ stays what it was before that."""
    out = tmp_path / "dpo"
    wreck = ["--learning_rate=0.1", f"--guard_dataset={guard_folder}"]
    output = train(*flags, *wreck, f"--out_dir={out}", "--max_forgetting=1.05")
    judged = [line for line in log_of(out) if "val_loss" in line]
    assert judged[0]["forgetting"] == 1
    assert judged[-1]["forgetting"] > 1.05 and judged[-1]["step"] < 12
    assert not judged[-1]["best"] and judged[-1]["val_loss"] < judged[0]["val_loss"]
    assert "more than max_forgetting=1.05: stopping; best/ is the last good one" in output
    good = max(line["step"] for line in judged if line["best"])
    assert checkpoint.read_meta(out / "best")["step"] == good < checkpoint.read_meta(out)["step"]
    # The perplexity is that of evaluations-perplexity.py over the same blocks.
    found = block_perplexity(checkpoint.load(out).model, Blocks(guard_folder, "val"))
    assert judged[-1]["guard_perplexity"] == pytest.approx(found["perplexity"], rel=1e-4)
    ratio = judged[-1]["guard_perplexity"] / judged[0]["guard_perplexity"]
    assert judged[-1]["forgetting"] == pytest.approx(ratio, rel=1e-6)
    output = train(f"--out_dir={out}", "--init_from=resume")  # it stays stopped
    assert "more than max_forgetting=1.05: stopping" in output
    assert [line for line in log_of(out) if "val_loss" in line] == judged


def test_without_a_limit_it_only_measures(tmp_path, train, flags, guard_folder):
    out = tmp_path / "dpo"
    wreck = ["--learning_rate=0.1", f"--guard_dataset={guard_folder}"]
    train(*flags, *wreck, f"--out_dir={out}", "--max_forgetting=none")
    last = log_of(out)[-1]
    assert last["step"] == 12 and last["forgetting"] > 1.05


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init_from=scratch"], "init_from=scratch: expected the folder of a run that answers"),
        (["--stage=lm"], "holds preferences, only for --stage=dpo"),
        (["--dpo_beta=0"], "expected more than 0"),
        (["--max_forgetting=1"], "expected more than 1, or none"),
    ],
)
def test_what_cannot_be(tmp_path, train, flags, words, message):
    if "--stage=lm" in words:  # without recipe and guard
        flags = [word for word in flags if "dpo.py" not in word and "guard" not in word]
    assert message in train.fails(*flags, *words, f"--out_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_ordinary_blocks_and_another_prompt_format(
    tmp_path, train, flags, guard_folder, base, byte_tokenizer
):
    out = f"--out_dir={tmp_path / 'out'}"
    assert "holds no preference pairs" in train.fails(*flags, f"--dataset={guard_folder}", out)
    plain = checkpoint.load(base).model
    plain = save_run(tmp_path / "plain", plain, byte_tokenizer, "plain")
    error = train.fails(*flags, f"--init_from={plain}", out)
    assert "its prompts have the format qa" in error and "plain plain: fine-tune" in error
    error = train.fails(f"--dataset={guard_folder}", "--dpo_beta=0.2", out)
    assert "dpo_beta=0.2: expected --stage=dpo with it" in error
