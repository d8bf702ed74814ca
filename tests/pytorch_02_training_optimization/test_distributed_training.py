"""distributed_training: the whole lesson runs and all its checks hold; what it computes agrees with oracles; and no
process that it starts outlives it.
"""

import math
import multiprocessing
import operator
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import distributed_training
from pytorch_02_training_optimization.src.distributed import (
    elastic,
    metrics,
    mishaps,
    ranks,
    ring,
    shards,
    workers,
    wrapper,
)
from pytorch_02_training_optimization.src.distributed.traffic import Call, sent_bytes
from pytorch_02_training_optimization.src.distributed.workers import WorkerFailed, Workers
from shared.agreement import deviation
from shared.errors import CannotRun
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = [
    "What a rank is",
    "Four collectives, with the numbers",
    "All-reduce as a ring",
    "What an all-reduce costs",
    "Data parallel by hand",
    "DDP is one process with a larger batch",
    "nn.DataParallel, and why not",
    "Buckets: sending while backward still computes",
    "no_sync: one all-reduce for a whole step",
    "BatchNorm: each rank by its own half",
    "Parameters that received no gradient",
    "When one rank runs out of batches",
    "A collective that one rank skips",
    "The sampler: who gets which sample",
    "One number from many ranks",
    "FSDP: a part of every parameter",
    "What a rank holds, and what it sends",
    "torchrun on one machine and on several",
    "A worker is killed, and the training goes on",
    "How often to save",
]

run = partial(run_quick, distributed_training)


def children_of(process: int) -> list[int]:
    """All descendants of a process that are alive, but for those that multiprocessing keeps until its end."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if state != "Z":
            parents[int(entry.name)] = int(parent), command
    found, above = [], {process}
    while True:
        new = {child for child, (parent, _) in parents.items() if parent in above and child not in above}
        if not new:
            return sorted(found)
        above |= new
        # The ranks have the command of the server that they came from, so the server is told by its parent.
        found += [child for child in new if parents[child][0] != process or b"multiprocessing" not in parents[child][1]]


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("distributed_training")
    return *run(folder), folder / "distributed_training"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=85)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, ["replicas.png", "memory_by_gpus.png"])
    assert {measurement["name"] for measurement in record["measurements"]} == {"all-reduce"}
    assert all(measurement["value"] > 0 for measurement in record["measurements"])


def test_messages_are_shown(lesson: tuple[dict[str, Any], str, Path]) -> None:
    text = " ".join(lesson[1].split())
    for said in (
        "Expected to have finished reduction in the prior iteration",
        "did not receive grad for rank 0: 4 5",
        "Timed out waiting",
        "Rank 1 failed to pass monitoredBarrier",
        "ALLREDUCE vs BROADCAST",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
    ):
        assert said in text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_is_left(lesson: tuple[dict[str, Any], str, Path]) -> None:
    assert multiprocessing.active_children() == []
    assert children_of(os.getpid()) == []


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(distributed_training, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    backends = {measurement["params"]["backend"] for measurement in record["measurements"]}
    assert backends == {"nccl" if torch.cuda.device_count() >= 2 else "gloo"}
    assert ("one GPU is here" in " ".join(text.split())) == (torch.cuda.device_count() == 1)


# Workers


@pytest.fixture(scope="module")
def pair() -> Iterator[Workers]:
    with Workers(2) as both:
        yield both


@pytest.fixture(scope="module")
def trio() -> Iterator[Workers]:
    with Workers(3) as three:
        yield three


def test_answers_come_by_rank(trio: Workers) -> None:
    assert trio.run(dist.get_rank) == [0, 1, 2]
    assert len(set(trio.run(os.getpid))) == 3


def test_a_task_that_raises_is_reported_and_ends_all_ranks() -> None:
    with Workers(2) as both:
        assert both.run(operator.truediv, 1, 2) == [0.5, 0.5]
        processes = [process.pid for process in both.processes]
        with pytest.raises(WorkerFailed, match="ZeroDivisionError"):
            both.run(operator.truediv, 1, 0)
        assert not any(Path(f"/proc/{process}").exists() for process in processes)
        with pytest.raises(WorkerFailed, match="have ended"):
            both.run(operator.truediv, 1, 2)


def test_a_rank_that_dies_is_reported() -> None:
    with Workers(2) as both, pytest.raises(WorkerFailed, match="died: it said nothing"):
        both.run(os._exit, 3)


def test_a_task_without_end_is_ended() -> None:
    start = time.monotonic()
    with Workers(2) as both:
        processes = [process.pid for process in both.processes]
        with pytest.raises(CannotRun, match="rank 0 gave no answer within 0 s"):
            both.run(time.sleep, 600, timeout_s=0.3)
    assert time.monotonic() - start < 60
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_A", "1")
    monkeypatch.delenv("LAB_B", raising=False)
    inside = []

    def fail() -> None:
        with workers.environment(LAB_A="2", LAB_B="3"):
            inside.append((os.environ["LAB_A"], os.environ["LAB_B"]))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert inside == [("2", "3")]
    assert (os.environ["LAB_A"], os.environ.get("LAB_B")) == ("1", None)


def test_the_backend_and_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers.choose_backend(torch.device("cpu"))[0] == "gloo"
    assert workers.choose_backend(torch.device("mps"))[0] == "gloo"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "one GPU" in workers.choose_backend(torch.device("cuda"))[1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert workers.choose_backend(torch.device("cuda")) == ("nccl", "2 GPUs, one for each rank")


PROGRAM = """
import os, sys, time
sys.path.insert(0, {root!r})
from pytorch_02_training_optimization.src.distributed import workers
workers.PRELOADED = ["torch.distributed"]
if __name__ == "__main__":
    with workers.Workers(2) as pair:
        print(*pair.run(os.getpid), flush=True)
        {then}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("then", "end"),
    [("pair.run(time.sleep, 600)", signal.SIGINT), ("time.sleep(600)", signal.SIGKILL)],
    ids=["interrupted", "killed"],
)
def test_ranks_end_with_the_lesson(then: str, end: signal.Signals, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT), then=then))
    process = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        ranks_started = [int(text) for text in process.stdout.readline().split()]
        assert len(ranks_started) == 2
        time.sleep(0.3)
        process.send_signal(end)
        process.wait(60)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{rank}").exists() for rank in ranks_started) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{rank}").exists() for rank in ranks_started)
    finally:
        process.kill()
        process.communicate()


