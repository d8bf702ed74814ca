"""One process of a training that survives a kill: torchrun starts this file, and elastic.py calls `train` by hand.

torchrun --standalone --nproc-per-node 2 --max-restarts 1 elastic_worker.py FOLDER STEPS KILL_AT
"""

import json
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this checkout's shared/, nothing installed

from shared import checkpoints

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

SAVE_EVERY = 5  # steps
LR, MOMENTUM = 0.1, 0.9


def train(folder: Path, steps: int, kill_at: int | None) -> None:
    """This rank's part of a training by hand that rank 0 saves every few steps.

    Begins from the last checkpoint in `folder`, where there is one. Rank 1 kills itself at the head of step `kill_at`,
    as the system does when memory runs out, but only in the first life of the group. Rank 0 leaves `result.json`.
    """
    rank, n = dist.get_rank(), dist.get_world_size()
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    velocities = [torch.zeros_like(parameter) for parameter in model.parameters()]
    x, y = make_data()
    start, path = 0, checkpoints.latest(folder)
    if path is not None:  # all ranks read the same file, so all of them are equal again
        saved = checkpoints.load(path)
        start = saved.step
        model.load_state_dict(saved.state["model"])
        velocities = saved.state["velocities"]
    for step in range(start, steps):
        if rank == 1 and step == kill_at and life == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        picked = torch.arange(step * 8 + rank, step * 8 + 8, n) % len(x)  # every n-th of a batch of 8
        model.zero_grad()
        F.mse_loss(model(x[picked]), y[picked]).backward()
        with torch.no_grad():
            for parameter, velocity in zip(model.parameters(), velocities, strict=True):
                dist.all_reduce(parameter.grad)
                velocity.mul_(MOMENTUM).add_(parameter.grad, alpha=1 / n)
                parameter -= LR * velocity
        if rank == 0 and (step + 1) % SAVE_EVERY == 0:
            checkpoints.save(folder, step + 1, {"model": model.state_dict(), "velocities": velocities})
    with torch.no_grad():
        loss = F.mse_loss(model(x), y).item()
    dist.barrier()
    if rank == 0:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
        result = {"loss": loss, "began_at": start, "restarts": life, "variables": {n: os.environ.get(n) for n in names}}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    """64 points of a smooth function, (64, 8) and (64, 1)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=generator)
    return x, torch.sin(x.sum(dim=1, keepdim=True))


def meet_in_this_life() -> None:
    """dist.init_process_group("gloo"), with names of this life's own in the store that torchrun keeps.

    The store outlives a restart. Under the names of the last life it still has the addresses of processes that are
    dead, and who is quicker than its partner connects to those (PyTorch issues 135712 and 167288).
    """
    told = os.environ
    store = dist.TCPStore(told["MASTER_ADDR"], int(told["MASTER_PORT"]), is_master=False)
    own = dist.PrefixStore(f"life-{told['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group("gloo", store=own, rank=int(told["RANK"]), world_size=int(told["WORLD_SIZE"]))


def main(argv: list[str]) -> None:
    folder, steps, kill_at = argv
    torch.set_num_threads(1)
    meet_in_this_life()
    train(Path(folder), int(steps), int(kill_at))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
