"""What computes the products on a CPU: the choice, FBGEMM, and the kernels of other processors."""

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from conftest import ROOT
from tiny_run import save_run

from minigpt.common.errors import UserError
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.inference import backends, kernels, quantization
from minigpt.inference.backends import Choice, choose, pick_kernels
from minigpt.inference.engine import Engine, Request
from minigpt.inference.quantization import FbgemmLinear

FLOAT, KERNELS = ("float32", "torch"), ("float32", "kernels")
FBGEMM, INT_MM, INT8 = ("int8", "fbgemm"), ("int8", "int_mm"), ("int8", "kernels")
INT4 = ("int4", "kernels")


@pytest.fixture
def run(tmp_path, byte_tokenizer, tiny_model):
    """The folder of a saved run."""
    model = tiny_model(padded_vocab_size=320, block_size=32, tie_embeddings=False)
    return save_run(tmp_path / "run", model, byte_tokenizer)


@pytest.fixture
def timed(monkeypatch):
    """timed({key: seconds}): one layer takes these seconds here."""

    def install(seconds):
        def time_layer(model, keys, kernels=None):
            assert set(keys) == set(seconds)
            return seconds

        monkeypatch.setattr(backends, "time_layer", time_layer)

    return install


@pytest.fixture
def fbgemm():
    if not quantization.has_fbgemm():
        pytest.skip("this PyTorch has no FBGEMM")


# -- the choice ------------------------------------------------------------------------------------


def test_the_fastest_is_chosen(tiny_model, timed, fbgemm):
    model = tiny_model()
    timed({FLOAT: 6.0, FBGEMM: 2.0, INT_MM: 8.0})
    choice = choose(model, "int8", "false")
    assert (choice.dtype, choice.backend) == FBGEMM
    assert str(choice) == "int8 by fbgemm: 3 × float32 by torch (int8 by int_mm 0.75 ×)"
    timed({FLOAT: 6.0, KERNELS: 5.0, FBGEMM: 2.0, INT8: 1.0, INT_MM: 8.0})
    assert choose(model, "int8", "auto", object()).backend == "kernels"
    timed({FLOAT: 6.0, KERNELS: 5.0})
    choice = choose(model, "float32", "auto", object())
    assert str(choice) == "float32 by kernels: 1.2 × float32 by torch"
    timed({FLOAT: 6.0, KERNELS: 5.9})  # a tie: the choice must not follow the noise
    assert choose(model, "float32", "auto", object()).backend == "torch"


def test_int8_that_is_slower_is_not_used(run, timed, capsys, fbgemm):
    timed({FLOAT: 1.0, FBGEMM: 1.5, INT_MM: 4.0})
    model = load_for_generation(run, "cpu", "int8", "false").model
    err = capsys.readouterr().err
    assert "int8 by fbgemm 0.67 ×, int8 by int_mm 0.25 ×" in err and "slower here" in err
    assert len(err.splitlines()) == 1
    assert isinstance(model.blocks[0].mlp.fc, nn.Linear)
    model = load_for_generation(run, "cpu", "int8", "fbgemm").model  # named: not timed
    assert isinstance(model.blocks[0].mlp.fc, FbgemmLinear)
    assert "int8 by fbgemm\n" in capsys.readouterr().err


def test_a_real_layer_is_timed(tiny_model):
    seconds = backends.time_layer(tiny_model(n_kv_head=2), [FLOAT, INT_MM])
    assert all(0 < each < 5 for each in seconds.values())
    learned = tiny_model(position="learned", norm="layernorm", mlp="gelu", bias=True)
    assert set(backends.time_layer(learned, [INT_MM])) == {INT_MM}


