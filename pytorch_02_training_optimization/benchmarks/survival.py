"""Does a training come out the same when it is killed again and again, and does it notice a damaged checkpoint?

One small training is run undisturbed, and then by a row of processes of which each is killed: at a random moment, or
while it saves. The weights must have the same bits in the end, and the loss the same value at each step. Then its
checkpoint is damaged a thousand times, and the disk is full in the middle of a save.

    python benchmarks/survival.py            100 kills, about five minutes
    python benchmarks/survival.py --quick    20 kills
"""

import hashlib
import io
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src import train
from pytorch_02_training_optimization.src.training.log import read_metrics
from shared import checkpoints
from shared.errors import CannotRun
from shared.lesson import Lesson
from shared.units import seconds_text

import torch

# Small, so that a hundred lives fit into minutes; all that has a state is switched on.
SAVE_EVERY = 4
SETTINGS = ("--quick", "--no-plots", "--device", "cpu", "--model", "mlp", "--width", "4", "--train-images", "460",
            "--epochs", "3", "--batch-size", "24", "--accumulate", "2", "--dropout", "0.2", "--ema", "0.9", "--augment",
            "--save-every", str(SAVE_EVERY), "--log-every", "1", "--precision", "fp32", "--name", "killed")  # fmt: skip
STEPS = 3 * (414 // 24)
PATIENCE_S = 120.0


@dataclass(frozen=True)
class End:
    """How a process ended: its exit code, or minus the signal that killed it; and what it had to say."""

    code: int
    said: str


class Life:
    """A training in a process of its own, forked from this one: it begins in milliseconds, with torch imported."""

    def __init__(self, out: Path, *options: str, before: Callable[[], object] | None = None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self._said = out, out / "said.txt"
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                page = io.StringIO()
                with self._said.open("w") as said, redirect_stdout(page), redirect_stderr(said):
                    if before:
                        before()
                    code = train.main([*SETTINGS, "--out", str(out), *options])
                    said.writelines(line for line in page.getvalue().splitlines(True) if line.startswith("✗"))
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                os._exit(code)

    def has_ended(self) -> bool:
        """Without reaping it: the next wait() still tells how."""
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> End:
        deadline = time.monotonic() + PATIENCE_S
        while not self.has_ended():
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
            time.sleep(0.002)
        _, status = os.waitpid(self.pid, 0)
        return End(os.waitstatus_to_exitcode(status), self._said.read_text().strip())


def run_folder(out: Path) -> Path:
    return out / "train" / "runs" / "killed"


def checkpoint_folder(out: Path) -> Path:
    return run_folder(out) / "checkpoints"


def result_of(out: Path) -> tuple[str, dict[int, float]]:
    """Digest of the last checkpoint's model and optimizer, and the loss of each step."""
    state = checkpoints.load(checkpoint_folder(out)).state
    digest = hashlib.sha256()

    def take(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                take(value[key])

    for part in ("model", "optimizers", "average"):
        take(state[part])
    losses = {line["step"]: line["loss"] for line in read_metrics(run_folder(out)) if line["kind"] == "train"}
    return digest.hexdigest(), losses


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="survival-") as folder:
        yield Path(folder)


def undisturbed(out: Path, *options: str) -> tuple[str, dict[int, float], float]:
    start_s = time.perf_counter()
    end = Life(out, *options).wait()
    if end.code != 0:
        raise CannotRun(
            f"the undisturbed training ended with {end.code}: {end.said}; run train.py by itself to see why"
        )
    return *result_of(out), time.perf_counter() - start_s


def kill_at_random(life: Life, within_s: float) -> str:
    """SIGKILL at a moment of a life that lasts about `within_s`."""
    deadline = time.monotonic() + random.uniform(0, within_s)
    while time.monotonic() < deadline and not life.has_ended():
        time.sleep(0.001)
    return "at a random moment"


def kill_while_saving(life: Life, within_s: float) -> str:
    """SIGKILL when a half-written checkpoint is in the folder; at a random one of the saves."""
    left = random.randint(1, 3)
    folder, seen = checkpoint_folder(life.out), set[str]()
    while not life.has_ended():
        with suppress(FileNotFoundError):
            new = {entry.name for entry in os.scandir(folder) if entry.name.startswith(".new-")} - seen
            if new:
                seen |= new
                left -= 1
                if left == 0:
                    time.sleep(random.uniform(0, 0.004))
                    return "while it saved"
    return "at its end"


def show_kills(lesson: Lesson) -> None:
    kills = lesson.pick(full=100, quick=20)
    lesson.section(
        "Killed at any moment",
        f"SIGKILL cannot be caught: the process is gone between two instructions. {kills} such ends, a fifth of them aimed "
        f"into the writing of a checkpoint, and after each the training goes on with --resume. It saves every "
        f"{SAVE_EVERY} steps, so that many steps may have to be done again, and no more.",
    )
    with scratch() as folder:
        expected, losses, whole_s = undisturbed(folder / "whole")
        out = folder / "killed"
        moments: Counter[str] = Counter()
        lost, unreadable, trainings = [], [], []
        for number in lesson.progress(range(kills), "kills"):
            life = Life(out, "--resume")
            moment = (kill_while_saving if number % 5 == 4 else kill_at_random)(life, 0.4 * whole_s)
            life.signal(signal.SIGKILL)
            end = life.wait()
            moments[moment if end.code == -signal.SIGKILL else "too late, it had ended"] += 1
            written = [line["step"] for line in read_metrics(run_folder(out)) if line["kind"] == "train"]
            step = 0
            try:
                if last := checkpoints.latest(checkpoint_folder(out)):
                    step = checkpoints.load(last).step
                lost.append(max([step, *written]) - step)
            except CannotRun as error:
                unreadable.append(str(error))
            if end.code == 0:  # through, in spite of all: another training takes the next kills
                trainings.append(result_of(out))
                shutil.rmtree(out)
        end = Life(out, "--resume").wait()
        if end.code == 0:
            trainings.append(result_of(out))
    lesson.table([{"killed": moment, "times": count} for moment, count in moments.most_common()])
    lesson.check("no checkpoint named by `last` is unreadable", not unreadable, f"{len(unreadable)} of {kills} kills")
    lesson.check(
        "a kill loses one save interval at most", max(lost) <= SAVE_EVERY,
        f"{max(lost)} steps at most, {sum(lost) / len(lost):.1f} on average",
    )  # fmt: skip
    lesson.check("the last life ends well", end.code == 0, f"exit code {end.code} {end.said}".strip())
    lesson.check(
        "the weights have the bits of the undisturbed run",
        trainings and all(digest == expected for digest, _ in trainings),
        f"{sum(digest == expected for digest, _ in trainings)} of {len(trainings)}, SHA-256 {expected[:16]}",
    )
    lesson.check(
        "and each step has the same loss",
        len(losses) == STEPS and all(found == losses for _, found in trainings),
        f"{STEPS} steps, all bits",
    )
    lives = f"a training of {STEPS} steps" if len(trainings) == 1 else f"{len(trainings)} trainings of {STEPS} steps"
    lesson.shows(
        f"{moments.total()} kills hit {lives}, {seconds_text(whole_s)} long undisturbed, and nothing of it can be found "
        f"in the result; {sum(lost)} steps were computed twice."
    )


# A stop on purpose


def show_stops(lesson: Lesson) -> None:
    lesson.section(
        "Stopped and resumed",
        "SIGTERM is what a cluster sends before it takes the machine away, and Ctrl-C what a person does. Both end the "
        "step, write a checkpoint in the middle of the epoch and exit, 143 and 130. The resumed run must not notice, "
        "neither in its own batches nor in those that worker processes prepare.",
    )
    rows, equal, codes = [], [], []
    with scratch() as folder:
        for workers in ("0", "2"):
            options = ("--workers", workers)
            expected = undisturbed(folder / f"whole-{workers}", *options)
            for stops in lesson.pick(full=(1, 2, 5), quick=(2,)):
                out = folder / f"stopped-{workers}-{stops}"
                goals = sorted(random.sample(range(2, STEPS - 1), stops))
                for count, goal in enumerate(goals):
                    number = (signal.SIGTERM, signal.SIGINT)[count % 2]
                    life = Life(out, "--resume", *options, before=stop_at(goal, number))
                    end = life.wait()
                    codes.append((end.code, 128 + number, end.said))
                end = Life(out, "--resume", *options).wait()
                same = end.code == 0 and result_of(out) == expected[:2]
                equal.append(same)
                rows.append({"workers": int(workers), "stops": stops, "before steps": ", ".join(map(str, goals)),
                             "same bits": "yes" if same else f"no: {end.code} {end.said}"})  # fmt: skip
    lesson.table(rows)
    lesson.check(
        "exit codes are 143 and 130, and the message says how to go on",
        all(code == wanted and "--resume --name killed" in said for code, wanted, said in codes),
        f"{len(codes)} stops",
    )
    lesson.check("weights, averages and losses keep their bits", all(equal), f"{sum(equal)} of {len(equal)} trainings")
    lesson.shows(
        f"{len(codes)} stops left no trace in {len(equal)} trainings: with dropout, augmentation, averaged weights and two "
        "pieces to a batch, everything that is random comes back, or follows from the position."
    )


def stop_at(goal: int, number: int) -> Callable[[], None]:
    """Makes the process send itself a signal in the middle of step `goal`."""

    def patch() -> None:
        take_step = train.Training.take_step

        def counted(self: Any, pieces: Any) -> Any:
            if self.step + 1 == goal:
                os.kill(os.getpid(), number)
            return take_step(self, pieces)

        train.Training.take_step = counted  # type: ignore[method-assign]

    return patch


# A damaged checkpoint, and a full disk


def show_damage(lesson: Lesson) -> None:
    flips, cuts, swaps = lesson.pick(full=(1000, 200, 50), quick=(100, 40, 20))
    lesson.section(
        "Bits that flip, files that end early",
        "torch.load reads a checkpoint with a flipped bit and returns wrong weights without a word, because its checksums "
        "are not looked at. Here the SHA-256 of each file stands in a manifest, and one of the manifest in the pointer "
        "`last`, and all are verified before anything is parsed.",
    )
    with scratch() as folder:
        undisturbed(folder)
        checkpoint = checkpoints.latest(checkpoint_folder(folder))
        assert checkpoint is not None
        files = [*sorted(checkpoint.iterdir()), checkpoint.parent / "last"]
        found: Counter[str] = Counter()
        silent: list[str] = []
        for kind, count, damage in (("a flipped bit", flips, flip_a_bit), ("an early end", cuts, cut_short),
                                    ("a missing or swapped file", swaps, swap_or_remove)):  # fmt: skip
            for _ in range(count):
                file = random.choice(files)
                content = file.read_bytes()
                damage(file, files)
                try:
                    checkpoints.load(checkpoint_folder(folder))
                    silent.append(f"{kind} in {file.name}")
                except CannotRun as error:
                    found[kind] += file.name in str(error) or "last" in str(error)
                file.write_bytes(content)
        damaged = checkpoint / "state.pt"
        flip_a_bit(damaged, files)
        refused = Life(folder, "--resume").wait()
        allowed = Life(folder, "--resume", "--fallback").wait()
    rows = [{"damage": kind, "times": count, "found and named": found[kind]} for kind, count in
            (("a flipped bit", flips), ("an early end", cuts), ("a missing or swapped file", swaps))]  # fmt: skip
    lesson.table(rows)
    lesson.check(
        "each damage is found, and its file named", found.total() == flips + cuts + swaps,
        f"{found.total()} of {flips + cuts + swaps}; loaded all the same: {len(silent)} {' '.join(silent[:1])}",
    )  # fmt: skip
    lesson.check(
        "train --resume refuses it in one line, exit code 2",
        refused.code == 2 and "state.pt" in refused.said and len(refused.said.splitlines()) == 1,
        refused.said.replace(str(folder), "..."),
    )
    lesson.check(
        "only --fallback goes on from the one before", allowed.code == 0, f"exit code {allowed.code} {allowed.said}"
    )
    lesson.shows(
        f"{found.total()} of {flips + cuts + swaps} damages were found before a single weight was read. Going on from an "
        "older checkpoint is a decision, so it waits for one."
    )


def flip_a_bit(file: Path, files: list[Path]) -> None:
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def cut_short(file: Path, files: list[Path]) -> None:
    file.write_bytes(file.read_bytes()[: random.randrange(file.stat().st_size)])


def swap_or_remove(file: Path, files: list[Path]) -> None:
    others = [other for other in files if other != file]
    # A missing `last` is no damage: the newest checkpoint counts then, as after a kill before the first was complete.
    if file.name != "last" and random.random() < 0.5:
        file.unlink()
    else:
        file.write_bytes(random.choice(others).read_bytes())


def show_full_disk(lesson: Lesson) -> None:
    lesson.section(
        "A disk that is full in the middle of a save",
        "The new checkpoint is written under another name and gets its own when it is whole. So a disk that fills up while "
        "it is written takes nothing away: the run ends, and the checkpoint before is still the last.",
    )
    with scratch() as folder:
        undisturbed(folder / "whole")
        size = max(file.stat().st_size for file in checkpoint_folder(folder / "whole").glob("step-*/state.pt"))
        out = folder / "full"
        first = Life(out, before=stop_at(STEPS // 2, signal.SIGTERM)).wait()
        before = checkpoints.latest(checkpoint_folder(out))
        end = Life(out, "--resume", before=lambda: limit_file_size(size // 2)).wait()
        after = checkpoints.latest(checkpoint_folder(out))
        loads = after is not None and checkpoints.load(after).step == STEPS // 2
        again = Life(out, "--resume").wait()
        same = again.code == 0 and result_of(out) == undisturbed(folder / "again")[:2]
    lesson.drawing("\n".join(wrapped(end.said.replace(str(folder), "..."), 90)))
    lesson.check("the exit code is 2, with one line", first.code == 143 and end.code == 2, f"{end.code}")
    lesson.check(
        "the line says what happened and what to do",
        "could not be saved" in end.said and "free some space" in end.said and len(end.said.splitlines()) == 1,
        f"{len(end.said)} characters",
    )
    lesson.check("`last` is the checkpoint of before, and loads", loads and after == before, f"step {STEPS // 2}")
    lesson.check("with room again, it goes on to the same bits", same, f"exit code {again.code}")
    lesson.shows(
        f"a state of {size:,} bytes met the end of the disk at {size // 2:,}; the run lost the steps since its last "
        "checkpoint, and the user a minute."
    )


# Two processes


def together(out: Path, *options: str) -> subprocess.Popen[str]:
    """The same training by two processes of torchrun, on a port that is free, restarted when one of them dies."""
    out.mkdir(parents=True, exist_ok=True)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=9",
             "--monitor-interval=0.1", str(Path(train.__file__))]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (out / "said.txt").open("w") as said:
        return subprocess.Popen([*start, *SETTINGS, "--out", str(out), *options], env=environment, stdout=said,
                                stderr=said, text=True, start_new_session=True)  # fmt: skip


def end_of(process: "subprocess.Popen[str]") -> int:
    """Its exit code; where it does not end, all that it has started is killed."""
    try:
        return process.wait(5 * PATIENCE_S)  # each restart imports PyTorch twice more
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """The process numbers of its children (Linux)."""
    with suppress(FileNotFoundError):
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def kill_one_at(process: "subprocess.Popen[str]", out: Path, goal: int) -> int | None:
    """SIGKILL for one of two workers when step `goal` is in the log; the step that it was then."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        steps = [line["step"] for line in read_metrics(run_folder(out)) if line["kind"] == "train"]
        workers = workers_of(process)
        if steps and steps[-1] >= goal and len(workers) == 2:
            os.kill(random.choice(workers), signal.SIGKILL)
            return steps[-1]
        time.sleep(0.005)
    return None


def show_two_processes(lesson: Lesson) -> None:
    kills = lesson.pick(full=5, quick=1)
    lesson.section(
        "One of two processes dies",
        "torchrun watches the processes of a training. When one is gone it ends the others, which wait for it in vain, and "
        "starts all again; they find the last checkpoint. The batches are the same for one process and for two, each "
        "computes half of every batch, so even the number of processes must not show in the weights.",
    )
    plain = ("--dropout", "0", "--accumulate", "1")  # the two would draw other zeros than one
    with scratch() as folder:
        single = Life(folder / "one", *plain)
        pair = together(folder / "two", *plain)
        codes = [single.wait().code, end_of(pair)]
        one, two = (checkpoints.load(checkpoint_folder(folder / name)).state["model"] for name in ("one", "two"))
        apart = max((one[name] - two[name]).abs().max().item() for name in one)
        whole = together(folder / "whole")
        codes.append(end_of(whole))
        out = folder / "killed"
        process = together(out)
        hit = []
        for goal in sorted(random.sample(range(2, STEPS - 3), kills)):
            step = kill_one_at(process, out, goal)
            if step is not None:
                hit.append(step)
        codes.append(end_of(process))
        (_, expected), (digest, losses) = result_of(folder / "whole"), result_of(out)
        same_bits = digest == result_of(folder / "whole")[0]
    lesson.items({"killed at steps": ", ".join(map(str, hit)), "largest difference, 1 and 2 processes": f"{apart:.1e}"})
    lesson.check("all trainings end well", codes == [0, 0, 0, 0], f"exit codes {codes}")
    lesson.check(
        "two processes make the weights of one, to 1e-6", apart < 1e-6, f"{apart:.1e} apart after {STEPS} steps"
    )
    lesson.check(
        "the last loss is that of the undisturbed run",
        len(hit) == kills and losses.get(STEPS) == expected[STEPS],
        f"{losses.get(STEPS, math.nan):.6f} after {len(hit)} kill{'s' * (len(hit) != 1)}, {expected[STEPS]:.6f}",
    )
    lesson.shows(
        f"losing one process of two {len(hit)} times cost restarts and no step of the result: its bits are "
        f"{'the same' if same_bits else 'not the same, though the loss is'}; one process and two differ by {apart:.0e}, "
        "the order in which halves of a batch are added."
    )


def limit_file_size(size_bytes: int) -> None:
    """No file of this process can grow beyond: the system refuses the write as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def warm_up(folder: Path) -> None:
    """One training in this process, so that all that it imports is there for those that are forked from it."""
    with redirect_stdout(io.StringIO()):
        code = train.main([*SETTINGS, "--epochs", "1", "--out", str(folder)])
    if code:
        raise CannotRun("train.py does not run here; run it by itself to see why")


def main(argv: list[str] | None = None) -> int:
    with Lesson(__file__, argv, title="Kill a training, damage its checkpoints, and compare") as lesson:
        if not hasattr(os, "fork"):
            raise CannotRun("this benchmark starts its processes by fork, which Windows lacks; run it under WSL")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a process that is forked from one with several threads has only one of them
        try:
            with scratch() as folder:
                warm_up(folder)
            random.seed(lesson.options.seed)
            show_kills(lesson)
            show_stops(lesson)
            show_damage(lesson)
            show_full_disk(lesson)
            if Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
                show_two_processes(lesson)
            else:
                lesson.skip("one of two processes killed under torchrun.", "Linux, to find the processes")
        finally:
            torch.set_num_threads(threads)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
