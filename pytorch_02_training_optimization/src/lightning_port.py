"""What does a trainer take over from you, what does it cost, and is the result the same?

PyTorch Lightning owns the loop; you write what happens to a batch. Here one training stands three times: as a bare loop,
by `train` of this project, and in Lightning. The weights must agree to the bit, or else no speed could be compared. Then
you see who calls your code and in which order, what a step costs beside the network, what happens when a training is
stopped in the middle of an epoch, and which defaults will surprise you.

    python src/lightning_port.py            about 30 seconds
    python src/lightning_port.py --quick    the same path with tiny sizes, a few seconds
"""

import importlib.util
import inspect
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.port.forms import (
    FORMS,
    Silent,
    bare_loop,
    begin,
    by_bare_loop,
    by_lightning,
    by_train,
    calls_per_step,
    first_images,
    loader_of,
    weights_of,
)
from pytorch_02_training_optimization.src.train import Run, Training, train
from pytorch_02_training_optimization.src.training import data as batching
from pytorch_02_training_optimization.src.training import guards, log, team
from pytorch_02_training_optimization.src.training.data import Batches, Data, Pair, load_data
from pytorch_02_training_optimization.src.training.settings import Settings
from shared import checkpoints
from shared.errors import Stopped
from shared.lesson import Lesson
from shared.snippets import complaint, lines_of_code
from shared.timing import Timing, ratio
from shared.units import percent, significant

import torch

TINY = Settings(width=2, batch_size=8, epochs=1, log_every=1, train_images=900)
LEAST_SHARE = 0.97  # of the bare loop's images/s, that `train` has to reach

# One training, three times


@dataclass(frozen=True)
class Concern:
    """Something that a training needs beside its step: where `train` has it, and which Trainer argument asks for it."""

    name: str
    ours: str
    lines: int
    argument: str


CONCERNS = (
    Concern("pieces, precision, clipping", "take_step()", lines_of_code(Training.take_step), "accumulate_grad_batches"),
    Concern("several processes", "training/team.py", lines_of_code(team), "strategy"),
    Concern("checkpoints", "shared/checkpoints.py", lines_of_code(checkpoints), "callbacks"),
    Concern("curves", "training/log.py", lines_of_code(log), "logger"),
    Concern("NaN, signals, memory", "training/guards.py", lines_of_code(guards), "detect_anomaly"),
    Concern("batches by position", "training/data.py", lines_of_code(batching), ""),
)


def show_forms(lesson: Lesson) -> None:
    from pytorch_02_training_optimization.src.port.in_lightning import Classifier

    from lightning.pytorch import Trainer

    lesson.section(
        "One training, written three times",
        "First the bare loop: nothing is checked, written down or saved. Every line of it is in `train`, too, and around "
        "them what a long training needs. In Lightning the loop is gone, and you fill in methods that it calls.",
    )
    lesson.drawing(inspect.getsource(bare_loop))
    lesson.text("The same step as methods of a LightningModule:")
    for method in (Classifier.training_step, Classifier.configure_optimizers):
        lesson.drawing(textwrap.dedent(inspect.getsource(method)).rstrip())
    lesson.text("What stands around a step, as code of this project and as an argument of Trainer:")
    lesson.table(
        [
            {
                "what": concern.name,
                "in train": concern.ours,
                "lines": concern.lines or "",
                "in Lightning": f"{concern.argument}=" if concern.argument else "a loader of your own",
            }
            for concern in CONCERNS
        ]
    )
    known = inspect.signature(Trainer).parameters
    arguments = [concern.argument for concern in CONCERNS if concern.argument]
    lesson.check(
        "Trainer takes each of these arguments", all(name in known for name in arguments),
        f"{len(arguments)} of its {len(known)}",
    )  # fmt: skip
    own, module, bare = sum(concern.lines for concern in CONCERNS), lines_of_code(Classifier), lines_of_code(bare_loop)
    lesson.check(
        "the module is no longer than three bare loops", module <= 3 * bare, f"{module} lines and {bare} lines"
    )
    lesson.shows(
        f"the bare loop has {bare} lines, and the module {module}: Lightning does not shorten the step. It stands for the "
        f"{own} lines around it, which this project wrote so that you can read them. Whether to own those lines or to rent "
        "them is the question; the sections below give the price."
    )


