"""The parts of gpu_benchmarks against oracles, its experiments on the CPU, and what it refuses."""

import json
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks import transfers
from pytorch_00_tensor_gpu_basics.src.benchmarks.card import label, raised_to
from pytorch_00_tensor_gpu_basics.src.benchmarks.matmul import crossover
from pytorch_00_tensor_gpu_basics.src.benchmarks.memory import KERNELS, fitting
from pytorch_00_tensor_gpu_basics.src.benchmarks.precision import FORMATS, exact_product, relative_error
from pytorch_00_tensor_gpu_basics.src.benchmarks.shapes import reuse
from pytorch_00_tensor_gpu_basics.src.benchmarks.transfers import fit_latency_and_bandwidth
from pytorch_00_tensor_gpu_basics.src.gpu_benchmarks import EXPERIMENTS, main
from shared.device import Memory
from shared.hardware import Limit

import pytest
import torch

CPU = torch.device("cpu")
SIZES = [2**power for power in range(12, 31, 2)]
Run = Callable[..., tuple[int, str, str]]

# Claims that a neighbour on the same cores can spoil in a quick run.
ABOUT_SPEED = {
    "on a CPU the work is done when the call returns",
    "writing fresh memory is slower than writing it again",
    "adding in a Python loop is at least 10 times slower than on the device",
    "100 elements cost about as much as one",
    "an element of a large tensor is at least 20 times cheaper than a tensor of one",
    "the smallest copy is slowed by the price of its call",
    "the largest product runs at a higher rate than the smallest",
    "torch keeps up with NumPy on the CPU",
    "sizes this close stay within a factor of 5 of each other",
    "many columns at once come cheaper than one by one",
    "a small copy is mostly latency: 4 times the bytes take less than 3 times as long",
    "more operations for each byte make a memory-bound product faster",
    "the run lasted as long as asked",
}
SECTIONS = {
    "card": ["The device"],
    "timing": ["One product, timed four ways", "Memory that nobody has touched", "The wait that hides in .item()"],
    "launches": ["The price of one call", "64 tiny operations in a row"],
    "memory": ["Memory bandwidth", "Where the caches end"],
    "matmul": ["A product by size, with one thread and with all", "The same product in NumPy"],
    "precision": ["The price of precision"],
    "shapes": ["Round sizes", "Thin and square products"],
    "transfers": ["Copies between CPU and GPU", "Copies within main memory"],
    "roofline": ["The roofline of this machine"],
    "sustained": ["Under load"],
}
NEEDS_A_GPU = {"launches": "one CUDA graph", "transfers": "pageable and pinned", "precision": "TF32 products"}


class TestCrossover:
    @pytest.mark.parametrize("seed", range(20))
    def test_of_two_power_laws_is_where_they_meet(self, seed: int) -> None:
        draw = random.Random(seed)
        meet, steep, flat = draw.uniform(40, 3000), draw.uniform(2, 3), draw.uniform(0, 1.9)
        sizes = [32, 64, 128, 256, 512, 1024, 2048, 4096]
        slower, faster = ([1e-6 * (n / meet) ** power for n in sizes] for power in (steep, flat))
        assert crossover(sizes, slower, faster) == pytest.approx(meet)

    def test_never_and_always(self) -> None:
        assert crossover([1, 2, 4], [1.0, 2.0, 4.0], [2.0, 3.0, 5.0]) is None
        assert crossover([1, 2, 4], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]) is None  # a tie at the end is no win
        assert crossover([3, 6, 12], [2.0, 4.0, 8.0], [1.0, 1.0, 1.0]) == 3.0

    def test_a_win_that_is_lost_again_does_not_count(self) -> None:
        assert crossover([1, 10, 100, 1000], [1.0, 4.0, 1.0, 4.0], [2.0, 2.0, 2.0, 2.0]) == pytest.approx(10**2.5)

    def test_a_tie_is_the_crossover(self) -> None:
        assert crossover([10, 20, 40], [1.0, 2.0, 4.0], [2.0, 2.0, 2.0]) == pytest.approx(20)


