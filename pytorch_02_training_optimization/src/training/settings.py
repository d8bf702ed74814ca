"""Every setting of a training in one place: as a field here, a flag on the command line and a key in a YAML file.

A value is taken from the command line, else from the resumed run, else from --config, else from here.
"""

import argparse
import difflib
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from shared.errors import CannotRun

OPTIMIZERS = {"adamw": (6e-3, 0.05), "sgd": (0.1, 5e-4), "muon": (0.02, 0.01)}  # usual lr and weight_decay of each
MODELS = ("mlp", "cnn", "resnet")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STRATEGIES = ("ddp", "fsdp")


def setting(default: Any, help: str, choices: tuple[str, ...] | None = None, least: float | None = None,
            below: float | None = None) -> Any:  # fmt: skip
    """A field with what the command line says of it and the range `least` <= value < `below`."""
    return field(default=default, metadata={"help": help, "choices": choices, "least": least, "below": below})


@dataclass(frozen=True)
class Settings:
    """What is trained, on what and how. A step is one change of the weights, by the gradient of one batch."""

    dataset: str = setting("glyphs", "glyphs, glyphs36, cifar10, cifar100, mnist, fashion-mnist, auto, or a folder")
    image_size: int = setting(64, "pixels a side, for images from a folder", least=8)
    train_images: int = setting(0, "use only so many of the training images (0: all)", least=0)
    validation_share: float = setting(0.1, "part of the training images kept for validation", least=0.001, below=0.9)
    augment: bool = setting(False, "flip and shift the training images at random")

    model: str = setting("cnn", "kind of network", MODELS)
    width: int = setting(32, "channels of the first layer (mlp: an eighth of the hidden units)", least=1)
    dropout: float = setting(0.0, "probability before the last layer", least=0, below=1)

    optimizer: str = setting("adamw", "how a gradient becomes a step", tuple(OPTIMIZERS))
    lr: float | None = setting(None, "highest learning rate (adamw 6e-3, sgd 0.1, muon 0.02)", least=0)
    weight_decay: float | None = setting(None, "decay of the weights (adamw 0.05, sgd 5e-4, muon 0.01)", least=0)
    warmup: float = setting(0.1, "part of the steps in which the learning rate rises", least=0, below=1)
    final_lr: float = setting(0.0, "learning rate at the end, as a part of the highest", least=0, below=1.000001)
    clip: float = setting(1.0, "longest gradient (0: any length)", least=0)
    label_smoothing: float = setting(0.0, "part of the target spread over all classes", least=0, below=1)
    ema: float = setting(0.0, "decay of the averaged weights that are evaluated (0: none)", least=0, below=1)

    epochs: int = setting(3, "passes over the training images", least=1)
    batch_size: int = setting(128, "images for one step, over all processes and pieces", least=1)
    accumulate: int = setting(1, "pieces that a batch is computed in: less memory, the same gradient", least=1)
    patience: int = setting(0, "stop after so many validations without a lower loss (0: never)", least=0)

    precision: str = setting("auto", "numbers of the forward pass; auto: what this device is built for", PRECISIONS)
    compile: bool = setting(False, "compile the model: a slow start, then faster steps")
    deterministic: bool = setting(False, "only operations that give the same bits each time, also on a GPU")
    workers: int = setting(0, "processes that prepare batches (0: this one)", least=0)
    strategy: str = setting("ddp", "with torchrun: copies of the model (ddp), or pieces of it (fsdp)", STRATEGIES)

    save_every: int = setting(0, "steps between two checkpoints (0: an epoch)", least=0)
    keep: int = setting(3, "newest checkpoints that are kept, beside the best", least=1)
    log_every: int = setting(10, "steps between two lines in metrics.jsonl", least=1)

    @property
    def highest_lr(self) -> float:
        return OPTIMIZERS[self.optimizer][0] if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        return OPTIMIZERS[self.optimizer][1] if self.weight_decay is None else self.weight_decay


