"""A parameter is a tensor; its names are only ways to it.

Four slips, all silent. A tied tensor has two names and the file holds one, so a test by name takes it for missing under the
other and draws over it: compare the tensors themselves, with remove_duplicate=False to see all their names. A parameter of the
model itself has no path, and f"{path}.{name}" makes ".cls" of "cls", which no file contains. normal_ fills the padding row of an
embedding too, so that padding begins to speak. And a seed set for each parameter gives all weights of one shape the same
numbers, and sets the generator that shuffles the data back to the same place; a generator of one's own touches nobody else. To
guard against all of it in a real program: sum up each parameter before and after, and print the names of those that changed.
"""

from collections.abc import Collection

import torch
from torch import nn


@torch.no_grad()
def draw_missing(model: nn.Module, loaded: Collection[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    finished = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in loaded}
    embeddings_first = sorted(model.modules(), key=lambda module: not isinstance(module, nn.Embedding))
    for module in embeddings_first:
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in finished:
                continue
            finished.add(id(parameter))
            if name == "bias":
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                parameter[module.padding_idx] = 0
