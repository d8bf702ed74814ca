"""What a run of `train` shows and proves around its loop: the data, the start, the disk, the test, the cost."""

import hashlib
import math
from typing import TYPE_CHECKING

from pytorch_02_training_optimization.src.training.data import Batches, Data
from pytorch_02_training_optimization.src.training.settings import Settings
from pytorch_02_training_optimization.src.training.team import gathered
from shared import checkpoints
from shared.errors import CannotRun
from shared.hardware import matmul_peak
from shared.lesson import Lesson
from shared.units import bytes_text, percent, significant

import torch
from torch import nn

if TYPE_CHECKING:
    from pytorch_02_training_optimization.src.train import Run, Training


def show_data(lesson: Lesson, data: Data) -> None:
    lesson.section(
        "Three parts of the data",
        "Training images change the weights, validation images choose between versions of the model, and test images are "
        "looked at once, at the very end. An image in two parts would make the second figure a lie, and nothing in a "
        "training would show it.",
    )
    if data.notice:
        lesson.note(data.notice)
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    uses = {"training": "gradients", "validation": "early stopping, the best version", "test": "the last line"}
    lesson.table(
        [
            {
                "part": name,
                "images": len(labels),
                "rarest class": int(torch.bincount(labels, minlength=len(data.classes)).min()),
                "used for": uses[name],
            }
            for name, (_, labels) in parts.items()
        ]
    )
    digests = {name: digests_of(images) for name, (images, _) in parts.items()}
    shared = {
        f"{a} and {b}": len(digests[a] & digests[b])
        for a, b in (("training", "validation"), ("training", "test"), ("validation", "test"))
    }
    lesson.check(
        "no image is in two parts", not any(shared.values()),
        ", ".join(f"{n} in {pair}" for pair, n in shared.items()),
    )  # fmt: skip
    x = (data.train[0][:2000].float() - data.mean.cpu()) / data.deviation.cpu()
    mean, deviation = x.mean().item(), x.std().item()
    lesson.check(
        "normalised, channels are near mean 0 and deviation 1", abs(mean) < 0.15 and abs(deviation - 1) < 0.15,
        f"{mean:+.3f} and {deviation:.3f}, first {len(x):,} images",
    )  # fmt: skip
    majority = torch.bincount(data.test[1]).max().item() / len(data.test[1])
    lesson.shows(
        f"{data.name} has {len(data.classes)} classes; who always names the most frequent one is right in "
        f"{percent(majority)} of the test images. That, and not zero, is what an accuracy stands beside."
    )


def digests_of(images: torch.Tensor) -> set[bytes]:
    return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.cpu().numpy()}


