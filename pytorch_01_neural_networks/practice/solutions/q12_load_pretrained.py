"""First compare everything, then write; and let nothing be missing that was not named.

The prefix is the shortest row of wrappers' names that any name begins with: all names have it, and those of a child called
module have more. Taken from each name alone, or cut out with replace(), it would maim such children; lstrip("module.") takes
away any of these letters, so that module.model.weight becomes weight. The symmetric difference of two sets of names holds
missing and unexpected ones at once. Shapes are compared before load_state_dict is called, because it copies tensor by tensor
and raises at the end: caught, its error leaves a model of which a part is loaded. Copying by hand with copy_ would be worse,
since it broadcasts a single number over a whole layer. And what load_state_dict returns as missing is no list of what stayed
new: where a file without version numbers lacks the counter of a BatchNorm, it is filled in and not reported.
"""

import re
from collections.abc import Mapping

import torch
from torch import nn


def load_pretrained(model: nn.Module, state: Mapping[str, torch.Tensor], new: tuple[str, ...] = ()) -> list[str]:
    wrappers = [re.match(r"((module|_orig_mod)\.)*", name)[0] for name in state]
    prefix = min(wrappers, key=len, default="")
    bare = {name.removeprefix(prefix): x for name, x in state.items()}
    found = {name: x for name, x in bare.items() if not name.startswith(new)}
    own = model.state_dict()
    kept = [name for name in own if name.startswith(new)]
    wrong = [start for start in new if not any(name.startswith(start) for name in own)]
    wrong += found.keys() ^ (own.keys() - kept)
    wrong += [name for name, x in found.items() if name in own and own[name].shape != x.shape]
    if wrong:
        raise ValueError(f"these do not fit: {', '.join(wrong)}")
    model.load_state_dict(found, strict=False)
    return kept
