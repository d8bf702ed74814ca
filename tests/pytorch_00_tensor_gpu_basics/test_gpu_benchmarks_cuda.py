"""What gpu_benchmarks does on a GPU, on one that is not there (tests/pretend_cuda.py).

Values, units, limits and completeness are tested. No time means anything there, so the claims in ABOUT_SPEED may fail.
"""

import io
import json
import math
import re
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks import launches, memory, precision, timing_traps
from pytorch_00_tensor_gpu_basics.src.gpu_benchmarks import EXPERIMENTS, main
from shared import timing
from shared.lesson import Lesson
from tests.pretend_cuda import A100, H200, T4, Event, Machine, Stream, pretended_machine

import pytest
import torch

SECTIONS = [
    "The device",
    "One product, timed four ways",
    "The wait that hides in .item()",
    "The price of one call",
    "64 tiny operations in a row",
    "Memory bandwidth",
    "Where the caches end",
    "A product on the CPU and on the GPU",
    "The same product in NumPy",
    "The price of precision",
    "Round sizes",
    "Thin and square products",
    "Tiles and waves",
    "Copies between CPU and GPU",
    "Copying while computing",
    "The roofline of this machine",
    "Under load",
]
ABOUT_VALUES = {
    "the GPU computes: a product of ones is exactly 64 everywhere",
    "both loops add up the same number",
    "every way gives the value that float64 gives",
    "triad wrote a + 3b",
    "both devices compute the same product",
    "torch and NumPy give the same product",
    "every format is as accurate as its bits promise, and no worse",
    "what comes back is what was sent",
    "no batch was computed before it had arrived",
}
ABOUT_LIMITS = {
    "no kernel beats the data sheet",
    "no kernel is above the roof",
}  # of a full run; a CPU holds them easily
ABOUT_SPEED = {
    "without synchronisation the product seems at least 3 times faster than it is",
    "adding in a Python loop is at least 10 times slower than on the device",
    "reading every step is slower than reading once",
    "100 elements cost about as much as one",
    "an element of a large tensor is at least 20 times cheaper than a tensor of one",
    "CUDA graph: faster than one by one",
    "compiled: faster than one by one",
    "the smallest copy is slowed by the price of its call",
    "transfers never make it faster",
    "the GPU wins at the largest size",
    "torch keeps up with NumPy on the CPU",
    "sizes this close stay within a factor of 5 of each other",
    "a multiple of 64 is at least 1.1 times as fast as an odd size",
    "many columns at once come cheaper than one by one",
    "128 rows are too few tiles to keep every multiprocessor busy",
    "pinned memory is faster for large copies to the GPU",
    "overlapping beats one after the other",
    "more operations for each byte make a memory-bound product faster",
    "the run lasted as long as asked",
}
ONLY_IN_A_FULL_RUN = ABOUT_LIMITS | {
    "compiled: faster than one by one",
    "the GPU wins at the largest size",
    "a multiple of 64 is at least 1.1 times as fast as an odd size",
    "pinned memory is faster for large copies to the GPU",
    "overlapping beats one after the other",
}
ONLY_IN_A_QUICK_RUN = {"sizes this close stay within a factor of 5 of each other"}
FIGURES = ["memory_by_size", "matmul_crossover", "precision", "waves", "transfers", "roofline", "sustained"]
WAYS = ["pageable to GPU", "pinned to GPU", "GPU to pageable", "GPU to pinned"]


@dataclass
class Run:
    """What a run left behind."""

    code: int
    text: str
    record: dict[str, Any]
    folder: Path
    is_quick: bool
    matmul_precision: dict[str, str]  # of float32 products, while each format was measured
    machine: Machine

    def measurements(self, section: str, name: str, **params: object) -> list[dict[str, Any]]:
        return [
            entry
            for entry in self.record["measurements"]
            if (entry["section"], entry["name"]) == (section, name) and params.items() <= entry["params"].items()
        ]

    def params(self, section: str, name: str, param: str) -> list[object]:
        return [entry["params"][param] for entry in self.measurements(section, name)]

    def claims(self, holds: bool | None = None) -> set[str]:
        return {check["claim"] for check in self.record["checks"] if holds is None or check["holds"] == holds}


