"""debugging_training: the lesson runs and its checks hold; the examination names illnesses that the lesson never shows."""

import inspect
import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import debugging_training
from pytorch_02_training_optimization.src.clinic import examination, not_a_number, shapes, tracing, ward
from pytorch_02_training_optimization.src.clinic.examination import Examination, Finding, Illness, examine
from pytorch_02_training_optimization.src.clinic.not_a_number import CASES, HUNTERS
from pytorch_02_training_optimization.src.clinic.patients import PATIENTS, build_with_detach, score_in_train_mode
from pytorch_02_training_optimization.src.clinic.shapes import Product
from pytorch_02_training_optimization.src.clinic.training import (
    CLASSES,
    LN_C,
    Data,
    Momentum,
    Optimizer,
    Session,
    Training,
    build_network,
    draw_pairs,
    grey_levels,
    read_normalised,
    stack_layers,
    take_step,
)
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SECTIONS = [
    "Before the first step: ln C",
    "One batch, learned by heart",
    "A healthy training in numbers",
    "Eight patients",
    "Eight cures",
    "Two illnesses at once",
    "A shape mismatch, read from its message",
    "A forward pass, traced",
    "Hunting a NaN",
    "What the hunt costs",
]

run = partial(run_quick, debugging_training)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("debugging_training")
    return *run(folder), folder / "debugging_training"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=35)


def test_measurements_and_picture_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, ["learning_curves.png"])
    measured = record["measurements"]
    assert {measurement["name"] for measurement in measured} == {"test accuracy", "step"}
    assert sum(measurement["params"].get("state") == "cured" for measurement in measured) == len(PATIENTS)


def test_every_patient_and_every_message_is_on_the_page(lesson: tuple[dict[str, Any], str, Path]) -> None:
    page = " ".join(lesson[1].split())
    for said in (*(patient.illness for patient in PATIENTS), "mat1 and mat2", "to have 3 channels", "running_mean"):
        assert said in page


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(debugging_training, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu_the_same_eight_are_named(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    expect_whole(record, text, SECTIONS, least_checks=35)


# The parts of a training


@pytest.fixture(scope="module")
def data() -> Data:
    return Data.load(720, 100, torch.device("cpu"))


def test_grey_levels_are_means_of_twelve_bytes() -> None:
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    grey = grey_levels(images)
    assert grey.shape == (3, 256)
    assert grey.dtype == torch.uint8
    for image, row, column in ((0, 0, 0), (1, 15, 15), (2, 3, 11)):
        square = images[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].double()
        assert grey[image, 16 * row + column] == math.floor(square.mean() + 1e-4)


def test_each_image_is_normalised_for_itself() -> None:
    x = read_normalised(torch.randint(256, (5, 256), dtype=torch.uint8))
    assert x.mean(1).abs().max() < 1e-5
    assert (x.std(1) - 1).abs().max() < 1e-5


def test_momentum_is_that_of_torch_optim() -> None:
    models = [nn.Linear(4, 3), nn.Linear(4, 3)]
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = Momentum(models[0].parameters(), 0.1), torch.optim.SGD(models[1].parameters(), 0.1, momentum=0.9)
    for step in range(20):
        x = torch.randn(8, 4)
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            loss = model(x).square().mean() if step else model.weight.sum()  # the bias has no gradient at first
            loss.backward()
            optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*(model.parameters() for model in models), strict=True))


def test_a_batch_has_no_image_twice_and_labels_belong() -> None:
    of_images, of_labels = draw_pairs(60, torch.Generator().manual_seed(0))
    assert len(of_images.unique()) == len(of_images) == 50
    assert torch.equal(of_images, of_labels)