def test_nothing_is_built_unless_it_is_wanted(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))  # nothing has been built there
    monkeypatch.setattr(kernels, "build", lambda: pytest.fail("built"))
    monkeypatch.setattr(backends, "build", lambda: "the module")
    for knob in ("auto", "false", False, "int_mm"):
        assert pick_kernels("cpu", "int8", knob) == ("cpu", None)
    for knob in ("true", True, 1):
        assert pick_kernels("cpu", "int8", knob) == ("cpu", "the module")
    name = kernels._name()
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / f"{name}.so").touch()
    monkeypatch.setattr(kernels, "build", lambda: "the module")
    assert pick_kernels("cpu", "int8", "auto") == ("cpu", "the module")
    assert pick_kernels("cpu", "auto", "auto") == ("cpu", None)
    os.utime(tmp_path / name / f"{name}.so", (0, 0))  # older than its source
    assert pick_kernels("cpu", "int8", "auto") == ("cpu", None)


def test_contradictions_are_refused(monkeypatch):
    with pytest.raises(UserError, match="kernels=int_mm: for dtype=int8"):
        pick_kernels("cpu", "auto", "int_mm")
    monkeypatch.setattr(backends, "pick_device", lambda device: device)
    for dtype, knob, message in (
        ("int8", "auto", "dtype=int8: made for a CPU; on cuda"),
        ("int4", "auto", "dtype=int4: made for a CPU; on cuda"),
        ("auto", True, "kernels=true: made for a CPU; on cuda"),
    ):
        with pytest.raises(UserError, match=message):
            pick_kernels("cuda", dtype, knob)
    for knob, message in (
        ("int_mm", "kernels=int_mm: for dtype=int8"),
        ("false", "kernels=false: int4 is by the C\\+\\+ kernels alone.*int8"),
    ):
        with pytest.raises(UserError, match=message):
            pick_kernels("cpu", "int4", knob)
    assert pick_kernels("cuda", "auto", False) == ("cuda", None)
    monkeypatch.setattr(backends, "has_fbgemm", lambda: False)
    with pytest.raises(UserError, match="kernels=fbgemm: this PyTorch has none"):
        pick_kernels("cpu", "int8", "fbgemm")


def test_int4_is_by_the_kernels_alone(tiny_model, timed, run, capsys, monkeypatch):
    monkeypatch.setattr(backends, "build", lambda: "the module")
    for knob in ("auto", "true", True):  # built if necessary
        assert pick_kernels("cpu", "int4", knob) == ("cpu", "the module")
    timed({FLOAT: 6.0, KERNELS: 5.0, INT4: 1.0})
    assert str(choose(tiny_model(), "int4", "auto", object())) == (
        "int4 by kernels: 6 × float32 by torch (float32 by kernels 1.2 ×)"
    )
    timed({FLOAT: 1.0, KERNELS: 0.5, INT4: 2.0})
    choice = choose(tiny_model(), "int4", "auto", object())
    assert (choice.dtype, choice.backend) == KERNELS

    def no_compiler():
        raise UserError("the C++ kernels cannot be built (no g++)")

    monkeypatch.setattr(backends, "build", no_compiler)
    with pytest.raises(UserError, match=r"dtype=int4: .*cannot be built.*take dtype=int8"):
        load_for_generation(run, "cpu", "int4")


# -- FBGEMM ----------------------------------------------------------------------------------------


def test_fbgemm_by_hand(fbgemm):
    """Largest values of 127 and 254: the weights are exact. x has the levels -1, 0 and 1."""
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[127.0, -1.0], [254.0, 6.0]]))
        linear.bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.tensor([[4.0, -4.0], [0.0, 0.0], [0.0, 2.0]])
    y = FbgemmLinear(linear)(x)
    expected = torch.tensor([[512.5, 992.0], [0.5, 0.0], [-1.5, 12.0]])
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-6)
    assert y[1].tolist() == [0.5, 0.0]


