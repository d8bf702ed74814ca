"""An encoder that notes the rows and masks of every call, a learned temperature, and the bytes that autograd keeps."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_number
from shared.units import significant

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

INPUTS, HIDDEN, VECTOR = 6, 96, 4
TOLERANCE = 1e-9
Function = Callable[[nn.Module, nn.Module, torch.Tensor, int], float]


class Encoder(nn.Module):
    """Drops units while it is trained; notes for each row, which it knows by its first number, the masks of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, VECTOR)
        self.masks: dict[float, list[torch.Tensor]] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(len(x), HIDDEN, dtype=x.dtype)
        if self.training:
            mask = (torch.rand(len(x), HIDDEN) < 0.7).to(x.dtype)
        for row, of_row in zip(x[:, 0].tolist(), mask, strict=True):
            self.masks.setdefault(row, []).append(of_row)
        return self.encode(x, mask)

    def encode(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(F.gelu(self.first(x)) * mask)
        return y


class PairLoss(nn.Module):
    """Rows 2 i and 2 i + 1 belong together: each has to find the other among all rows, at a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(vectors, dim=1)
        scores = (self.sharpness * unit @ unit.T).masked_fill(torch.eye(len(unit), dtype=torch.bool), -1e9)
        return F.cross_entropy(scores, torch.arange(len(unit)) ^ 1)


class KeptBytes(saved_tensors_hooks):
    """The most bytes that autograd keeps at once inside the block, each storage once, besides these tensors."""

    def __init__(self, but_not: list[torch.Tensor]) -> None:
        self.others = {x.untyped_storage()._cdata for x in but_not}
        self.alive: dict[int, list[int]] = {}  # storage: its bytes, and how many hold it
        self.peak = 0
        super().__init__(self._pack, lambda saved: saved.tensor)

    def _pack(self, x: torch.Tensor) -> "Saved":
        saved = Saved(x.detach())
        key = x.untyped_storage()._cdata
        if key not in self.others:
            self.alive.setdefault(key, [x.untyped_storage().nbytes(), 0])[1] += 1
            weakref.finalize(saved, self._leave, key)
            self.peak = max(self.peak, sum(size for size, _ in self.alive.values()))
        return saved

    def _leave(self, key: int) -> None:
        self.alive[key][1] -= 1
        if not self.alive[key][1]:
            del self.alive[key]


class Saved:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def kept_by(module: nn.Module, x: torch.Tensor) -> int:
    kept = KeptBytes([*module.parameters(), x])
    with kept:
        y = module(x)
    del y
    return kept.peak


def check(answer: Any, seed: int) -> None:
    torch.manual_seed(seed)
    for drops in (False, True):
        for size, part_size in ((6, 6), (6, 10), (8, 4), (26, 8), (10, 1)):
            expect_right(answer, size, part_size, drops=drops)
    expect_lean(answer)


def make(size: int) -> tuple[Encoder, PairLoss, torch.Tensor]:
    return Encoder().double(), PairLoss().double(), torch.randn(size, INPUTS, dtype=torch.float64)


def expect_right(answer: Any, size: int, part_size: int, *, drops: bool) -> None:
    what = "an encoder with dropout" if drops else "an encoder without dropout"
    call = f"backward_of_whole_batch of {size} rows, part_size {part_size}, {what},"
    encoder, loss, x = make(size)
    encoder.train(drops)
    twin, right_loss = copy.deepcopy(encoder), copy.deepcopy(loss)
    for weight in (*encoder.parameters(), *loss.parameters()):
        weight.grad = torch.ones_like(weight)
    found = answer.backward_of_whole_batch(encoder, loss, x, part_size)
    expect_number(found, call, "the loss, a float")
    rows = x[:, 0].tolist()
    calls = [len(encoder.masks.get(row, [])) for row in rows]
    expect(min(calls) > 0, f"{call} never encoded row {calls.index(min(calls))}")
    expect(max(calls) <= 2, f"{call} encoded row {calls.index(max(calls))} {max(calls)} times; two are enough, however many "
           "parts there are")  # fmt: skip
    for number, row in enumerate(rows):
        masks = encoder.masks[row]
        expect(torch.equal(masks[0], masks[-1]), f"{call} encoded row {number} twice, with two dropout masks: the gradient is "
               "not that of the loss which the first of them gave")  # fmt: skip
    value = right_loss(twin.encode(x, torch.stack([encoder.masks[row][0] for row in rows])))
    value.backward()
    expect(abs(found - value.item()) < 1e-9, f"{call} returned {significant(found)}; the loss of all {size} rows together is "
           f"{significant(value.item())}")  # fmt: skip
    pairs = [("the encoder's ", encoder, twin), ("the loss's ", loss, right_loss)]
    for whose, module, right in pairs:
        for (name, weight), oracle in zip(module.named_parameters(), right.parameters(), strict=True):
            assert oracle.grad is not None
            where = f"{call} returned the right loss, but the gradient of {whose}{name}"
            gradient = weight.grad if weight.grad is not None else torch.full_like(weight, torch.nan)
            is_written_over = deviation(gradient, oracle.grad) < TOLERANCE
            expect(not is_written_over, f"{where} replaced what was in .grad before; add to it, as backward() does")
            off = deviation(gradient, oracle.grad + 1)
            is_untouched = torch.equal(gradient, torch.ones_like(gradient))
            expect(not is_untouched, f"{where} was not added to .grad")
            expect(off < TOLERANCE, f"{where} is off by up to {significant(off)}")


def expect_lean(answer: Any) -> None:
    size, part_size = 64, 8
    encoder, loss, x = make(size)
    encoder.eval()
    of_part, of_all = kept_by(encoder, x[:part_size]), kept_by(encoder, x)
    vectors = encoder(x).detach().requires_grad_()
    of_loss = kept_by(loss, vectors) + vectors.nbytes
    kept = KeptBytes([*encoder.parameters(), *loss.parameters(), x])
    with kept:
        answer.backward_of_whole_batch(encoder, loss, x, part_size)
    allowed = of_loss + 1.2 * of_part
    expect(kept.peak <= allowed, f"right, but with {size} rows in parts of {part_size} autograd keeps {kept.peak:,} bytes "
           f"at once; the loss needs {of_loss:,}, and of the encoder {of_part:,} are enough (all rows: {of_all:,})")  # fmt: skip


def leaves_it_whole(encoder: nn.Module, loss: nn.Module, x: torch.Tensor, part_size: int) -> float:
    value = loss(encoder(x))
    value.backward()
    return float(value.item())


def keeps_every_part(encoder: nn.Module, loss: nn.Module, x: torch.Tensor, part_size: int) -> float:
    value = loss(torch.cat([encoder(part) for part in x.split(part_size)]))
    value.backward()
    return float(value.item())


def averages_losses(encoder: nn.Module, loss: nn.Module, x: torch.Tensor, part_size: int) -> float:
    total = 0.0
    for part in x.split(part_size):
        value = loss(encoder(part)) * len(part) / len(x)
        value.backward()
        total += value.item()
    return total


def two_passes(*, repeats: bool = True, learns: bool = True, adds: bool = True, drops_last: bool = False) -> Function:
    """The way of the solution, without one of its parts."""

    def run(encoder: nn.Module, loss: nn.Module, x: torch.Tensor, part_size: int) -> float:
        x = x[: len(x) // part_size * part_size] if drops_last and len(x) > part_size else x
        states, encoded = [], []
        with torch.no_grad():
            for part in x.split(part_size):
                states.append(torch.get_rng_state())
                encoded.append(encoder(part))
        vectors = torch.cat(encoded).requires_grad_()
        value = loss(vectors)
        if not adds:
            encoder.zero_grad()
        if learns:
            value.backward()
        slopes = vectors.grad if learns else torch.autograd.grad(value, vectors)[0]
        assert slopes is not None
        for part, state, of_part in zip(x.split(part_size), states, slopes.split(part_size), strict=True):
            if repeats:
                torch.set_rng_state(state)
            (encoder(part) * of_part).sum().backward()
        return float(value.item())

    return run


def one_part_among_all(encoder: nn.Module, loss: nn.Module, x: torch.Tensor, part_size: int) -> float:
    """Right without dropout: everything anew for each part, with a graph for that part alone."""
    for start in range(0, len(x), part_size):
        inside = slice(start, start + part_size)
        with torch.no_grad():
            vectors = encoder(x)
        value = loss(torch.cat([vectors[:start], encoder(x[inside]), vectors[start + part_size :]]))
        value.backward()
    return float(value.item())


def wrong(function: Function) -> dict[str, object]:
    def backward_of_whole_batch(encoder: nn.Module, loss: nn.Module, x: torch.Tensor, part_size: int) -> float:
        return function(encoder, loss, x, part_size)

    return {"backward_of_whole_batch": backward_of_whole_batch}


WRONG = {
    "leaves it whole": (wrong(leaves_it_whole), "bytes at once; the loss needs"),
    "keeps the graphs of all parts": (wrong(keeps_every_part), "bytes at once; the loss needs"),
    "averages the losses of the parts": (wrong(averages_losses), "the loss of all 8 rows together is"),
    "draws new masks": (wrong(two_passes(repeats=False)), "with two dropout masks"),
    "forgets the temperature": (wrong(two_passes(learns=False)), "the loss's sharpness was not added"),
    "forgets what was in .grad": (wrong(two_passes(adds=False)), "replaced what was in .grad before"),
    "leaves out the last rows": (wrong(two_passes(drops_last=True)), "never encoded row 24"),
    "encodes all for each part": (wrong(one_part_among_all), "two are enough, however many"),
}
