"""optimizer_comparison: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import copy
import io
import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import optimizer_comparison
from pytorch_02_training_optimization.src.letters.rows import load_letters
from pytorch_02_training_optimization.src.optimizers import (
    adam_terms,
    costs,
    decay,
    letters,
    muon,
    orthogonal,
    rules,
    surfaces,
)
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SECTIONS = [
    "An optimizer is a rule for one step",
    "Step for step with torch.optim",
    "Adam's bias correction: the first thousand steps",
    "Adam's memory and its eps",
    "A loss a thousand times as large",
    "A ravine",
    "A saddle",
    "Weight decay and L2",
    "Muon: a step made orthogonal",
    "What Muon costs, and in which number format",
    "Muon for hidden matrices only",
    "What each optimizer remembers",
    "One step in hundreds of operations, or in one",
    "A fair comparison: letters",
    "An unfair comparison: one learning rate for all",
]
CPU = torch.device("cpu")

run = partial(run_quick, optimizer_comparison)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("optimizer_comparison")
    return *run(folder), folder / "optimizer_comparison"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=50)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = [measurement["name"] for measurement in record["measurements"]]
    assert set(names) == {"orthogonalize", "operations", "test accuracy"}
    assert all(measurement["value"] > 0 for measurement in record["measurements"])
    pictures = ("bias_correction", "ravine", "saddle", "newton_schulz", "learning_rates")
    expect_pictures(record, folder, [f"{name}.png" for name in pictures])


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(optimizer_comparison, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu_foreach_is_the_default(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    assert "PyTorch takes foreach=True here" in " ".join(text.split())
    counts = {m["params"]["way"]: m["value"] for m in record["measurements"] if m["name"] == "operations"}
    assert counts["as it comes"] == counts["foreach=True"] < counts["foreach=False"]


# The rules

Parameters = list[torch.Tensor]
SHAPES = ((5, 3), (7,), (1,), (2, 3, 4), ())


def leaves(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def walk_both(own: Any, library: Any, mine: Parameters, theirs: Parameters, steps: int, missing: bool) -> None:
    """The same random gradients for both; with `missing`, some parameters have none at some steps."""
    generator = torch.Generator().manual_seed(7)
    for step in range(steps):
        for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=generator, dtype=a.dtype)
            absent = missing and (step + number) % 3 == 0
            a.grad, b.grad = (None, None) if absent else (gradient, gradient.clone())
        own.step()
        library.step()


@pytest.mark.parametrize("missing", [False, True], ids=["all gradients", "some missing"])
@pytest.mark.parametrize(
    ("own", "library"),
    [
        (partial(rules.SGD, lr=0.1), partial(torch.optim.SGD, lr=0.1)),
        (partial(rules.SGD, lr=0.1, weight_decay=0.3), partial(torch.optim.SGD, lr=0.1, weight_decay=0.3)),
        (
            partial(rules.Momentum, lr=0.1, momentum=0.7, weight_decay=0.1),
            partial(torch.optim.SGD, lr=0.1, momentum=0.7, weight_decay=0.1),
        ),
        (
            partial(rules.Nesterov, lr=0.1, momentum=0.7, weight_decay=0.1),
            partial(torch.optim.SGD, lr=0.1, momentum=0.7, weight_decay=0.1, nesterov=True),
        ),
        (
            partial(rules.RMSprop, lr=0.1, alpha=0.9, eps=1e-3, weight_decay=0.1),
            partial(torch.optim.RMSprop, lr=0.1, alpha=0.9, eps=1e-3, weight_decay=0.1),
        ),
        (
            partial(rules.Adam, lr=0.1, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.1),
            partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.1),
        ),
        (
            partial(rules.AdamW, lr=0.1, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.3),
            partial(torch.optim.AdamW, lr=0.1, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.3),
        ),
        (partial(rules.AdamW, lr=0.1), partial(torch.optim.AdamW, lr=0.1)),
    ],
    ids=["SGD", "SGD decay", "momentum", "Nesterov", "RMSprop", "Adam", "AdamW", "AdamW defaults"],
)
def test_a_rule_is_the_librarys(own: Callable[..., Any], library: Callable[..., Any], missing: bool) -> None:
    mine, theirs = leaves(*SHAPES), leaves(*SHAPES)
    walk_both(own(mine), library(theirs), mine, theirs, 25, missing)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 8)])
def test_the_rule_muon_is_the_class_muon(shape: tuple[int, int]) -> None:
    mine, theirs = leaves(shape), leaves(shape)
    own = rules.Muon(mine, 0.02, ns_dtype=torch.float64)
    walk_both(own, muon.Muon(theirs, 0.02, ns_dtype=torch.float64), mine, theirs, 10, missing=False)
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", list(letters.RULES))
def test_a_rate_for_each_slice_is_a_run_for_each_rate(name: str) -> None:
    rates, shapes = (0.001, 0.02, 0.5), ((4, 6), (1, 4), (4, 4), (1, 4), (3, 4), (1, 3))
    starts = leaves(*shapes)
    stacked = [w.detach().repeat(len(rates), 1, 1) for w in starts]
    together = letters.RULES[name](stacked, torch.tensor(rates, dtype=torch.float64).view(-1, 1, 1))
    alone = [[w.detach().clone()[None] for w in starts] for _ in rates]
    single = [letters.RULES[name](parameters, rate) for parameters, rate in zip(alone, rates, strict=True)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        for number, w in enumerate(stacked):
            w.grad = torch.randn(w.shape, generator=generator, dtype=w.dtype)
            for run_number, parameters in enumerate(alone):
                parameters[number].grad = w.grad[run_number : run_number + 1]
        for rule in [*together, *(rule for one in single for rule in one)]:
            rule.step()
    for number, w in enumerate(stacked):
        expected = torch.cat([parameters[number] for parameters in alone])
        torch.testing.assert_close(w, expected, rtol=1e-10, atol=1e-10)


# Muon


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
def test_muon_equals_the_librarys_on_matrices(nesterov: bool, adjust_lr_fn: str | None) -> None:
    shapes = (8, 20), (20, 8), (16, 16), (8, 20), (1, 7)
    mine, theirs = leaves(*shapes, dtype=torch.float32), leaves(*shapes, dtype=torch.float32)
    options = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.2, "adjust_lr_fn": adjust_lr_fn}
    own = muon.Muon(mine, ns_dtype=torch.bfloat16, **options)
    walk_both(own, torch.optim.Muon(theirs, **options), mine, theirs, 30, missing=True)
    for a, b in zip(mine, theirs, strict=True):
        # The same bits here; other processors may round a batch of bfloat16 products otherwise than a single one.
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01)


def test_muon_has_the_librarys_defaults() -> None:
    own, library = muon.Muon(leaves((2, 2))).defaults, torch.optim.Muon(leaves((2, 2))).defaults
    assert {name: own[name] for name in own if name in library} == {
        name: library[name] for name in own if name in library
    }
    assert set(own) - set(library) == {"ns_dtype"}
    assert library["ns_coefficients"] == muon.COEFFICIENTS
    assert library["eps"] == muon.EPS


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_a_filter_moves_as_its_matrix(format_: torch.memory_format) -> None:
    (weight,) = leaves((6, 4, 3, 3), dtype=torch.float32)
    filters = weight.detach().clone(memory_format=format_).requires_grad_()
    matrix = weight.detach().flatten(1).clone().requires_grad_()
    optimizers = [muon.Muon([w], lr=0.1) for w in (filters, matrix)]
    for step in range(3):
        gradient = leaves((6, 4, 3, 3), seed=step + 1, dtype=torch.float32)[0].detach()
        filters.grad, matrix.grad = gradient.clone(memory_format=format_), gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(filters.flatten(1), matrix, rtol=1e-5, atol=1e-5)
    assert filters.is_contiguous(memory_format=format_)


def train_with_muon(model: nn.Module, optimizer: muon.Muon, steps: range) -> None:
    for step in steps:
        x = leaves((8, 3, 6, 6), seed=step, dtype=torch.float32)[0].detach()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def make_model() -> tuple[nn.Module, muon.Muon]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 32))
    return model, muon.Muon([w for w in model.parameters() if w.ndim >= 2], lr=0.05)


def test_a_saved_muon_goes_on_bit_for_bit() -> None:
    model, optimizer = make_model()
    train_with_muon(model, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train_with_muon(model, optimizer, range(5, 10))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, fresh = make_model()
    resumed.load_state_dict(saved["model"])
    without_state = copy.deepcopy(resumed)
    fresh.load_state_dict(saved["optimizer"])
    train_with_muon(resumed, fresh, range(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    forgetful = muon.Muon([w for w in without_state.parameters() if w.ndim >= 2], lr=0.05)
    train_with_muon(without_state, forgetful, range(5, 10))
    assert not torch.equal(model[0].weight, without_state[0].weight)


def test_muon_in_groups_with_a_closure_and_a_schedule() -> None:
    first, second = leaves((3, 4), (4, 3))
    optimizer = muon.Muon([{"params": [first], "lr": 1.0}, {"params": [second], "weight_decay": 0.0}], lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    before = second.detach().clone()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (first @ second).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    schedule.step()
    assert loss.requires_grad
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05])
    # A gradient of rank one: one singular value of about 0.7 to 1.2, times lr and sqrt(rows / columns).
    assert 0.5 * math.sqrt(4 / 3) * 0.65 < (second - before).norm() < 0.5 * math.sqrt(4 / 3) * 1.25


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(()), torch.zeros(2, 2, dtype=torch.complex64)])
def test_muon_refuses_what_is_no_matrix(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="AdamW"):
        muon.Muon([wrong.requires_grad_()])
    optimizer = muon.Muon(leaves((2, 2)))
    with pytest.raises(ValueError, match="AdamW"):
        optimizer.add_param_group({"params": [wrong]})


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}, {"ns_steps": -1}, {"adjust_lr_fn": "none"}]
)
def test_muon_refuses_what_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        muon.Muon(leaves((2, 2)), **options)


def test_the_dtype_of_the_products() -> None:
    assert muon.default_ns_dtype(torch.device("cuda")) == torch.bfloat16
    assert {muon.default_ns_dtype(torch.device(kind)) for kind in ("cpu", "mps")} == {torch.float32}


@pytest.mark.gpu
def test_muon_on_a_gpu_multiplies_in_bfloat16_and_agrees_with_the_cpu() -> None:
    (weight,) = leaves((32, 48), dtype=torch.float32)
    ends = []
    for device in ("cpu", "cuda"):
        w = torch.zeros(32, 48, device=device, requires_grad=True)
        w.grad = weight.detach().to(device)
        muon.Muon([w], lr=1.0).step()
        ends.append(w.detach().cpu())
    assert 1e-4 < (ends[0] - ends[1]).norm() / ends[0].norm() < 0.05


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 4, 9), (2, 9, 4), (1, 1, 6), (1, 6, 1)])
def test_newton_schulz_changes_singular_values_alone(shape: tuple[int, int, int]) -> None:
    (matrices,) = leaves(shape, seed=5)
    found = muon.orthogonalize(matrices.detach())
    for matrix, result in zip(matrices.detach(), found, strict=True):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        expected = u @ torch.diag(orthogonal.polynomial(s / s.norm(), 5)) @ vh
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_newton_schulz_of_nothing_is_nothing() -> None:
    assert not muon.orthogonalize(torch.zeros(2, 3, 4)).any()


def test_the_exact_orthogonal_matrix() -> None:
    matrix = leaves((4, 7))[0].detach()
    q = orthogonal.orthogonal_exactly(matrix)
    torch.testing.assert_close(q @ q.T, torch.eye(4, dtype=torch.float64))
    assert orthogonal.cosine(q, matrix) > 0
    assert orthogonal.cosine(matrix, -2 * matrix) == pytest.approx(-1)


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8), (1, 5)])
def test_products_are_counted_as_predicted(shape: tuple[int, int]) -> None:
    assert orthogonal.count_products(shape) == orthogonal.products_of(*shape)


# Adam's terms


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_steps_without_correction_follow_the_formula(betas: tuple[float, float]) -> None:
    found = adam_terms.step_sizes(
        lambda w: adam_terms.AdamWithoutCorrection(w, 0.5, betas, eps=0.0), torch.full((20,), 3.0)
    )
    share = adam_terms.uncorrected_share(torch.arange(1, 21, dtype=torch.float64), betas)
    torch.testing.assert_close(found, 0.5 * share, rtol=1e-9, atol=1e-12)


def test_step_sizes_are_the_librarys() -> None:
    gradients = leaves((30,))[0].detach()
    found = adam_terms.step_sizes(lambda w: rules.Adam(w, 0.1), gradients)
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer, places = torch.optim.Adam([w], lr=0.1), [0.0]
    for gradient in gradients:
        w.grad = gradient.view(1).clone()
        optimizer.step()
        places.append(w.item())
    expected = [a - b for a, b in itertools.pairwise(places)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_settled_adam_makes_steps_of_lr() -> None:
    sizes = adam_terms.step_sizes(lambda w: adam_terms.settled_adam(w, (0.9, 0.95)), torch.ones(5))
    assert sizes.tolist() == pytest.approx([adam_terms.LR] * 5, rel=1e-6)


# Surfaces


def by_autograd(loss: Callable[[torch.Tensor], torch.Tensor], w: torch.Tensor) -> torch.Tensor:
    w = w.clone().requires_grad_()
    return torch.autograd.grad(loss(w), w)[0]


@pytest.mark.parametrize("seed", range(3))
def test_gradients_written_by_hand(seed: int) -> None:
    w = leaves((2,), seed=seed)[0].detach()
    saddle = by_autograd(lambda w: w[0] ** 2 / 2 - w[1] ** 2 / 2 + w[1] ** 4 / 4, w)
    torch.testing.assert_close(surfaces.saddle_gradient(w), saddle)
    curved = by_autograd(lambda w: (w[0] ** 4 + 30 * w[1] ** 2) / 2, w)
    torch.testing.assert_close(adam_terms.curved_gradient(w), curved)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90])
def test_a_turned_ravine_is_the_same_ravine(degrees: float) -> None:
    a, start = surfaces.ravine(50, degrees), surfaces.start_in(degrees)
    assert torch.linalg.eigvalsh(a).tolist() == pytest.approx([1, 50])
    straight, origin = surfaces.ravine(50, 0), surfaces.start_in(0)
    assert (start @ a @ start).item() == pytest.approx((origin @ straight @ origin).item())
    assert surfaces.steps_down(surfaces.best_momentum(50), 50, degrees) == pytest.approx(
        surfaces.steps_down(surfaces.best_momentum(50), 50, 0), abs=1
    )


@pytest.mark.parametrize("condition", [2, 17, 400])
def test_gradient_descent_in_a_ravine_as_predicted(condition: float) -> None:
    found = surfaces.steps_down(surfaces.best_gradient_descent(condition), condition, 0)
    assert found == pytest.approx(surfaces.descent_theory(condition), abs=1)


def test_walking_and_arriving() -> None:
    start = torch.tensor([4.0, -2.0], dtype=torch.float64)
    half = surfaces.walk(lambda w: rules.SGD(w, 0.5), lambda w: 1 * w, start, 3)
    assert half.tolist() == [[4, -2], [2, -1], [1, -0.5], [0.5, -0.25]]
    make = partial(rules.SGD, lr=0.5)
    assert surfaces.steps_until(make, lambda w: 1 * w, start, lambda w: bool(w[0] <= 1), 10) == 2
    assert surfaces.steps_until(make, lambda w: 1 * w, start, lambda w: bool(w[0] <= 1), 1) is None
    assert start.tolist() == [4, -2]


# Decay


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_decoupled_sgd_is_l2(noise: float) -> None:
    ends = [decay.weights_after(decay.RULES[name], (noise,), 10, 30, 4) for name in ("SGD + L2", "SGD, decoupled")]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    if not noise:
        assert ends[0].flatten().tolist() == pytest.approx([(1 - decay.LR * decay.DECAY) ** 30] * 10)


def test_each_size_of_noise_is_a_row_of_its_own() -> None:
    found = decay.weights_after(decay.RULES["AdamW"], (0.0, 1.0), 3, 5, 0)
    assert found.shape == (2, 3)
    assert found[0].tolist() == pytest.approx([(1 - decay.LR * decay.DECAY) ** 5] * 3)
    assert len(set(found[1].tolist())) == 3


# Letters


def test_letters_are_centred_and_scaled() -> None:
    found = load_letters(20)
    assert found.x.shape == (20, letters.PIXELS)
    assert found.x.mean(dim=1).abs().max() < 1e-5
    assert (found.x.std(dim=1) - 1).abs().max() < 1e-4
    assert found.y.min() >= 0
    assert found.y.max() < letters.CLASSES


def test_every_rate_starts_from_the_same_weights() -> None:
    parameters = letters.start_weights(3, seeds=2, copies=3, device=CPU)
    weight = parameters[0]
    assert weight.shape == (6, letters.HIDDEN, letters.PIXELS)
    assert torch.equal(weight[0:2], weight[2:4])
    assert torch.equal(weight[0:2], weight[4:6])
    assert not torch.equal(weight[0], weight[1])


def test_scores_are_those_of_linear_layers() -> None:
    parameters = letters.start_weights(0, seeds=3, copies=1, device=CPU)
    x = torch.randn(3, 5, letters.PIXELS)
    found = letters.scores(parameters, x)
    for number in range(3):
        h = x[number]
        for layer in range(0, 6, 2):
            h = F.linear(torch.relu(h) if layer else h, parameters[layer][number], parameters[layer + 1][number, 0])
        torch.testing.assert_close(found[number], h, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def few_letters() -> letters.Letters:
    return load_letters(96)


def test_the_stack_trains_as_torch_optim_does(few_letters: letters.Letters) -> None:
    batches = letters.draw_batches(0, 8, 2, 96)
    assert letters.alone_against_stack(few_letters, batches, 0, CPU) < 1e-4


def test_a_run_that_diverges_harms_no_other(few_letters: letters.Letters) -> None:
    batches = letters.draw_batches(0, 12, 1, 96)
    ends = []
    for rates in ((0.01, 0.02), (0.01, 1e30)):
        parameters = letters.start_weights(0, 1, 2, CPU)
        letters.train_side_by_side(letters.RULES["momentum"], rates, parameters, few_letters, batches)
        ends.append(parameters)
    assert torch.equal(ends[0][0][0], ends[1][0][0])
    assert not ends[1][0][1].isfinite().all()
    assert letters.accuracies(ends[1], few_letters)[1] < 0.3


def test_reading_a_sweep() -> None:
    validation = torch.tensor([[0.1, 0.1], [0.5, 0.6], [0.6, 0.4], [0.2, 0.1]])
    sweep = letters.Sweep(validation, validation)
    assert sweep.best == 1
    assert letters.within_points(sweep, 0.04) == 1
    assert letters.within_points(sweep, 0.06) == 2


# Costs


@pytest.mark.parametrize("name", list(costs.STATES))
def test_bytes_of_state_for_other_shapes(name: str) -> None:
    make, predict, _, per_large_weight = costs.STATES[name]
    parameters = leaves((40, 30), (30,), (20, 40), (20,), dtype=torch.float32)
    optimizers = make(parameters)
    assert costs.state_bytes(optimizers) == 0
    costs.give_gradients(parameters)
    for optimizer in optimizers:
        optimizer.step()
    assert costs.state_bytes(optimizers) == predict(parameters)
    square = leaves((64, 64), (4, 4), (4,), dtype=torch.float32)
    if name != "Adafactor":
        assert predict(square) == pytest.approx(64 * 64 * per_large_weight, abs=300)


def test_operations_and_numbers_are_counted() -> None:
    x, y, count = torch.ones(6), torch.ones(6), torch.zeros(())
    with costs.Operations() as operations:
        x.add_(y)  # reads x and y, writes x
        z = x + y  # reads two, writes one
        z.sqrt()  # reads one, writes one
        count.add_(1)  # a single number
    assert operations.names.total() == 3
    assert operations.numbers_moved == 6 * (3 + 3 + 2)
