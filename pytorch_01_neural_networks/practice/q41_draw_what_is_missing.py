"""The weights came from the checkpoint, and then they did not.

A published encoder is fine-tuned: its checkpoint is loaded, and what the file does not bring, a new head and a few new layers,
is drawn. The fine-tuned model reaches what training from scratch reaches. The checkpoint is whole, load_state_dict reports
the names that it should, and nothing raises an error. Somebody notes that sentences of different length now give different
answers for the same words, and somebody else that the batches come in the same order in every run, whatever the seed.
"""

from collections.abc import Collection

import torch
from torch import nn


@torch.no_grad()
def draw_missing(model: nn.Module, loaded: Collection[str], seed: int) -> None:
    """Draws, in place, every parameter of the model that the checkpoint did not bring.

    loaded: the names of the parameters that came from the checkpoint, as in a state_dict. A tensor that the model uses under
        several names (an output layer tied to the embedding, a block used twice) has one of them in the file, whichever.
    What came from the checkpoint stays as it is. A missing parameter that is shared is drawn once. The rules:
        Embedding        from N(0, 0.02²); the row of padding_idx, where there is one, is 0
        Linear, Conv1d   weight: nn.init.kaiming_normal_ with nonlinearity="relu"; bias: 0. Where a Linear shares its weight
                         with an Embedding, the Embedding's rule holds
        all others       named "bias": 0; of one axis: 1; else from N(0, 0.02²)
    The draws follow from the seed alone, on the CPU, where the model still lies. The random generator of the rest of the
    program goes on as if nothing had happened.
    """
    # TODO: whose number is overwritten, and by which name did the file call it?
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if f"{path}.{name}" in loaded:
                continue
            torch.manual_seed(seed)
            if name == "bias":
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)
