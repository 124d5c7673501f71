"""The training loop, run as its user runs it: resumed = uninterrupted, and every way to go wrong.

Most runs happen inside the test's own process, for speed; those that are killed are forked from it.
"""

import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forks import forked, needs_fork
from safetensors.torch import load_file

from minigpt.common.errors import UserError
from minigpt.models import checkpoint
from minigpt.training import summary, trainer
from minigpt.training.objectives import next_token as objectives
from minigpt.training.trainer import Trainer

TINY = """
    --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --batch_size=4 --dropout=0.1
    --gradient_accumulation_steps=2 --warmup_iters=2 --max_iters=20 --eval_interval=10
    --eval_iters=2 --log_interval=1 --sample_prompt=ab --sample_tokens=4 --device=cpu
"""


def sentences(n_blocks, seed):
    """Tokens and masks (n_blocks, 32) of two pieces each that count up in steps of their own, so
    that there is something to learn; the last pieces end in EOT and padding."""
    dice = np.random.default_rng(seed)
    tokens = np.full((n_blocks, 32), 257)
    mask = np.zeros((n_blocks, 32), np.uint8)
    for row, marks in zip(tokens, mask, strict=True):
        for start, length in ((0, 14), (14, 15)):
            first, step = dice.integers(97, 110), dice.integers(1, 4)
            row[start : start + length] = (first + step * np.arange(length)) % 128
            marks[start : start + length] = 1
            marks[start] = 2
        row[29], marks[29], marks[30] = 256, 1, 2
    return tokens, mask


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_blocks, byte_tokenizer):
    folder = tmp_path_factory.mktemp("data") / "blocks"
    return write_blocks(folder, byte_tokenizer, sentences(24, 1), sentences(6, 2))


@pytest.fixture(scope="module")
def tiny(dataset, byte_tokenizer):
    """The flags of a tiny run; it lacks an --out_dir."""
    return [*TINY.split(), f"--dataset={dataset}", f"--tokenizer={byte_tokenizer.name}"]


@pytest.fixture
def train(monkeypatch):
    """train(*flags): train.py's main() in this process; .module is the module."""
    module = importlib.import_module("train")
    # Measurements of the machine, on which no test here depends.
    monkeypatch.setattr(module, "peak_flops", lambda *words: None)
    monkeypatch.setattr(summary, "matmul_flops", lambda *words: 1e12)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
        module.main()

    run.module = module
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_flush_denormal(False)


def at_step(monkeypatch, step, act):
    """Have act() called once, when `step` steps are done and the next one begins."""
    train_step, due = Trainer.train_step, [True]

    def patched(trainer):
        if trainer.state.step == step and due:
            due.clear()
            act()
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", patched)


def kill():
    """End this process at once: nothing can be tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def log_of(folder, *without):
    """The lines of log.jsonl, without what depends on the clock."""
    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    return [
        {name: value for name, value in record.items() if name not in ("minutes", "rate", *without)}
        for record in records
    ]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def same_bits(one, two):
    """Whether two nests of dicts, lists and tensors are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_bits(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same_bits, one, two))
    return one == two


def assert_same_run(one, two):
    """Losses, weights, optimizer and position are equal to the bit."""
    assert log_of(one) == log_of(two)
    for part in (one, one / "best"):
        assert same_bits(weights_of(part), weights_of(two / part.relative_to(one)))
    states = [checkpoint.load_state(folder) for folder in (one, two)]
    for state in states:
        minutes, spent, reserve = (state.pop(name) for name in ("minutes", "spent", "reserve"))
        assert 0 < minutes <= spent and 0 < reserve <= spent
    assert same_bits(*states)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, run_script, tiny):
    """The 20 steps that nothing disturbed, by the command line."""
    folder = tmp_path_factory.mktemp("out") / "run"
    result = run_script("train.py", *tiny, f"--out_dir={folder}")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return folder, result.stdout


# -- a run -----------------------------------------------------------------------------------------


