"""Looking on while torch computes: every operation that reaches a device, from whatever line of Python it came."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watcher(TorchDispatchMode):
    """Calls `saw` after every operation inside a `with` block; what is to be kept of it, a subclass decides."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True, the default, imports the whole compiler (4 s) only to keep it away from this mode

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = operation(*args, **given)
        self.saw(operation, args, given, result)
        return result

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Is told of one operation: the overload, such as aten.add.Tensor, what it was given and what it returned."""
        raise NotImplementedError


def name_of(operation: Any) -> str:
    """Such as "add.Tensor" for aten.add.Tensor; other libraries keep their prefix."""
    return str(operation).removeprefix("aten.")


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """The tensors in `values`, in any nesting of tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
