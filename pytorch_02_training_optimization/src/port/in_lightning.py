"""The training of `train` as a LightningModule. The only file of the lab that imports Lightning."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src.port.forms import now_s
from pytorch_02_training_optimization.src.train import Training, lr_share
from pytorch_02_training_optimization.src.training.data import Pair

import torch
import torch.nn.functional as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that Lightning imports
    import lightning.pytorch as pl

PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}


class Classifier(pl.LightningModule):
    """The same network, loss, optimizer and schedule; the loop around them is Lightning's."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.net, self.mean, self.deviation = training.bare, training.mean, training.deviation
        self.optimizer, self.steps = training.optimizers[0], training.steps
        self.losses: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net((images.float() - self.mean) / self.deviation)

    def training_step(self, batch: list[Pair], index: int) -> torch.Tensor:
        [(images, labels)] = batch
        loss = F.cross_entropy(self(images).float(), labels)
        if not self.trainer.barebones:
            self.log("train/loss", loss)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        share = partial(lr_share, steps=self.steps, warmup=0.1, final=0.0)
        rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)
        schedule = {"scheduler": rate, "interval": "step"}
        return {"optimizer": self.optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None,
                                    gradient_clip_algorithm: Any = None) -> None:  # fmt: skip
        # Lightning's own refuses a fused optimizer in mixed precision.
        torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


class Stopwatch(pl.Callback):
    """The time from the first step to the end of the last one, before anything is saved."""

    def __init__(self) -> None:
        self.start_s = self.loop_s = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.start_s = now_s(module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any) -> None:
        if trainer.is_last_batch:
            self.loop_s = now_s(module.device) - self.start_s


@contextmanager
def quiet() -> Iterator[None]:
    """Without its advice on workers, its table of the model and its line about GPUs."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def make_trainer(training: Training, folder: str | Path, **options: Any) -> pl.Trainer:
    """One process on the training's device, with the same precision, clipping and rhythm of logging."""
    usual = {} if options.get("barebones") else {"log_every_n_steps": training.settings.log_every}
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(training.device.type, training.device.type), devices=1,
        max_epochs=training.settings.epochs, gradient_clip_val=1.0,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        **usual, **{"num_sanity_val_steps": 0, "precision": PRECISIONS[training.dtype], **options},
    )  # fmt: skip


class StopAt(pl.Callback):
    """Saves after so many steps and ends the training there, as a pre-empted machine would."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


# Modules that leave a default as it is, to see what it does


class SchedulesByDefault(Classifier):
    """Returns a schedule without saying how often it moves."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.rates: list[float] = []

    def configure_optimizers(self) -> Any:
        rate = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, partial(lr_share, steps=self.steps, warmup=0.1, final=0.0)
        )
        return [self.optimizer], [rate]

    def training_step(self, batch: list[Pair], index: int) -> torch.Tensor:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return super().training_step(batch, index)


class Validates(Classifier):
    """Writes down which kind of step came when."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.order: list[str] = []

    def training_step(self, batch: list[Pair], index: int) -> torch.Tensor:
        self.order.append("train")
        return super().training_step(batch, index)

    def validation_step(self, batch: list[Pair], index: int) -> None:
        self.order.append("validation")


class ClipsByLightning(Classifier):
    """Leaves the clipping to Lightning."""

    configure_gradient_clipping = pl.LightningModule.configure_gradient_clipping
