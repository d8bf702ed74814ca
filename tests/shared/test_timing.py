"""The stopwatch, against torch's and Triton's own, and on machines whose every clock is known.

Three of those are made here: a `Host` whose clock moves only when a function says so, a `SlowDevice` that works in a
thread of its own behind a queue, and a `Gpu` with a stream, events and a clock of its own. Each claim about the last
two is also made of a clock that forgets to wait, which must fail it.
"""

import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from types import SimpleNamespace

from shared import timing
from shared.timing import Timing, compare, measure, quantile, ratio

import numpy as np
import pytest
import torch

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))


class Host:
    """A computer without chance: time passes while one of its functions runs, and at no other moment."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def takes(self, *durations_s: float) -> Callable[[], None]:
        """A function that takes the first duration when called first, and so on; the last one from then on."""
        left = list(durations_s)

        def function() -> None:
            self.now_s += left.pop(0) if len(left) > 1 else left[0]

        return function


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: host.now_s))
    return host


def interleaved_ratios(ours_s: Callable[[], float], theirs_s: Callable[[], float], rounds: int) -> list[float]:
    """Our time over theirs in each round; the order A B B A takes a steady drift out of it."""
    ours_s(), theirs_s()
    ratios = []
    for _ in range(rounds):
        first, second, third, fourth = ours_s(), theirs_s(), theirs_s(), ours_s()
        ratios.append((first + fourth) / (second + third))
    return ratios


class TestNumbers:
    @pytest.mark.parametrize("seed", range(20))
    def test_quantiles_are_those_of_numpy(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        samples = generator.exponential(size=generator.integers(1, 60)).tolist()
        for share in (0, 0.2, 0.5, 0.8, 1, *generator.random(5)):
            assert quantile(samples, share) == pytest.approx(np.quantile(samples, share), rel=1e-12)
        timed = Timing(tuple(samples), 1, "made up", 1)
        found = timed.p20_s, timed.median_s, timed.p80_s
        assert found == pytest.approx(np.quantile(samples, [0.2, 0.5, 0.8]).tolist(), rel=1e-12)
        assert timed.n == len(samples)

    def test_a_ratio_is_taken_round_by_round(self) -> None:
        drift = np.random.default_rng(0).uniform(1, 10, size=9)
        slower, faster = (Timing(tuple(drift * s), 1, "made up", 1) for s in (np.linspace(2.9, 3.1, 9), np.ones(9)))
        found = ratio(slower, faster)
        expected = np.quantile(np.linspace(2.9, 3.1, 9), [0.5, 0.2, 0.8]).tolist()
        assert [found.median, found.p20, found.p80] == pytest.approx(expected)
        assert str(found) == "3.00x (2.94 to 3.06, 9 rounds)"
        with pytest.raises(ValueError, match="zip"):
            ratio(slower, Timing((1.0,), 1, "made up", 1))


class TestOnTheCpu:
    @pytest.mark.parametrize("call_s", [1e-7, 1e-6, 3e-5, 1e-3])
    def test_a_sample_lasts_at_least_50_microseconds(self, host: Host, call_s: float) -> None:
        timed = measure(host.takes(call_s), CPU)
        assert timed.median_s == pytest.approx(call_s)
        assert 50e-6 <= timed.calls_per_sample * call_s < max(200e-6, 2 * call_s)

    def test_a_slow_start_or_an_interruption_does_not_make_samples_short(self, host: Host) -> None:
        for durations_s in ((1.0, 1e-3, 1e-6), (1.0, 1e-6, 1e-3, 1e-6), (1.0, *repeat(1e-6, 9), 1e-3, 1e-6)):
            timed = measure(host.takes(*durations_s), CPU)
            assert timed.calls_per_sample * 1e-6 >= 50e-6
            assert timed.median_s == pytest.approx(1e-6)

    @pytest.mark.parametrize(
        ("call_s", "budget_s", "samples"),
        [(1e-3, 0.2, 200), (1e-3, 1.0, 1000), (1e-3, 5.0, 1000), (0.1, 0.2, 5), (1.5, 0.2, 3)],
    )
    def test_the_budget_sets_the_number_of_samples(self, host, call_s: float, budget_s: float, samples: int) -> None:
        timed = measure(host.takes(call_s), CPU, budget_s=budget_s)
        assert timed.n == pytest.approx(samples, abs=1)
        assert host.now_s <= 1.2 * max(budget_s, samples * call_s) + 3.01 * call_s

    def test_the_first_call_is_kept_out(self, host: Host) -> None:
        timed = measure(host.takes(30.0, 1e-3), CPU)
        assert max(timed.samples_s) == pytest.approx(1e-3)

    @pytest.mark.parametrize("rounds", [2, 9])
    def test_compare_honours_rounds_and_budget(self, host: Host, rounds: int) -> None:
        functions = {"a": host.takes(1e-6), "b": host.takes(1e-3), "c": host.takes(4e-3)}
        times = compare(functions, CPU, rounds=rounds, budget_s=1.0)
        assert {name: timed.n for name, timed in times.items()} == dict.fromkeys("abc", rounds)
        assert [timed.median_s for timed in times.values()] == pytest.approx([1e-6, 1e-3, 4e-3])
        assert 0.9 < host.now_s < 1.0 + 3 / rounds
        assert times["a"].calls_per_sample > times["b"].calls_per_sample > times["c"].calls_per_sample

    def test_a_pause_before_each_sample_is_not_counted(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        naps: list[float] = []

        def sleep(seconds: float) -> None:
            naps.append(seconds)
            host.now_s += seconds

        monkeypatch.setattr(timing.time, "sleep", sleep, raising=False)
        times = compare({"a": host.takes(1e-3), "b": host.takes(2e-3)}, CPU, rounds=3, budget_s=0.1, pause_s=0.5)
        assert naps == [0.5] * 6
        assert [timed.median_s for timed in times.values()] == pytest.approx([1e-3, 2e-3])

    def test_compare_alternates_so_that_a_drift_falls_out_of_the_ratio(self, host: Host) -> None:
        order: list[str] = []

        def slowing(name: str, seconds: float) -> Callable[[], None]:
            def function() -> None:
                order.append(name)
                host.now_s += seconds * (1 + host.now_s)  # a machine that is ever slower

            return function

        times = compare({"a": slowing("a", 2e-3), "b": slowing("b", 1e-3)}, CPU, rounds=8, budget_s=2.0)
        assert max(times["b"].samples_s) > 2 * min(times["b"].samples_s)
        assert ratio(times["a"], times["b"]).median == pytest.approx(2, rel=0.02)
        blocks = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
        assert "".join(blocks) == "ab" + "ababababa"  # two estimates, then ab ba ab ba ab ba ab ba

    def test_method_and_threads_are_recorded(self, same_threads: None) -> None:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            timed = measure(lambda: None, CPU, budget_s=1e-3)
            assert timed.threads == compare({"a": lambda: None}, CPU, rounds=1, budget_s=1e-3)["a"].threads == threads
            assert timed.method == "wall clock, device synchronised"

    def test_agrees_with_torch_utils_benchmark(self, same_threads: None) -> None:
        from torch.utils.benchmark import Timer

        # One thread, told to both. A call far shorter than the operating system's slices of time, and one call a
        # sample in both: then neighbours on the cores interrupt too few samples to move a median.
        torch.set_num_threads(1)
        a, b = torch.randn(2, 256, 256)

        def work() -> None:
            torch.mm(a, b)

        timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
        ratios = interleaved_ratios(
            lambda: measure(work, CPU, budget_s=0.03).median_s,
            lambda: statistics.median(timer.timeit(1).median for _ in range(20)),
            rounds=9,
        )
        assert statistics.median(ratios) == pytest.approx(1, rel=0.1), ratios


def clock_that_does_not_wait(function, device, calls, flush, hold_s) -> Callable[[], float]:
    """The beginner's stopwatch: on a device with a queue it times the queueing."""
    start = timing.time.perf_counter()
    for _ in range(calls):
        function()
    elapsed_s = timing.time.perf_counter() - start
    return lambda: elapsed_s / calls