def test_what_a_run_says_and_leaves_behind(uninterrupted):
    folder, output = uninterrupted
    lines = [line for line in output.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines if "val loss" in line] == ["0:", "10:", "20:"]
    progress = [line for line in lines if "|" in line]
    assert len(progress) == 20
    for words in ("step     20/20", "loss ", "lr ", "tok/s", "left"):
        assert words in progress[-1]
    assert "n_layer" in output and "--n_layer" in output  # what is not default, with its origin
    names = {"config.json", "model.safetensors", "state.pt", "log.jsonl", "samples.txt", "best"}
    assert {path.name for path in folder.iterdir()} >= names
    records = log_of(folder)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 21))
    assert [r["step"] for r in records if "val_loss" in r] == [0, 10, 20]
    assert records[-1]["tokens"] == 20 * 4 * 2 * 32
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[0] == pytest.approx(math.log(320), abs=0.2)  # it knows nothing of 320 rows
    assert losses[-1] < losses[0] - 0.2
    samples = (folder / "samples.txt").read_text(encoding="utf-8")
    assert [f"step {step}: ab → " in samples for step in (0, 10, 20)] == [True] * 3
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (about["step"], about["prompt_format"]) == (20, "plain")
    assert about["val_loss"] == records[-1]["val_loss"] and about["settings"]["n_layer"] == 2


@needs_fork
def test_killed_and_resumed_is_the_run_that_was_not(
    tmp_path, train, monkeypatch, capsys, tiny, uninterrupted
):
    """20 steps = 10, saved + 3, lost by kill -9 + 10 resumed."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 13, kill)
        ((code, _),) = forked(lambda: train(*tiny, f"--out_dir={folder}"), tmp_path)
    assert code == -signal.SIGKILL
    assert log_of(folder)[-1]["step"] == 13
    assert checkpoint.load_state(folder)["step"] == 10
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 14, "lo')  # as if it had been killed while it wrote this line
    # Only where it is: all else is in the checkpoint.
    train(f"--out_dir={folder}", "--init_from=resume")
    assert f"resuming {folder} at step 10" in capsys.readouterr().out
    assert_same_run(folder, uninterrupted[0])
    samples = [path / "samples.txt" for path in (folder, uninterrupted[0])]
    assert samples[0].read_bytes() == samples[1].read_bytes()


def as_older_versions_saved(folder):
    """Give config.json and state.pt the form that they had before `shuffle` and with two knobs that
    were removed since."""
    path = folder / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    assert about["settings"].pop("shuffle") is True
    about["settings"] |= dict(if_trav=False, dpo_average=False, dpo_label_smoothing=0.0)
    path.write_text(json.dumps(about), encoding="utf-8")
    state = checkpoint.load_state(folder)
    for name in ("guard_start", "forgetting"):
        del state[name]
    torch.save(state, folder / "state.pt")


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 6), (signal.SIGTERM, 9)])
def test_stopped_and_resumed_is_the_run_that_was_not(
    tmp_path, train, monkeypatch, capsys, tiny, uninterrupted, number, step
):
    """Ctrl-C finishes the step, saves and ends well; also where an evaluation was due (10)."""
    folder = tmp_path / "run"
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), number))
    train(*tiny, f"--out_dir={folder}")
    output = capsys.readouterr().out
    assert "stopping after this step" in output
    assert f"python train.py --out_dir={folder} --init_from=resume" in output
    assert checkpoint.load_state(folder)["step"] == step + 1
    if number == signal.SIGTERM:
        as_older_versions_saved(folder)
    train(f"--out_dir={folder}", "--init_from=resume")
    assert_same_run(folder, uninterrupted[0])


def test_stopped_before_the_first_step(tmp_path, train, monkeypatch, tiny, uninterrupted):
    """A resume at step 0 continues the run; it does not discard it."""
    folder = tmp_path / "run"
    begin = Trainer.begin

    def signalled(trainer):
        trainer.stop.requested = True
        begin(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "begin", signalled)
        train(*tiny, f"--out_dir={folder}")
    assert checkpoint.load_state(folder)["step"] == 0
    (folder / "best").mkdir(exist_ok=True)
    train(f"--out_dir={folder}", "--init_from=resume")
    assert_same_run(folder, uninterrupted[0])


def test_a_second_ctrl_c_ends_at_once(tmp_path, train, monkeypatch, tiny):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 3, twice)
    with pytest.raises(KeyboardInterrupt):
        train(*tiny, f"--out_dir={tmp_path / 'run'}")
    assert checkpoint.load_state(tmp_path / "run")["step"] == 0


@pytest.fixture(scope="module")
def uneven(tmp_path_factory, write_blocks, byte_tokenizer):
    """Flags of a run without dropout on blocks that have 1 to 28 targets."""
    tokens, mask = sentences(24, 1)
    dice = np.random.default_rng(4)
    for marks in mask:
        marks[: dice.integers(1, 29)] &= 2
        marks[29] = 1
    assert len(set((mask & 1).sum(axis=1))) > 10
    folder = tmp_path_factory.mktemp("data") / "uneven"
    write_blocks(folder, byte_tokenizer, (tokens, mask), (tokens[:7], mask[:7]))
    flags = [*TINY.split(), "--dropout=0", "--max_iters=8", "--eval_interval=4"]
    return [*flags, f"--dataset={folder}", f"--tokenizer={byte_tokenizer.name}"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, uneven):
    """What one process makes of them, two batches a step."""
    folder = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *uneven, f"--out_dir={folder}"])
        importlib.import_module("train").main()
    return folder


def assert_equal_losses(one, two):
    """The lines of two logs are equal to 1e-5."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.skipif(os.name == "nt", reason="torchrun's gloo needs a POSIX system here")
