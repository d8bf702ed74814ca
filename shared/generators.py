"""The state of the global random generators, so that a resumed run draws what an undisturbed one would have drawn."""

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch


def rng_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state of all global random generators that a run on `device` draws from, as load() can read it."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = (name, keys.tolist(), *rest)  # weights_only refuses arrays
    kind = torch.device(device).type
    if kind == "cuda":
        state["cuda"] = torch.cuda.get_rng_state_all()
    elif kind == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng_state(state: Mapping[str, Any]) -> None:
    """Set the generators to what rng_state() returned. Those of a GPU that this machine lacks are left out."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())  # load(map_location=...) moves the state of the CPU's generator as well
    if "numpy" in state:
        import numpy

        numpy.random.set_state(state["numpy"])
    for index, cuda_state in zip(range(torch.cuda.device_count()), state.get("cuda", ()), strict=False):
        torch.cuda.set_rng_state(cuda_state.cpu(), index)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())