class SlowDevice:
    """Takes work into a queue and returns at once; a thread of its own does it, one piece after the other."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._is_closed:
            self._queue.get()()

    def launch(self, seconds: float) -> None:
        time.sleep(1e-4)  # a host is not infinitely fast, so it cannot queue more than it could ever wait for
        self._queue.put(lambda: time.sleep(seconds))

    def synchronize(self, device: torch.device) -> None:
        reached = threading.Event()
        self._queue.put(reached.set)
        if not reached.wait(60):
            raise TimeoutError

    def close(self) -> None:
        self._is_closed = True
        self.launch(0)
        self._thread.join()


class TestOnADeviceWithAQueue:
    @pytest.fixture
    def device(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDevice]:
        device = SlowDevice()
        monkeypatch.setattr(timing, "synchronize", device.synchronize)
        yield device
        device.close()

    @staticmethod
    def measure_waits(device: SlowDevice) -> None:
        for _ in range(20):
            device.launch(2e-3)  # somebody else's work, which is not to be counted
        timed = measure(lambda: device.launch(2e-3), MPS, budget_s=0.02)
        assert timed.median_s >= 2e-3
        assert min(timed.samples_s) < 6e-3
        assert timed.calls_per_sample * 2e-3 < 20e-3

    @staticmethod
    def compare_waits(device: SlowDevice) -> None:
        times = compare(
            {"short": lambda: device.launch(1e-3), "long": lambda: device.launch(4e-3)}, MPS, rounds=4, budget_s=0.08
        )
        assert times["short"].median_s >= 1e-3
        assert times["long"].median_s >= 4e-3
        assert ratio(times["long"], times["short"]).median > 1.5

    @pytest.mark.parametrize("claim", [measure_waits, compare_waits])
    def test_the_work_itself_is_timed(self, device: SlowDevice, claim: Callable[[SlowDevice], None]) -> None:
        claim(device)

    @pytest.mark.parametrize("claim", [measure_waits, compare_waits])
    @pytest.mark.parametrize("mistake", ["clock", "synchronize"])
    def test_a_clock_that_does_not_wait_fails(self, device, claim, mistake: str, monkeypatch) -> None:
        if mistake == "clock":
            monkeypatch.setattr(timing, "_wall_clock", clock_that_does_not_wait)
        else:
            monkeypatch.setattr(timing, "synchronize", lambda device: None)
        with pytest.raises(AssertionError):
            claim(device)


class Gpu:
    """A GPU with one stream and the host that feeds it, both on clocks that are counted and not read.

    Queueing a kernel takes the host 5 µs, and at its first use 20 ms, in which CUDA loads it. The stream begins it
    when it is queued and all before it is done.
    """

    LOAD_S, LAUNCH_S, RECORD_S = 20e-3, 5e-6, 1e-6

    def __init__(self, clock_hz: float) -> None:
        self.clock_hz = clock_hz
        self.host_s = 0.0
        self.stream_s = 0.0  # when all that is queued will be done
        self.log: list[str] = []

    def launch(self, name: str, seconds: float) -> None:
        self.host_s += self.LAUNCH_S if name in self.log else self.LOAD_S
        self.stream_s = max(self.stream_s, self.host_s) + seconds
        self.log.append(name)

    def sleep(self, cycles: int) -> None:
        self.launch("hold", cycles / self.clock_hz)

    def synchronize(self, device: torch.device | None = None) -> None:
        self.host_s = max(self.host_s, self.stream_s)

    def event(self, enable_timing: bool) -> "Event":
        assert enable_timing
        return Event(self)


class Event:
    """Stamped by the stream when it gets there; like CUDA's, it cannot be read before."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.stamp_s = float("nan")

    def record(self) -> None:
        self.gpu.host_s += self.gpu.RECORD_S
        self.stamp_s = self.gpu.stream_s = max(self.gpu.stream_s, self.gpu.host_s)
        self.gpu.log.append("event")

    def synchronize(self) -> None:
        self.gpu.host_s = max(self.gpu.host_s, self.stamp_s)

    def elapsed_time(self, end: "Event") -> float:
        if self.gpu.host_s < end.stamp_s:
            raise RuntimeError("device not ready")
        return 1e3 * (end.stamp_s - self.stamp_s)


