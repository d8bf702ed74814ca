"""How much one line may ask for. Everything is checked before it is allocated or computed."""

import math
from collections.abc import Sequence

from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, many
from shared.units import bytes_text

MAX_CHARACTERS = 2_000  # of a line
MAX_DEPTH = 40  # operations inside one another; the evaluator calls itself as often
MAX_INTEGER = 2**63 - 1  # of int64
MAX_AXES = 8
MAX_ELEMENTS = 1_000_000  # of a tensor, whether a result or in between
MAX_BYTES = 64 * 2**20  # variables, what grad keeps of their past, and all that one line makes
MAX_WORK = 20_000_000  # elements written and products added by one line: some tens of milliseconds
MAX_TAPE = 1_000  # operations between the oldest tensor that is still needed and the newest
BYTES_PER_ELEMENT = 8  # of the widest type here; what is foreseen is never less than what is used


class Budget:
    """What one line has asked for so far; `held_bytes` is what the variables occupy before it."""

    def __init__(self, held_bytes: int = 0) -> None:
        self.held_bytes, self.new_bytes, self.work = held_bytes, 0, 0

    def reserve(self, shape: Sequence[int], *, scratch: Sequence[int] = (), work: int = 0) -> None:
        """Books a tensor of `shape`, further tensors of `scratch` elements, and `work` steps; raises Mistake."""
        if len(shape) > MAX_AXES:
            raise Mistake(f"this would have {len(shape)} axes; the calculator stops at {MAX_AXES}")
        # An axis of 0 counts as 1: strides are computed from the other axes, and huge ones overflow in PyTorch.
        sizes = [math.prod(size or 1 for size in shape), *scratch]
        if max(sizes) > MAX_ELEMENTS:
            where = "" if sizes[0] > MAX_ELEMENTS else " on the way to its result"
            raise Mistake(f"this would take {many(max(sizes))} elements{where}; the calculator stops at {MAX_ELEMENTS:,} "
                          f"({bytes_text(MAX_ELEMENTS * BYTES_PER_ELEMENT)})")  # fmt: skip
        asked = BYTES_PER_ELEMENT * sum(sizes)
        if self.held_bytes + self.new_bytes + asked > MAX_BYTES:
            held = f"{bytes_text(self.held_bytes)} that the variables hold" if self.held_bytes else ""
            new = f"{bytes_text(self.new_bytes)} of this line" if self.new_bytes else ""
            raise Mistake(f"{bytes_text(asked)} more would not fit beside the {' and the '.join(filter(None, (held, new)))}; "
                          f"the limit is {bytes_text(MAX_BYTES)} in all, and `clear` frees the variables")  # fmt: skip
        steps = max(work, sum(sizes))
        if self.work + steps > MAX_WORK:
            raise Mistake(f"this line would take {many(self.work + steps)} elementary steps; the calculator stops at "
                          f"{MAX_WORK:,}")  # fmt: skip
        self.new_bytes += asked
        self.work += steps
