"""What the tests share: the project on sys.path, no network, few threads, and tiny stand-ins.

python -m pytest tests            # everything
python -m pytest tests/inference  # one package's
python -m pytest tests -k engine  # one part
"""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The project, and every folder of tests: tests use one another's helpers, by names that are unique.
FOLDERS = sorted(path for path in Path(__file__).resolve().parent.iterdir() if path.is_dir())
sys.path[:0] = [str(ROOT), *map(str, FOLDERS)]
os.environ["HF_HUB_OFFLINE"] = "1"  # transformers builds its models from configs alone
os.environ["PYTHONUTF8"] = "1"  # what subprocesses print is read as UTF-8, whatever the locale
os.environ["OMP_NUM_THREADS"] = "1"  # for subprocesses: tiny models gain nothing from more
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # the tests themselves are one process
    os.environ.pop(name, None)
# A shell that runs the tests in the background has Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import torch
from hypothesis import settings
from scripted_server import ScriptedServer

pytest.register_assert_rewrite("api_server")
torch.set_num_threads(1)
settings.register_profile("project", deadline=None)  # a busy machine is no mistake of the code
settings.load_profile("project")


@pytest.fixture(autouse=True)
def subnormal_floats():
    """train.py turns them off in its process, and hypothesis needs them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def csv_limit():
    """The readers of tables raise it for the whole process."""
    yield
    csv.field_size_limit(131_072)


@pytest.fixture(scope="session")
def root():
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data():
    """The folder with real text, beside the project; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real text is not here: {folder} is no folder")
    return folder


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory):
    """A trained tokenizer of its own file whose tokens are the 256 bytes: 320 embedding rows, so
    that a model with it is tiny. EOT 256, PAD 257, A 258."""
    from minigpt.tokenizer.tokenizer import save_tokenizer

    ranks = {bytes([byte]): byte for byte in range(256)}
    names = ("EOT", "PAD", "A", "IM_START", "IM_END")
    special = {name: 256 + i for i, name in enumerate(names)}
    path = tmp_path_factory.mktemp("tokenizer") / "bytes.tiktoken"
    return save_tokenizer(path, ranks, "gpt-2", special, {"trained_on": "nothing"})


@pytest.fixture(scope="session")
def write_blocks():
    """write_blocks(folder, tokenizer, train, val, **meta): a dataset folder in the block format.

    train, val: (tokens, mask), arrays (n_blocks, block_size). Written here byte by byte as the
    format says, not by the project's own writer. `meta` overrides entries of meta.json.
    """

    def write(folder, tokenizer, train, val, **meta):
        folder.mkdir(parents=True, exist_ok=True)
        counts = {}
        for split, (tokens, mask) in (("train", train), ("val", val)):
            tokens, mask = np.asarray(tokens, "<u2"), np.asarray(mask, "u1")
            (folder / f"{split}.bin").write_bytes(tokens.tobytes())
            (folder / f"{split}.mask").write_bytes(mask.tobytes())
            counts[split] = {"blocks": len(tokens), "targets": int((mask & 1).sum())}
        facts = {
            "format": 1,
            "tokenizer": tokenizer.name,
            "tokenizer_hash": tokenizer.hash,
            "n_vocab": tokenizer.n_vocab,
            "dtype": "uint16",
            "block_size": int(np.shape(train[0])[1]),
            "layout": "concat",
            "prompt_format": "plain",
            "counts": counts,
            "command": "python data/prepare.py --input=texts",
        }
        (folder / "meta.json").write_text(json.dumps({**facts, **meta}), encoding="utf-8")
        entry = {"id": "1", "question": "Why?", "answer": "So.", "title": "", "text": "Why? So."}
        (folder / "val.jsonl").write_text(json.dumps(entry) + "\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_model():
    """tiny_model(seed=0, **shape): a small GPT in eval mode, EVERY tensor of it filled at random,
    norms and biases too: what is 1 or 0 at the start would hide mistakes."""
    from model import GPT, GPTConfig

    def make(seed=0, **shape):
        small = dict(padded_vocab_size=64, block_size=16, n_layer=2, n_head=4, n_embd=32)
        model = GPT(GPTConfig(**{**small, **shape})).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        return model

    return make


@pytest.fixture(scope="session")
def run_script():
    """run_script("train.py", "--key=value", …): the script as its user runs it; waits for its end.

    Returns a CompletedProcess with text. Other keywords go to subprocess.run.
    """

    def run(script, *words, timeout=300, **keywords):
        command = [sys.executable, str(ROOT / script), *map(str, words)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            **keywords,
        )

    return run


@pytest.fixture
def no_proxy(monkeypatch):
    """No proxy between a test's client and its server."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def serve():
    """serve(action) or serve(script=…): a ScriptedServer, stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(action=None, script=None, **more):
            server = ScriptedServer(script or (lambda asked: action), **more)
            return stack.enter_context(server)

        yield start
