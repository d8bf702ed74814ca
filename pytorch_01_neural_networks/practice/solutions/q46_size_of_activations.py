"""A hook lives until it is removed, and what it keeps lives as long as it does.

Handles are context managers: in an ExitStack, or with try and finally, all are removed on every way out. Clearing
_forward_hooks would remove those of other people too. An output kept as it is holds its graph, and with that the outputs of all
layers before it; under no_grad() there is none. The list itself grew by one output per layer and batch; three numbers are
enough for a mean and a root mean square. They also have to be taken at once. What a hook gets is the very tensor that the next
line of the model goes on with, and nn.ReLU(inplace=True) writes its zeros into it: whoever looks later sees ReLU's output
under Linear's name. A copy would do as well, and cost memory; a number is better.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def activation_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, tuple[float, float]]:
    sums: dict[str, tuple[int, float, float]] = {}

    def add(name: str) -> Any:
        def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
            count, total, squares = sums.get(name, (0, 0.0, 0.0))
            sums[name] = count + output.numel(), total + output.sum().item(), squares + output.square().sum().item()

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                hooks.enter_context(module.register_forward_hook(add(name)))
        for x in batches:
            model(x)
    return {name: (total / count, (squares / count) ** 0.5) for name, (count, total, squares) in sums.items()}
