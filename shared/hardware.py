"""What a device can do at most: the limits beside which the lab prints its measurements, each with its source.

A GPU is looked up by its exact name and memory size. One that is not in the table is unknown: its limits then follow
from the clocks and widths that the driver reports, labelled "derived", or are None. Nothing is guessed from a similar
name. A CPU has no such table; its limits are the best this process could measure, labelled "measured".
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

from shared.device import synchronize
from shared.telemetry import NVML_CLOCK_MEMORY, NVML_CLOCK_SM, Nvml, nvml_names

import torch

Unit = Literal["FLOP/s", "OP/s", "B/s"]


@dataclass(frozen=True)
class Limit:
    """An upper bound in SI units (FLOP/s, OP/s for integers, B/s), and where it comes from.

    A data-sheet peak holds at the boost clock that its maker states. A card that boosts higher can pass it (an
    RTX 4090 was seen at 178 of 165 TFLOP/s), one at its power cap stays well below it.
    """

    value: float
    unit: Unit
    source: str
    kind: Literal["data sheet", "derived", "measured"]


@dataclass(frozen=True)
class Peaks:
    """Dense matmul peaks in TFLOP/s (int8 in TOP/s); fp16, bf16 and fp8 with fp32 accumulation, torch's default.

    None is a figure that the source does not give, or a format that the chip has no unit for.
    """

    fp64: float | None = None  # without tensor cores
    fp64_tensor: float | None = None
    fp32: float | None = None  # without tensor cores
    tf32: float | None = None
    bf16: float | None = None
    fp16: float | None = None
    fp8: float | None = None
    int8: float | None = None


@dataclass(frozen=True)
class Gpu:
    """One product, as `torch.cuda.get_device_name` spells it."""

    name: str
    memory_gb: float
    bandwidth_gb_s: float | None
    peaks: Peaks
    source: str
    pcie_generation: int | None = None
    l2_mib: float | None = None
    host_link_gb_s: float | None = None  # per direction, where the GPU hangs on something faster than PCIe
    shared_name: bool = False  # sold under the same name with another memory size and other figures
    other_sources: tuple[tuple[str, str], ...] = ()  # (field, source) where it is not `source`

    def source_of(self, field: str) -> str:
        """Source of a field of this row or of its peaks."""
        return dict(self.other_sources).get(field, self.source)


# Many data sheets print tensor-core figures "with sparsity", twice the dense rate: the dense ones stand here.
# With fp32 accumulation GeForce cards run fp16, bf16 and fp8 at half the rate that is advertised (fp16 accumulation).
# The same chips in data-centre cards run at the full rate, except A10G and L40: no figure is carried between names.
_V100_SXM2 = Peaks(fp64=7.8, fp32=15.7, fp16=125)
_V100_PCIE = Peaks(fp64=7, fp32=14, fp16=112)
_A100 = Peaks(fp64=9.7, fp64_tensor=19.5, fp32=19.5, tf32=156, bf16=312, fp16=312, int8=624)
_H100_SXM = Peaks(fp64=34, fp64_tensor=67, fp32=67, tf32=494.5, bf16=989.5, fp16=989.5, fp8=1979, int8=1979)
_HOPPER_NVL = Peaks(fp64=30, fp64_tensor=60, fp32=60, tf32=417.5, bf16=835.5, fp16=835.5, fp8=1670.5, int8=1670.5)
_V100_SHEET = "NVIDIA V100 data sheet (2020)"
_A100_SHEET = "NVIDIA A100 data sheet"
_H100_SHEET = "NVIDIA H100 data sheet, halved where it counts sparsity"
_H200_SHEET = "NVIDIA H200 data sheet, halved where it counts sparsity"
_GH200_SHEET = "NVIDIA GH200 data sheet, halved where it counts sparsity"
_GA102_PAPER = "NVIDIA GA102 white paper v2"
_ADA_PAPER = "NVIDIA Ada white paper v2.02"  # 2.02 corrected fp8 with fp32 accumulation from 660.6 to 330.3
_BLACKWELL_PAPER = "NVIDIA RTX Blackwell white paper"
_L2_VOLTA = (("l2_mib", "NVIDIA Volta white paper"),)
_L2_AMPERE = (("l2_mib", "NVIDIA Ampere architecture white paper"),)
_L2_HOPPER = (("l2_mib", "NVIDIA H100 white paper"),)

GPUS: tuple[Gpu, ...] = (
    Gpu(
        "Tesla T4", 16, 320, Peaks(fp32=8.1, fp16=65, int8=130), "NVIDIA T4 data sheet (2019)", 3, 4,
        other_sources=(
            ("bandwidth_gb_s", "NVIDIA T4 product page (320+), as is 5001 MHz x 256 bit; the data sheet says 300"),
            ("l2_mib", "NVIDIA Turing white paper"),
        ),
    ),
    Gpu("Tesla V100-SXM2-16GB", 16, 900, _V100_SXM2, _V100_SHEET, 3, 6, other_sources=_L2_VOLTA),
    Gpu("Tesla V100-SXM2-32GB", 32, 900, _V100_SXM2, _V100_SHEET, 3, 6, other_sources=_L2_VOLTA),
    Gpu("Tesla V100-PCIE-16GB", 16, 900, _V100_PCIE, _V100_SHEET, 3, 6, other_sources=_L2_VOLTA),
    Gpu("Tesla V100-PCIE-32GB", 32, 900, _V100_PCIE, _V100_SHEET, 3, 6, other_sources=_L2_VOLTA),
    Gpu(
        "Tesla V100S-PCIE-32GB", 32, 1134, Peaks(fp64=8.2, fp32=16.4, fp16=130), _V100_SHEET, 3, 6,
        other_sources=_L2_VOLTA,
    ),
    Gpu("NVIDIA A100-SXM4-40GB", 40, 1555, _A100, _A100_SHEET + " (2020)", 4, 40, other_sources=_L2_AMPERE),
    Gpu("NVIDIA A100-SXM4-80GB", 80, 2039, _A100, _A100_SHEET + " (2021)", 4, 40, other_sources=_L2_AMPERE),
    Gpu("NVIDIA A100-PCIE-40GB", 40, 1555, _A100, _A100_SHEET + " (2020)", 4, 40, other_sources=_L2_AMPERE),
    Gpu("NVIDIA A100 80GB PCIe", 80, 1935, _A100, _A100_SHEET + " (2021)", 4, 40, other_sources=_L2_AMPERE),
    Gpu(
        "NVIDIA A30", 24, 933,
        Peaks(fp64=5.2, fp64_tensor=10.3, fp32=10.3, tf32=82, bf16=165, fp16=165, int8=330),
        "NVIDIA A30 data sheet (2021)", 4,
    ),
    Gpu(
        "NVIDIA A10", 24, 600, Peaks(fp32=31.2, tf32=62.5, bf16=125, fp16=125, int8=250),
        "NVIDIA A10 data sheet (2021)", 4,
    ),
    Gpu(
        "NVIDIA A10G", 24, 600, Peaks(fp32=35, tf32=35, bf16=70, fp16=70, int8=140),
        "NVIDIA A10G data sheet for AWS (2022)", 4,
    ),
    Gpu(
        "NVIDIA A40", 48, 696, Peaks(fp32=37.4, tf32=74.8, bf16=149.7, fp16=149.7, int8=299.3),
        "NVIDIA A40 data sheet", 4,
    ),
    Gpu(
        "NVIDIA RTX A6000", 48, 768, Peaks(fp32=38.7, tf32=77.4, bf16=154.8, fp16=154.8, int8=309.7),
        _GA102_PAPER, 4, 6,
    ),
    Gpu(
        "NVIDIA GeForce RTX 3060", 12, 360, Peaks(fp32=12.7, tf32=12.7, bf16=25.5, fp16=25.5, int8=101.9),
        "GeForce RTX 3060 product page (28 SM, 1.777 GHz) x rates per SM of the " + _GA102_PAPER, 4,
        shared_name=True,  # also with 8 GB on 128 bit
    ),
    Gpu(
        "NVIDIA GeForce RTX 3070", 8, 448, Peaks(fp32=20.3, tf32=20.3, bf16=40.6, fp16=40.6, int8=162.6),
        _GA102_PAPER, 4, 4,
    ),
    Gpu(
        "NVIDIA GeForce RTX 3080", 10, 760, Peaks(fp32=29.8, tf32=29.8, bf16=59.5, fp16=59.5, int8=238),
        _GA102_PAPER, 4, 5,
        shared_name=True,  # also with 12 GB on 384 bit and 70 SM
    ),
    Gpu(
        "NVIDIA GeForce RTX 3090", 24, 936, Peaks(fp32=35.6, tf32=35.6, bf16=71, fp16=71, int8=284),
        _GA102_PAPER, 4, 6,
    ),
    Gpu(
        "NVIDIA GeForce RTX 3090 Ti", 24, 1008, Peaks(fp32=40, tf32=40, bf16=80, fp16=80, int8=320),
        _ADA_PAPER, 4, 6,
    ),
    Gpu(
        "NVIDIA GeForce RTX 4070", 12, None,  # GDDR6X or slower GDDR6 under one name: the driver tells
        Peaks(fp32=29.1, tf32=29.1, bf16=58.3, fp16=58.3, fp8=116.6, int8=233.2),
        "GeForce RTX 4070 product page (46 SM, 2.475 GHz) x rates per SM of the " + _ADA_PAPER, 4,
    ),
    Gpu(
        "NVIDIA GeForce RTX 4080", 16, 716.8,
        Peaks(fp32=48.7, tf32=48.7, bf16=97.5, fp16=97.5, fp8=194.9, int8=389.9), _ADA_PAPER, 4, 64,
    ),
    Gpu(
        "NVIDIA GeForce RTX 4090", 24, 1008,
        Peaks(fp32=82.6, tf32=82.6, bf16=165.2, fp16=165.2, fp8=330.3, int8=660.6), _ADA_PAPER, 4, 72,
    ),
    Gpu(
        "NVIDIA RTX 6000 Ada Generation", 48, 960,
        Peaks(fp32=91.1, tf32=182, bf16=364, fp16=364, fp8=728, int8=728),
        "NVIDIA RTX PRO Blackwell white paper v1.0, table 4", 4,
    ),
    Gpu(
        "NVIDIA L4", 24, 300, Peaks(fp32=30.3, tf32=60, bf16=121, fp16=121, fp8=242.5, int8=242.5),
        "NVIDIA L4 data sheet (2023), halved where it counts sparsity", 4,
    ),
    Gpu(  # the data sheet's int8 (362 dense) is half of what this chip does in an RTX 4090, so it is left out
        "NVIDIA L40", 48, 864, Peaks(fp32=90.5, tf32=90.5, bf16=181.05, fp16=181.05, fp8=362),
        "NVIDIA L40 data sheet", 4,
    ),
    Gpu(
        "NVIDIA L40S", 48, 864, Peaks(fp32=91.6, tf32=183, bf16=362.05, fp16=362.05, fp8=733, int8=733),
        "NVIDIA L40S data sheet", 4,
    ),
    Gpu("NVIDIA H100 80GB HBM3", 80, 3350, _H100_SXM, _H100_SHEET, 5, 50, other_sources=_L2_HOPPER),
    Gpu(
        "NVIDIA H100 PCIe", 80, 2000,
        Peaks(fp64=25.6, fp64_tensor=51.2, fp32=51.2, tf32=378, bf16=756, fp16=756, fp8=1513, int8=1513),
        "NVIDIA H100 white paper v1.04", 5, 50,
    ),
    Gpu(
        "NVIDIA H100 NVL", 94, 3938, _HOPPER_NVL, _H100_SHEET, 5,
        other_sources=(("bandwidth_gb_s", "NVIDIA H100 NVL product brief (2024)"),),
    ),
    Gpu("NVIDIA H200", 141, 4800, _H100_SXM, _H200_SHEET, 5),
    Gpu("NVIDIA H200 NVL", 141, 4800, _HOPPER_NVL, _H200_SHEET, 5),
    # The number in a GH200's name is the CPU's memory, except in the third.
    Gpu("NVIDIA GH200 120GB", 96, 4000, _H100_SXM, _GH200_SHEET, host_link_gb_s=450),
    Gpu("NVIDIA GH200 480GB", 96, 4000, _H100_SXM, _GH200_SHEET, host_link_gb_s=450),
    Gpu("NVIDIA GH200 144G HBM3e", 144, 4900, _H100_SXM, _GH200_SHEET, host_link_gb_s=450),
    Gpu(
        "NVIDIA B200", 180, 8000,
        Peaks(fp64=37, fp64_tensor=37, fp32=75, tf32=1125, bf16=2250, fp16=2250, fp8=4500, int8=4500),
        "NVIDIA HGX B200 specifications, an eighth of the board, halved where they count sparsity",
        other_sources=(("bandwidth_gb_s", "NVIDIA DGX B200 data sheet, an eighth of the system"),),
    ),
    Gpu(
        "NVIDIA GeForce RTX 5080", 16, 960,
        Peaks(fp32=56.3, tf32=56.3, bf16=112.6, fp16=112.6, fp8=225.1, int8=450.2), _BLACKWELL_PAPER, 5, 64,
    ),
    Gpu(
        "NVIDIA GeForce RTX 5090", 32, 1792,
        Peaks(fp32=104.8, tf32=104.8, bf16=209.5, fp16=209.5, fp8=419, int8=838), _BLACKWELL_PAPER, 5, 96,
    ),
)  # fmt: skip

# CUDA cores per SM by compute capability: CUDA C++ Programming Guide, "Compute Capabilities". No fp64 where cuBLAS has
# fp64 tensor cores to use instead: the cores would understate the limit.
CUDA_CORES = {
    (7, 0): {"fp32": 64, "fp64": 32},
    (7, 5): {"fp32": 64, "fp64": 2},
    (8, 0): {"fp32": 64},
    (8, 6): {"fp32": 128, "fp64": 2},
    (8, 7): {"fp32": 128, "fp64": 2},
    (8, 9): {"fp32": 128, "fp64": 2},
    (9, 0): {"fp32": 128},
    (10, 0): {"fp32": 128},
    (12, 0): {"fp32": 128, "fp64": 2},
}
# Bytes per second and lane in one direction: transfers per second, 8b/10b coding up to generation 2, then 128b/130b.
PCIE_LANE_B_S = {1: 2.5e9 / 10, 2: 5e9 / 10, 3: 8e9 / 8 * 128 / 130, 4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130}

PEAK_FIELDS = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.int8: "int8",
}


def identify(name: str, memory_gib: float | None = None) -> Gpu | None:
    """The row of the table for a device name and its memory as torch gives them; None unless it is exactly one.

    So a slice ("… MIG 1g.5gb"), a "Laptop GPU", a "D" and a virtual GPU are unknown. The memory that torch reports is
    the printed size less up to 10 % (ECC, driver); any other size is another product.
    """
    for gpu in GPUS:
        if gpu.name == name:
            if memory_gib is None:
                return None if gpu.shared_name else gpu
            return gpu if 0.88 < memory_gib / gpu.memory_gb < 1.02 else None
    return None


def _gpu_of(device: torch.device) -> Gpu | None:
    properties = torch.cuda.get_device_properties(device)
    return identify(properties.name, properties.total_memory / 2**30)


def _clock_hz(device: torch.device, name: Literal["clock_rate", "memory_clock_rate"]) -> float:
    # Built for CUDA 13, torch reads these two for the current device, whichever device the properties are of.
    with torch.cuda.device(device):
        return 1e3 * float(getattr(torch.cuda.get_device_properties(device), name, 0))


def _unit(dtype: torch.dtype) -> Unit:
    return "OP/s" if dtype == torch.int8 else "FLOP/s"


def matmul_peak(device: torch.device, dtype: torch.dtype, *, tf32: bool = False) -> Limit | None:
    """Dense matmul peak of a device in FLOP/s (int8 in OP/s); None where it is not known.

    `tf32` says that float32 products may use TF32; it changes nothing on a device without it. float64 is the peak of
    the fp64 tensor cores where there are any, because cuBLAS uses them.
    """
    field = PEAK_FIELDS.get(dtype)
    if field is None:
        return None
    if device.type != "cuda":
        return _measure_matmul(device, dtype, torch.get_num_threads())
    if field == "fp32" and tf32 and torch.cuda.get_device_properties(device).major >= 8:
        field = "tf32"
    if gpu := _gpu_of(device):
        for column in ("fp64_tensor", "fp64") if field == "fp64" else (field,):
            if tera := getattr(gpu.peaks, column):
                return Limit(tera * 1e12, _unit(dtype), gpu.source_of(column), "data sheet")
    return _cuda_core_peak(device, field)


def _cuda_core_peak(device: torch.device, field: str) -> Limit | None:
    properties = torch.cuda.get_device_properties(device)
    cores = CUDA_CORES.get((properties.major, properties.minor), {}).get(field)  # none for what tensor cores compute
    clock_hz = _clock_hz(device, "clock_rate")
    if torch.version.hip or not cores or not clock_hz:
        return None
    sms = properties.multi_processor_count
    source = f"{sms} SMs x {cores} {field} cores x 2 operations x {clock_hz / 1e6:.0f} MHz"
    return Limit(sms * cores * 2 * clock_hz, "FLOP/s", source, "derived")


def memory_bandwidth(device: torch.device) -> Limit | None:
    """Bandwidth of a device's main memory in B/s, reads and writes together; None where it is not known."""
    if device.type != "cuda":
        return _measure_copy(device, torch.get_num_threads())
    gpu = _gpu_of(device)
    if gpu and gpu.bandwidth_gb_s:
        return Limit(gpu.bandwidth_gb_s * 1e9, "B/s", gpu.source_of("bandwidth_gb_s"), "data sheet")
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip or " MIG " in properties.name:  # a slice shares the bus that it reports
        return None
    clock_hz, bus_bits = _clock_hz(device, "memory_clock_rate"), getattr(properties, "memory_bus_width", 0)
    if not clock_hz or not bus_bits:
        with Nvml(*nvml_names(device)) as nvml:
            clock_hz = 1e6 * (nvml.ask("nvmlDeviceGetMaxClockInfo", NVML_CLOCK_MEMORY) or 0)
            bus_bits = nvml.ask("nvmlDeviceGetMemoryBusWidth") or 0
    if not clock_hz or not bus_bits:
        return None
    source = f"memory clock x bus width: {clock_hz / 1e6:.0f} MHz x 2 per clock x {bus_bits} bit"
    return Limit(clock_hz * 2 * bus_bits / 8, "B/s", source, "derived")


