"""LoRA: what it computes, by its formula; what learns; that a run of adapters is a run like any."""

import copy
import json
import os
import shutil
import signal

import pytest
import test_train
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_train import assert_same_run, at_step, same_bits, weights_of
from tiny_run import run_here, save_run
from torch.nn import functional as F

from minigpt.common.errors import UserError
from minigpt.models import checkpoint
from minigpt.models.lora import (
    GROUPS,
    PARTS,
    LoRA,
    LoRALinear,
    adapters,
    attach,
    merge,
    target_parts,
)
from minigpt.training.optim import make_optimizers
from model import GPT, FusedLinear

dataset, tiny, train = test_train.dataset, test_train.tiny, test_train.train  # fixtures

CLASSIC = dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True)
SHAPES = {"modern": dict(n_kv_head=2, head_dim=10), "classic": CLASSIC}


@pytest.fixture(params=SHAPES)
def model(request, tiny_model):
    return tiny_model(**SHAPES[request.param])


def stir(model, seed=5):
    """Fill the adapters at random, as if they had learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapters(model).values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model


def logits_of(model, seed=3):
    x = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(seed))
    return model.logits(model(x))


def dense(linear):
    """s · B A of a LoRALinear as one (n_out, n_in) matrix, row by row as the paper has it."""
    delta = torch.zeros_like(linear.weight)
    rank, row = linear.lora.rank, 0
    for part, (start, size) in enumerate(linear.spans):
        a = linear.A[part * rank : (part + 1) * rank]
        for i in range(size):
            delta[start + i] = linear.lora.alpha / rank * (linear.B[row] @ a)
            row += 1
    return delta


# -- what it computes ------------------------------------------------------------------------------


def test_at_the_start_it_is_the_base_to_the_bit(model):
    before = logits_of(model)
    base = {name: weight.clone() for name, weight in model.named_parameters()}
    attach(model, LoRA(rank=3))
    assert torch.equal(logits_of(model.eval()), before)
    assert torch.equal(logits_of(model.train()), before)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in base.items())
    assert all(bool(weight.any()) is name.endswith("A") for name, weight in adapters(model).items())


def test_the_start_is_drawn_from_the_seed(tiny_model):
    def drawn(seed):
        torch.manual_seed(seed)
        attach(model := tiny_model(), LoRA(rank=4))
        return adapters(model)

    assert same_bits(drawn(1), drawn(1)) and not same_bits(drawn(1), drawn(2))
    for weight in (w for name, w in drawn(1).items() if name.endswith(".A")):
        bound = weight.size(1) ** -0.5  # uniform, of the width of the input
        assert 0.8 * bound < weight.abs().max() <= bound


@st.composite
def layers(draw):
    """A linear layer of several parts, some of which have adapters."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    names = draw(st.sets(st.sampled_from("qkv"[: len(sizes)]), min_size=1).map(sorted))
    names.sort(key="qkv".index)
    torch.manual_seed(draw(st.integers(0, 99)))
    linear = FusedLinear(draw(st.integers(1, 6)), sizes, bias=draw(st.booleans())).double()
    linear.requires_grad_(False)
    lora = LoRA(draw(st.integers(1, 4)), alpha=draw(st.sampled_from((1.0, 3.5))))
    layer = LoRALinear(linear, names, lora).double()
    torch.nn.init.normal_(layer.B)
    return linear, layer


@settings(max_examples=40)
@given(layers(), st.booleans(), st.booleans())
def test_values_and_gradients_are_those_of_the_formula(drawn, training, x_moves):
    linear, layer = drawn
    layer.train(training)
    x = torch.randn(3, 2, layer.in_features, dtype=torch.double, requires_grad=x_moves)
    y = layer(x)
    expected = F.linear(x, linear.weight + dense(layer), linear.bias)
    assert torch.allclose(y, expected)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected)
        assert torch.allclose(layer.merged_weight(), linear.weight + dense(layer))
    given = torch.randn_like(y)
    moving = [layer.A, layer.B] + ([x] if x_moves else [])
    found = torch.autograd.grad(y, moving, given)
    assert all(map(torch.allclose, found, torch.autograd.grad(expected, moving, given)))


