"""The choice of device and what is said about it, with every kind of machine faked, and the CPU for real."""

import json
import os
import random
import sys
from types import SimpleNamespace

from shared import device as devices
from shared.device import (
    autocast_dtype,
    describe,
    memory,
    pick_device,
    reset_peak,
    seed_everything,
    synchronize,
)
from shared.errors import CannotRun
from shared.options import DEVICES

import numpy as np
import pytest
import torch

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def has(cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"), [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda"), (True, True, "cuda")]
)
def test_the_device_that_was_asked_for_or_one_line(machine, cuda: bool, mps: bool, auto: str) -> None:
    machine(cuda, mps)
    assert pick_device().type == pick_device("auto").type == auto
    for name, is_here in {"cpu": True, "cuda": cuda, "mps": mps}.items():
        if is_here:
            assert pick_device(name).type == name
        else:
            with pytest.raises(CannotRun, match="--device") as caught:
                pick_device(name)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "gpu", "CUDA", "cuda:1", "xpu", "meta"])
def test_an_unknown_device_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(CannotRun, match=f"unknown device {name!r}; choose one of {', '.join(DEVICES)}"):
        pick_device(name)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((12, 0), torch.bfloat16), ((9, 0), torch.bfloat16), ((8, 9), torch.bfloat16), ((8, 0), torch.bfloat16),
     ((7, 5), torch.float16), ((7, 0), torch.float16), ((6, 1), torch.float32), ((5, 2), torch.float32)],
)  # fmt: skip
def test_autocast_on_cuda_follows_the_compute_capability(capability, dtype, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found, reason = autocast_dtype(CUDA)
    assert found == dtype
    assert ("{}.{}".format(*capability) in reason) == (capability < (8, 0))


def test_autocast_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autocast_dtype(MPS)[0] == torch.float16
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported, raising=False)
        assert autocast_dtype(CPU)[0] == dtype
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)  # a private name, which may go
    assert autocast_dtype(CPU)[0] == torch.float32


def draw_bits() -> list[object]:
    layer = torch.nn.Linear(3, 5)
    return [
        random.random(),
        np.random.rand(4).tobytes(),
        torch.randn(7).numpy().tobytes(),
        torch.nn.functional.dropout(torch.ones(100)).numpy().tobytes(),
        layer.weight.detach().numpy().tobytes(),
        torch.randperm(50).tolist(),
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_same_seed_gives_the_same_bits(seed: int) -> None:
    seed_everything(seed)
    first = draw_bits()
    seed_everything(seed)
    assert draw_bits() == first
    seed_everything(seed ^ 5)
    assert all(other != one for other, one in zip(draw_bits(), first, strict=True))


@pytest.mark.gpu
def test_the_same_seed_gives_the_same_bits_on_a_gpu() -> None:
    seed_everything(3)
    first = torch.randn(1000, device=CUDA)
    seed_everything(3)
    assert torch.equal(torch.randn(1000, device=CUDA), first)


def test_only_a_device_with_a_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: waited.append("peak"))
    for device in (CPU, CUDA, MPS):
        synchronize(device)
        reset_peak(device)
    assert waited == [CUDA, "peak", "mps"]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_on_the_cpu_follows_an_allocation() -> None:
    before = memory(CPU)
    block = torch.ones(64 * 2**20 // 4)  # 64 MiB, each page touched
    during = memory(CPU)
    del block
    after = memory(CPU)
    assert 60 * 2**20 < during.allocated_bytes - before.allocated_bytes < 100 * 2**20
    assert after.peak_bytes >= during.peak_bytes >= 0.99 * during.allocated_bytes
    assert 0 < during.free_bytes < during.total_bytes
    assert during.total_bytes == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.01)
    assert during.reserved_bytes == during.allocated_bytes


def test_memory_on_gpus_is_what_pytorch_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40, 80))
    for name, count in {"memory_allocated": 10, "memory_reserved": 20, "max_memory_allocated": 15}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, count=count: count)
    assert memory(CUDA) == devices.Memory(10, 20, 15, 40, 80)
    for name, count in {
        "recommended_max_memory": 80, "driver_allocated_memory": 30, "current_allocated_memory": 10
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.mps, name, lambda count=count: count)
    assert memory(MPS) == devices.Memory(10, 30, None, 50, 80)


@pytest.mark.gpu
def test_memory_on_a_gpu_follows_an_allocation() -> None:
    before = memory(CUDA)
    reset_peak(CUDA)
    block = torch.empty(64 * 2**20, dtype=torch.int8, device=CUDA)
    during = memory(CUDA)
    assert during.allocated_bytes - before.allocated_bytes == block.numel()
    assert during.peak_bytes >= during.allocated_bytes
    assert during.reserved_bytes >= during.allocated_bytes
    assert 0 < during.free_bytes < during.total_bytes


def test_the_description_fits_into_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = describe(CPU)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["kind"] == "cpu"
    assert facts["name"]
    assert facts["threads"] == torch.get_num_threads()
    assert 0 < facts["memory_gib"] < 10**5

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test 80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(devices, "memory", lambda device: devices.Memory(0, 0, 0, 2**30, 80 * 2**30))
    facts = describe(CUDA)
    assert facts | {"kind": "cuda", "name": "NVIDIA Test 80GB", "memory_gib": 80.0, "capability": "9.0"} == facts


@pytest.mark.parametrize(("slow_s", "left_with"), [(8e-3, 1), (30e-6, 2)])
def test_crowded_cores_are_left(monkeypatch: pytest.MonkeyPatch, slow_s: float, left_with: int) -> None:
    now_s, threads = 0.0, 2

    def read_clock() -> float:  # a loop on one thread takes 20 µs
        nonlocal now_s
        now_s += slow_s if threads == 2 else 20e-6
        return now_s

    def set_threads(count: int) -> None:
        nonlocal threads
        threads = count

    monkeypatch.setattr(devices, "time", SimpleNamespace(perf_counter=read_clock))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", set_threads)
    message = devices.leave_crowded_cores()
    assert threads == left_with
    assert (message is None) == (left_with == 2)
    if message:
        assert "2 threads are 400 times slower than one here" in message
        assert devices.leave_crowded_cores() is None  # one thread cannot be crowded out by itself


def test_a_processor_always_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    read = devices._processor_name.__wrapped__
    monkeypatch.setattr(devices.Path, "read_text", lambda *_, **__: "processor\t: 0\n")  # as on an Arm server
    monkeypatch.setattr(devices.platform, "processor", lambda: "")
    monkeypatch.setattr(devices.platform, "machine", lambda: "")
    monkeypatch.setattr(devices.platform, "system", lambda: "Linux")
    assert read() == "unknown processor"
    monkeypatch.setattr(devices.platform, "machine", lambda: "aarch64")
    assert read() == "aarch64"


def test_full_float32_is_given_back_after_an_error_too() -> None:
    kinds = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [kind.fp32_precision for kind in kinds]
    seen = []

    def fail_inside() -> None:
        with devices.full_float32():
            seen.extend(kind.fp32_precision for kind in kinds)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_inside()
    assert seen == ["ieee", "ieee"]
    assert [kind.fp32_precision for kind in kinds] == before