def link_bandwidth(device: torch.device) -> Limit | None:
    """Bandwidth between host and GPU in one direction in B/s; None where there is no such link or it is not known.

    An idle card falls back to PCIe generation 1 and wakes when it copies, so the generation is the highest that card
    and slot have in common. The width is the one negotiated now: a card in a half-wired slot shows here.
    """
    if device.type != "cuda":
        return None
    gpu = _gpu_of(device)
    if gpu and gpu.host_link_gb_s:
        return Limit(gpu.host_link_gb_s * 1e9, "B/s", f"{gpu.source}: NVLink-C2C, one direction", "data sheet")
    with Nvml(*nvml_names(device)) as nvml:
        width = nvml.ask("nvmlDeviceGetCurrPcieLinkWidth")
        queries = ("nvmlDeviceGetCurrPcieLinkGeneration", "nvmlDeviceGetMaxPcieLinkGeneration")
        generation = max(nvml.ask(query) or 0 for query in queries)
    if not width or generation not in PCIE_LANE_B_S:
        return None
    source = f"PCIe {generation} x{width}, one direction, less line coding; packet headers take 5 to 15 % of it"
    return Limit(PCIE_LANE_B_S[generation] * width, "B/s", source, "derived")


def describe_gpu(device: torch.device) -> dict[str, object]:
    """The device card of a CUDA device; None for what neither torch nor NVML tells here."""
    properties = torch.cuda.get_device_properties(device)
    with Nvml(*nvml_names(device)) as nvml:
        power_mw = nvml.ask("nvmlDeviceGetEnforcedPowerLimit")
        return {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": properties.total_memory / 2**30,
            "l2_cache_mib": getattr(properties, "L2_cache_size", 0) / 2**20 or None,
            "driver": nvml.ask_driver("nvmlSystemGetDriverVersion"),
            "sm_clock_mhz": nvml.ask("nvmlDeviceGetClockInfo", NVML_CLOCK_SM),
            "sm_clock_max_mhz": nvml.ask("nvmlDeviceGetMaxClockInfo", NVML_CLOCK_SM),
            "memory_clock_mhz": nvml.ask("nvmlDeviceGetClockInfo", NVML_CLOCK_MEMORY),
            "memory_clock_max_mhz": nvml.ask("nvmlDeviceGetMaxClockInfo", NVML_CLOCK_MEMORY),
            "power_limit_w": None if power_mw is None else power_mw / 1000,
            "pcie_generation": nvml.ask("nvmlDeviceGetCurrPcieLinkGeneration"),
            "pcie_generation_max": nvml.ask("nvmlDeviceGetMaxPcieLinkGeneration"),
            "pcie_width": nvml.ask("nvmlDeviceGetCurrPcieLinkWidth"),
            "pcie_width_max": nvml.ask("nvmlDeviceGetMaxPcieLinkWidth"),
        }


