"""Two processes at one folder: the second is refused, a kill frees the lock, and a reader sees one
save."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny_run import run_here, save_run

from data_utils import Blocks
from minigpt.common import files, locks
from minigpt.common.errors import UserError
from minigpt.common.files import read_unchanged, set_aside, written_whole
from minigpt.common.locks import locked
from minigpt.models import checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
BEGIN = f"import sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"


def python(code):
    """A process that runs `code`; it has printed a line when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout.readline(), process.stderr.read()
    return process


def holder(lock):
    return python(
        "from minigpt.common.locks import locked\n"
        f"with locked({str(lock)!r}, 'it'):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )


# -- the lock --------------------------------------------------------------------------------------


def test_one_process_at_a_time_and_a_kill_frees_it(tmp_path):
    lock = tmp_path / "new" / ".lock"
    other = holder(lock)
    try:
        with pytest.raises(UserError) as caught, locked(lock, "out/run", "--out_dir"):
            pass
        message = str(caught.value)
        assert message.startswith("out/run: ") and f"process {other.pid}" in message
        assert message.endswith("wait, or use a different --out_dir")
        assert "\n" not in message
    finally:
        other.kill()
        other.communicate()
    assert lock.exists()  # of the killed one; nobody holds it
    with locked(lock, "out/run"):
        assert str(os.getpid()) in lock.read_text()
        with locked(lock, "out/run"):  # the same process again
            pass
        assert lock.exists()
    assert not lock.exists()


def test_what_was_made_for_a_lock_goes_with_it(tmp_path):
    with locked(tmp_path / "a" / "b" / ".lock", "it"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b" / ".lock", "it"):
        (tmp_path / "a" / "b" / "file").write_text("kept")
    assert (tmp_path / "a" / "b" / "file").read_text() == "kept"


def test_a_folder_that_the_last_holder_removes_meanwhile(tmp_path, monkeypatch):
    lock, open_lock = tmp_path / "new" / "lock", locks._open

    def remove_first(path):
        monkeypatch.undo()
        path.parent.rmdir()
        return open_lock(path)

    monkeypatch.setattr(locks, "_open", remove_first)
    with locked(lock, "it"):
        assert str(os.getpid()) in lock.read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_waits_blocks_no_other(tmp_path):
    """A wait can be hours; meanwhile other threads take and release their own locks."""
    other, waits, holders = holder(tmp_path / "theirs"), threading.Event(), []

    def report(text):
        holders.append(text)
        waits.set()

    def wait():
        with locked(tmp_path / "theirs", "it", wait=60, on_wait=report):
            pass

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        assert waits.wait(60) and f"process {other.pid}" in holders[0]
        with locked(tmp_path / "ours", "it"):
            assert thread.is_alive() and other.poll() is None
    finally:
        other.kill()
        other.communicate()
        thread.join(60)
    assert not thread.is_alive() and len(holders) == 1


def test_many_processes_never_hold_it_together(tmp_path):
    """Releasing removes the file: a process that waits must not lock the removed one."""
    code = BEGIN + (
        "import os\nfrom minigpt.common.locks import locked\n"
        f"for i in range(40):\n"
        f"    with locked({str(tmp_path / 'lock')!r}, 'it', wait=60):\n"
        f"        fd = os.open({str(tmp_path / 'inside')!r}, os.O_CREAT | os.O_EXCL)\n"
        f"        os.close(fd); os.unlink({str(tmp_path / 'inside')!r})\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in "123"]
    for run in runs:
        assert run.communicate(timeout=120)[1] == b"" and run.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_gives_a_note(tmp_path, monkeypatch, capsys, number):
    def refuse(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "lock_fd", refuse)
    monkeypatch.setattr(locks, "_warned", False)
    for text in ("one", "two"):
        with written_whole(tmp_path / "it") as partial:
            partial.write_text(text)
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and "has no locks" in output and str(tmp_path / "it") in output
    assert (tmp_path / "it").read_text() == "two" and len(list(tmp_path.iterdir())) == 1


# -- datasets --------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("".join(f"第{i}天，天下大势。\n" for i in range(200_000)), encoding="utf-8")
    return path


@pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")
def test_two_preparations_into_one_folder(tmp_path, run_script, texts, byte_tokenizer):
    data = tmp_path / "data"
    common = [f"--dataset={data}", f"--tokenizer={byte_tokenizer.name}", "--workers=1"]
    words = [str(ROOT / "data/prepare.py"), f"--input={texts}", *common, "--block_size=64"]
    first = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".data.*.partial/train.bin")) and first.poll() is None:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # so that it cannot end before the second one has begun
    small = tmp_path / "small.txt"
    small.write_text("天下大势，分久必合。\n" * 9 + "合久必分。\n" * 9, encoding="utf-8")
    second = run_script("data/prepare.py", f"--input={small}", *common, "--block_size=32")
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
    assert f"{data}: prepare.py (process {first.pid} on" in second.stderr
    assert "is writing it; wait, or use a different --dataset" in second.stderr
    assert first.wait(60) == 0, first.stderr.read()
    assert Blocks(data, "train").block_size == Blocks(data, "val").block_size == 64
    assert not list(tmp_path.glob(".data*"))


def test_blocks_of_two_runs_are_refused(tmp_path, write_blocks, byte_tokenizer):
    """As two preparations left them before there was a lock."""
    data = tmp_path / "data"
    rows = [[[65] * 8] * n for n in (2, 3)]
    for n in (0, 1):
        blocks = rows[n], [[1] * 8] * (n + 2)
        write_blocks(tmp_path / str(n), byte_tokenizer, blocks, blocks)
    (tmp_path / "0").rename(data)
    for name in ("train.bin", "train.mask"):
        (tmp_path / "1" / name).replace(data / name)
    with pytest.raises(UserError, match=r"train\.bin: 3 blocks, but meta\.json has 2") as caught:
        Blocks(data, "train")
    assert "run again: python data/prepare.py" in str(caught.value)


def test_a_reader_of_a_folder_that_is_replaced_again_and_again(
    tmp_path, write_blocks, byte_tokenizer
):
    """Its rows say which writing they are of; n + 1 rows and meta.json must fit the ids n."""
    data = tmp_path / "data"
    code = f"""
import json, shutil
from pathlib import Path
from minigpt.data.packing import replacing
for i in range(10**6):  # until it is killed
    n = i % 3
    with replacing({str(data)!r}) as folder:
        for split in ("train", "val"):
            (folder / f"{{split}}.bin").write_bytes(bytes([n, 0]) * 4 * (n + 1))
            (folder / f"{{split}}.mask").write_bytes(bytes(4) * (n + 1))
        counts = {{split: dict(blocks=n + 1, targets=n) for split in ("train", "val")}}
        facts = dict(format=1, tokenizer="t", tokenizer_hash="h", n_vocab=9, dtype="uint16")
        facts |= dict(block_size=4, layout="packed", prompt_format="plain", counts=counts)
        (folder / "meta.json").write_text(json.dumps(facts))
    if i == 0:
        print("ready", flush=True)
"""
    writer = python(code)
    try:
        seen = set()
        for i in range(10_000):
            if i >= 300 and len(seen) == 3:
                break
            blocks = Blocks(data, "train")
            n = blocks.meta["counts"]["train"]["targets"]
            assert len(blocks) == n + 1 and (blocks.tokens == n).all()
            seen.add(n)
        assert writer.poll() is None and len(seen) == 3
    finally:
        writer.kill()
        writer.communicate()


def test_a_reader_waits_for_a_swap_and_not_for_ever(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").rename(set_aside(tmp_path / "data"))
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with pytest.raises(UserError, match=r"was killed; run again: python data/prepare\.py"):
        Blocks(tmp_path / "data", "train")
    counter = iter(range(10**9))
    path = tmp_path / "file"
    with pytest.raises(UserError, match="its files change all the time"):
        read_unchanged(lambda: path.write_text("x" * next(counter)), [path])


# -- runs ------------------------------------------------------------------------------------------


def saver(folder, name):
    """A process that saves versions 0, 1, 2 … of a run, every weight filled with its number."""
    return python(f"""
import torch
from tiny_run import save_run
from minigpt.models import checkpoint
from minigpt.tokenizer.tokenizer import load_tokenizer
from model import GPT, GPTConfig
tokenizer = load_tokenizer({name!r})
model = GPT(GPTConfig(tokenizer.padded_vocab_size, 16, n_layer=1, n_head=2, n_embd=8))
for version in range(2000):
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(version)
    meta = dict(prompt_format="plain", step=version, dataset="nowhere", settings={{}})
    checkpoint.save({str(folder)!r}, model, tokenizer, meta, dict(step=version))
    if version == 0:
        print("ready", flush=True)
""")


def test_a_reader_while_a_run_is_saved_again_and_again(tmp_path, byte_tokenizer):
    folder = tmp_path / "run"
    writer = saver(folder, byte_tokenizer.name)
    try:
        seen, end = set(), time.monotonic() + 60
        while len(seen) <= 5 and time.monotonic() < end:
            found = checkpoint.load(folder)
            weights = torch.cat([w.detach().flatten() for w in found.model.parameters()])
            versions = set(weights.unique().tolist())
            assert versions == {float(found.meta["step"])}
            seen |= versions
        assert writer.poll() is None and len(seen) > 5
    finally:
        writer.kill()
        writer.communicate()
    checkpoint.load(folder)


def test_a_save_that_only_its_owner_can_finish(tmp_path, byte_tokenizer, tiny_model, monkeypatch):
    folder = save_run(tmp_path / "run", tiny_model(padded_vocab_size=320), byte_tokenizer)
    (folder / checkpoint.STAGED).mkdir()
    (folder / "config.json").replace(folder / checkpoint.STAGED / "config.json")

    def refuse(*words):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with pytest.raises(UserError, match="a save is not finished and cannot be finished from here"):
        checkpoint.load(folder)


@pytest.fixture
def train():
    """train(*flags): train.py in this process; (exit code, stderr)."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield lambda *words: run_here("train.py", *words)[::2]
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_flush_denormal(False)


@pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")
def test_two_trainings_that_resume_one_run(tmp_path, train, write_blocks, byte_tokenizer):
    rows = [[65 + i % 9 for i in range(16)]] * 8, [[3] + [1] * 15] * 8
    data = write_blocks(tmp_path / "data", byte_tokenizer, rows, rows)
    run = tmp_path / "run"
    words = f"--dataset={data} --tokenizer={byte_tokenizer.name} --block_size=16 --n_layer=1"
    words += " --n_head=2 --n_embd=8 --batch_size=2 --gradient_accumulation_steps=1 --device=cpu"
    words += " --warmup_iters=0 --eval_interval=2 --eval_iters=1 --sample_tokens=1"
    assert train(*words.split(), f"--out_dir={run}", "--max_iters=2") == (0, "")
    resume = [f"--out_dir={run}", "--init_from=resume"]
    first = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *resume, "--max_iters=100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "step" not in first.stdout.readline() and first.poll() is None:
        pass
    os.kill(first.pid, signal.SIGSTOP)
    code, output = train(*resume, "--max_iters=4")
    assert code == 2 and output.count("\n") == 1
    assert output.startswith(f"{run}: train.py (process {first.pid} on")
    with pytest.raises(UserError, match="is writing it"):  # nor does any other writer
        save_run(run, checkpoint.load(run).model, byte_tokenizer)
    first.kill()
    first.communicate()
    step = checkpoint.load_state(run)["step"]
    assert (run / checkpoint.LOCK).exists()  # of the killed one: it holds nobody up
    assert train(*resume, f"--max_iters={step + 2}") == (0, "")
    assert checkpoint.load_state(run)["step"] == checkpoint.load(run).meta["step"] == step + 2
    assert not (run / checkpoint.LOCK).exists()