# Collectives


@pytest.mark.parametrize("count", [1, 2, 3, 7, 300])
def test_every_way_to_reduce_is_the_sum(count: int, trio: Workers) -> None:
    total = sum((ring.numbers_of(rank, count, 5) for rank in range(3)), torch.zeros(count))
    for answer in trio.run(ring.reduce_in_every_way, count, 5):
        for x, _ in answer.values():
            assert deviation(x, total) < 1e-6


def test_bytes_of_the_ring_of_three(trio: Workers) -> None:
    answers = trio.run(ring.reduce_in_every_way, 300, 0)
    assert [answer["ring"][1] for answer in answers] == [2 * 2 * 1200 // 3] * 3
    assert [answer["through rank 0"][1] for answer in answers] == [2400, 1200, 1200]
    assert [answer["dist.all_reduce"][1] for answer in answers] == [0] * 3


def test_the_drawing_of_a_ring(trio: Workers) -> None:
    assert ring.draw_ring(trio.run(ring.take_snapshots)).splitlines() == [
        "        start     step 1    step 2    step 3    step 4",
        "rank 0  │1│1│1│   │1│1│2│   │1│3│2│   │3│3│2│   │3│3│3│",
        "rank 1  │1│1│1│   │2│1│1│   │2│1│3│   │2│3│3│   │3│3│3│",
        "rank 2  │1│1│1│   │1│2│1│   │3│2│1│   │3│2│3│   │3│3│3│",
    ]


def test_the_drawing_of_the_collectives(pair: Workers) -> None:
    lines = ranks.draw_collectives(pair.run(ranks.call_collectives)).splitlines()
    assert lines[3] == "all_reduce        │11│22│33│44│                │11│22│33│44│"
    assert lines[5] == "reduce_scatter    │11│22│                      │33│44│"


def test_sent_bytes() -> None:
    calls = [Call("all-reduce", 800), Call("all-gather", 400), Call("reduce-scatter", 80), Call("broadcast", 10**6)]
    assert sent_bytes(calls, 4) == 0.75 * (1600 + 400 + 80)
    assert sent_bytes(calls, 1) == 0
    assert ring.ring_seconds(100e6, 2, 100e6) == 1


# Samplers and metrics


@pytest.mark.parametrize("trial", range(40))
def test_indices_are_those_of_the_library(trial: int) -> None:
    generator = random.Random(trial)
    count, world_size, epoch, seed = (generator.randint(1, top) for top in (30, 9, 5, 99))
    for rank in range(world_size):
        sampler = DistributedSampler(range(count), world_size, rank, seed=seed)  # type: ignore[arg-type, var-annotated]
        sampler.set_epoch(epoch)
        assert distributed_training.indices_of(count, rank, world_size, epoch, seed) == list(sampler)


def test_the_drawing_of_a_dealing_marks_what_is_dealt_twice() -> None:
    text = distributed_training.draw_dealing(5, 3)
    assert len(text.splitlines()) == 3
    assert text.count("(") == 2  # one sample, in two ranks
    assert Counter(text) != Counter(distributed_training.draw_dealing(6, 3))
    assert "(" not in distributed_training.draw_dealing(6, 3)


def test_metrics_over_ranks(pair: Workers) -> None:
    assert pair.run(metrics.mean_of_accuracies, 1, 4) == [0.25, 0.25]
    assert pair.run(metrics.accuracies)[1] == pytest.approx(((45 / 50 + 2 / 8) / 2, 47 / 58))


# One process and several


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_data_parallel_step_is_one_backward(parts: int) -> None:
    torch.manual_seed(parts)
    model, whole = (distributed_training.CountsItsSamples(6, 3) for _ in range(2))
    whole.load_state_dict(model.state_dict())
    x, y = torch.randn(10, 6), torch.randint(3, (10,))
    torch.nn.functional.cross_entropy(whole(x), y).backward()
    copied = distributed_training.data_parallel_step(model, x, y, parts)
    assert copied == (parts - 1) * 4 * (6 * 3 + 3)
    assert model.seen == math.ceil(10 / parts)
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert deviation(a.grad, b.grad) < 1e-6


def test_statistics_over_ranks_are_those_of_all_samples(pair: Workers) -> None:
    x = torch.randn(8, 3) * 2 + 1
    for mean, variance in pair.run(wrapper.statistics_over_ranks, x):  # both ranks have the same samples
        assert deviation(mean, x.mean(dim=0)) < 1e-5
        assert deviation(variance, x.var(dim=0, unbiased=False)) < 1e-5


def test_shards_are_chunks() -> None:
    for rows in range(1, 20):
        for world_size in range(1, 9):
            sizes = [len(part) for part in torch.zeros(rows).chunk(world_size)]
            sizes += [0] * (world_size - len(sizes))
            assert [shards.rows_of(rank, rows, world_size) for rank in range(world_size)] == sizes
    shapes = [(5, 3), (7,), (1, 2)]
    assert sum(shards.predicted_bytes(shapes, rank, 4) for rank in range(4)) == 4 * (15 + 7 + 2)
    assert shards.predicted_bytes(shapes, 0, 1) == 4 * (15 + 7 + 2)


def test_local_bytes_leaves_out_scalars() -> None:
    assert shards.local_bytes([torch.zeros(3), torch.zeros(()), 5, None, torch.zeros(2, 2)]) == 28


def test_errors_are_cut_to_what_a_reader_needs() -> None:
    def fail() -> None:
        raise RuntimeError("[/a/b-c/unbound_buffer.cc:78] Timed out\n waiting 1000ms. This is typically caused by x. y")

    assert mishaps.error_of(fail) == "Timed out waiting 1000ms"
    assert mishaps.error_of(lambda: None) == ""
    with pytest.raises(ZeroDivisionError):
        mishaps.error_of(lambda: 1 / 0)


# Starting and restarting


def test_commands_are_understood_by_torchrun() -> None:
    for command in elastic.COMMANDS.values():
        assert elastic.parse(command).training_script == "train.py"
    assert [elastic.global_rank(node, local, 3) for node in range(2) for local in range(3)] == list(range(6))


def test_a_reserved_port_can_be_listened_on_and_is_given_to_nobody_else() -> None:
    with elastic.reserved_port() as port:
        others = []
        for _ in range(50):
            with socket.socket() as other:
                other.bind(("127.0.0.1", 0))
                others.append(other.getsockname()[1])
        assert port not in others
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        store.set("a", "b")
        assert store.get("a") == b"b"


@pytest.mark.skipif(not elastic.HAS_SIGKILL, reason="needs SIGKILL")
def test_a_killed_worker_costs_a_life_and_no_more(tmp_path: Path, pair: Workers) -> None:
    before = len(multiprocessing.active_children())
    for name in ("killed", "whole", "in vain"):
        (tmp_path / name).mkdir()
    lives = elastic.run_elastically(2, 1, tmp_path / "killed", 8, 6)
    assert lives[1:] == [[0, 0]]
    assert lives[0][1] == -signal.SIGKILL
    pair.run(elastic.train_undisturbed, str(tmp_path / "whole"), 8)
    killed, whole = (elastic.result_in(tmp_path / name) for name in ("killed", "whole"))
    assert (killed["began_at"], killed["restarts"]) == (5, 1)
    assert (whole["began_at"], whole["restarts"]) == (0, 0)
    assert killed["loss"] == whole["loss"]
    with pytest.raises(CannotRun, match="died 1 times"):
        elastic.run_elastically(2, 0, tmp_path / "in vain", 8, 2)
    assert len(multiprocessing.active_children()) == before


@pytest.mark.parametrize(("save_s", "between_s"), [(1.0, 3600.0), (30.0, 11_000.0), (300.0, 86_400.0)])
def test_the_best_interval(save_s: float, between_s: float) -> None:
    best = elastic.best_interval_s(save_s, between_s)
    least = elastic.lost_share(best, save_s, between_s)
    assert least == pytest.approx(math.sqrt(2 * save_s / between_s))
    assert all(elastic.lost_share(best * factor, save_s, between_s) > least for factor in (0.5, 0.9, 1.1, 2.0))
