"""Images that lie in one folder for each class, read into memory at one size.

    photos/ants/a.jpg                  one part: the caller divides it
    photos/train/ants/a.jpg            two parts: train/, and test/ or val/

Hidden files and files with other endings than those of images are passed over; an image that cannot be decoded is not.
"""

from collections.abc import Callable
from pathlib import Path

from shared.errors import CannotRun

import numpy as np
from numpy.typing import NDArray

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
MOST_PIXELS = 64_000_000  # a small file can claim to be a huge image; this one would take 200 MB


def part_folder(folder: Path, *, train: bool) -> Path | None:
    """The folder of one part; `folder` itself for training where it has no parts, and None for its missing test part."""
    if not (folder / "train").is_dir():
        return folder if train else None
    if train:
        return folder / "train"
    return next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)


def read_image_folder(
    folder: Path, size: int, progress: Callable[[int, int], None] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """The images (N, 3, size, size) uint8, their labels (N,) int64 and the names of the classes, in sorted order.

    An image is scaled until its shorter side has `size` pixels, and its middle is cut out. Raises CannotRun where
    there are no classes, a class has no image, or an image cannot be read.
    """
    from PIL import Image

    if not folder.is_dir():
        raise CannotRun(f"there is no folder {folder}; name one that holds a folder of images for each class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise CannotRun(f"{folder} holds {len(classes)} class folders; it needs two or more, with the images in them")
    files = []
    for label, path in enumerate(classes):
        found = sorted(f for f in path.iterdir() if f.suffix.lower() in ENDINGS and not f.name.startswith("."))
        if not found:
            raise CannotRun(f"{path} holds no image ({', '.join(sorted(ENDINGS))}); add some, or remove the folder")
        files += [(file, label) for file in found]
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)
    for index, (file, _) in enumerate(files):
        try:
            with Image.open(file) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
                image.draft("RGB", (size, size))  # a JPEG can be decoded at an eighth of its size, much faster
                scale = size / min(image.size)
                width, height = (max(size, round(side * scale)) for side in image.size)
                small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise CannotRun(f"{file} cannot be read as an image ({error}); repair or remove it") from None
        left, top = (width - size) // 2, (height - size) // 2
        square = np.asarray(small.crop((left, top, left + size, top + size)))
        images[index] = square.transpose(2, 0, 1)
        if progress:
            progress(index + 1, len(files))
    return images, np.array([label for _, label in files], dtype=np.int64), tuple(path.name for path in classes)