class TestOnCuda:
    @pytest.fixture(params=[1.0e9, 2.9e9], ids=["1.0 GHz", "2.9 GHz"])
    def gpu(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
        gpu = Gpu(request.param)
        monkeypatch.setattr(torch.cuda, "Event", gpu.event)
        monkeypatch.setattr(torch.cuda, "_sleep", gpu.sleep)
        monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
        buffer = SimpleNamespace(sum=lambda: gpu.launch("flush", 100e-6))
        monkeypatch.setattr(timing, "_flush_buffer", lambda device: buffer)
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: gpu.host_s))
        return gpu

    @staticmethod
    def measures_the_gpu(gpu: Gpu) -> None:
        for cold_cache in (True, False):
            timed = measure(lambda: gpu.launch("kernel", 300e-6), CUDA, cold_cache=cold_cache)
            assert timed.median_s == pytest.approx(300e-6, rel=0.01)  # not the host's 5 µs, not the flush's 100 µs
            assert timed.calls_per_sample == 1

    @staticmethod
    def compares_the_gpu(gpu: Gpu) -> None:
        functions = {"a": lambda: gpu.launch("a", 900e-6), "b": lambda: gpu.launch("b", 300e-6)}
        times = compare(functions, CUDA)
        assert [timed.median_s for timed in times.values()] == pytest.approx([900e-6, 300e-6], rel=0.01)
        assert ratio(times["a"], times["b"]).median == pytest.approx(3, rel=0.01)

    @pytest.mark.parametrize("claim", [measures_the_gpu, compares_the_gpu])
    def test_a_sample_is_time_of_the_gpu(self, gpu: Gpu, claim: Callable[[Gpu], None]) -> None:
        claim(gpu)

    @pytest.mark.parametrize("claim", [measures_the_gpu, compares_the_gpu])
    def test_a_clock_that_does_not_wait_fails(self, gpu: Gpu, claim: Callable[[Gpu], None], monkeypatch) -> None:
        monkeypatch.setattr(timing, "_events", clock_that_does_not_wait)
        with pytest.raises(AssertionError):
            claim(gpu)

    def test_events_are_not_read_before_the_gpu_has_reached_them(self, gpu: Gpu, monkeypatch) -> None:
        monkeypatch.setattr(Event, "synchronize", lambda self: None)
        with pytest.raises(RuntimeError, match="device not ready"):
            compare({"a": lambda: gpu.launch("a", 900e-6)}, CUDA)

    @pytest.mark.parametrize(
        ("options", "sample"),
        [
            ({"cold_cache": True}, ["flush", "event", "kernel", "event"]),
            ({"cold_cache": False}, ["event", "kernel", "event"]),
            ({"cold_cache": False, "hide_launch": True}, ["hold", "event", "kernel", "event"]),
            ({"cold_cache": True, "hide_launch": True}, ["flush", "hold", "event", "kernel", "event"]),
        ],
    )
    def test_each_sample_is_prepared_before_it_is_counted(self, gpu: Gpu, options, sample: list[str]) -> None:
        timed = measure(lambda: gpu.launch("kernel", 300e-6), CUDA, **options)
        assert timed.n > 100
        assert gpu.log[-timed.n * len(sample) :] == sample * timed.n
        assert timed.median_s == pytest.approx(300e-6)
        assert timed.method == "CUDA events"

    def test_a_held_stream_hides_the_launches(self, gpu: Gpu) -> None:
        def twenty_small_kernels() -> None:  # 100 µs to queue, 20 µs to compute
            for _ in range(20):
                gpu.launch("kernel", 1e-6)

        def sample_s(hide_launch: bool) -> float:
            timed = measure(twenty_small_kernels, CUDA, cold_cache=False, hide_launch=hide_launch)
            assert max(timed.samples_s) < 1.1 * min(timed.samples_s)
            return timed.median_s

        assert sample_s(hide_launch=False) == pytest.approx(101e-6, rel=0.02)
        assert sample_s(hide_launch=True) == pytest.approx(20e-6, rel=0.02)

    def test_the_budget_counts_the_time_that_the_stream_is_held(self, gpu: Gpu) -> None:
        def slow_to_queue() -> None:
            gpu.host_s += 5e-3
            gpu.launch("kernel", 1e-6)

        timed = measure(slow_to_queue, CUDA, cold_cache=False, hide_launch=True, budget_s=1.0)
        assert timed.median_s == pytest.approx(1e-6)
        assert gpu.host_s < 4


