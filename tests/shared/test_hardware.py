"""The limits against published figures, and their derivation against the clocks that the makers print."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from types import ModuleType, SimpleNamespace

from shared import hardware
from shared.hardware import (
    GPUS,
    PCIE_LANE_B_S,
    Gpu,
    Limit,
    Peaks,
    describe_gpu,
    identify,
    link_bandwidth,
    matmul_peak,
    measure_cpu_bandwidth,
    measure_cpu_peak,
    memory_bandwidth,
)

import pytest
import torch

CPU = torch.device("cpu")
ROWS = {gpu.name: gpu for gpu in GPUS}
FIGURES = [field.name for field in fields(Peaks)]

# name, GiB that torch reports, GB/s, bf16 (fp16 before Ampere) TFLOP/s
KNOWN = [
    ("Tesla T4", 14.56, 320, 65),
    ("Tesla V100-SXM2-16GB", 15.77, 900, 125),
    ("Tesla V100-SXM2-32GB", 31.73, 900, 125),
    ("Tesla V100-PCIE-16GB", 15.77, 900, 112),
    ("Tesla V100-PCIE-32GB", 31.73, 900, 112),
    ("Tesla V100S-PCIE-32GB", 31.73, 1134, 130),
    ("NVIDIA A100-SXM4-40GB", 39.39, 1555, 312),
    ("NVIDIA A100-SXM4-80GB", 79.25, 2039, 312),
    ("NVIDIA A100-PCIE-40GB", 39.39, 1555, 312),
    ("NVIDIA A100 80GB PCIe", 79.25, 1935, 312),
    ("NVIDIA A30", 23.6, 933, 165),
    ("NVIDIA A10", 22.06, 600, 125),
    ("NVIDIA A10G", 22.06, 600, 70),
    ("NVIDIA A40", 44.43, 696, 149.7),
    ("NVIDIA RTX A6000", 47.54, 768, 154.8),
    ("NVIDIA GeForce RTX 3060", 11.76, 360, 25.5),
    ("NVIDIA GeForce RTX 3070", 7.79, 448, 40.6),
    ("NVIDIA GeForce RTX 3080", 9.77, 760, 59.5),
    ("NVIDIA GeForce RTX 3090", 23.69, 936, 71),
    ("NVIDIA GeForce RTX 3090 Ti", 23.69, 1008, 80),
    ("NVIDIA GeForce RTX 4070", 11.99, None, 58.3),
    ("NVIDIA GeForce RTX 4080", 15.99, 716.8, 97.5),
    ("NVIDIA GeForce RTX 4090", 23.65, 1008, 165.2),
    ("NVIDIA GeForce RTX 5080", 15.47, 960, 112.6),
    ("NVIDIA GeForce RTX 5090", 31.36, 1792, 209.5),
    ("NVIDIA RTX 6000 Ada Generation", 47.37, 960, 364),
    ("NVIDIA L4", 22.03, 300, 121),
    ("NVIDIA L40", 44.39, 864, 181.05),
    ("NVIDIA L40S", 44.39, 864, 362.05),
    ("NVIDIA H100 80GB HBM3", 79.1, 3350, 989.5),
    ("NVIDIA H100 PCIe", 79.1, 2000, 756),
    ("NVIDIA H100 NVL", 93.1, 3938, 835.5),
    ("NVIDIA H200", 139.8, 4800, 989.5),
    ("NVIDIA H200 NVL", 139.8, 4800, 835.5),
    ("NVIDIA GH200 120GB", 94.5, 4000, 989.5),
    ("NVIDIA GH200 480GB", 94.5, 4000, 989.5),
    ("NVIDIA GH200 144G HBM3e", 142.5, 4900, 989.5),
    ("NVIDIA B200", 178.4, 8000, 2250),
]

# What the makers print beside the figures: capability, SMs, boost MHz, memory MHz (half the data rate), bus width in bit.
CLOCKS = {
    "Tesla T4": ((7, 5), 40, 1590, 5001, 256),
    "Tesla V100-SXM2-16GB": ((7, 0), 80, 1530, 877, 4096),
    "NVIDIA A100-SXM4-40GB": ((8, 0), 108, 1410, 1215, 5120),
    "NVIDIA A100-SXM4-80GB": ((8, 0), 108, 1410, 1593, 5120),
    "NVIDIA A30": ((8, 0), 56, 1440, 1215, 3072),
    "NVIDIA A10": ((8, 6), 72, 1695, 6251, 384),
    "NVIDIA A40": ((8, 6), 84, 1740, 7251, 384),
    "NVIDIA RTX A6000": ((8, 6), 84, 1800, 8001, 384),
    "NVIDIA GeForce RTX 3090": ((8, 6), 82, 1695, 9751, 384),
    "NVIDIA GeForce RTX 4090": ((8, 9), 128, 2520, 10501, 384),
    "NVIDIA L4": ((8, 9), 58, 2040, 6251, 192),
    "NVIDIA L40S": ((8, 9), 142, 2520, 9001, 384),
    "NVIDIA H100 80GB HBM3": ((9, 0), 132, 1980, 2619, 5120),
    "NVIDIA H100 PCIe": ((9, 0), 114, 1755, 1593, 5120),
    "NVIDIA H100 NVL": ((9, 0), 132, 1785, 2619, 6016),
    "NVIDIA H200": ((9, 0), 132, 1980, 3201, 6144),
    "NVIDIA B200": ((10, 0), 148, 1965, 3996, 8192),
    "NVIDIA GeForce RTX 5090": ((12, 0), 170, 2407, 14001, 512),
}

PretendGpu = Callable[..., torch.device]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> PretendGpu:
    """Gives torch one CUDA device with the properties asked for, and by default no NVML."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def install(name: str = "NVIDIA Unheard-of", gib: float = 10, **more: object) -> torch.device:
        facts = {
            "name": name,
            "total_memory": int(gib * 2**30),
            "major": 8,
            "minor": 6,
            "multi_processor_count": 10,
            "clock_rate": 0,
            "memory_clock_rate": 0,
            "memory_bus_width": 0,
        }
        properties = SimpleNamespace(**(facts | more))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "device", _NoDeviceSwitch)
        return torch.device("cuda", 0)

    return install