class TestFit:
    @pytest.mark.parametrize("seed", range(20))
    def test_recovers_what_the_times_were_made_of(self, seed: int) -> None:
        draw = random.Random(seed)
        latency_s, bandwidth = 10 ** draw.uniform(-6.5, -4), 10 ** draw.uniform(9, 11.5)
        found = fit_latency_and_bandwidth(SIZES, [latency_s + size / bandwidth for size in SIZES])
        assert found == pytest.approx((latency_s, bandwidth), rel=1e-6)

    @pytest.mark.parametrize("seed", range(20))
    def test_noise_of_some_percent_stays_some_percent(self, seed: int) -> None:
        draw = random.Random(seed)
        latency_s, bandwidth = 9e-6, 25e9
        times = [(latency_s + size / bandwidth) * draw.uniform(0.95, 1.05) for size in SIZES]
        assert fit_latency_and_bandwidth(SIZES, times) == pytest.approx((latency_s, bandwidth), rel=0.08)

    def test_microseconds_count_as_much_as_milliseconds(self) -> None:
        """Plain least squares would give all its attention to the largest size, and a latency far off."""
        times = [9e-6 + size / 25e9 for size in SIZES]
        times[-1] *= 1.05  # 2 ms off: 200 times the latency
        latency_s, bandwidth = fit_latency_and_bandwidth(SIZES, times)
        assert latency_s == pytest.approx(9e-6, rel=0.02)
        assert bandwidth == pytest.approx(25e9, rel=0.03)

    @pytest.mark.parametrize("bandwidth", [1e9, 4e12])
    def test_no_latency_is_negative(self, bandwidth: float) -> None:
        times = [size / bandwidth * (0.5 if size < 2**20 else 1.0) for size in SIZES]  # a cache serves the small ones
        latency_s, found = fit_latency_and_bandwidth(SIZES, times)
        assert latency_s == 0.0
        assert bandwidth < found < 2 * bandwidth


class TestExactProduct:
    @pytest.mark.parametrize("seed", range(5))
    def test_every_sum_is_the_nearest_float64(self, seed: int) -> None:
        torch.manual_seed(seed)
        m, k, n = (int(size) for size in torch.randint(1, 12, (3,)))
        a = torch.randn(m, k, dtype=torch.float64) * 10.0 ** torch.randint(-3, 4, (m, k))
        b = torch.randn(k, n, dtype=torch.float32).double()
        # Whole numbers: then products are exact, and only the sum is left to be rounded.
        a, b = (a * 1024).round(), (b * 1024).round()
        rows, columns = a.tolist(), b.t().tolist()
        oracle = [
            [float(sum(Fraction(x) * Fraction(y) for x, y in zip(row, column, strict=True))) for column in columns]
            for row in rows
        ]
        assert exact_product(a, b).tolist() == oracle

    def test_what_cancels_is_not_lost(self) -> None:
        a, b = torch.tensor([[1e16, 1.0, -1e16]], dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
        assert exact_product(a, b).tolist() == [[1.0]]

    def test_integers_are_exact(self) -> None:
        a, b = (torch.randint(-128, 128, (9, 9)) for _ in range(2))
        assert torch.equal(exact_product(a, b), (a @ b).double())


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_errors_are_those_of_the_bits(form: Any) -> None:
    """A wrong product is far above the bound, so that the check of the lesson can fail."""
    torch.manual_seed(0)
    error = relative_error(form, CPU)
    assert error <= form.error_bound
    digits = {"float64": 53, "float32": 24, "TF32": 11, "bfloat16": 8, "float16": 11, "float8": 4, "int8": 99}
    assert error < 8 * 2.0 ** -digits[form.name]
    assert form.error_bound < 0.5  # a product without relation to the inputs is off by 1.4


class TestLimits:
    MEASURED, SHEET = (Limit(100.0, "B/s", "somewhere", kind) for kind in ("measured", "data sheet"))

    def test_a_measured_limit_is_the_best_that_was_seen(self) -> None:
        assert raised_to(self.MEASURED, 99.0, "a copy") is self.MEASURED
        assert raised_to(self.MEASURED, 150.0, "a copy") == Limit(150.0, "B/s", "measured here: a copy", "measured")

    def test_a_data_sheet_stays_and_nothing_stays_nothing(self) -> None:
        assert raised_to(self.SHEET, 150.0, "a copy") is self.SHEET
        assert raised_to(None, 150.0, "a copy") is None


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sm_clock_mhz", "sm clock (MHz)"),
        ("memory_gib", "memory (GiB)"),
        ("l2_cache_mib", "l2 cache (MiB)"),
        ("power_limit_w", "power limit (W)"),
        ("temperature_c", "temperature (°C)"),
        ("utilization_percent", "utilization (%)"),
        ("memory_used_bytes", "memory used (B)"),
        ("compute_capability", "compute capability"),
        ("name", "name"),
        ("w", "w"),  # a unit of nothing is a name
    ],
)
def test_label(key: str, words: str) -> None:
    assert label(key) == words


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_kernels_do_what_they_say(kernel: Any) -> None:
    a, b, c = torch.randn(3, 1000, dtype=torch.float64)
    oracle = {"copy": a, "scale": 3 * a, "add": a + b, "triad": a + 3 * b, "sum": a.sum()}[kernel.name]
    before = a.clone(), b.clone()
    result = kernel.run(a, b, c)
    assert torch.allclose(c if kernel.name != "sum" else result, oracle)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    reads = 2 if kernel.name in ("add", "triad") else 1
    assert kernel.bytes_per_element == 4 * (reads + (kernel.name != "sum"))


