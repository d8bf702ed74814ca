"""An image classification data set that needs no download: letters and digits in the fonts that matplotlib ships.

Each 32×32 RGB image shows one glyph, scaled, sheared, rotated, shifted and coloured, on a textured background with
bars behind it and a thin one across it. Shapes decide, not single pixels, as in photographs.

The same seed gives the same bytes on every platform that has the same matplotlib. A sum or a sine in floating point
may differ between platforms in its last bit, and rounding to a byte turns some of these into another pixel.
Therefore all arithmetic here is on integers: positions are fixed-point numbers, sine and cosine come from a table of
rounded integers, and random numbers are the raw words of PCG64, whose stream NumPy guarantees for all versions
(it does not for the methods of `Generator`). FreeType, which matplotlib brings along, draws with integers too; its
next version may draw some edge a shade darker, which is why the promise ends with matplotlib's version.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

from shared.errors import CannotRun

import numpy as np
from numpy.typing import NDArray

# Ten letters of which no two look alike, also not mirrored or upside down, so that random flips are a fair
# augmentation. (Chosen from the confusions of a network trained on all 36, where 0 and O, or 1 and I, stay hard.)
CLASS_NAMES = {10: tuple("ABCEKMOSTU"), 36: tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")}
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
TRAIN_COUNT, TEST_COUNT = 50_000, 10_000

SIZE = 32  # pixels
MASK_SIZE = 64  # pixels; capitals are about 35 high, one and a half to two and a half times their height in an image
BLOCK = 720  # images drawn at once: a multiple of 10 and of 36, and small enough for the processor's caches

PIXEL = 256  # positions are in 1/256 pixel, and a coverage of 256 is the whole of a pixel
TURN = 1024  # angles are in 1/1024 turn
UNIT = 4096  # sines are in 1/4096
SINES = np.array([round(UNIT * math.sin(2 * math.pi * step / TURN)) for step in range(TURN)], dtype=np.int32)

Integers = NDArray[np.int32]
Draw = Callable[..., Integers]  # draw(low, high, *shape): random integers (N, *shape), both ends included


def make_glyphs(
    classes: int = 10, *, train: bool, seed: int = 0, count: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images (N, 32, 32, 3) uint8 and their labels (N,) int64, in random order of classes.

    N is `count`, or 50,000 for training and 10,000 for testing; a smaller count gives the first of a larger one.
    Classes are balanced to within one image. Training and test images come from separate random streams.
    The names of the labels are in `CLASS_NAMES[classes]`. Raises ValueError for other than 10 or 36 classes.
    """
    if classes not in CLASS_NAMES:
        raise ValueError(f"classes must be one of {sorted(CLASS_NAMES)}, not {classes}")
    if count is None:
        count = TRAIN_COUNT if train else TEST_COUNT
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    masks = _draw_masks(CLASS_NAMES[classes])
    for start in range(0, count, BLOCK):
        # A stream for each block, which is always drawn whole, so that no image depends on `count`.
        stream = np.random.PCG64(np.random.SeedSequence([seed, classes, train, start]))
        block_labels = _draw_labels(stream, classes)
        stop = min(start + BLOCK, count)
        labels[start:stop] = block_labels[: stop - start]
        images[start:stop] = _draw_images(stream, masks, block_labels)[: stop - start]
    return images, labels


