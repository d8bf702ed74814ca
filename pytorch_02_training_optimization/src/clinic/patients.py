"""Trainings with one mistake each: the mistake is a function, and takes the place of the healthy part."""

from dataclasses import dataclass

from pytorch_02_training_optimization.src.clinic.examination import Illness
from pytorch_02_training_optimization.src.clinic.training import (
    BATCH_SIZE,
    Build,
    Momentum,
    Optimizer,
    Training,
    build_network,
    stack_layers,
)

import torch
import torch.nn.functional as F
from torch import nn


def read_bytes(images: torch.Tensor) -> torch.Tensor:
    """The mistake: grey levels from 0 to 255, as they came from the file."""
    return images.float()


def build_with_softmax() -> nn.Sequential:
    """The mistake: F.cross_entropy wants logits and takes their softmax itself."""
    return nn.Sequential(*build_network(), nn.Softmax(dim=1))


def build_with_std_one() -> nn.Sequential:
    """The mistake: torch.randn for weights. Each layer multiplies the signal by about sqrt(64 / 2)."""
    network = build_network()
    for weight in network.parameters():
        nn.init.normal_(weight)
    return network


def build_with_sigmoids() -> nn.Sequential:
    """The mistake: a slope of at most 1/4 in each of four layers, and weights that do not make up for it."""
    return stack_layers(nn.Sigmoid)


def step_without_zero_grad(model: nn.Module, optimizer: Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mistake: backward() adds to the gradients of all steps before."""
    model.train()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def set_up_then_rebuild(build: Build, lr: float, device: torch.device) -> tuple[nn.Module, Optimizer]:
    """The mistake: the optimizer holds the weights of the first model, and the second one is trained."""
    model = build().to(device)
    optimizer = Momentum(model.parameters(), lr)
    model = build().to(device)  # "start again from new weights"
    return model, optimizer


def draw_images_and_labels_apart(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The mistake: two shuffles where one was meant, so an image meets somebody else's label."""
    of_images = torch.randperm(count, generator=generator)[:BATCH_SIZE]
    of_labels = torch.randperm(count, generator=generator)[:BATCH_SIZE]
    return of_images, of_labels


class Detached(nn.Module):
    """The mistake: detach() in the middle, left over from the day on which the features were looked at."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()


def build_with_detach() -> nn.Sequential:
    *features, head = build_network()
    return nn.Sequential(*features, Detached(), head)


@torch.no_grad()
def score_in_train_mode(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The mistake: no model.eval(), so dropout goes on dropping."""
    scores: torch.Tensor = model(x)
    return scores


# The beds


@dataclass(frozen=True)
class Patient:
    """`illness` is what the examination should find, without being told; the line in question, and cured."""

    training: Training
    illness: Illness
    written: str
    cured: str


PATIENTS = (
    Patient(Training(read=read_bytes), Illness.INPUTS, "x = images.float()", "x = (images.float() - mean) / std"),
    Patient(Training(build=build_with_softmax), Illness.SOFTMAX, "Linear(64, 10), Softmax(dim=1)", "Linear(64, 10)"),
    Patient(Training(build=build_with_std_one), Illness.START, "normal_(weight)", "kaiming_normal_(weight)"),
    Patient(Training(build=build_with_sigmoids), Illness.VANISHING, "Linear(64, 64), Sigmoid()",
            "Linear(64, 64), ReLU(), kaiming_normal_"),
    Patient(Training(set_up=set_up_then_rebuild), Illness.OTHER_WEIGHTS, "optimizer = …; model = build()",
            "model = build(); optimizer = …"),
    Patient(Training(lr=3.0), Illness.LR_HIGH, "lr = 3.0", "the best of the rates tried"),
    Patient(Training(step=step_without_zero_grad), Illness.OLD_GRADIENTS, "loss.backward()",
            "optimizer.zero_grad(); loss.backward()"),
    Patient(Training(draw=draw_images_and_labels_apart), Illness.LABELS, "x[shuffle()], y[shuffle()]",
            "order = shuffle(); x[order], y[order]"),
)  # fmt: skip
TWICE_ILL = Training(build=build_with_detach, score=score_in_train_mode)