def test_arrays_stay_where_nobody_knows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "pytorch_00_tensor_gpu_basics.src.benchmarks.memory.memory"
    for free_bytes, count in ((None, 1024), (10**9, 1024), (24_000, 512), (0, 1)):
        monkeypatch.setattr(module, lambda device, free=free_bytes: Memory(None, None, None, free, None))
        assert fitting(1024, 12, CPU) == count


@pytest.fixture
def run(tmp_path: Path, same_threads: None, capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("--quick", …)` → exit code, stdout and stderr of the script on the CPU, with one thread."""
    torch.set_num_threads(1)

    def run(*arguments: str, folder: str = "out") -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(["--device", "cpu", "--quick", "--out", str(tmp_path / folder), *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def record_of(tmp_path: Path, folder: str = "out") -> dict[str, Any]:
    record: dict[str, Any] = json.loads((tmp_path / folder / "gpu_benchmarks" / "result.json").read_text())
    return record


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_on_the_cpu(run: Run, tmp_path: Path, name: str) -> None:
    code, out, err = run("--only", name)
    record = record_of(tmp_path)
    failed = {check["claim"] for check in record["checks"] if not check["holds"]}
    assert failed <= ABOUT_SPEED
    assert code == (1 if failed else 0)
    titles = re.findall(r"^── (.+?) ─*$", out, flags=re.MULTILINE)
    assert titles == [*SECTIONS[name], "Result", "Practice"]
    assert {check["section"] for check in record["checks"]} <= set(SECTIONS[name])
    assert record["checks"]
    assert all(
        math.isfinite(entry["value"]) and entry["value"] > 0
        for entry in record["measurements"]
        if entry["name"] not in ("latency", "relative error")  # int8 has none
    )
    assert (NEEDS_A_GPU.get(name, "") in " ".join(record["notes"])) or name not in NEEDS_A_GPU
    for figure in record["figures"]:
        assert (tmp_path / "out" / "gpu_benchmarks" / figure).read_bytes().startswith(b"\x89PNG")
    assert err == ""


def test_the_default_is_everything_in_order(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in EXPERIMENTS:
        monkeypatch.setitem(EXPERIMENTS, name, lambda lesson, name=name: done.append(name))
    for arguments, expected in (([], list(SECTIONS)), (["--only", "roofline", "card"], ["card", "roofline"])):
        done.clear()
        assert run(*arguments)[0] == 0
        assert done == expected


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--only"], ["--only", "card", "memroy"]])
def test_an_unknown_experiment_is_refused_in_one_line(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "--only" in err
    assert not (tmp_path / "out").exists()


class TestComparing:
    def test_with_itself_every_measurement_is_the_same(self, run: Run, tmp_path: Path) -> None:
        assert run("--only", "roofline", "--no-plots", folder="first")[0] in (0, 1)
        path = tmp_path / "first" / "gpu_benchmarks" / "result.json"
        there = record_of(tmp_path, "first")
        for entry in there["measurements"]:
            entry["value"] *= 1e-3
        there["device"]["name"], there["quick"] = "A slow machine", False
        path.write_text(json.dumps(there))
        code, out, _ = run("--only", "roofline", "--no-plots", "--compare", str(path))
        assert code in (0, 1)
        out = out[out.index("── Beside another machine") :]
        assert "A slow machine" in out
        assert "quick run" not in out
        count = len(record_of(tmp_path)["measurements"])
        said = " ".join(out.split())
        assert f"{count} measurements in common; of the {count} rates among them, {count} are higher here" in said
        faster = [float(ratio) for ratio in re.findall(r"(\d+\.\d\d)x$", out, flags=re.MULTILINE)]
        assert len(faster) == count
        assert 300 < sorted(faster)[count // 2] < 3000  # about a thousand, as noisy as this machine is

    def test_nothing_in_common_is_said(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "other.json"
        path.write_text(json.dumps(whole_record()))
        code, out, _ = run("--only", "card", "--no-plots", "--compare", str(path))
        assert code == 0
        assert "NVIDIA Test, 2026-11-21, torch 2.15.0, quick run" in out
        assert "no measurement in common" in out

    @pytest.mark.parametrize(
        "content",
        [
            None,
            b"",
            b"{",
            b"\xff\xfe\x00",
            b"[]",
            b"7",
            b"{}",
            json.dumps({"script": "x", "checks": [], "measurements": []}).encode(),
        ],
    )
    def test_no_record_is_refused_before_anything_is_measured(
        self, run: Run, tmp_path: Path, content: bytes | None
    ) -> None:
        path = tmp_path / "other.json"
        if content is not None:
            path.write_bytes(content)
        self.refused(run, path)

    @pytest.mark.parametrize(
        "damage",
        [
            {"measurements": None},
            {"measurements": [1]},
            {"measurements": [{}]},
            {"measurements": {"a": 1}},
            {"measurements": [{"section": "s", "name": "n", "unit": "s", "params": {}, "value": "fast"}]},
            {"measurements": [{"section": "s", "name": "n", "unit": "s", "params": {}, "value": None}]},
            {"measurements": [{"section": [], "name": "n", "unit": "s", "params": {}, "value": 1}]},
            {"measurements": [{"section": "s", "name": "n", "unit": "s", "params": [], "value": 1}]},
            {"device": None},
            {"device": {}},
            {"started": None},
            {"versions": []},
        ],
        ids=str,
    )
    def test_a_damaged_record_is_refused(self, run: Run, tmp_path: Path, damage: dict[str, object]) -> None:
        path = tmp_path / "other.json"
        path.write_text(json.dumps(whole_record() | damage))
        self.refused(run, path)

    def test_a_folder_is_refused(self, run: Run, tmp_path: Path) -> None:
        self.refused(run, tmp_path)

    @staticmethod
    def refused(run: Run, path: Path) -> None:
        code, out, err = run("--only", "card", "--compare", str(path))
        assert code == 2
        assert "──" not in out  # no section was begun
        assert len(err.splitlines()) == 1
        assert err.startswith("gpu_benchmarks: ")
        assert str(path) in err


def whole_record() -> dict[str, Any]:
    return {
        "script": "gpu_benchmarks",
        "started": "2026-11-21T03:00:37+00:00",
        "quick": True,
        "device": {"kind": "cuda", "name": "NVIDIA Test"},
        "versions": {"torch": "2.15.0"},
        "checks": [],
        "measurements": [{"section": "s", "name": "n", "unit": "s", "params": {"n": 1}, "value": 1.5}],
    }


def test_sent_bytes_that_arrive_damaged_fail_the_check(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers.torch, "equal", lambda a, b: False)
    code, out, _ = run("--only", "transfers", "--no-plots")
    assert code == 1
    assert "✗ the copy is equal to its source" in out


def test_reuse_says_what_the_rates_say() -> None:
    assert "Up to 4 columns" in reuse({1: 1.0, 2: 1.9, 4: 2.1, 8: 3.0})  # times 1, 1.05, 1.9, 2.7
    assert "8.0 times as long" in reuse({1: 10.0, 2: 2.5, 4: 5.0, 8: 60.0})  # 8 would be free, 2 and 4 are not
    assert "pays from 8 columns on" in reuse({1: 10.0, 2: 2.5, 4: 5.0, 8: 20.0})
    assert "pays" not in reuse({1: 10.0, 2: 2.5, 4: 5.0})
