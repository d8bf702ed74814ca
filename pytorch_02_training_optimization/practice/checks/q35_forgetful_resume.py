"""A run that is never paused is the oracle; every pause within three epochs is tried, with a state that went to a file."""

import io
import pickle
from collections.abc import Mapping
from typing import Any

from shared.practice import Wrong, expect
from shared.traps import shown

import torch

N, BATCH_SIZE, FEATURES = 12, 4, 3
PER_EPOCH = N // BATCH_SIZE
STEPS = 3 * PER_EPOCH
METHODS = ("train_step", "state", "load")


class Oracle:
    """The training as it is meant, with a state that has all; subclasses forget or change something."""

    def __init__(self, samples: torch.Tensor, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.step = samples, batch_size, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.weight, self.momentum = torch.zeros_like(samples[0]), torch.zeros_like(samples[0])
        self.order: torch.Tensor | None = None

    def train_step(self) -> None:
        place = self.step * self.batch_size % len(self.samples)
        if place == 0 or self.order is None:
            self.order = torch.randperm(len(self.samples), generator=self.generator)
        batch = self.samples[self.order[place : place + self.batch_size]]
        noise = torch.randn(batch.shape, generator=self.generator, dtype=batch.dtype)
        self.momentum = 0.9 * self.momentum + self.weight - (batch + noise).mean(dim=0)
        self.weight = self.weight - 0.1 / (1 + self.step) * self.momentum
        self.step += 1

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight, "momentum": self.momentum, "step": self.step, "order": self.order,
                "generator": self.generator.get_state()}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        state = dict(state)
        self.generator.set_state(state.pop("generator"))
        for name, part in state.items():
            setattr(self, name, part)


def check(answer: Any, seed: int) -> None:
    samples = torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(seed + 10), dtype=torch.float64)
    weights = []
    oracle = Oracle(samples.clone(), BATCH_SIZE, seed)
    for _ in range(STEPS):
        weights.append(oracle.weight)
        oracle.train_step()
    weights.append(oracle.weight)
    expect_undisturbed(make(answer, samples, seed), weights)
    for at in (PER_EPOCH, 1, 2, 0, *range(PER_EPOCH + 1, STEPS)):
        for more in (1, STEPS - at):
            expect_resumed(answer, samples, seed, at, more, weights)
    expect_state_that_stays(answer, samples, seed, weights)


def make(answer: Any, samples: torch.Tensor, seed: int) -> Any:
    training = answer.Training(samples.clone(), BATCH_SIZE, seed)
    is_whole = all(callable(getattr(training, name, None)) for name in METHODS)
    expect(
        is_whole,
        f"Training(samples, {BATCH_SIZE}, {seed}) is {shown(training)}; keep the class with {', '.join(METHODS)}",
    )
    return training


def expect_weight(training: Any, right: torch.Tensor, when: str) -> None:
    weight = getattr(training, "weight", None)
    is_like = isinstance(weight, torch.Tensor) and (weight.shape, weight.dtype) == (right.shape, right.dtype)
    expect(is_like, f"{when} .weight is {shown(weight)}; it should be {shown(right)}")
    assert isinstance(weight, torch.Tensor)
    apart = (weight - right).abs().max().item()
    expect(
        torch.equal(weight, right), f"{when} the weight is off by {apart:.1e} from that of a run that was never paused"
    )


def expect_undisturbed(training: Any, weights: list[torch.Tensor]) -> None:
    for step in range(STEPS):
        expect_weight(training, weights[step], f"without any pause, after {step} steps")
        training.train_step()
    expect_weight(training, weights[STEPS], f"without any pause, after {STEPS} steps")


def to_a_file_and_back(state: Any) -> Any:
    expect(isinstance(state, dict), f"state() returned {shown(state)}; return a dict")
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        return torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise Wrong(
            f"torch.load(weights_only=True) refuses the state: {reason}; keep to tensors and plain values"
        ) from None


