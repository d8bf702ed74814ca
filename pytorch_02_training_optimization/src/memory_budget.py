"""Will this training fit into memory, and if not, which cure costs the least?

You will predict what a training needs, count it to the byte, and make it smaller. First the two accounts: what each
parameter costs (budget/states.py) and what each sample costs (budget/anatomy.py), and at which moment they meet. Then
out of memory: what the message says (budget/messages.py), what the error keeps alive (budget/errors.py), and the largest
batch, found and predicted (budget/search.py). Then the cures, each written out and counted: parts, computing again
(budget/checkpoints.py), fewer bits (budget/packing.py), other memories (budget/offload.py), gradients that never meet
(budget/lean.py). At the end all of them in one picture, memory against time, and a plan for models that are not here.

    python src/memory_budget.py            about 40 seconds
    python src/memory_budget.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.budget.anatomy import show_activations, show_step
from pytorch_02_training_optimization.src.budget.checkpoints import show_recompute, show_selective
from pytorch_02_training_optimization.src.budget.errors import show_errors
from pytorch_02_training_optimization.src.budget.lean import show_lean
from pytorch_02_training_optimization.src.budget.messages import show_message
from pytorch_02_training_optimization.src.budget.offload import show_offload
from pytorch_02_training_optimization.src.budget.packing import show_packing
from pytorch_02_training_optimization.src.budget.plan import show_plan
from pytorch_02_training_optimization.src.budget.search import show_largest_batch, show_parts, show_prediction
from pytorch_02_training_optimization.src.budget.states import show_states
from pytorch_02_training_optimization.src.budget.tradeoff import show_tradeoff
from shared.lesson import Lesson


def main(argv: list[str] | None = None) -> int:
    title = "Where a training's memory goes, the largest batch, and what each way to need less costs."
    with Lesson(__file__, argv, title=title) as lesson:
        show_states(lesson)
        show_activations(lesson)
        show_step(lesson)
        show_message(lesson)
        show_errors(lesson)
        trial, found = show_largest_batch(lesson)
        show_prediction(lesson, trial, found)
        show_parts(lesson)
        show_recompute(lesson)
        show_selective(lesson)
        show_packing(lesson)
        show_offload(lesson)
        show_lean(lesson)
        show_tradeoff(lesson)
        show_plan(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
