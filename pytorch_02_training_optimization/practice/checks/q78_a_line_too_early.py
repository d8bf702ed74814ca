"""A module writes down who is called and what it finds; its weights are compared with those of a loop without a trainer."""

import math
from collections.abc import Iterable
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch
import torch.nn.functional as F

FEATURES, LIMIT = 4, 0.5
Batch = tuple[torch.Tensor, torch.Tensor]
OF_A_STEP = ("on_before_optimizer_step", "clip_gradients", "optimizer.step", "schedule.step")


class Told:
    """The optimizer or the schedule of a module."""

    def __init__(self, module: "Module", name: str) -> None:
        self.module, self.name = module, name

    def step(self) -> None:
        self.module.told.append(f"{self.name}.step")
        if self.name == "schedule":
            self.module.lr *= 0.8
        elif self.module.weight.grad is not None:
            with torch.no_grad():
                self.module.weight -= self.module.lr * self.module.weight.grad

    def zero_grad(self) -> None:
        self.module.told.append("optimizer.zero_grad")
        self.module.weight.grad = None


class Module:
    """A regression whose gradients are far longer than LIMIT, so that clipping matters."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight.clone().requires_grad_()
        self.lr = 0.1
        self.told: list[str] = []
        self.losses: list[float] = []
        self.norms: list[float] = []

    def configure_optimizers(self) -> tuple[Told, Told]:
        return Told(self, "optimizer"), Told(self, "schedule")

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.told.append("training_step")
        x, y = batch
        return 5 * F.mse_loss(x @ self.weight, y)

    def backward(self, loss: torch.Tensor) -> None:
        self.told.append("backward")
        self.losses.append(loss.item())
        loss.backward()

    def on_before_optimizer_step(self) -> None:
        self.told.append("on_before_optimizer_step")
        self.norms.append(self.norm())

    def norm(self) -> float:
        return math.nan if self.weight.grad is None else self.weight.grad.norm().item()

    def clip_gradients(self, limit: float) -> None:
        self.told.append("clip_gradients")
        if self.weight.grad is not None:
            self.weight.grad *= min(1.0, limit / self.norm())

    def on_train_batch_end(self) -> None:
        self.told.append("on_train_batch_end" + (" without a gradient" if self.weight.grad is None else ""))


def order_of(count: int, accumulate: int) -> list[str]:
    """Who is called, by the contract."""
    calls: list[str] = []
    for number in range(count):
        calls.append("training_step")
        calls += ["optimizer.zero_grad"] * (number % accumulate == 0) + ["backward"]
        calls += OF_A_STEP * ((number + 1) % accumulate == 0)
        calls.append("on_train_batch_end")
    return calls


def by_hand(weight: torch.Tensor, batches: list[Batch], accumulate: int) -> tuple[torch.Tensor, list[float]]:
    """The weight after the training and the norms before clipping, each step on its batches together."""
    lr, norms = 0.1, []
    for first in range(0, len(batches), accumulate):
        weight = weight.detach().requires_grad_()
        pieces = batches[first : first + accumulate]
        loss = sum(5 * F.mse_loss(x @ weight, y) for x, y in pieces) / accumulate
        [gradient] = torch.autograd.grad(loss, [weight])
        norms.append(gradient.norm().item())
        weight = weight.detach() - lr * min(1.0, LIMIT / norms[-1]) * gradient
        lr *= 0.8
    return weight, norms


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for count, accumulate in ((4, 2), (2, 1), (6, 1), (9, 3), (4, 4), (10, 5), (0, 3)):
        expect_training(answer, generator, count, accumulate)


def expect_training(answer: Any, generator: torch.Generator, count: int, accumulate: int) -> None:
    weight = torch.randn(FEATURES, generator=generator)
    batches = [
        (torch.randn(3, FEATURES, generator=generator), torch.randn(3, generator=generator) * 3) for _ in range(count)
    ]
    module = Module(weight)
    trainer = answer.Trainer(accumulate, LIMIT)
    expect(
        callable(getattr(trainer, "fit", None)), f"Trainer({accumulate}, {LIMIT}) is {shown(trainer)}; it needs fit()"
    )
    trainer.fit(module, iter(batches))
    where = f"{count} batches in steps of {accumulate}"
    expect_counts(module.told, order_of(count, accumulate), where)
    expect_order(module.told, order_of(count, accumulate), where)
    right, norms = by_hand(weight, batches, accumulate)
    for step, (found, wanted) in enumerate(zip(module.norms, norms, strict=True)):
        expect(math.isclose(found, wanted, rel_tol=1e-4), f"{where}: in step {step} a gradient of length {found:.3f} is there to "
               f"be logged; that of the mean loss of its batches has length {wanted:.3f}")  # fmt: skip
    gap = (module.weight.detach() - right).abs().max().item()
    expect(gap <= 1e-4, f"{where}: the weights are off by {gap:.2g} from those of a loop by hand")
    steps = getattr(trainer, "global_step", None)
    expect(steps == count // accumulate, f"{where} are {count // accumulate} steps; global_step is {shown(steps)}")


def expect_counts(told: list[str], right: list[str], where: str) -> None:
    for name in dict.fromkeys(right):
        found, wanted = told.count(name), right.count(name)
        if name == "on_train_batch_end" and f"{name} without a gradient" in told:
            expect(False, f"{where}: in on_train_batch_end() the gradient of the step is gone; it was to be looked at")
        expect(found == wanted, f"{where}: {name} was called {found} times, and should be {wanted} times")


def expect_order(told: list[str], right: list[str], where: str) -> None:
    for place, (found, wanted) in enumerate(zip(told, right, strict=True)):
        if found != wanted:
            before = ", ".join(told[max(0, place - 2) : place]) or "nothing"
            expect(False, f"{where}: after {before} came {found}; it is the turn of {wanted}")


def is_due(when: str, number: int, accumulate: int) -> bool:
    """Whether a call that is made at "first", "last", "broken" or each time is made with the batch of this number, from 0."""
    place = number % accumulate
    broken = (number + 1) % accumulate == 1
    return {"": True, "first": place == 0, "last": place == accumulate - 1, "broken": broken}[when]


def trainer(*calls: str, divides: bool = True, counts_batches: bool = False) -> dict[str, object]:
    """A trainer that makes these calls in this order."""

    class Trainer:
        def __init__(self, accumulate: int, limit: float) -> None:
            self.accumulate, self.limit, self.global_step = accumulate, limit, 0

        def fit(self, module: Module, batches: Iterable[Batch]) -> None:
            optimizer, schedule = module.configure_optimizers()
            for number, batch in enumerate(batches):
                loss = torch.zeros(())
                for call in calls:
                    name, _, when = call.partition("@")
                    if not is_due(when, number, self.accumulate):
                        continue
                    if name == "training_step":
                        loss = module.training_step(batch)
                    elif name == "backward":
                        module.backward(loss / self.accumulate if divides else loss)
                    elif name == "clip":
                        module.clip_gradients(self.limit)
                    elif name == "hook":
                        module.on_before_optimizer_step()
                    elif name == "end":
                        module.on_train_batch_end()
                    elif name == "schedule":
                        schedule.step()
                    elif name == "zero_grad":
                        optimizer.zero_grad()
                    else:
                        optimizer.step()
                        self.global_step += self.accumulate if counts_batches else 1

    return {"Trainer": Trainer}


RIGHT = ("training_step", "zero_grad@first", "backward", "hook@last", "clip@last", "step@last", "schedule@last", "end")


def changed(**changes: str) -> tuple[str, ...]:
    """RIGHT with calls replaced by what is given for them, several with blanks between; "" leaves one out."""
    return tuple(new for call in RIGHT for new in changes.get(call.partition("@")[0], call).split())


WRONG = {
    "as it was shipped": (
        trainer("training_step", "zero_grad@broken", "backward", "clip", "hook@last", "step@last", "schedule", "end"),
        "clip_gradients was called 4 times"),
    "clips each piece": (trainer(*changed(backward="backward clip", clip="")), "clip_gradients was called 4 times"),
    "moves the schedule with each batch": (trainer(*changed(schedule="schedule")), "schedule.step was called 4 times"),
    "never clears with steps of one": (
        trainer(*changed(zero_grad="zero_grad@broken")), "optimizer.zero_grad was called 0 times"),
    "clears at each batch": (trainer(*changed(zero_grad="zero_grad")), "optimizer.zero_grad was called 4 times"),
    "clears after the step": (trainer(*changed(zero_grad="", schedule="schedule@last zero_grad@last")), "is gone"),
    "clips before the hook": (trainer(*changed(hook="", clip="clip@last hook@last")), "it is the turn of on_before"),
    "moves the schedule first": (trainer(*changed(step="", schedule="schedule@last step@last")), "the turn of optimizer.step"),
    "does not divide": (trainer(*RIGHT, divides=False), "there to be logged"),
    "counts batches": (trainer(*RIGHT, counts_batches=True), "are 2 steps; global_step is 4"),
}  # fmt: skip
