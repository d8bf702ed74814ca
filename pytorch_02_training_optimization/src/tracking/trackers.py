"""A chapter of experiment_tracking: the same training told to a file, TensorBoard, Weights & Biases and MLflow."""

import importlib.util
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src.tracking.event_files import new_board, read_board
from pytorch_02_training_optimization.src.tracking.journal import METRICS, Journal, read_journal
from pytorch_02_training_optimization.src.tracking.task import Config, Task, Tracker, train
from shared.lesson import Lesson

import numpy as np

Points = dict[str, list[tuple[int, float]]]  # by tag: step and value

# No account, no network, no report about you to anybody; MLflow writes plain files only when asked to.
PRIVATE = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


@contextmanager
def private_settings() -> Iterator[None]:
    """PRIVATE in the environment, which is as it was afterwards."""
    before = {name: os.environ.get(name) for name in PRIVATE}
    os.environ.update(PRIVATE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Board:
    """Tells TensorBoard."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._board = new_board(folder)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """Tells Weights & Biases: a file now, which `wandb sync FOLDER` may upload later."""

    def __init__(self, folder: Path, config: Config) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        self._run = wandb.init(
            project="letters", dir=str(folder), mode="offline", config=asdict(config), settings=settings
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """Tells MLflow: a folder of files; in real work give it a database, sqlite:///mlflow.db, or your team's server."""

    def __init__(self, folder: Path, config: Config) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=folder.resolve().as_uri())
        experiment = self._client.create_experiment("letters")
        self._run = self._client.create_run(experiment).info.run_id
        for name, value in asdict(config).items():
            self._client.log_param(self._run, name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._client.log_metric(self._run, tag, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Everyone:
    """Tells several trackers the same: with this protocol a training does not know who listens."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


# Reading back


def points_of_journal(folder: Path) -> Points:
    points: Points = {}
    for line in read_journal(folder / METRICS):
        for tag, value in line.items():
            if tag != "step":
                points.setdefault(tag, []).append((line["step"], value))
    return points


def points_of_board(folder: Path) -> Points:
    board = read_board(folder)
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, a record in one or more pieces.

    https://github.com/google/leveldb/blob/main/doc/log_format.md; W&B puts 7 bytes of its own at the beginning.
    """
    whole, position = b"", 7
    while position + 7 <= len(content):
        if (room := 32768 - position % 32768) < 7:  # no header fits: the rest of the block is zeros
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the only piece, or the last
            yield whole
            whole = b""


def points_of_wandb(folder: Path) -> Points:
    """What an offline run has written, from its file alone."""
    import json

    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    points: Points = {}
    for record in map(Record.FromString, wandb_records(path.read_bytes())):
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for tag, value in items.items():
                if not tag.startswith("_"):
                    points.setdefault(tag, []).append((items["_step"], value))
    return points


def points_of_mlflow(folder: Path) -> Points:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    experiment = client.get_experiment_by_name("letters")
    (run,) = client.search_runs([experiment.experiment_id])
    return {
        tag: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, tag))
        for tag in run.data.metrics
    }


Begin = Callable[[Path, Config], Any]
OPTIONAL: dict[str, tuple[str, str, Begin, Callable[[Path], Points]]] = {
    "Weights & Biases": ("wandb", "wandb", WeightsAndBiases, points_of_wandb),
    "MLflow": ("mlflow", "mlflow-skinny", MLflow, points_of_mlflow),
}
IDEAS = (
    {
        "tool": "a file of lines",
        "where it lives": "the run's folder",
        "its point": "no library; grep, pandas, any language",
    },
    {
        "tool": "TensorBoard",
        "where it lives": "the run's folder",
        "its point": "images, histograms, graph; one machine",
    },
    {
        "tool": "Weights & Biases",
        "where it lives": "its servers, or yours",
        "its point": "a team sees runs live; sweeps",
    },
    {"tool": "MLflow", "where it lives": "a database of yours", "its point": "runs and models in one registry"},
)


def show_trackers(lesson: Lesson, task: Task) -> None:
    lesson.section(
        "One protocol, four trackers",
        "The training of this script knows two methods, log(step, values) and close(). Which tool listens is then a choice of "
        "the last minute. One training now speaks to all that are installed here, and what each has written is read from "
        "its files and compared.",
    )
    lesson.table(IDEAS)
    config = Config(steps=lesson.pick(full=100, quick=20), validate_every=10, seed=lesson.options.seed)
    there = {tool: parts for tool, parts in OPTIONAL.items() if importlib.util.find_spec(parts[0])}
    with tempfile.TemporaryDirectory() as name, private_settings():
        folders = {tool: Path(name) / str(number) for number, tool in enumerate(["file", "TensorBoard", *there])}
        for folder in folders.values():
            folder.mkdir()
        optional = [begin(folders[tool], config) for tool, (_, _, begin, _) in there.items()]
        listeners = Everyone(Journal(folders["file"] / METRICS), Board(folders["TensorBoard"], config), *optional)
        train(config, task, listeners)
        listeners.close()
        journal, board = points_of_journal(folders["file"]), points_of_board(folders["TensorBoard"])
        found = {tool: read(folders[tool]) for tool, (_, _, _, read) in there.items()}
    count = sum(map(len, journal.values()))
    rounded = {tag: [(step, float(np.float32(value))) for step, value in points] for tag, points in journal.items()}
    lesson.check(
        "TensorBoard has the file's points, as float32", board == rounded, f"{count} points, {len(journal)} curves"
    )
    for tool, (_, package, _, _) in OPTIONAL.items():
        if tool in found:
            lesson.check(
                f"{tool} has them to the last bit", found[tool] == journal, f"{count} points, without a network"
            )
        else:
            lesson.skip(f"the same training told to {tool}, offline, and read back.", f"pip install {package}")
    lesson.check("all listeners heard each step once", all(len({step for step, _ in points}) == len(points)
                 for points in journal.values()), f"steps {journal['train/loss'][0][0]} to {config.steps}")  # fmt: skip
    lesson.shows(
        f"{2 + len(found)} tools kept the same {count} points. The file keeps every bit of a float64; TensorBoard rounds. Keep "
        "the file in any case, since it is the one that no service, version or licence can take from you."
    )