# The same numbers


def show_equal_results(lesson: Lesson, data: Data) -> None:
    lesson.section(
        "The same weights, to the bit",
        "Two programs train the same model only if everything is the same: first weights, order of the batches, schedule, "
        "precision, clipping, what decays. One thing forgotten, and a comparison of speed or accuracy compares that. So: "
        "one seed, one order, and the weights of the last step side by side.",
    )
    steps = lesson.pick(full=40, quick=12)
    settings = replace(TINY, precision="auto")
    part = first_images(data, steps, settings)
    outcomes = {name: form(begin(settings, part, lesson.options.seed, lesson.device), part)
                for name, form in FORMS.items()}  # fmt: skip
    bare = outcomes["the bare loop"].weights
    gaps = {name: farthest(outcome.weights, bare) for name, outcome in outcomes.items()}
    lesson.table(
        [
            {
                "form": name,
                "first loss": f"{outcome.losses[0]:.6f}" if outcome.losses else "not kept",
                "last loss": f"{outcome.losses[-1]:.6f}" if outcome.losses else "not kept",
                "weights from the bare loop's": f"{gaps[name]:.1e}" if gaps[name] else "0",
            }
            for name, outcome in outcomes.items()
        ]
    )
    # On a GPU, sums without a fixed order may differ between any two runs.
    allowed = 0.0 if lesson.device.type == "cpu" else 1e-3
    lesson.check(
        "all forms end with the same weights", max(gaps.values()) <= allowed,
        f"{max(gaps.values()):.1e} apart at most, {sum(x.numel() for x in bare.values()):,} numbers",
    )  # fmt: skip
    ours, theirs = outcomes["train"].losses, outcomes["Lightning, as it comes"].losses
    off = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    lesson.check("and have the same loss at each step", off <= allowed, f"{len(ours)} steps, {off:.1e} apart at most")

    halves = replace(settings, batch_size=16, accumulate=2)
    whole = by_train(begin(halves, part, lesson.options.seed, lesson.device), part)
    pieces = begin(settings, part, lesson.options.seed, lesson.device)
    pieces.steps = steps // 2
    accumulated = by_lightning(pieces, part, accumulate_grad_batches=2)
    gap = farthest(whole.weights, accumulated.weights)
    lesson.check(
        "2 pieces of 8 are accumulate_grad_batches=2", gap <= allowed, f"{gap:.1e} apart after {steps // 2} steps"
    )
    lesson.shows(
        f"after {steps} steps the largest difference is {significant(max(gaps.values()))}. Lightning adds no mathematics of "
        "its own: it calls the same operators in the same order. From here on, every difference is one of time."
    )


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two models' tensors of the same names."""
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


# Who calls whom


def show_hooks(lesson: Lesson, data: Data) -> None:
    from pytorch_02_training_optimization.src.port.in_lightning import Classifier, make_trainer, quiet

    lesson.section(
        "Who calls your code, and when",
        "A framework calls you. What you cannot see in your file is the order, and a line in the wrong method is an error "
        "that no message reports. Here each method of the module writes its name down when it is called; two pieces "
        "make a step, so that you see what happens once for each piece and what once for a step.",
    )
    told: list[str] = []

    def telling(name: str) -> Any:
        def method(self: Any, *arguments: Any, **named: Any) -> Any:
            told.append(name)
            return getattr(Classifier, name)(self, *arguments, **named)

        return method

    names = [name for name in dir(Classifier) if name.startswith("on_") or name in NARRATED]
    narrated: Any = type("Narrated", (Classifier,), {name: telling(name) for name in names})
    part = first_images(data, 4, TINY)
    training = begin(TINY, part, 0, lesson.device)
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = make_trainer(training, folder, logger=False, enable_checkpointing=False, accumulate_grad_batches=2)
        trainer.fit(narrated(training), loader_of(training, part))
    first, second = split_pieces(told)[:2]
    lesson.table(
        [
            {
                "method": a or b,
                "piece 1": f"{first.index(a) + 1}." if a else "",
                "piece 2": f"{second.index(b) + 1}." if b else "",
                "what happens": MEANINGS.get(a or b, ""),
            }
            for a, b in aligned(first, second)
        ]
    )
    forward_inside = second.index("optimizer_step") < second.index("training_step")
    lesson.check("forward and backward run inside of optimizer.step()", forward_inside,
                 "optimizer_step comes before training_step")  # fmt: skip
    lesson.check(
        "clipping waits for the whole gradient",
        "configure_gradient_clipping" not in first
        and second.index("backward") < second.index("configure_gradient_clipping"),
        "not at the first piece; after backward at the second",
    )
    lesson.check(
        "the schedule moves once a step, not once a piece",
        told.count("lr_scheduler_step") == 2 and told.count("training_step") == 4,
        f"{told.count('lr_scheduler_step')} times in {told.count('training_step')} pieces",
    )
    lesson.shows(
        f"{len(first)} methods are called for a piece and {len(second)} for one that ends a step. The step hands your "
        "forward and backward pass to optimizer.step() as a closure, as L-BFGS needs it; so an error in training_step has "
        "the optimizer in its traceback, and it is not the optimizer's."
    )


