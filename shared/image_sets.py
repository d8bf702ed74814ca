"""CIFAR and MNIST, read from the files that their authors publish.

They are read here and not by torchvision: its packages on the plain registry do not load beside a CPU build of torch,
the formats take a few lines each, and here every file is verified each time it is read (torchvision verifies those of
MNIST once, packed). The folders are the same: `torchvision.datasets.CIFAR10(root, download=False)` finds the files.
"""

import gzip
import io
import pickle
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.downloads import Progress, download, has_digest, read_archive, store

import numpy as np
from numpy.typing import NDArray

Part = tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]  # images (N, C, H, W), labels (N,), class names


@dataclass(frozen=True)
class Cifar:
    """Pickled batches in one archive, from https://www.cs.toronto.edu/~kriz/cifar.html."""

    url: str
    sha256: str
    folder: str
    train: Mapping[str, str]  # file: MD5
    test: Mapping[str, str]
    meta: Mapping[str, str]
    label_key: str
    names_key: str

    def read(self, folder: Path, *, train: bool, attempts: int, progress: Progress | None) -> Part:
        """Read a part from `folder`, unpacking or downloading what is missing or damaged. Raises CannotRun."""
        digests = {**(self.train if train else self.test), **self.meta}
        contents = {file: _read_verified(folder / self.folder / file, md5) for file, md5 in digests.items()}
        if None in contents.values():
            archive = folder / self.url.rpartition("/")[2]
            download(self.url, archive, self.sha256, attempts=attempts, progress=progress)
            for member, content in read_archive(archive, [f"{self.folder}/{file}" for file in digests]):
                store(folder / member, content)
                contents[Path(member).name] = content
        *batches, meta = (_unpickle(content or b"") for content in contents.values())
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = np.array([label for batch in batches for label in batch[self.label_key]], dtype=np.int64)
        return images, labels, tuple(meta[self.names_key])


@dataclass(frozen=True)
class Mnist:
    """Four files in the format IDX (http://yann.lecun.com/exdb/mnist): a header, then one byte a pixel or label."""

    mirrors: tuple[str, ...]
    folder: str
    files: Mapping[str, tuple[str, str]]  # name without .gz: MD5 of the published .gz, MD5 of what is in it
    class_names: tuple[str, ...]

    def read(self, folder: Path, *, train: bool, attempts: int, progress: Progress | None) -> Part:
        """Read a part from `folder`, packed or unpacked, downloading what is missing or damaged. Raises CannotRun."""
        contents = []
        for file in (f"{'train' if train else 't10k'}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")):
            packed_md5, md5 = self.files[file]
            path, packed = folder / self.folder / file, folder / self.folder / f"{file}.gz"
            content = _read_verified(path, md5) or _read_verified(packed, md5)
            if content is None:
                urls = [mirror + packed.name for mirror in self.mirrors]
                download(urls, packed, packed_md5, attempts=attempts, progress=progress)
                content = gzip.decompress(packed.read_bytes())
            contents.append(content)
        # The headers tell nothing new: the checksums include them.
        images = np.frombuffer(contents[0], np.uint8, offset=16).reshape(-1, 1, 28, 28).copy()
        labels = np.frombuffer(contents[1], np.uint8, offset=8).astype(np.int64)
        return images, labels, self.class_names


CIFAR10 = Cifar(
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    label_key="labels",
    names_key="label_names",
)
PUBLISHED: dict[str, Cifar | Mnist] = {
    "cifar10": CIFAR10,
    "cifar100": Cifar(
        folder="cifar-100-python",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        label_key="fine_labels",
        names_key="fine_label_names",
    ),
    "mnist": Mnist(
        folder="MNIST/raw",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        class_names=tuple("0123456789"),
        files={
            "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
            "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        },
    ),
    "fashion-mnist": Mnist(
        folder="FashionMNIST/raw",
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        files={
            "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
            "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
            "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
        },
    ),
}


class _ArraysOnly(pickle.Unpickler):
    """Plain values and NumPy arrays, as Python 2 wrote them for CIFAR; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if module.endswith("multiarray") and name == "_reconstruct":
            return lambda kind, shape, code: np.ndarray(shape, np.uint8)
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return lambda code, *flags: np.dtype(code)  # today's NumPy warns about the flags of that time
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")


def _unpickle(content: bytes) -> dict[str, Any]:
    return dict(_ArraysOnly(io.BytesIO(content), encoding="latin1").load())


def _read_verified(path: Path, md5: str) -> bytes | None:
    """What is in the file, unpacked if it is a .gz: the very bytes that were verified. None if missing or damaged."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return None
    return content if has_digest(content, md5) else None