def expect_resumed(
    answer: Any, samples: torch.Tensor, seed: int, at: int, more: int, weights: list[torch.Tensor]
) -> None:
    paused = make(answer, samples, seed)
    for _ in range(at):
        paused.train_step()
    state = to_a_file_and_back(paused.state())
    resumed = make(answer, samples, seed + 1)
    global_state = torch.get_rng_state()
    resumed.load(state)
    place = f"step {at % PER_EPOCH} of {PER_EPOCH} of an epoch" if at % PER_EPOCH else "the beginning of an epoch"
    when = f"paused at {place} (step {at} of {STEPS}), loaded into a run of seed {seed + 1}"
    expect_weight(resumed, weights[at], f"{when}, before any more step")
    for _ in range(more):
        resumed.train_step()
    expect_weight(resumed, weights[at + more], f"{when}, and {more} step{'s' * (more > 1)} later")
    expect(
        torch.get_rng_state().equal(global_state),
        f"{when}: the global generator was drawn from or seeded; others use it",
    )


def expect_state_that_stays(answer: Any, samples: torch.Tensor, seed: int, weights: list[torch.Tensor]) -> None:
    """A state that is kept in memory, as the best so far often is."""
    training = make(answer, samples, seed)
    for _ in range(PER_EPOCH + 1):
        training.train_step()
    state = training.state()
    for _ in range(PER_EPOCH):
        training.train_step()
    for attempt in ("once", "a second time"):
        training.load(state)
        for _ in range(2):
            training.train_step()
        expect_weight(
            training, weights[PER_EPOCH + 3], f"a state kept in memory while the training went on, loaded {attempt}:"
        )


class ForgetsTheOrder(Oracle):
    def state(self) -> dict[str, Any]:
        return {name: part for name, part in super().state().items() if name != "order"}

    def load(self, state: Mapping[str, Any]) -> None:
        self.order = None
        super().load(state)


class DrawsTheOrderAgain(ForgetsTheOrder):
    """From the seed, which is not that of the run that was paused."""

    def __init__(self, samples: torch.Tensor, batch_size: int, seed: int) -> None:
        super().__init__(samples, batch_size, seed)
        self.seed = seed

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(self.seed))


class BeginsTheEpochAgain(ForgetsTheOrder):
    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.step -= self.step % (len(self.samples) // self.batch_size)


class SavesAnArray(Oracle):
    """Which torch.load(weights_only=True) does not read."""

    def state(self) -> dict[str, Any]:
        return super().state() | {"weight": self.weight.numpy()}


class SeedsTheGlobalOne(Oracle):
    def load(self, state: Mapping[str, Any]) -> None:
        torch.manual_seed(self.step)
        torch.rand(1)
        super().load(state)


class WritesIntoItsState(Oracle):
    """A momentum that is changed in place is changed in every state that holds it."""

    def train_step(self) -> None:
        kept = self.momentum
        super().train_step()
        self.momentum = kept.copy_(self.momentum)


class ForgetsTheMomentum(Oracle):
    def state(self) -> dict[str, Any]:
        return {name: part for name, part in super().state().items() if name != "momentum"}


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "forgets the order": ({"Training": ForgetsTheOrder}, "paused at step 1 of 3 of an epoch"),
    "draws the order again from the seed": ({"Training": DrawsTheOrderAgain}, "paused at step 1 of 3 of an epoch"),
    "begins the epoch again": ({"Training": BeginsTheEpochAgain}, "paused at step 1 of 3 of an epoch"),
    "saves an array of NumPy": ({"Training": SavesAnArray}, "keep to tensors and plain values"),
    "seeds the global generator": ({"Training": SeedsTheGlobalOne}, "the global generator was drawn from"),
    "writes into its own state": ({"Training": WritesIntoItsState}, "a state kept in memory"),
    "forgets the momentum": ({"Training": ForgetsTheMomentum}, "paused at the beginning of an epoch"),
}
