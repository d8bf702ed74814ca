"""What TF32 does to a comparison: the same convolution with all bits of float32, and with 10 of them."""

from typing import Any

from shared.agreement import deviation
from shared.device import full_float32
from shared.lesson import Lesson
from shared.units import significant

import torch
import torch.nn.functional as F

STEP = 2**-10  # between two numbers of TF32 from 1 on; float32 has 2^-23


def round_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """The nearest number with 10 bits behind the point: float32's last 13 bits rounded away, ties away from 0."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def as_cudnn_by_default(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "tf32"
    try:
        return F.conv2d(x, weight)
    finally:
        convolutions.fp32_precision = before


def show_tf32(lesson: Lesson) -> None:
    lesson.section(
        "Ten bits for twenty-three: TF32",
        "On NVIDIA GPUs since Ampere, cuDNN's convolutions and recurrent layers round what they multiply to TF32 unless "
        "told otherwise: 10 bits behind the point where float32 has 23; the sums keep all. Two right layers then differ "
        "as if one were wrong. Rounded by hand, any machine shows it.",
    )
    x, weight = torch.randn(4, 16, 20, 20), torch.randn(24, 16, 3, 3)
    exact = F.conv2d(x.double(), weight.double())
    x, weight = x.to(lesson.device), weight.to(lesson.device)
    with full_float32():
        found = {"float32": F.conv2d(x, weight), "rounded by hand": F.conv2d(round_to_tf32(x), round_to_tf32(weight))}
    has_tf32 = lesson.device.type == "cuda" and torch.cuda.get_device_capability(lesson.device) >= (8, 0)
    if has_tf32:
        found["cuDNN's default"] = as_cudnn_by_default(x, weight)
    off = {name: deviation(y.cpu().double(), exact) for name, y in found.items()}
    lesson.table(
        [
            {"inputs and weights": name, "off by": significant(value, 2), "times float32": value / off["float32"]}
            for name, value in off.items()
        ]
    )
    for name, value in off.items():
        lesson.record("deviation of a convolution", value, "relative", way=name)
    largest = ((round_to_tf32(x) - x).abs() / x.abs().clamp_min(1e-30)).max().item()  # randn may draw a 0
    lesson.check("rounding moves a number by half a step at most", largest <= 1.001 * STEP / 2,
                 f"{largest:.2e} of it; half a step is {STEP / 2:.2e}")  # fmt: skip
    ratio = off["rounded by hand"] / off["float32"]
    lesson.check("float32 passes the 1e-05 of above, TF32 does not", off["float32"] < 1e-5 < off["rounded by hand"],
                 f"{off['float32']:.0e} and {off['rounded by hand']:.0e}")  # fmt: skip
    if has_tf32:
        share = off["cuDNN's default"] / off["rounded by hand"]
        lesson.check("cuDNN is as far off as the rounding by hand", 0.1 < share < 10, f"{share:.2f} times as far")
    else:
        lesson.skip("cuDNN itself, beside the rounding by hand.", "an NVIDIA GPU of compute capability 8.0 or newer")
    lesson.shows(
        f"the shorter format moved the result {significant(ratio, 2)} times as far from the exact one. Training "
        "lives with such noise, and an A100's data sheet gives TF32 156 TFLOP/s where float32 has 19.5. But compare "
        "without it: the seven layers above were compared inside full_float32() of shared/device.py."
    )