class _NoDeviceSwitch:
    def __init__(self, device: torch.device) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def install_nvml(monkeypatch: pytest.MonkeyPatch, **answers: object) -> None:
    """An NVML that knows one GPU, by PCI address 00000000:07:00.0, and answers or refuses (no answer given)."""

    class Refused(Exception):
        pass

    module = ModuleType("pynvml")

    def query(name: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            if name not in answers:
                raise Refused("Not Supported")
            answer = answers[name]
            return answer[arguments[-1]] if isinstance(answer, dict) else answer

        return call

    names = ["nvmlSystemGetDriverVersion", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetMemoryBusWidth"]
    names += ["nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo"]
    names += [f"nvmlDeviceGet{kind}PcieLink{what}" for kind in ("Curr", "Max") for what in ("Generation", "Width")]
    for name in names:
        setattr(module, name, query(name))
    module.NVMLError = Refused
    module.nvmlInit = module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetHandleByPciBusId = {"00000000:07:00.0": "the card"}.get
    monkeypatch.setitem(sys.modules, "pynvml", module)


ADDRESS = {"pci_domain_id": 0, "pci_bus_id": 7, "pci_device_id": 0}


@pytest.mark.parametrize(("name", "gib", "bandwidth_gb_s", "half_tflops"), KNOWN, ids=[row[0] for row in KNOWN])
def test_a_known_gpu(name: str, gib: float, bandwidth_gb_s: float | None, half_tflops: float) -> None:
    gpu = identify(name, gib)
    assert gpu is not None
    assert gpu.name == name
    assert gpu.bandwidth_gb_s == bandwidth_gb_s
    assert gpu.peaks.fp16 == half_tflops
    assert gpu.peaks.bf16 == (None if name.startswith("Tesla") else half_tflops)


def test_every_row_is_tested() -> None:
    assert [row[0] for row in sorted(KNOWN)] == sorted(ROWS)
    assert len(ROWS) == len(GPUS)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA L40S-48Q",
        "NVIDIA L400",
        "NVIDIA L2",
        "L4",
        "nvidia l4",
        "NVIDIA L4 ",
        "NVIDIA A100",
        "NVIDIA A100X",
        "NVIDIA A10M",
        "NVIDIA A16",
        "NVIDIA A800-SXM4-80GB",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "GRID A100-10C",
        "NVIDIA A40-12Q",
        "NVIDIA H100",
        "NVIDIA H100 64GB HBM2",
        "NVIDIA H100 80GB HBM3e",
        "NVIDIA H800",
        "NVIDIA H20",
        "NVIDIA GH200",
        "NVIDIA GB200",
        "NVIDIA B100",
        "Tesla V100-SXM3-32GB",
        "Tesla V100-DGXS-32GB",
        "Tesla T40",
        "NVIDIA T400",
        "NVIDIA RTX A5000",
        "NVIDIA RTX 6000",
        "Quadro RTX 6000",
        "NVIDIA RTX 5000 Ada Generation",
        "NVIDIA GeForce RTX 3060 Ti",
        "NVIDIA GeForce RTX 3060 Laptop GPU",
        "NVIDIA GeForce RTX 3080 Ti",
        "NVIDIA GeForce RTX 4070 SUPER",
        "NVIDIA GeForce RTX 4080 SUPER",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_a_look_alike_is_unknown(name: str) -> None:
    assert identify(name) is None
    assert all(identify(name, gpu.memory_gb * 0.98) is None for gpu in GPUS)


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("NVIDIA GeForce RTX 3080", 11.76),  # the 12 GB card: other SMs, another bus
        ("NVIDIA GeForce RTX 3060", 7.8),
        ("NVIDIA A100-SXM4-80GB", 39.4),
        ("NVIDIA A40", 11.9),  # part of a card in a virtual machine
        ("NVIDIA GeForce RTX 4090", 47.4),  # a modified card
        ("NVIDIA L4", math.nan),
    ],
)
def test_another_memory_size_is_another_product(name: str, gib: float) -> None:
    assert identify(name, gib) is None


