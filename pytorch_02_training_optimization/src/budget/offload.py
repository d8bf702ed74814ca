"""Somewhere else: activations and optimizer states on a slower, larger memory, and when the way there is worth it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pytorch_02_training_optimization.src.budget.checkpoints import error_of, sizes_of
from pytorch_02_training_optimization.src.budget.ledger import Ledger
from pytorch_02_training_optimization.src.budget.network import (
    EXPANSION,
    Batch,
    Network,
    count_parameters,
    make_network,
    random_batch,
)
from pytorch_02_training_optimization.src.budget.packing import Context, Packing, kept_and_gradients
from shared.agreement import deviation
from shared.hardware import link_bandwidth, matmul_peak
from shared.lesson import Lesson
from shared.timing import measure
from shared.units import bytes_text, percent, rate_text, seconds_text, significant

import torch
import torch.nn.functional as F
from torch.autograd.graph import save_on_cpu


@dataclass(frozen=True)
class Ticket:
    """What is left on the device of a tensor that was taken away."""

    like: torch.Tensor  # without numbers; it remembers device and dtype
    shape: torch.Size
    place: torch.Tensor | Path


class Shelf:
    """The next larger memory: main memory for a GPU, files in `folder` for a CPU. Counts the bytes of both ways."""

    def __init__(self, device: torch.device, folder: Path) -> None:
        self.device, self.folder = device, folder
        self.bytes_put = self.bytes_taken = self.count = 0

    def put(self, x: torch.Tensor) -> Ticket:
        self.bytes_put += x.nbytes
        self.count += 1
        place: torch.Tensor | Path
        if self.device.type == "cpu":
            place = self.folder / f"{self.count}.bin"
            place.write_bytes(x.contiguous().view(torch.uint8).numpy().data)
        else:
            # Pinned, so that the GPU copies by itself while Python goes on; all of it stays in order on one stream.
            place = torch.empty(x.shape, dtype=x.dtype, pin_memory=torch.cuda.is_initialized())
            place.copy_(x, non_blocking=place.is_pinned())
        return Ticket(x.new_empty(0), x.shape, place)

    def take(self, ticket: Ticket) -> torch.Tensor:
        x = ticket.like.new_empty(ticket.shape)
        self.bytes_taken += x.nbytes
        if isinstance(ticket.place, Path):
            with open(ticket.place, "rb") as file:
                file.readinto(x.view(torch.uint8).numpy().data)
            ticket.place.unlink()
        else:
            x.copy_(ticket.place, non_blocking=ticket.place.is_pinned())
        return x


@contextmanager
def shelf_for(device: torch.device) -> Iterator[Shelf]:
    with TemporaryDirectory(prefix="lab-offload-") as folder:
        yield Shelf(device, Path(folder))


def on_the_shelf(shelf: Shelf) -> Context:
    """Inside its block, activations go to the shelf; weights stay, since they are there anyway."""
    return lambda model, batch: Packing(shelf.put, shelf.take, [*model.parameters(), *batch])


def with_save_on_cpu(model: Network, batch: Batch) -> save_on_cpu:
    """The library's, for GPUs. It takes the weights along as well."""
    return save_on_cpu(pin_memory=torch.cuda.is_initialized())


