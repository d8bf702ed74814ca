"""What does this machine's CPU or GPU really do, why, and how far is that from its physical limit?

Ten short experiments, each in a file of its own in benchmarks/, in the order of the story: what the machine is; how
to time it without fooling yourself; what one call costs; how fast memory is; how fast arithmetic is, by size, type
and shape; what it costs to bring data to the GPU; all of it in one picture, the roofline; and what is left of the
speed after 20 seconds of load. Without a GPU the same experiments run on the CPU.

    python src/gpu_benchmarks.py                        everything, under 90 seconds
    python src/gpu_benchmarks.py --quick                the same path with tiny sizes, a few seconds
    python src/gpu_benchmarks.py --only memory roofline
    python src/gpu_benchmarks.py --compare FILE         beside another machine's result.json
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import show_device_card
from pytorch_00_tensor_gpu_basics.src.benchmarks.compare import compare_with, read_other
from pytorch_00_tensor_gpu_basics.src.benchmarks.launches import measure_launches
from pytorch_00_tensor_gpu_basics.src.benchmarks.matmul import measure_products
from pytorch_00_tensor_gpu_basics.src.benchmarks.memory import measure_memory
from pytorch_00_tensor_gpu_basics.src.benchmarks.precision import measure_precisions
from pytorch_00_tensor_gpu_basics.src.benchmarks.roofline import draw_roofline
from pytorch_00_tensor_gpu_basics.src.benchmarks.shapes import measure_shapes
from pytorch_00_tensor_gpu_basics.src.benchmarks.sustained import measure_sustained
from pytorch_00_tensor_gpu_basics.src.benchmarks.timing_traps import show_timing_traps
from pytorch_00_tensor_gpu_basics.src.benchmarks.transfers import measure_transfers
from shared.lesson import Lesson

EXPERIMENTS = {
    "card": show_device_card,
    "timing": show_timing_traps,
    "launches": measure_launches,
    "memory": measure_memory,
    "matmul": measure_products,
    "precision": measure_precisions,
    "shapes": measure_shapes,
    "transfers": measure_transfers,
    "roofline": draw_roofline,
    "sustained": measure_sustained,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="another machine's result.json, beside this one")


def main(argv: list[str] | None = None) -> int:
    title = "What this machine's CPU or GPU really does, and how far that is from its limit."
    with Lesson(__file__, argv, title=title, add_options=add_options) as lesson:
        other = read_other(lesson.options.compare) if lesson.options.compare else None  # before a minute of measuring
        for name, experiment in EXPERIMENTS.items():
            if lesson.options.only is None or name in lesson.options.only:
                experiment(lesson)
        if other:
            compare_with(lesson, other)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