def test_two_processes_are_one_with_twice_the_accumulation(tmp_path, root, uneven, one_process):
    """Started by torchrun, as a user does it."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [*uneven, "--gradient_accumulation_steps=1", f"--out_dir={tmp_path / 'two'}"]
    result = subprocess.run(
        [*launch, str(root / "train.py"), *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("step      8/8") == 1  # only the main process prints
    assert len(log_of(one_process)) == 8 + 3
    assert_equal_losses(log_of(one_process), log_of(tmp_path / "two"))
    one, two = weights_of(one_process), weights_of(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3)


@needs_fork
def test_a_killed_process_ends_the_run_which_another_number_resumes(
    tmp_path, train, monkeypatch, uneven, one_process
):
    """kill -9 of one of two; then one process continues, as if it had been alone from the start."""
    folder = tmp_path / "two"
    words = [*uneven, "--gradient_accumulation_steps=1", f"--out_dir={folder}"]
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: kill() if os.environ["RANK"] == "1" else None)
        (code, output), (killed, _) = forked(lambda: train(*words), tmp_path, world_size=2)
    assert (code, killed) == (2, -signal.SIGKILL)
    assert (
        "another process of this run has ended or hangs" in output
        and "--init_from=resume" in output
    )
    assert checkpoint.load_state(folder)["step"] == 4
    train(f"--out_dir={folder}", "--init_from=resume")
    assert_equal_losses(log_of(one_process)[-6:], log_of(folder)[-6:])


@needs_fork
@pytest.mark.parametrize("parallel, lives", [("ddp", 12), ("fsdp", 8)])
def test_twenty_kills_change_nothing(tmp_path, train, monkeypatch, uneven, parallel, lives):
    """torchrun starts the processes again, with the same command, until the run is done."""
    words = [*uneven, "--max_iters=24", "--eval_interval=12"]
    train(*words, f"--out_dir={tmp_path / 'one'}")
    folder, dice = tmp_path / "two", np.random.default_rng(7)
    words += ["--gradient_accumulation_steps=1", f"--out_dir={folder}", "--overwrite=true"]
    words += ["--save_minutes=1e-9", f"--parallel={parallel}"]  # a save after every step
    for life in range(lives):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(life))
        with monkeypatch.context() as patch:
            kill_soon(patch, dice)
            results = forked(lambda: train(*words), tmp_path, world_size=2)
        assert {code for code, _ in results} == {2, -signal.SIGKILL}, (life, results)

    assert checkpoint.load_state(folder)["step"] > 3  # no life began from the start
    assert [code for code, _ in forked(lambda: train(*words), tmp_path, world_size=2)] == [0, 0]
    assert_equal_losses(log_of(tmp_path / "one"), log_of(folder))


def kill_soon(monkeypatch, dice):
    """Have one of two processes killed when it begins one of its first four steps or saves."""
    name, count = ("train_step", "save")[dice.integers(2)], dice.integers(1, 5)
    method, victim, calls = getattr(Trainer, name), str(dice.integers(2)), []

    def deadly(trainer, *words, **options):
        calls.append(name)
        if len(calls) == count and os.environ["RANK"] == victim:
            kill()
        return method(trainer, *words, **options)

    monkeypatch.setattr(Trainer, name, deadly)


@needs_fork
def test_a_signal_to_one_process_stops_both_after_the_same_step(
    tmp_path, train, monkeypatch, uneven
):
    folder = tmp_path / "two"

    def interrupt():
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    at_step(monkeypatch, 5, interrupt)
    words = [*uneven, f"--out_dir={folder}"]
    (code, output), (other, _) = forked(lambda: train(*words), tmp_path, world_size=2)
    assert (code, other) == (0, 0) and "stopped; go on with" in output
    state = checkpoint.load_state(folder)
    assert (state["step"], state["world"], len(state["rng"])) == (6, 2, 2)


def test_steps_that_cannot_be_shared(tmp_path, train, tiny, monkeypatch):
    train(*tiny, "--max_iters=0", f"--out_dir={tmp_path / 'run'}")  # two batches a step
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"takes 2 batches, which 4 processes .* take 1 or 2"):
        train(f"--out_dir={tmp_path / 'run'}", "--init_from=resume")


# -- how long, how fast ----------------------------------------------------------------------------


def test_it_learns_a_tiny_set_by_heart(tmp_path, train, write_blocks, byte_tokenizer, tiny):
    few = sentences(4, 3)
    folder = write_blocks(tmp_path / "few", byte_tokenizer, few, few)
    train(
        *tiny,
        f"--dataset={folder}",
        f"--out_dir={tmp_path / 'run'}",
        "--gradient_accumulation_steps=1",
        "--dropout=0",
        "--learning_rate=0.01",
        "--max_iters=120",
        "--eval_interval=60",
    )
    losses = [record["val_loss"] for record in log_of(tmp_path / "run") if "val_loss" in record]
    assert losses[0] > 5 and losses[-1] < 0.25  # the first steps of its pieces are chance
    found = checkpoint.load(tmp_path / "run")
    assert found.meta["best_val_loss"] == min(losses)


def test_epochs_become_steps(tmp_path, train, tiny):
    """24 blocks in batches of 4, two a step: 3 steps an epoch; 1.5 epochs: 4.5, so 5."""
    folder = tmp_path / "run"
    words = [word for word in tiny if "max_iters" not in word]
    train(*words, f"--out_dir={folder}", "--epochs=1.5")
    assert log_of(folder)[-1]["step"] == 5
    # A number of steps said by hand goes before the epochs of a recipe or of the checkpoint.
    train(f"--out_dir={folder}", "--init_from=resume", "--max_iters=7")
    assert log_of(folder)[-1]["step"] == 7
    recipe = tmp_path / "recipe.py"
    recipe.write_text("epochs = 9\n", encoding="utf-8")
    train(recipe, *tiny, "--max_iters=2", f"--out_dir={tmp_path / 'other'}")
    assert log_of(tmp_path / "other")[-1]["step"] == 2


def test_minutes_end_a_run_and_its_schedule(tmp_path, train, tiny):
    folder = tmp_path / "run"
    words = ["--max_iters=100000", "--max_minutes=0.02", "--eval_interval=100000"]
    train(*tiny, f"--out_dir={folder}", *words)
    state = checkpoint.load_state(folder)
    assert 0.01 <= state["spent"] < 0.2 and 1 < state["step"] < 10000
    rates = [record["lr"] for record in log_of(folder) if "lr" in record]
    assert rates[-1] < 0.5 * max(rates)


def test_minutes_include_evaluations_and_samples(tmp_path, train, tiny, monkeypatch):
    """By a clock that only steps (2 s) and evaluations (9 s) move, on the first of which the run
    plans the last one."""
    clock = [0.0]

    def takes(seconds, function):
        def timed(*words):
            clock[0] += seconds
            return function(*words)

        return timed

    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Trainer, "_backward", takes(2, Trainer._backward))
    monkeypatch.setattr(Trainer, "mean_loss", takes(9, Trainer.mean_loss))
    train(*tiny, f"--out_dir={tmp_path / 'run'}", "--max_iters=100000", "--max_minutes=1")
    assert 58 <= clock[0] <= 60 + 2
    steps = [record["step"] for record in log_of(tmp_path / "run") if "val_loss" in record]
    assert steps == [0, 10, 17]  # 3 · 9 s + 17 · 2 s


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear"])
def test_the_learning_rate_that_is_logged_is_the_one_by_hand(tmp_path, train, tiny, schedule):
    train(
        *tiny,
        f"--out_dir={tmp_path / 'run'}",
        f"--schedule={schedule}",
        "--max_iters=10",
        "--warmup_iters=1",
        "--learning_rate=0.01",
        "--min_lr_ratio=0.2",
        "--decay_fraction=0.5",
    )
    rates = [record["lr"] for record in log_of(tmp_path / "run") if "lr" in record]
    for step, rate in enumerate(rates):
        warmup = min(1, (step + 1) / 2)  # --warmup_iters=1 of 10 steps
        cosine = 0.6 + 0.4 * math.cos(math.pi * step / 10)
        wsd = 1 if step <= 5 else 1 - 0.8 * (step - 5) / 5
        linear = 1 - 0.8 * step / 10
        scale = {"cosine": cosine, "wsd": wsd, "linear": linear}[schedule]
        assert rate == pytest.approx(0.01 * warmup * scale)


def test_patience(tmp_path, train, tiny, capsys):
    """A run that cannot improve (learning rate 0): one best evaluation, then two without."""
    train(
        *tiny, f"--out_dir={tmp_path}/run", "--learning_rate=0", "--eval_interval=3", "--patience=2"
    )
    assert [r["step"] for r in log_of(tmp_path / "run") if "val_loss" in r] == [0, 3, 6]
    assert "stopping early" in capsys.readouterr().out
    assert checkpoint.read_meta(tmp_path / "run" / "best")["step"] == 0
    before = log_of(tmp_path / "run")
    train(f"--out_dir={tmp_path}/run", "--init_from=resume")  # it has ended, and says so again
    assert "stopping early" in capsys.readouterr().out
    assert log_of(tmp_path / "run") == before
    train(f"--out_dir={tmp_path}/run", "--init_from=resume", "--patience=3")
    assert [r["step"] for r in log_of(tmp_path / "run") if "val_loss" in r] == [0, 3, 6, 9]


def test_a_folder_that_cannot_be_written(tmp_path, train, tiny):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot be written"):
            train(*tiny, f"--out_dir={place}")
    assert (tmp_path / "file").read_text() == "mine"


def test_samples_of_steps_that_are_taken_again_go(tmp_path, train, tiny):
    """A crash between an evaluation and its checkpoint leaves a sample of a later step."""
    run = tmp_path / "run"
    train(*tiny, f"--out_dir={run}", "--max_iters=2", "--eval_interval=2", "--sample_prompt=黄河")
    whole = (run / "samples.txt").read_text(encoding="utf-8")
    assert [line[:7] for line in whole.splitlines() if line.startswith("step")] == [
        "step 0:",
        "step 2:",
    ]
    whole = whole.replace("→", "→\r\x1c\u2028").encode()  # line breaks that a model may write
    (run / "samples.txt").write_bytes(whole + "step 4: 黄河 → 大\n\n海\n\n".encode())
    train(f"--out_dir={run}", "--init_from=resume")
    assert (run / "samples.txt").read_bytes() == whole


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # only says that it is slow
def test_float16_skips_a_step_whose_gradient_overflows(tmp_path, train, monkeypatch, tiny):
    """One table's gradient is beyond all numbers: no weight moves, whichever optimizer has it."""
    module, models, before = train.module, [], []
    make = module.make_optimizers

    def make_optimizers(model, *words):
        models.append(model)
        return make(model, *words)

    def overflow():
        before.extend(weight.detach().clone() for weight in models[0].parameters())
        hook = models[0].wte.weight.register_hook(lambda grad: grad * math.nan)
        at_step(monkeypatch, 6, lambda: check(hook))

    def check(hook):
        hook.remove()
        assert all(map(torch.equal, before, models[0].parameters()))

    monkeypatch.setattr(module, "make_optimizers", make_optimizers)
    monkeypatch.setattr(module, "pick_dtype", lambda *words: torch.float16)
    at_step(monkeypatch, 5, overflow)
    train(*tiny, f"--out_dir={tmp_path / 'run'}", "--max_iters=10")
    state = checkpoint.load_state(tmp_path / "run")
    assert before and state["scaler"]["scale"] < 2**16  # halved, and the run went on
    assert not all(map(torch.equal, before, models[0].parameters()))
    train(f"--out_dir={tmp_path / 'run'}", "--init_from=resume", "--max_iters=12")
    assert [r["step"] for r in log_of(tmp_path / "run") if "loss" in r] == list(range(1, 13))


