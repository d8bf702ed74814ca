"""How do you pick, join and rearrange the numbers of tensors without copying them, and without mixing them up?

You will see every index and every call drawn on tensors of a few numbers, what it does to the axes, and whether the
result is a view or a copy, proved by the address of its memory. The chapters are files of their own in shapes/:
picking, gathering (one number from each row, many to one place), joining, rearranging, axis_order (the right shape with
the numbers in the wrong places) and costs (what a view costs when it is made, and when it is read).

    python src/tensor_shapes.py            about 20 seconds
    python src/tensor_shapes.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_00_tensor_gpu_basics.src.shapes.axis_order import show_axis_order
from pytorch_00_tensor_gpu_basics.src.shapes.costs import show_costs
from pytorch_00_tensor_gpu_basics.src.shapes.gathering import show_gathering
from pytorch_00_tensor_gpu_basics.src.shapes.joining import show_joining
from pytorch_00_tensor_gpu_basics.src.shapes.picking import show_picking
from pytorch_00_tensor_gpu_basics.src.shapes.rearranging import show_rearranging
from shared.lesson import Lesson


def main(argv: list[str] | None = None) -> int:
    title = "How to pick, join and rearrange the numbers of tensors without copying or mixing them up."
    with Lesson(__file__, argv, title=title) as lesson:
        show_picking(lesson)
        show_gathering(lesson)
        show_joining(lesson)
        show_rearranging(lesson)
        show_axis_order(lesson)
        show_costs(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
