"""train: the whole run and its checks; settings, data, step and state against oracles; every mistake in one line."""

import errno
import io
import json
import math
import random
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from pytorch_02_training_optimization.src import train
from pytorch_02_training_optimization.src.training import guards, settings
from pytorch_02_training_optimization.src.training.data import (
    Batches,
    channel_statistics,
    flipped_and_shifted,
    load_data,
)
from pytorch_02_training_optimization.src.training.log import EVENTS, EventFile, Log, events_to, read_metrics
from pytorch_02_training_optimization.src.training.models import build_model
from pytorch_02_training_optimization.src.training.settings import Settings, updated
from pytorch_02_training_optimization.src.training.team import Team
from shared import checkpoints
from shared.errors import CannotRun
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SECTIONS = [
    "Three parts of the data",
    "Before the first step",
    "The loop",
    "What is on the disk",
    "The test, once",
    "What it cost",
]
TINY = (
    "--train-images",
    "230",
    "--epochs",
    "1",
    "--width",
    "4",
    "--batch-size",
    "20",
    "--log-every",
    "1",
    "--name",
    "r",
)

run = partial(run_quick, train)


def tiny(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and page of a training of ten steps."""
    stream = io.StringIO()
    with redirect_stdout(stream):
        try:
            code = train.main(["--quick", "--no-plots", "--out", str(folder), *TINY, *options])
        except SystemExit as end:
            code = end.code
    return code, stream.getvalue()


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line of a run that cannot be."""
    code, _ = tiny(folder, *options)
    lines = capsys.readouterr().err.strip().splitlines()
    assert (code, len(lines)) == (2, 1), lines
    return lines[0]


def state_of(folder: Path) -> dict[str, Any]:
    return checkpoints.load(folder / "train" / "runs" / "r" / "checkpoints").state


def expect_equal(found: Any, oracle: Any) -> None:
    torch.testing.assert_close(found, oracle, rtol=0, atol=0)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("train")
    return *run(folder, "--name", "r"), folder / "train"


def test_whole(quick):
    record, text, folder = quick
    expect_whole(record, text, SECTIONS, 11)
    expect_pictures(record, folder, ["training_curves.png"])


def test_run_folder_holds_all_that_a_second_look_needs(quick):
    _, _, folder = quick
    run = folder / "runs" / "r"
    again = settings.read_yaml(run / "config.yaml")
    assert again.pop("seed") == 0
    assert updated(Settings(), again, "config.yaml").train_images == 2000
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    kinds = [line["kind"] for line in read_metrics(run)]
    steps = 3 * (1800 // 24)
    assert (kinds.count("validation"), kinds.count("train")) == (3, steps // 5)  # an epoch ends at a fifth step, too


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed(seed, tmp_path, monkeypatch):
    expect_any_seed(train, seed, tmp_path, monkeypatch)


# Settings


def test_file_then_flag(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 1e-3\nweight-decay: 0.1\nmodel: mlp\nseed: 5\n")
    code, _ = tiny(tmp_path, "--config", str(tmp_path / "mine.yaml"), "--weight-decay", "0.2")
    state = state_of(tmp_path)
    found = state["settings"]
    assert code == 0
    assert (found["lr"], found["weight_decay"], found["model"], state["seed"]) == (1e-3, 0.2, "mlp", 5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("learning_rate: 1", "did you mean lr?"),
        ("epoch: 3", "did you mean epochs?"),
        ("batchsize: 3", "did you mean batch_size?"),
        ("xyzzy: 3", "known are dataset"),
        ("lr: fast", "lr to 'fast'; it is a number of at least 0"),
        ("lr: -1", "at least 0"),
        ("lr: .nan", "at least 0"),
        ("epochs: 2.5", "whole number"),
        ("epochs: 0", "at least 1"),
        ("epochs: [1, 2]", "whole number"),
        ("compile: 3", "true or false"),
        ("model: transformer", "one of mlp, cnn, resnet"),
        ("model: null", "a word"),
        ("warmup: 1.0", "below 1"),
        ("- lr", "holds a list"),
        ("lr: [", "cannot be read as YAML"),
        ("weight_decay: 500", "wipes out the weights"),
        ("strategy: fsdp", "start it with torchrun"),
        ("accumulate: 3", "cannot be divided by 3 pieces; try --batch-size 21"),
        ("batch_size: 5000", "less than one batch of 5000"),
        ("dataset: nowhere", "neither a data set"),
    ],
)
def test_mistake_in_a_file_is_one_line(content, said, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(content + "\n")
    flags = [flag for flag in TINY if flag.startswith("--")]
    values = dict(zip(flags, TINY[1::2], strict=True))
    key = "--" + content.partition(":")[0].replace("_", "-")
    values.pop(key, None)  # a flag would override the file
    options = [text for pair in values.items() for text in pair]
    files = ["--out", str(tmp_path), "--config", str(tmp_path / "mine.yaml")]
    assert train.main(["--quick", "--no-plots", *files, *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_numbers_of_yaml_are_what_they_say():
    assert updated(Settings(), {"lr": "1e-3", "epochs": "7"}, "x") == Settings(lr=1e-3, epochs=7)
    assert updated(Settings(lr=1.0), {"lr": None}, "x").highest_lr == 6e-3


def test_processes_that_do_not_divide_the_batch():
    with pytest.raises(CannotRun, match="128 cannot be divided by 3 processes x 1 pieces; try --batch-size 129"):
        settings.check_together(Settings(), 3)
    with pytest.raises(CannotRun, match="muon needs whole matrices"):
        settings.check_together(Settings(optimizer="muon", strategy="fsdp"), 2)


# Data


def test_channel_statistics_are_those_of_torch():
    images = torch.randint(0, 256, (37, 3, 9, 11), dtype=torch.uint8)
    images[:, 2] = 200  # a constant channel must not divide by 0
    mean, deviation = channel_statistics(images)
    oracle = images.double().std((0, 2, 3), correction=0).clamp_min(1.0).float()
    torch.testing.assert_close(mean.flatten(), images.double().mean((0, 2, 3)).float())
    torch.testing.assert_close(deviation.flatten(), oracle)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 12)])
def test_flips_and_shifts_are_those_of_flip_and_padding(height, width):
    images = torch.randint(0, 256, (25, 3, height, width), dtype=torch.uint8)
    flips = torch.rand(25) < 0.5
    shifts = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    found = flipped_and_shifted(images, flips, shifts)
    for image, flip, (down, right), one in zip(images, flips, shifts.tolist(), found, strict=True):
        padded = F.pad((image.flip(2) if flip else image).float()[None], (2, 2, 2, 2), "replicate")[0].byte()
        expect_equal(one, padded[:, 2 - down : 2 - down + height, 2 - right : 2 - right + width])


def make_part(count: int = 53) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8), torch.arange(count)


def test_an_epoch_shows_no_image_twice_and_epochs_differ():
    part = make_part()
    first, second = (
        torch.cat([b[0][1] for b in (Batches(part, 10, 3, epoch)[i] for i in range(5))]) for epoch in (0, 1)
    )
    assert len(set(first.tolist())) == len(set(second.tolist())) == 50
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(("pieces", "processes"), [(1, 2), (2, 1), (2, 3), (12, 1)])
def test_pieces_and_processes_divide_one_batch(pieces, processes):
    part = make_part()
    [(images, labels)] = Batches(part, 12, 7, 1, augment=True)[2]
    parts = [Batches(part, 12, 7, 1, True, pieces, rank, processes)[2] for rank in range(processes)]
    in_order = [parts[rank][piece] for piece in range(pieces) for rank in range(processes)]
    expect_equal(torch.cat([x for x, _ in in_order]), images)
    expect_equal(torch.cat([y for _, y in in_order]), labels)


def test_workers_bring_the_same_batches_and_leave_the_generator_alone():
    batches = Batches(make_part(), 10, 3, 0, augment=True)
    before = torch.get_rng_state()
    found = list(batches.starting_at(2, workers=1))
    expect_equal(torch.get_rng_state(), before)
    expect_equal(found, [batches[i] for i in range(2, 5)])


def test_division_is_the_same_for_each_seed_and_disjoint():
    data = load_data(Settings(train_images=300, batch_size=10), 40)
    again = load_data(Settings(train_images=300, batch_size=10), 40)
    expect_equal(data.validation[0], again.validation[0])
    rows = {image.numpy().tobytes() for image in data.train[0]}
    assert (len(rows), len(data.validation[1]), len(data.test[1])) == (270, 30, 40)
    assert not rows & {image.numpy().tobytes() for image in data.validation[0]}


def make_folder(folder: Path, classes: dict[str, int], size: tuple[int, int] = (20, 30)) -> None:
    from PIL import Image

    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            color = (60 + 60 * number, random.randrange(256), index)
            Image.new("RGB", size, color).save(folder / name / f"{index}.png")


def test_a_folder_of_images_is_a_data_set(tmp_path):
    make_folder(tmp_path / "photos" / "train", {"ants": 40, "bees": 50})
    make_folder(tmp_path / "photos" / "val", {"ants": 6, "bees": 7}, (33, 21))
    code, page = tiny(tmp_path, "--dataset", str(tmp_path / "photos"), "--image-size", "16", "--train-images", "0")
    assert code == 0
    assert "photos has 2 classes" in page
    data = load_data(Settings(dataset=str(tmp_path / "photos"), image_size=16, batch_size=8))
    assert (data.shape, len(data.train[1]) + len(data.validation[1]), len(data.test[1])) == ((3, 16, 16), 90, 13)


def test_a_folder_without_parts_is_divided(tmp_path):
    make_folder(tmp_path, {"ants": 20, "bees": 30})
    data = load_data(Settings(dataset=str(tmp_path), image_size=8, batch_size=8))
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [36, 4, 10]


def test_broken_images_and_empty_folders(tmp_path, capsys):
    make_folder(tmp_path / "a", {"ants": 30, "bees": 30})
    broken = tmp_path / "a" / "bees" / "7.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert "7.png cannot be read as an image" in refused(tmp_path, capsys, "--dataset", str(tmp_path / "a"))
    make_folder(tmp_path / "b", {"ants": 3, "bees": 0})
    assert "bees holds no image" in refused(tmp_path, capsys, "--dataset", str(tmp_path / "b"))
    make_folder(tmp_path / "c", {"ants": 3})
    assert "holds 1 class folders" in refused(tmp_path, capsys, "--dataset", str(tmp_path / "c"))
    make_folder(tmp_path / "d" / "train", {"ants": 30, "bees": 30})
    make_folder(tmp_path / "d" / "val", {"ants": 3, "wasps": 3})
    assert "ants, wasps and training has ants, bees" in refused(tmp_path, capsys, "--dataset", str(tmp_path / "d"))


# The step


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet"])
def test_models_take_images_of_any_size(kind):
    for shape in ((3, 32, 32), (1, 28, 28), (3, 17, 9)):
        model = build_model(kind, shape, 7, 6, 0.1)
        assert model(torch.randn(2, *shape)).shape == (2, 7)


def make_training(device: str = "cpu", **values: Any) -> tuple[train.Training, Any]:
    chosen = Settings(
        **{"train_images": 120, "batch_size": 12, "width": 4, "model": "mlp", "precision": "fp32", **values}
    )
    data = load_data(chosen, 30)
    return train.Training(chosen, data, 3, Team(), torch.device(device), 20), data


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_that_of_the_minimal_loop(accumulate):
    training, data = make_training(accumulate=accumulate, optimizer="adamw", lr=0.01, warmup=0.0, clip=0.5)
    torch.manual_seed(3)
    model = build_model("mlp", data.shape, len(data.classes), 4, 0.0)
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 19)
    for index in range(5):
        [(images, labels)] = Batches(data.train, 12, 3, 0)[index]
        training.take_step(Batches(data.train, 12, 3, 0, pieces=accumulate)[index])
        optimizer.zero_grad()
        F.cross_entropy(model((images - data.mean) / data.deviation), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    for found, oracle in zip(training.bare.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, oracle, rtol=1e-5, atol=2e-6)


def test_schedule_rises_and_falls_to_its_end():
    shares = [train.lr_share(step, 100, 0.1, 0.2) for step in range(100)]
    assert shares[:11] == pytest.approx([(n + 1) / 11 for n in range(11)])
    assert shares[10:] == pytest.approx([0.2 + 0.4 * (1 + math.cos(math.pi * n / 89)) for n in range(90)])
    assert train.lr_share(0, 1, 0.0, 0.0) == 1.0


def test_average_follows_its_formula():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = train.Average(model, 0.8)
    oracle = {name: x.detach().double().clone() for name, x in model.state_dict().items()}
    for step in range(1, 60):
        with torch.no_grad():
            for x in train.floats_of(model).values():
                x.add_(torch.randn_like(x))
        average.follow(model)
        decay = min(0.8, (1 + step) / (10 + step))
        for name, x in train.floats_of(model).items():
            oracle[name] = decay * oracle[name] + (1 - decay) * x.detach().double()
    before = [x.detach().clone() for x in model.state_dict().values()]
    with average.in_place_of(model):
        for name, x in train.floats_of(model).items():
            torch.testing.assert_close(x.detach().double(), oracle[name], rtol=1e-5, atol=1e-5)
    expect_equal(list(model.state_dict().values()), before)


@pytest.mark.parametrize(
    "options",
    [
        ("--optimizer", "sgd", "--model", "resnet"),
        ("--optimizer", "muon", "--ema", "0.9"),
        ("--precision", "fp16", "--model", "mlp"),
        ("--precision", "bf16", "--label-smoothing", "0.1", "--augment", "--dropout", "0.1"),
        ("--deterministic", "--workers", "1", "--clip", "0", "--final-lr", "0.1"),
    ],
    ids=lambda options: "-".join(text.strip("-") for text in options[:2]),
)
def test_other_ways_to_train(options, tmp_path):
    before = torch.are_deterministic_algorithms_enabled()
    try:
        code, page = tiny(tmp_path, *options)
    finally:
        torch.use_deterministic_algorithms(before)
    assert code == 0, page
    assert "from the disk, the next step gives the same bits" in page


def test_evaluation_is_the_mean_over_all_images():
    training, data = make_training(model="cnn")
    loss, accuracy, count = training.evaluate(data.test)
    training.bare.eval()
    with torch.no_grad():
        logits = training.bare((data.test[0] - data.mean) / data.deviation)
    assert loss == pytest.approx(F.cross_entropy(logits, data.test[1]).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == data.test[1]).double().mean().item())
    assert count == 30


def test_early_stopping_stops(tmp_path):
    code, page = tiny(tmp_path, "--patience", "1", "--epochs", "9", "--lr", "0", "--model", "mlp")
    assert code == 0
    assert "epoch 2/9" in page  # with lr 0 the second validation is no better than the first
    assert "epoch 3/9" not in page
    assert "It stopped early" in page


# Ends


class Interrupt(Exception):
    pass


def at_step(step: int, act: Callable[[], object]) -> Callable[..., Any]:
    take_step = train.Training.take_step

    def patched(self, pieces):
        if self.step + 1 == step:
            act()
        return take_step(self, pieces)

    return patched


@pytest.mark.parametrize(
    "options", [(), ("--workers", "1", "--model", "resnet", "--optimizer", "muon", "--ema", "0.9")]
)
def test_a_crash_in_the_middle_leaves_no_trace(options, tmp_path, monkeypatch):
    options = (*options, "--dropout", "0.3", "--augment", "--save-every", "3", "--epochs", "2")
    tiny(tmp_path / "whole", *options)

    def crash():
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "take_step", at_step(15, crash))
        with pytest.raises(Interrupt):
            tiny(tmp_path / "cut", *options)
    torch.manual_seed(99)  # whatever happened in between
    code, page = tiny(tmp_path / "cut", "--resume", *options)
    assert (code, "goes on at step 12" in page) == (0, True)
    whole, cut = (state_of(tmp_path / name) for name in ("whole", "cut"))
    for part in ("model", "average", "position", "recent"):
        expect_equal(cut[part], whole[part])
    expect_equal(cut["optimizers"]["state"], whole["optimizers"]["state"])
    expect_equal(cut["random"][0]["torch"], whole["random"][0]["torch"])
    lines = [
        [(line["step"], line["loss"]) for line in read_metrics(tmp_path / name / "train" / "runs" / "r")]
        for name in ("whole", "cut")
    ]
    assert lines[0] == lines[1]


