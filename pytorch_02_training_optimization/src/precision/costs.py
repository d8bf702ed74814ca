"""What 16 bits save: the memory of activations to the byte, and time beside the limit, where there is any to save."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

from pytorch_02_training_optimization.src.precision.casting import dtype_name, half_dtype, operation_names
from pytorch_02_training_optimization.src.precision.scaling import relative_error
from pytorch_02_training_optimization.src.precision.task import CLASSES, GradientDescent
from shared.device import full_float32, memory, reset_peak
from shared.hardware import Limit, matmul_peak
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.units import bytes_text, percent, seconds_text, significant

import torch
import torch.nn.functional as F
from torch import nn

Context = Callable[[], AbstractContextManager[Any]]


# Memory


def bytes_kept(forward: Callable[[], torch.Tensor], not_counted: Sequence[torch.Tensor]) -> int:
    """Bytes that autograd keeps of `forward()` until backward; each storage once, those of `not_counted` not at all."""
    known = {tensor.untyped_storage().data_ptr() for tensor in not_counted}
    kept: dict[int, torch.UntypedStorage] = {}  # holds them, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


class Attention(nn.Module):
    """A pre-norm transformer block without dropout; x (B, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.to_qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.to_qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, C/H)
        q, k, v = qkv.unbind()
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: torch.Tensor = x + self.mlp(x)
        return y


def make_stacks(device: torch.device) -> dict[str, nn.Module]:
    """Three layers of each kind, all of them of 32 channels, and one transformer block."""

    def three(*make: Callable[[], nn.Module]) -> nn.Module:
        return nn.Sequential(*(layer() for _ in range(3) for layer in make)).to(device)

    def convolution() -> nn.Module:
        return nn.Conv2d(32, 32, 3, padding=1, bias=False)

    return {
        "convolution, ReLU": three(convolution, nn.ReLU),
        "convolution, BatchNorm, ReLU": three(convolution, lambda: nn.BatchNorm2d(32), nn.ReLU),
        "convolution, ReLU, max pooling": three(convolution, nn.ReLU, lambda: nn.MaxPool2d(2)),
        "transformer block": Attention(64, 4).to(device),
    }


def narrowed(device: torch.device) -> Context:
    return lambda: torch.autocast(device.type, half_dtype(device))


def measure_kept(model: nn.Module, x: torch.Tensor, context: Context) -> int:
    def forward() -> torch.Tensor:
        with context():
            y: torch.Tensor = model(x)
            return y

    return bytes_kept(forward, list(model.parameters()))


def show_memory(lesson: Lesson) -> None:
    half = half_dtype(lesson.device)
    lesson.section(
        "What 16 bits save in memory",
        "Weights, gradients and the optimizer stay float32, so autocast saves nothing there. It saves where large batches "
        "hurt: in what backward() needs of the forward pass. saved_tensors_hooks shows every tensor that autograd keeps, "
        "so the bytes are counted, not estimated, on any machine. memory_profiling of project 00 has the formula for an "
        "MLP; here are other layers.",
    )
    batch = lesson.pick(full=64, cpu=16, quick=4)
    images, tokens = (
        torch.randn(batch, 32, 32, 32, device=lesson.device),
        torch.randn(batch, 128, 64, device=lesson.device),
    )
    table, shares, counts = [], {}, {}
    for name, model in make_stacks(lesson.device).items():
        x = tokens if isinstance(model, Attention) else images
        wide, narrow = (measure_kept(model, x, context) for context in (nullcontext, narrowed(lesson.device)))
        copies = half.itemsize * sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)
        shares[name] = narrow / wide
        lesson.record("kept for backward", narrow, "B", layers=name, dtype=half)
        table.append({"layers": name, "float32": bytes_text(wide), "autocast": bytes_text(narrow),
                      "share": percent(narrow / wide), "copies of weights in it": bytes_text(copies)})  # fmt: skip
        counts[name] = wide, narrow, copies
    lesson.table(table)
    if lesson.device.type != "mps":
        wide, narrow, copies = counts["convolution, ReLU"]
        lesson.check("convolution and ReLU: half, plus 16-bit weights", narrow == wide // 2 + copies,
                     f"{narrow:,} = {wide:,} / 2 + {copies:,} bytes")  # fmt: skip
    lesson.check("every stack keeps less than in float32", max(shares.values()) < 1,
                 f"{percent(min(shares.values()))} to {percent(max(shares.values()))}")  # fmt: skip
    plain, pooled = shares["convolution, ReLU"], shares["convolution, ReLU, max pooling"]
    lesson.check("max pooling saves less: it keeps its places as int64", pooled > plain,
                 f"{percent(pooled)} of float32's bytes, without it {percent(plain)}")  # fmt: skip
    least = max(shares, key=shares.__getitem__)
    lesson.shows(
        f'half is the limit, and "{least}" misses it most, with {percent(shares[least])}: what is no 16-bit number '
        "(indices, statistics, what a float32 operation keeps) stays as large as it was. The copies of the weights are "
        "new, and do not shrink with the batch. So expect a batch that is larger, but not twice as large."
    )