def show_start(lesson: Lesson, training: "Training", data: Data, settings: Settings) -> int:
    """What is about to be trained. Returns FLOP for one image, forward and backward."""
    lesson.section(
        "Before the first step",
        "Two questions are cheap now and dear later: does the model know nothing yet, and does every weight have an "
        "optimizer? An untrained model spreads its bets, so its loss should be near ln(classes); far above, its first "
        "steps are spent on taking back wild guesses.",
    )
    count = sum(p.numel() for p in training.bare.parameters())
    operations = count_operations(training.bare, data.shape, training.device)
    names = "+".join(type(optimizer).__name__ for optimizer in training.optimizers)
    pieces = f"{settings.accumulate} piece{'s' * (settings.accumulate > 1)}"
    lesson.items(
        {
            "model": f"{settings.model}, {count:,} parameters, {significant(operations / 1e6)} MFLOP for an image, "
            "forward and backward",
            "optimizer": f"{names}, lr {settings.highest_lr} after {percent(settings.warmup)} of warm-up, then a cosine "
            f"to {percent(settings.final_lr)} of it; weight decay {settings.decay} on matrices",
            "batch": f"{settings.batch_size} images in {pieces} by {training.team.size} "
            f"process{'es' * (training.team.size > 1)}; gradients up to length {settings.clip or 'any'}",
            "precision": f"{str(training.dtype).removeprefix('torch.')}: {training.why}",
            "run": f"{settings.epochs} epochs of {training.steps // settings.epochs} steps, seed {training.seed}",
        }
    )
    per_turn = settings.batch_size // settings.accumulate // training.team.size
    if per_turn < settings.batch_size and any(isinstance(m, nn.BatchNorm2d) for m in training.bare.modules()):
        lesson.note(f"BatchNorm takes its mean and variance from the {per_turn} images of a piece, not from the batch.")
    owners = sum(len(group["params"]) for optimizer in training.optimizers for group in optimizer.param_groups)
    lesson.check(
        "each parameter has one optimizer", owners == len(list(training.bare.parameters())),
        f"{owners} of {len(list(training.bare.parameters()))} tensors",
    )  # fmt: skip
    if training.step == 0:
        loss, *_ = training.evaluate(tuple(x[:2000] for x in data.validation))
        expected = math.log(len(data.classes))
        lesson.check(
            "the first loss is that of guessing, ln(classes)", abs(loss - expected) < 0.35,
            f"{loss:.3f} and {expected:.3f}",
        )  # fmt: skip
        what = f"the model starts {abs(loss - expected):.2f} from knowing nothing"
    else:
        what = f"the training goes on at step {training.step} of {training.steps}, where it was left"
        lesson.check("the checkpoint is of this training", training.step <= training.steps, f"step {training.step}")
    lesson.shows(
        f"{what}; an epoch is {significant(operations * len(data.train[1]) / 1e12)} TFLOP of arithmetic, which no choice "
        "of Python around it will change."
    )
    return operations


def count_operations(model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> int:
    """FLOP for one image, forward and backward: three products for each of the forward pass, counted on the shapes."""
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape, device=device))
    model.train()
    return 3 * counter.get_total_flops()


def show_checkpoints(lesson: Lesson, training: "Training", data: Data, run: "Run") -> None:
    lesson.section(
        "What is on the disk",
        "A checkpoint is worth what it can restore. The last one is read back here, its SHA-256 verified before anything "
        "in it is parsed, and one further step is taken twice: from the state in memory and from the state on the disk.",
    )
    saved = checkpoints.load(run.checkpoints)
    files = sorted(saved.path.parent.glob("step-*"))
    size = sum(file.stat().st_size for file in saved.path.iterdir())
    best = checkpoints.best(run.checkpoints)
    lesson.items(
        {
            "kept": ", ".join(path.name for path in files),
            "last": f"{saved.path.name}, {bytes_text(size)}",
            "best": best.name if best else "none",
            "held": ", ".join(saved.state),
        }
    )
    lesson.check("the last checkpoint is of the last step", saved.step == training.step, f"step {saved.step}")
    pieces = Batches(data.train, training.settings.batch_size, training.seed, training.epoch,
                     pieces=training.settings.accumulate)[0]  # fmt: skip
    training.take_step(pieces)
    from_memory = digest_of(training)
    training.restore(saved.state)
    is_where_it_was = training.step == saved.step
    training.take_step(pieces)
    from_disk = digest_of(training)
    exact = training.device.type == "cpu" or training.settings.deterministic
    if exact:
        lesson.check(
            "from the disk, the next step gives the same bits", from_disk == from_memory and is_where_it_was,
            f"SHA-256 {from_disk[:12]} and {from_memory[:12]}",
        )  # fmt: skip
    else:
        lesson.note("On a GPU some sums have no fixed order; --deterministic makes the bits of two runs comparable.")
    training.restore(saved.state)
    per_step = size / sum(p.numel() for p in training.bare.parameters())
    lesson.shows(
        f"{per_step:.0f} bytes for each parameter: four for the weight and the rest for the optimizer. The weights alone "
        "would be enough to use the model, and not enough to go on with its training."
    )


