"""Chapters of experiment_tracking: histograms, images, text, curves, graph, hparams and points, each read back."""

import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import PIXELS
from pytorch_02_training_optimization.src.tracking.event_files import read_board
from pytorch_02_training_optimization.src.tracking.task import Reader
from shared.datasets import load_images
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent

import numpy as np
import torch


def show_histograms(lesson: Lesson, board: Any, folder: Path) -> None:
    lesson.section(
        "Histograms: bins ten per cent wide",
        "A mean hides how weights or gradients are spread: dying units, outliers, a layer that has stopped moving. "
        "add_histogram sorts all numbers of a tensor into bins, each 10 % wider than its neighbour, and keeps the "
        "counts. Here 5,000 numbers, like the gradients of a layer that fall as a training goes on; at the last step ten of "
        "them are NaN:",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    gradients = [0.3**step * torch.randn(5000, generator=generator) for step in range(4)]
    sick = gradients[-1].clone()
    sick[:10] = float("nan")
    for step, x in enumerate([*gradients, sick]):
        board.add_histogram("gradient/first", x, step)
    board.flush()
    found = [event.histogram_value for event in read_board(folder).Histograms("gradient/first")]
    table = [{"step": step, "count": int(h.num), "smallest": shown(h.min), "largest": shown(h.max), "in bins": int(sum(h.bucket)),
              "bins": len(h.bucket), "median by bins": middle_of_bins(h)[1]}
             for step, h in enumerate(found)]  # fmt: skip
    lesson.table(table)
    exact = all(
        (h.num, h.min, h.max) == (x.numel(), x.min().item(), x.max().item())
        and math.isclose(h.sum, x.double().sum().item(), abs_tol=1e-3)
        and math.isclose(h.sum_squares, x.double().square().sum().item(), rel_tol=1e-4)
        for h, x in zip(found[:4], gradients, strict=True)
    )
    lesson.check("count, extremes, sum and squares came back", exact, "4 histograms against the tensors")
    counted = all(list(h.bucket) == count_by_hand(x, h.bucket_limit) for h, x in zip(found[:4], gradients, strict=True))
    lesson.check("each bin counts what lies in it", counted, f"{sum(len(h.bucket) for h in found[:4]):,} bins by hand")
    limits = [middle_of_bins(histogram) for histogram in found[:4]]
    inside = [low <= x.median() <= high for (low, high), x in zip(limits, gradients, strict=True)]
    lesson.check("a bin holds the median, to 10 % of its size", all(inside), f"{sum(inside)} of 4")
    last = found[-1]
    lesson.check("NaNs are counted, and lie in no bin", (last.num, sum(last.bucket)) == (5000, 4990) and math.isnan(last.sum),
                 f"{last.num - sum(last.bucket):.0f} are missing in the picture; smallest: {last.min}")  # fmt: skip
    spread = [math.sqrt(h.sum_squares / h.num) for h in found[:4]]
    lesson.shows(
        f"the spread fell from {spread[0]:.2g} to {spread[3]:.2g}, which the picture shows at once. It does not show the "
        "NaNs: a histogram looks healthy while the tensor is not. Log the number of non-finite values as a scalar too."
    )


def shown(value: float) -> float | str:
    """A dash for NaN, so that the column stays one of numbers."""
    return "–" if math.isnan(value) else value


def count_by_hand(x: torch.Tensor, limits: Any) -> list[float]:
    """How many values lie above the limit before and up to each limit: (previous, limit], as numbers in order."""
    values, upper = np.sort(x.double().numpy()), np.asarray(limits)
    below = np.searchsorted(values, upper, side="left")
    below[-1] = len(values)
    return list(np.diff(below, prepend=0).astype(float))


def middle_of_bins(histogram: Any) -> tuple[float, float]:
    """The limits of the bin in which the median lies."""
    upto = np.cumsum(histogram.bucket)
    index = int(np.searchsorted(upto, upto[-1] / 2))
    return histogram.bucket_limit[max(0, index - 1)], histogram.bucket_limit[index]


# Images, text, precision and recall


def decode(png: bytes) -> torch.Tensor:
    """(C, H, W) bytes of a picture."""
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)))).permute(2, 0, 1)


def log_normalised_image(board: Any, tag: str, image: torch.Tensor) -> None:
    """The mistake: what the model is given has mean 0, and a picture has no colour below 0."""
    board.add_image(tag, (image.float() / 255 - 0.5) / 0.25, 0)


