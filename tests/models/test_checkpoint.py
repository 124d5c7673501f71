"""Checkpoints: whole or absent, whatever interrupts a save; and every complaint on loading."""

import contextlib
import json
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import save_run

from minigpt.common import files
from minigpt.common.errors import UserError
from minigpt.interop.hf_export import write_hf
from minigpt.models import checkpoint
from minigpt.tokenizer.tokenizer import load_tokenizer
from model import GPTConfig


@pytest.fixture
def model(tiny_model, byte_tokenizer):
    return tiny_model(padded_vocab_size=byte_tokenizer.padded_vocab_size)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out" / "run"


def meta(version):
    return dict(prompt_format="plain", step=version, settings={"dataset": "data/中文"})


def save(folder, model, tokenizer, version, with_state=True):
    """A save all of whose parts carry `version`: every weight is filled with it."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(version)
    state = dict(step=version, best=float("inf"), rng=[torch.get_rng_state()], big=torch.ones(9999))
    checkpoint.save(folder, model, tokenizer, meta(version), state if with_state else None)


def version_of(folder):
    """The version that a reader finds; all parts must agree on it."""
    found = checkpoint.load(folder)
    version = found.meta["step"]
    assert all((weight == version).all() for weight in found.model.parameters())
    assert checkpoint.load_state(folder)["step"] == version
    return version


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("classic", [True, False])
def test_what_is_saved_is_loaded(folder, tiny_model, byte_tokenizer, tied, classic):
    shape = dict(position="learned", norm="layernorm", mlp="gelu", bias=True, qk_norm=False)
    shape = shape if classic else dict(n_kv_head=2, head_dim=10)
    model = tiny_model(
        padded_vocab_size=byte_tokenizer.padded_vocab_size, tie_embeddings=tied, **shape
    )
    state = dict(step=7, optimizers=[{"state": {0: {"momentum": torch.randn(3)}}}], none=None)
    checkpoint.save(folder, model, byte_tokenizer, meta(7), state)
    found = checkpoint.load(folder)
    assert found.model.config == model.config
    assert found.meta["step"] == 7 and found.prompt_format == "plain"
    assert found.meta["settings"] == {"dataset": "data/中文"}
    assert found.tokenizer.hash == byte_tokenizer.hash
    ours, theirs = dict(model.named_parameters()), dict(found.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (found.model.lm_head.weight is found.model.wte.weight) is tied
    loaded = checkpoint.load_state(folder)
    assert torch.equal(
        loaded["optimizers"][0]["state"][0]["momentum"],
        state["optimizers"][0]["state"][0]["momentum"],
    )
    # Any program reads it: weights by safetensors, the rest as JSON; tied weights stand once.
    assert load_file(folder / "model.safetensors").keys() == ours.keys()
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert about["model"]["n_embd"] == 32 and about["tokenizer_hash"] == byte_tokenizer.hash
    names = {"config.json", "model.safetensors", "state.pt", "tokenizer.tiktoken", "tokenizer.json"}
    assert {path.name for path in folder.iterdir()} == names


def test_config_json_keeps_its_keys(folder, model, byte_tokenizer):
    """Earlier versions read what this one writes, and the reverse."""
    save(folder, model, byte_tokenizer, 1)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert list(about["model"].items())[:3] == [("n_rows", 320), ("block_size", 16), ("n_layer", 2)]
    names = {"padded_vocab_size": "n_rows"}
    assert list(about["model"]) == [names.get(f.name, f.name) for f in fields(GPTConfig)]
    assert checkpoint.read_meta(folder)["model"] == asdict(model.config)
    change_config(folder, model=asdict(model.config))  # the code's own names are accepted, too
    assert version_of(folder) == 1


def test_loading_in_another_number_format(folder, model, byte_tokenizer):
    save(folder, model, byte_tokenizer, 1)
    found = checkpoint.load(folder, dtype=torch.bfloat16)
    assert {weight.dtype for weight in found.model.parameters()} == {torch.bfloat16}


def test_a_run_is_complete_in_itself(folder, model, byte_tokenizer, tmp_path):
    """Its tokenizer's file gone and the run moved elsewhere: it still loads, and saves again."""
    names = [Path(byte_tokenizer.name).with_suffix(end) for end in (".tiktoken", ".json")]
    for path in names:
        shutil.copy(path, tmp_path)
    own = load_tokenizer(str(tmp_path / names[0].name))
    save(folder, model, own, 1)
    for path in names:
        (tmp_path / path.name).unlink()
    moved = folder.rename(tmp_path / "moved")
    found = checkpoint.load(moved)
    assert found.tokenizer.encode("中文") == byte_tokenizer.encode("中文")
    save(moved, found.model, found.tokenizer, 2)
    assert version_of(moved) == 2


