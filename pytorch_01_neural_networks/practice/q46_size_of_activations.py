"""Looking costs more from day to day.

After each epoch a function sends some batches through the model and writes down how large the outputs of its Linear layers
are. The curves look plausible. But each epoch takes a little longer than the one before, the memory of a run grows until it
ends, and the layers in front of a ReLU never show a negative mean, whatever is printed beside it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def activation_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, tuple[float, float]]:
    """Mean and root mean square of what each nn.Linear of the model returned, over all numbers of all batches.

    batches: inputs of the model, one after another, not always of one size; they come from a disk and are read once.
    Returns {name as in named_modules(): (mean, root mean square)}, for every Linear that was called; one that is called
    twice for a batch counts with both outputs.
    No graph is recorded, since nothing is learned here, and when the next batch begins, a few numbers are all that is left of
    the last one. After the call, also one that ends with an error, the model has the hooks that it had before and no other.

    Example: outputs [[3.0, -1.0]] in the first batch and [[1.0, 1.0], [1.0, 1.0]] in the second: mean 1.0, and the root of
    14 / 6, 1.5275.
    """
    # TODO: how long does a hook live, what does an output hold on to, and who may still write into it?
    seen: dict[str, list[torch.Tensor]] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
            seen.setdefault(name, []).append(output)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(remember(name))
    for x in batches:
        model(x)
    numbers = {name: torch.cat([output.flatten() for output in outputs]) for name, outputs in seen.items()}
    return {name: (x.mean().item(), x.square().mean().sqrt().item()) for name, x in numbers.items()}
