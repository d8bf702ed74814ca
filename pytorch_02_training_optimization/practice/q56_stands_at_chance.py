"""The loss stands still, and the accuracy is that of guessing, after one epoch and after ten.

Three people have read this and found nothing: zero_grad, backward and step are there, in that order. Whoever repairs one thing
sees it learn for a while, and no longer. So look at what arrives: which images, with which labels, in which mode, at which rate,
and which slope comes back to the scores.
"""

import torch
import torch.nn.functional as F
from torch import nn

BATCH_SIZE = 10


@torch.no_grad()
def step(model: nn.Module, lr: float) -> None:
    """One step of plain gradient descent."""
    for weight in model.parameters():
        weight -= lr * weight.grad


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that the model names rightly, without dropout."""
    model.eval()
    return (model(images).argmax(dim=1) == labels).float().mean().item()


def train(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    test_images: torch.Tensor,
    test_labels: torch.Tensor,
    epochs: int,
    lr: float,
) -> list[float]:
    """Trains the model and returns its accuracy on the test images after each epoch.

    model: (B, inputs) -> logits (B, C); comes in train mode or in eval mode
    images, labels: (N, inputs) and (N,), not changed; likewise the ones for the test

    In an epoch every image is shown once, with its own label, in train mode, in a random order that is new in each epoch, in
    batches of BATCH_SIZE; the last one may be smaller. Each batch makes one step on its mean cross-entropy. The rate is lr in
    the first epoch, and half that of the epoch before in every other. The test runs in eval mode and records no graph.

    Example: 25 images and 3 epochs with lr 0.4: nine steps, three at 0.4, three at 0.2, three at 0.1.
    """
    # TODO: follow one image and its label through two epochs. Then do the same with lr and with model.training.
    history = []
    for _ in range(epochs):
        order = torch.randperm(len(images))
        images = images[order]
        for start in range(0, len(images), BATCH_SIZE):
            x, y = images[start : start + BATCH_SIZE], labels[order[start : start + BATCH_SIZE]]
            probabilities = model(x).softmax(dim=1)
            loss = F.cross_entropy(probabilities, y)
            model.zero_grad()
            loss.backward()
            step(model, lr)
            lr *= 0.5
        history.append(accuracy(model, test_images, test_labels))
    return history