def test_a_vocabulary_outlives_the_run_it_came_from(folder, model, byte_tokenizer, tmp_path):
    """A run that starts from another one saves its vocabulary at every checkpoint."""
    save(tmp_path / "base", model, byte_tokenizer, 1)
    found = checkpoint.load(tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    save(folder, found.model, found.tokenizer, 2)
    assert checkpoint.load(folder).tokenizer.hash == byte_tokenizer.hash


def test_which_tokenizers_a_run_keeps(folder, tiny_model):
    """zh, whose shipped file may change with a version; not gpt2, which never does."""
    zh = load_tokenizer("zh")
    shape = dict(padded_vocab_size=zh.padded_vocab_size, n_layer=1, n_head=2, n_embd=4)
    save(folder, tiny_model(**shape), zh, 1)
    assert (folder / "tokenizer.tiktoken").read_bytes() == zh.files[0].read_bytes()
    assert checkpoint.load(folder).tokenizer.hash == zh.hash
    gpt2 = load_tokenizer("gpt2")
    other = folder.with_name("other")
    shape["padded_vocab_size"] = gpt2.padded_vocab_size
    save(other, tiny_model(**shape), gpt2, 1)
    assert {path.name for path in other.iterdir()} == {*checkpoint.FILES[:2], "config.json"}
    assert checkpoint.load(other).tokenizer.name == "gpt2"


# -- interruptions ---------------------------------------------------------------------------------


class Killed(BaseException):
    """Simulates kill -9: after it nothing more is written or cleaned up."""


def kill_at(patch, moment):
    """Have the process "killed" before the moment-th of the calls that a save makes."""
    calls = [0]

    def guarded(function):
        def call(*words, **keywords):
            calls[0] += 1
            if calls[0] > moment:
                raise Killed
            return function(*words, **keywords)

        return call

    for owner, name in (
        (checkpoint, "save_file"),
        (torch, "save"),
        (files, "sync_file"),
        (files, "sync_folder"),
        (checkpoint, "sync_folder"),
        (Path, "write_text"),
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "rmdir"),
        (os, "replace"),
        (shutil, "rmtree"),
        (shutil, "copyfile"),
    ):
        patch.setattr(owner, name, guarded(getattr(owner, name)))


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(folder, model, byte_tokenizer):
    found, moment = [], 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        save(folder, model, byte_tokenizer, 1)
        try:
            with pytest.MonkeyPatch.context() as patch:
                kill_at(patch, moment)
                save(folder, model, byte_tokenizer, 2)
            break
        except Killed:
            found.append(version_of(folder))
            assert not (folder / checkpoint.STAGED).exists()  # a reader finishes the save
            save(folder, model, byte_tokenizer, 3)  # and the next save goes through
            assert version_of(folder) == 3
            assert not list(folder.glob(".*"))
        moment += 1
    assert found == sorted(found) and set(found) == {1, 2}  # one moment decides
    assert found.count(2) >= 5  # among them kills between the moves of the files
    assert version_of(folder) == 2


def test_a_first_save_killed_is_no_run_or_a_whole_one(folder, model, byte_tokenizer):
    found = []
    for moment in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with pytest.MonkeyPatch.context() as patch:
                kill_at(patch, moment)
                save(folder, model, byte_tokenizer, 1)
            break
        except Killed:
            found.append(checkpoint.exists(folder) and version_of(folder))
    assert set(found) == {False, 1} and found == sorted(found)


def test_reading_while_a_save_is_under_way(folder, model, byte_tokenizer, monkeypatch):
    """sample.py beside train.py: the reader gets the last whole one and disturbs nothing."""
    save(folder, model, byte_tokenizer, 1)
    flush, seen = files.sync_file, []
    monkeypatch.setattr(
        files, "sync_file", lambda path: seen.append(version_of(folder)) or flush(path)
    )
    save(folder, model, byte_tokenizer, 2)
    assert seen and set(seen) == {1}
    assert version_of(folder) == 2


