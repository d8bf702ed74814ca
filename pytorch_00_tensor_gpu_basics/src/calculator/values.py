"""What the calculator computes with: tensors that remember their past, plans of operations, steps that were taken."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.shapes import Shape

import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64, "bool": torch.bool}
LARGEST_FLOAT32 = torch.finfo(torch.float32).max
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(eq=False, repr=False)  # a long past would not fit into a repr
class Node:
    """A tensor and the operation that made it from `inputs`, which is what grad walks back through.

    Only where the result and an input are floating-point is the past kept; elsewhere there is nothing to differentiate.
    """

    tensor: torch.Tensor
    source: str  # as the learner wrote it
    inputs: tuple["Node", ...] = ()
    compute: Callable[..., torch.Tensor] | None = None
    local: Sequence[str] = ()  # for each input, what it is handed of the slope g that arrives here on the way back
    name: str = ""  # of the variable that it was first assigned to
    work: int = 0
    generation: int = 0  # how long the longest chain of operations behind it is

    @property
    def shape(self) -> Shape:
        return tuple(self.tensor.shape)

    @property
    def is_float(self) -> bool:
        return self.tensor.is_floating_point()

    @property
    def dtype_name(self) -> str:
        return DTYPE_NAMES[self.tensor.dtype]


Number = bool | int | float
Value = Node | Number | str | None | tuple[int, ...] | torch.dtype


@dataclass
class Plan:
    """An operation before it is carried out: what will come out, what it costs, and how to explain it."""

    shape: Shape
    compute: Callable[..., torch.Tensor]  # of the inputs' tensors
    says: str
    inputs: Sequence[Node] = ()
    scratch: Sequence[int] = ()  # elements of further tensors on the way
    work: int = 0  # products added, where these are more than the elements written
    picture: Sequence[str] = ()  # how the shapes meet
    by_hand: Callable[[torch.Tensor], str] | None = None  # one element of the result, computed in the open
    notes: Sequence[str] = ()
    local: Sequence[str] = ()  # for each input: what it is handed of the slope g of the result
    has_slope: bool = True  # False: constant between jumps, so grad cannot look through it
    operands: Sequence["Node | Number"] = ()  # of a sign between two
    sources: Sequence[str] = ()  # these, as the learner wrote them


@dataclass
class Step:
    """An operation that was carried out."""

    kind: str  # the sign or the name of the operation
    source: str
    plan: Plan
    node: Node
    notes: list[str] = field(default_factory=list)


def check_reach(value: Number | None, argument: str) -> None:
    """Raises Mistake for a finite number that PyTorch would have to put into a float32 and cannot."""
    if isinstance(value, float) and LARGEST_FLOAT32 < abs(value) < math.inf:
        raise Mistake(f"{value:g} is beyond 3.4e38, the largest that float32 holds", argument=argument)


def need_float(x: Node, who: str, argument: str = "x") -> None:
    """Raises Mistake unless `x` holds floating-point numbers."""
    if not x.is_float:
        raise Mistake(f"{who} wants floating-point numbers, and this is {x.dtype_name}", argument=argument,
                      repairs=["{0}.float()"])  # fmt: skip


def need_numbers(x: Node, who: str, argument: str = "x") -> None:
    """Raises Mistake for a mask."""
    if x.tensor.dtype == torch.bool:
        raise Mistake(f"{who} is not defined for bool, yes and no; make it 1 and 0 first", argument=argument,
                      repairs=["{0}.long()" if argument in ("x", "left") else "{1}.long()"])  # fmt: skip