def test_a_name_that_two_products_share_needs_the_memory_size() -> None:
    assert identify("NVIDIA GeForce RTX 3080") is None
    assert identify("NVIDIA GeForce RTX 3060") is None
    assert identify("NVIDIA H200") is ROWS["NVIDIA H200"]


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_a_row_is_plausible_in_itself(gpu: Gpu) -> None:
    figures = {name: getattr(gpu.peaks, name) for name in FIGURES}
    figures |= {name: getattr(gpu, name) for name in ("memory_gb", "bandwidth_gb_s", "l2_mib", "pcie_generation")}
    for name, figure in figures.items():
        assert figure is None or figure > 0
        assert len(gpu.source_of(name)) > 10
    assert {name for name, _ in gpu.other_sources} <= figures.keys()
    assert gpu.pcie_generation in (*PCIE_LANE_B_S, None)
    p = gpu.peaks
    rising = [figure for figure in (p.fp64, p.fp64_tensor) if figure]
    assert rising == sorted(rising)
    rising = [figure for figure in (p.fp32, p.tf32, p.bf16 or p.fp16, p.fp8) if figure]
    assert rising == sorted(rising)
    assert p.fp32 is not None
    assert p.fp16 is not None
    if p.bf16:
        assert p.bf16 == p.fp16
        assert 1.95 < p.bf16 / p.tf32 < 2.05
    if p.fp8:
        assert 1.95 < p.fp8 / p.bf16 < 2.05
    if p.int8:  # twice bf16, four times where fp32 accumulation halves it
        assert any(abs(p.int8 / p.fp16 - ratio) < 0.05 for ratio in (2, 4))
    # No kernel of a GEMM's size is bound by memory: tens to hundreds of operations a byte.
    assert gpu.bandwidth_gb_s is None or 50 < p.fp16 * 1e3 / gpu.bandwidth_gb_s < 500


