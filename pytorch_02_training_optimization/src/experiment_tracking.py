"""What must a training write down, so that you can trust, compare and repeat it months later?

Eight kinds of things go to TensorBoard and are read back from its files, bit by bit. You will see what a call costs,
which one makes a GPU wait, what is left of a log after a kill, how Weights & Biases and MLflow fit behind the same two
methods, what smoothing invents and what the horizontal axis hides. Then eight runs are compared from their folders, and
the best one is trained again from its record alone, to the same bits. The chapters are in tracking/.

    python src/experiment_tracking.py            about 25 seconds
    python src/experiment_tracking.py --quick    the same path with tiny sizes, a few seconds
    tensorboard --logdir runs                    what it leaves: curves, histograms, images, graph, points
"""

import itertools
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.letters.rows import load_letters
from pytorch_02_training_optimization.src.tracking.boards import show_histograms, show_media, show_structure
from pytorch_02_training_optimization.src.tracking.comparison import show_comparison
from pytorch_02_training_optimization.src.tracking.costs import show_costs, show_waits
from pytorch_02_training_optimization.src.tracking.curves import show_axes, show_smoothing
from pytorch_02_training_optimization.src.tracking.event_files import new_board, read_board, show_scalars
from pytorch_02_training_optimization.src.tracking.killed import show_journal
from pytorch_02_training_optimization.src.tracking.records import ROOT, code_state, show_record, show_reproduction
from pytorch_02_training_optimization.src.tracking.task import Task
from pytorch_02_training_optimization.src.tracking.trackers import show_trackers
from shared.errors import CannotRun
from shared.lesson import Lesson

# The folder of a run


def new_run_folder(parent: Path, now: datetime) -> Path:
    """parent/<time>, and a number behind it where two runs begin in the same second. Raises CannotRun."""
    name, number = f"{now:%Y-%m-%d_%H-%M-%S}", 1
    while True:
        folder = parent / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # asked by making it: of two processes that look first, both would see nothing
            number += 1
        except OSError as error:
            raise CannotRun(
                f"cannot write to {parent} ({error.strerror}); choose another folder with --out DIR"
            ) from None


def one_folder_for_all_runs(folder: Path, runs: int, steps: int) -> None:
    """The mistake: a second run writes beside the first, and both become one curve."""
    for run in range(runs):
        board = new_board(folder)
        for step in range(steps):
            board.add_scalar("train/loss", run + 1 / (step + 1), step)
        board.close()


def show_folders(lesson: Lesson, parent: Path, started: datetime) -> Path:
    """The folder in which this lesson leaves what TensorBoard can show."""
    lesson.section(
        "A run is a folder",
        "TensorBoard knows nothing of runs: each folder with an event file is one, and its path is its name. So make a new "
        "folder for each run, runs/SCRIPT/<time>/, with what varies as names below it: sorted by name they are sorted by time, "
        "and `tensorboard --logdir runs` finds all.",
    )
    folder = new_run_folder(parent, started)
    with tempfile.TemporaryDirectory() as name:
        first, second, third = (new_run_folder(Path(name) / "same_second", started) for _ in range(3))
        lesson.check("two runs of one second get two folders", len({first, second, third}) == 3,
                     ", ".join(path.name[-11:] for path in (first, second, third)))  # fmt: skip
        late = new_run_folder(Path(name) / "same_second", datetime(2100, 1, 1, tzinfo=UTC))
        ordered = sorted(path.name for path in (late, first))
        lesson.check(
            "sorted by name is sorted by time", ordered == [first.name, late.name], "year first, zeros in front"
        )
        one_folder_for_all_runs(Path(name) / "shared", runs=2, steps=5)
        points = [(event.step, event.value) for event in read_board(Path(name) / "shared").Scalars("train/loss")]
        back = sum(b[0] <= a[0] for a, b in itertools.pairwise(points))
        lesson.check("two runs in one folder are one curve, with a jump", len(points) == 10 and back == 1,
                     f"{len(points)} points, the step goes back once")  # fmt: skip
        board = new_board(Path(name) / "several")
        board.add_scalars("loss", {"train": 1.0, "validation": 1.2}, 0)
        board.close()
        made = sorted(path.name for path in (Path(name) / "several").iterdir() if path.is_dir())
        lesson.check(
            "add_scalars makes a run for each curve", made == ["loss_train", "loss_validation"], ", ".join(made)
        )
    lesson.shows(
        f"this run's folder is {'/'.join(folder.parts[-3:])}. Give tags a prefix, train/loss and validation/loss: what stands "
        f"before the stroke groups the charts. Two curves in one chart come from two runs with the same tag; add_scalars "
        f"buys that with {len(made)} folders and {len(made) + 1} open files, so use it rarely."
    )
    return folder


def main(argv: list[str] | None = None) -> int:
    title = "Experiment tracking: what to log, what it costs, and how to compare and repeat runs."
    with Lesson(__file__, argv, title=title) as lesson:
        out = lesson.options.out
        parent = out / lesson.name / "runs" if out else lesson.project / "runs" / lesson.name
        count, held_out = lesson.pick(full=20_000, cpu=4000, quick=1500), lesson.pick(full=4000, cpu=1000, quick=300)
        folder = show_folders(lesson, parent, datetime.now(UTC))
        show_scalars(lesson)
        everything = folder / "everything"
        board = new_board(everything)
        show_histograms(lesson, board, everything)
        show_media(lesson, board, everything)
        show_structure(lesson, board, everything)
        board.close()
        show_costs(lesson)
        show_waits(lesson)
        show_journal(lesson)
        letters = load_letters(count + held_out, lesson.device)
        task, code = Task(letters[:count], letters[count:]), code_state(ROOT)
        show_trackers(lesson, task)
        show_record(lesson, task, code)
        best, weights = show_comparison(lesson, folder, task, code)
        show_reproduction(lesson, best, weights, task, code)
        show_smoothing(lesson)
        show_axes(lesson, task)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