# A resumed run may change these: where and in how many pieces it computes, what it writes down...
FREE = {"workers", "strategy", "compile", "accumulate", "precision", "keep", "log_every", "save_every", "patience"}
# ... and these, to save a training that went wrong. All others would make another training of it.
RESCUE = {"lr", "weight_decay", "clip", "label_smoothing", "dropout", "augment"}
KINDS = {name: (typing.get_args(hint) or (hint,))[0] for name, hint in typing.get_type_hints(Settings).items()}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each field. One that is not given leaves no trace, so that it overrides nothing."""
    group = parser.add_argument_group("settings of the training, also as keys of the file that --config names")
    for item in fields(Settings):
        flag, text = "--" + item.name.replace("_", "-"), f"{item.metadata['help']} [{shown(item.default)}]"
        if KINDS[item.name] is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(flag, default=argparse.SUPPRESS, help=text, choices=item.metadata["choices"],
                               metavar=item.name.split("_")[-1].upper())  # fmt: skip


def shown(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "usual" if value is None else f"{value}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, each with its value; those of a nested table are refused. Raises CannotRun."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CannotRun(f"{path} cannot be read as YAML ({reason}); write lines such as `lr: 0.001`") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CannotRun(f"{path} holds a {type(content).__name__}; write lines such as `lr: 0.001`")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def write_yaml(settings: Settings, seed: int) -> str:
    """A file that --config reads: the whole training on one page."""
    import yaml

    return yaml.safe_dump({"seed": seed, **asdict(settings)}, sort_keys=False)


def updated(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    """`settings` with `values`, as text or as the numbers that they are. Raises CannotRun, naming `source`."""
    known = [item.name for item in fields(Settings)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            near += [
                short for short in known if short == "".join(word[:1] for word in name.split("_"))
            ]  # learning_rate
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise CannotRun(f"{source} sets {name!r}, which is no setting; {remedy}")
    return replace(settings, **{name: _parsed(name, value, source) for name, value in values.items()})


def _parsed(name: str, value: Any, source: str) -> Any:
    kind, limits = KINDS[name], Settings.__dataclass_fields__[name].metadata
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise CannotRun(f"{source} sets {name} to {value!r}; it is true or false")
    if value is None and Settings.__dataclass_fields__[name].default is None:
        return None
    if isinstance(value, bool | list | dict) or value is None:
        raise CannotRun(f"{source} sets {name} to {value!r}; it is {_wanted(kind, limits)}")
    try:
        # From text, since YAML 1.1 reads 1e-3 as a word and 010 as eight; 3.0 is not a number of epochs either.
        parsed = kind(str(value))
    except ValueError:
        raise CannotRun(f"{source} sets {name} to {value!r}; it is {_wanted(kind, limits)}") from None
    if kind is not str:
        least, below = limits["least"], limits["below"]
        if not (parsed >= least and parsed < (float("inf") if below is None else below)):  # refuses NaN as well
            raise CannotRun(f"{source} sets {name} to {value!r}; it is {_wanted(kind, limits)}")
    elif limits["choices"] and parsed not in limits["choices"]:
        raise CannotRun(f"{source} sets {name} to {value!r}; it is one of {', '.join(limits['choices'])}")
    return parsed


def _wanted(kind: type, limits: Mapping[str, Any]) -> str:
    if kind is str:
        return "a word"
    number = "a whole number" if kind is int else "a number"
    below = limits["below"]
    return f"{number} of at least {limits['least']}" + ("" if below is None else f" and below {round(below, 3)}")


def check_together(settings: Settings, processes: int) -> None:
    """Settings that are right one by one and contradict each other. Raises CannotRun with the remedy."""
    pieces = processes * settings.accumulate
    if settings.batch_size % pieces:
        parts = f"{processes} processes x {settings.accumulate} pieces" if processes > 1 else f"{pieces} pieces"
        nearest = max(pieces, round(settings.batch_size / pieces) * pieces)
        raise CannotRun(f"a batch of {settings.batch_size} cannot be divided by {parts}; try --batch-size {nearest}")
    if settings.strategy == "fsdp" and processes == 1:
        raise CannotRun("--strategy fsdp divides a model between processes; start it with torchrun --nproc-per-node 2")
    if settings.strategy == "fsdp" and settings.optimizer == "muon":
        raise CannotRun("muon needs whole matrices and fsdp divides them; use --optimizer adamw or --strategy ddp")
    if settings.decay * settings.highest_lr >= 1:
        usual = OPTIMIZERS[settings.optimizer][1]
        raise CannotRun(
            f"lr {settings.highest_lr} x weight_decay {settings.decay} wipes out the weights in one step; "
            f"try --weight-decay {usual}"
        )


def expect_same(now: Settings, saved: Settings, path: Path) -> None:
    """A resumed run goes on with the same training. Raises CannotRun where a setting says otherwise."""
    for name in (item.name for item in fields(Settings)):
        if name not in FREE | RESCUE and getattr(now, name) != getattr(saved, name):
            raise CannotRun(
                f"{path} is of a training with {name} {shown(getattr(saved, name))}, and this one has "
                f"{shown(getattr(now, name))}; leave --{name.replace('_', '-')} out, or begin a run with another --name"
            )


def with_defaults(values: Mapping[str, Any]) -> Settings:
    """The settings that a checkpoint holds; one that this version knows and that did not has its default."""
    known = {item.name for item in fields(Settings) if item.default is not MISSING}
    return Settings(**{name: value for name, value in values.items() if name in known})