def test_peaks_come_in_si_units_with_their_source(pretend: PretendGpu) -> None:
    h200 = pretend("NVIDIA H200", 139.8, major=9, minor=0)
    source = "NVIDIA H200 data sheet, halved where it counts sparsity"
    assert matmul_peak(h200, torch.bfloat16) == Limit(989.5e12, "FLOP/s", source, "data sheet")
    assert matmul_peak(h200, torch.float16) == Limit(989.5e12, "FLOP/s", source, "data sheet")
    assert matmul_peak(h200, torch.float32) == Limit(67e12, "FLOP/s", source, "data sheet")
    assert matmul_peak(h200, torch.float32, tf32=True) == Limit(494.5e12, "FLOP/s", source, "data sheet")
    assert matmul_peak(h200, torch.bfloat16, tf32=True) == Limit(989.5e12, "FLOP/s", source, "data sheet")
    assert matmul_peak(h200, torch.float64) == Limit(67e12, "FLOP/s", source, "data sheet")  # fp64 tensor cores
    assert matmul_peak(h200, torch.float8_e4m3fn) == matmul_peak(h200, torch.float8_e5m2)
    assert matmul_peak(h200, torch.int8) == Limit(1979e12, "OP/s", source, "data sheet")
    assert matmul_peak(h200, torch.int64) is None
    assert matmul_peak(h200, torch.complex64) is None
    assert memory_bandwidth(h200) == Limit(4.8e12, "B/s", source, "data sheet")


def test_a_figure_with_a_source_of_its_own(pretend: PretendGpu) -> None:
    limit = memory_bandwidth(pretend("Tesla T4", 14.56, major=7, minor=5))
    assert limit is not None
    assert limit.value == 320e9
    assert "product page" in limit.source


def test_formats_that_a_chip_lacks(pretend: PretendGpu) -> None:
    v100 = pretend("Tesla V100-SXM2-16GB", 15.77, major=7, minor=0)
    assert matmul_peak(v100, torch.float32, tf32=True) == matmul_peak(v100, torch.float32)
    assert matmul_peak(v100, torch.float32).value == 15.7e12
    assert matmul_peak(v100, torch.float64).value == 7.8e12
    assert matmul_peak(v100, torch.bfloat16) is None
    assert matmul_peak(v100, torch.float8_e4m3fn) is None
    a100 = pretend("NVIDIA A100-SXM4-40GB", 39.4, major=8, minor=0)
    assert matmul_peak(a100, torch.float64).value == 19.5e12
    assert matmul_peak(a100, torch.float8_e4m3fn) is None