@pytest.mark.gpu
class TestOnARealGpu:
    def test_agrees_with_do_bench_of_triton(self) -> None:
        do_bench = pytest.importorskip("triton.testing").do_bench
        a, b = torch.randn(2, 8192, 8192, device=CUDA, dtype=torch.bfloat16)  # far longer than a flush could disturb

        def work() -> torch.Tensor:
            return a @ b

        ratios = interleaved_ratios(
            lambda: measure(work, CUDA).median_s, lambda: 1e-3 * do_bench(work, return_mode="median"), rounds=5
        )
        assert statistics.median(ratios) == pytest.approx(1, rel=0.05), ratios

    def test_events_agree_with_a_clock_on_the_wall_where_launches_do_not_count(self) -> None:
        a, b = torch.randn(2, 8192, 8192, device=CUDA)
        functions = {"one": lambda: a @ b}
        by_events = compare(functions, CUDA)["one"]
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(by_events.calls_per_sample):
            functions["one"]()
        torch.cuda.synchronize()
        elapsed_s = (time.perf_counter() - start) / by_events.calls_per_sample
        assert by_events.median_s == pytest.approx(elapsed_s, rel=0.05)

    def test_a_held_stream_makes_small_kernels_faster(self) -> None:
        x = torch.randn(1000, device=CUDA)

        def fifty_small_kernels() -> None:
            for _ in range(50):
                x.add_(1e-3)

        launched, held = (
            measure(fifty_small_kernels, CUDA, cold_cache=False, hide_launch=hide).median_s for hide in (False, True)
        )
        assert held < launched

    def test_the_flush_is_neither_counted_nor_kept(self) -> None:
        x = torch.randn(2**20, device=CUDA)
        before = torch.cuda.memory_allocated()
        cold = measure(lambda: x.sum(), CUDA).median_s
        assert torch.cuda.memory_allocated() == before
        flushed = measure(lambda: torch.empty(timing.FLUSH_BYTES, dtype=torch.int8, device=CUDA).zero_(), CUDA).median_s
        assert cold < flushed