class PagedAdam:
    """Adam whose averages live on a shelf and visit the device one parameter at a time.

    The same numbers as torch.optim.Adam's; paged optimizers (bitsandbytes) do it with the GPU's own paging.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], shelf: Shelf, lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:  # fmt: skip
        self.parameters, self.shelf = list(parameters), shelf
        self.lr, self.betas, self.eps, self.steps = lr, betas, eps, 0
        self._tickets = [(shelf.put(torch.zeros_like(p)), shelf.put(torch.zeros_like(p))) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        size = self.lr / (1 - beta1**self.steps)
        correction = (1 - beta2**self.steps) ** 0.5
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            average, square = map(self.shelf.take, self._tickets[i])
            average.lerp_(parameter.grad, 1 - beta1)
            square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
            parameter.addcdiv_(average, (square.sqrt() / correction).add_(self.eps), value=-size)
            self._tickets[i] = self.shelf.put(average), self.shelf.put(square)


def train(optimizer: "torch.optim.Optimizer | PagedAdam", model: Network, batch: Batch, steps: int) -> None:
    x, y = batch
    for _ in range(steps):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.zero_grad()


def adam_and_paged(
    channels: int, depth: int, device: torch.device, steps: int, seed: int
) -> tuple[float, int, int, int]:
    """How far the weights of both are apart, the bytes that both have on the device, and those moved in a step."""
    batch = random_batch(16, device)
    weights, alive, moved = [], [], 0
    with shelf_for(device) as shelf:
        for is_paged in (False, True):
            torch.manual_seed(seed)
            with Ledger(device) as ledger:
                model = make_network(channels, depth, device)
                parameters = list(model.parameters())
                optimizer = PagedAdam(parameters, shelf) if is_paged else torch.optim.Adam(parameters, foreach=False)
                before = shelf.bytes_put + shelf.bytes_taken
                train(optimizer, model, batch, steps)
                moved = (shelf.bytes_put + shelf.bytes_taken - before) // steps
                alive.append(ledger.live_bytes)
            weights.append(parameters)
    return max(deviation(a, b) for a, b in zip(*weights, strict=True)), alive[0], alive[1], moved


def show_offload(lesson: Lesson) -> None:
    device = lesson.device
    channels, depth, batch_size = sizes_of(lesson)
    place = "files" if device.type == "cpu" else "main memory"
    lesson.section(
        "Somewhere else: offloading",
        "A tensor that waits may wait in a larger and slower memory: main memory beside a GPU, a disk beside a CPU. The same "
        f"two hooks send it there and fetch it back. Here that memory is {place}. Nothing is computed twice and nothing is "
        "rounded; the price is the way, twice.",
    )
    torch.manual_seed(lesson.options.seed)
    model, batch = make_network(channels, depth, device), random_batch(batch_size, device)
    kept, right = kept_and_gradients(lambda model, batch: Packing(lambda x: x, lambda x: x, []), model, batch)
    with shelf_for(device) as shelf:
        left, gradients = kept_and_gradients(on_the_shelf(shelf), model, batch)
        moved = shelf.bytes_put
        chunk = torch.randn(batch_size, EXPANSION * channels, device=device)
        way = measure(lambda: shelf.take(shelf.put(chunk)), device, budget_s=lesson.pick(full=0.5, quick=0.02))
    there_and_back = 2 * chunk.nbytes / way.median_s
    lesson.record("bytes moved there and back", there_and_back / 1e9, "GB/s", way, link_bandwidth(device), place=place)
    by_library, library_gradients = kept_and_gradients(with_save_on_cpu, model, batch)
    paged_off, adam_bytes, paged_bytes, paged_moved = adam_and_paged(channels, depth, device, 3, lesson.options.seed)
    parameters = count_parameters(channels, depth)
    lesson.table([
        {"what": "activations, kept", "on the device": bytes_text(kept), "moved in a step": "0 B"},
        {"what": "activations, offloaded", "on the device": bytes_text(left), "moved in a step": bytes_text(2 * moved)},
        {"what": "activations, save_on_cpu", "on the device": bytes_text(by_library),
         "moved in a step": "0 B: it is a CPU" if device.type == "cpu" else "activations and weights"},
        {"what": "weights and Adam", "on the device": bytes_text(adam_bytes), "moved in a step": "0 B"},
        {"what": "weights and paged Adam", "on the device": bytes_text(paged_bytes),
         "moved in a step": bytes_text(paged_moved)},
    ])  # fmt: skip
    lesson.check(
        "less than a twentieth stays on the device", left < kept / 20, f"{bytes_text(left)} of {bytes_text(kept)}"
    )
    lesson.check("what left the device came back to the bit", error_of(gradients, right) < 1e-6, "the same gradients")
    if device.type == "cpu":
        lesson.check("save_on_cpu frees nothing on a CPU", by_library == kept, "main memory is where it is already")
    else:
        lesson.check("save_on_cpu leaves little on the GPU", by_library < kept / 10, bytes_text(by_library))
    lesson.check(
        "save_on_cpu gives the same gradients", error_of(library_gradients, right) < 1e-6, "nothing is rounded"
    )
    lesson.check("a paged Adam takes the same steps", paged_off < 1e-6, f"off by {significant(paged_off, 1)} after 3")
    lesson.check("and keeps none of its 8 bytes on the device", adam_bytes - paged_bytes >= 8 * parameters,
                 f"{bytes_text(adam_bytes - paged_bytes)}; twice that moves")  # fmt: skip
    show_break_even(lesson, there_and_back, place)


def show_break_even(lesson: Lesson, moved_per_s: float, place: str) -> None:
    """When computing a block again is faster than fetching it: by the measured rates of both."""
    device = lesson.device
    n = lesson.pick(full=4096, cpu=512, quick=128)
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    product = measure(lambda: a @ b, device, budget_s=lesson.pick(full=0.3, quick=0.02))
    flops_per_s = 2 * n**3 / product.median_s
    peak = matmul_peak(device, torch.float32)
    share = f", {percent(flops_per_s / peak.value)} of the most it can do" if peak else ""
    lesson.record("product", flops_per_s / 1e9, "GFLOP/s", product, peak, n=n)
    lesson.text(
        f"Which is cheaper, the way or the work? A block keeps 40 C bytes of each sample, which go there and back (here at "
        f"{rate_text(moved_per_s, 'B/s')}), or costs 16 C² operations again (at {rate_text(flops_per_s, 'FLOP/s')}{share}). "
        "Of 1,000 samples:"
    )
    rows = []
    for channels in (64, 256, 1024, 4096, 16384):
        move_s, work_s = 1000 * 80 * channels / moved_per_s, 1000 * 16 * channels**2 / flops_per_s
        rows.append({"C": channels, "the way": seconds_text(move_s), "the work": seconds_text(work_s),
                     "cheaper": "the work" if work_s < move_s else "the way"})  # fmt: skip
    lesson.table(rows)
    even = 5 * flops_per_s / moved_per_s
    cheaper = [row["cheaper"] for row in rows]
    lesson.check("work grows with C², the way with C", cheaper == sorted(cheaper, reverse=True),
                 f"even at C = {even:,.0f}: 5 x (operations / bytes) a second")  # fmt: skip
    limit = link_bandwidth(device)
    beside = (f"The link can do {rate_text(limit.value, 'B/s')} in one direction. " if limit
              else "The disk's own speed is unknown: the operating system keeps files of this size in memory. ")  # fmt: skip
    lesson.shows(
        f"here it pays to offload blocks wider than {even:,.0f} channels. {beside}A faster chip moves the crossing up, a "
        "faster link down. Optimizer states are another matter: they cannot be computed again, and half of Adam's 16 bytes "
        "can live elsewhere where a step takes longer than their way."
    )
