"""The oracle cuts the neighbourhood of each pixel out by hand and gives it to the equations, one pixel after another as a
row of a batch; a picture of one pixel is given to torch.lstm_cell as well."""

from collections.abc import Callable
from typing import Any, cast

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_close, expect_tensor, shown

import torch
from torch.nn.functional import conv2d, linear, unfold

State = tuple[torch.Tensor, torch.Tensor]
Weights = list[torch.Tensor | None]


def neighbourhoods(x: torch.Tensor, k: int) -> torch.Tensor:
    """(B, C, height, width) → (B * height * width, C * k * k), a row for each pixel."""
    return unfold(x, k, padding=k // 2).mT.flatten(0, 1)


def by_rows(x: torch.Tensor, state: State | None, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> State:
    """The step on rows: a product with each neighbourhood, then the equations."""
    batch, _, height, width = x.shape
    hidden = w_hh.shape[1]

    def rows(picture: torch.Tensor) -> torch.Tensor:
        return picture.permute(0, 2, 3, 1).flatten(0, 2)  # (B * height * width, H)

    if state is None:
        zeros = x.new_zeros(batch, hidden, height, width)
        state = zeros, zeros
    gates = linear(neighbourhoods(x, w_ih.shape[-1]), w_ih.flatten(1), b_ih)
    gates = gates + linear(neighbourhoods(state[0], w_hh.shape[-1]), w_hh.flatten(1), b_hh)
    i, f, g, o = gates.split(hidden, dim=1)
    c = torch.sigmoid(f) * rows(state[1]) + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    back = [part.unflatten(0, (batch, height, width)).permute(0, 3, 1, 2) for part in (h, c)]
    return back[0], back[1]


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def weights(c: int, h: int, k_ih: int, k_hh: int, biases: tuple[bool, bool] = (True, True)) -> Weights:
        one, two = (draw(4 * h) if wanted else None for wanted in biases)
        return [draw(4 * h, c, k_ih, k_ih) / k_ih, draw(4 * h, h, k_hh, k_hh) / k_hh, one, two]

    expect_cell(answer, draw(3, 2, 1, 1), (draw(3, 5, 1, 1), draw(3, 5, 1, 1)), weights(2, 5, 1, 1))
    expect_right(answer, "a kernel of one pixel", draw(2, 3, 4, 4), state_of(draw, 2, 5, 4, 4), weights(3, 5, 1, 1))
    expect_right(answer, "kernels of 3 x 3", draw(2, 3, 5, 7), state_of(draw, 2, 4, 5, 7), weights(3, 4, 3, 3))
    expect_right(
        answer, "as many channels as states", draw(1, 4, 6, 3), state_of(draw, 1, 4, 6, 3), weights(4, 4, 3, 3)
    )
    expect_right(answer, "kernels of two sizes", draw(2, 1, 6, 5), state_of(draw, 2, 3, 6, 5), weights(1, 3, 5, 3))
    expect_right(answer, "no state yet", draw(2, 3, 4, 5), None, weights(3, 2, 3, 3))
    bare = weights(3, 2, 3, 3, (False, False))
    expect_right(answer, "no biases", draw(2, 3, 4, 5), state_of(draw, 2, 2, 4, 5), bare)
    single = weights(3, 2, 3, 3, (True, False))
    expect_right(answer, "bias_ih only", draw(2, 3, 4, 5), state_of(draw, 2, 2, 4, 5), single)
    large = state_of(draw, 1, 2, 4, 4)
    expect_right(answer, "a large memory c", draw(1, 2, 4, 4), (large[0], 20 * large[1]), weights(2, 2, 3, 3))
    sideways = draw(2, 5, 4, 3).permute(0, 3, 1, 2), state_of(draw, 2, 2, 4, 5)
    expect_right(answer, "transposed views", sideways[0], (sideways[1][0].mT, sideways[1][1].mT), weights(3, 2, 3, 3))
    expect_walk(answer, [draw(2, 1, 5, 5) for _ in range(4)], weights(1, 3, 3, 3))
    x, state, w = draw(2, 3, 4, 5).float(), state_of(draw, 2, 2, 4, 5), weights(3, 2, 3, 3)
    light = [None if each is None else each.float() for each in w]
    expect_right(answer, "float32", x, (state[0].float(), state[1].float()), light, 1e-4)


def state_of(draw: Callable[..., torch.Tensor], *shape: int) -> State:
    return draw(*shape), draw(*shape)


def expect_pair(found: object, call: str, shape: tuple[int, ...], dtype: torch.dtype) -> State:
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return the new h and the new c")
    h, c = cast(State, found)
    for name, part in (("h", h), ("c", c)):
        expect_tensor(part, f"{call}, as the new {name},", shape, dtype)
    return h, c


def expect_cell(answer: Any, x: torch.Tensor, state: State, weights: Weights) -> None:
    call = "conv_lstm_step on pictures of one pixel, with kernels of one pixel,"
    h, c = expect_pair(answer.conv_lstm_step(x, state, *weights), call, tuple(state[0].shape), x.dtype)
    flat = [w.flatten(1) if w is not None and w.ndim == 4 else w for w in weights]
    right = torch.lstm_cell(x.flatten(1), [part.flatten(1) for part in state], *flat)  # type: ignore[arg-type]
    right_h, right_c = (part[:, :, None, None] for part in right)
    swapped = deviation(h, right_c) < 1e-6 and deviation(c, right_h) < 1e-6
    expect(not swapped, f"{call} returned c before h; the order is (h, c), as for nn.LSTMCell")
    where = (
        f"{call} is not nn.LSTMCell. Are the gates taken in PyTorch's order, and is tanh of the new c shown? The new"
    )
    expect_close(c, right_c, f"{where} c", 1e-6)
    expect_close(h, right_h, f"{where} h", 1e-6)


def expect_right(
    answer: Any, case: str, x: torch.Tensor, state: State | None, weights: Weights, tolerance: float = 1e-7
) -> None:
    call = f"conv_lstm_step with {case} (x {tuple(x.shape)}, weight_ih {tuple(weights[0].shape)})"  # type: ignore[union-attr]
    names = ["x", "h", "c", "weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    given = [x, *(state or (None, None)), *weights]
    leaves = [None if part is None else part.detach().requires_grad_() for part in given]
    kept = [None if part is None else part.clone() for part in given]
    pair = None if state is None else (leaves[1], leaves[2])
    shape = (len(x), weights[1].shape[1], *x.shape[2:])  # type: ignore[union-attr]
    h, c = expect_pair(answer.conv_lstm_step(leaves[0], pair, *leaves[3:]), call, shape, x.dtype)
    for name, part, before in zip(names, leaves, kept, strict=True):
        unchanged = part is None or before is None or torch.equal(part.detach(), before)
        expect(unchanged, f"{call} changed {name}; the step before may still need it")
    copies = [None if part is None else part.double().requires_grad_() for part in kept]
    right = by_rows(copies[0], None if state is None else (copies[1], copies[2]), *copies[3:])  # type: ignore[arg-type]
    for name, found, wanted in zip("ch", (c, h), (right[1], right[0]), strict=True):
        off = deviation(found.detach().double(), wanted)
        at_border = deviation(found.detach()[..., 1:-1, 1:-1].double(), wanted[..., 1:-1, 1:-1]) < tolerance
        place = "at the border of the picture only: what lies beyond it?" if at_border else "inside the picture too"
        expect(off < tolerance, f"{call}: the new {name} is off by up to {off:.2g}, {place}")
    expect(
        h.requires_grad and c.requires_grad, f"{call} has lost the graph; gradients should flow to all that is given"
    )
    backwards = [torch.sin(torch.arange(h.numel(), dtype=x.dtype) + shift).view(h.shape) for shift in (0, 1)]
    found_all = gradient_of((h, c), leaves, backwards)
    right_all = gradient_of(right, copies, [back.double() for back in backwards])
    for name, gradient, truth in zip([n for n, part in zip(names, leaves, strict=True) if part is not None],
                                     found_all, right_all, strict=True):  # fmt: skip
        assert truth is not None
        expect(gradient is not None, f"{call} is right, and no gradient comes back to {name}")
        assert gradient is not None
        off = deviation(gradient.double(), truth)
        expect(off < 100 * tolerance, f"{call} is right, and the gradient of {name} is off by up to {off:.2g}")


def gradient_of(
    outputs: State, leaves: list[torch.Tensor | None], backwards: list[torch.Tensor]
) -> list[torch.Tensor | None]:
    total = sum(((part * back).sum() for part, back in zip(outputs, backwards, strict=True)), torch.zeros(()))
    return list(torch.autograd.grad(total, [x for x in leaves if x is not None], allow_unused=True))


def expect_walk(answer: Any, pictures: list[torch.Tensor], weights: Weights) -> None:
    """Four steps, each from the state of the one before."""
    found: State | None = None
    right: State | None = None
    for number, x in enumerate(pictures, start=1):
        found, right = answer.conv_lstm_step(x, found, *weights), by_rows(x, right, *weights)
        assert found is not None
        for name, part, wanted in zip("hc", found, right, strict=True):
            off = deviation(part, wanted)
            expect(
                off < 1e-7,
                f"after picture {number} of {len(pictures)}, begun without a state, {name} is off by {off:.2g}",
            )


def written(slip: str) -> dict[str, object]:
    """A right answer, but for one slip of the pen."""

    def conv_lstm_step(
        x: torch.Tensor,
        state: State | None,
        weight_ih: torch.Tensor,
        weight_hh: torch.Tensor,
        bias_ih: torch.Tensor | None = None,
        bias_hh: torch.Tensor | None = None,
    ) -> State:
        if state is None:
            h = c = x.new_zeros(len(x), weight_hh.shape[1], *x.shape[2:])
            if slip == "ones":
                h = h + 1
        else:
            h, c = state
        if slip == "wrap":
            reach = weight_ih.shape[-1] // 2
            around = torch.nn.functional.pad(x, (reach,) * 4, mode="circular") if reach else x
            from_input = conv2d(around, weight_ih, bias_ih)
        else:
            from_input = conv2d(x, weight_ih, bias_ih, padding=weight_ih.shape[-1] // 2)
        second = bias_ih if slip == "one bias twice" else bias_hh
        from_state = conv2d(h, weight_hh, second, padding=weight_hh.shape[-1] // 2)
        i, f, g, o = (from_input + from_state).chunk(4, dim=1)
        if slip == "order":
            i, o, f, g = i, f, g, o
        old = c.detach() if slip == "detach" else c
        if slip == "in place":
            with torch.no_grad():
                c.mul_(0.5)
        c = f.sigmoid() * old + i.sigmoid() * (g.sigmoid() if slip == "sigmoid" else g.tanh())
        shown_c = old if slip == "old" else c
        h = o.sigmoid() * (shown_c if slip == "no tanh" else shown_c.tanh())
        return (c, h) if slip == "swapped" else (h, c)

    return {"conv_lstm_step": conv_lstm_step}


WRONG = {
    "stacks the gates as ONNX does": (written("order"), "in PyTorch's order"),
    "squeezes the candidate with sigmoid": (written("sigmoid"), "is not nn.LSTMCell"),
    "shows the old memory": (written("old"), "tanh of the new c shown"),
    "shows the memory without tanh": (written("no tanh"), "tanh of the new c shown"),
    "returns c first": (written("swapped"), "returned c before h"),
    "takes the opposite border for the neighbour": (written("wrap"), "at the border of the picture only"),
    "begins with ones": (written("ones"), "no state yet"),
    "uses bias_ih twice": (written("one bias twice"), "is not nn.LSTMCell"),
    "cuts the memory from the graph": (written("detach"), "no gradient comes back to c"),
    "changes the old memory": (written("in place"), "changed c; the step before"),
}
