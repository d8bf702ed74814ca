"""Four mistakes, each a word or an indent, and each leaves the shapes right and the program quiet.

images = images[order] shuffles what was shuffled in the epoch before, while labels stay in their first order: from the second
epoch on they belong to other images. Shuffle numbers, and index both with them. F.cross_entropy takes the softmax itself; of
probabilities it takes it again, so that the slopes are small and the loss cannot pass a floor. accuracy() switches to eval
mode and nobody switches back, so from the second epoch on dropout is off and batch norms stand still: set the mode where it is
needed and not where it was. And lr was halved after each batch; after twenty of them a millionth is left. None of the four
shows in a loss that stands still, but each shows at once where it is looked at: one batch by heart, the labels of one image
over two epochs, model.training and lr in the log.
"""

import torch
import torch.nn.functional as F
from torch import nn

BATCH_SIZE = 10


@torch.no_grad()
def step(model: nn.Module, lr: float) -> None:
    for weight in model.parameters():
        weight -= lr * weight.grad


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
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
    history = []
    for _ in range(epochs):
        model.train()
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            model.zero_grad()
            loss.backward()
            step(model, lr)
        lr *= 0.5
        history.append(accuracy(model, test_images, test_labels))
    return history