def check_rows():
    """FbgemmLinear is near, and a row's result does not depend on the others."""
    torch.manual_seed(0)
    linear = nn.Linear(768, 96).requires_grad_(False)
    x = torch.randn(17, 768) * torch.logspace(-6, 6, 17)[:, None]
    layer = FbgemmLinear(linear)
    y, expected = layer(x), linear(x)
    assert float(((y - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 0.03
    for n in range(17):
        assert torch.equal(layer(x[n : n + 1])[0], y[n]) and torch.equal(
            layer(x[: n + 1]), y[: n + 1]
        )
    assert layer(x.view(1, 17, 768)).shape == (1, 17, 96)


def test_rows_by_fbgemm(fbgemm):
    check_rows()


def test_rows_by_fbgemm_on_a_processor_that_saturates(fbgemm):
    """FBGEMM computes as with AVX2 alone: 255 levels would saturate, so 127 are used."""
    library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
    force = getattr(library, "_ZN6fbgemm14fbgemmForceIsaENS_10inst_set_tE", None)
    if force is None or platform.system() != "Linux":
        pytest.skip("FBGEMM's instruction set cannot be chosen here")
    quantization.levels.cache_clear()
    force(1)  # AVX2
    try:
        assert quantization.levels() == 63
        check_rows()
    finally:
        force(0)  # the best
        quantization.levels.cache_clear()


def test_an_infinite_row_stays_visible(fbgemm):
    layer = FbgemmLinear(nn.Linear(8, 3).requires_grad_(False))
    x = torch.ones(2, 8)
    x[0, 0] = float("nan")
    y = layer(x)
    assert y[0].isnan().all() and y[1].isfinite().all()


def test_texts_by_fbgemm_do_not_depend_on_the_others(tiny_model, fbgemm):
    model = tiny_model(n_embd=64)
    backends.convert(model, Choice(*FBGEMM))
    requests = [Request([3 + i, 4, 5], 12, temperature=0) for i in range(4)]
    together = Engine(model, 64, n_slots=4).generate(requests)
    alone = [Engine(model, 64, n_slots=1).generate([each])[0] for each in requests]
    assert [each.ids for each in together] == [each.ids for each in alone]


def test_the_engine_of_quantized_tensors_is_restored(fbgemm):
    before = torch.backends.quantized.engine
    FbgemmLinear(nn.Linear(8, 8))
    assert torch.backends.quantized.engine == before


def test_a_torch_without_fbgemm(tiny_model, timed, monkeypatch):
    def removed(*args):
        raise AttributeError("quantize_per_channel")

    quantization.levels.cache_clear()
    monkeypatch.setattr(torch, "quantize_per_channel", removed)
    assert not quantization.has_fbgemm()
    timed({FLOAT: 6.0, INT_MM: 2.0})
    choice = choose(tiny_model(), "int8", "auto")
    assert choice.backend == "int_mm"


# -- the kernels of other processors ---------------------------------------------------------------

TILES = """
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "tiles.h"

static int digit(int most) { return std::rand() % (2 * most + 1) - most; }

static bool int8_sums(int n) {
  constexpr int K = 64, R = int8::ROWS;
  std::vector<int8_t> x(n * K), w(R * K);
  for (auto* part : {&x, &w})
    for (auto& value : *part) value = digit(127);
  for (int k = 0; k < K; ++k) x[k] = w[k] = -127;  // the largest sum
  std::vector<uint8_t> packed(R * K);
  for (int r = 0; r < R; ++r)
    for (int k = 0; k < K; ++k)
      packed[k / 4 * 4 * R + r * 4 + k % 4] = w[r * K + k] + int8::ABOVE;
  std::vector<int32_t> sums(n * R);
  with_constant<int8::MOST>(
      n, [&](auto rows) { int8::tile<rows>(x.data(), packed.data(), K, sums.data()); });
  bool good = true;
  for (int i = 0; i < n; ++i)
    for (int r = 0; r < R; ++r) {
      int32_t sum = 0;
      for (int k = 0; k < K; ++k) sum += x[i * K + k] * (w[r * K + k] + int8::ABOVE);
      good = good && sum == sums[i * R + r];
    }
  return good;
}

static bool int4_sums(int n) {  // the scales are 1, 1/2 and 1/4: the sums are exact
  constexpr int K = 96, S = K / int4::SPAN, R = int4::ROWS;
  std::vector<int8_t> x(n * K);
  std::vector<uint8_t> w(R * K), packed(R * K / 2);
  for (auto& value : x) value = digit(127);
  for (auto& value : w) value = std::rand() % 16;
  for (int k = 0; k < K; ++k) x[k] = 127, w[k] = 15;  // the largest sum
  std::vector<int32_t> above(n * S);
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < K; ++k) above[k / int4::SPAN * n + i] += int4::ABOVE * x[i * K + k];
  std::vector<uint16_t> scales(S * R);
  for (int i = 0; i < S * R; ++i) scales[i] = 0x3f80 - 0x80 * (i % 3);
  for (int r = 0; r < R; ++r)
    for (int k = 0; k < K; ++k)
      packed[k / 8 * R * 4 + r * 4 + k % 4] |= w[r * K + k] << (k % 8 / 4 * 4);
  std::vector<float> sums(n * R);
  with_constant<int4::MOST>(n, [&](auto rows) {
    int4::tile<rows>(x.data(), above.data(), packed.data(), scales.data(), K, sums.data());
  });
  bool good = true;
  for (int i = 0; i < n; ++i)
    for (int r = 0; r < R; ++r) {
      double sum = 0;
      for (int k = 0; k < K; ++k)
        sum += x[i * K + k] * (w[r * K + k] - int4::ABOVE) /
               static_cast<double>(1 << (k / int4::SPAN * R + r) % 3);
      good = good && sum == sums[i * R + r];
    }
  return good;
}

static bool float_sums(int n) {
  constexpr int K = 149, R = 3;
  std::vector<float> x(n * K), w(R * K), sums(n * R);
  for (auto* part : {&x, &w})
    for (auto& value : *part) value = digit(100);
  for (int r = 0; r < R; ++r)
    with_constant<float32::MOST>(
        n, [&](auto rows) { float32::tile<rows>(&x[0], &w[r * K], K, K, &sums[r], R); });
  bool good = true;
  for (int i = 0; i < n; ++i)
    for (int r = 0; r < R; ++r) {
      float sum = 0;
      for (int k = 0; k < K; ++k) sum += x[i * K + k] * w[r * K + k];
      good = good && sum == sums[i * R + r];
    }
  return good;
}

int main() {
  for (int n = 1; n <= int8::MOST; ++n)
    if (!int8_sums(n)) std::printf("int8 %d ", n);
  for (int n = 1; n <= int4::MOST; ++n)
    if (!int4_sums(n)) std::printf("int4 %d ", n);
  for (int n = 1; n <= float32::MOST; ++n)
    if (!float_sums(n)) std::printf("float32 %d ", n);
}
"""


@pytest.mark.parametrize("march", ["x86-64-v4", "haswell", "x86-64-v2", "alderlake", "native"])
def test_sums_of_every_instruction_set(march, tmp_path):
    """The sums of AVX-512 without VNNI, AVX2, plain C++ and AVX-VNNI are those of three loops, for
    every number of rows."""
    if not shutil.which("g++") or platform.machine() != "x86_64":
        pytest.skip("it takes g++ on x86")
    needed = {"x86-64-v4": "avx512vl", "haswell": "avx2", "alderlake": "avx_vnni"}
    if needed.get(march, "") not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip(f"this processor has no {needed[march]}")
    (tmp_path / "tiles.cpp").write_text(TILES, encoding="utf-8")
    command = ["g++", "-std=c++17", "-O2", f"-march={march}", f"-I{ROOT}/minigpt/inference/cpp"]
    subprocess.run([*command, "tiles.cpp", "-o", "tiles"], cwd=tmp_path, check=True)
    result = subprocess.run([tmp_path / "tiles"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