def test_dropout_is_of_the_adapters_input_in_training_alone():
    layer = LoRALinear(torch.nn.Linear(16, 8), ["o"], LoRA(rank=2, alpha=4.0, dropout=0.5))
    torch.nn.init.normal_(layer.B)
    x = torch.randn(5, 16)
    torch.manual_seed(1)
    kept = F.dropout(x, 0.5)
    torch.manual_seed(1)
    expected = F.linear(x, layer.weight, layer.bias) + 2 * kept @ layer.A.T @ layer.B.T
    assert torch.allclose(layer(x), expected, atol=1e-6)
    whole = F.linear(x, layer.weight + dense(layer), layer.bias)
    assert torch.allclose(layer.eval()(x), whole, atol=1e-6)


def test_in_bfloat16_small_adapters_are_not_rounded_away():
    """W is 1, the adapters add 1/1000: their sum in bfloat16 would be 1 again."""
    layer = LoRALinear(torch.nn.Linear(4, 4, bias=False), ["o"], LoRA(rank=1, alpha=1.0))
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
        layer.A.copy_(torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
        layer.B.copy_(torch.tensor([[0.001], [0.0], [0.0], [0.0]]))
    x = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y[0, 0].item() == pytest.approx(0.001, rel=0.01)
    y.sum().backward()
    assert layer.A.grad[0].tolist() == pytest.approx([0, 0.001, 0, 0], rel=0.01)


def test_merged_is_unmerged(model):
    names = [name for name, _ in model.named_parameters()]
    attach(model, LoRA(rank=3, alpha=6.0))
    expected = logits_of(stir(model))
    merge(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(isinstance(m, LoRALinear) for m in model.modules()) and not adapters(model)
    assert torch.allclose(logits_of(model), expected, atol=1e-4)
    fresh = GPT(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(fresh), logits_of(model))
    assert fresh.blocks[0].attn.qkv.sizes == model.blocks[0].attn.qkv.sizes


# -- what learns -----------------------------------------------------------------------------------


class Knobs:
    learning_rate, embedding_lr_ratio, weight_decay = 1e-3, 1.0, 0.1
    beta1, beta2, muon_momentum = 0.9, 0.95, 0.95

    def __init__(self, optimizer):
        self.optimizer = optimizer


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_gradients_and_optimizer_states_are_of_adapters_alone(model, optimizer):
    attach(model.train(), LoRA(rank=2))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizers = make_optimizers(model, Knobs(optimizer), "cpu")
    for _ in range(2):  # at the first step B = 0, and A has no gradient but 0
        logits_of(model).square().sum().backward()
        for each in optimizers:
            each.step()
    mine = adapters(model)
    for name, weight in model.named_parameters():
        assert (weight.grad is not None) is (name in mine), name
        assert torch.equal(weight, before[name]) is (name not in mine), name
    held = [weight for each in optimizers for weight in each.state]
    assert {id(weight) for weight in held} == {id(weight) for weight in mine.values()}
    assert [type(each) for each in optimizers] == [torch.optim.AdamW]
    assert len(mine) == 2 * 4 * 2  # A and B of four layers in each of two blocks


def test_the_number_of_weights_by_hand(tiny_model):
    """q, k, v, o of width 32 and the three of SwiGLU, each rank · (n_in + n_out), in two blocks."""
    model = tiny_model(n_hidden=40)
    attach(model, LoRA(rank=4))
    by_hand = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 40) + (40 + 32))
    assert sum(w.numel() for w in model.parameters() if w.requires_grad) == by_hand


@pytest.mark.parametrize("first_block", [0, 1])
def test_no_gradient_is_taken_below_the_first_adapter(tiny_model, first_block):
    model = tiny_model(n_layer=3)
    attach(model.train(), LoRA(rank=2, first_block=first_block))
    asked = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_pre_hook(
            lambda _, given, i=i: asked.update({i: given[0].requires_grad})
        )
    logits_of(model)
    assert asked == {i: i > first_block for i in range(3)}
    assert all(int(name.split(".")[1]) >= first_block for name in adapters(model))


# -- which matrices --------------------------------------------------------------------------------


def adapted(model):
    """What the adapters change: (module, row) of a weight, by a look at the merged weights."""
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    merge(stir(model))
    changed = {
        name.removesuffix(".weight"): (weight != before[name]).flatten(1).any(1).nonzero().flatten()
        for name, weight in model.named_parameters()
        if weight.dim() == 2
    }
    return {(name, row) for name, rows in changed.items() for row in rows.tolist()}