NARRATED = ("training_step", "backward", "configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad",
            "lr_scheduler_step", "transfer_batch_to_device")  # fmt: skip
MEANINGS = {
    "transfer_batch_to_device": "tensors in lists and dicts go to the device",
    "optimizer_step": "the optimizer is called, with all that follows as its closure",
    "training_step": "yours: from a batch to its loss",
    "optimizer_zero_grad": "gradients of the last step are dropped",
    "backward": "the loss, divided by the number of pieces",
    "configure_gradient_clipping": "the whole gradient is there",
    "lr_scheduler_step": "where the schedule's interval is a step",
}


def split_pieces(told: Sequence[str]) -> list[list[str]]:
    """The calls of each batch, from its transfer to its end."""
    pieces: list[list[str]] = []
    for name in told:
        if name == "on_before_batch_transfer":
            pieces.append([])
        if pieces:
            pieces[-1].append(name)
        if name == "on_train_batch_end" and len(pieces) == 2:
            return pieces
    return pieces


def aligned(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Two orders side by side, calls of the same name in one row."""
    from difflib import SequenceMatcher

    for kind, a, b, c, d in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if kind == "equal":
            yield from zip(first[a:b], second[c:d], strict=True)
        else:
            yield from ((name, "") for name in first[a:b])
            yield from (("", name) for name in second[c:d])


# What it costs


@dataclass
class Costs:
    """Seconds a step, of each form in turn."""

    samples_s: dict[str, list[float]] = field(default_factory=dict)

    def measure(
        self, lesson: Lesson, names: Sequence[str], settings: Settings, data: Data, steps: int, rounds: int
    ) -> None:
        part = first_images(data, steps, settings)
        for turn in lesson.progress(range(rounds), "rounds"):
            for name in names[:: 1 if turn % 2 == 0 else -1]:
                outcome = FORMS[name](begin(settings, part, 0, lesson.device), part)
                self.samples_s.setdefault(name, []).append(outcome.loop_s / steps)

    def timing(self, name: str) -> Timing:
        return Timing(tuple(self.samples_s[name]), 1, "wall clock of the loop, device synchronised",
                      torch.get_num_threads())  # fmt: skip

    def best_s(self, name: str) -> float:
        return min(self.samples_s[name])


def show_costs(lesson: Lesson, data: Data) -> None:
    lesson.section(
        "What a step costs beside the network",
        "The network's arithmetic is the same in all forms, so what differs is Python around it. A tiny network makes that "
        "visible: what a form needs more than the bare loop is the price of its step. Then the real network: is the price "
        "worth a thought? Two of the forms write curves and save checkpoints (the saving is left out of these times).",
    )
    tiny, steps, rounds = replace(TINY, log_every=10), *lesson.pick(full=(50, 9), quick=(10, 7))
    names = list(FORMS)
    costs = Costs()
    costs.measure(lesson, names, tiny, data, steps, rounds + 1)
    for samples in costs.samples_s.values():
        del samples[0]  # the first round imports and allocates
    calls = {name: calls_per_step(FORMS[name], tiny, data, lesson.device) for name in names}
    bare_s = costs.best_s("the bare loop")
    extra_s = {name: costs.best_s(name) - bare_s for name in names}
    lesson.table(
        [
            {
                "form": name,
                "Python calls a step": f"{calls[name]:,.0f}",
                "a tiny step, µs": f"{1e6 * costs.timing(name).median_s:,.0f}",
                "more than the bare loop, µs": f"{1e6 * extra_s[name]:,.0f}" if name != "the bare loop" else "",
            }
            for name in names
        ]
    )
    for name in names[1:]:
        lesson.record("overhead of a step", 1e6 * max(0.0, extra_s[name]), "us", form=name)

    real = lesson.pick(full=replace(TINY, model="resnet", width=64, batch_size=512), cpu=Settings(epochs=1),
                       quick=Settings(epochs=1))  # fmt: skip
    shown = ["the bare loop", "train", "Lightning, as it comes"]
    real_costs = Costs()
    real_costs.measure(lesson, shown, real, data, *lesson.pick(full=(8, 5), quick=(1, 1)))
    lesson.text(
        f"The {real.model} of `train` with {real.width} channels and batches of {real.batch_size}, "
        f"timed in turn, {len(real_costs.samples_s['train'])} times each:"
    )
    timings = {name: real_costs.timing(name) for name in shown}
    ratios = {name: ratio(timings[name], timings["the bare loop"]) for name in shown}
    lesson.table(
        [
            {
                "form": name,
                "images/s": significant(real.batch_size / timings[name].median_s),
                "time, in the bare loop's": str(ratios[name]) if name != "the bare loop" else "",
            }
            for name in shown
        ]
    )
    step_s = real_costs.best_s("the bare loop")
    share = step_s / (step_s + max(0.0, extra_s["train"]))
    lesson.check(
        f"by its price, train keeps {percent(LEAST_SHARE)} of the bare loop's speed", share >= LEAST_SHARE,
        f"{1e6 * extra_s['train']:,.0f} µs on {significant(1e3 * step_s)} ms: {100 * share:.2f} %",
    )  # fmt: skip
    if not lesson.quick:
        lesson.check(
            "and so it does when both are timed in turn", ratios["train"].p20 <= 1 / LEAST_SHARE,
            f"{1 / ratios['train'].median:.3f}x its images/s ({1 / ratios['train'].p80:.3f} to "
            f"{1 / ratios['train'].p20:.3f})",
        )  # fmt: skip
    lesson.check(
        "train calls fewer functions for a step than Lightning",
        calls["train"] < calls["Lightning, barebones"] < calls["Lightning, as it comes"],
        f"{calls['train']:,.0f}, {calls['Lightning, barebones']:,.0f}, {calls['Lightning, as it comes']:,.0f}",
    )
    lesson.check(
        "and its step costs less beside the network", extra_s["train"] < extra_s["Lightning, as it comes"],
        f"{1e6 * extra_s['train']:,.0f} µs and {1e6 * extra_s['Lightning, as it comes']:,.0f} µs",
    )  # fmt: skip
    lightning_s = max(1e-9, extra_s["Lightning, as it comes"])
    lesson.shows(
        f"Lightning costs {significant(1e6 * lightning_s)} µs a step here. On a step of {significant(1e3 * step_s)} ms that "
        f"is {percent(lightning_s / (step_s + lightning_s))}, and on a step of 2 ms, as a GPU makes them, "
        f"{percent(lightning_s / (2e-3 + lightning_s))}, unless the GPU is kept busy while Python runs. The price is per "
        "step, so small batches pay most."
    )

    def draw(axes: Any) -> None:
        lengths_s = [10 ** (-4 + 0.05 * i) for i in range(81)]
        for name, style in zip(names[1:], ("k-", "k--", "k:"), strict=True):
            price_s = max(0.0, extra_s[name])
            axes.plot(
                [1e3 * t for t in lengths_s], [100 * price_s / (t + price_s) for t in lengths_s], style, label=name
            )
        axes.axvline(1e3 * step_s, color="0.6", label=f"the {real.model} on this device")
        axes.axhline(100 * (1 - LEAST_SHARE), color="0.8", linewidth=1)
        axes.set(xscale="log", xlabel="a step of the bare loop (ms)", ylabel="part of the time beside the network (%)",
                 title="What the loop costs depends on how long a step is")  # fmt: skip
        axes.legend()

    lesson.figure("price_of_the_loop", draw)


# Stopped in the middle


class Loader:
    """Hands out batches and remembers which ones."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.position = batches, 0
        self.handed_out: list[int] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Pair]]:
        while self.position < len(self.batches):
            self.handed_out.append(self.position)
            self.position += 1
            yield self.batches[self.position - 1]
        self.position = 0


