"""A checkpoint from anywhere: any value changed is a UserError or the same weights, and nothing is
built before the header has been compared."""

import json
import shutil
import struct
import typing

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_hf_import import gpt2, qwen3, randomized
from test_huggingface import make
from test_huggingface import save as save_vocabulary
from tiny_run import save_run

from config import train_config
from minigpt.common.errors import UserError
from minigpt.interop import hf_import, weight_files
from minigpt.models import checkpoint, shapes
from minigpt.models.lora import LoRA, attach
from model import LONGEST_BLOCK, GPTConfig

HUGE = (10**9, 2**31, 2**63, 10**30)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((0, -1, 1, 2, 3, 7, 64, *HUGE)),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=9),
    st.sampled_from(("x" * 5000, "../" * 99, "hf:gpt2", "/etc/passwd", "a\0b", "learned", "gelu")),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just([[[[[[[]]]]]]]),
)
MANY = settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture
def forbid_large(monkeypatch):
    """A tensor of more than a million elements that is allocated, not on the meta device, fails."""

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, words=(), keywords=None):
            found = function(*words, **(keywords or {}))
            if isinstance(found, torch.Tensor) and found.device.type != "meta":
                assert found.numel() <= 2**20, (function, found.shape)
            return found

    with Watch():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_model, byte_tokenizer):
    folder = tmp_path_factory.mktemp("runs") / "base"
    return save_run(
        folder,
        tiny_model(padded_vocab_size=byte_tokenizer.padded_vocab_size, n_kv_head=2),
        byte_tokenizer,
    )


@pytest.fixture(scope="module")
def adapted(base, byte_tokenizer):
    trained = checkpoint.load(base)
    attach(
        trained.model,
        LoRA(2, targets=["q", "up"], base=base, base_hash=checkpoint.weights_hash(base)),
    )
    return save_run(base.with_name("adapted"), trained.model, byte_tokenizer)


def places(value, path=()):
    """The keys that lead to every value of a JSON object."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from places(inner, (*path, key))


def changed(facts, place, value):
    facts = json.loads(json.dumps(facts))
    inner = facts
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return facts


def same_or_refused(folder, expected, load=checkpoint.load):
    try:
        found = load(folder)
    except UserError as error:
        lines = str(error).split("\n")
        assert all(0 < len(line) < 1500 for line in lines), error
        return False
    weights = dict(found.model.named_parameters())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    return True


@MANY
@given(data=st.data(), value=VALUES)
def test_any_value_of_config_json_changed(base, tmp_path_factory, forbid_large, data, value):
    facts = json.loads((base / "config.json").read_text(encoding="utf-8"))
    place = data.draw(st.sampled_from(list(places(facts))))
    _changed_copy(base, tmp_path_factory, changed(facts, place, value))


@MANY
@given(data=st.data(), value=VALUES)
def test_any_value_of_a_run_with_adapters(adapted, tmp_path_factory, forbid_large, data, value):
    facts = json.loads((adapted / "config.json").read_text(encoding="utf-8"))
    place = data.draw(st.sampled_from(list(places(facts))))
    _changed_copy(adapted, tmp_path_factory, changed(facts, place, value))


def _changed_copy(folder, tmp_path_factory, facts):
    expected = dict(checkpoint.load(folder).model.named_parameters())
    copy = folder.with_name("changed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    same_or_refused(copy, expected)


@pytest.mark.parametrize("name", [*shapes.config_to_json(GPTConfig(64))])
@pytest.mark.parametrize("value", [*HUGE, "x", 1.5, [], True, -3])
def test_every_field_of_the_shape(base, forbid_large, name, value):
    """A value of a wrong type, or beyond the weights, is named with its file."""
    facts = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if type(value) is type(facts["model"][name]) is bool:
        return
    if name in ("rope_theta", "norm_eps") and type(value) in (int, float) and value > 0:
        return  # no header can tell
    copy = base.with_name("field")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(base, copy)
    path = copy / "config.json"
    path.write_text(json.dumps(changed(facts, ("model", name), value)), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        checkpoint.read_meta(copy)
    assert f"{path}: {name}=" in str(caught.value)


def test_all_mistakes_at_once(base):
    facts = dict(n_rows=320, n_layer="two", mlp="relu", dropout=None, mystery=1)
    with pytest.raises(UserError) as caught:
        shapes.model_config(facts, "config.json")
    assert str(caught.value).split("\n") == [
        'config.json: n_layer="two": expected int',
        'config.json: mlp="relu": expected swiglu | gelu',
        "config.json: dropout=null: expected float",
        "config.json: a model with mystery, which this version does not know; use the version of "
        "MiniGPT that trained it",
    ]
    with pytest.raises(UserError, match=f"block_size=999999999: expected at most {LONGEST_BLOCK}"):
        shapes.model_config(dict(n_rows=320, block_size=999_999_999), "config.json")


def test_the_names_in_a_message_are_those_of_the_file():
    """config.json has n_rows for GPTConfig's padded_vocab_size; both are read."""
    for name in ("n_rows", "padded_vocab_size"):
        assert shapes.model_config({name: 320}, "config.json") == GPTConfig(320)
        for value, expected in (("x", "int"), (0, "at least 1")):
            with pytest.raises(UserError) as caught:
                shapes.model_config({name: value}, "config.json")
            shown = json.dumps(value)
            assert str(caught.value) == f"config.json: {name}={shown}: expected {expected}"


