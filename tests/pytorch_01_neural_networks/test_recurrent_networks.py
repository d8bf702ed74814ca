"""recurrent_networks: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import csv
import itertools
import math
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_01_neural_networks.src import recurrent_networks
from pytorch_01_neural_networks.src.recurrent import (
    cells,
    comparing,
    forecasting,
    leaks,
    networks,
    packing,
    passengers,
    reach,
    recall,
    rivals,
    truncation,
)
from pytorch_01_neural_networks.src.recurrent.comparing import KINDS, TOLERANCES
from shared.agreement import agreement, deviation
from shared.snippets import complaint
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

SECTIONS = [
    "One cell, used again at every step",
    "Three cells from their equations",
    "How many parameters",
    "Whole networks, equal to the library's",
    "What comes out, and at which end",
    "Packed sequences",
    "Mistakes with padding",
    "What padding costs, counted",
    "How far back a gradient reaches",
    "Remembering a symbol over a gap",
    "Truncated backpropagation through time",
    "Clipping an exploding gradient",
    "A real series, looked at first",
    "The forecasts to beat",
    "The forecast of a recurrent network",
    "Three leaks",
]
PICTURES = ["gradient_reach.png", "recall.png", "forecast.png"]
CPU = torch.device("cpu")

run = partial(run_quick, recurrent_networks)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("recurrent_networks")
    return *run(folder), folder / "recurrent_networks"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=75)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    assert {measurement["name"] for measurement in record["measurements"]} == {
        "recurrent step", "GRU forward", "gradient 50 steps back", "recall", "cosine to the full gradient", "MAE",
        "test months inside the band of 90 %", "error promised", "error in the future",
    }  # fmt: skip
    expect_pictures(record, folder, PICTURES)


def test_the_text_tells_what_pytorch_answers(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    for said in ("sorted in decreasing order", "backward through the graph a second time", "modified by an inplace"):
        assert said in " ".join(text.split())


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(recurrent_networks, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_the_lesson_holds_on_a_gpu(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert all(check["holds"] for check in record["checks"])


# Cells and networks


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_librarys(kind: str, dtype: torch.dtype) -> None:
    assert recurrent_networks.cell_agreement(kind, CPU, dtype).within(TOLERANCES[dtype])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_random_networks_equal_the_librarys(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    width, hidden, layers, batch, steps = (draw.randint(1, 4) for _ in range(5))
    both_ways, batch_first = draw.random() < 0.5, draw.random() < 0.5
    own, library = comparing.own_and_library(
        kind, width, hidden, layers, bidirectional=both_ways, batch_first=batch_first, device=CPU, dtype=torch.float64
    )
    x = torch.randn((batch, steps, width) if batch_first else (steps, batch, width), dtype=torch.float64)
    shape = (layers * (1 + both_ways), batch, hidden)
    state = [torch.randn(shape, dtype=torch.float64) for _ in range(2 if kind == "LSTM" else 1)]
    assert agreement(comparing.StatesApart(own), comparing.StatesApart(library), x, *state).within(1e-12)
    assert agreement(own, library, x).within(1e-12)  # no initial state: zeros
    assert agreement(own, library, x.mT.contiguous().mT).within(1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_network(kind: str) -> None:
    own, library, more = KINDS[kind]
    made = []
    for make in (own, library):
        torch.manual_seed(3)
        made.append(make(3, 4, 2, bidirectional=True, **more).state_dict())
    assert list(made[0]) == list(made[1])
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_a_state_dict_of_another_shape_is_refused() -> None:
    assert "size mismatch" in complaint(lambda: cells.LSTM(3, 4).load_state_dict(nn.LSTM(3, 5).state_dict()))


def test_reordering_gates_is_undone_by_the_opposite() -> None:
    for order in map("".join, itertools.permutations("ifgo")):
        weights = [torch.randn(8, 3), torch.randn(8)]
        there = recurrent_networks.reorder_gates(weights, "ifgo", order)
        assert there[0][:2].equal(weights[0].chunk(4)["ifgo".index(order[0])])
        back = recurrent_networks.reorder_gates(there, order, "ifgo")
        assert all(a.equal(b) for a, b in zip(back, weights, strict=True))


def test_the_papers_gru_differs_only_by_the_reset() -> None:
    x, h, _, weights = recurrent_networks.random_cell(3, CPU, torch.float64)
    hidden = recurrent_networks.H
    weights[2][:hidden] = 1e3  # reset gates of 1: before or after the product is the same
    own, other = (step(x, (h,), weights)[0] for step in (cells.gru_step, recurrent_networks.gru_step_of_the_paper))
    assert deviation(own, other) < 1e-12


@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("both_ways", [False, True])
def test_the_formula_counts_parameters(gates: int, both_ways: bool) -> None:
    make = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}[gates]
    for width, hidden, layers in ((1, 1, 1), (5, 3, 2), (2, 7, 3)):
        network = make(width, hidden, layers, bidirectional=both_ways)
        counted = recurrent_networks.count_parameters(gates, width, hidden, layers, 1 + both_ways)
        assert counted == sum(weight.numel() for weight in network.parameters())


def test_the_unrolled_drawing() -> None:
    drawn = recurrent_networks.draw_unrolled(2).splitlines()
    assert [line.split() for line in drawn] == [
        ["h1", "h2"], ["│", "│"], ["h0", "──→", "[", "cell", "]", "──→", "[", "cell", "]", "──→", "h2"], ["│", "│"], ["x1", "x2"],
    ]  # fmt: skip
    assert drawn[0].index("h1") == drawn[4].index("x1")


def test_the_end_of_both_directions_is_the_final_state() -> None:
    x = torch.randn(3, 6, 2, requires_grad=True)
    output, final = nn.GRU(2, 4, 2, batch_first=True, bidirectional=True)(x)
    ends = networks.end_of_both_directions(final)
    assert ends.equal(torch.cat([output[:, -1, :4], output[:, 0, 4:]], dim=1))
    assert not networks.last_step_of_both_directions(output).equal(ends)
    assert networks.which_steps_count(output[:, 2, :1], x) == [True] * 6


# Packing

LENGTHS = [[1], [3, 3, 3], [1, 5, 2], [7, 1, 1, 6, 7], [2, 9, 4, 4, 1, 3]]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_packing_is_the_librarys(lengths: list[int]) -> None:
    sequences = packing.random_sequences(lengths, 2, CPU, torch.float32)
    assert packing.parts_equal(packing.pack(sequences), pack_sequence(sequences, enforce_sorted=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_packed_walk_equals_each_sequence_alone(kind: str, lengths: list[int]) -> None:
    own, library, more = KINDS[kind]
    model = own(2, 3, 2, bidirectional=True, **more)
    oracle = library(2, 3, 2, bidirectional=True, **more)
    oracle.load_state_dict(model.state_dict())
    sequences = packing.random_sequences(lengths, 2, CPU, torch.float32)
    output, final = model(packing.pack(sequences))
    padded, found_lengths = pad_packed_sequence(output)
    assert found_lengths.tolist() == lengths
    final = final[0] if kind == "LSTM" else final
    for i, sequence in enumerate(sequences):
        alone, end = oracle(sequence.unsqueeze(1))
        assert deviation(padded[: len(sequence), i], alone[:, 0]) < 1e-5
        assert deviation(final[:, i], (end[0] if kind == "LSTM" else end)[:, 0]) < 1e-5


def test_a_sorted_packed_sequence_has_no_order_to_undo() -> None:
    sequences = packing.random_sequences([4, 2, 1], 2, CPU, torch.float32)
    own, library = comparing.own_and_library("GRU", 2, 3, device=CPU)
    packed, start = pack_sequence(sequences), torch.randn(1, 3, 3)
    (output, final), (right, right_final) = own(packed, start), library(packed, start)
    assert packed.sorted_indices is None
    assert deviation(output.data, right.data) < 1e-6
    assert deviation(final, right_final) < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_packed_gradients_equal_the_librarys(dtype: torch.dtype) -> None:
    assert all(packing.packed_agreement(kind, CPU, dtype).within(TOLERANCES[dtype]) for kind in KINDS)


def test_padded_steps_are_counted_batch_by_batch() -> None:
    assert list(packing.batches_of([5, 1, 2, 7, 3], 2)) == [[5, 1], [2, 7], [3]]
    assert packing.padded_steps([5, 1, 2, 7, 3], 2) == 2 * 5 + 2 * 7 + 3
    assert packing.pack_lengths([5, 1, 2]) == 8


def test_the_last_real_step_of_each_sequence() -> None:
    output = torch.arange(12.0).view(2, 3, 2)
    assert packing.take_last_real(output, torch.tensor([1, 3])).tolist() == [[0, 1], [10, 11]]
    assert packing.take_last_of_padded(output).tolist() == [[4, 5], [10, 11]]


def test_the_packing_is_drawn() -> None:
    *_, data, sizes = packing.draw_packing([1, 2]).splitlines()
    assert data.split() == ["data", "b0", "a0", "│", "b1"]
    assert sizes.split() == ["batch_sizes", "2", "│", "1"]


# Memory


def test_influence_is_the_norm_of_the_jacobian_power() -> None:
    torch.manual_seed(0)
    matrix = reach.with_spectral_radius(torch.randn(3, 3, dtype=torch.float64), 0.8)
    assert torch.linalg.eigvals(matrix).abs().max().item() == pytest.approx(0.8)
    orthogonal = nn.init.orthogonal_(torch.empty(3, 3, dtype=torch.float64))
    found = reach.influence(lambda x: reach.run_linear(0.5 * orthogonal, x), torch.randn(6, 2, 3, dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.5**k for k in range(6)])
    assert reach.rate_between(found, 1, 5) == pytest.approx(0.5)


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_gates_told_to_remember(steps: int) -> None:
    for network in (nn.LSTM(2, 3), nn.GRU(2, 3)):
        reach.remember_for(network, steps)
        bias = (network.get_parameter("bias_ih_l0") + network.get_parameter("bias_hh_l0"))[3:6]
        assert bias.sigmoid().tolist() == pytest.approx([steps / (steps + 1)] * 3)
    lstm = nn.LSTM(2, 3)
    before = lstm.get_parameter("bias_ih_l0").detach().clone()
    reach.set_gate_bias(lstm, 1, 1.0)
    after = lstm.get_parameter("bias_ih_l0")
    assert after[3:6].tolist() == [1, 1, 1]
    assert after[:3].equal(before[:3])
    assert after[6:].equal(before[6:])


def test_a_recall_batch_shows_its_symbol_once() -> None:
    x, y = recall.draw_batch(50, 7, CPU)
    assert x.shape == (50, 8, recall.SYMBOLS + 1)
    assert x[:, 0].argmax(dim=1).equal(y)
    assert not x[:, 1:, : recall.SYMBOLS].any()
    assert not x[:, 0, recall.SYMBOLS].any()


def test_a_network_that_cannot_see_the_symbol_guesses() -> None:
    class Blind(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.rand(len(x), recall.SYMBOLS)

    assert abs(recall.recall_accuracy(Blind(), 3, CPU) - 1 / recall.SYMBOLS) < 0.07  # five standard errors of 1,000


def test_only_a_forgotten_detach_lets_the_graph_grow() -> None:
    model, x, y = truncation.Stream(), torch.randn(20, 2, truncation.C), torch.randn(20, 2, 1)
    right = [truncation.count_nodes(loss) for loss in truncation.losses_detached(model, x, y, 5)]
    wrong = [truncation.count_nodes(loss) for loss in truncation.losses_with_forgotten_detach(model, x, y, 5)]
    assert len(set(right)) == 1
    assert wrong[0] == right[0]
    assert len({b - a for a, b in itertools.pairwise(wrong)}) == 1  # as many nodes more with each chunk


def test_one_chunk_has_the_whole_gradient() -> None:
    model, x, y = truncation.Stream(), torch.randn(12, 2, truncation.C), torch.randn(12, 2, 1)
    loss = nn.functional.mse_loss(model(x, torch.zeros(2, truncation.H))[0], y)
    whole = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(model.parameters()))])
    assert deviation(truncation.gradient_in_chunks(model, x, y, 12), whole) < 1e-6
    assert deviation(truncation.gradient_in_chunks(model, x, y, 4), whole) > 1e-6


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_clipping_is_the_librarys(size: float) -> None:
    gradients = [size * torch.randn(3, 4), size * torch.randn(5)]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm, theirs = truncation.clip_by_norm(gradients, 1.0), nn.utils.clip_grad_norm_(parameters, 1.0)
    assert norm.item() == pytest.approx(theirs.item())
    assert all(p.grad is not None and deviation(p.grad, g) < 1e-6 for p, g in zip(parameters, gradients, strict=True))


def test_a_clipped_descent_takes_steps_of_known_length() -> None:
    path = truncation.descend(1.1, 50, 5, 0.01, 1.0)
    assert [w for w, _, _ in path] == pytest.approx([1.1 - 0.01 * i for i in range(5)], rel=1e-6)
    w, loss, gradient = path[0]
    assert loss == pytest.approx((w**50 - 1) ** 2)
    assert gradient == pytest.approx(2 * (w**50 - 1) * 50 * w**49)


# The series and its rivals


def test_the_series_is_box_and_jenkins() -> None:
    y = rivals.load_series()
    assert (len(y), y.sum().item(), y[0].item(), y[-1].item()) == (144, 40363, 112, 432)
    assert all(len(year) == 12 for year in passengers.PASSENGERS)


def test_the_series_is_that_of_the_data_folder() -> None:
    folder = os.environ.get("LAB_DATA")
    path = Path(folder or "") / "tabular" / "airline-passengers.csv"
    if not (folder and path.exists()):
        pytest.skip("needs $LAB_DATA with tabular/airline-passengers.csv")
    with path.open(encoding="utf-8") as lines:
        numbers = [int(row["Passengers"]) for row in csv.DictReader(lines)]
    assert rivals.load_series().tolist() == numbers


@pytest.mark.parametrize("horizon", [1, 5, 12])
def test_rivals_by_hand(horizon: int) -> None:
    y, targets = rivals.load_series(), torch.tensor([96, 130])
    for t, naive, seasonal, month, year in zip(
        targets.tolist(), *(method(y, targets, horizon).tolist() for method in
        (rivals.naive, rivals.seasonal_naive, rivals.grown_by_last_month, rivals.grown_by_last_year)), strict=True,
    ):  # fmt: skip
        known = y[: t - horizon + 1].tolist()
        assert naive == known[-1]
        assert seasonal == known[t - 12]
        assert month == pytest.approx(known[t - 12] * known[-1] / known[-13])
        assert year == pytest.approx(known[t - 12] * sum(known[-12:]) / sum(known[-24:-12]))


def test_errors_by_hand() -> None:
    y = torch.arange(144, dtype=torch.float64)  # a year later every month is 12 larger: the unit of MASE
    errors = rivals.errors_of(torch.tensor([1.0, 7.0]), torch.tensor([4.0, 3.0]), y)
    assert (errors.mae, errors.rmse, errors.mase) == pytest.approx((3.5, math.sqrt(12.5), 3.5 / 12))


def test_the_airline_model_is_fitted_as_in_the_book() -> None:
    fitted = rivals.fit_airline_model(rivals.load_series())
    assert abs(fitted.month - 0.396) < 0.1  # Box and Jenkins' estimates on the whole series
    assert abs(fitted.year - 0.614) < 0.1


def test_surprises_are_the_errors_one_month_ahead() -> None:
    y, model = rivals.load_series(), rivals.AirlineModel(0.4, 0.6)
    targets = torch.arange(20, 144)
    forecasts = model(y, targets, 1)
    surprise = rivals.surprises(y, torch.tensor(0.4, dtype=y.dtype), torch.tensor(0.6, dtype=y.dtype))[targets - 13]
    assert (y[targets].log() - forecasts.log()).tolist() == pytest.approx(surprise.tolist(), abs=1e-6)


def test_without_surprises_the_airline_model_continues_a_season() -> None:
    months = torch.arange(60, dtype=torch.float64)
    y = (0.01 * months + 0.2 * torch.sin(2 * math.pi * months / 12)).exp()
    for horizon in (1, 7, 12):
        forecasts = rivals.AirlineModel(0.3, 0.5)(y, torch.tensor([59]), horizon)
        assert forecasts.item() == pytest.approx(y[59].item(), rel=1e-9)


# The network


def test_prepared_rows_say_what_follows_them() -> None:
    y = rivals.load_series()
    data = forecasting.prepare(y, rivals.TRAIN_END)
    growth = (y[12:] / y[:-12]).log()
    for i, h in ((0, 1), (50, 7), (119, 12)):
        assert data.month[i, h - 1] == i + h + 12
        assert data.y[i, h - 1].item() * data.scale == pytest.approx((growth[i + h] - growth[i]).item(), abs=1e-6)
    assert not data.y[-1].any()  # nothing is known of what comes after December 1960
    trained = data.x[: rivals.TRAIN_END - 12, 0, 0]
    assert (trained.mean().item(), trained.std().item()) == pytest.approx((0, 1), abs=1e-5)


def test_scaling_does_not_see_later_months() -> None:
    y = rivals.load_series()
    other = forecasting.with_other_future(y, rivals.TRAIN_END)
    a, b = (forecasting.prepare(series, rivals.TRAIN_END) for series in (y, other))
    assert a.scale == b.scale
    assert a.x[: rivals.TRAIN_END - 12].equal(b.x[: rivals.TRAIN_END - 12])


def test_training_reads_nothing_after_the_months_held_out() -> None:
    y = rivals.load_series()
    trained = []
    for series in (y, forecasting.with_other_future(y, rivals.VALIDATION_END)):
        torch.manual_seed(0)
        data = forecasting.prepare(series, rivals.TRAIN_END)
        model = forecasting.train_forecaster(data, *leaks.split_in_time(data), steps=5, noise=0.3)
        trained.append(torch.cat([weight.flatten() for weight in model.parameters()]))
    assert torch.equal(*trained)


def test_an_untrained_forecaster_is_its_rival() -> None:
    y = rivals.load_series()
    data = forecasting.prepare(y, rivals.TRAIN_END)
    for horizon in (1, 6, 12):
        found = forecasting.forecast_with([forecasting.Forecaster()], data, y, rivals.TEST, horizon)
        assert deviation(found, rivals.grown_by_last_month(y, rivals.TEST, horizon)) < 1e-9


def test_the_band_holds_its_share_of_what_it_was_made_from() -> None:
    truth, forecast = torch.rand(24).double() + 1, torch.ones(24).double()
    factor = forecasting.band_factor(forecast, truth)
    inside = (truth / forecast).log().abs() <= math.log(factor) + 1e-12
    assert int(inside.sum()) == math.ceil(25 * 0.9)


def test_splits_do_not_overlap() -> None:
    data = forecasting.prepare(rivals.load_series(), rivals.TRAIN_END)
    for split in (leaks.split_in_time, leaks.split_at_random):
        counted, held = split(data)
        assert not (counted & held).any()
        assert int(data.month[counted | held].max()) < rivals.VALIDATION_END
    counted, held = leaks.split_in_time(data)
    assert data.month[counted].max() < data.month[held].min()
    counted, held = leaks.split_at_random(data)
    assert data.month[counted].max() > data.month[held].min()  # the leak


def test_scalers() -> None:
    y = rivals.load_series()
    fair, leaking = leaks.scale_by_training_months(y), leaks.scale_by_all_months(y)
    assert (fair[: rivals.TRAIN_END].min().item(), fair[: rivals.TRAIN_END].max().item()) == (0, 1)
    assert (leaking.min().item(), leaking.max().item()) == (0, 1)


@pytest.mark.parametrize(("both_ways", "read"), [(False, 0), (True, 7)])
def test_months_read_after(both_ways: bool, read: int) -> None:
    assert leaks.months_read_after(nn.GRU(2, 3, bidirectional=both_ways), torch.randn(10, 1, 2), 2) == read
