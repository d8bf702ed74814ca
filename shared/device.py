"""Which device computes, what it is, and how to wait for it: one interface for CUDA, Apple's MPS and the CPU."""

import ctypes
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shared.errors import CannotRun
from shared.options import DEVICES

try:
    import torch
except ModuleNotFoundError:  # every script imports this module before torch, so that a beginner reads one line
    print(
        f"PyTorch is not installed for {sys.executable}: run `pip install -r requirements.txt` in the project's folder "
        "or start it with `uv run`",
        file=sys.stderr,
    )
    raise SystemExit(2) from None


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first of cuda, mps and cpu that is here. Raises CannotRun."""
    if name not in DEVICES:
        raise CannotRun(f"unknown device {name!r}; choose one of {', '.join(DEVICES)}")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if name == "cuda" and not cuda:
        raise CannotRun(
            "PyTorch sees no CUDA GPU here; `python lab.py doctor` says why, and --device cpu runs without one"
        )
    if name == "mps" and not mps:
        raise CannotRun("Apple's MPS needs macOS 14 on Apple silicon; use --device auto")
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Waits until everything queued on `device` has been computed; the CPU never has anything queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """The name that the maker gave the device, such as "NVIDIA A100-SXM4-80GB"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()


@cache
def _processor_name() -> str:
    if platform.system() == "Darwin":
        with suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown processor"


def describe(device: torch.device) -> dict[str, object]:
    """What a record says of the device: kind, name, memory_gib and, by kind, capability or threads."""
    facts: dict[str, object] = {"kind": device.type, "name": device_name(device)}
    total = memory(device).total_bytes
    facts["memory_gib"] = None if total is None else round(total / 2**30, 1)
    if device.type == "cuda":
        facts["capability"] = "{}.{}".format(*torch.cuda.get_device_capability(device))
    facts["threads"] = torch.get_num_threads()
    facts["system"] = f"{platform.system()} {platform.machine()}"
    return facts


def leave_crowded_cores() -> str | None:
    """Goes on with one thread where other programs keep PyTorch's threads from running; says so, or returns None.

    A parallel loop ends when its last thread does. Where that one waits for a core, the others spin until the
    operating system takes theirs away too, so a microsecond of work takes 8 ms (measured with two busy neighbours on
    two cores) and every figure would be about the neighbours.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return None
    x = torch.zeros(100_000)  # large enough to be divided, small enough to take microseconds

    def best_of_three_s() -> float:
        times = []
        for _ in range(4):  # the first one starts the threads
            start = time.perf_counter()
            for _ in range(5):
                x.add_(1.0)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    together_s = best_of_three_s()
    torch.set_num_threads(1)
    alone_s = best_of_three_s()
    if together_s > 5 * alone_s:
        return (
            f"Other programs keep the cores busy: {threads} threads are {together_s / alone_s:.0f} times slower than one "
            "here, so this run goes on with 1 thread. Stop them for the machine's full speed."
        )
    torch.set_num_threads(threads)
    return None


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, cuDNN's convolutions and recurrent layers keep all bits of float32, as products do anyway.

    By default they round what they multiply to TF32: 10 bits behind the point, of 23.
    """
    kinds: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, on every device."""
    random.seed(seed)
    with suppress(ImportError):
        import numpy as np

        np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def autocast_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The fast floating-point type for training on `device`, and the reason in a few words."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, "tensor cores take it, and it has float32's range, so no loss scaling"
        if major == 7:
            return (
                torch.float16,
                f"tensor cores take it; compute capability {major}.{minor} has no bfloat16 units",
            )
        return torch.float32, f"compute capability {major}.{minor} has no tensor cores"
    if device.type == "mps":
        return torch.float16, "the fast half type on Apple GPUs"
    if torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False:
        return torch.bfloat16, "this CPU has bfloat16 instructions"
    return torch.float32, "this CPU has no bfloat16 instructions"


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. None: this kind of device does not say."""

    allocated_bytes: int | None
    reserved_bytes: int | None
    peak_bytes: int | None
    free_bytes: int | None
    total_bytes: int | None


def memory(device: torch.device) -> Memory:
    """Memory now. On cuda of PyTorch's own allocator; on cpu of this process (resident set) and the machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device),
                      torch.cuda.max_memory_allocated(device), free, total)  # fmt: skip
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        used = torch.mps.driver_allocated_memory()
        return Memory(torch.mps.current_allocated_memory(), used, None, total - used, total)
    resident, peak = _process_memory()
    return Memory(resident, resident, peak, *_machine_memory())


def reset_peak(device: torch.device) -> None:
    """Starts a new peak on cuda; the other devices keep none that could be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _process_memory() -> tuple[int | None, int | None]:
    """Resident set and its peak, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"), peak
    return None, peak


def _machine_memory() -> tuple[int | None, int | None]:
    """Free (available without swapping) and total bytes of main memory."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return facts.get("MemAvailable"), facts.get("MemTotal")
    with suppress(AttributeError, OSError, ValueError):  # macOS
        return None, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(AttributeError, OSError):  # Windows

        class Status(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
                (f"n{i}", ctypes.c_ulonglong) for i in range(7)
            ]

        status = Status(length=ctypes.sizeof(Status))
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined, unused-ignore]
            return status.n1, status.n0
    return None, None