def test_events_of_a_run_are_in_its_log(tmp_path, capsys):
    code, _ = tiny(tmp_path)
    refused(tmp_path, capsys, "--resume", "--seed", "4")
    lines = (tmp_path / "train" / "runs" / "r" / "train.log").read_text(encoding="utf-8").splitlines()
    assert code == 0
    assert "INFO    process 0 of 1 on cpu" in lines[0]
    assert lines[0].endswith("begins at step 0 of 10")
    assert sum("INFO    saved " in line for line in lines) == len(lines) - 3
    assert "WARNING" in lines[-1]
    assert "leave --seed out" in lines[-1]


def test_a_traceback_is_in_the_log_and_a_full_disk_is_no_matter(tmp_path, monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError), events_to(tmp_path, 3):
        1 / 0  # noqa: B018
    text = (tmp_path / "train-rank3.log").read_text(encoding="utf-8")
    assert "ERROR   ended by an error" in text
    assert "ZeroDivisionError" in text
    with events_to(tmp_path, 0):
        [file] = [handler for handler in EVENTS.handlers if isinstance(handler, EventFile)]
        monkeypatch.setattr(file, "stream", Mock(write=Mock(side_effect=OSError(errno.ENOSPC, "No space left"))))
        EVENTS.info("lost")
        monkeypatch.undo()
    assert capsys.readouterr() == ("", "")
    assert file not in EVENTS.handlers