def counts_by_threshold(labels: torch.Tensor, scores: torch.Tensor, thresholds: int) -> torch.Tensor:
    """(6, thresholds): true and false positives, true and false negatives, precision, recall for score >= threshold."""
    rows = []
    for index in range(thresholds):
        said = (scores * (thresholds - 1)).floor() >= index
        tp, fp = (said & (labels == 1)).sum(), (said & (labels == 0)).sum()
        tn, fn = (~said & (labels == 0)).sum(), (~said & (labels == 1)).sum()
        rows.append([tp, fp, tn, fn, tp / (tp + fp).clamp_min(1), tp / (tp + fn).clamp_min(1)])
    return torch.tensor(rows).T


def show_media(lesson: Lesson, board: Any, folder: Path) -> None:
    lesson.section(
        "Images, text and a precision-recall curve",
        "Look at what goes into the model, as the model gets it: an image logged once per run finds more mistakes in "
        "data than any metric. Text keeps a remark beside the curves. A precision-recall curve shows a detector at all its "
        "thresholds at once.",
    )
    images = load_images("glyphs", train=True, count=8).images
    remark = "**Baseline.** Letters `16 x 16`, before the change of the *scale*."
    generator = torch.Generator().manual_seed(lesson.options.seed)
    labels = torch.randint(2, (500,), generator=generator)
    scores = torch.sigmoid(2 * labels - 1 + torch.randn(500, generator=generator))
    board.add_image("letters/bytes", images[0], 0)
    board.add_image("letters/floats", images[0] / 255, 0)
    board.add_image("letters/floats_to_255", images[0].float(), 0)
    log_normalised_image(board, "letters/normalised", images[0])
    board.add_images("letters/batch", images, 0)
    board.add_text("remark", remark, 0)
    board.add_pr_curve("is_it_an_a", labels, scores, 0, num_thresholds=21)
    board.flush()
    found = read_board(folder)
    pictures = {tag: decode(found.Images(tag)[0].encoded_image_string) for tag in found.Tags()["images"]}
    text = found.Tensors("remark/text_summary")[0].tensor_proto.string_val[0].decode()
    curve = as_tensor(found.Tensors("is_it_an_a")[0].tensor_proto)
    by_hand = counts_by_threshold(labels, scores, 21)
    size = {tag: f"{tuple(picture.shape)}" for tag, picture in pictures.items()}
    dark = (pictures["letters/normalised"] == 0).float().mean().item()
    white = (pictures["letters/floats_to_255"] == 255).float().mean().item()
    black_before = (images[0] == 0).float().mean().item()
    lesson.table(
        [
            {"what was given": "bytes, 0 to 255", "read back": size["letters/bytes"], "and looks": "as it should"},
            {"what was given": "floats, 0 to 1", "read back": size["letters/floats"], "and looks": "as it should"},
            {"what was given": "floats, 0 to 255", "read back": size["letters/floats_to_255"],
             "and looks": f"white: {percent(white)} of its numbers are 255"},
            {"what was given": "floats with mean 0", "read back": size["letters/normalised"],
             "and looks": f"too dark: {percent(dark)} are 0, before {percent(black_before)}"},
            {"what was given": "eight images", "read back": size["letters/batch"], "and looks": "as one picture"},
        ]
    )  # fmt: skip
    lesson.check("bytes come back bit for bit", torch.equal(pictures["letters/bytes"], images[0]), "PNG loses nothing")
    off = (pictures["letters/floats"].int() - images[0].int()).abs().max().item()
    lesson.check("floats from 0 to 1 too, or one step of 255 darker", off <= 1, f"{off} of 255 at worst")
    clipped = (images[0].float() / 255 - 0.5 <= 1 / 255 * 0.25).float().mean().item()
    lesson.check("all below the mean became black", abs(dark - clipped) < 1e-6, f"{percent(dark)} of the numbers")
    lesson.check("floats above 1 became white", abs(white - (images[0] >= 1).float().mean().item()) < 1e-6,
                 f"{percent(white)}; give bytes, or divide by 255")  # fmt: skip
    lesson.check("the remark came back", text == remark, f"{len(text)} characters of Markdown")
    lesson.check("the curve is the one counted by hand", torch.allclose(curve, by_hand, atol=1e-6),
                 "21 thresholds: tp, fp, tn, fn, precision, recall")  # fmt: skip
    best = int((2 * curve[4] * curve[5] / (curve[4] + curve[5]).clamp_min(1e-7)).argmax())
    lesson.shows(
        f"the picture is what the browser gets, so undo your normalisation before you log. At threshold {best / 20:g} the "
        f"detector has its best balance: precision {percent(curve[4, best].item())}, recall {percent(curve[5, best].item())}."
    )


def as_tensor(proto: Any) -> torch.Tensor:
    """A tensor of TensorBoard as one of ours."""
    return torch.tensor(list(proto.float_val)).view([axis.size for axis in proto.tensor_shape.dim])


# Graph, hparams, points