def test_the_same_seed_is_the_same_training(data: Data) -> None:
    losses = [Session(Training(), data, seed).train(5) for seed in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


# The examination


def test_the_examination_cannot_know_its_patients() -> None:
    source = inspect.getsource(examination)
    assert "patients" not in source
    assert not any(f"build_with_{word}" in source for word in ("softmax", "std_one", "sigmoids", "detach"))


def frozen() -> nn.Module:
    network = build_network()
    network[0].weight.requires_grad_(False)
    return network


def all_zero() -> nn.Module:
    network = build_network()
    for weight in network.parameters():
        nn.init.zeros_(weight)
    return network


def dead() -> nn.Module:
    network = build_network()
    nn.init.constant_(network[2].bias, -100.0)  # type: ignore[arg-type]
    return network


def saturated() -> nn.Module:
    network = stack_layers(nn.Tanh)
    nn.init.constant_(network[2].bias, 50.0)  # type: ignore[arg-type]
    return network


def with_log_softmax() -> nn.Module:
    return nn.Sequential(*build_network(), nn.LogSoftmax(dim=1))


def step_in_eval_mode(model: nn.Module, optimizer: Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    model.eval()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def step_with_softmax(model: nn.Module, optimizer: Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The second softmax where no score shows it; the examination may say that something is wrong, and not what."""
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x).softmax(1), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def step_that_zeroes_afterwards(
    model: nn.Module, optimizer: Optimizer, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """Another right order."""
    model.train()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def set_up_with(optimizer: Callable[..., Any], build: Callable[[], nn.Module], lr: float, device: torch.device) -> Any:
    model = build().to(device)
    return model, optimizer(model.parameters(), lr=lr)


OTHERS: dict[str, tuple[Training, Illness | None]] = {
    "healthy": (Training(), None),
    "log-softmax, which changes nothing": (Training(build=with_log_softmax), None),
    "zeroed afterwards": (Training(step=step_that_zeroes_afterwards), None),
    "torch.optim.SGD": (Training(set_up=partial(set_up_with, partial(torch.optim.SGD, momentum=0.9))), None),
    "torch.optim.Adam": (Training(set_up=partial(set_up_with, torch.optim.Adam), lr=0.003), None),
    "detached": (Training(build=build_with_detach), Illness.CUT),
    "tested in train mode": (Training(score=score_in_train_mode), Illness.TESTED_IN_TRAIN),
    "trained in eval mode": (Training(step=step_in_eval_mode), Illness.TRAINED_IN_EVAL),
    "frozen": (Training(build=frozen), Illness.FROZEN),
    "all zero": (Training(build=all_zero), Illness.DEAD),
    "weights of 0 and tanh": (Training(build=lambda: stack_layers(nn.Tanh).apply(zero_linear)), Illness.NO_GRADIENT),
    "dead": (Training(build=dead), Illness.DEAD),
    "saturated": (Training(build=saturated), Illness.DEAD),
    "rate too low": (Training(lr=1e-3), Illness.LR_LOW),
    "rate far too low": (Training(lr=1e-6), Illness.LR_LOW),
    "rate ten times too high": (Training(lr=0.3), Illness.LR_HIGH),
    "softmax inside of the loss": (Training(step=step_with_softmax), Illness.ONE_BATCH),
}  # fmt: skip


def zero_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.weight)


@pytest.mark.parametrize("name", OTHERS)
def test_trainings_that_the_lesson_does_not_have(name: str, data: Data) -> None:
    training, illness = OTHERS[name]
    found = examine(training, data, seed=5, steps=60)
    assert found.illness == illness, found.findings
    assert len(found.findings) == (10 if illness is None else 9)


@pytest.mark.parametrize("patient", PATIENTS, ids=lambda patient: patient.illness.name)
def test_only_the_part_that_is_blamed_is_exchanged(patient: Any, data: Data) -> None:
    found = examine(patient.training, data, seed=6, steps=50)
    assert found.illness is patient.illness
    cured = ward.cure(patient.training, found)
    changed = [field.name for field in fields(Training)
               if getattr(cured, field.name) != getattr(patient.training, field.name)]  # fmt: skip
    assert changed == [ward.PART[patient.illness]]
    if patient.illness is not Illness.LR_HIGH:
        assert cured == Training()
    else:
        assert cured.lr == pytest.approx(0.03)


@pytest.mark.parametrize("part", sorted(set(ward.PART.values()) - {"lr"}))
def test_a_wrong_diagnosis_cures_nothing(part: str) -> None:
    wrong = next(illness for illness, place in ward.PART.items() if place == part)
    for patient in PATIENTS:
        if ward.PART[patient.illness] != part:
            assert ward.cure(patient.training, Examination([Finding("", "", wrong)])) == patient.training


def test_who_is_healthy_or_cannot_be_named_stays_as_it_is() -> None:
    training = Training(lr=0.5)
    for illness in (None, Illness.ONE_BATCH, Illness.LR_HIGH):  # a rate of which no better one was found
        assert ward.cure(training, Examination([Finding("", "", illness)])) == training


def test_the_first_finding_counts() -> None:
    found = Examination([Finding("a", "", None), Finding("b", "", Illness.CUT), Finding("c", "", Illness.LABELS)])
    assert found.illness is Illness.CUT
    assert ward.chart(found).split() == ["·", "x", "x"]
    assert len(ward.chart(found)) == len(ward.CHART)


def test_stale_gradients_are_told_by_their_share(data: Data) -> None:
    def step(model: nn.Module, optimizer: Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Keeps half of the gradients of the step before."""
        model.train()
        for weight in model.parameters():
            if weight.grad is not None:
                weight.grad *= 0.5
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    seen = examination.observe(Session(Training(step=step), data, 7))
    assert examination.check_freshness(seen).illness is Illness.OLD_GRADIENTS
    for name, gradient in seen.gradients.items():
        assert torch.allclose(seen.used[name] - seen.own[name], 0.5 * gradient, atol=1e-5)


def test_observing_changes_nothing_and_leaves_no_hook(data: Data) -> None:
    session = Session(Training(), data, 8)
    examination.observe(session)
    twin = Session(Training(), data, 8)
    twin.train(2)
    assert all(torch.equal(a, b) for a, b in zip(session.model.parameters(), twin.model.parameters(), strict=True))
    assert not session.model._forward_pre_hooks
    assert not any(module._forward_hooks for module in session.model.modules())
    assert not any(weight._post_accumulate_grad_hooks for weight in session.model.parameters())


@pytest.mark.parametrize(("losses", "text"), [([2.0, 3.0], "2.50"), ([math.nan, 1.0], "NaN"), ([2e6], "2e+06")])
def test_loss_text(losses: list[float], text: str) -> None:
    assert ward.loss_text(torch.tensor(losses)) == text


# The first loss, and one batch


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.4, 50.0, 5000.0])
def test_the_loss_of_random_scores(spread: float) -> None:
    scores = spread * torch.randn(200_000, CLASSES, generator=torch.Generator().manual_seed(0))
    measured = F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long)).item()
    assert debugging_training.loss_of_scores(spread) == pytest.approx(measured, rel=0.01)