# -- from another run ------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path, uninterrupted):
    """A copy of the uninterrupted run, to start from or to break."""
    return shutil.copytree(uninterrupted[0], tmp_path / "base")


def test_starting_from_a_run_inherits_its_shape(tmp_path, train, dataset, base, capsys):
    train(
        f"--init_from={base}",
        f"--out_dir={tmp_path / 'next'}",
        f"--dataset={dataset}",
        "--max_iters=0",
        "--sample_tokens=2",
    )
    assert f"starting from {base} at step 20" in capsys.readouterr().out
    found = checkpoint.load(tmp_path / "next")
    assert (found.model.config.n_layer, found.model.config.n_embd) == (2, 32)
    assert same_bits(weights_of(tmp_path / "next"), weights_of(base))
    # Evaluated before the first step, without dropout: the loss that the base ended with.
    before = [record["val_loss"] for record in log_of(base) if "val_loss" in record][-1]
    assert found.meta["val_loss"] == pytest.approx(before, rel=1e-5)


def test_freezing_leaves_the_lower_layers_bit_for_bit(tmp_path, train, tiny, base):
    words = [*tiny, f"--init_from={base}", "--max_iters=5", "--freeze_layers=1"]
    train(*words, "--freeze_embeddings=true", f"--out_dir={tmp_path / 'next'}")
    before, after = weights_of(base), weights_of(tmp_path / "next")
    for name in before:
        frozen = name.startswith(("wte", "blocks.0."))
        assert torch.equal(before[name], after[name]) is frozen, name
    train(*words, f"--out_dir={tmp_path / 'other'}")
    assert not torch.equal(before["wte.weight"], weights_of(tmp_path / "other")["wte.weight"])
    with pytest.raises(UserError, match="freeze_layers=3: the model has 2 blocks"):
        train(*words, "--freeze_layers=3", f"--out_dir={tmp_path / 'third'}")