class StatefulLoader(Loader):
    """With these two methods, Lightning puts the position into its checkpoint and brings it back."""

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@dataclass(frozen=True)
class Story:
    """A training that was stopped, and went on: the batches before and after, and the weights in the end."""

    before: list[int]
    after: list[int]
    weights: dict[str, torch.Tensor]


def stopped_in_lightning(kind: type[Loader], data: Data, device: torch.device, at: int) -> Story:
    from pytorch_02_training_optimization.src.port.in_lightning import Classifier, StopAt, make_trainer, quiet

    seen = []
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "stopped.ckpt"
        for goes_on in (False, True):
            training = begin(TINY, data, 0, device)
            loader = kind(Batches(data.train, TINY.batch_size, 0, 0))
            callbacks = [] if goes_on else [StopAt(at, path)]
            trainer = make_trainer(training, folder, callbacks=callbacks, logger=False, enable_checkpointing=False)
            trainer.fit(Classifier(training), loader, ckpt_path=path if goes_on else None)
            seen.append(loader.handed_out)
    return Story(seen[0], seen[1], weights_of(training))


def stopped_in_train(data: Data, device: torch.device, at: int) -> Story:
    """`train` gets a SIGTERM at step `at`, saves and ends; another one goes on from the disk."""
    seen: list[list[int]] = [[], []]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), team.Team())
        run.checkpoints.mkdir()
        take_step = Training.take_step

        def counted(training: Training, pieces: list[Pair], attempt: int) -> torch.Tensor:
            seen[attempt].append(training.index)
            if attempt == 0 and training.step + 1 == at:
                run.signals.received = signal.SIGTERM  # what the handler does when one comes
            return take_step(training, pieces)

        for attempt in range(2):
            training = begin(TINY, data, 0, device)
            if attempt:
                training.restore(checkpoints.load(run.checkpoints).state)
                run.signals.received = 0
            stepping = partial(counted, training, attempt=attempt)
            with patch.object(training, "take_step", stepping), run.open_log(training.step):
                try:
                    train(Silent(), training, data, run)  # type: ignore[arg-type]
                except Stopped:
                    continue
    return Story(seen[0], seen[1], weights_of(training))


