"""Two formats for weights: a pickle, which may run code, and safetensors, which is a header and bytes."""

import importlib.util
import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

from pytorch_01_neural_networks.src.modules.loading import Classifier, count_loaded, pretend_training
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import bytes_text

import torch
from torch import nn

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


class RunsCodeWhenLoaded:
    """A pickle may name any function and its arguments, and unpickling calls it. This one only makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def refusal(path: Path) -> str:
    """What torch.load with weights_only=True says to this file; "" where it loads."""
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        return next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error)).strip()
    return ""


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the place where the numbers begin.

    Eight bytes are the header's length, the header is JSON, the rest is numbers (safetensors' README, "Format").
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor out of a safetensors file; of the others not a byte is read. Raises KeyError for an unknown name or dtype."""
    header, start = read_header(path)
    entry = header[name]
    first, last = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(start + first)
        numbers = bytearray(file.read(last - first))
    return torch.frombuffer(numbers, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])


class TiedModel(nn.Module):
    """Scores for the next token from the table that also holds the tokens' vectors: one tensor, two names."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.scores = nn.Linear(16, 50, bias=False)
        self.scores.weight = self.tokens.weight


def show_pickle(lesson: Lesson) -> None:
    lesson.section(
        "A file that runs code",
        "torch.save writes a pickle, and a pickle is a small program: it may name a function of any module and have it "
        "called while it is read. weights_only=True reads with a list of what is allowed, tensors and plain Python. "
        "Here is a checkpoint that holds a tensor, and makes a folder in a temporary place. It could do anything.",
    )
    with tempfile.TemporaryDirectory() as name:
        path, made = Path(name) / "weights.pt", Path(name) / "made_by_the_file"
        torch.save({"weight": torch.ones(2), "note": RunsCodeWhenLoaded(made)}, path)
        lesson.check("saving has run nothing yet", not made.exists(), "the folder is not there")
        refused = refusal(path)
        lesson.check("weights_only=True refuses the file, and runs nothing", bool(refused) and not made.exists(),
                     "UnpicklingError; the folder is not there")  # fmt: skip
        lesson.items({"it says": refused})
        torch.load(path, weights_only=False)
        ran = made.exists()
        lesson.check("weights_only=False runs what the file says", ran, "the folder is there, without a word")
        harmless = Path(name) / "harmless.pt"
        torch.save({"model": Classifier().state_dict(), "step": 100, "loss": 0.25, "classes": ["cat", "dog"]}, harmless)
        lesson.check(
            "a checkpoint of tensors and plain Python passes", refusal(harmless) == "", "numbers, strings, lists, dicts"
        )
    lesson.shows(
        f"reading the file {'ran' if ran else 'did not run'} a function that its author chose, with your rights. The error that "
        "weights_only=True raises is a reason to ask where a file comes from, not to switch it off."
    )


def show_safetensors(lesson: Lesson) -> None:
    lesson.section(
        "safetensors: a header and bytes",
        "A format that cannot run anything, because there is nothing in it that could: eight bytes for a length, a header "
        "in JSON, then the numbers. It opens without reading all of it, in any language, and it is how most weights are "
        "shared today. In return it takes tensors alone: no steps, no optimizer's lists.",
    )
    if importlib.util.find_spec("safetensors") is None:
        lesson.skip(
            "safetensors files written, read by hand, and with tied weights.",
            "safetensors: pip install -r requirements.txt",
        )
        return
    from safetensors.torch import load_file, load_model, save_file, save_model

    model = pretend_training(Classifier())
    state = model.state_dict()
    with tempfile.TemporaryDirectory() as name:
        path, pickled = Path(name) / "weights.safetensors", Path(name) / "weights.pt"
        save_file(state, path)
        torch.save(state, pickled)
        loaded, (header, start) = load_file(path), read_header(path)
        by_hand = {entry: read_tensor(path, entry) for entry in header}
        sizes = path.stat().st_size, pickled.stat().st_size
        lesson.table([{"name in the header": entry, "dtype": facts["dtype"], "shape": str(facts["shape"]),
                       "bytes": "{} to {}".format(*facts["data_offsets"])} for entry, facts in header.items()])  # fmt: skip
        lesson.check("load_file gives back every tensor to the last bit", count_loaded(model, loaded) == len(state),
                     f"{count_loaded(model, loaded)} of {len(state)}")  # fmt: skip
        lesson.check("so does a reader of our own", count_loaded(model, by_hand) == len(state),
                     "read_tensor() in src/modules/files.py")  # fmt: skip
        numbers = sum(x.nbytes for x in state.values())
        lesson.check("the file is header and numbers, nothing else", sizes[0] == start + numbers,
                     f"{start} + {numbers:,} bytes; torch.save: {sizes[1]:,}")  # fmt: skip
        tied = TiedModel()
        refused = complaint(lambda: save_file(tied.state_dict(), path))
        lesson.text("Two tensors that share memory have no place in it, and a view with gaps neither:")
        gaps = complaint(lambda: save_file({"x": torch.ones(4, 4).T}, path))
        lesson.items({"tied weights": refused, "a transpose": gaps})
        lesson.check("tied weights and views are refused, not doubled", "share memory" in refused and "contiguous" in gaps,
                     "RuntimeError and ValueError")  # fmt: skip
        save_model(tied, str(path))
        kept = [entry for entry in read_header(path)[0] if entry != "__metadata__"]
        fresh = TiedModel()
        load_model(fresh, path)
        lesson.check("save_model keeps one name of the two, load_model ties again",
                     len(tied.state_dict()) == 2 and fresh.scores.weight is fresh.tokens.weight
                     and torch.equal(fresh.tokens.weight, tied.tokens.weight),
                     f"{', '.join(kept)} of {', '.join(tied.state_dict())}")  # fmt: skip
    lesson.shows(
        f"{bytes_text(sizes[0])} hold {len(state)} tensors, of which {start} bytes are the header. Share weights as "
        "safetensors; keep torch.save with weights_only=True for checkpoints of your own, which also hold optimizer and step."
    )