@pytest.mark.parametrize("is_chosen", [False, True])
def test_a_resumed_run_keeps_its_threads(is_chosen, tmp_path, monkeypatch):
    monkeypatch.setattr(train.devices, "leave_crowded_cores", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        tiny(tmp_path)
        torch.set_num_threads(1)
        if is_chosen:
            monkeypatch.setenv("OMP_NUM_THREADS", "1")
        _, page = tiny(tmp_path, "--resume")
        assert torch.get_num_threads() == (1 if is_chosen else 2)
        said = "Before the stop there were 2 threads and now 1" if is_chosen else "Goes on with 2 threads"
        assert said in " ".join(page.split())
    finally:
        torch.set_num_threads(threads)


def test_loss_that_is_no_number(tmp_path, capsys):
    broken = ("--lr", "1e30", "--weight-decay", "0", "--clip", "0", "--model", "mlp", "--precision", "fp32")
    line = refused(tmp_path, capsys, *broken)
    assert "the loss of step" in line
    assert "is not finite; first broken: the parameter blocks" in line or "the output of blocks" in line
    [kept] = (tmp_path / "train" / "runs" / "r").glob("bad-batch-*.pt")
    batch = torch.load(kept, weights_only=True)
    assert (batch["images"].shape, batch["labels"].shape) == ((20, 3, 32, 32), (20,))
    state = state_of(tmp_path)
    assert all(torch.isfinite(x).all() for x in state["model"].values())


def test_first_broken_tensor_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    assert guards.first_non_finite(model, x) == ""
    assert guards.first_non_finite(model, x.log()) == "the images"
    with torch.no_grad():
        model[0].weight.fill_(3.0)
    assert guards.first_non_finite(model, torch.full((3, 4), 3e38)) == "the output of 0 (Linear)"
    model[2].bias.data[1] = math.inf
    assert guards.first_non_finite(model, x) == "the parameter 2.bias"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."), "asked for 2.00 GiB"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
         "asked for 4 KiB"),
    ],
)  # fmt: skip
def test_out_of_memory_says_what_may_fit(error, asked, tmp_path, capsys, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(train.Training, "take_step", at_step(4, fail))
    line = refused(tmp_path, capsys)
    assert asked in line
    assert "allocated" in line
    assert "--accumulate 2 computes the same batch of 20" in line
    assert "--batch-size 10" in line


def test_what_cannot_be_resumed(tmp_path, capsys, monkeypatch):
    assert "there is no run in" in refused(tmp_path, capsys, "--resume", *without("--name"))
    assert "nowhere is neither" in refused(tmp_path, capsys, "--dataset", "nowhere", "--name", "failed")
    assert "there is no run in" in refused(tmp_path, capsys, "--resume", *without("--name"))
    code, _ = tiny(tmp_path)
    assert code == 0
    assert "holds a training already; --resume --name r goes on" in refused(tmp_path, capsys)
    assert "with model cnn, and this one has mlp" in refused(tmp_path, capsys, "--resume", "--model", "mlp")
    assert "with seed 0; leave --seed out" in refused(tmp_path, capsys, "--resume", "--seed", "4")
    assert "--name 'a/b' is a path" in refused(tmp_path, capsys, "--name", "a/b")
    checkpoints.save(tmp_path / "train" / "runs" / "other" / "checkpoints", 3, {"model": {}})
    assert "is not a checkpoint of this script" in refused(tmp_path, capsys, "--resume", "--name", "other")
    monkeypatch.setattr(train.torch, "__version__", "2.99.0")
    assert "written by torch" in refused(tmp_path, capsys, "--resume")


def without(flag: str) -> tuple[str, ...]:
    """Options that undo one of TINY's."""
    return (flag, "") if flag == "--name" else ()


def test_metrics_are_json_where_a_gradient_is_infinite(tmp_path):
    for attempt in range(2):  # the second log takes over the lines of the first
        log = Log(tmp_path, attempt)
        log.write("train", attempt + 1, {"loss": 0.1 + 0.2, "gradient": math.inf})
        log.close()

    def refuse(constant):
        raise AssertionError(constant)

    texts = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(text, parse_constant=refuse)["step"] for text in texts] == [1, 2]
    assert [(line["loss"], line["gradient"]) for line in read_metrics(tmp_path)] == [(0.1 + 0.2, math.inf)] * 2


def test_metrics_after_the_checkpoint_go_and_half_a_line_too(tmp_path):
    log = Log(tmp_path, 0)
    for step in range(1, 6):
        log.write("train", step, {"loss": 1 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 6, "lo')
    log = Log(tmp_path, 3)
    log.write("train", 4, {"loss": 9.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 9.0),
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["loss"] == 9.0


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    for precision in ("fp32", "bf16", "fp16"):
        code, page = tiny(tmp_path / precision, "--device", "cuda", "--precision", precision, "--model", "resnet")
        assert code == 0, page