def test_no_probabilities_beat_the_floor() -> None:
    best = torch.zeros(1, CLASSES)
    best[0, 0] = 1
    assert F.cross_entropy(best, torch.tensor([0])).item() == pytest.approx(ward.SOFTMAX_FLOOR, abs=1e-6)
    p = torch.randn(1000, CLASSES).mul(5).softmax(1)
    assert F.cross_entropy(p, torch.zeros(1000, dtype=torch.long), reduction="none").min() >= ward.SOFTMAX_FLOOR - 1e-6


def test_a_zero_head_gives_ln_c() -> None:
    losses, spread = debugging_training.first_losses(
        debugging_training.build_with_zero_head, torch.randn(20, 256), torch.randint(CLASSES, (20,))
    )
    assert spread == 0
    assert (losses - LN_C).abs().max() < 1e-6


# Shapes


@pytest.mark.parametrize(
    ("message", "product"),
    [
        ("mat1 and mat2 shapes cannot be multiplied (8x3072 and 512x10)", Product(8, 3072, 512, 10)),
        ("RuntimeError: addmm: mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)", Product(1, 2, 3, 4)),
        ("running_mean should contain 16 elements not 8", None),
        ("", None),
    ],
)
def test_the_four_numbers_of_a_product(message: str, product: Product | None) -> None:
    assert shapes.read_product(message) == product


@pytest.mark.parametrize("seed", range(3))
def test_any_chain_of_linears_is_repaired(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 9, (4, 2), generator=generator).tolist()
    model = nn.Sequential(*(nn.Linear(came, out) for came, out in sizes))
    x = torch.randn(5, int(torch.randint(2, 9, (1,), generator=generator)))
    wrong = [str(i) for i, (came, _) in enumerate(sizes) if came != (sizes[i - 1][1] if i else x.shape[1])]
    assert [name for name, _ in shapes.repair(model, x)] == wrong
    assert model(x).shape == (5, sizes[-1][1])


def test_what_no_linear_can_repair_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^0: .*channels"):
        shapes.repair(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), torch.randn(2, 5, 4, 4))


def test_the_module_entered_last_is_the_innermost() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Sequential(nn.Linear(9, 1)))
    name, message = shapes.last_entered(model, torch.randn(4, 2))
    assert name == "1.0"
    assert shapes.read_product(message) == Product(4, 3, 9, 1)
    assert shapes.last_entered(model[0], torch.randn(4, 2)) == ("", "")
    assert not any(module._forward_pre_hooks for module in model.modules())


# Traces


