"""Adapters to and from the installed peft: the same logits on the exported base, both ways."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import run_here, save_run

from minigpt.common.errors import UserError
from minigpt.interop.hf_weights import to_hf
from minigpt.interop.peft import load_peft, write_peft
from minigpt.models import checkpoint
from minigpt.models.lora import LoRA, LoRALinear, adapters, attach, merge

peft = pytest.importorskip("peft")

CLASSIC = dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True)
SHAPES = {"qwen3": dict(n_kv_head=2, head_dim=10), "gpt2": CLASSIC}
SHAPES["qwen2"] = dict(qk_norm=False, qkv_bias=True, n_kv_head=2)
BASE = "base_model.model."


@pytest.fixture(params=SHAPES)
def kind(request):
    return request.param


@pytest.fixture
def model(kind, tiny_model):
    return tiny_model(n_layer=3, **SHAPES[kind])


def exported(model, folder):
    """transformers' model of our plain GPT, by way of a folder."""
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config, weights = to_hf(model)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors")
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def stir(weights):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)


@torch.no_grad()
def assert_same_logits(ours, theirs):
    x = torch.randint(60, (2, 12), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.logits(ours(x)), theirs(x).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "targets, first_block", [(["all"], 0), (["q", "v", "up"], 1), (["k"], 0), (["o", "mlp"], 2)]
)
def test_peft_loads_ours(tmp_path, model, targets, first_block):
    theirs = exported(model, tmp_path / "hf")
    before = theirs(torch.tensor([[1, 2, 3]])).logits
    attach(model, LoRA(3, 6.0, targets=targets, first_block=first_block))
    stir(adapters(model).values())
    write_peft(tmp_path / "peft", model)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft")
    assert not torch.allclose(theirs(torch.tensor([[1, 2, 3]])).logits, before, atol=0.01)
    assert_same_logits(model, theirs)
    blocks = {re.search(r"\.(\d+)\.", name)[1] for name in theirs.state_dict() if "lora_" in name}
    assert blocks == {str(i) for i in range(first_block, 3)}
    merge(model)
    assert_same_logits(model, theirs.merge_and_unload())


@pytest.mark.parametrize("first_block", [0, 1])
def test_there_and_back(tmp_path, model, tiny_model, kind, first_block):
    """The same rank too: what peft holds of q, k and v in one are three again."""
    plain = tiny_model(n_layer=3, **SHAPES[kind])
    lora = LoRA(3, 6.0, 0.1, ["q", "k", "v", "down"], first_block)
    attach(model, lora)
    stir(adapters(model).values())
    write_peft(tmp_path / "peft", model)
    load_peft(tmp_path / "peft", plain)
    assert plain.lora == lora
    ours, again = adapters(model), adapters(plain)
    assert ours.keys() == again.keys()
    assert all(torch.allclose(ours[name], again[name]) for name in ours)


SETTINGS = {
    "usual": dict(r=4, lora_alpha=6),
    "rank-stabilised": dict(r=4, lora_alpha=6, use_rslora=True),
    "in some blocks": dict(r=2, lora_alpha=8, layers_to_transform=[0, 2]),
    "patterns": dict(
        r=2,
        lora_alpha=4,
        rank_pattern={"down_proj": 5, "c_attn": 5, r"1\..*": 3},
        alpha_pattern={"o_proj": 7, "mlp.c_proj": 7},
    ),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_ours_loads_peft(tmp_path, model, kind, settings):
    names = ["c_attn", "c_proj"] if kind == "gpt2" else ["q_proj", "o_proj", "down_proj", "up_proj"]
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=names, fan_in_fan_out=kind == "gpt2", **settings
    )
    theirs = peft.get_peft_model(exported(model, tmp_path / "hf"), config).eval()
    stir(weight for name, weight in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(tmp_path / "peft")
    before = model.logits(model(torch.tensor([[1, 2, 3]])))
    load_peft(tmp_path / "peft", model)
    assert model.lora.rank == max(settings.get("rank_pattern", {"": settings["r"]}).values())
    assert not torch.allclose(model.logits(model(torch.tensor([[1, 2, 3]]))), before, atol=0.01)
    assert_same_logits(model, theirs)


@pytest.mark.parametrize("key", ["(.+)+!", "(a|a)*$", ".*.*.*.*!", "x" * 2000, "("])
def test_a_pattern_that_takes_for_ever(tmp_path, model, kind, key):
    names = ["c_attn"] if kind == "gpt2" else ["q_proj"]
    config = peft.LoraConfig(r=4, target_modules=names, fan_in_fan_out=kind == "gpt2")
    theirs = peft.get_peft_model(exported(model, tmp_path / "hf"), config)
    theirs.save_pretrained(tmp_path / "peft")
    about = tmp_path / "peft" / "adapter_config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"alpha_pattern": {key: 4}}))
    with pytest.raises(UserError, match="alpha_pattern"):
        load_peft(tmp_path / "peft", model)


def test_adapters_that_have_not_learned_yet(tmp_path, model, kind):
    names = ["c_attn"] if kind == "gpt2" else ["q_proj"]
    config = peft.LoraConfig(r=4, target_modules=names, fan_in_fan_out=kind == "gpt2")
    theirs = peft.get_peft_model(exported(model, tmp_path / "hf"), config)
    theirs.save_pretrained(tmp_path / "peft")
    load_peft(tmp_path / "peft", model)
    assert model.lora.rank == 4
    linears = [m for m in model.modules() if isinstance(m, LoRALinear)]
    assert all(m.A.any() and not m.B.any() for m in linears) and len(linears) == 3


# -- what is refused -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, model):
    attach(model, LoRA(2))
    stir(adapters(model).values())
    write_peft(tmp_path / "peft", model)
    merge(model)
    return tmp_path / "peft"


def error_of(folder, model):
    with pytest.raises(UserError) as caught:
        load_peft(folder, model)
    (line,) = str(caught.value).splitlines()
    assert str(folder) in line
    return line


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(use_dora=True), "use_dora=True"),
        (dict(peft_type="IA3"), "peft_type=IA3"),
        (dict(bias="all"), "bias=all"),
        (dict(modules_to_save=["lm_head"]), "modules_to_save"),
        (dict(r=0), "not a peft config"),
        (dict(peft_type=None), "not a peft config"),
        (dict(lora_alpha="x"), "not a peft config"),
    ],
)
def test_settings_that_are_more_than_lora(folder, model, change, word):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), "utf-8")
    assert word in error_of(folder, model)


