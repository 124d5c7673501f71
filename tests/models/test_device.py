"""Which device and number format a run takes, and how fast the machine is."""

import pytest
import torch

from minigpt.common.errors import UserError
from minigpt.models import device as hardware
from minigpt.models.device import (
    autocast,
    fewest_threads,
    matmul_flops,
    peak_flops,
    pick_device,
    pick_dtype,
)


def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch):
    for cuda, mps, wanted in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert pick_device("auto") == wanted


def test_a_device_that_is_not_there_names_those_that_are():
    assert pick_device("cpu") == pick_device("cpu:0") == "cpu"
    for name in ("cuda:99", "gpu", "toaster", "meta"):
        with pytest.raises(UserError) as caught:
            pick_device(name)
        assert f"device={name}" in str(caught.value) and "cpu" in str(caught.value)


def test_number_formats(monkeypatch):
    assert pick_dtype("auto", "cpu") == pick_dtype("float32", "cpu") == torch.float32
    assert pick_dtype("auto", "mps") == torch.float32
    assert pick_dtype("float16", "cuda") == torch.float16
    for capability, wanted in (((7, 5), torch.float16), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert pick_dtype("auto", "cuda:0") == wanted
    for name in ("bfloat16", "float16"):
        with pytest.raises(UserError, match=f"dtype={name}"):
            pick_dtype(name, "cpu")


def test_autocast_runs_products_in_the_format():
    a = torch.ones(2, 2)
    with autocast("cpu", torch.float32):
        assert (a @ a).dtype == torch.float32
    with autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GeForce RTX 4070 Ti", 80e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("Tesla T4", 65e12),
        ("NVIDIA T400 4GB", None),
        ("NVIDIA RTX A1000", None),
        ("Quite Another Card", None),
    ],
)
def test_peaks_of_known_cards(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops("cuda:0") == peak


def test_measuring_counts_operations_and_leaves_the_worlds_randomness_alone(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))  # a second a product
    before = torch.get_rng_state()
    assert matmul_flops("cpu", size=64, rounds=2) == 2 * 64**3
    assert torch.equal(torch.get_rng_state(), before)  # it may be measured within a resumed run


@pytest.mark.parametrize(
    ("seconds", "threads"),
    [
        ({1: 4, 2: 2, 4: 1}, 4),
        ({1: 4, 2: 2, 4: 1.9}, 2),
        ({1: 4, 2: 3.9, 4: 1}, 1),  # who gains nothing by two is asked no further
        ({1: 4, 2: 5}, 1),
    ],
)
def test_as_many_threads_as_pay(seconds, threads, monkeypatch):
    now, active = [0.0], [max(seconds)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: active[-1])
    monkeypatch.setattr(torch, "set_num_threads", active.append)
    monkeypatch.setattr("minigpt.models.device.time.perf_counter", lambda: now[0])

    def work():
        now[0] += seconds[active[-1]]

    assert fewest_threads(work) == threads
    assert active[-1] == max(seconds)  # as it was