def test_what_is_changed_on_resuming_takes_effect(train, base):
    """Ten more steps at learning rate 0: nothing moves, though the saved optimizer knew another."""
    before = weights_of(base)
    words = [f"--out_dir={base}", "--init_from=resume", "--max_iters=30"]
    train(*words, "--learning_rate=0")
    assert checkpoint.read_meta(base)["step"] == 30
    assert same_bits(weights_of(base), before)
    train(*words[:2], "--max_iters=31", "--learning_rate=0.01")
    assert not same_bits(weights_of(base), before)


def test_questions_and_answers(tmp_path, train, write_blocks, byte_tokenizer, tiny):
    """The prompt format comes with the data; the sample is then a held-out question."""
    blocks = sentences(8, 1)
    folder = write_blocks(tmp_path / "qa", byte_tokenizer, blocks, blocks, prompt_format="qa")
    words = [word for word in tiny if "sample_prompt" not in word]
    words += [f"--dataset={folder}", "--max_iters=1"]
    train(*words, f"--out_dir={tmp_path / 'run'}")
    assert checkpoint.load(tmp_path / "run").prompt_format == "qa"
    samples = (tmp_path / "run" / "samples.txt").read_text(encoding="utf-8")
    assert samples.startswith("step 0: Why? → ")
    (folder / "val.jsonl").write_text("", encoding="utf-8")  # none held out: no harm
    train(*words, f"--out_dir={tmp_path / 'other'}")