def measure_cpu_peak(dtype: torch.dtype) -> Limit | None:
    """Best matmul rate of this process on the CPU; None where torch has no such matmul.

    Takes about half a second, once per process, dtype and number of threads.
    """
    return _measure_matmul(torch.device("cpu"), dtype, torch.get_num_threads())


def measure_cpu_bandwidth() -> Limit:
    """Best copy rate of this process in main memory, reads and writes counted.

    Takes about half a second, once per process and number of threads.
    """
    return _measure_copy(torch.device("cpu"), torch.get_num_threads())


def _time_s(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def _measured(rate: float, unit: Unit, how: str, device: torch.device, threads: int) -> Limit:
    where = f"threads={threads}" if device.type == "cpu" else device.type
    return Limit(rate, unit, f"measured here: best of {how}, {where}", "measured")


@cache
def _measure_matmul(device: torch.device, dtype: torch.dtype, threads: int) -> Limit | None:
    generator = torch.Generator().manual_seed(0)  # its own: the learner's seed must give the same numbers after this
    deadline = time.perf_counter() + 0.15
    best_rate, best_n, runs, n = 0.0, 0, 0, 128
    # Sizes double until a product takes 15 ms, so that a dtype which this processor computes a hundred times slower
    # stops at a small one (30 ms while the rate still rises: on a busy machine the threads' waiting for each other
    # alone took 24). What is left of the time goes into more runs of the largest.
    operands_n = 0
    while time.perf_counter() < deadline:
        if n != operands_n:
            host = torch.empty(n, n, dtype=torch.float32, device="cpu")  # whatever the script's defaults are
            try:
                a, b = (host.normal_(0, 2, generator=generator).to(device, dtype, copy=True) for _ in range(2))
                product = torch.mm(a, b)  # also the warm-up
            except (RuntimeError, TypeError):  # no such matmul on this device: float64 on MPS
                return None
            operands_n = n
        elapsed_s = min(_time_s(partial(torch.mm, a, b, out=product), device) for _ in range(3))
        rate, runs = 2 * n**3 / elapsed_s, runs + 3
        longest_s = 0.03 if rate > 1.5 * best_rate else 0.015
        if rate > best_rate:
            best_rate, best_n = rate, n
        if elapsed_s < longest_s and n < 4096:
            n *= 2
    return _measured(best_rate, _unit(dtype), f"{runs} matmuls, at N={best_n}", device, threads)


def _last_level_cache_mib() -> int:
    """All last-level caches together; 64 where Linux does not tell."""
    try:
        caches = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3")
        kib = {(c / "shared_cpu_list").read_text(): int((c / "size").read_text().rstrip("K\n")) for c in caches}
    except (OSError, ValueError):
        kib = {}
    return sum(kib.values()) // 2**10 or 64


@cache
def _measure_copy(device: torch.device, threads: int) -> Limit:
    mib = min(max(4 * _last_level_cache_mib(), 64), 512)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(2**18, device="cpu", generator=generator)  # 1 MiB; copies of bytes are a third slower here
    source = block.repeat(mib).to(device)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    copy()  # the first touch of the target's pages costs far more than a copy
    deadline = time.perf_counter() + 0.15
    times_s = [_time_s(copy, device)]
    while len(times_s) < 20 and time.perf_counter() < deadline:
        times_s.append(_time_s(copy, device))
    how = f"{len(times_s)} copies of {mib} MiB, read + write"
    return _measured(2 * source.nbytes / min(times_s), "B/s", how, device, threads)