@cache
def _draw_masks(characters: tuple[str, ...]) -> NDArray[np.uint8]:
    """Draw every character in every font, centred: (characters, fonts, 64, 64), 255 inside the glyph."""
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font, LoadFlags
    except ImportError as error:
        raise CannotRun(
            f"glyphs are drawn with matplotlib ({error}); python -m pip install 'matplotlib>=3.10'"
        ) from None

    masks = np.zeros((len(characters), len(FONTS), MASK_SIZE, MASK_SIZE), dtype=np.uint8)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for font_number, name in enumerate(FONTS):
        font = FT2Font(str(folder / f"{name}.ttf"))
        font.set_size(48, 72)  # 48 points at 72 dots per inch: 48 pixels
        for number, character in enumerate(characters):
            font.set_text(character, 0.0, flags=LoadFlags.NO_HINTING)  # hinting would move outlines to whole pixels
            font.draw_glyphs_to_bitmap(antialiased=True)
            drawn = np.asarray(font.get_image())
            rows, columns = np.nonzero(drawn)
            drawn = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            top, left = (MASK_SIZE - drawn.shape[0]) // 2, (MASK_SIZE - drawn.shape[1]) // 2
            masks[number, font_number, top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return masks


def _draw_labels(stream: np.random.PCG64, classes: int) -> NDArray[np.int64]:
    """Each class once in random order, again and again: so the first images of a block are balanced too."""
    keys = stream.random_raw(BLOCK).reshape(-1, classes)
    return np.argsort(keys, axis=1, kind="stable").reshape(-1)


def _draw_images(stream: np.random.PCG64, masks: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    def draw(low: int, high: int, *shape: int) -> Integers:
        size = math.prod((len(labels), *shape))
        numbers = stream.random_raw(-(-size // 4)).astype("<u8").view("<u2")[:size]  # a word gives four of 16 bits
        return (low + (numbers.astype(np.int32) * (high - low + 1) >> 16)).reshape(-1, *shape)

    level = draw(45, 160)
    canvas = _draw_background(draw, level)
    for _ in range(3):
        canvas = _paint(canvas, _draw_bar(draw, PIXEL // 2, 2 * PIXEL), draw(0, 255, 3))
    # The glyph is lighter than its background in 17 images of 20: as in photographs, single pixels tell a little.
    contrast = draw(45, 130) * np.where(draw(1, 20) <= 17, 1, -1).astype(np.int32)
    color = np.clip((level + contrast)[:, None] + draw(-40, 40, 3), 0, 255)
    canvas = _paint(canvas, _draw_glyph(draw, masks, labels), color)
    canvas = _paint(canvas, _draw_bar(draw, PIXEL // 4, 3 * PIXEL // 4), draw(0, 255, 3))
    noisy = canvas + draw(-12, 12, SIZE, SIZE, 3)
    images: NDArray[np.uint8] = np.clip(noisy, 0, 255).astype(np.uint8)
    return images


def _draw_background(draw: Draw, level: Integers) -> Integers:
    """Soft coloured patches, 8 pixels from one to the next, under stripes: (N, 32, 32, 3), not yet within 0 to 255."""
    patches = draw(-45, 45, 5, 5, 3) + draw(-40, 40, 1, 1, 3) + level[:, None, None, None]
    cell = np.arange(SIZE) // 8
    share: Integers = (2 * np.arange(SIZE, dtype=np.int32) + 1) % 16  # of the next patch, in 1/16
    rows: Integers = patches[:, cell] * (16 - share)[:, None, None] + patches[:, cell + 1] * share[:, None, None]
    smooth = (rows[:, :, cell] * (16 - share)[:, None] + rows[:, :, cell + 1] * share[:, None]) // 256
    along, _ = _offsets(draw, 0, TURN)
    period = draw(3 * PIXEL, 10 * PIXEL, 1, 1)
    wave = np.abs(along % period * 2 - period) * 256 // period - 128  # a triangle, from -128 to 128
    striped: Integers = smooth + (wave * draw(0, 28, 1, 1) // 128)[..., None]
    return striped


def _draw_bar(draw: Draw, thinnest: int, thickest: int) -> Integers:
    """Coverage (N, 32, 32) by a bar of this half width, at any place and angle, with edges that are one pixel soft."""
    along, across = _offsets(draw, 14 * PIXEL, TURN // 2)
    beyond_end = np.abs(along) - draw(3 * PIXEL, 9 * PIXEL, 1, 1)
    beyond_side = np.abs(across) - draw(thinnest, thickest, 1, 1)
    coverage: Integers = np.clip(PIXEL // 2 - np.maximum(beyond_end, beyond_side), 0, PIXEL)
    return coverage


def _draw_glyph(draw: Draw, masks: NDArray[np.uint8], labels: NDArray[np.int64]) -> Integers:
    """Coverage (N, 32, 32) by each label's mask in a random font, under a random affine map, sampled bilinearly."""
    right, down = _offsets(draw, 3 * PIXEL, 60)  # up to 3 pixels and 21 degrees
    middle = (MASK_SIZE - 1) * PIXEL // 2
    x = (right * draw(360, 620, 1, 1) + down * draw(-64, 64, 1, 1)) // PIXEL + middle
    y = down * draw(360, 620, 1, 1) // PIXEL + middle
    column, row = np.clip(x // PIXEL, 0, MASK_SIZE - 2), np.clip(y // PIXEL, 0, MASK_SIZE - 2)  # the border is empty
    font = draw(0, len(FONTS) - 1)
    corner = ((labels * len(FONTS) + font)[:, None, None] * MASK_SIZE + row) * MASK_SIZE + column
    values = masks.reshape(-1)
    to_right, to_below = x % PIXEL, y % PIXEL
    above = values[corner] * (PIXEL - to_right) + values[corner + 1] * to_right
    below = values[corner + MASK_SIZE] * (PIXEL - to_right) + values[corner + MASK_SIZE + 1] * to_right
    coverage: Integers = (above * (PIXEL - to_below) + below * to_below) // (PIXEL * 255)
    return coverage


def _offsets(draw: Draw, farthest: int, widest: int) -> tuple[Integers, Integers]:
    """Of each pixel from a random point, along two axes at a random angle: twice (N, 32, 32), in 1/256 pixel.

    The point is up to `farthest` from the middle of the image in both directions, the angle up to `widest` from
    upright.
    """
    centers = (2 * np.arange(SIZE, dtype=np.int32) - (SIZE - 1)) * (PIXEL // 2)
    right = centers - draw(-farthest, farthest, 1, 1)
    down = centers[:, None] - draw(-farthest, farthest, 1, 1)
    angle = draw(-widest, widest, 1, 1)
    sine, cosine = SINES[angle % TURN], SINES[(angle + TURN // 4) % TURN]
    return (cosine * right + sine * down) // UNIT, (cosine * down - sine * right) // UNIT


def _paint(canvas: Integers, coverage: Integers, color: Integers) -> Integers:
    """Mix colour (N, 3) into the canvas (N, 32, 32, 3) where it covers."""
    mixed: Integers = canvas + (color[:, None, None] - canvas) * coverage[..., None] // PIXEL
    return mixed