def test_a_trace_is_what_the_modules_did() -> None:
    model, x = tracing.reader().eval(), torch.randn(3, 1, 16, 16)
    calls, message = tracing.trace(model, x)
    assert message == ""
    h = x
    for call, (name, module) in zip(calls, model.named_children(), strict=True):
        assert (call.name, call.kind, call.arrived) == (name, type(module).__name__, tuple(h.shape))
        with torch.no_grad():
            h = module(h)
        assert call.output is not None
        assert torch.equal(call.output, h)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_traced_is_safe_from_writes_in_place() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.randn(50, 3)
    (linear, relu), _ = tracing.trace(model, x)
    assert linear.output is not None
    assert relu.output is not None
    assert (linear.output < 0).any()
    assert torch.equal(linear.output.clamp_min(0), relu.output)


def test_the_call_that_raises_is_the_last_and_has_no_output() -> None:
    calls, message = tracing.trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 6), nn.ReLU()), torch.randn(2, 3))
    assert "(2x4 and 5x6)" in message
    assert [call.output is None for call in calls] == [False, True]


def test_the_first_deviation_is_found_wherever_it_is() -> None:
    x = torch.randn(4, 6)
    for place in (0, 2, 4):
        model, other = (nn.Sequential(*(nn.Linear(6, 6) for _ in range(5))) for _ in range(2))
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other[place].weight[0, 0] += 1.0  # type: ignore[operator, index]
        found = tracing.first_deviation(tracing.trace(other, x)[0], tracing.trace(model, x)[0], 1e-6)
        assert found is not None
        assert found[0].name == str(place)
    assert tracing.first_deviation(tracing.trace(model, x)[0], tracing.trace(model, x)[0], 0.0) is None


def test_another_shape_or_dtype_deviates_without_end() -> None:
    x = torch.randn(3)
    assert tracing.relative_deviation(x, x[:2]) == tracing.relative_deviation(x, x.double()) == math.inf
    assert tracing.relative_deviation(2 * x, x) == pytest.approx(1.0)


# NaN

BORN = {name: case.born for name, case in CASES.items()}


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("name", CASES)
def test_each_birth_is_seen_by_its_hunters(name: str, rows: int) -> None:
    case, device = CASES[name], torch.device("cpu")
    model, loss = case.ill()
    x = not_a_number.make_batch(rows, device)
    assert not any(hunter(model, loss, x) for hunter in HUNTERS.values())
    case.spoil(x)
    found = {title: hunter(model, loss, x) for title, hunter in HUNTERS.items()}
    assert bool(found["the loss"]) == (case.born == "forward")
    assert found["operations"] == case.operation
    assert found[".grad"]
    assert found["anomaly mode"].endswith("Backward0")
    assert bool(found["module hooks"]) == (name == "an empty sentence")
    sound, sound_loss = case.cured()
    assert not any(hunter(sound, sound_loss, x) for hunter in HUNTERS.values())


def test_hooks_blame_the_module_around_the_birth_and_not_what_is_behind_it() -> None:
    class Divides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.behind = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.inner(x)
            y: torch.Tensor = self.behind((h - h) / (h - h))
            return y

    model = nn.Sequential(nn.Linear(2, 2), Divides(), nn.ReLU())
    assert not_a_number.hunt_with_hooks(model, lambda y: y.sum(), torch.randn(4, 2)) == "1: Divides"
    assert not any(module._forward_hooks for module in model.modules())


def test_an_infinity_is_no_nan() -> None:
    watcher = not_a_number.FirstNaN()
    x = torch.tensor([1.0, 0.0])
    with watcher:
        y = (1 / x).exp()
    assert watcher.operation == ""
    with watcher:
        _ = y - y
        _ = y * 0
    assert watcher.operation == "sub"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_anywhere_is_noticed(bad: float) -> None:
    model = nn.Linear(5, 3)
    loss = not_a_number.backward_of(model, lambda y: y.square().mean(), torch.randn(4, 5))
    assert not_a_number.all_finite(loss, model)
    assert not not_a_number.all_finite(torch.tensor(bad), model)
    assert model.weight.grad is not None
    model.weight.grad[2, 4] = bad
    assert not not_a_number.all_finite(loss, model)


def test_anomaly_mode_is_off_again() -> None:
    model, loss = CASES["silence"].ill()
    x = not_a_number.make_batch(4, torch.device("cpu"))
    x[0] = 0
    operation, line = not_a_number.anomaly(model, loss, x)
    assert operation == "AbsBackward0"
    assert "x.abs()" in line
    assert not torch.is_anomaly_enabled()


def test_replace_keeps_the_default_parts() -> None:
    assert replace(Training(), lr=1.0).step is take_step