def test_folders_that_do_not_fit(folder, model, kind, tiny_model):
    other = tiny_model(n_layer=2, **SHAPES[kind])
    assert "blocks have no such matrix" in error_of(folder, other)
    assert "do not fit this model" in error_of(folder, tiny_model(n_embd=48, **SHAPES[kind]))
    swapped = tiny_model(n_layer=3, **SHAPES["qwen3" if kind == "gpt2" else "gpt2"])
    assert "blocks have no such matrix" in error_of(folder, swapped)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    half = next(name for name in tensors if "lora_B" in name)
    save_file({name: t for name, t in tensors.items() if name != half}, path)
    assert half in error_of(folder, model)
    save_file({}, path)
    assert "holds no adapters" in error_of(folder, model)
    path.write_bytes(b"{}")
    assert "cannot be read" in error_of(folder, model)
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json is missing" in error_of(folder, model)


def test_nothing_but_adapters_is_overwritten(folder, model):
    attach(model, LoRA(2))
    write_peft(folder, model)  # an earlier export goes
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds notes.txt"):
        write_peft(folder, model)
    (folder / "notes.txt").unlink()
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})  # as others do
    with pytest.raises(UserError, match="holds adapters of another program"):
        write_peft(folder, model)


# -- tools/adapters.py -----------------------------------------------------------------------------


def run(*words):
    code, output, complaint = run_here("tools/adapters.py", *words)
    return code, output + complaint


def test_the_script(tmp_path, kind, tiny_model, byte_tokenizer):
    model = tiny_model(padded_vocab_size=byte_tokenizer.padded_vocab_size, **SHAPES[kind])
    base = save_run(tmp_path / "out" / "base", model, byte_tokenizer)
    attach(model, LoRA(2, base=base, base_hash=checkpoint.weights_hash(base)))
    stir(adapters(model).values())
    lora = save_run(tmp_path / "out" / "lora", model, byte_tokenizer, "qa")

    assert run(f"--out_dir={lora}")[0] == 0
    merged = checkpoint.load(lora / "merged")
    expected = checkpoint.load(lora).model
    now = dict(merged.model.named_parameters())
    assert all(torch.equal(w, now[name]) for name, w in expected.named_parameters())
    assert merged.prompt_format == "qa" and "lora" not in merged.meta
    assert (lora / "merged" / "model.safetensors").exists()

    assert run(f"--out_dir={lora}", "--format=peft")[0] == 0
    again = tmp_path / "out" / "again"
    assert run(f"--input={lora / 'peft'}", f"--out_dir={base}", f"--output={again}")[0] == 0
    found = checkpoint.load(again).model
    now = dict(found.named_parameters())
    assert all(torch.allclose(w, now[name]) for name, w in expected.named_parameters())
    assert not (again / "model.safetensors").exists()

    for words, expected in {
        (f"--out_dir={base}",): "without adapters",
        (f"--out_dir={lora}",): "already holds a run",
        (): "--out_dir",
        (f"--input={lora / 'peft'}", f"--out_dir={base}"): "--output=",
        (f"--out_dir={tmp_path / 'none'}",): "no trained run here",
        (f"--out_dir={lora}", f"--output={base / 'config.json'}"): "cannot be written",
    }.items():
        code, text = run(*words)
        assert code == 2 and expected in text


@pytest.mark.parametrize(
    "change",
    [
        dict(lora_alpha="16"),
        dict(lora_alpha=1e300),
        dict(r=-2),
        dict(r=2.5),
        dict(lora_dropout="x"),
        dict(alpha_pattern=[1]),
        dict(alpha_pattern={"(a+)+b": 1}),
        dict(alpha_pattern={"(": 1}),
        dict(alpha_pattern={"q_proj": "2"}),
        dict(bias=7),
    ],
)
def test_values_from_anywhere(folder, model, change):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"adapter_config\.json: not a peft config: "):
        load_peft(folder, model)


def test_json_that_is_nested_too_deeply(folder, model):
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested more than 100 levels deep"):
        load_peft(folder, model)