def rows(path, first, last):
    return {(f"blocks.0.{path}", row) for row in range(first, last)}


@pytest.mark.parametrize(
    "targets, expected",
    [
        (["q"], rows("attn.qkv", 0, 40)),
        (["v", "k"], rows("attn.qkv", 40, 80)),
        (["q", "v"], rows("attn.qkv", 0, 40) | rows("attn.qkv", 60, 80)),
        (["o", "gate"], rows("attn.proj", 0, 32) | rows("mlp.fc", 0, 48)),
        (["up"], rows("mlp.fc", 48, 96)),
        (["down"], rows("mlp.proj", 0, 32)),
        (["attention"], rows("attn.qkv", 0, 80) | rows("attn.proj", 0, 32)),
        (["mlp", "up"], rows("mlp.fc", 0, 96) | rows("mlp.proj", 0, 32)),
    ],
)
def test_targets_are_the_rows_that_they_name(tiny_model, targets, expected):
    """4 heads of 10 for q, 2 for each of k and v; 48 rows of gate, then 48 of up."""
    model = tiny_model(n_layer=1, n_kv_head=2, head_dim=10, n_hidden=48)
    attach(model, LoRA(rank=2, targets=targets))
    assert adapted(model) == expected


def test_all_targets(tiny_model):
    modern, classic = tiny_model().config, tiny_model(**CLASSIC).config
    assert target_parts(["all"], modern) == list(PARTS)
    assert target_parts(["all"], classic) == [name for name in PARTS if name != "gate"]
    model = tiny_model(n_layer=1, **CLASSIC)
    attach(model, LoRA(rank=2, targets=["up"]))
    assert adapted(model) == rows("mlp.fc", 0, 128)
    assert set(GROUPS["all"]) == {*GROUPS["attention"], *GROUPS["mlp"]}


def test_targets_that_are_not_there(tiny_model):
    with pytest.raises(UserError, match=r"=q,qkv: qkv is not a part .* q, k, v, o, gate"):
        target_parts(["q", "qkv"], tiny_model().config)
    with pytest.raises(UserError, match="gate is not a part of this model; it has q, k, v, o, up"):
        target_parts(["gate"], tiny_model(**CLASSIC).config)
    with pytest.raises(UserError, match="lora_targets=: nothing"):
        target_parts([], tiny_model().config)
    with pytest.raises(UserError, match="freeze_layers=2: the model has 2 blocks"):
        attach(tiny_model(), LoRA(rank=2, first_block=2))
    with pytest.raises(UserError, match="lora_rank=-1"):
        attach(tiny_model(), LoRA(rank=-1))


# -- a run of adapters -----------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path, model, byte_tokenizer):
    """A base and adapters on it in tmp_path/out: (base folder, adapters' folder, logits)."""
    base, folder = tmp_path / "out" / "base", tmp_path / "out" / "lora"
    model = tiny_like(model, byte_tokenizer)
    save_run(base, model, byte_tokenizer)
    lora = LoRA(3, 6.0, base=base, base_hash=checkpoint.weights_hash(base))
    attach(model, lora)
    stir(model)
    save_run(folder, model, byte_tokenizer, "qa")
    return base, folder, logits_of(model)


def tiny_like(model, tokenizer):
    """A model of this shape with the rows of the tokenizer, every tensor at random."""
    shape = copy.copy(model.config)
    shape.padded_vocab_size = tokenizer.padded_vocab_size
    torch.manual_seed(7)
    other = GPT(shape).eval()
    with torch.no_grad():
        for weight in other.parameters():
            weight.normal_(std=0.3)
    return other


def test_adapters_are_saved_apart_and_loaded_as_one_model(runs):
    base, folder, expected = runs
    assert "adapter.safetensors" in {path.name for path in folder.iterdir()}
    assert not (folder / "model.safetensors").exists()
    saved = load_file(folder / "adapter.safetensors")
    assert saved.keys() == adapters(checkpoint.load(folder, merged=False).model).keys()
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))["lora"]
    assert about["base"] == base.as_posix() and about["base_from_here"] == "../base"
    assert about["rank"] == 3 and about["alpha"] == 6.0 and about["targets"] == ["all"]
    assert len(about["base_hash"]) == 64

    found = checkpoint.load(folder)
    assert not adapters(found.model) and found.prompt_format == "qa"
    assert torch.allclose(logits_of(found.model.eval()), expected, atol=1e-4)
    apart = checkpoint.load(folder, merged=False).model.eval()
    assert torch.equal(logits_of(apart), expected)
    assert apart.lora.base == base and apart.lora.rank == 3


