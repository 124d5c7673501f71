"""Muon against PyTorch's and against a singular value decomposition; schedules by hand; groups."""

import math
from types import SimpleNamespace

import pytest
import torch

from config.configurator import configure
from minigpt.training import optim
from minigpt.training.optim import (
    POLYNOMIALS,
    Muon,
    lr_scale,
    make_optimizers,
    orthogonalize,
    set_lr,
)


def random_matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def by_svd(matrix):
    """What the iteration computes: the polynomials on each singular value (float64)."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / matrix.double().norm()
    for a, b, c in POLYNOMIALS:
        s = a * s + b * s**3 + c * s**5
    return (u * s @ v).float()


def test_each_polynomial_is_the_best_of_its_interval():
    """The best approximation of 1 by an odd quintic has its largest error with alternating signs at
    four places (Chebyshev)."""
    low, high = 0.003, 1.0
    for a, b, c in POLYNOMIALS:
        s = torch.linspace(low, high, 100_001, dtype=torch.float64)
        values = a * s + b * s**3 + c * s**5
        errors = 1 - values
        turns = (errors[1:-1] - errors[:-2]) * (errors[2:] - errors[1:-1]) < 0
        places = torch.cat([errors[:1], errors[1:-1][turns], errors[-1:]])
        signs = torch.tensor([1, -1, 1, -1])
        torch.testing.assert_close(
            places, places.abs().max() * signs, atol=8e-3, rtol=0
        )  # they are rounded
        low, high = 1 - places.abs().max(), 1 + places.abs().max()
    assert low > 0.79 and high < 1.21


@pytest.mark.parametrize("shape", [(6, 6), (4, 11), (1, 5), (8, 32), (40, 200)])
def test_orthogonalize_acts_on_singular_values(shape):
    matrices = torch.stack([random_matrix(*shape), 3 * random_matrix(*shape, seed=1)])
    result = orthogonalize(matrices)
    expected = torch.stack([by_svd(matrix) for matrix in matrices])
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonalize(1e4 * matrices), result, atol=1e-4, rtol=0)
    assert torch.linalg.svdvals(result).min() > 0.75  # of matrices as well-conditioned as these
    assert torch.linalg.svdvals(result).max() < 1.21


def test_orthogonalize_of_nothing_is_nothing():
    assert orthogonalize(torch.zeros(1, 3, 4)).abs().max() == 0


def run_steps(make, shapes, steps=4):
    """Weights after some steps of the optimizer that make(weights) gives, on fixed gradients."""
    weights = [torch.nn.Parameter(random_matrix(*shape, seed=i)) for i, shape in enumerate(shapes)]
    optimizer = make(weights)
    for step in range(steps):
        for i, weight in enumerate(weights):
            weight.grad = random_matrix(*weight.shape, seed=100 * step + i)
        optimizer.step()
    return [weight.detach() for weight in weights]


SHAPES = [(8, 8), (6, 14), (14, 6)]


def test_muon_equals_torchs(monkeypatch):
    """With the polynomials of torch.optim.Muon, which computes its direction in bfloat16."""
    monkeypatch.setattr(optim, "POLYNOMIALS", [(3.4445, -4.7750, 2.0315)] * 5)
    knobs = dict(lr=0.1, momentum=0.9, weight_decay=0.2)
    theirs = run_steps(
        lambda weights: torch.optim.Muon(
            weights, nesterov=True, adjust_lr_fn="match_rms_adamw", **knobs
        ),
        SHAPES,
    )
    ours = run_steps(
        lambda weights: Muon([(w, None) for w in weights], dtype=torch.bfloat16, **knobs), SHAPES
    )
    start = run_steps(lambda weights: torch.optim.SGD(weights, lr=0), SHAPES)
    for a, b, before in zip(ours, theirs, start, strict=True):
        moved = (b - before).abs().mean()
        assert (a - b).abs().mean() < 0.02 * moved  # bfloat16 keeps 8 bits


def test_muon_in_float32_by_hand():
    """The update written out, its direction by singular value decomposition."""
    lr, momentum, decay = 0.05, 0.8, 0.3
    (ours,) = run_steps(
        lambda weights: Muon([(weights[0], None)], lr, momentum, decay), [(6, 10)], steps=3
    )
    weight, average = random_matrix(6, 10, seed=0), torch.zeros(6, 10)
    for step in range(3):
        grad = random_matrix(6, 10, seed=100 * step)
        average = momentum * average + (1 - momentum) * grad
        update = momentum * average + (1 - momentum) * grad  # Nesterov
        weight = weight - lr * decay * weight - lr * 0.2 * math.sqrt(10) * by_svd(update)
    torch.testing.assert_close(ours, weight, atol=2e-4, rtol=0)


def test_a_step_has_the_size_of_adamws():
    """Its root mean square is about 0.2 of the learning rate, whatever the shape."""
    weights = [torch.nn.Parameter(torch.zeros(s)) for s in ((64, 64), (32, 128), (128, 32))]
    for weight in weights:
        weight.grad = random_matrix(*weight.shape)
    Muon([(weight, None) for weight in weights], lr=1.0, weight_decay=0.0).step()
    for weight in weights:
        assert 0.12 < weight.detach().pow(2).mean().sqrt() < 0.25


def test_a_fused_matrix_is_updated_part_by_part():
    split = (4, 2, 2)
    knobs = dict(lr=0.1, momentum=0.9, weight_decay=0.2)
    (fused,) = run_steps(lambda ws: Muon([(ws[0], split)], **knobs), [(8, 6)])
    rows = [range(0, 4), range(4, 6), range(6, 8)]
    parts = [torch.nn.Parameter(random_matrix(8, 6, seed=0)[list(r)]) for r in rows]
    optimizer = Muon([(part, None) for part in parts], **knobs)
    for step in range(4):
        for part, r in zip(parts, rows, strict=True):
            part.grad = random_matrix(8, 6, seed=100 * step)[list(r)]
        optimizer.step()
    torch.testing.assert_close(fused, torch.cat([p.detach() for p in parts]))
    (whole,) = run_steps(lambda ws: Muon([(ws[0], None)], **knobs), [(8, 6)])
    assert (fused - whole).abs().max() > 1e-3  # and not as one matrix


def test_muons_state_survives_saving():
    """Two steps, saved, two more in another optimizer = four steps."""
    together = run_steps(lambda ws: Muon([(w, None) for w in ws], lr=0.1), SHAPES, steps=4)
    weights = [torch.nn.Parameter(random_matrix(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
    optimizer = Muon([(w, None) for w in weights], lr=0.1)
    for step in range(4):
        if step == 2:
            saved = optimizer.state_dict()
            optimizer = Muon([(w, None) for w in weights], lr=0.1)
            optimizer.load_state_dict(saved)
        for i, weight in enumerate(weights):
            weight.grad = random_matrix(*weight.shape, seed=100 * step + i)
        optimizer.step()
    for a, b in zip(weights, together, strict=True):
        assert torch.equal(a.detach(), b)


def test_a_weight_without_gradient_stays():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    Muon([(weight, None)], lr=1.0).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


# -- learning-rate schedule ------------------------------------------------------------------------


def schedule(**knobs):
    defaults = dict(min_lr_ratio=0.1, warmup_iters=0, decay_fraction=0.3, max_minutes=None)
    return SimpleNamespace(**defaults | knobs)


@pytest.mark.parametrize(
    ("progress", "scale"),
    [(0, 1), (0.25, 0.868198), (0.5, 0.55), (0.75, 0.231802), (1, 0.1), (2, 0.1)],
)
def test_cosine_by_hand(progress, scale):
    # 0.1 + 0.9 · (1 + cos(π · progress)) / 2;  cos(π/4) = 0.707107
    assert lr_scale(500, progress, schedule(schedule="cosine")) == pytest.approx(scale, abs=1e-6)


@pytest.mark.parametrize(
    ("progress", "scale"), [(0, 1), (0.5, 1), (0.7, 1), (0.85, 0.55), (0.97, 0.19), (1, 0.1)]
)
def test_wsd_by_hand(progress, scale):
    # Stable up to 0.7, then a straight line from 1 to 0.1 over the last 0.3.
    assert lr_scale(500, progress, schedule(schedule="wsd")) == pytest.approx(scale, abs=1e-6)


@pytest.mark.parametrize(
    ("progress", "scale"), [(0, 1), (0.25, 0.775), (0.5, 0.55), (0.9, 0.19), (1, 0.1), (2, 0.1)]
)
def test_linear_by_hand(progress, scale):
    assert lr_scale(500, progress, schedule(schedule="linear")) == pytest.approx(scale)


def test_a_warmup_ends_after_a_tenth_of_the_minutes():
    settings = schedule(schedule="constant", warmup_iters=199, max_minutes=3.0)
    scales = [lr_scale(step, step / 40, settings) for step in range(6)]
    assert scales == pytest.approx([1 / 200, 0.25, 0.5, 0.75, 1, 1])


def test_constant_and_warmup_by_hand():
    settings = schedule(schedule="constant", warmup_iters=4)
    scales = [lr_scale(step, step / 10, settings) for step in range(7)]
    assert scales == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])  # never 0: no step is wasted
    settings = schedule(schedule="cosine", warmup_iters=1)
    assert lr_scale(0, 0.5, settings) == pytest.approx(0.5 * 0.55)


def test_wsd_without_a_decay_never_divides_by_zero():
    assert lr_scale(5, 0.999, schedule(schedule="wsd", decay_fraction=0.0)) == 1


def test_an_unknown_name_is_no_default(tiny_model):
    with pytest.raises(ValueError, match="steps"):
        lr_scale(0, 0.5, schedule(schedule="steps"))
    with pytest.raises(ValueError, match="sgd"):
        make_optimizers(
            tiny_model(),
            SimpleNamespace(optimizer="sgd", learning_rate=0.1, embedding_lr_ratio=1.0),
            "cpu",
        )


# -- parameter groups ------------------------------------------------------------------------------


def knobs(*words):
    return configure(shared="all", argv=list(words), quiet=True)


def groups_of(model, *words):
    """Names of the weights in each optimizer's groups: {(optimizer, lr, decay): names}."""
    names = {weight: name for name, weight in model.named_parameters()}
    found = {}
    for optimizer in make_optimizers(model, knobs("--learning_rate=0.01", *words), "cpu"):
        for group in optimizer.param_groups:
            assert group["base_lr"] == group["lr"]
            key = type(optimizer).__name__, group["lr"], group["weight_decay"]
            found.setdefault(key, set()).update(names[w] for w in group["params"])
    return found