def pick_quick(lesson: Lesson, *, full: Any, quick: Any, cpu: Any = None) -> Any:
    """The sizes of a quick run in every run, and a tenth of its time: seconds are the floats."""
    return quick / 10 if isinstance(quick, float) else quick


def run(folder: Path, *arguments: str, gpu: SimpleNamespace = H200) -> Run:
    seen: dict[str, str] = {}

    def measure_format(lesson: Lesson, form: precision.Format, *rest: Any) -> float:
        seen[form.name] = torch.get_float32_matmul_precision()
        return original(lesson, form, *rest)

    original, threads = precision.measure_format, torch.get_num_threads()
    torch.set_num_threads(1)
    text = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with pytest.MonkeyPatch.context() as patch, pretended_machine(gpu) as machine, redirect_stdout(text):
        patch.setenv("COLUMNS", "100")
        patch.setattr(Lesson, "pick", pick_quick)
        patch.setattr(precision, "measure_format", measure_format)
        patch.setattr(precision, "GPU_SHAPES", ((64, 64, 64), (32, 128, 48), (16, 64, 64)))
        patch.setattr(timing_traps, "GPU_N_QUICK", 128)
        patch.setattr(timing, "FLUSH_BYTES", 2**12)
        patch.setattr(torch, "compile", lambda function, **options: lambda x: function(x))
        code = main(["--device", "cuda", "--out", str(folder), *arguments])
        assert machine.nvml.open_count == 0
    torch.set_num_threads(threads)
    record = json.loads((folder / "gpu_benchmarks" / "result.json").read_text())
    return Run(
        code, text.buffer.getvalue().decode(), record, folder / "gpu_benchmarks", "--quick" in arguments, seen, machine
    )


@pytest.fixture(scope="module", params=["quick", "full"])
def on_h200(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp(request.param), *(["--quick"] if request.param == "quick" else []))


