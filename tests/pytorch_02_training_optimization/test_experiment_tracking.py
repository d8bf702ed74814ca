"""experiment_tracking: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import json
import math
import os
import random
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import experiment_tracking
from pytorch_02_training_optimization.src.letters.rows import load_letters
from pytorch_02_training_optimization.src.tracking import (
    boards,
    comparison,
    costs,
    curves,
    event_files,
    journal,
    killed,
    records,
    task,
    trackers,
)
from shared.errors import CannotRun
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F

SECTIONS = [
    "A run is a folder",
    "Scalars: what the file holds",
    "Histograms: bins ten per cent wide",
    "Images, text and a precision-recall curve",
    "Graph, hyperparameters and points in space",
    "What logging costs",
    "A number that makes the device wait",
    "A logger in twenty lines, and a kill",
    "One protocol, four trackers",
    "What a run must remember",
    "Eight runs, one table",
    "One run again, from its record alone",
    "Smoothing: what it shows, hides and invents",
    "What is on the horizontal axis",
]
CPU = torch.device("cpu")

run = partial(run_quick, experiment_tracking)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("experiment_tracking")
    return *run(folder), folder / "experiment_tracking"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=70)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = {measurement["name"] for measurement in record["measurements"]}
    assert names == {"logging", "logged", "step", "lowest validation loss"}
    assert all(measurement["value"] > 0 for measurement in record["measurements"])
    expect_pictures(record, folder, ["runs.png", "coordinates.png", "smoothing.png", "axes.png"])


def test_the_events_of_all_runs_are_left_for_tensorboard(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, _, folder = lesson
    (started,) = (folder / "runs").iterdir()
    found = {path.parent.relative_to(started).parts[0] for path in started.rglob("events.out.tfevents.*")}
    studied = {f"lr{lr:g}_width{width}" for lr in comparison.RATES for width in comparison.WIDTHS}
    assert found == studied | {"everything"}
    for name in studied:
        assert journal.read_journal(started / name / journal.METRICS)
        assert json.loads((started / name / records.RECORD).read_text())["config"]["seed"] == 0


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(experiment_tracking, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda")
    assert record["device"]["kind"] == "cuda"
    expect_whole(record, text, SECTIONS, least_checks=70)


# Folders


def test_run_folders_are_new_however_many_begin_at_once(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    names = [experiment_tracking.new_run_folder(tmp_path / "runs", now).name for _ in range(3)]
    assert names == ["2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3"]


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(CannotRun, match="--out DIR"):
        experiment_tracking.new_run_folder(tmp_path / "runs", datetime(2026, 1, 1, tzinfo=UTC))


# Event files


@pytest.mark.parametrize("tag", ["a", "train/loss", "ä" * 60, "x" * 127, "x" * 200])
@pytest.mark.parametrize("step", [0, 1, 127, 128, 16_384, 2**40])
def test_scalar_bytes_is_what_the_file_grows_by(tag: str, step: int, tmp_path: Path) -> None:
    board = event_files.new_board(tmp_path)
    board.flush()
    before = event_files.event_file(tmp_path).stat().st_size
    board.add_scalar(tag, 1.5, step)
    board.close()
    assert event_files.event_file(tmp_path).stat().st_size - before == event_files.scalar_bytes(tag, step)
    assert event_files.scalars_by_hand(event_files.event_file(tmp_path).read_bytes()) == [(tag, step, 1.5)]


def test_records_of_nothing_and_of_half_a_header() -> None:
    frame = struct.pack("<Q", 3) + b"crc1" + b"abc" + b"crc2"
    assert list(event_files.records(b"")) == []
    assert list(event_files.records(frame[:11])) == []
    assert list(event_files.records(frame[:-1])) == []
    assert list(event_files.records(frame + frame[:15])) == [b"abc"]


# Histograms, curves, pictures


def test_bins_are_counted_as_numpy_counts_them(tmp_path: Path) -> None:
    x = torch.cat([torch.randn(999), torch.zeros(7)])
    board = event_files.new_board(tmp_path)
    board.add_histogram("x", x, 0)
    board.close()
    (event,) = event_files.read_board(tmp_path).Histograms("x")
    histogram = event.histogram_value
    assert list(histogram.bucket) == boards.count_by_hand(x, histogram.bucket_limit)
    low, high = boards.middle_of_bins(histogram)
    assert low <= x.median() <= high


def test_thresholds_against_a_loop_over_samples() -> None:
    labels, scores = torch.tensor([1, 0, 1, 1, 0]), torch.tensor([0.9, 0.8, 0.5, 0.1, 0.05])
    found = boards.counts_by_threshold(labels, scores, 11)
    said = [[score >= index / 10 - 1e-6 for score in scores.tolist()] for index in range(11)]
    for index, row in enumerate(said):
        tp = sum(yes and label == 1 for yes, label in zip(row, labels.tolist(), strict=True))
        fp = sum(yes and label == 0 for yes, label in zip(row, labels.tolist(), strict=True))
        assert found[:4, index].tolist() == [tp, fp, 2 - fp, 3 - tp]
        assert found[5, index].item() == pytest.approx(tp / 3)


# The journal


def test_a_journal_gives_back_what_it_was_told(tmp_path: Path) -> None:
    path, draw = tmp_path / "metrics.jsonl", random.Random(0)
    written = [(step, {"a": draw.random(), "b/ü": 10 ** draw.uniform(-300, 300)}) for step in range(20)]
    log = journal.Journal(path)
    for step, values in written:
        log.log(step, values)
        assert journal.read_journal(path)[-1] == {"step": step, **values}  # before it is closed
    log.close()
    assert journal.read_journal(path) == [{"step": step, **values} for step, values in written]


@pytest.mark.parametrize("after", [0, 3, 5, math.inf])
@pytest.mark.parametrize("cut", [1, 5, 17])
def test_a_resumed_journal_has_each_step_once(after: float, cut: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = journal.Journal(path)
    for step in range(1, 6):
        log.log(step, {"loss": 1 / step})
    log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    last = 5 if cut == 1 else 4  # without its line end alone the last line is still whole
    begin = int(min(after, last))
    log = journal.Journal(path, after_step=after)
    for step in range(begin + 1, 9):
        log.log(step, {"loss": 1 / step})
    log.close()
    assert [line["step"] for line in journal.read_journal(path)] == list(range(1, 9))
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks(value: float, tmp_path: Path) -> None:
    log = journal.Journal(tmp_path / "m.jsonl")
    log.log(1, {"loss": value})
    log.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse)
    (line,) = journal.read_journal(tmp_path / "m.jsonl")
    assert line["loss"] == value or (math.isnan(value) and math.isnan(line["loss"]))


def test_no_journal_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert journal.read_journal(tmp_path / "none.jsonl") == []


def test_a_cut_inside_a_letter_of_two_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes('{"step": 1, "ü": 1.0}\n{"step": 2, "ü'.encode()[:-1])
    assert journal.read_journal(path) == [{"step": 1, "ü": 1.0}]


def test_a_child_that_does_not_die_as_planned_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        killed.run_until_killed("1 / 0", tmp_path / "m.jsonl")


# Waits


def test_means_of_intervals_and_of_the_rest() -> None:
    losses = torch.rand(120)
    found = costs.log_interval_means(iter(losses).__next__, 120)
    wanted = [losses[:50].mean(), losses[50:100].mean(), losses[100:].mean()]
    torch.testing.assert_close(torch.tensor(found), torch.stack(wanted))


# Trackers


class Kept:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_everyone_hears_the_same() -> None:
    first, second = Kept(), Kept()
    both = trackers.Everyone(first, second)
    both.log(3, {"loss": 0.5})
    both.close()
    assert first.lines == second.lines == [(3, {"loss": 0.5})]
    assert first.closed
    assert second.closed


def test_private_settings_leave_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    before = dict(os.environ)
    with trackers.private_settings():
        assert os.environ["WANDB_MODE"] == "offline"
    assert dict(os.environ) == before


def test_records_of_a_wandb_file_across_blocks() -> None:
    payloads = [b"first", b"x" * 100_000, b"", b"last"]
    content = b":W&B" + bytes(3)
    for payload in payloads:
        begin = True
        while True:
            room = 32768 - len(content) % 32768
            if room < 7:
                content += bytes(room)
                room = 32768
            piece, payload = payload[: room - 7], payload[room - 7 :]
            kind = (1 if begin else 4) if not payload else (2 if begin else 3)
            content += struct.pack("<IHB", 0, len(piece), kind) + piece
            begin = False
            if not payload:
                break
    assert list(trackers.wandb_records(content)) == [b"first", b"x" * 100_000, b"", b"last"]


# Training


@pytest.fixture(scope="module")
def small() -> task.Task:
    letters = load_letters(400)
    return task.Task(letters[:300], letters[300:])


def test_descend_is_sgd_with_momentum(small: task.Task) -> None:
    own, other = (task.build(task.Config(seed=3), CPU) for _ in range(2))
    velocities = [torch.zeros_like(parameter) for parameter in own.parameters()]
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    for start in range(0, 50, 10):
        rows = slice(start, start + 10)
        for model in (own, other):
            F.cross_entropy(model(small.training.x[rows]), small.training.y[rows]).backward()
        task.descend(own, velocities, 0.05, 0.9)
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(own.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_training_tells_its_tracker_every_step_that_it_should(small: task.Task) -> None:
    kept = Kept()
    task.train(task.Config(steps=25, log_every=5, validate_every=10), small, kept)
    steps = {tag: [step for step, values in kept.lines if tag in values] for tag in ("train/loss", "validation/loss")}
    assert steps == {"train/loss": [5, 10, 15, 20, 25], "validation/loss": [10, 20, 25]}


def test_a_digest_depends_on_bits_type_and_shape() -> None:
    x = torch.arange(6.0)
    assert task.digest(x) == task.digest(x.clone())
    assert task.digest(x.view(2, 3).T) == task.digest(x.view(2, 3).T.contiguous())
    different = [x, x.view(2, 3), x.view(3, 2), x.double(), x.int(), -x, torch.cat([x, x])]
    assert len({task.digest(y) for y in different}) == len(different)
    assert task.digest(x, x) != task.digest(torch.cat([x, x]))


# Records


def test_differences_of_records() -> None:
    first = {"config": {"lr": 0.1, "width": 3}, "started": "a", "command": ["x"], "gone": 1}
    second = {"config": {"lr": 0.2, "width": 3}, "started": "b", "command": ["y"], "new": 2}
    assert records.differences(first, second) == {"config.lr": (0.1, 0.2), "gone": (1, None), "new": (None, 2)}
    assert records.differences(first, first) == {}


def test_code_state_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    unknown = {"revision": None, "dirty": None, "patch": None}
    assert records.code_state(tmp_path) == unknown
    monkeypatch.setattr(records.shutil, "which", lambda program: None)
    assert records.code_state(tmp_path) == unknown


def test_code_state_is_not_misled_by_the_variables_of_a_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if records.git(tmp_path, "init", "--quiet") is None:
        pytest.skip("needs git")
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    assert records.git(tmp_path, *who, "commit", "--quiet", "--allow-empty", "--no-verify", "-m", "x") is not None
    revision = subprocess.run(
        ["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    state = records.code_state(tmp_path)
    assert state["revision"] == revision
    assert state["dirty"] is False


def test_a_run_is_reproduced_and_other_data_refused(small: task.Task, tmp_path: Path) -> None:
    config = task.Config(steps=30, seed=5)
    code = {"revision": None, "dirty": None, "patch": None}
    weights = comparison.run_once(tmp_path, config, small, code)
    folder = tmp_path / comparison.run_name(config)
    assert records.reproduce(folder, small) == (weights, (folder / journal.METRICS).read_bytes())
    with pytest.raises(ValueError, match="not the data"):
        records.reproduce(folder, task.Task(small.training[1:], small.validation))


def test_flags_alone_are_what_differs_from_the_defaults() -> None:
    config = task.Config(lr=0.5, steps=7)
    assert records.flags_alone(config) == {"lr": 0.5, "steps": 7}
    assert records.flags_alone(task.Config()) == {}
    later = records.ConfigOfNextMonth(lr=0.5, steps=7)
    assert asdict(later) == asdict(replace(config, momentum=0.8))


def test_runs_are_read_in_order_of_their_lowest_loss(tmp_path: Path) -> None:
    for name, losses in {"a": [3.0, 2.0, 2.5], "b": [1.5, math.nan, 4.0], "c": [math.nan, math.nan, math.nan]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / records.RECORD).write_text("{}")
        log = journal.Journal(tmp_path / name / journal.METRICS)
        for step, loss in enumerate(losses):
            log.log(step, {"validation/loss": loss})
        log.close()
    found = comparison.read_runs(tmp_path)
    assert [run.name for run in found] == ["b", "a", "c"]
    assert [run.best[0] for run in found] == [0, 1, 0]


# Curves


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 0.999])
def test_smoothing_is_a_mean_weighted_by_age(weight: float) -> None:
    values = torch.randn(200, dtype=torch.float64)
    found = torch.tensor(curves.smooth(values.tolist(), weight), dtype=torch.float64)
    torch.testing.assert_close(found, curves.weighted_mean(values, weight), rtol=1e-10, atol=1e-10)
    by_loop = [sum(weight**age * values[i - age].item() for age in range(i + 1)) / sum(weight**age for age in range(i + 1))
               for i in range(200)]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(by_loop, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_smoothing_of_nothing_and_of_nothing_finite() -> None:
    assert curves.smooth([], 0.9) == []
    assert all(map(math.isnan, curves.smooth([math.nan, math.nan], 0.9)))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (7, 7), (1001, 100), (64, 16)])
def test_the_mean_over_samples_is_the_mean(count: int, batch_size: int) -> None:
    losses = torch.rand(count)
    assert curves.mean_over_samples(losses, batch_size) == pytest.approx(losses.mean().item(), rel=1e-5)
    if count % batch_size == 0:
        assert curves.mean_of_batch_means(losses, batch_size) == pytest.approx(losses.mean().item(), rel=1e-5)


def test_noise_has_no_correlation_and_a_line_has() -> None:
    assert abs(curves.correlation(torch.randn(10_000))) < 0.06
    assert curves.correlation(torch.arange(1000.0)) > 0.99
