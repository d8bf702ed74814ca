"""A loader that is never stopped is compared with one that is stopped after each batch of three epochs, by way of JSON."""

import json
import random
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

from shared.practice import Wrong, expect
from shared.traps import expect_integer, shown

import torch

METHODS = ("__len__", "__iter__", "state_dict", "load_state_dict")
EPOCHS = 3
Batch = list[int]


def make(answer: Any, count: int, batch_size: int, seed: int) -> Any:
    loader = answer.Loader(count, batch_size, seed)
    is_whole = all(callable(getattr(loader, name, None)) for name in METHODS)
    call = f"Loader({count}, {batch_size}, {seed})"
    expect(is_whole, f"{call} is {shown(loader)}; keep the class with {', '.join(METHODS)}")
    length, right = len(loader), -(-count // batch_size)
    expect(length == right, f"len({call}) is {length}; {count} rows are {right} batches, the last one perhaps smaller")
    return loader


def batches(loader: Any) -> Iterator[Batch]:
    """One `for` over the loader. Its form is checked, and that it ends."""
    for number, rows in enumerate(loader):
        expect(isinstance(rows, list), f"the loader handed out {shown(rows)}; hand out lists of rows")
        expect(number < len(loader), f"the loader handed out more than its {len(loader)} batches in one epoch")
        yield [int(row) for row in rows]


def epoch_number(loader: Any) -> int:
    epoch = getattr(loader, "epoch", None)
    expect_integer(epoch, "loader.epoch", "the number of the epoch that the next batch belongs to")
    return int(epoch)  # type: ignore[arg-type]


def through_json(loader: Any) -> Any:
    state = loader.state_dict()
    expect(isinstance(state, dict), f"state_dict() returned {shown(state)}; return a dict")
    try:
        return json.loads(json.dumps(state))
    except TypeError as error:
        raise Wrong(f"json cannot write the state ({error}); keep to plain values") from None


def check(answer: Any, seed: int) -> None:
    for count, batch_size in ((5, 2), (12, 4), (13, 5), (4, 4), (3, 7)):
        expect_epochs(answer, count, batch_size, seed)
        for at in range(1, EPOCHS * -(-count // batch_size) + 1):
            expect_resumed(answer, count, batch_size, seed, at)
    expect_goes_on_after_break(answer, seed)
    expect_orders(answer, seed)
    expect_alone(answer, seed)
    expect_small(answer, seed)


def expect_epochs(answer: Any, count: int, batch_size: int, seed: int) -> None:
    loader = make(answer, count, batch_size, seed)
    call = f"Loader({count}, {batch_size}, {seed})"
    sizes = [min(batch_size, count - first) for first in range(0, count, batch_size)]
    for epoch in range(EPOCHS):
        found = epoch_number(loader)
        expect(found == epoch, f"{call}: before epoch {epoch} begins, loader.epoch is {found}")
        handed_out = list(batches(loader))
        lengths = [len(rows) for rows in handed_out]
        expect(lengths == sizes, f"{call}: epoch {epoch} has batches of {lengths}; they should be {sizes}")
        rows = sorted(row for batch in handed_out for row in batch)
        expect(
            rows == list(range(count)),
            f"{call}: epoch {epoch} hands out the rows {shown(rows)}; each of {count} comes once",
        )


def undisturbed(answer: Any, count: int, batch_size: int, seed: int) -> list[list[Batch]]:
    loader = make(answer, count, batch_size, seed)
    return [list(batches(loader)) for _ in range(EPOCHS + 2)]


def hand_out(loader: Any, number: int) -> None:
    """Takes so many batches; the loop is left while its body works on the last one."""
    while number > 0:
        for _ in batches(loader):
            number -= 1
            if not number:
                return


def expect_resumed(answer: Any, count: int, batch_size: int, seed: int, at: int) -> None:
    whole = undisturbed(answer, count, batch_size, seed)
    length = len(whole[0])
    first = make(answer, count, batch_size, seed)
    states = []

    def stop_at(loader: Any) -> None:
        number = 0
        while True:
            for _ in batches(loader):
                number += 1
                if number == at:
                    states.append(through_json(loader))
                    states.append(loader.state_dict())
                    return

    stop_at(first)
    list(batches(first))  # goes on: its state must not
    for state, kind in zip(states, ("", " (kept in memory while the first loader went on)"), strict=True):
        resumed = make(answer, count, batch_size, seed + 1)
        resumed.load_state_dict(state)
        place = f"{length} batches an epoch; stopped at batch {(at - 1) % length} of epoch {(at - 1) // length}{kind}"
        epoch, position = divmod(at, length)
        found = epoch_number(resumed)
        expect(
            found == epoch,
            f"{place}: the resumed loader has epoch {found}, and its next batch belongs to epoch {epoch}",
        )
        rest = list(batches(resumed))
        right = whole[epoch][position:]
        if rest != right:
            explain(rest, right, whole[(at - 1) // length], (at - 1) % length, place)
        following = list(batches(resumed))
        expect(following == whole[epoch + 1], f"{place}: the rest of the epoch is right, and the next epoch has another order "
               "than without the stop")  # fmt: skip


def explain(rest: list[Batch], right: list[Batch], epoch: list[Batch], last: int, place: str) -> None:
    if rest and rest[0] == epoch[last]:
        problem = "the resumed loader hands out that batch a second time"
    elif not rest:
        problem = "the resumed loader has no batch at all, although an epoch lies before it"
    elif rest == epoch:
        problem = "the resumed loader begins the epoch again"
    elif len(rest) != len(right):
        problem = f"the resumed loader hands out {len(rest)} batches to the end of its epoch, and should {len(right)}"
    else:
        problem = "the resumed loader hands out other rows than a loader that was never stopped"
    raise Wrong(f"{place}: {problem}")


def expect_goes_on_after_break(answer: Any, seed: int) -> None:
    whole = undisturbed(answer, 12, 3, seed)
    loader = make(answer, 12, 3, seed)
    hand_out(loader, 2)
    rest = list(batches(loader))
    expect(rest == whole[0][2:], f"after a break at the second of 4 batches, the next `for` hands out {len(rest)} batches, and "
           "not the two that were left of the epoch")  # fmt: skip


def expect_orders(answer: Any, seed: int) -> None:
    epochs = undisturbed(answer, 200, 7, seed)
    expect(
        epochs[0] != [list(range(200))[i : i + 7] for i in range(0, 200, 7)],
        "the rows come in their own order, not shuffled",
    )
    expect(all(a != b for i, a in enumerate(epochs) for b in epochs[:i]), "two epochs have the same order")
    expect(undisturbed(answer, 200, 7, seed + 1) != epochs, "two seeds have the same order")
    neighbours = sum(abs(a - b) == 1 for batch in epochs[1] for a, b in pairwise(batch))
    expect(
        neighbours < 20,
        f"{neighbours} of 200 rows of epoch 1 come beside their neighbour; shuffle the rows, not the batches",
    )
    expect(undisturbed(answer, 200, 7, seed) == epochs, "two loaders of one seed have different orders")


def expect_alone(answer: Any, seed: int) -> None:
    """Others draw from the global generators, before and while the loader works."""
    whole = undisturbed(answer, 12, 4, seed)
    states = random.getstate(), torch.get_rng_state()
    random.seed(seed + 77)
    torch.manual_seed(seed + 77)
    before = random.getstate(), torch.get_rng_state()
    found = undisturbed(answer, 12, 4, seed)
    after = random.getstate(), torch.get_rng_state()
    random.setstate(states[0])
    torch.set_rng_state(states[1])
    untouched = before[0] == after[0] and torch.equal(before[1], after[1])
    expect(untouched, "the loader draws from a global random generator or seeds it; the training's dropout uses it")
    expect(found == whole, "the order depends on a global random generator")


def expect_small(answer: Any, seed: int) -> None:
    sizes = []
    for count in (10, 50_000):
        loader = make(answer, count, 5, seed)
        list(islice(batches(loader), 1))
        sizes.append(len(json.dumps(through_json(loader))))
    expect(sizes[1] <= sizes[0] + 50, f"the state takes {sizes[0]} bytes for 10 rows and {sizes[1]} for 50,000; every checkpoint "
           "would hold that")  # fmt: skip


class Right:
    """Subclasses have one fault each."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed, self.epoch, self.position = count, batch_size, seed, 0, 0

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def order(self) -> list[int]:
        return random.Random(f"{self.seed}-{self.epoch}").sample(range(self.count), self.count)

    def move(self) -> None:
        self.position += 1
        if self.position == len(self):
            self.epoch, self.position = self.epoch + 1, 0

    def __iter__(self) -> Iterator[Batch]:
        rows = self.order()
        for place in range(self.position, len(self)):
            self.move()
            yield rows[place * self.batch_size :][: self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class MovesBehindTheYield(Right):
    def __iter__(self) -> Iterator[Batch]:
        rows = self.order()
        for place in range(self.position, len(self)):
            yield rows[place * self.batch_size :][: self.batch_size]
            self.move()


class EndsTheEpochLater(Right):
    """When the loop asks for one batch more."""

    def move(self) -> None:
        self.position += 1

    def __iter__(self) -> Iterator[Batch]:
        yield from super().__iter__()
        self.epoch, self.position = self.epoch + 1, 0


class BeginsAgain(Right):
    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "epoch": self.epoch}

    def __iter__(self) -> Iterator[Batch]:
        self.position = 0
        return super().__iter__()


class ForgetsTheSeed(Right):
    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}


class OneGenerator(Right):
    """One generator for all epochs, and its state in the checkpoint."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        super().__init__(count, batch_size, seed)
        self.generator = random.Random(seed)

    def order(self) -> list[int]:
        return self.generator.sample(range(self.count), self.count)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, numbers, rest = state["generator"]
        self.generator.setstate((version, tuple(numbers), rest))
        self.epoch, self.position = state["epoch"], state["position"]


class SavesTheOrder(Right):
    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        super().__init__(count, batch_size, seed)
        self.kept: list[int] = []
        self.kept_of = -1

    def order(self) -> list[int]:
        if self.kept_of != self.epoch:
            self.kept, self.kept_of = super().order(), self.epoch
        return self.kept

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"kept": self.kept, "kept_of": self.kept_of}


class SavesItself(Right):
    def state_dict(self) -> dict[str, Any]:
        return vars(self)


class ShufflesBatches(Right):
    def order(self) -> list[int]:
        parts = [list(range(self.count))[i : i + self.batch_size] for i in range(0, self.count, self.batch_size)]
        first, last = parts[:-1], parts[-1]
        random.Random(f"{self.seed}-{self.epoch}").shuffle(first)
        return [row for part in (*first, last) for row in part]


class ShufflesGlobally(Right):
    def order(self) -> list[int]:
        random.seed(f"{self.seed}-{self.epoch}")
        return random.sample(range(self.count), self.count)


class AlwaysFromTheFirst(Right):
    """Knows the position, and forgets it in the loop."""

    def __iter__(self) -> Iterator[Batch]:
        rows = self.order()
        for place in range(len(self)):
            self.position = place
            self.move()
            yield rows[place * self.batch_size :][: self.batch_size]


class DropsTheRest(Right):
    def __len__(self) -> int:
        return self.count // self.batch_size


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "moves behind the yield": ({"Loader": MovesBehindTheYield}, "that batch a second time"),
    "ends the epoch later": ({"Loader": EndsTheEpochLater}, "its next batch belongs to epoch 1"),
    "begins the epoch again": ({"Loader": BeginsAgain}, "that batch a second time"),
    "forgets the seed": ({"Loader": ForgetsTheSeed}, "than a loader that was never stopped"),
    "saves a generator": ({"Loader": OneGenerator}, "than a loader that was never stopped"),
    "saves the order": ({"Loader": SavesTheOrder}, "every checkpoint would hold that"),
    "saves what goes on changing": ({"Loader": SavesItself}, "kept in memory while the first loader went on"),
    "shuffles the batches": ({"Loader": ShufflesBatches}, "shuffle the rows, not the batches"),
    "seeds the global generator": ({"Loader": ShufflesGlobally}, "a global random generator or seeds it"),
    "always from the first": ({"Loader": AlwaysFromTheFirst}, "the resumed loader"),
    "drops the rest": ({"Loader": DropsTheRest}, "the last one perhaps smaller"),
}
