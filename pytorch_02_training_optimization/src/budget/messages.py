"""What an out-of-memory message says: its numbers, read by a program, and which of four cures they call for."""

import re
from collections.abc import Callable, Mapping

from pytorch_02_training_optimization.src.budget.ledger import cuda_size
from shared.lesson import Lesson
from shared.units import bytes_text

import torch

GIB, MIB = 2**30, 2**20
SIZE = r"([\d.,]+) ?(bytes|[KMGT]i?B)"
# Of CUDA's message, in its order; the CPU's has the first alone, the one of MPS the first and "allowed".
PARTS = {
    "asked for": rf"[Tt]ried to allocate {SIZE}",
    "the card has": rf"total capacity of {SIZE}",
    "free": rf"of which {SIZE} is free",
    "this process": rf"this process has {SIZE} memory in use",
    "allowed": rf"(?:{SIZE} allowed;|max allowed: {SIZE})",
    "in tensors": rf"{SIZE} is allocated by PyTorch",
    "in private pools": rf"with {SIZE} allocated in private pools",
    "in holes": rf"{SIZE} is reserved by PyTorch but unallocated",
}
MEANS = {
    "asked for": "the one tensor that did not fit, rounded up by the allocator",
    "the card has": "all of its memory; CUDA itself takes some of it",
    "free": "what no process has taken",
    "this process": "PyTorch's memory, and CUDA's context and libraries",
    "allowed": "a limit that you have set (set_per_process_memory_fraction)",
    "in tensors": "blocks with a tensor in them",
    "in private pools": "a part of that, kept for CUDA graphs",
    "in holes": "blocks without one, between the others",
}
CURES = {
    "shape": "no cure for memory helps: look at the shape that asks for so much",
    "neighbour": "another process has the room: look at nvidia-smi for a run that was forgotten",
    "holes": "the room is there, in pieces: start with PYTORCH_ALLOC_CONF=expandable_segments:True",
    "full": "your tensors fill it: a smaller part of the batch, or one of the cures below",
}
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": MIB, "GiB": GIB, "TiB": 2**40,
         "KB": 2**10, "MB": MIB, "GB": GIB, "TB": 2**40}  # fmt: skip  # MPS says GB and means GiB


def read_message(message: str) -> dict[str, int]:
    """The numbers in an out-of-memory message, in bytes, by the names of PARTS; what it does not say is left out."""
    found = {}
    text = " ".join(message.split())
    for name, pattern in PARTS.items():
        if match := re.search(pattern, text):
            number, unit = [group for group in match.groups() if group]
            found[name] = round(float(number.replace(",", "")) * UNITS[unit])
    return found


def choose_cure(parts: Mapping[str, int]) -> str:
    """Which of CURES the numbers call for. Raises KeyError where the message does not say what was asked for."""
    asked, room = parts["asked for"], parts.get("allowed", parts.get("the card has", 0))
    if room and asked > room:
        return "shape"
    if asked <= parts.get("in holes", 0) + parts.get("free", 0) and "allowed" not in parts:
        return "holes"
    others = (
        parts.get("the card has", 0) - parts.get("free", 0) - parts.get("this process", parts.get("the card has", 0))
    )
    return "neighbour" if others >= asked - parts.get("free", 0) > 0 else "full"


def cuda_message(asked: int, capacity: int, others: int, tensors: int, holes: int, context: int = 520 * MIB) -> str:
    """A message as torch 2.15 writes it on a GPU with these numbers; `others` is what other processes have."""
    used = context + tensors + holes
    return (
        f"CUDA out of memory. Tried to allocate {cuda_size(asked)}. GPU 0 has a total capacity of {cuda_size(capacity)} "
        f"of which {cuda_size(capacity - others - used)} is free. Including non-PyTorch memory, this process has "
        f"{cuda_size(used)} memory in use. Of the allocated memory {cuda_size(tensors)} is allocated by PyTorch, and "
        f"{cuda_size(holes)} is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try "
        "setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
    )


def own_message(function: Callable[[], object]) -> str:
    """What the out-of-memory error of `function` says, without C++'s stack; other errors pass through."""
    try:
        function()
    except torch.OutOfMemoryError as error:
        return str(error)
    except RuntimeError as error:  # the CPU and MPS have no error of their own for it
        if not any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")):
            raise
        return str(error).partition(" Exception raised from")[0]
    return ""


CASES = {
    "shape": cuda_message(152 * GIB, 24 * GIB, 0, 2 * GIB, 300 * MIB),
    "neighbour": cuda_message(2 * GIB, 24 * GIB, 14 * GIB, 8 * GIB, 400 * MIB),
    "holes": cuda_message(3 * GIB, 24 * GIB, 0, 18 * GIB, 5 * GIB),
    "full": cuda_message(1 * GIB, 24 * GIB, 0, 22 * GIB + 600 * MIB, 300 * MIB),
}


def show_message(lesson: Lesson) -> None:
    device = lesson.device
    lesson.section(
        "What the message says",
        "The message of an out-of-memory error has up to eight numbers, and most people read the first. Together they "
        "tell apart four causes with four different cures. Here is one as CUDA writes it, taken to pieces by a program "
        "of one pattern for each number.",
    )
    lesson.drawing("\n".join(_wrapped(CASES["holes"], 92)))
    parts = read_message(CASES["holes"])
    lesson.table([{"part": name, "bytes": bytes_text(parts[name]) if name in parts else "not said", "means": MEANS[name]}
                  for name in PARTS])  # fmt: skip
    lesson.text("Four messages of a card of 24 GiB, and what a program concludes from their numbers:")
    rows, chosen = [], {}
    for name, message in CASES.items():
        parts = read_message(message)
        chosen[name] = choose_cure(parts)
        others = parts["the card has"] - parts["free"] - parts["this process"]
        rows.append({"asked for": bytes_text(parts["asked for"]), "free": bytes_text(parts["free"]),
                     "tensors": bytes_text(parts["in tensors"]), "holes": bytes_text(parts["in holes"]),
                     "others": bytes_text(max(others, 0)), "so": CURES[chosen[name]]})  # fmt: skip
    lesson.table(rows)
    lesson.check("four causes are told apart by their numbers", all(name == cure for name, cure in chosen.items()),
                 ", ".join(chosen.values()))  # fmt: skip
    asked = 2**50  # 1 PiB: refused everywhere, before any memory is touched
    said = own_message(lambda: torch.empty(asked, dtype=torch.uint8, device=device))
    lesson.items({f"on {device.type}": " ".join(said.split())[:400]})
    lesson.check("the same reader understands this device", read_message(said).get("asked for") == asked,
                 f"{bytes_text(read_message(said).get('asked for', 0))} asked for")  # fmt: skip
    holes = read_message(CASES["holes"])
    lesson.shows(
        f"the one with {bytes_text(holes['in holes'])} in holes could not place {bytes_text(holes['asked for'])}: no tensor "
        "has to go, the pieces have to be joined, which expandable segments do (project 00 draws how, under "
        "Fragmentation). Set it before Python starts; the allocator reads it once. For the fourth cause there is no "
        "setting, and the rest of this lesson is about it."
    )


def _wrapped(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, line]
