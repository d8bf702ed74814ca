"""The same traces on the GPU's real allocator, so that the model can be held against it."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_00_tensor_gpu_basics.src.memory.caching_allocator import Layout, Step

import torch

ROOT = Path(__file__).resolve().parents[3]
# Settings that change the allocator's rules, under their new and their older names; ROCm has one more.
SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING")


def why_not_comparable() -> str:
    """Why this GPU's allocator does not follow the default rules; "" where it does."""
    if torch.cuda.get_allocator_backend() != "native":
        return "PyTorch's own allocator (backend:native)"
    if changed := [name for name in SETTINGS if name in os.environ]:
        return f"the default settings; unset {' and '.join(changed)}"
    return ""


def replay(trace: Sequence[Step], expandable: bool = False) -> Layout:
    """Does what `trace` says on the GPU, and returns how the segments look that it took.

    The allocator keeps free blocks apart by stream, since a block may be reused at once only in the order of one queue.
    On a stream of its own the trace therefore finds no block that others have left, and its segments can be told apart.
    Raises RuntimeError where segments are not `expandable`, or are, contrary to what was asked.
    """
    gc.collect()
    torch.cuda.empty_cache()
    stream = torch.cuda.Stream()
    tensors: dict[str, torch.Tensor] = {}
    with torch.cuda.stream(stream):
        for step in trace:
            if not step.name:
                torch.cuda.empty_cache()
            elif step.size:
                tensors[step.name] = torch.empty(step.size, dtype=torch.uint8, device="cuda")
            else:
                del tensors[step.name]
    own = [segment for segment in torch.cuda.memory_snapshot() if segment["stream"] == stream.cuda_stream]
    tensors.clear()
    torch.cuda.empty_cache()
    if any(segment["is_expandable"] != expandable for segment in own):
        raise RuntimeError(f"this GPU's segments are {'not ' if expandable else ''}expandable")
    return sorted(map(blocks_of, own))


def blocks_of(segment: dict[str, Any]) -> list[tuple[int, int]]:
    """A segment of memory_snapshot() in the form of `caching_allocator.layout`."""
    return [
        (block["size"], block["requested_size"] if block["state"] == "active_allocated" else 0)
        for block in segment["blocks"]
    ]


def replay_with_expandable_segments(trace: Sequence[Step]) -> Layout:
    """`replay` in a process of its own, since the setting has to be there before the first allocation.

    Raises RuntimeError where this GPU or driver has no expandable segments.
    """
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    program = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pytorch_00_tensor_gpu_basics.src.memory.caching_allocator import Step\n"
        "from pytorch_00_tensor_gpu_basics.src.memory.gpu_allocator import replay\n"
        "print(json.dumps(replay([Step(*step) for step in json.loads(sys.argv[2])], expandable=True)))"
    )
    steps = json.dumps([(step.name, step.size) for step in trace])
    done = subprocess.run([sys.executable, "-c", program, str(ROOT), steps], capture_output=True, text=True,
                          env=environment, timeout=300)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the process with expandable segments failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    return [[(size, requested) for size, requested in blocks] for blocks in json.loads(done.stdout.splitlines()[-1])]