def test_every_section_every_claim_every_picture(on_h200: Run) -> None:
    titles = re.findall(r"^── (.+?) ─*$", on_h200.text, flags=re.MULTILINE)
    assert titles[: len(SECTIONS)] == SECTIONS
    no_contest = {"torch keeps up with NumPy on the CPU"}  # not checked where torch has one thread and NumPy all cores
    expected = ABOUT_VALUES | ABOUT_SPEED | ABOUT_LIMITS
    assert on_h200.claims() | no_contest == expected - (ONLY_IN_A_FULL_RUN if on_h200.is_quick else ONLY_IN_A_QUICK_RUN)
    assert on_h200.record["figures"] == [f"{name}.png" for name in FIGURES]
    for name in on_h200.record["figures"]:
        assert (on_h200.folder / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_no_matter_of_speed_holds(on_h200: Run) -> None:
    assert on_h200.claims(holds=False) <= ABOUT_SPEED
    assert on_h200.code == (1 if on_h200.claims(holds=False) else 0)
    assert on_h200.record["device"]["kind"] == "cuda"
    assert on_h200.record["device"]["name"] == "NVIDIA H200"
    assert on_h200.record["quick"] == on_h200.is_quick


def test_the_device_card(on_h200: Run) -> None:
    card = on_h200.text[: on_h200.text.index("One product, timed four ways")]
    lines = {
        "name": "NVIDIA H200",
        "compute capability": "9.0",
        "multiprocessors": "132",
        "memory (GiB)": "140",
        "l2 cache (MiB)": "60.0",
        "driver": "580.65.06",
        "sm clock (MHz)": "345",
        "sm clock max (MHz)": "1,980",
        "memory clock (MHz)": "3,201",
        "power limit (W)": "700",
        "pcie generation": "5",
        "pcie width": "8",  # as negotiated, not the 16 of the card
        "pcie width max": "16",
        "memory": "4.80 TB/s",
        "link to the CPU": "31.5 GB/s",
        "float64 products": "67.0 TFLOP/s",
        "float32 products": "67.0 TFLOP/s",
        "TF32 products": "494 TFLOP/s",
        "bfloat16 products": "990 TFLOP/s",
        "float16 products": "990 TFLOP/s",
        "float8 products": "1,979 TFLOP/s",
        "int8 products": "1,979 TOP/s",
    }
    for left, right in lines.items():
        assert re.search(rf"^  {re.escape(left)} +{re.escape(right)}( |$)", card, flags=re.MULTILINE), left
    assert card.count("NVIDIA H200 data sheet") == 8
    assert "PCIe 5 x8" in card
    (ridge,) = on_h200.measurements("The device", "ridge")
    assert ridge["value"] == pytest.approx(67e12 / 4.8e12)
    assert ridge["unit"] == "FLOP/B"


def test_limits_are_those_of_the_card_in_the_unit_of_the_value(on_h200: Run) -> None:
    roofline = on_h200.measurements("The roofline of this machine", "kernel")  # its limits have a test of their own
    limited = [entry for entry in on_h200.record["measurements"] if entry["limit"] and entry not in roofline]
    for entry in limited:
        limit = entry["limit"]
        assert limit["share"] == pytest.approx(entry["value"] / limit["value"])
        assert 0 < limit["share"] < 10  # a CPU is no H200, so a unit that is off by a thousand shows here
        assert limit["source"]
        assert limit["kind"] == ("derived" if "PCIe" in limit["source"] else "data sheet")
    found = {(entry["section"], entry["name"], entry["unit"], round(entry["limit"]["value"], 1)) for entry in limited}
    assert found == {
        ("Memory bandwidth", "bandwidth", "GB/s", 4800),
        *(("The price of precision", "product", "TFLOP/s", value) for value in (67, 494.5, 989.5, 1979)),
        ("The price of precision", "product", "TOP/s", 1979),
        ("Copies between CPU and GPU", "transfer", "GB/s", 31.5),  # PCIe 5, 8 lanes
        ("Copies between CPU and GPU", "fitted bandwidth", "GB/s", 31.5),
        ("Under load", "sustained", "TFLOP/s", 989.5),
        ("Under load", "first tenth", "TFLOP/s", 989.5),
    }


def test_spreads_surround_the_values(on_h200: Run) -> None:
    timed = [entry for entry in on_h200.record["measurements"] if entry["spread"]]
    assert len(timed) > 60
    for entry in timed:
        assert entry["spread"]["p20"] <= entry["value"] * 1.0001
        assert entry["spread"]["p80"] >= entry["value"] * 0.9999
        assert entry["spread"]["n"] >= 3
        assert entry["value"] > 0
    methods = {entry["params"].get("way"): entry["spread"]["method"] for entry in timed if entry["name"] == "product"}
    assert methods["GPU"] == methods[None] == "CUDA events"
    assert methods["CPU"] == methods["GPU with transfers"] == "wall clock, device synchronised"


def test_launches(on_h200: Run) -> None:
    elements = on_h200.params("The price of one call", "add", "elements")
    assert elements == [1, 100, 10_000, 1_000_000]
    ways = ["one by one", "CUDA graph"] + ([] if on_h200.is_quick else ["compiled"])
    assert on_h200.params("64 tiny operations in a row", "chain", "way") == ways
    assert any("compiled into one kernel" in note for note in on_h200.record["notes"]) == on_h200.is_quick


def test_memory(on_h200: Run) -> None:
    assert on_h200.params("Memory bandwidth", "bandwidth", "kernel") == ["copy", "scale", "add", "triad", "sum"]
    assert on_h200.params("Where the caches end", "copy", "bytes") == [2**power for power in range(14, 25)]


def test_products(on_h200: Run) -> None:
    section = "A product on the CPU and on the GPU"
    for way in ("CPU", "GPU", "GPU with transfers"):
        assert [entry["params"]["n"] for entry in on_h200.measurements(section, "product", way=way)] == [
            32,
            64,
            128,
            256,
        ]
    assert "with the trip there and back" in " ".join(on_h200.text.split())
    assert on_h200.params("The same product in NumPy", "CPU product", "way") == [
        "numpy",
        "torch, out=",
        "torch, a @ b",
        "torch, oneDNN",
    ]


def test_precisions(on_h200: Run) -> None:
    section = "The price of precision"
    formats = ["float64", "float32", "TF32", "bfloat16", "float16", "float8", "int8"]
    assert list(dict.fromkeys(on_h200.params(section, "product", "format"))) == formats
    for form in formats:
        entries = on_h200.measurements(section, "product", format=form)
        shapes = [tuple(entry["params"][size] for size in "mkn") for entry in entries]
        wanted = [(256, 256, 256)] if on_h200.is_quick else [(64, 64, 64), (32, 128, 48), (16, 64, 64)]
        assert shapes == [shape for shape in wanted if form != "int8" or shape[0] > 16]
        for entry, (m, k, n) in zip(entries, shapes, strict=True):
            assert entry["unit"] == ("TOP/s" if form == "int8" else "TFLOP/s")
            assert entry["value"] * 1e12 < 2 * m * k * n / 1e-6  # a product takes longer than a microsecond here
    errors = {form: on_h200.measurements(section, "relative error", format=form)[0]["value"] for form in formats}
    assert errors["int8"] == 0 < errors["float64"] < 1e-15 < errors["float32"] < 1e-6 < errors["float16"]
    assert errors["float16"] < 1e-3 < errors["bfloat16"] < 1e-2 < errors["float8"] < 0.1
    assert on_h200.matmul_precision == dict.fromkeys(formats, "highest") | {"TF32": "high"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_shapes(on_h200: Run) -> None:
    assert on_h200.params("Round sizes", "product", "m") == [511, 510, 508, 504, 448, 512, 513, 520]
    assert on_h200.params("Thin and square products", "product", "n") == [2**power for power in range(9)]
    assert on_h200.params("Tiles and waves", "product", "m") == [128, 256, 384, 512]
    assert set(on_h200.params("Tiles and waves", "product", "dtype")) == {"float16"}
    assert "each of the 132 multiprocessors" in " ".join(on_h200.text.split())


def test_transfers_both_ways_from_pageable_and_pinned_memory(on_h200: Run) -> None:
    section, sizes = "Copies between CPU and GPU", [2**power for power in range(12, 23, 2)]
    for way in WAYS:
        assert [entry["params"]["bytes"] for entry in on_h200.measurements(section, "transfer", way=way)] == sizes
        ((latency,), (bandwidth,)) = (
            on_h200.measurements(section, name, way=way) for name in ("latency", "fitted bandwidth")
        )
        assert (latency["unit"], bandwidth["unit"]) == ("µs", "GB/s")
        assert latency["value"] >= 0 < bandwidth["value"]
    assert on_h200.params("Copying while computing", "pipeline", "way") == ["one after the other", "overlapped"]
    possible = re.search(r"of a possible ([\d.]+)x", on_h200.text)
    assert possible
    assert 1 <= float(possible[1]) <= 16 / 9 + 0.01  # eight batches: the first copy and the last product stand alone


def test_the_four_copies_are_those_that_they_are_called(on_h200: Run) -> None:
    sizes, batch_bytes = [2**power for power in range(12, 23, 2)], 2 * 512 * 512
    crossings = on_h200.machine.crossings
    for size in sizes:
        of_this_size = [crossing for crossing in crossings if crossing.size_bytes == size]
        kinds = list(dict.fromkeys((c.to_gpu, c.is_pinned, c.non_blocking) for c in of_this_size))
        assert kinds == [(True, False, False), (True, True, True), (False, False, False), (False, True, True)]
        assert not any(crossing.on_a_side_stream for crossing in of_this_size)
    batches = [crossing for crossing in crossings if crossing.size_bytes == batch_bytes]
    assert all(crossing.to_gpu and crossing.is_pinned and crossing.non_blocking for crossing in batches)
    assert {crossing.on_a_side_stream for crossing in batches} == {False, True}
    awaited = [waited for waited in on_h200.machine.streams[0].waited_for if isinstance(waited, Event)]
    assert len(awaited) == sum(crossing.on_a_side_stream for crossing in batches)  # each batch before its product


def test_roofline(on_h200: Run) -> None:
    entries = on_h200.measurements("The roofline of this machine", "kernel")
    kernels = ["add", "sum", "gelu", *[f"product x {columns}" for columns in (1, 8, 32, 128)]]
    assert [entry["params"]["kernel"] for entry in entries] == kernels
    intensities = {entry["params"]["kernel"]: entry["params"]["intensity"] for entry in entries}
    assert intensities["add"] == pytest.approx(1 / 6)  # one operation, three numbers of two bytes
    assert intensities["product x 8"] == pytest.approx(2 * 512 * 512 * 8 / (2 * (512 * 512 + 2 * 512 * 8)))
    for entry in entries:
        roof = min(989.5e12, 4.8e12 * entry["params"]["intensity"]) / 1e9
        assert entry["limit"]["value"] == pytest.approx(roof)
        assert entry["unit"] == "GFLOP/s"


def test_telemetry(on_h200: Run) -> None:
    load = on_h200.text[on_h200.text.index("── Under load") :]
    for reading in ("utilization (%)", "sm clock (MHz)", "power (W)", "temperature (°C)", "memory used (B)"):
        assert re.search(rf"^  {re.escape(reading)} +[\d,.]+ +[\d,.]+ +[\d,.]+$", load, flags=re.MULTILINE), reading
    (note,) = (note for note in on_h200.record["notes"] if "held the clock back" in note)
    assert "power cap 100 %" in note


def test_nothing_in_the_record_is_unfinished(on_h200: Run) -> None:
    def numbers(value: object) -> list[float]:
        if isinstance(value, dict | list):
            return [n for part in (value.values() if isinstance(value, dict) else value) for n in numbers(part)]
        return [value] if isinstance(value, float) else []

    assert all(map(math.isfinite, numbers(on_h200.record)))
    assert "unknown" not in on_h200.text
    assert "None" not in on_h200.text


@pytest.mark.parametrize(
    ("gpu", "skipped", "without_limit"),
    [(A100, {"float8"}, set()), (T4, {"float8", "TF32"}, {"bfloat16"})],
    ids=["A100", "T4"],
)
def test_older_gpus_skip_what_they_lack(tmp_path: Path, gpu, skipped: set[str], without_limit: set[str]) -> None:
    done = run(tmp_path, "--quick", "--no-plots", "--only", "card", "precision", "roofline", gpu=gpu)
    assert done.claims(holds=False) <= ABOUT_SPEED
    assert done.record["figures"] == []
    notes = " ".join(done.record["notes"])
    for form in precision.FORMATS:
        entries = done.measurements("The price of precision", "product", format=form.name)
        assert bool(entries) == (form.name not in skipped)
        assert (f"{form.name} products." in notes) == (form.name in skipped)
        assert all((entry["limit"] is None) == (form.name in without_limit) for entry in entries), form.name
    assert done.measurements("The roofline of this machine", "kernel")


def test_a_machine_without_nvml_says_so(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.pretend_cuda.FakeNvml.nvmlInit", refuse_nvml)
        patch.setattr("tests.pretend_cuda.FakeNvml.nvmlShutdown", lambda self: None)
        done = run(tmp_path, "--quick", "--only", "card", "transfers", "sustained")
    assert done.claims(holds=False) <= ABOUT_SPEED
    assert "pcie" not in done.text
    assert any("no NVIDIA driver answers" in note for note in done.record["notes"])
    transfers = done.measurements("Copies between CPU and GPU", "transfer")
    assert transfers
    assert all(entry["limit"] is None for entry in transfers)


def refuse_nvml(self: Any) -> None:
    raise self.NVMLError("Driver Not Loaded")


def test_the_seed_decides_the_values(tmp_path: Path) -> None:
    """Of the GPU too, so that a record can be made again."""
    lines = []
    for name in ("first", "second"):
        done = run(tmp_path / name, "--quick", "--only", "timing", "--seed", "7")
        (check,) = (check for check in done.record["checks"] if check["claim"] == "both loops add up the same number")
        lines.append(check["evidence"])
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_runs_alone(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, "--quick", "--no-plots", "--only", name)
    assert done.claims(holds=False) <= ABOUT_SPEED
    assert done.record["checks"]
    assert done.record["measurements"]


@pytest.mark.parametrize(("capability", "fast"), [((8, 9), False), ((9, 0), True), ((10, 0), True)])
def test_float8_sums_stay_in_the_tensor_cores_from_hopper_on(
    monkeypatch, capability: tuple[int, int], fast: bool
) -> None:
    gpu = SimpleNamespace(**vars(H200) | {"major": capability[0], "minor": capability[1]})
    asked: list[bool] = []
    with pretended_machine(gpu):
        real = torch._scaled_mm
        monkeypatch.setattr(torch, "_scaled_mm", lambda *a, **k: asked.append(k["use_fast_accum"]) or real(*a, **k))
        form = next(form for form in precision.FORMATS if form.name == "float8")
        assert precision.relative_error(form, torch.device("cuda")) < form.error_bound
    assert asked == [fast]


@pytest.mark.parametrize("form", precision.FORMATS, ids=lambda form: form.name)
def test_operands_lie_as_tensor_cores_want_them(form: precision.Format) -> None:
    with pretended_machine():
        a, b = precision.operands(form, 32, 48, 64, torch.device("cuda"))
        assert (a.shape, b.shape) == ((32, 48), (48, 64))
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert a.dtype == b.dtype == form.dtype
        assert precision.product(form, a, b)().shape == (32, 64)


@pytest.mark.parametrize("before", ["highest", "medium"])
def test_tf32_is_allowed_for_a_while_only(before: str) -> None:
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        for allowed, meanwhile in ((True, "high"), (False, "highest")):
            with suppress(ZeroDivisionError), precision.tf32_products(allowed):
                assert torch.get_float32_matmul_precision() == meanwhile
                _ = 1 / 0
            assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(usual)


def test_shapes_that_would_take_too_long_are_left_out(monkeypatch, tmp_path: Path) -> None:
    """A format without units of its own gets the smallest product only."""
    monkeypatch.setattr(precision, "SLOWEST_S", 1e-9)
    done = run(tmp_path, "--no-plots", "--only", "precision")
    for form in precision.FORMATS:
        assert len(done.measurements("The price of precision", "product", format=form.name)) == 1


def test_a_graph_fills_the_same_tensor_from_new_inputs() -> None:
    with pretended_machine() as machine:
        x = torch.randn(8, device="cuda")
        replay, output = launches.capture_graph(lambda: launches.tiny_chain(x))
        assert [type(waited) for waited in machine.streams[0].waited_for] == [Stream]  # for the runs before the capture
        for _ in range(2):
            x.normal_()
            replay()
            assert torch.equal(output, launches.tiny_chain(x))


@pytest.mark.parametrize(
    ("free_gib", "count"), [(140, 2**28), (15, 2**28), (6.1, 2**28), (5.9, 2**27), (2, 2**26), (1e-9, 1)]
)
def test_arrays_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch, free_gib: float, count: int) -> None:
    with pretended_machine():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free_gib * 2**30) - 2**30, 2**40))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**30)  # 1 GiB of it free for reuse
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * 2**30)
        assert memory.fitting(2**28, 12, torch.device("cuda")) == count


@pytest.mark.gpu
def test_a_quick_run_on_a_real_gpu(tmp_path: Path) -> None:
    code = main(["--device", "cuda", "--quick", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "gpu_benchmarks" / "result.json").read_text())
    assert [check for check in record["checks"] if not check["holds"]] == []
    assert code == 0