def show_resume(lesson: Lesson, data: Data) -> None:
    steps, at = 12, 5
    lesson.section(
        "Stopped in the middle of an epoch",
        f"An epoch of {steps} batches ends after {at}, and the training goes on from its checkpoint. Weights and optimizer "
        "come back in all forms. But which batch comes next? The loader decides that, and it is not part of the model.",
    )
    part = first_images(data, steps, TINY)
    undisturbed = by_bare_loop(begin(TINY, part, 0, lesson.device), part).weights
    stories = {
        "train": stopped_in_train(part, lesson.device, at),
        "Lightning, a plain loader": stopped_in_lightning(Loader, part, lesson.device, at),
        "Lightning, a loader with a state": stopped_in_lightning(StatefulLoader, part, lesson.device, at),
    }
    width = max(map(len, stories))
    lesson.drawing(
        "\n".join(
            f"{name:<{width}}   {' '.join(map(str, story.before))} │ {' '.join(map(str, story.after))}"
            for name, story in stories.items()
        )
    )
    gaps = {name: farthest(story.weights, undisturbed) for name, story in stories.items()}
    lesson.table(
        [
            {
                "form": name,
                "twice": sum((story.before + story.after).count(i) > 1 for i in range(steps)),
                "never": steps - len({*story.before, *story.after}),
                "weights moved by": f"{gaps[name]:.1e}" if gaps[name] else "0",
            }
            for name, story in stories.items()
        ]
    )
    allowed = 0.0 if lesson.device.type == "cpu" else 1e-3
    right = list(range(at, steps))
    lesson.check("train goes on with the next batch", stories["train"].after == right, f"batch {at}")
    lesson.check("and ends with the undisturbed weights", gaps["train"] <= allowed, f"{gaps['train']:.1e} apart")
    plain, stateful = stories["Lightning, a plain loader"], stories["Lightning, a loader with a state"]
    lesson.check("a plain loader begins its epoch again", plain.after[0] == 0, f"batch 0, then to {plain.after[-1]}")
    lesson.check(
        "two methods on the loader cure it",
        stateful.after == right and gaps["Lightning, a loader with a state"] <= allowed,
        f"batch {at}; weights {gaps['Lightning, a loader with a state']:.1e} apart",
    )
    never = steps - len({*plain.before, *plain.after})
    lesson.shows(
        f"with a plain loader, Lightning counted on to {steps} and showed the model {len(plain.after)} batches of the wrong "
        f"end of the epoch: {never} of {steps} were never seen, and no line said so. In a long training with shuffled data "
        "nobody would notice. Before you rely on any trainer's resume, do this test with it."
    )


