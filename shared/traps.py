"""What the checks of practice questions have in common: guards that speak to a learner, counts that need no clock.

`call` is always the call as the learner would type it, so that a refused answer can be tried again at once.
Type guards come first in a check: an answer that returns nothing hears what to return, and never reads about an
attribute that None does not have.
"""

import inspect
import math
import sys
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import FrameType
from typing import Any

from shared.dispatch import Watcher, name_of, tensors_in
from shared.practice import expect

import torch


def shown(value: object) -> str:
    """`value` in a few words: a tensor by shape and dtype, anything else as Python prints it, at most 60 characters."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def expect_bool(value: object, call: str) -> None:
    """Raises Wrong unless `value` is True or False."""
    expect(isinstance(value, bool), f"{call} returned {shown(value)}; return True or False")


def expect_integer(value: object, call: str, wanted: str) -> None:
    """Raises Wrong unless `value` is a whole number; `wanted` completes the sentence "return …"."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    expect(is_integer, f"{call} returned {shown(value)}; return {wanted}")


def expect_number(value: object, call: str, wanted: str) -> None:
    """Raises Wrong unless `value` is a finite number of Python; `wanted` completes the sentence "return …"."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    expect(is_number, f"{call} returned {shown(value)}; return {wanted}")
    expect(math.isfinite(value), f"{call} returned {value}, which is no finite number")  # type: ignore[arg-type]


def expect_tensor(value: object, call: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises Wrong unless `value` is a tensor of that shape and dtype."""
    wanted = torch.empty(shape, dtype=dtype, device="meta")
    is_right = isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (wanted.shape, wanted.dtype)
    expect(is_right, f"{call} returned {shown(value)}; return {shown(wanted)}")


def expect_close(value: torch.Tensor, oracle: torch.Tensor, call: str, tolerance: float = 0.0) -> None:
    """Raises Wrong for the first entry further than `tolerance` (relative) from the oracle's; shapes must be equal."""
    value, oracle = value.detach().cpu().double(), oracle.detach().cpu().double()  # MPS has no float64
    apart = ~torch.isclose(value, oracle, rtol=tolerance, atol=0.0, equal_nan=True)
    if apart.any():
        index = tuple(apart.nonzero()[0].tolist())
        place = f"[{', '.join(map(str, index))}]" if index else ""
        expect(False, f"{call}{place} is {value[index].item():.6g} and should be {oracle[index].item():.6g}")


def expect_predictions(predictions: object, name: str, expressions: Collection[str], wanted: str) -> None:
    """Raises Wrong unless `predictions` is a dict with one answer, no longer None, for each of the expressions."""
    is_complete = isinstance(predictions, dict) and predictions.keys() == set(expressions)
    expect(is_complete, f"{name} is {shown(predictions)}; keep the dict with its {len(expressions)} expressions")
    assert isinstance(predictions, dict)
    for expression, prediction in predictions.items():
        expect(prediction is not None, f"{name}: `{expression}` is still None; write {wanted}")


class _Recorder(Watcher):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        self.names.append(name_of(operation))
        for x in tensors_in(result):
            if x.layout is not torch.strided:  # a sparse tensor has no storage of its own
                continue
            self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())


def operations(function: Callable[..., object], *args: object) -> list[str]:
    """The torch operations that `function(*args)` sends to the device, in order, views and .item() among them.

    Each costs Python and PyTorch microseconds before the device starts, whatever the tensor's size.
    """
    recorder = _Recorder()
    with recorder:
        function(*args)
    return recorder.names


def largest_made(function: Callable[..., object], *args: object) -> int:
    """How many numbers the largest tensor has that an operation of `function(*args)` returns; a view is as large as
    the storage that it looks at.
    """
    recorder = _Recorder()
    with recorder:
        function(*args)
    return recorder.largest


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Inside `with saved:` every tensor that autograd saves is followed; it lives as long as a graph that needs it."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[_Saved]] = []
        super().__init__(self._pack, lambda saved: saved.tensor)

    def _pack(self, tensor: torch.Tensor) -> "_Saved":
        saved = _Saved(tensor.detach())  # a saved result would hold the graph that holds it
        self._seen.append(weakref.ref(saved))
        return saved

    def __len__(self) -> int:
        """How many were saved so far."""
        return len(self._seen)

    def alive(self) -> int:
        """How many of them are still in memory."""
        return sum(saved() is not None for saved in self._seen)


@dataclass(eq=False)
class _Saved:
    tensor: torch.Tensor


def python_steps(function: Callable[..., object], *args: object) -> int:
    """How many lines Python runs of the file that `function` comes from, in one call; loops count each turn."""
    code = getattr(inspect.unwrap(function), "__code__", None)  # a decorator's own lines lie in another file
    steps = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        if code is None or frame.f_code.co_filename != code.co_filename:
            return None
        steps += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return steps