# Time


@contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Inside, float32 products and convolutions on CUDA keep all bits ("ieee") or round what they multiply ("tf32")."""
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    with full_float32():  # puts the convolutions back at its end
        before = products.fp32_precision
        products.fp32_precision = convolutions.fp32_precision = precision
        try:
            yield
        finally:
            products.fp32_precision = before


def processor_features() -> dict[str, bool | None]:
    """What this CPU has for 16-bit products; None where this PyTorch does not tell."""
    asked = {"AVX-512 bfloat16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported",
             "AMX float16": "_is_amx_fp16_supported"}  # fmt: skip
    return {name: getattr(torch.cpu, ask)() if hasattr(torch.cpu, ask) else None for name, ask in asked.items()}


def device_features(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        kinds = ("float16",) if major == 7 else ("float16", "bfloat16", "TF32") if major >= 8 else ()
        return f"compute capability {major}.{minor}: tensor cores for {', '.join(kinds) or 'nothing'}"
    if device.type == "mps":
        return "Apple's GPU computes in float16 and float32"
    words = {True: "yes", False: "no", None: "unknown"}
    return ", ".join(f"{name}: {words[has]}" for name, has in processor_features().items())


def at_least(limit: Limit | None, rate: float) -> Limit | None:
    """A limit that was measured is a lower bound: a faster product of ours raises it."""
    if limit is None or limit.kind != "measured" or limit.value >= rate:
        return limit
    return Limit(rate, limit.unit, limit.source, limit.kind)


def product_formats(device: torch.device) -> dict[str, tuple[torch.dtype, str]]:
    """The type of the operands, and how float32 is multiplied on CUDA."""
    formats = {"float32": (torch.float32, "ieee")}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        formats["TF32"] = torch.float32, "tf32"
    formats["bfloat16"] = torch.bfloat16, "ieee"
    if device.type != "cpu":
        formats["float16"] = torch.float16, "ieee"
    return formats


def product(drawn: torch.Tensor, dtype: torch.dtype, precision: str) -> Callable[[], torch.Tensor]:
    """The call that multiplies the two matrices in `drawn` (2, n, n) in this format."""
    a, b = drawn.to(dtype).unbind()

    def multiply() -> torch.Tensor:
        with float32_as(precision):
            return a @ b

    return multiply


def show_products(lesson: Lesson) -> None:
    lesson.section(
        "What 16 bits save in time: one product",
        "A product is fast in 16 bits where the chip has units for it; then half the bytes come on top. Without such units "
        "each number is widened, multiplied and narrowed again, and 16 bits cost time. What does this machine have? "
        "The products below are measured in turns, so that a drift of the machine meets all of them.",
    )
    lesson.items({"this device": device_features(lesson.device)})
    sizes = lesson.pick(full=[256, 1024, 4096, 8192], cpu=[64, 256, 512], quick=[32, 64])
    formats = product_formats(lesson.device)
    table, gains, errors = [], {}, []
    for n in sizes:
        drawn = torch.randn(2, n, n, device=lesson.device)
        products = {name: product(drawn, dtype, precision) for name, (dtype, precision) in formats.items()}
        timings = compare(products, lesson.device, budget_s=lesson.pick(full=0.4, quick=0.05))
        for name, (dtype, precision) in formats.items():
            rate = 2 * n**3 / timings[name].median_s
            limit = at_least(matmul_peak(lesson.device, dtype, tf32=precision == "tf32"), rate)
            lesson.record("product", rate / 1e9, "GFLOP/s", timings[name], limit, n=n, format=name)
            gains[n, name] = ratio(timings["float32"], timings[name]).median
            if dtype != torch.float32:
                error = relative_error([products[name]().float()], [products["float32"]()])
                errors.append(error / torch.finfo(dtype).eps)
            table.append({"n x n": n, "format": name, "time": seconds_text(timings[name].median_s),
                          "GFLOP/s": rate / 1e9, "limit": limit.value / 1e9 if limit else None,
                          "share": percent(rate / limit.value if limit else None),
                          "times float32": "" if name == "float32" else f"{gains[n, name]:.2f}"})  # fmt: skip
    lesson.table(table)
    if lesson.device.type == "cpu":
        lesson.note("float16 is left out: most CPUs have no units for it and take a hundred times as long. A CPU has no "
                    "data sheet here; its limit is the best product that this process has seen.")  # fmt: skip
    lesson.check("each 16-bit product is right to a step of its format", max(errors) < 1,
                 f"{max(errors):.2f} of a step at worst, {len(errors)} products")  # fmt: skip
    best = {n: max(gain for (size, name), gain in gains.items() if size == n and name.endswith("16")) for n in sizes}
    lesson.shows(
        f"16 bits make the product of n = {sizes[-1]} {best[sizes[-1]]:.2f} times as fast as float32 here, and that of "
        f"n = {sizes[0]} {best[sizes[0]]:.2f} times, where little of the time is arithmetic. Below 1 they cost "
        "time. Ask your own machine, at your own sizes, before you change a line."
    )


# Where it does not help


def training_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, context: Context) -> Callable[[], None]:
    optimizer = GradientDescent(model.parameters(), 1e-3)

    def step() -> None:
        with context():
            loss = F.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def show_small_models(lesson: Lesson) -> None:
    lesson.section(
        "Where it does not help",
        "Autocast adds operations: a cast of the input and of every weight and bias, and each one costs Python and "
        "PyTorch the same microseconds, however few numbers it has. A small model spends its time on exactly that. One "
        "training step of an MLP with three layers, by width:",
    )
    batch, device = lesson.pick(full=256, cpu=64, quick=16), lesson.device
    widths = lesson.pick(full=[64, 512, 2048, 8192], cpu=[16, 128, 512], quick=[8, 32])
    table, counts, gains = [], {}, {}
    for width in widths:
        sizes = (width, width, width, CLASSES)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        model = nn.Sequential(*layers[:-1]).to(device)
        x, y = torch.randn(batch, width, device=device), torch.randint(CLASSES, (batch,), device=device)
        contexts: dict[str, Context] = {"float32": nullcontext, "autocast": narrowed(device)}
        counts[width] = {name: count_forward(model, x, context) for name, context in contexts.items()}
        timings = compare({name: training_step(model, x, y, context) for name, context in contexts.items()}, device,
                          budget_s=lesson.pick(full=0.5, quick=0.05))  # fmt: skip
        for name, timing in timings.items():
            lesson.record("training step", timing.median_s * 1e3, "ms", timing, width=width, way=name)
        gains[width] = ratio(timings["float32"], timings["autocast"]).median
        table.append({"width": width, "operations forward, float32": counts[width]["float32"],
                      "autocast": counts[width]["autocast"],
                      "step, float32": seconds_text(timings["float32"].median_s),
                      "step, autocast": seconds_text(timings["autocast"].median_s),
                      "gain": f"{gains[width]:.2f}x"})  # fmt: skip
    lesson.table(table, best=widths.index(max(gains, key=gains.__getitem__)))
    first, more = counts[widths[0]], [by["autocast"] - by["float32"] for by in counts.values()]
    lesson.check("autocast adds a cast for input, weights and biases", min(more) >= 7,
                 f"{first['autocast']} operations in place of {first['float32']}")  # fmt: skip
    lesson.check("as many in a small network as in a large one", len(set(more)) == 1,
                 f"{more[0]} for width {widths[0]} and for width {widths[-1]}")  # fmt: skip
    slower = [width for width, gain in gains.items() if gain < 1]
    lesson.shows(
        f"{more[0]} operations more in each forward pass. "
        + (
            f"At width {', '.join(map(str, slower))} the step became slower. "
            if slower
            else "No width here became slower. "
        )
        + f"At width {widths[-1]} the gain is {gains[widths[-1]]:.2f}x. Autocast pays where products are large and the "
        "device multiplies 16 bits fast; where the time is Python's, or the data loader's, look there first."
    )


def count_forward(model: nn.Module, x: torch.Tensor, context: Context) -> int:
    def forward() -> None:
        with context():
            model(x)

    return len(operation_names(forward))


# A residual network


class Block(nn.Module):
    """Two convolutions with BatchNorm and a shortcut (He et al. 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


def make_residual_network(widths: Sequence[int], blocks: int, device: torch.device) -> nn.Sequential:
    """For images (B, 3, H, W); each width after the first halves H and W."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False)]
    for before, width in zip((widths[0], *widths), widths, strict=False):
        layers += [Block(before, width, 1 if before == width else 2)]
        layers += [Block(width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES)).to(device)


def step_operations(model: nn.Module, x: torch.Tensor) -> int:
    """Floating-point operations of a training step in its convolutions and linear layers: forward, and twice that back."""
    counted = []

    def count(module: nn.Module, given: object, y: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        counted.append(2 * y.numel() * weight[0].numel())

    hooks = [
        layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return 3 * sum(counted)


def ways_to_train(device: torch.device) -> dict[str, tuple[torch.dtype, str, bool]]:
    """What autocast narrows to (float32: nothing), how float32 is multiplied, and whether channels come last."""
    half = half_dtype(device)
    ways = {"float32, all bits": (torch.float32, "ieee", False)}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        ways["float32 by way of TF32"] = torch.float32, "tf32", False
    ways[f"{dtype_name(half)} autocast"] = half, "ieee", False
    ways["float32, channels_last"] = torch.float32, "ieee", True
    ways[f"{dtype_name(half)} autocast, channels_last"] = half, "ieee", True
    if device.type == "cuda" and half != torch.float16:
        ways["float16 autocast, channels_last"] = torch.float16, "ieee", True
    return ways


def residual_step(dtype: torch.dtype, precision: str, channels_last: bool, widths: Sequence[int], blocks: int,
                  x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:  # fmt: skip
    """One training step of a network of its own; float16 with a GradScaler, as it must be used."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = make_residual_network(widths, blocks, x.device).to(memory_format=layout)
    images = x.contiguous(memory_format=layout)
    optimizer = GradientDescent(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler(x.device.type, enabled=dtype == torch.float16 and x.device.type == "cuda")

    def step() -> None:
        with ExitStack() as stack:
            stack.enter_context(float32_as(precision))
            with torch.autocast(x.device.type, dtype) if dtype != torch.float32 else nullcontext():
                loss = F.cross_entropy(model(images), y)
            model.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)  # type: ignore[arg-type]
            scaler.update()

    return step


def peak_of(step: Callable[[], None], device: torch.device) -> int | None:
    """The most bytes that were allocated during a step, with all that was there before; None where nobody counts."""
    if device.type != "cuda":
        return None
    step()
    reset_peak(device)
    step()
    return memory(device).peak_bytes


def shown_bytes(count: int | None) -> str:
    return "–" if count is None else bytes_text(count)


def show_residual_network(lesson: Lesson) -> None:
    device = lesson.device
    widths = lesson.pick(full=(128, 256, 512), cpu=(16, 32, 64), quick=(8, 16))
    blocks, batch = lesson.pick(full=2, quick=1), lesson.pick(full=128, cpu=16, quick=4)
    half = half_dtype(device)
    lesson.section(
        "A residual network, a whole step",
        "Forward, loss, backward and update of a network as people train it, with convolutions, BatchNorm and shortcuts. "
        "On NVIDIA's GPUs the fair opponent is float32 with all its bits: convolutions round to TF32 unless told not to, "
        "as custom_modules of project 01 shows. channels_last lays the channels of a pixel side by side, which is how "
        "tensor cores want them.",
    )
    x, y = torch.randn(batch, 3, 32, 32, device=device), torch.randint(CLASSES, (batch,), device=device)
    ways = ways_to_train(device)
    searched = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"  # the fastest kernel for each shape, for every way alike
    try:
        steps = {name: residual_step(*way, widths, blocks, x, y) for name, way in ways.items()}
        peaks = {name: peak_of(step, device) for name, step in steps.items()}
        timings = compare(steps, device, rounds=5, budget_s=lesson.pick(full=4.0, quick=0.2))
    finally:
        torch.backends.cudnn.benchmark = searched
    operations = step_operations(make_residual_network(widths, blocks, device), x)
    table, gains, shares = [], {}, {}
    for name, (dtype, precision, _) in ways.items():
        rate = operations / timings[name].median_s
        limit = at_least(matmul_peak(device, dtype, tf32=precision == "tf32"), rate)
        gains[name] = ratio(timings["float32, all bits"], timings[name])
        lesson.record(
            "training step of a residual network", rate / 1e9, "GFLOP/s", timings[name], limit, way=name, batch=batch
        )
        lesson.record("gain over float32", gains[name].median, "x", way=name)
        shares[name] = percent(rate / limit.value if limit else None)
        table.append({"way": name, "step": seconds_text(timings[name].median_s), "GFLOP/s": rate / 1e9,
                      "limit": limit.value / 1e9 if limit else None, "share": shares[name],
                      "gain": f"{gains[name].median:.2f}x", "peak": shown_bytes(peaks[name])})  # fmt: skip
    best = max(gains, key=lambda name: gains[name].median)
    lesson.table(table, best=list(ways).index(best))
    model = make_residual_network(widths, blocks, device)
    with torch.no_grad(), float32_as("ieee"):
        wide = model.eval()(x)
        with torch.autocast(device.type, half):
            narrow = model(x)
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    error = relative_error([narrow.float()], [wide])
    lesson.check("the logits under autocast are those of float32", error < 16 * torch.finfo(half).eps,
                 f"off by {percent(error)}, a step of {dtype_name(half)} is {percent(torch.finfo(half).eps)}")  # fmt: skip
    lesson.check("channels_last changes the layout, not the network", relative_error([last], [wide]) < 1e-4,
                 f"logits off by {relative_error([last], [wide]):.0e}")  # fmt: skip
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and not lesson.quick:
        lesson.check("with tensor cores a step is at least 1.8 times as fast", gains[best].median >= 1.8,
                     f"{best}: {gains[best]}")  # fmt: skip
    else:
        lesson.skip("a step at least 1.8 times as fast as in float32.", "an NVIDIA GPU of compute capability 8.0 or newer, "
                    "and a full run")  # fmt: skip
    at_share = f", at {shares[best]} of its limit" if shares[best] != "unknown" else ""
    lesson.shows(
        f"the best way here is {best}, {significant(gains[best].median)} times as fast as float32 with all bits"
        f"{at_share}. What is missing to the limit is BatchNorm, ReLU and the update, which move bytes and multiply "
        "little; a step in 16 bits shows it more, since its products are over sooner. Measure your own step this way "
        "before you believe a factor that somebody else has found."
    )