# -- what can go wrong -----------------------------------------------------------------------------


def complaint(train, *words):
    with pytest.raises(UserError) as caught:
        train(*words)
    return str(caught.value)


def test_an_init_from_that_is_not_there_says_which_command_makes_it(tmp_path, train, tiny):
    text = complaint(train, *tiny, f"--init_from={tmp_path / 'none'}", f"--out_dir={tmp_path}/run")
    assert str(tmp_path / "none") in text and "no trained run here" in text
    text = complaint(train, f"--out_dir={tmp_path / 'none'}", "--init_from=resume")
    assert str(tmp_path / "none") in text and "python train.py" in text
    assert not (tmp_path / "none").exists() and not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_unasked(train, tiny, base):
    (base / "notes.txt").write_text("mine", encoding="utf-8")
    before = (base / "model.safetensors").read_bytes()
    text = complaint(train, *tiny, f"--out_dir={base}")
    for words in (str(base), "--init_from=resume", "--out_dir", "--overwrite=true"):
        assert words in text
    assert (base / "model.safetensors").read_bytes() == before
    train(*tiny, f"--out_dir={base}", "--overwrite=true", "--max_iters=3", "--seed=5")
    assert [r["step"] for r in log_of(base) if "loss" in r] == [1, 2, 3]
    assert checkpoint.load(base).meta["step"] == 3
    assert (base / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_run_is_not_overwritten_by_what_starts_from_it(train, tiny, base):
    for start in (base, base / "best"):
        words = [f"--init_from={start}", f"--out_dir={base}", "--overwrite=true"]
        text = complaint(train, *tiny, *words)
        assert f"throw away {start}" in text and "--out_dir" in text
    assert checkpoint.load(base).meta["step"] == 20 and checkpoint.exists(base / "best")


def test_contradicting_a_checkpoint_names_every_contradiction(tmp_path, train, dataset, base):
    text = complaint(
        train,
        f"--init_from={base}",
        f"--dataset={dataset}",
        f"--out_dir={tmp_path}/next",
        "--n_layer=3",
        "--norm=layernorm",
        "--n_embd=32",
        "--tokenizer=gpt2",
    )
    lines = text.splitlines()
    assert len(lines) == 3 and all(f"contradicts {base}" in line for line in lines)
    assert "--n_layer: n_layer=3" in text and "which has 2" in text
    assert "layernorm" in text and "'rmsnorm'" in text and "gpt2" in text
    text = complaint(train, f"--out_dir={base}", "--init_from=resume", "--batch_size=3", "--seed=1")
    assert "--batch_size" in text and "--seed" in text and len(text.splitlines()) == 2
    text = complaint(train, f"--out_dir={base}", "--init_from=resume", "--freeze_layers=1")
    assert "--freeze_layers" in text


def test_data_that_changed_cannot_be_resumed(tmp_path, train, write_blocks, byte_tokenizer, tiny):
    folder = tmp_path / "data"
    write_blocks(folder, byte_tokenizer, sentences(8, 1), sentences(4, 2))
    words = [*tiny, f"--dataset={folder}", f"--out_dir={tmp_path / 'run'}"]
    train(*words, "--max_iters=2")
    write_blocks(folder, byte_tokenizer, sentences(9, 1), sentences(4, 2))
    text = complaint(train, f"--out_dir={tmp_path / 'run'}", "--init_from=resume")
    assert "on 8 blocks" in text and "there are 9" in text
    assert f"--init_from={tmp_path / 'run'}" in text


def test_a_loss_that_is_not_finite_names_batch_and_checkpoint(tmp_path, train, monkeypatch, tiny):
    folder = tmp_path / "run"
    objective, calls = objectives.next_token, []

    def next_token(model, batch):
        loss, count = objective(model, batch)
        calls.append(batch.rows.tolist())
        # Two evaluations of two batches and eleven steps of two micro-batches stand before it.
        return (loss * math.nan if len(calls) == 2 + 2 + 22 + 2 else loss), count

    monkeypatch.setattr(objectives, "next_token", next_token)
    text = complaint(train, *tiny, f"--out_dir={folder}")
    assert "step 11: the loss is nan" in text
    assert f"blocks {calls[-1]} of " in text and "train.bin" in text
    assert f"the last good checkpoint is {folder}" in text and "learning_rate" in text
    assert checkpoint.load(folder).meta["step"] == 10


def test_a_val_loss_that_is_not_finite_is_not_saved(tmp_path, train, monkeypatch, tiny):
    folder = tmp_path / "run"
    objective, evaluated = objectives.next_token, []

    def next_token(model, batch):
        loss, count = objective(model, batch)
        if not torch.is_grad_enabled():
            evaluated.append(count)
        return (loss * math.nan if len(evaluated) == 4 else loss), count  # the second, at step 10

    monkeypatch.setattr(objectives, "next_token", next_token)
    text = complaint(train, *tiny, f"--out_dir={folder}")
    assert "step 10: the val loss is nan" in text and f"checkpoint is {folder}" in text
    assert checkpoint.load(folder).meta["step"] == 0


@pytest.mark.parametrize("eval_interval", [1, 50])
def test_weights_that_blew_up_are_never_saved(tmp_path, train, tiny, eval_interval):
    """A learning rate beyond all reason, for whatever goes over first: loss, gradient, val loss."""
    folder = tmp_path / "run"
    words = ("--learning_rate=1e37", "--optimizer=adamw", f"--eval_interval={eval_interval}")
    text = complaint(train, *tiny, *words, f"--out_dir={folder}")
    assert "not finite" in text or " nan" in text or " inf" in text
    assert f"the last good checkpoint is {folder}" in text
    found = checkpoint.load(folder)
    assert all(weight.isfinite().all() for weight in found.model.parameters())
    assert math.isfinite(found.meta["val_loss"])


def test_a_full_disk_leaves_the_last_good_checkpoint(
    tmp_path, train, monkeypatch, tiny, uninterrupted
):
    """From step 13 on no file may grow beyond 20 kB, so the save at step 20 fails."""
    resource = pytest.importorskip("resource", reason="the system has no limit on file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "run"

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    at_step(monkeypatch, 13, fill)
    try:
        text = complaint(train, *tiny, f"--out_dir={folder}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be written" in text and "--init_from=resume" in text
    assert checkpoint.load_state(folder)["step"] == 10
    train(f"--out_dir={folder}", "--init_from=resume")  # there is room again
    assert_same_run(folder, uninterrupted[0])


def test_values_that_no_run_can_have_are_named_together(tmp_path, train):
    wrong = {
        "batch_size": 0,
        "gradient_accumulation_steps": -1,
        "eval_interval": 0,
        "log_interval": 0,
        "eval_iters": 0,
        "max_iters": -1,
        "seed": -5,
        "epochs": 0,
        "max_minutes": 0,
        "dropout": 1.0,
        "beta1": 1.0,
        "learning_rate": -1,
        "min_lr_ratio": 1.5,
        "freeze_layers": -1,
    }
    words = [f"--{name}={value}" for name, value in wrong.items()]
    lines = complaint(train, *words, f"--out_dir={tmp_path / 'run'}").splitlines()
    assert len(lines) == len(wrong)
    for name in wrong:
        (line,) = (line for line in lines if line.startswith(f"--{name}: {name}="))
        assert "expected" in line


def test_an_impossible_shape_or_machine(tmp_path, train, tiny):
    text = complaint(train, *tiny, f"--out_dir={tmp_path / 'run'}", "--n_kv_head=3", "--n_layer=0")
    assert "n_layer=0" in text
    text = complaint(train, *tiny, f"--out_dir={tmp_path / 'run'}", "--n_kv_head=3")
    assert "n_kv_head=3" in text
    text = complaint(train, *tiny, f"--out_dir={tmp_path / 'run'}", "--device=cuda:9")
    assert "device=cuda:9" in text and "cpu" in text
    text = complaint(train, *tiny, f"--out_dir={tmp_path / 'run'}", "--dtype=bfloat16")
    assert "dtype=bfloat16" in text
    assert not (tmp_path / "run").exists()


def test_a_run_of_more_than_a_day_says_so(tmp_path, train, monkeypatch, tiny, capsys):
    monkeypatch.setattr(summary, "matmul_flops", lambda *words: 1e6)  # a very slow machine
    at_step(monkeypatch, 0, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(*tiny, "--max_iters=100000", f"--out_dir={tmp_path / 'run'}")
    output = capsys.readouterr().out
    note = next(line for line in output.splitlines() if "days" in line)
    assert "days" in note and "config/cpu_small.py" in note and "--max_minutes" in note
    # Operations of all tokens at 0.6 of 1e6 a second.
    matrices = 2 * (32 * 96 + 32 * 32 + 32 * 256 + 128 * 32)
    share = 28 / 32  # of the tokens are targets: all but two beginnings and two of padding
    flops = 6 * (matrices + share * 320 * 32) + 12 * 2 * 32 * 32
    days = flops * 100000 * 4 * 2 * 32 / 0.6e6 / 86400
    assert f"{days:.1f} days" in note
    assert output.index(note) < output.index("step      1/")


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (dict(batch_size="many"), 'settings: batch_size="many": expected int'),
        (dict(batch_size=-3), "batch_size=-3: expected at least 1"),
        (dict(optimizer="magic"), 'settings: optimizer="magic": expected muon | adamw'),
    ],
)
def test_settings_from_anywhere(train, tiny, base, facts, says):
    path = base / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    about["settings"] |= facts
    path.write_text(json.dumps(about), encoding="utf-8")
    text = complaint(train, f"--out_dir={base}", "--init_from=resume", "--max_iters=30")
    assert says in text and str(base) in text


@pytest.mark.parametrize("line", ['{"step": []}', "{}", "[}", '{"step": 1e999}'])
def test_a_log_from_anywhere(train, tiny, base, line):
    path = base / "log.jsonl"
    path.write_text(path.read_text() + line + "\n")
    text = complaint(train, f"--out_dir={base}", "--init_from=resume", "--max_iters=30")
    assert "log.jsonl" in text and "train.py did not write this" in text
