"""What does a training need that has to survive real work: a kill, a full disk, a NaN, two GPUs, a second look in a year?

The complete pipeline, to be read from top to bottom and used: data in three parts, a model, an optimizer with its
schedule, mixed precision, accumulation, clipping, averaged weights, early stopping, logs, checkpoints from which it goes
on to the bit, on one device or on many. Each part is taken apart in a script of its own; around the loop stand
training/settings.py, models.py, data.py, team.py, guards.py and log.py.

    python src/train.py                                   glyphs, a CNN, about two minutes on a laptop
    python src/train.py --quick                           the same path with tiny sizes, a few seconds
    python src/train.py --dataset cifar10 --model resnet --augment --epochs 20
    python src/train.py --config mine.yaml --lr 1e-3      settings from a file, flags first
    python src/train.py --resume                          goes on with the newest run, after Ctrl-C or a crash
    torchrun --nproc-per-node 2 src/train.py              the same training by two processes
    tensorboard --logdir runs                             its curves
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.optimizers.muon import Muon
from pytorch_02_training_optimization.src.training import settings as configuration
from pytorch_02_training_optimization.src.training.data import Batches, Data, Pair, load_data
from pytorch_02_training_optimization.src.training.evidence import (
    show_checkpoints,
    show_cost,
    show_data,
    show_start,
    show_test,
)
from pytorch_02_training_optimization.src.training.guards import (
    Glance,
    Signals,
    first_non_finite,
    is_out_of_memory,
    memory_advice,
)
from pytorch_02_training_optimization.src.training.log import EVENTS, Log, events_to, read_metrics
from pytorch_02_training_optimization.src.training.models import build_model
from pytorch_02_training_optimization.src.training.settings import Settings
from pytorch_02_training_optimization.src.training.team import (
    Team,
    copy_whole,
    gathered,
    join_team,
    own_part,
    spread,
    summing_only,
    use_own_gpu,
)
from shared import checkpoints
from shared import device as devices
from shared.errors import CannotRun, Stopped
from shared.generators import restore_rng_state, rng_state
from shared.lesson import Lesson
from shared.units import seconds_text, significant

import torch
import torch.nn.functional as F
from torch import nn

EVALUATION_BATCH = 500
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# The training: one step, and all that a checkpoint holds


class NonFinite(Exception):
    """The loss is NaN or infinite, and the weights are still as they were before this step."""


class Training:
    """Everything that changes while a model is trained, and the one step that changes it."""

    def __init__(self, settings: Settings, data: Data, seed: int, team: Team, device: torch.device, steps: int) -> None:
        self.settings, self.seed, self.team, self.device, self.steps = settings, seed, team, device, steps
        devices.seed_everything(seed)  # the same first weights in each process
        self.mean, self.deviation = data.mean, data.deviation
        classes = len(data.classes)
        self.bare = build_model(settings.model, data.shape, classes, settings.width, settings.dropout).to(device)
        self.model = spread(self.bare, settings.strategy, team, device)
        if settings.compile:
            self.model = torch.compile(self.model)
        self.optimizers = build_optimizers(self.bare, settings, device)
        self.chosen = [
            [{key: group[key] for key in ("initial_lr", "weight_decay")} for group in optimizer.param_groups]
            for optimizer in self.optimizers
        ]
        self.dtype, self.why = choose_precision(settings.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.average = Average(self.bare, settings.ema) if settings.ema else None
        self.step, self.epoch, self.index = 0, 0, 0  # of the next batch: number index of epoch
        self.lowest_loss, self.disappointments = math.inf, 0  # of the validations, for early stopping
        self.recent = torch.zeros(2, device=device)  # sum of losses and number of steps since the last line in the log
        torch.manual_seed(seed + team.rank)  # from here on, dropout may differ between processes

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) bytes to (B, classes), in the numbers that were chosen for the forward pass."""
        images = (images.float() - self.mean) / self.deviation
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(images)

    def take_step(self, pieces: list[Pair]) -> torch.Tensor:
        """Change the weights by the gradient of one batch; the gradient's length, as a tensor. Raises NonFinite."""
        share = lr_share(self.step, self.steps, self.settings.warmup, self.settings.final_lr)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * group["initial_lr"]
        glances = []
        for number, (images, labels) in enumerate(pieces, 1):
            images, labels = (x.to(self.device, non_blocking=True) for x in (images, labels))
            with summing_only(self.model, is_last=number == len(pieces)):
                # Each piece is as large as the others, so the mean over the batch is the mean of their means.
                loss = F.cross_entropy(
                    self.logits(images).float(), labels, label_smoothing=self.settings.label_smoothing
                )
                glances.append(Glance(self.team.mean(loss.detach())))
                self.recent[0] += loss.detach() / len(pieces)
                self.scaler.scale(loss / len(pieces)).backward()
        self.recent[1] += 1
        if not all(math.isfinite(glance.read()) for glance in glances):
            raise NonFinite
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)  # gradients of the true loss, so that the limit below means what it says
        norm = torch.nn.utils.clip_grad_norm_(self.bare.parameters(), self.settings.clip or math.inf)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)  # does nothing where float16 has overflowed
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        if self.average:
            self.average.follow(self.bare)
        self.step += 1
        self.index += 1
        return norm

    @torch.no_grad()
    def evaluate(self, part: Pair) -> tuple[float, float, int]:
        """Mean loss and accuracy over all images of a part, each counted once, whoever computes it; and their count."""
        self.share_buffers()
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        images, labels = part
        # As many batches for each process as for the others: with fsdp they compute every one together.
        rounds = math.ceil(len(labels) / EVALUATION_BATCH / self.team.size)
        shares = torch.arange(len(labels)).tensor_split(rounds * self.team.size)[self.team.rank :: self.team.size]
        with self.average.in_place_of(self.bare) if self.average else nothing():
            for rows in (share.to(images.device) for share in shares):
                x, y = images[rows].to(self.device), labels[rows].to(self.device)
                logits = self.logits(x).float()
                loss = F.cross_entropy(logits, y, reduction="sum")
                sums += torch.tensor([loss.item(), (logits.argmax(1) == y).sum().item(), len(y)])
        self.model.train()  # here and not in each step: it visits every module
        loss_sum, correct, count = self.team.total(sums.to(self.team.message_device)).tolist()
        return loss_sum / count, correct / count, round(count)

    @torch.no_grad()
    def share_buffers(self) -> None:
        """BatchNorm's running statistics are of the images that a process has seen: take the mean of all processes."""
        for buffer in self.bare.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.team.mean(buffer))

    def state(self) -> dict[str, Any]:
        """What a run needs to go on as if nothing had happened. The schedule has no state: it follows from the step."""
        from torch.distributed.checkpoint import (
            state_dict as whole,
        )  # names each tensor, and gathers the pieces of fsdp

        self.share_buffers()
        options = whole.StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {
            "settings": asdict(self.settings),
            "seed": self.seed,
            "model": whole.get_model_state_dict(self.bare, options=options),
            "optimizers": whole.get_optimizer_state_dict(self.bare, self.optimizers, options=options),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state() if self.average else None,
            "random": self.team.gather(rng_state(self.device)),
            "position": [self.step, self.epoch, self.index],
            "stopping": [self.lowest_loss, self.disappointments],
            "recent": self.team.gather(self.recent.cpu()),
            "threads": torch.get_num_threads(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        from torch.distributed.checkpoint import state_dict as whole

        options = whole.StateDictOptions(full_state_dict=True)
        whole.set_model_state_dict(self.bare, state["model"], options=options)
        whole.set_optimizer_state_dict(self.bare, self.optimizers, state["optimizers"], options=options)
        for optimizer, groups in zip(self.optimizers, self.chosen, strict=True):
            for group, chosen in zip(optimizer.param_groups, groups, strict=True):
                group.update(chosen)  # a resumed run may go on with another lr or weight_decay
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.restore(state["average"])
        self.step, self.epoch, self.index = state["position"]
        self.lowest_loss, self.disappointments = state["stopping"]
        if len(state["random"]) == self.team.size:  # else there are other processes now, with other dropout
            restore_rng_state(state["random"][self.team.rank])
            self.recent = state["recent"][self.team.rank].to(self.device)


def build_optimizers(model: nn.Module, settings: Settings, device: torch.device) -> list[torch.optim.Optimizer]:
    """One for all parameters, or Muon for the hidden matrices and AdamW for the rest. Vectors do not decay."""
    lr, decay = settings.highest_lr, settings.decay
    hidden: list[nn.Parameter] = []
    if settings.optimizer == "muon":
        hidden = [p for block in model.blocks[1:-1] for p in block.parameters() if p.ndim > 1]
    taken = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},  # biases and norms have nothing to shrink
    ]
    fused = device.type in ("cuda", "cpu")  # one kernel for all parameters
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "sgd":
        optimizers.append(torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=fused))
    else:
        own_lr = lr if settings.optimizer == "adamw" else configuration.OPTIMIZERS["adamw"][0]
        optimizers.append(torch.optim.AdamW(groups, lr=own_lr, betas=(0.9, 0.98), fused=fused))
    if hidden:
        optimizers.append(Muon(hidden, lr=lr, weight_decay=decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def lr_share(step: int, steps: int, warmup: float, final: float) -> float:
    """The learning rate of a step as a part of the highest: a straight rise, then half a cosine down to `final`."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    done = (step - rise) / max(1.0, steps - 1 - rise)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def choose_precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The type of the forward pass, and why. Weights, gradients and optimizer keep float32 with each of them."""
    if name == "auto":
        return devices.autocast_dtype(device)
    return DTYPES[name], f"--precision {name}"


class Average:
    """An exponential moving average of weights and buffers: a calmer model than the one that is still moving."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {name: x.detach().clone() for name, x in floats_of(model).items()}

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        self.steps += 1
        # Early on, the mean of the few steps that there were: the random start must not count for a thousand steps.
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages, now = ([own_part(x) for x in tensors.values()] for tensors in (self.weights, floats_of(model)))
        torch._foreach_lerp_(averages, now, 1 - decay)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model computes with the average."""
        tensors = floats_of(model)
        own = {name: x.detach().clone() for name, x in tensors.items()}
        try:
            for name, x in tensors.items():
                x.detach().copy_(self.weights[name])
            yield
        finally:
            for name, x in tensors.items():
                x.detach().copy_(own[name])

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": {name: gathered(x) for name, x in self.weights.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name, x in self.weights.items():
            copy_whole(x, state["weights"][name])


def floats_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x for name, x in model.state_dict(keep_vars=True).items() if x.is_floating_point()}


@contextmanager
def nothing() -> Iterator[None]:
    yield


# The run: a folder, a loop around the step, and an end in good order whatever comes


class Run:
    """One training's folder: config.yaml, metrics.jsonl, train.log, TensorBoard's events, and checkpoints/."""

    def __init__(self, folder: Path, team: Team) -> None:
        self.folder, self.team = folder, team
        self.checkpoints = folder / "checkpoints"
        self.seconds = {"batches": 0.0, "steps": 0.0, "validation": 0.0, "checkpoints": 0.0, "log": 0.0}
        self.wall_s = 0.0  # of the whole loop
        self.signals = Signals()
        self.log: Log | None = None
        self.is_usual = False  # whether all settings are as they come, so that the outcome is known beforehand

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start_s

    @contextmanager
    def open_log(self, step: int) -> Iterator[None]:
        """Rank 0 writes down what happens after `step`."""
        self.log = Log(self.folder, step) if self.team.rank == 0 else None
        try:
            yield
        finally:
            if self.log:
                self.log.close()

    def save(self, training: Training, metric: float | None = None) -> None:
        """A checkpoint of this moment. Weights that are no numbers are never saved: raises NonFinite."""
        with self.timed("checkpoints"):
            state = training.state()
            if not all(torch.isfinite(x).all() for x in state["model"].values()):
                raise NonFinite
            write = lambda: str(  # noqa: E731
                checkpoints.save(self.checkpoints, training.step, state, metric=metric, keep=training.settings.keep)
            )
            path = self.team.agree(write)
        EVENTS.info("saved %s", path)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        if self.log:
            with self.timed("log"):
                self.log.write(kind, step, values)


def train(lesson: Lesson, training: Training, data: Data, run: Run) -> None:
    """The loop. Ends after the last step, after a disappointment too many, or with Stopped at a signal."""
    settings, team = training.settings, training.team
    resumed_at, started_s = training.step, time.perf_counter()
    steps_per_epoch = training.steps // settings.epochs
    bar = lesson.progress(range(training.steps - training.step), "steps")  # the time that is left, in a terminal
    while training.epoch < settings.epochs and not has_stopped_early(training):
        with run.timed("batches"):  # workers have to be started
            epoch = Batches(data.train, settings.batch_size, training.seed, training.epoch, settings.augment,
                            settings.accumulate, team.rank, team.size)  # fmt: skip
            batches = epoch.starting_at(training.index, settings.workers)
        while training.index < steps_per_epoch:
            with run.timed("batches"):
                pieces = next(batches)
            with run.timed("steps"):
                norm = training.take_step(pieces)
            next(bar, None)
            at_log = training.step % settings.log_every == 0 or training.index == steps_per_epoch
            if at_log:
                with run.timed("steps"):  # on a GPU, this is where the steps are waited for
                    loss = team.mean(training.recent[0] / training.recent[1]).item()
                training.recent.zero_()
                lr = training.optimizers[-1].param_groups[0]["lr"]
                run.write("train", training.step, {"loss": loss, "lr": lr, "gradient": float(norm)})
            if training.index == steps_per_epoch:
                break  # the epoch's end saves by itself
            if settings.save_every and training.step % settings.save_every == 0:
                run.save(training)
            # Asking the others costs a message and, on a GPU, a wait: with several processes only now and then.
            if (team.size == 1 or at_log) and team.any(bool(run.signals.received)):
                stop(run, training)
        end_epoch(lesson, training, data, run, resumed_at, started_s)
        if team.any(bool(run.signals.received)) and training.epoch < settings.epochs:
            stop(run, training)


def end_epoch(lesson: Lesson, training: Training, data: Data, run: Run, resumed_at: int, started_s: float) -> None:
    """Validate, remember for early stopping, save, and say where the training stands."""
    with run.timed("validation"):
        loss, accuracy, _ = training.evaluate(data.validation)
    run.write("validation", training.step, {"loss": loss, "accuracy": accuracy, "epoch": training.epoch + 1})
    is_better = loss < training.lowest_loss
    training.disappointments = 0 if is_better else training.disappointments + 1
    training.lowest_loss = min(loss, training.lowest_loss)
    training.epoch, training.index = training.epoch + 1, 0
    run.save(training, metric=-loss)
    done = training.step - resumed_at
    passed_s = time.perf_counter() - started_s
    left_s = passed_s / done * (training.steps - training.step)
    speed = done * training.settings.batch_size / max(1e-9, run.seconds["batches"] + run.seconds["steps"])
    line = (
        f"epoch {training.epoch}/{training.settings.epochs}: step {training.step:,}, validation loss {loss:.3f}, accuracy "
        f"{100 * accuracy:.1f} %, {significant(speed)} images/s, "
        + (f"{seconds_text(left_s)} left" if training.step < training.steps else "done")
    )
    EVENTS.info("%s", line)
    lesson.terminal.paragraph(line, "    ", "  ")


def has_stopped_early(training: Training) -> bool:
    patience = training.settings.patience
    return bool(patience) and training.disappointments >= patience


def stop(run: Run, training: Training) -> None:
    """A signal has come: everything into a checkpoint, then out."""
    number = max(run.team.gather(run.signals.received))
    run.save(training)
    raise Stopped(
        f"stopped at step {training.step} of {training.steps}; all of it is saved in {shown_path(run.folder)}, "
        f"and --resume --name {run.folder.name} goes on",
        number,
    )


def keep_offending_batch(run: Run, training: Training, data: Data) -> CannotRun:
    """A loss that is no number: the batch goes into a file, and the first broken tensor gets its name."""
    settings = training.settings
    whole = Batches(data.train, settings.batch_size, training.seed, training.epoch, settings.augment)
    [(images, labels)] = whole[min(training.index, len(whole) - 1)]
    x = (images.to(training.device).float() - training.mean) / training.deviation
    with torch.autocast(training.device.type, training.dtype, enabled=training.dtype != torch.float32):
        broken = first_non_finite(training.bare, x) or "the loss alone"
    path = run.folder / f"bad-batch-{training.step:08d}.pt"
    if training.team.rank == 0:
        torch.save({"step": training.step, "images": images.cpu(), "labels": labels.cpu()}, path)
    return CannotRun(
        f"the loss of step {training.step + 1} is not finite; first broken: {broken}; the batch is kept in "
        f"{shown_path(path)}; try --lr {significant(settings.highest_lr / 3)} or --clip 1, from the last checkpoint "
        f"with --resume or anew"
    )


def shown_path(path: Path) -> str:
    """As it can be typed from here."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


# The lesson: what is trained, the loop, and what it proves afterwards


def add_options(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("this run")
    run.add_argument("--config", type=Path, metavar="FILE", help="settings in YAML; a flag overrides the file")
    run.add_argument("--name", help="name of the run's folder (default: the time; with --resume: the newest)")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint; begin where there is none")
    run.add_argument("--fallback", action="store_true", help="where the last checkpoint is damaged, take one before it")
    run.add_argument("--other-torch", action="store_true", help="go on from a checkpoint of another PyTorch version")
    configuration.add_settings(parser)


def choose_run(lesson: Lesson, team: Team) -> Run:
    """The folder of this run: one that is named, the newest, or a new one. Raises CannotRun."""
    options = lesson.options
    parent = lesson.options.out / "train" / "runs" if options.out else lesson.project / "runs" / "train"
    # torchrun starts all processes again when one has died: that, too, is a run to go on with.
    resumes = options.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    def choose() -> Path:
        if options.name and Path(options.name).name != options.name:
            raise CannotRun(f"--name {options.name!r} is a path; give the name of a folder in {shown_path(parent)}")
        name = options.name or f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S}"
        if resumes and not options.name:
            # With --resume one that has something to go on from; for torchrun the one that it has started just now.
            sign = "checkpoints/last" if options.resume else "config.yaml"
            known = [folder for folder in parent.glob("*") if (folder / sign).is_file()]
            if not known:
                raise CannotRun(f"there is no run in {shown_path(parent)} to go on with; begin one without --resume")
            name = max(known, key=lambda folder: (folder / sign).stat().st_mtime).name
        folder = parent / name
        if not resumes and checkpoints.latest(folder / "checkpoints"):
            raise CannotRun(
                f"{shown_path(folder)} holds a training already; --resume --name {name} goes on with it, and another "
                "--name begins a new one"
            )
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotRun(
                f"cannot write to {folder} ({error.strerror}); choose another folder with --out DIR"
            ) from None
        return folder

    return Run(team.agree(choose), team)


def choose_settings(lesson: Lesson, saved: checkpoints.Checkpoint | None) -> tuple[Settings, int]:
    """From the command line, else the checkpoint, else --config, else the defaults; and the seed. Raises CannotRun."""
    options = vars(lesson.options)
    settings = configuration.updated(Settings(), usual(lesson), "--quick")
    seed = options["seed"]
    if options["config"]:
        values = configuration.read_yaml(options["config"])
        seed = seed or int(values.pop("seed", 0))
        settings = configuration.updated(settings, values, str(options["config"]))
    flags = {name: value for name, value in options.items() if name in configuration.KINDS}
    if saved:
        before = configuration.with_defaults(saved.state["settings"])
        settings = configuration.updated(before, flags, "the command line")
        configuration.expect_same(settings, before, saved.path)
        if seed not in (0, saved.state["seed"]):
            raise CannotRun(f"{saved.path} is of a training with seed {saved.state['seed']}; leave --seed out")
        return settings, saved.state["seed"]
    return configuration.updated(settings, flags, "the command line"), seed


def usual(lesson: Lesson) -> dict[str, Any]:
    """What --quick sets otherwise."""
    quick = {"train_images": 2000, "epochs": 3, "width": 12, "batch_size": 24, "save_every": 50, "log_every": 5}
    return lesson.pick(full={}, quick=quick)


def load_checkpoint(lesson: Lesson, run: Run) -> checkpoints.Checkpoint | None:
    """The checkpoint to go on from, verified before it is read; None for a new run. Raises CannotRun."""
    if not any(run.checkpoints.iterdir()) or checkpoints.latest(run.checkpoints) is None:
        return None
    found = checkpoints.load(run.checkpoints, fallback=lesson.options.fallback)
    if found.torch_version != torch.__version__ and not lesson.options.other_torch:
        raise CannotRun(
            f"{shown_path(found.path)} was written by torch {found.torch_version} and this is {torch.__version__}, which "
            "may round differently; --other-torch goes on all the same"
        )
    if not {"settings", "model", "optimizers", "random", "position"} <= found.state.keys():
        raise CannotRun(f"{shown_path(found.path)} is not a checkpoint of this script; name another run with --name")
    return found


def keep_threads(lesson: Lesson, threads: int) -> None:
    """As many threads as before the stop: a sum that is divided among others is added in another order."""
    now = torch.get_num_threads()
    if now == threads or lesson.device.type != "cpu":
        return
    if "OMP_NUM_THREADS" in os.environ:
        lesson.note(f"Before the stop there were {threads} threads and now {now}, so the last bits may differ.")
        return
    torch.set_num_threads(threads)
    lesson.note(
        f"Goes on with {threads} thread{'s' * (threads > 1)}, as before the stop, so that the bits are the same."
    )


def show_training(lesson: Lesson, training: Training, data: Data, run: Run) -> None:
    lesson.section(
        "The loop",
        "A step in five lines: forward, loss, backward, clip, update. Around it stands what a long training needs: "
        "every number goes to metrics.jsonl and TensorBoard, every epoch is validated, and a checkpoint with the weights, "
        "the optimizer, the random generators and the position in the data makes any end a pause.",
    )
    try:
        with run.signals.caught():
            if training.step == 0:
                run.save(
                    training
                )  # a folder that cannot take it is found now, and a kill in the first epoch costs nothing
            start_s = time.perf_counter()
            run.seconds = dict.fromkeys(run.seconds, 0.0)
            train(lesson, training, data, run)
            run.wall_s = time.perf_counter() - start_s
    except NonFinite:
        error = keep_offending_batch(run, training, data)
        raise error if training.team.rank == 0 else SystemExit(2) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        settings = training.settings
        advice = memory_advice(error, training.device, settings.batch_size, settings.accumulate, training.team.size)
        raise CannotRun(advice) from None
    lines = read_metrics(run.folder)
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    validations = [line for line in lines if line["kind"] == "validation"]
    lesson.check(
        "metrics.jsonl has each step once, in order", steps == sorted(set(steps)) and steps[-1] == training.step,
        f"{len(steps)} lines to step {steps[-1]}",
    )  # fmt: skip
    if run.is_usual:
        lesson.check(
            "the loss has fallen",
            losses[steps[-1]] < losses[steps[0]],
            f"{losses[steps[0]]:.3f} at step {steps[0]}, {losses[steps[-1]]:.3f} at step {steps[-1]}",
        )
    best = max(validations, key=lambda line: line["accuracy"])
    early = " It stopped early." if has_stopped_early(training) and training.step < training.steps else ""
    lesson.shows(
        f"{training.step} steps took the loss from {losses[steps[0]]:.2f} to {losses[steps[-1]]:.3f}; the best validation "
        f"accuracy, {100 * best['accuracy']:.1f} %, is that of epoch {best['epoch']}.{early}"
    )

    def draw(curve: Any, rate: Any) -> None:
        curve.plot(list(losses), list(losses.values()), color="0.6", label="training (batches)")
        places = [line["step"] for line in validations]
        curve.plot(places, [line["loss"] for line in validations], "ko-", label="validation")
        curve.set(xlabel="step", ylabel="cross-entropy", yscale="log", title="Loss")
        curve.legend()
        rate.plot(steps, [line["lr"] for line in lines if line["kind"] == "train"], "k-")
        rate.set(xlabel="step", ylabel="learning rate", title="Warm-up and cosine")

    lesson.figure("training_curves", draw, columns=2)


def main(argv: list[str] | None = None) -> int:
    use_own_gpu()
    with Lesson(
        __file__, argv, title="Train a network so that nothing can spoil it", add_options=add_options
    ) as lesson:
        settings, _ = choose_settings(
            lesson, None
        )  # a mistake in them is found before the processes wait for each other
        configuration.check_together(settings, int(os.environ.get("WORLD_SIZE", "1")))
        with join_team(lesson.device) as team:
            run = choose_run(lesson, team)
            with events_to(run.folder, team.rank):
                follow(lesson, team, run)
    return lesson.exit_code


def follow(lesson: Lesson, team: Team, run: Run) -> None:
    """One run from its first section to its last."""
    device = lesson.device
    saved = load_checkpoint(lesson, run)
    settings, seed = choose_settings(lesson, saved)
    configuration.check_together(settings, team.size)
    run.is_usual = settings == configuration.updated(Settings(), usual(lesson), "--quick")
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if team.rank == 0:
        (run.folder / "config.yaml").write_text(configuration.write_yaml(settings, seed), encoding="utf-8")
    data = load_data(settings, lesson.pick(full=None, quick=500))
    show_data(lesson, data)
    if settings.workers == 0:
        data = data.to(device)
    steps = settings.epochs * (len(data.train[1]) // settings.batch_size)
    training = Training(settings, data, seed, team, device, steps)
    if saved:
        training.restore(saved.state)
        lesson.note(saved.notice or f"Goes on from {shown_path(saved.path)}.")
        keep_threads(lesson, saved.state.get("threads", torch.get_num_threads()))
    EVENTS.info("process %d of %d on %s, torch %s, seed %d: begins at step %d of %d",
                team.rank, team.size, device, torch.__version__, seed, training.step, steps)  # fmt: skip
    operations = show_start(lesson, training, data, settings)
    first = training.step
    with run.open_log(training.step):
        show_training(lesson, training, data, run)
    steps_taken = training.step - first
    if team.size == 1:
        show_checkpoints(lesson, training, data, run)
    show_test(lesson, training, data, run)
    show_cost(lesson, training, run, operations, steps_taken)


if __name__ == "__main__":
    raise SystemExit(main())