def test_a_reader_that_finishes_a_save_too(folder, model, byte_tokenizer, monkeypatch):
    """Both may move the staged files at once: what one has moved, the other finds gone."""
    save(folder, model, byte_tokenizer, 1)
    replace = os.replace

    def replace_after_the_other(source, target):
        replace(source, target)
        replace(source, target)  # the other was a moment faster: there is no source any more

    monkeypatch.setattr(os, "replace", replace_after_the_other)
    save(folder, model, byte_tokenizer, 2)
    assert version_of(folder) == 2


@contextlib.contextmanager
def full_disk(size):
    """Within it no file may grow beyond `size` bytes: the system itself makes the write fail. Not
    a fixture: pytest's own report, which may go to a file, is not to be caught by it."""
    resource = pytest.importorskip("resource", reason="the system has no limit on file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 3000, 60_000])  # the weights have 150 kB, state.pt 45 kB
@pytest.mark.parametrize("with_state", [True, False])
def test_a_full_disk_leaves_the_last_one_whole(folder, model, byte_tokenizer, size, with_state):
    save(folder, model, byte_tokenizer, 1)
    with full_disk(size), pytest.raises(OSError):
        save(folder, model, byte_tokenizer, 2, with_state)
    assert version_of(folder) == 1
    assert not list(folder.glob(".*"))  # and takes no room


def test_a_full_disk_while_state_or_config_is_written(
    folder, tiny_model, byte_tokenizer, monkeypatch
):
    model = tiny_model(
        padded_vocab_size=byte_tokenizer.padded_vocab_size, n_layer=1, n_embd=8
    )  # 15 kB
    save(folder, model, byte_tokenizer, 1)
    with full_disk(30_000), pytest.raises(OSError):  # the weights fit, state.pt does not
        save(folder, model, byte_tokenizer, 2)
    assert version_of(folder) == 1
    for owner, part in ((files, "sync_file"), (checkpoint, "save_file")):
        with pytest.MonkeyPatch.context() as patch:

            def fail(*words):
                raise OSError(28, "No space left on device")

            patch.setattr(owner, part, fail)
            with pytest.raises(OSError):
                save(folder, model, byte_tokenizer, 2)
        assert version_of(folder) == 1 and not list(folder.glob(".*"))
    save(folder, model, byte_tokenizer, 2)
    assert version_of(folder) == 2


# -- complaints ------------------------------------------------------------------------------------


def complaint(function, *words, **keywords):
    with pytest.raises(UserError) as caught:
        function(*words, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_config(folder, **facts):
    path = folder / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**about, **facts}), encoding="utf-8")


def test_no_run_there_says_what_makes_one(folder, model, byte_tokenizer, tmp_path, monkeypatch):
    assert not checkpoint.exists(folder)
    text = complaint(checkpoint.load, folder)
    assert str(folder) in text and "--out_dir" in text
    monkeypatch.chdir(tmp_path)
    made_by = {"out/pretrain": "train_config", "out/bbc_sft/best": "bbc_sft"}
    for run, recipe in made_by.items():  # these write there
        text = complaint(checkpoint.load, run)
        assert text.endswith(f"make one with: python train.py config/{recipe}.py")
    save(tmp_path / "out" / "mine", model, byte_tokenizer, 1)
    text = complaint(checkpoint.load, "out/typo")
    assert text.endswith(f"expected the folder of a run, such as {Path('out', 'mine')}")
    text = complaint(checkpoint.load, "out/pretrain")  # a laptop has another one
    assert text.endswith(
        f"train_config.py; or name the folder of a run, such as {Path('out/mine')}"
    )
    text = complaint(checkpoint.load, tmp_path, hint="python train.py config/x.py")
    assert f"python train.py config/x.py --out_dir={tmp_path}" in text


@pytest.mark.parametrize("text", ["{", "[]", "", '{"format": 1}'])
def test_a_broken_config(folder, model, byte_tokenizer, text):
    save(folder, model, byte_tokenizer, 1)
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert "config.json" in complaint(checkpoint.load, folder)


def test_a_shape_that_this_version_does_not_know(folder, model, byte_tokenizer):
    save(folder, model, byte_tokenizer, 1)
    change_config(folder, model={**asdict(model.config), "mystery": 3})
    text = complaint(checkpoint.load, folder)
    assert "config.json" in text and "mystery" in text


