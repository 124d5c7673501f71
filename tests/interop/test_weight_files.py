"""Weights from pickles and from several files: what torch.load gives, and nothing is executed."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from test_hf_import import KNOWN, TOKENS, gpt2, logits, randomized, rope_model
from test_huggingface import make, save

from minigpt.common.errors import UserError
from minigpt.interop.hf_import import load
from minigpt.interop.weight_files import read_shapes, read_tensors, weight_files


@pytest.fixture(scope="module")
def theirs():
    return randomized(rope_model("Llama", tie_word_embeddings=True))


@pytest.fixture
def name(theirs, tmp_path):
    """hf:FOLDER with config.json and a vocabulary, without weights."""
    theirs.config.save_pretrained(tmp_path)
    return save(tmp_path, make(added=["<|endoftext|>"]))


def write_parts(folder, tensors, parts=2):
    """pytorch_model-00001-of-0000N.bin … and their index."""
    where = {}
    for i in range(parts):
        file = f"pytorch_model-{i + 1:05}-of-{parts:05}.bin"
        chosen = dict(list(tensors.items())[i::parts])
        torch.save(chosen, folder / file)
        where |= dict.fromkeys(chosen, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("kind", ["one file", "several", "before torch 1.6", "half precision"])
def test_the_logits_of_a_pickle(theirs, name, tmp_path, kind):
    tensors = theirs.state_dict()
    if kind == "several":
        write_parts(tmp_path, tensors)
    elif kind == "half precision":
        torch.save({n: w.bfloat16() for n, w in tensors.items()}, tmp_path / "pytorch_model.bin")
    else:
        is_old = kind == "before torch 1.6"
        path = tmp_path / "pytorch_model.bin"
        torch.save(tensors, path, _use_new_zipfile_serialization=not is_old)
    found, wanted = (logits(m, TOKENS)[..., :KNOWN] for m in (load(name).model, theirs))
    atol = 1e-4 if kind != "half precision" else 0.5
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


def test_masks_of_an_old_gpt2(tmp_path):
    theirs = randomized(gpt2())
    theirs.config.save_pretrained(tmp_path)
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 40, 40).bool() for i in range(2)}
    torch.save(theirs.state_dict() | masks, tmp_path / "pytorch_model.bin")
    found = logits(load(save(tmp_path, make(added=["<|endoftext|>"]))).model, TOKENS)[..., :KNOWN]
    torch.testing.assert_close(found, logits(theirs, TOKENS)[..., :KNOWN], atol=1e-4, rtol=0)


def test_safetensors_are_preferred(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert weight_files(tmp_path) == ["pytorch_model.bin"]
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == ["model.safetensors"]
    assert read_shapes(tmp_path) == {"a": (3,)} and read_tensors(tmp_path)["a"].sum() == 3


class Attack:
    """A pickle that writes a file when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_executes_nothing(tmp_path):
    bait = tmp_path / "written"
    for number, kind in enumerate(
        (torch.save, lambda what, path: path.write_bytes(pickle.dumps(what)))
    ):
        kind({"a": Attack(bait)}, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match=r"pytorch_model\.bin: cannot be read as weights") as e:
            read_shapes(tmp_path)
        assert "\n" not in str(e.value) and not bait.exists(), number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "expected tensors by their names"),
        ({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.int64)}, "b: expected floating"),
        ({"a": "text"}, "a: expected floating"),
        ({"state_dict": {"a": torch.zeros(2)}}, "state_dict: expected floating"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "a: expected floating"),  # of four bytes
    ],
)
def test_what_holds_no_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        read_shapes(tmp_path)


def test_damaged_and_missing_pickles(tmp_path):
    write_parts(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(3)})
    assert read_shapes(tmp_path) == {"a": (2,), "b": (3,)}
    part = tmp_path / "pytorch_model-00002-of-00002.bin"
    part.write_bytes(part.read_bytes()[:300])
    with pytest.raises(UserError, match=r"00002-of-00002\.bin: cannot be read as weights"):
        read_shapes(tmp_path)
    part.unlink()
    with pytest.raises(UserError, match=r"00002-of-00002\.bin: missing"):
        read_shapes(tmp_path)
    index = tmp_path / "pytorch_model.bin.index.json"
    for strange in ("../pytorch_model.bin", "/etc/passwd", "model.safetensors", 7):
        index.write_text(json.dumps({"weight_map": {"a": strange}}), encoding="utf-8")
        with pytest.raises(UserError, match=r"expected the name of a \.bin file"):
            read_shapes(tmp_path)