def digest_of(training: "Training") -> str:
    """Of all weights and buffers, and of the optimizers' tensors."""
    digest = hashlib.sha256()
    states = (
        value for optimizer in training.optimizers for state in optimizer.state.values() for value in state.values()
    )
    for x in (*training.bare.state_dict().values(), *states):
        if isinstance(x, torch.Tensor):
            digest.update(gathered(x).contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def show_test(lesson: Lesson, training: "Training", data: Data, run: "Run") -> None:
    lesson.section(
        "The test, once",
        "The best version by validation loss comes back from its checkpoint and meets images that no decision has "
        "depended on. Its accuracy is an estimate from so many images, with an error like any other: in brackets.",
    )
    path = training.team.agree(lambda: checkpoints.best(run.checkpoints))
    try:
        if path is not None:
            training.restore(checkpoints.load(path).state)
    except CannotRun as error:
        if not lesson.options.fallback:
            raise
        lesson.note(f"{error}; the last version is tested instead.")
    loss, accuracy, count = training.evaluate(data.test)
    error = math.sqrt(accuracy * (1 - accuracy) / count)
    majority = torch.bincount(data.test[1]).max().item() / count
    lesson.record("test accuracy", 100 * accuracy, "%", dataset=data.name, model=training.settings.model)
    lesson.table(
        [
            {"": "always the most frequent class", "accuracy": f"{100 * majority:.1f} %"},
            {"": f"this model, epoch {training.epoch}", "accuracy": f"{100 * accuracy:.1f} % ({100 * error:.1f})"},
        ]
    )
    lesson.check("each test image was counted once", count == len(data.test[1]), f"{count:,} of {len(data.test[1]):,}")
    if run.is_usual and lesson.quick:
        lesson.check(
            "it beats the most frequent class by five errors",
            accuracy > majority + 5 * error,
            f"{100 * accuracy:.1f} % and {100 * majority:.1f} %, loss {loss:.3f}",
        )
    elif run.is_usual:
        lesson.check("over 95 % of the letters are read", accuracy > 0.95, f"{100 * accuracy:.2f} %, loss {loss:.3f}")
    lesson.shows(
        f"of {count:,} unseen images it reads {round(accuracy * count):,}; with other test images of the same kind the "
        f"figure would move by about {100 * error:.1f} points, so smaller differences between two runs are noise."
    )


def show_cost(lesson: Lesson, training: "Training", run: "Run", operations: int, steps: int) -> None:
    lesson.section(
        "What it cost",
        "Where the time of the loop went, and how far the steps are from what this device multiplies at best. A training "
        "that waits for data, logs or disks shows it here, before anyone rents a larger GPU for it.",
    )
    seconds, wall_s = run.seconds, run.wall_s
    known = sum(seconds.values())
    rows = {**seconds, "all else": wall_s - known}
    lesson.table([{"part": name, "seconds": f"{s:.2f}", "share": percent(s / wall_s)} for name, s in rows.items()])
    images = steps * training.settings.batch_size
    speed = images / max(1e-9, seconds["batches"] + seconds["steps"])
    limit = matmul_peak(training.device, training.dtype, tf32=True)
    rate = speed * operations
    lesson.record("images/s", speed, "images/s", dataset=training.settings.dataset, model=training.settings.model)
    lesson.record("arithmetic", rate / 1e9, "GFLOP/s", limit=limit, precision=training.dtype)
    lesson.check(
        "no part was counted twice",
        known <= wall_s,
        f"{known:.2f} of {wall_s:.2f} s are in one of the parts",
    )
    share = percent(rate / limit.value) if limit else "an unknown share"
    if limit:
        # A measured limit is low where neighbours were busy or a CPU emulates the type (float16: 121 % was seen). A clock
        # that does not wait for a GPU is off by far more than two.
        lesson.check("no step is faster than the device can be", rate < 2 * limit.value, f"{share} of its limit")
    rest = {name: value for name, value in seconds.items() if name != "steps"}
    worst = max(rest, key=lambda name: rest[name])
    lesson.shows(
        f"{significant(speed)} images/s are {significant(rate / 1e9)} GFLOP/s, {share} of what this device reaches in "
        f"large matrix products; beside the steps, most of the time goes into {worst}, {percent(rest[worst] / wall_s)}."
    )