def test_another_format(folder, model, byte_tokenizer):
    save(folder, model, byte_tokenizer, 1)
    change_config(folder, format=99)
    text = complaint(checkpoint.load, folder)
    assert "format 99" in text and "reads 1" in text


def test_another_tokenizer(folder, model, byte_tokenizer):
    save(folder, model, byte_tokenizer, 1)
    change_config(folder, tokenizer_hash="0123456789abcdef")
    text = complaint(checkpoint.load, folder)
    assert "0123456789abcdef" in text and byte_tokenizer.hash in text


def test_weights_missing_or_torn(folder, model, byte_tokenizer):
    save(folder, model, byte_tokenizer, 1)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for broken in (data[:-5], data[:20], b"", b"x" * 100):
        path.write_bytes(broken)
        assert "model.safetensors" in complaint(checkpoint.load, folder)
    path.unlink()
    assert "model.safetensors" in complaint(checkpoint.load, folder)


def test_weights_of_another_model(folder, model, byte_tokenizer, tiny_model):
    save(folder, model, byte_tokenizer, 1)
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if k != "norm.weight"}, path)
    assert "norm.weight" in complaint(checkpoint.load, folder)
    save_file({**weights, "extra": torch.ones(2)}, path)
    assert "extra" in complaint(checkpoint.load, folder)
    save_file({**weights, "norm.weight": torch.ones(31)}, path)
    text = complaint(checkpoint.load, folder)
    assert "model.safetensors" in text and "norm.weight" in text and "config.json" in text


def test_no_state_no_resuming(folder, model, byte_tokenizer):
    save(folder, model, byte_tokenizer, 1, with_state=False)
    text = complaint(checkpoint.load_state, folder)
    assert "state.pt" in text and f"--init_from={folder}" in text
    (folder / "state.pt").write_bytes(b"PK rubbish")
    text = complaint(checkpoint.load_state, folder)
    assert "state.pt" in text and f"--init_from={folder}" in text


def test_discard_takes_the_run_and_leaves_the_rest(folder, model, byte_tokenizer):
    save(folder, model, byte_tokenizer, 1)
    save(folder / "best", model, byte_tokenizer, 1, with_state=False)
    for name in ("log.jsonl", "samples.txt", "notes.txt"):
        (folder / name).write_text("mine", encoding="utf-8")
    (folder / "keep").mkdir()
    (folder / "keep" / "thing").write_text("mine", encoding="utf-8")
    (folder / checkpoint.WRITING).mkdir()
    checkpoint.discard(folder)
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "keep"}
    assert (folder / "keep" / "thing").exists() and not checkpoint.exists(folder)
    checkpoint.discard(folder)  # nothing there: nothing happens
    checkpoint.discard(folder / "never")


# -- damaged files and permissions -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damaged", ["", "best"])
def test_a_torn_file_names_the_other_save(tmp_path, tiny_model, byte_tokenizer, name, damaged):
    model = tiny_model(padded_vocab_size=320)
    for folder in (tmp_path / "run", tmp_path / "run" / "best"):
        save_run(folder, model, byte_tokenizer)
    path = tmp_path / "run" / damaged / name
    path.write_bytes(path.read_bytes()[:-40])
    other = tmp_path / "run" / ("" if damaged else "best")
    with pytest.raises(UserError) as error:
        checkpoint.load(path.parent)
    assert f"the save in {other} is whole" in str(error.value)
    assert f"--init_from={other}" in str(error.value) and "\n" not in str(error.value)
    checkpoint.load(other)
    (other / name).unlink()
    with pytest.raises(UserError, match="train the run again"):
        checkpoint.load(path.parent)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_permissions_of_the_umask(tmp_path, tiny_model, byte_tokenizer, umask, mode):
    trained = checkpoint.load(
        save_run(tmp_path / "base", tiny_model(padded_vocab_size=320), byte_tokenizer)
    )
    before = os.umask(umask)
    try:
        meta = {"prompt_format": "qa", "step": 1, "settings": {}}
        state = {"step": torch.zeros(1)}
        checkpoint.save(tmp_path / "run", trained.model, byte_tokenizer, meta, state)
        write_hf(tmp_path / "hf", trained)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.glob("[rh]*/*") if path.name != checkpoint.LOCK]
    assert {"state.pt", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == dict.fromkeys(
        (path.name for path in files), oct(mode)
    )