@pytest.mark.parametrize("name", CLOCKS)
def test_derived_limits_agree_with_the_data_sheet(pretend: PretendGpu, name: str) -> None:
    (major, minor), sms, boost_mhz, memory_mhz, bus_bits = CLOCKS[name]
    unknown = pretend(
        major=major,
        minor=minor,
        multi_processor_count=sms,
        clock_rate=boost_mhz * 1000,
        memory_clock_rate=memory_mhz * 1000,
        memory_bus_width=bus_bits,
    )
    bandwidth, peak = memory_bandwidth(unknown), matmul_peak(unknown, torch.float32)
    assert (bandwidth.kind, bandwidth.unit, peak.kind, peak.unit) == ("derived", "B/s", "derived", "FLOP/s")
    assert bandwidth.value == pytest.approx(ROWS[name].bandwidth_gb_s * 1e9, rel=0.05)
    assert peak.value == pytest.approx(ROWS[name].peaks.fp32 * 1e12, rel=0.05)
    assert f"{bus_bits} bit" in bandwidth.source
    assert f"{boost_mhz} MHz" in peak.source
    double = matmul_peak(unknown, torch.float64)
    if ROWS[name].peaks.fp64_tensor:
        assert double is None  # cuBLAS uses units that the cores say nothing about
    elif ROWS[name].peaks.fp64:
        assert double.value == pytest.approx(ROWS[name].peaks.fp64 * 1e12, rel=0.05)
    else:  # Turing 1/32, GA10x and later 1/64 of fp32, say the white papers
        assert peak.value / double.value == (32 if major == 7 else 64)
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8):
        assert matmul_peak(unknown, dtype) is None
    tf32 = matmul_peak(unknown, torch.float32, tf32=True)
    assert tf32 == (peak if major < 8 else None)


def test_a_known_card_fills_what_its_source_leaves_out(pretend: PretendGpu) -> None:
    card = pretend(
        "NVIDIA GeForce RTX 4070", 11.99, minor=9, memory_clock_rate=10_501_000, memory_bus_width=192,
        multi_processor_count=46, clock_rate=2_475_000,
    )  # fmt: skip
    assert memory_bandwidth(card).kind == "derived"
    assert memory_bandwidth(card).value == pytest.approx(504e9, rel=0.01)
    assert matmul_peak(card, torch.float32).kind == "data sheet"
    assert matmul_peak(card, torch.float64).value == pytest.approx(29.1e12 / 64, rel=0.01)