# Defaults


def show_defaults(lesson: Lesson, data: Data) -> None:
    from pytorch_02_training_optimization.src.port.in_lightning import (
        ClipsByLightning,
        SchedulesByDefault,
        Validates,
        make_trainer,
        quiet,
    )

    lesson.section(
        "Three defaults to know",
        "A port goes wrong where a default differs from what your loop did. None of these three is a fault; each costs an "
        "afternoon the first time.",
    )
    steps = 6
    part = first_images(data, steps, TINY)
    cpu = torch.device("cpu")
    part = part.to(cpu)

    def fit(kind: Any, **options: Any) -> Any:
        training = begin(TINY, part, 0, cpu)
        module = kind(training)
        with tempfile.TemporaryDirectory() as folder, quiet():
            trainer = make_trainer(training, folder, logger=False, enable_checkpointing=False, **options)
            validation = {"val_dataloaders": loader_of(training, part)} if kind is Validates else {}
            trainer.fit(module, loader_of(training, part), **validation)
        return module

    rates = fit(SchedulesByDefault).rates
    order = fit(Validates, num_sanity_val_steps=2, limit_val_batches=2).order
    refusal = complaint(lambda: fit(ClipsByLightning, precision="bf16-mixed"))
    lesson.table(
        [
            {
                "default": "one move of a schedule an epoch",
                "what you see": f"{len(set(rates))} rate in {steps} steps",
                "say instead": '"interval": "step"',
            },
            {
                "default": "validation before training",
                "what you see": f"{order.index('train')} batches come first",
                "say instead": "num_sanity_val_steps=0",
            },
            {
                "default": "no clipping of a fused optimizer",
                "what you see": refusal.split(":")[0],
                "say instead": "clip in a method of yours",
            },
        ]
    )
    lesson.check("a bare schedule stays where it is within an epoch", len(set(rates)) == 1, f"{rates[0]:.1e} each time")
    lesson.check("the first batches are validation's", order[:2] == ["validation"] * 2, f"{' '.join(order[:4])}, ...")
    lesson.check(
        "gradient_clip_val refuses a fused optimizer",
        "fused" in refusal,
        refusal.split(":")[0] + ", in mixed precision",
    )
    lesson.shows(
        f"the first default would have made this a training at {rates[0]:.1e}, the first value of the warm-up, and its loss "
        "would have fallen all the same, only less. That is the risk of a port: it runs. So compare the weights after ten "
        "steps, as above, before you compare anything else."
    )


def main(argv: list[str] | None = None) -> int:
    with Lesson(__file__, argv, title="One training in Lightning, equal to the bit, and its price") as lesson:
        if importlib.util.find_spec("lightning") is None:
            lesson.section("Lightning", "Everything here compares with Lightning, which is not installed.")
            lesson.skip("the training in Lightning", "the package: pip install lightning")
            lesson.shows("nothing was compared.")
            return lesson.exit_code
        data = load_data(replace(TINY, train_images=lesson.pick(full=2000, quick=400)), test_images=10).to(
            lesson.device
        )
        show_forms(lesson)
        show_equal_results(lesson, data)
        show_hooks(lesson, data)
        show_costs(lesson, data)
        show_resume(lesson, data)
        show_defaults(lesson, data)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