def test_adapters_on_adapters(runs, byte_tokenizer, tmp_path):
    _, folder, _ = runs
    model = checkpoint.load(folder).model
    lora = LoRA(2, targets=["q"], base=folder, base_hash=checkpoint.weights_hash(folder))
    attach(model, lora)
    expected = logits_of(stir(model.eval()))
    second = save_run(tmp_path / "out" / "second", model, byte_tokenizer)
    assert torch.allclose(logits_of(checkpoint.load(second).model.eval()), expected, atol=1e-4)
    hashes = {checkpoint.weights_hash(run) for run in (*runs[:2], second)}
    assert len(hashes) == 3
    path = second / "config.json"  # the same adapters on another base are other weights
    text = path.read_text(encoding="utf-8").replace(lora.base_hash, "0" * 64)
    path.write_text(text, encoding="utf-8")
    assert checkpoint.weights_hash(second) not in hashes


def test_runs_that_move(runs, tmp_path, monkeypatch):
    base, folder, _ = runs
    elsewhere = shutil.copytree(folder, tmp_path / "far" / "away" / "lora")
    checkpoint.load(elsewhere)  # its base is where it was
    moved = tmp_path / "moved"
    (tmp_path / "out").rename(moved)
    checkpoint.load(moved / "lora")  # and here both moved
    with pytest.raises(UserError) as caught:
        checkpoint.load(elsewhere)
    text = str(caught.value)
    assert (
        str(elsewhere) in text
        and f"the base model {base} of these adapters is missing" in text
        and "config.json" in text
    )
    facts = json.loads((elsewhere / "config.json").read_text(encoding="utf-8"))
    facts["lora"]["base"] = "moved/base"  # what the message says
    (elsewhere / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    checkpoint.load(elsewhere)


def test_a_base_that_changed(runs, byte_tokenizer):
    base, folder, _ = runs
    before = checkpoint.weights_hash(base)
    model = checkpoint.load(base).model
    with torch.no_grad():
        model.norm.weight[0] += 1e-3
    save_run(base, model, byte_tokenizer)
    assert checkpoint.weights_hash(base) != before
    with pytest.raises(UserError) as caught:
        checkpoint.load(folder)
    (line,) = str(caught.value).splitlines()
    assert str(folder) in line and str(base) in line and before[:16] in line


def test_adapters_that_are_damaged(runs):
    _, folder, _ = runs
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    gone = next(iter(tensors))
    save_file({name: t for name, t in tensors.items() if name != gone}, path)
    with pytest.raises(UserError, match=f"adapter.safetensors: does not fit .*lacks .*{gone}"):
        checkpoint.load(folder)
    path.unlink()
    for read in (checkpoint.load, checkpoint.weights_hash):
        with pytest.raises(UserError, match="safetensors: cannot be read"):
            read(folder)
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del facts["lora"]["rank"], facts["lora"]["base"]
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(UserError, match="lacks lora: rank, lora: base"):
        checkpoint.load(folder)


# -- training --------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path, train, tiny):
    train(*tiny, "--max_iters=4", "--eval_interval=4", f"--out_dir={tmp_path / 'base'}")
    return tmp_path / "base"


ON = ["--lora_rank=2", "--lora_alpha=8", "--lora_targets=q,v,mlp"]


def test_training_resumes_to_the_bit(tmp_path, train, monkeypatch, tiny, base):
    """Interrupted in the middle of a run: weights, optimizer and losses as if it had not been."""
    words = [*tiny, *ON, f"--init_from={base}", "--lora_dropout=0.1"]
    train(*words, f"--out_dir={tmp_path / 'one'}")
    at_step(monkeypatch, 13, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(*words, f"--out_dir={tmp_path / 'two'}")
    assert checkpoint.read_meta(tmp_path / "two")["step"] == 14
    train(f"--out_dir={tmp_path / 'two'}", "--init_from=resume")
    for part in ("one", "one/best"):
        found, other = (
            load_file(tmp_path / path / "adapter.safetensors")
            for path in (part, part.replace("one", "two"))
        )
        assert same_bits(found, other)
    monkeypatch.setattr(test_train, "weights_of", lambda folder: {})  # there is no such file
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_run_of_adapters_is_a_run_like_any(tmp_path, train, tiny, base, capsys):
    folder = tmp_path / "lora"
    before = weights_of(base)
    words = [*tiny, *ON, f"--init_from={base}", f"--out_dir={folder}", "--learning_rate=0.01"]
    train(*words)
    assert "M of them trained, starting from" in capsys.readouterr().out
    assert same_bits(weights_of(base), before)
    assert not list(folder.rglob("model.safetensors"))
    assert (folder / "adapter.safetensors").stat().st_size < 20_000
    for part in (folder, folder / "best"):
        code, text, complaint = run_here(
            "sample.py", f"--out_dir={part}", "--start=ab", "--max_new_tokens=4", "--device=cpu"
        )
        assert code == 0 and text, complaint
    # What the log says of it is what a reader of the run finds; and a run may start from it.
    merged = checkpoint.load(folder).model
    changed = [n for n, w in merged.named_parameters() if not torch.equal(w, before[n])]
    kinds = {name.split(".", 2)[2] for name in changed}
    assert kinds == {"attn.qkv.weight", "mlp.fc.weight", "mlp.proj.weight"}
    train(*tiny, f"--init_from={folder}", f"--out_dir={tmp_path / 'next'}", "--max_iters=0")
    assert same_bits(weights_of(tmp_path / "next"), dict(merged.named_parameters()))


def complaint(train, *words):
    with pytest.raises(UserError) as caught:
        train(*words)
    return str(caught.value)


def test_what_training_refuses(tmp_path, train, tiny, base):
    words = [*tiny, f"--out_dir={tmp_path / 'run'}"]
    assert "lora_rank=4" in (text := complaint(train, *words, "--lora_rank=4"))
    assert "--init_from" in text and not (tmp_path / "run").exists()
    words += [f"--init_from={base}"]
    text = complaint(train, *words, "--lora_alpha=32")
    assert text == "--lora_alpha: lora_alpha=32.0: expected --lora_rank=8 or so with it"
    text = complaint(train, *words, "--lora_rank=4", "--lora_targets=q,fc")
    assert "fc is not a part of this model; it has q, k" in text
    text = complaint(train, *words, "--lora_rank=-1", "--lora_alpha=0", "--lora_dropout=1")
    assert len(text.splitlines()) == 3 and "lora_alpha=0" in text
    text = complaint(train, *words, "--lora_rank=4", "--freeze_layers=2")
    assert "freeze_layers=2" in text
    text = complaint(train, *words, "--lora_rank=4096")
    assert "--lora_rank: lora_rank=4096: expected at most" in text
    train(*words, "--lora_rank=4", "--max_iters=1")
    text = complaint(train, f"--out_dir={tmp_path / 'run'}", "--init_from=resume", "--lora_rank=8")
    assert "--lora_rank" in text and "4" in text
    text = complaint(train, f"--out_dir={base}", "--init_from=resume", "--lora_rank=8")
    assert "--lora_rank" in text


# -- freezing --------------------------------------------------------------------------------------


def test_what_is_frozen_has_neither_gradient_nor_state(train, tiny_model):
    model = tiny_model(n_layer=3).train()

    class Frozen(Knobs):
        freeze_layers, freeze_embeddings = 2, True

    settings = Frozen("adamw")
    train.module.freeze(model, settings)
    optimizers = make_optimizers(model, settings, "cpu")
    asked = []
    model.blocks[2].register_forward_pre_hook(lambda _, given: asked.append(given[0].requires_grad))
    logits_of(model).square().sum().backward()
    for each in optimizers:
        each.step()
    assert asked == [False]  # nothing goes back into the lower blocks
    moves = {n for n, weight in model.named_parameters() if weight.grad is not None}
    top = {name for name, _ in model.named_parameters() if name.startswith(("blocks.2.", "norm"))}
    assert moves == top
    held = {id(weight) for each in optimizers for weight in each.state}
    assert held == {id(weight) for name, weight in model.named_parameters() if name in top}