def test_clocks_are_those_of_the_device_asked_for(pretend: PretendGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    current = [torch.device("cuda", 0)]

    class Switch:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            current.append(self.device)

        def __exit__(self, *_: object) -> None:
            current.pop()

    class Properties(SimpleNamespace):
        """As torch built for CUDA 13: the clocks are read for the current device."""

        @property
        def clock_rate(self) -> int:
            return {0: 1_000_000, 1: 2_000_000}[current[-1].index]

        @property
        def memory_clock_rate(self) -> int:
            return {0: 5_000_000, 1: 7_000_000}[current[-1].index]

    pretend()
    properties = Properties(
        name="NVIDIA Unheard-of", total_memory=2**33, major=8, minor=6, multi_processor_count=10, memory_bus_width=256
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device", Switch)
    second = torch.device("cuda", 1)
    assert matmul_peak(second, torch.float32).value == 10 * 128 * 2 * 2e9
    assert memory_bandwidth(second).value == 7e9 * 2 * 256 / 8
    assert len(current) == 1


def test_a_torch_without_clocks_asks_nvml(pretend: PretendGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend(**ADDRESS)
    answers = {"nvmlDeviceGetMaxClockInfo": {1: 1710, 2: 7001}, "nvmlDeviceGetMemoryBusWidth": 256}
    install_nvml(monkeypatch, **answers)
    assert memory_bandwidth(device).value == 7001e6 * 2 * 256 / 8
    install_nvml(monkeypatch, nvmlDeviceGetMemoryBusWidth=256)
    assert memory_bandwidth(device) is None
    # NVML's highest SM clock is above the boost clock that peaks are stated at: it is no substitute.
    assert matmul_peak(device, torch.float32) is None


def test_what_cannot_be_derived_is_none(pretend: PretendGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"clock_rate": 1_410_000, "memory_clock_rate": 1_215_000, "memory_bus_width": 5120}
    assert matmul_peak(pretend(major=13, minor=7, **clocks), torch.float32) is None
    # A slice of a GPU has SMs of its own, but shares the memory bus that it reports.
    mig = pretend("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.75, minor=0, multi_processor_count=14, **clocks)
    assert memory_bandwidth(mig) is None
    assert matmul_peak(mig, torch.float32).value == 14 * 64 * 2 * 1.41e9
    # On AMD, capability 9.0 is no Hopper and a memory clock means something else.
    monkeypatch.setattr(torch.version, "hip", "7.0")
    amd = pretend("AMD Instinct MI250X", 64, major=9, minor=0, **clocks)
    assert memory_bandwidth(amd) is None
    assert matmul_peak(amd, torch.float32) is None


@pytest.mark.parametrize(
    ("now", "highest", "width", "gb_s"),
    [
        (3, 3, 16, 15.754),  # as PCI-SIG and every table of PCIe rates has them
        (4, 4, 16, 31.508),
        (5, 5, 16, 63.015),
        (2, 2, 16, 8.0),
        (1, 1, 1, 0.25),
        (1, 4, 16, 31.508),  # asleep
        (4, 1, 16, 31.508),  # a virtual machine that hides the slot
        (4, 4, 8, 15.754),  # a half-wired slot
        (None, 4, 16, 31.508),
        (4, None, 16, 31.508),
        (None, None, 16, None),
        (4, 4, None, None),
        (6, 6, 16, None),
    ],
)
def test_pcie_link(
    pretend: PretendGpu,
    monkeypatch: pytest.MonkeyPatch,
    now: int | None,
    highest: int | None,
    width: int | None,
    gb_s: float | None,
) -> None:
    queries = {"CurrPcieLinkGeneration": now, "MaxPcieLinkGeneration": highest, "CurrPcieLinkWidth": width}
    answers = {f"nvmlDeviceGet{name}": answer for name, answer in queries.items() if answer is not None}
    device = pretend(**ADDRESS)
    install_nvml(monkeypatch, **answers)
    limit = link_bandwidth(device)
    if gb_s is None:
        assert limit is None
    else:
        assert limit.value == pytest.approx(gb_s * 1e9, rel=1e-3)
        assert limit.unit == "B/s"
        assert f"x{width}" in limit.source


def test_links_that_are_not_pcie(pretend: PretendGpu) -> None:
    limit = link_bandwidth(pretend("NVIDIA GH200 480GB", 94.5, major=9, minor=0))
    assert limit.value == 450e9
    assert "NVLink-C2C" in limit.source
    assert link_bandwidth(CPU) is None
    assert link_bandwidth(torch.device("mps")) is None
    assert link_bandwidth(pretend(**ADDRESS)) is None  # no NVML


def test_the_card_of_a_gpu(pretend: PretendGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend(
        "NVIDIA H200", 139.5, major=9, minor=0, multi_processor_count=132, L2_cache_size=60 * 2**20, **ADDRESS
    )
    known = {
        "name": "NVIDIA H200",
        "compute_capability": "9.0",
        "multiprocessors": 132,
        "memory_gib": 139.5,
        "l2_cache_mib": 60.0,
    }
    asked = {
        "driver": ("nvmlSystemGetDriverVersion", "580.65.06", "580.65.06"),
        "power_limit_w": ("nvmlDeviceGetEnforcedPowerLimit", 700_000, 700.0),
        "pcie_generation": ("nvmlDeviceGetCurrPcieLinkGeneration", 1, 1),
        "pcie_generation_max": ("nvmlDeviceGetMaxPcieLinkGeneration", 5, 5),
        "pcie_width": ("nvmlDeviceGetCurrPcieLinkWidth", 8, 8),
        "pcie_width_max": ("nvmlDeviceGetMaxPcieLinkWidth", 16, 16),
    }
    clocks = {
        "nvmlDeviceGetClockInfo": {1: 345, 2: 1593},
        "nvmlDeviceGetMaxClockInfo": {1: 1980, 2: 3201},
    }
    expected = known | {key: value for key, (_, _, value) in asked.items()}
    expected |= {"sm_clock_mhz": 345, "sm_clock_max_mhz": 1980, "memory_clock_mhz": 1593, "memory_clock_max_mhz": 3201}
    answers = {query: answer for query, answer, _ in asked.values()} | clocks

    install_nvml(monkeypatch, **answers)
    assert describe_gpu(device) == expected
    for key, (query, _, _) in asked.items():  # each refusal costs its own figure
        install_nvml(monkeypatch, **{name: answer for name, answer in answers.items() if name != query})
        assert describe_gpu(device) == expected | {key: None}

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert describe_gpu(device) == dict.fromkeys(expected) | known


@pytest.fixture
def one_thread():
    """Threads that wait for each other on a busy machine can take a hundred times as long as the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_measurements():
    hardware._measure_matmul.cache_clear()
    hardware._measure_copy.cache_clear()
    yield
    hardware._measure_matmul.cache_clear()
    hardware._measure_copy.cache_clear()


@pytest.mark.usefixtures("one_thread", "fresh_measurements")
def test_the_cpu_is_measured_once_and_believably() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    start = time.perf_counter()
    peak, bandwidth = matmul_peak(CPU, torch.float32), memory_bandwidth(CPU)
    took_s = time.perf_counter() - start
    assert torch.equal(state, torch.get_rng_state())  # the learner's random numbers stay what they were
    assert took_s < 5  # about 1.5 s on an idle machine
    assert peak is matmul_peak(CPU, torch.float32, tf32=True) is measure_cpu_peak(torch.float32)
    assert bandwidth is memory_bandwidth(CPU) is measure_cpu_bandwidth()
    assert (peak.unit, peak.kind, bandwidth.unit, bandwidth.kind) == ("FLOP/s", "measured", "B/s", "measured")
    assert "threads=1" in peak.source
    assert "matmuls, at N=" in peak.source
    assert "read + write" in bandwidth.source

    # Oracle: the same work timed in the plainest way.
    a, b = torch.rand(512, 512), torch.rand(512, 512)
    product = a @ b
    plain_s = min(_seconds(lambda: torch.mm(a, b, out=product)) for _ in range(20))
    assert 0.3 < peak.value / (2 * 512**3 / plain_s) < 5
    source = torch.rand(32 * 2**20)
    target = source.clone()
    plain_s = min(_seconds(lambda: target.copy_(source)) for _ in range(5))
    assert 0.2 < bandwidth.value / (2 * source.nbytes / plain_s) < 5


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.usefixtures("fresh_measurements")
def test_another_number_of_threads_is_measured_anew(one_thread: None) -> None:
    single = measure_cpu_bandwidth()
    torch.set_num_threads(2)
    double = measure_cpu_bandwidth()
    assert "threads=1" in single.source
    assert "threads=2" in double.source


@pytest.mark.usefixtures("one_thread", "fresh_measurements")
@pytest.mark.parametrize(("flop_per_s", "largest"), [(1e8, 128), (1e9, 256)])
def test_a_slow_format_stops_at_a_small_size(monkeypatch: pytest.MonkeyPatch, flop_per_s: float, largest: int) -> None:
    sizes = []

    def slow_mm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        sizes.append(len(a))
        time.sleep(2 * len(a) ** 3 / flop_per_s)
        return a

    monkeypatch.setattr(torch, "mm", slow_mm)
    start = time.perf_counter()
    peak = measure_cpu_peak(torch.float16)
    assert time.perf_counter() - start < 4
    assert max(sizes) == largest
    assert 0.5 * flop_per_s < peak.value <= flop_per_s


@pytest.mark.usefixtures("fresh_measurements")
def test_a_format_without_a_matmul_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError('"addmm_impl_cpu_" not implemented')

    monkeypatch.setattr(torch, "mm", missing)
    assert measure_cpu_peak(torch.float8_e5m2) is None
    assert matmul_peak(CPU, torch.int64) is None
    assert measure_cpu_peak(torch.int64) is None