def kinds(model):
    """Weights by what they are: tables (and the output layer), vectors, hidden matrices."""
    names = {name: weight.dim() for name, weight in model.named_parameters()}
    tables = {n for n in names if n.split(".")[0] in ("wte", "wpe", "lm_head")}
    vectors = {n for n, dim in names.items() if dim == 1}
    return tables, vectors, set(names) - tables - vectors


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("classic", [True, False])
def test_groups(tiny_model, tied, classic):
    shape = dict(position="learned", norm="layernorm", mlp="gelu", bias=True) if classic else {}
    model = tiny_model(tie_embeddings=tied, **shape)
    tables, vectors, hidden = kinds(model)
    words = ("--embedding_lr_ratio=0.5", "--weight_decay=0.2")
    assert groups_of(model, "--optimizer=muon", *words) == {
        ("Muon", 0.01, 0.2): hidden,
        ("AdamW", 0.005, 0.2): tables,
        ("AdamW", 0.01, 0.0): vectors,
    }
    assert groups_of(model, "--optimizer=adamw", *words) == {
        ("AdamW", 0.01, 0.2): hidden,
        ("AdamW", 0.005, 0.2): tables,
        ("AdamW", 0.01, 0.0): vectors,
    }


def test_frozen_weights_are_in_no_group(tiny_model):
    model = tiny_model()
    model.wte.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    grouped = set().union(*groups_of(model).values())
    assert grouped == {n for n, w in model.named_parameters() if w.requires_grad}
    assert "wte.weight" not in grouped and "blocks.1.attn.qkv.weight" in grouped


def test_muon_gets_the_sizes_of_fused_layers(tiny_model):
    model = tiny_model(n_kv_head=2)  # q (32, C), k and v (16, C); gate and up alike
    muon = make_optimizers(model, knobs(), "cpu")[0]
    splits = {id(group["params"][0]): group["split"] for group in muon.param_groups}
    attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
    assert splits[id(attn.qkv.weight)] == (32, 16, 16)
    assert splits[id(mlp.fc.weight)] == (mlp.proj.in_features,) * 2
    assert splits[id(attn.proj.weight)] is None and splits[id(mlp.proj.weight)] is None


def test_set_lr_scales_each_group_from_its_base(tiny_model):
    words = knobs("--learning_rate=0.01", "--embedding_lr_ratio=0.5")
    optimizers = make_optimizers(tiny_model(), words, "cpu")
    for scale in (0.5, 0.1):  # from the base each time, not from the last
        set_lr(optimizers, scale)
        rates = {g["lr"] for optimizer in optimizers for g in optimizer.param_groups}
        assert rates == {0.01 * scale, 0.005 * scale}