def test_blocks_are_counted_in_the_header(base, forbid_large, monkeypatch):
    """Before a model is built, even on the meta device."""

    def never(*words):
        raise AssertionError("built")

    monkeypatch.setattr(shapes, "_model_shapes", never)
    facts = json.loads((base / "config.json").read_text(encoding="utf-8"))["model"]
    config = shapes.model_config({**facts, "n_layer": 10**9}, "config.json")
    with pytest.raises(UserError, match=r"n_layer=1000000000: the weights have 2 blocks"):
        shapes.check_weights(config, base / "model.safetensors", "config.json")


def test_the_choices_are_those_of_the_settings():
    theirs = typing.get_type_hints(train_config)
    of_imports = {"qkv_bias", "mlp_bias", "rope_scaling"}  # only imported models need them
    for name, field in GPTConfig.__dataclass_fields__.items():
        if name != "padded_vocab_size" and name not in of_imports:
            assert field.type == theirs[name], name


# -- headers ---------------------------------------------------------------------------------------


def header(facts, data=b""):
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return struct.pack("<Q", len(text)) + text + data


BROKEN = {
    "empty": b"",
    "short": b"\x05",
    "length beyond the file": struct.pack("<Q", 2**40) + b"{}",
    "length of 2**64": b"\xff" * 8,
    "no JSON": header(b"{"),
    "nested": header(b"[" * 50_000),
    "no object": header([1]),
    "offsets beyond the file": header(
        {"a": dict(dtype="F32", shape=[9, 9], data_offsets=[0, 324])}, b"x"
    ),
    "a product that overflows": header(
        {"a": dict(dtype="F32", shape=[2**40, 2**40], data_offsets=[0, 4])}, b"xxxx"
    ),
    "negative": header({"a": dict(dtype="F32", shape=[-1], data_offsets=[0, 4])}, b"xxxx"),
    "an unknown type": header({"a": dict(dtype="F99", shape=[1], data_offsets=[0, 4])}, b"xxxx"),
    "numbers that are no floats": header(
        {"a": dict(dtype="I32", shape=[1], data_offsets=[0, 4])}, b"xxxx"
    ),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_header_from_anywhere(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: .*; copy it again"):
        shapes.read_shapes(path, "copy it again")


def test_a_tied_matrix_that_is_there_twice(base):
    copy = base.with_name("twice")
    shutil.copytree(base, copy)
    weights = load_file(copy / "model.safetensors")
    save_file(
        {**weights, "lm_head.weight": weights["wte.weight"].clone()}, copy / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"has also lm_head\.weight"):
        checkpoint.load(copy)


def test_a_run_does_not_start_a_download(base):
    copy = base.with_name("download")
    shutil.copytree(base, copy)
    for name in ("tokenizer.tiktoken", "tokenizer.json"):
        (copy / name).unlink()
    facts = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**facts, "tokenizer": "hf:some/model"}))
    with pytest.raises(UserError, match=r"tokenizer\.tiktoken: missing"):
        checkpoint.load(copy)


# -- hf: folders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "source"
    randomized({"gpt2": gpt2, "qwen3": qwen3}[request.param]()).save_pretrained(folder)
    save_vocabulary(folder, make(added=["<|endoftext|>"]))
    return folder


@MANY
@given(data=st.data(), value=VALUES)
def test_any_value_of_a_foreign_config_json(source, forbid_large, data, value):
    facts = json.loads((source / "config.json").read_text(encoding="utf-8"))
    expected = dict(hf_import.load(f"hf:{source}").model.named_parameters())
    place = data.draw(st.sampled_from(list(places(facts))))
    copy = source.with_name("changed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    (copy / "config.json").write_text(json.dumps(changed(facts, place, value)), encoding="utf-8")
    try:
        found = dict(hf_import.load(f"hf:{copy}").model.named_parameters())
    except UserError:
        return
    for name, weight in found.items():  # of learned positions there may be fewer
        assert torch.equal(weight, expected[name][: len(weight)]), name


def test_an_index_that_names_other_places(source):
    copy = source.with_name("index")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    for name in ("../source/model.safetensors", "/etc/passwd", 7, None, ["a"]):
        index = {"weight_map": {"a": "model.safetensors", "b": name}}
        (copy / weight_files.SAFETENSORS[0]).write_text(json.dumps(index), encoding="utf-8")
        with pytest.raises(UserError, match=r"expected the name of a \.safetensors file"):
            hf_import.load(f"hf:{copy}")


@pytest.mark.parametrize("number", [10**9, -1, "7", 1.5, None, True])
def test_an_id_of_a_vocabulary_beyond_all_bounds(source, number):
    """The tables have a row for every id up to the highest."""
    copy = source.with_name("ids")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    path = copy / "tokenizer.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["added_tokens"][0]["id"] = number
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json.*token id"):
        hf_import.load(f"hf:{copy}")