def add_graph(board: Any, model: torch.nn.Module, example: torch.Tensor) -> None:
    """The writer traces with torch.jit.trace, which warns that it is deprecated; there is no other way to this tab."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        board.add_graph(model, example)


def read_hparams(board: Any) -> dict[str, float | str | bool]:
    """The hyperparameters of a run, as TensorBoard's table shows them."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = board.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    pairs = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in pairs.items()}


def add_hparams_as_a_run_of_its_own(board: Any, hparams: Mapping[str, Any], results: Mapping[str, float]) -> None:
    """The mistake: without run_name the table's row lives in a new folder, apart from the curves of its run."""
    board.add_hparams(dict(hparams), dict(results))


def show_structure(lesson: Lesson, board: Any, folder: Path) -> None:
    lesson.section(
        "Graph, hyperparameters and points in space",
        "Three tabs that need more than a number: the graph of a model, a table of runs by hyperparameter, and the "
        "projector, which turns vectors in many dimensions into a cloud that you can walk around in.",
    )
    add_graph(board, Reader(32), torch.zeros(1, PIXELS))
    hparams = {"lr": 0.03, "width": 32, "optimizer": "SGD", "nesterov": False}
    board.add_hparams(hparams, {"best/validation_loss": 0.75}, run_name=".")
    letters = load_images("glyphs", train=False, count=20)
    generator = torch.Generator().manual_seed(lesson.options.seed)
    points = torch.randn(20, 6, generator=generator)
    names = [letters.class_names[label] for label in letters.labels]
    board.add_embedding(points, metadata=names, label_img=letters.images / 255, tag="last_layer", global_step=1)
    board.flush()
    found = read_board(folder)
    nodes = [(node.name, node.op) for node in found.Graph().node]
    layers = [name for name, op in nodes if op == "aten::linear"]
    read = read_hparams(found)
    tables = folder / "00001" / "last_layer"
    vectors = [
        [float(number) for number in line.split("\t")] for line in (tables / "tensors.tsv").read_text().splitlines()
    ]
    labels = (tables / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    sprite = decode((tables / "sprite.png").read_bytes())
    lesson.items(
        {
            "graph": ", ".join(f"{name} ({op})" for name, op in nodes if op.startswith("aten::")),
            "hparams": ", ".join(f"{name} = {value}" for name, value in sorted(read.items())),
            "projector": f"tensors.tsv {len(vectors)} x {len(vectors[0])}, metadata.tsv {len(labels)} lines, "
            f"sprite.png {sprite.shape[2]} x {sprite.shape[1]}",
        }
    )
    attributes = [name for name in ("first", "second", "scores") if any(f"[{name}]" in layer for layer in layers)]
    lesson.check(
        "the graph names each layer as the model does", len(attributes) == len(layers) == 3, ", ".join(attributes)
    )
    lesson.check(
        "all hyperparameters came back",
        read == hparams,
        f"{len(read)}; width as {read['width']!r}, nesterov as {read['nesterov']!r}",
    )
    lesson.check("and their result is a scalar of the same run",
                 [event.value for event in found.Scalars("best/validation_loss")] == [0.75], 'run_name="."')  # fmt: skip
    parent = folder / "elsewhere"
    board_elsewhere = type(board)(str(parent))
    add_hparams_as_a_run_of_its_own(board_elsewhere, hparams, {"best/validation_loss": 0.75})
    board_elsewhere.close()
    apart = [path for path in parent.iterdir() if path.is_dir()]
    lesson.check("without run_name they are in another folder", len(apart) == 1, "a second run, named by the time")
    refused = complaint(lambda: board.add_hparams({"betas": [0.9, 0.999]}, {}))
    lesson.check(
        "a list is no hyperparameter", "ValueError" in refused, "bool, str, float, int; write 'beta1', 'beta2'"
    )
    lesson.check(
        "each point came back to its last digit", vectors == points.tolist(), f"{points.numel()} numbers as text"
    )
    cells = [sprite[:, 32 * (i // 5) : 32 * (i // 5 + 1), 32 * (i % 5) : 32 * (i % 5 + 1)] for i in range(20)]
    off = max((cell.int() - image.int()).abs().max().item() for cell, image in zip(cells, letters.images, strict=True))
    lesson.check("with its name and its picture", labels == names and off <= 1, "20 names; the sprite, row by row")
    text_bytes = (tables / "tensors.tsv").stat().st_size / points.numel()
    lesson.shows(
        f"the graph has {len(nodes)} nodes, and is a trace: what an `if` chose for the example is frozen in it. The "
        f"projector writes each number as {text_bytes:.0f} bytes of text, so 10,000 points of 512 would be "
        f"{10_000 * 512 * text_bytes / 1e6:.0f} MB. Pass run_name='.' to add_hparams, once, when the run ends."
    )
