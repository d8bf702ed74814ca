"""Images and text for the lessons, held in memory: images as bytes, so that each lesson converts them itself."""

import hashlib
import io
import platform
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from shared import downloads, glyphs
from shared.downloads import Progress, data_folder
from shared.errors import CannotRun
from shared.image_sets import CIFAR10, PUBLISHED

import numpy as np
import torch
from numpy.typing import NDArray

GLYPHS = {"glyphs": 10, "glyphs36": 36}
IMAGE_SETS = ("auto", *PUBLISHED, *GLYPHS)

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/"
    "data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (N, C, H, W) and labels (N,)


@dataclass(frozen=True)
class ImageData:
    """One part of a data set. `notice`, where there is one, is a sentence for the user that the caller prints."""

    name: str  # never "auto": the set that it turned out to be
    images: torch.Tensor  # (N, C, H, W) uint8
    labels: torch.Tensor  # (N,) int64
    class_names: tuple[str, ...]
    notice: str | None = None


@dataclass(frozen=True)
class TextData:
    """A corpus. `notice`, where there is one, is a sentence for the user that the caller prints."""

    name: str
    text: str
    notice: str | None = None


def load_images(
    name: str = "auto",
    data_dir: str | Path | None = None,
    *,
    train: bool,
    count: int | None = None,
    download: bool = True,
    progress: Progress | None = None,
) -> ImageData:
    """The training or the test part of one of IMAGE_SETS, or its first `count` images.

    "auto" is CIFAR-10 where it is on disk or can be downloaded, else glyphs with a notice. `data_dir` is where files
    are kept, by default $LAB_DATA or `data/`. Every file is verified each time it is read. Raises CannotRun where the
    set is neither there nor can be had.
    """
    folder = data_folder(data_dir)
    attempts = downloads.ATTEMPTS if download else 0
    if name == "auto":
        data = _load_auto(folder, train, count, attempts, progress)
    elif name in PUBLISHED:
        data = _load_published(name, folder, train, attempts, progress)
    elif name in GLYPHS:
        data = _load_glyphs(name, folder, train, count)
    else:
        raise CannotRun(f"there is no data set named {name!r}; choose one of {', '.join(IMAGE_SETS)}")
    if count is not None and len(data.labels) > count:  # cloned, so that the rest can be freed
        data = replace(data, images=data.images[:count].clone(), labels=data.labels[:count].clone())
    return data


def load_text(name: str = "stdlib", data_dir: str | Path | None = None, *, download: bool = True) -> TextData:
    """A corpus: "stdlib", "shakespeare", or the path of a UTF-8 text file.

    "stdlib" is the source of Python's own top-level modules, in order of their names: some 4 MB on every machine,
    the same for the same Python. "shakespeare" is the 1.1 MB Tiny Shakespeare of char-rnn. Raises CannotRun where the
    text is neither there nor can be had.
    """
    if name == "stdlib":
        notice = f"The text is the source of Python {platform.python_version()}; other versions have another text."
        return TextData(name, _read_stdlib(), notice)
    if name == "shakespeare":
        path = data_folder(data_dir) / "tinyshakespeare.txt"
        downloads.download(SHAKESPEARE_URL, path, SHAKESPEARE_SHA256, attempts=downloads.ATTEMPTS if download else 0)
    else:
        path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRun(f"{path} cannot be read as text ({error}); name a UTF-8 file, or stdlib") from None
    if not text:
        raise CannotRun(f"{path} is empty; name a UTF-8 file with some text, or stdlib")
    return TextData(name, text)


def _read_stdlib() -> str:
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    # The names leave out what an installation adds: sitecustomize, build settings with this machine's paths.
    for module in sorted(sys.stdlib_module_names):
        with suppress(OSError, UnicodeDecodeError):
            texts.append((folder / f"{module}.py").read_text(encoding="utf-8"))
    if not texts:
        raise CannotRun(f"this Python keeps no source of its library in {folder}; name a UTF-8 text file instead")
    return "\n".join(texts)


def _load_published(name: str, folder: Path, train: bool, attempts: int, progress: Progress | None) -> ImageData:
    images, labels, names = PUBLISHED[name].read(folder, train=train, attempts=attempts, progress=progress)
    return ImageData(name, torch.from_numpy(images), torch.from_numpy(labels), names)


def _load_auto(folder: Path, train: bool, count: int | None, attempts: int, progress: Progress | None) -> ImageData:
    def load_cifar10(attempts: int) -> ImageData:
        # Both parts or none: a run asks for them one after the other, and must not test CIFAR-10 on glyphs.
        parts = {part: _load_published("cifar10", folder, part, attempts, progress) for part in (True, False)}
        return parts[train]

    with suppress(CannotRun):
        return load_cifar10(attempts=0)
    # Asked first, so that a machine without network has its answer in three seconds and not after every attempt.
    if attempts == 0:
        reason = "downloads are switched off"
    elif downloads.is_offline():
        reason = "LAB_OFFLINE is set"
    elif not downloads.can_reach(CIFAR10.url):
        reason = f"{urlsplit(CIFAR10.url).netloc} does not answer"
    else:
        try:
            return load_cifar10(attempts)
        except CannotRun as error:
            reason = str(error).partition("; ")[0]
    notice = (
        f"CIFAR-10 is not in {folder}, or damaged, and {reason}: this run uses glyphs instead, drawn letters of ten "
        "classes; nothing that it finds holds for CIFAR-10."
    )
    return replace(_load_glyphs("glyphs", folder, train, count), notice=notice)


def _load_glyphs(name: str, folder: Path, train: bool, count: int | None) -> ImageData:
    """The first images are drawn quickly; the whole set takes some ten seconds, so it is kept in a file."""
    classes = GLYPHS[name]
    notice = None
    if count is not None and count < (glyphs.TRAIN_COUNT if train else glyphs.TEST_COUNT):
        arrays = _draw_glyphs(classes, train, count)
    else:
        path = folder / "glyphs" / f"{name}-{'train' if train else 'test'}-{_glyphs_version()}.npz"
        kept = _read_kept(path)
        arrays = kept or _draw_glyphs(classes, train)
        if kept is None:
            content = io.BytesIO()
            np.savez(content, images=arrays[0], labels=arrays[1])
            try:
                downloads.store(path, content.getvalue())
            except CannotRun as error:
                notice = f"The glyphs were drawn and not kept: {error}."
    images, labels = (torch.from_numpy(array) for array in arrays)
    return ImageData(name, images, labels, glyphs.CLASS_NAMES[classes], notice)


def _draw_glyphs(classes: int, train: bool, count: int | None = None) -> Arrays:
    images, labels = glyphs.make_glyphs(classes, train=train, count=count)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def _read_kept(path: Path) -> Arrays | None:
    """What is in the file, verified by the CRC-32 that it has of each array; None if it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    except Exception:  # damage shows as an error of the zip, of an array's header or of a codec, with one cure
        return None


def _glyphs_version() -> str:
    """Changes with all that decides how glyphs look: this lab's code for them, and matplotlib with its fonts."""
    try:
        version = metadata.version("matplotlib")
    except metadata.PackageNotFoundError:
        version = "none"
    return hashlib.sha256(Path(glyphs.__file__).read_bytes() + version.encode()).hexdigest()[:12]
