"""Two looks at each call: at what goes in, before the module runs, and at what comes out, as soon as it does.

The first output that is not finite would be the innermost module, but also an innocent one that was handed a nan by code
between two modules; only the look at the input tells them apart. It has to be taken before the call, because a module may write
into its input. Calls are nested, so the looks are kept on a stack: what was pushed last belongs to the module that returns
first. with_kwargs=True shows what a plain hook never hears of. The handles are removed in any case, by the ExitStack. On a GPU
each look waits for the device; this is a tool for the one batch that fails. What it does not see: gradients. If all is finite
and the gradient is not, torch.autograd.detect_anomaly() names the operation.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn


def is_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, dict):
        value = list(value.values())
    return all(is_finite(part) for part in value) if isinstance(value, tuple | list) else True


def born_in(model: nn.Module, *args: Any, **kwargs: Any) -> str | None:
    entered_finite: list[bool] = []
    born: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered_finite.append(is_finite((args, kwargs)))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if entered_finite.pop() and not is_finite(output):
            born.append(names[module])

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(after))
        model(*args, **kwargs)
    return born[0] if born else None
