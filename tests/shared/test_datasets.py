import dataclasses
import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
import warnings
from pathlib import Path

from shared import datasets, downloads, glyphs, image_sets
from shared.datasets import IMAGE_SETS, load_images, load_text
from shared.downloads import data_folder, download, has_digest
from shared.errors import CannotRun

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(900_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, and before that does what `plan` says: an HTTP status, or a way to misbehave."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/file.bin": CONTENT}
        self.plan = []
        self.requests = []  # (path, Range header)
        self.slow_s = 0.0
        self.closing = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self):
        self.send_response(200 if self.path in self.server.files else 404)
        self.end_headers()

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        step = self.server.plan.pop(0) if self.server.plan else "serve"
        content = self.server.files.get(self.path)
        if isinstance(step, int) or content is None:
            self.send_error(step if isinstance(step, int) else 404)
            return
        first = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1)) if asked and step != "no ranges" else 0
        if first >= len(content):
            self.send_error(416)
            return
        if step == "hang":
            self.server.closing.wait(20)
            return
        if step == "flip":
            content = content[:1000] + bytes([content[1000] ^ 16]) + content[1001:]
        self.send_response(206 if first else 200)
        if first:
            shift = 10 if step == "other place" else 0
            self.send_header("Content-Range", f"bytes {first + shift}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        body = content[first : first + 300_000] if step == "cut" else content[first:]
        for start in range(0, len(body), 50_000):
            self.wfile.write(body[start : start + 50_000])
            self.server.closing.wait(self.server.slow_s)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Nothing in the environment counts, and the pauses between attempts are recorded instead of made."""
    monkeypatch.delenv("LAB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pauses = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    return pauses


def leftovers(folder):
    return list(folder.glob(".*.part"))


def flip_a_bit(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


# ── downloads ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("digest", [SHA256, hashlib.md5(CONTENT).hexdigest()])
def test_download_is_whole_and_reports_progress(server, tmp_path, digest):
    steps = []
    path = download(
        server.url + "file.bin", tmp_path / "new" / "file.bin", digest, progress=lambda *step: steps.append(step)
    )
    assert path.read_bytes() == CONTENT
    assert leftovers(path.parent) == []
    done = [bytes_done for bytes_done, _ in steps]
    assert done == sorted(done)
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    download(server.url + "file.bin", path, digest)
    assert len(server.requests) == 1  # the second time it was there


def test_cut_connections_are_resumed(server, tmp_path, pauses):
    server.plan = ["cut", "cut", "serve"]
    path = download(server.url + "file.bin", tmp_path / "file.bin", SHA256)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=600000-"]
    assert pauses == [1.0, 2.0]


def test_a_later_call_resumes_what_an_earlier_one_began(server, tmp_path):
    server.plan = ["cut"]
    with pytest.raises(CannotRun, match=r"cut at 300,000 of 900,000 bytes"):
        download(server.url + "file.bin", tmp_path / "file.bin", SHA256, attempts=1)
    assert not (tmp_path / "file.bin").exists()
    assert len(leftovers(tmp_path)) == 1
    download(server.url + "file.bin", tmp_path / "file.bin", SHA256)
    assert server.requests[-1][1] == "bytes=300000-"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", ["no ranges", "other place"])
def test_a_server_that_cannot_resume_sends_all_again(server, tmp_path, step):
    server.plan = ["cut", step]
    assert download(server.url + "file.bin", tmp_path / "file.bin", SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("earlier", [b"\0" * 300_000, CONTENT + b"more", CONTENT])
def test_an_abandoned_part_is_taken_over_and_not_trusted(server, tmp_path, earlier):
    part = tmp_path / ".file.bin.0123.part"
    part.write_bytes(earlier)
    os.utime(part, (0, 0))
    assert download(server.url + "file.bin", tmp_path / "file.bin", SHA256).read_bytes() == CONTENT
    assert server.requests[0][1] == f"bytes={len(earlier)}-"
    assert len(server.requests) == (1 if earlier == CONTENT else 2)
    assert leftovers(tmp_path) == []


def test_the_part_of_a_living_process_is_left_alone(server, tmp_path):
    part = tmp_path / ".file.bin.0123.part"
    part.write_bytes(b"being written")
    download(server.url + "file.bin", tmp_path / "file.bin", SHA256)
    assert part.read_bytes() == b"being written"
    assert server.requests == [("/file.bin", None)]


def test_wrong_content_never_gets_the_name(server, tmp_path):
    server.plan = ["flip"] * 9
    destination = tmp_path / "file.bin"
    with pytest.raises(CannotRun, match=rf"wrong checksum.*fetch {server.url}file.bin by hand, save it as {tmp_path}"):
        download(server.url + "file.bin", destination, SHA256)
    assert len(server.requests) == 1  # a whole wrong file is not asked for again
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_replaced(server, tmp_path):
    destination = tmp_path / "file.bin"
    destination.write_bytes(CONTENT)
    flip_a_bit(destination, 123_456)
    assert download(server.url + "file.bin", destination, SHA256).read_bytes() == CONTENT


def test_a_missing_page_is_asked_for_once(server, tmp_path, pauses):
    with pytest.raises(CannotRun, match="HTTP 404"):
        download(server.url + "other.bin", tmp_path / "other.bin", SHA256)
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_busy_server_is_asked_again(server, tmp_path, pauses):
    server.plan = [503, 429]
    assert download(server.url + "file.bin", tmp_path / "file.bin", SHA256).read_bytes() == CONTENT
    assert pauses == [1.0, 2.0]


def test_attempts_are_limited(server, tmp_path):
    server.plan = [503] * 9
    with pytest.raises(CannotRun, match="HTTP 503"):
        download(server.url + "file.bin", tmp_path / "file.bin", SHA256, attempts=3)
    assert len(server.requests) == 3


def test_the_next_mirror_is_tried(server, tmp_path):
    urls = [server.url + "other.bin", "http://127.0.0.1:9/file.bin", server.url + "file.bin"]
    assert download(urls, tmp_path / "file.bin", SHA256).read_bytes() == CONTENT


def test_a_server_that_is_down_or_silent(server, tmp_path):
    with pytest.raises(CannotRun, match=r"Connection refused|refused it"):
        download("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", SHA256, attempts=2)
    server.plan = ["hang"] * 2
    started = time.perf_counter()
    with pytest.raises(CannotRun, match="timed out"):
        download(server.url + "file.bin", tmp_path / "file.bin", SHA256, attempts=2, timeout_s=0.2)
    assert time.perf_counter() - started < 5


def test_offline_is_obeyed(server, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_OFFLINE", "1")
    with pytest.raises(CannotRun, match=r"is not there and could not be downloaded \(LAB_OFFLINE is set\); fetch"):
        download(server.url + "file.bin", tmp_path / "file.bin", SHA256)
    assert server.requests == []
    with pytest.raises(CannotRun, match="is not there"):
        download(server.url + "file.bin", tmp_path / "new" / "file.bin", SHA256, attempts=0)
    assert list(tmp_path.iterdir()) == []  # what is not downloaded needs no folder
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert download(server.url + "file.bin", tmp_path / "file.bin", SHA256).read_bytes() == CONTENT
    monkeypatch.setenv("LAB_OFFLINE", "0")
    assert not downloads.is_offline()


def test_two_processes_at_once(server, tmp_path):
    server.slow_s = 0.02
    code = (
        "import sys; from pathlib import Path; from shared.downloads import download;"
        "download(sys.argv[1], Path(sys.argv[2]), sys.argv[3])"
    )
    arguments = [sys.executable, "-c", code, server.url + "file.bin", str(tmp_path / "file.bin"), SHA256]
    processes = [subprocess.Popen(arguments, cwd=ROOT) for _ in range(3)]
    seen = []
    while any(process.poll() is None for process in processes):
        if (tmp_path / "file.bin").exists():
            seen.append(has_digest(tmp_path / "file.bin", SHA256))
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all(seen)
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_a_folder_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CannotRun, match=r"cannot write to .*set LAB_DATA to a folder"):
        download(server.url + "file.bin", tmp_path / "file" / "file.bin", SHA256)

    def fail(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.os, "replace", fail)
    with pytest.raises(CannotRun, match=r"No space left on device\); free some space"):
        downloads.store(tmp_path / "other.bin", CONTENT)
    assert leftovers(tmp_path) == []


def test_archives_give_nothing_but_the_files_asked_for(tmp_path):
    def make(*members):
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
            for name, kind, target in members:
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
                tar.addfile(member, io.BytesIO(b"good"))
        return tmp_path / "a.tar.gz"

    outside = tmp_path / "secret"
    outside.write_text("secret")
    good, evil = ("data/x", tarfile.REGTYPE, ""), ("../evil", tarfile.REGTYPE, "")
    assert dict(downloads.read_archive(make(good, evil), ["data/x"])) == {"data/x": b"good"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "secret"]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        with pytest.raises(CannotRun, match="not a regular file"):
            list(downloads.read_archive(make(("data/x", kind, str(outside))), ["data/x"]))
    with pytest.raises(CannotRun, match="not found"):
        list(downloads.read_archive(make(good), ["data/y"]))
    with pytest.raises(CannotRun, match="cannot be unpacked"):
        list(downloads.read_archive(outside, ["data/x"]))


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("LAB_DATA", raising=False)
    assert data_folder() == ROOT / "data"
    monkeypatch.setenv("LAB_DATA", "~/lab-data")
    assert data_folder() == Path.home() / "lab-data"
    assert data_folder(tmp_path) == tmp_path


# ── CIFAR ────────────────────────────────────────────────────────────────────────────────────────


def md5(content):
    return hashlib.md5(content).hexdigest()


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 did, as in the published files."""

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}  # noqa: RUF012


def cifar_batch(generator, count):
    images = generator.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
    labels = generator.integers(0, 10, count).tolist()
    batch = {"data": images.reshape(count, -1), "labels": labels}
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(batch)
    return file.getvalue(), images, labels


@pytest.fixture
def small_cifar(server, monkeypatch):
    """CIFAR-10 with two training batches, offered by the server under the published names."""
    generator = np.random.default_rng(2)
    files, images, labels = {}, [], []
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        files[name], batch_images, batch_labels = cifar_batch(generator, 7)
        if name != "test_batch":
            images.append(batch_images)
            labels += batch_labels
    files["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")}, protocol=2)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server.files["/cifar-10-python.tar.gz"] = archive.getvalue()
    digests = {name: md5(content) for name, content in files.items()}
    cifar = dataclasses.replace(
        image_sets.CIFAR10,
        url=server.url + "cifar-10-python.tar.gz",
        sha256=hashlib.sha256(archive.getvalue()).hexdigest(),
        train={name: digests[name] for name in ("data_batch_1", "data_batch_2")},
        test={"test_batch": digests["test_batch"]},
        meta={"batches.meta": digests["batches.meta"]},
    )
    monkeypatch.setitem(image_sets.PUBLISHED, "cifar10", cifar)
    monkeypatch.setattr(datasets, "CIFAR10", cifar)
    return torch.from_numpy(np.concatenate(images)), torch.tensor(labels)


def test_cifar_is_downloaded_unpacked_and_read(server, small_cifar, tmp_path):
    images, labels = small_cifar
    for _ in range(2):
        data = load_images("cifar10", tmp_path, train=True)
        assert (data.name, data.notice, data.class_names) == ("cifar10", None, tuple("abcdefghij"))
        assert (data.images.dtype, data.labels.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(data.images, images)
        assert torch.equal(data.labels, labels)
    assert len(server.requests) == 1
    part = load_images("cifar10", tmp_path, train=True, count=9)
    assert torch.equal(part.images, images[:9])
    assert part.images.untyped_storage().nbytes() == 9 * 3072
    assert load_images("cifar10", tmp_path, train=False).images.shape == (7, 3, 32, 32)


def test_a_flipped_bit_in_a_batch_is_repaired(server, small_cifar, tmp_path):
    load_images("cifar10", tmp_path, train=True)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    archive = tmp_path / "cifar-10-python.tar.gz"
    generator = np.random.default_rng(3)
    for requests in (1, 2):  # first from the archive; then that is damaged too and comes anew
        flip_a_bit(batch, generator.integers(batch.stat().st_size), generator.integers(8))
        if requests == 2:
            flip_a_bit(archive, generator.integers(archive.stat().st_size), generator.integers(8))
        assert torch.equal(load_images("cifar10", tmp_path, train=True).images, small_cifar[0])
        assert len(server.requests) == requests
    flip_a_bit(batch, 99)
    archive.unlink()
    with pytest.raises(CannotRun, match=r"cifar-10-python.tar.gz is not there .* by hand, save it as"):
        load_images("cifar10", tmp_path, train=True, download=False)


def test_an_archive_brought_by_hand_is_used(server, small_cifar, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_OFFLINE", "1")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(server.files["/cifar-10-python.tar.gz"])
    assert torch.equal(load_images("cifar10", tmp_path, train=True).labels, small_cifar[1])


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hostile-was-here",))


def test_a_batch_that_asks_for_more_than_arrays_is_refused(small_cifar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_images("cifar10", tmp_path, train=False)
    for content in (pickle.dumps({"data": Hostile()}, protocol=2), pickle.dumps(eval)):
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
        cifar = dataclasses.replace(image_sets.PUBLISHED["cifar10"], test={"test_batch": md5(content)})
        monkeypatch.setitem(image_sets.PUBLISHED, "cifar10", cifar)
        with pytest.raises(pickle.UnpicklingError, match="has no place in a data set"):
            load_images("cifar10", tmp_path, train=False)
    assert not (tmp_path / "hostile-was-here").exists()


def test_auto_takes_cifar10_where_it_can_be_had(server, small_cifar, tmp_path, monkeypatch):
    data = load_images("auto", tmp_path, train=True)
    assert (data.name, data.notice) == ("cifar10", None)
    monkeypatch.setenv("LAB_OFFLINE", "1")
    assert load_images("auto", tmp_path, train=True).name == "cifar10"


def test_auto_never_mixes_two_sets(small_cifar, tmp_path, monkeypatch):
    for train in (True, False):
        load_images("cifar10", tmp_path, train=train)
    monkeypatch.setenv("LAB_OFFLINE", "1")
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    assert [load_images("auto", tmp_path, train=train, count=5).name for train in (True, False)] == ["glyphs"] * 2


@pytest.mark.parametrize("case", ["offline", "refused", "silent", "down", "busy"])
def test_auto_falls_back_to_glyphs_quickly(server, small_cifar, tmp_path, monkeypatch, case):
    if case == "offline":
        monkeypatch.setenv("LAB_OFFLINE", "1")
    elif case == "silent":
        monkeypatch.setattr(Handler, "do_HEAD", lambda handler: handler.server.closing.wait(20))
    elif case == "down":
        monkeypatch.setattr(datasets, "CIFAR10", dataclasses.replace(datasets.CIFAR10, url="http://127.0.0.1:9/c"))
    elif case == "busy":
        server.plan = [503] * 9
    reasons = {
        "offline": "LAB_OFFLINE is set",
        "refused": "downloads are switched off",
        "silent": "127.0.0.1:[0-9]+ does not answer",
        "down": "127.0.0.1:9 does not answer",
        "busy": "HTTP 503",
    }
    started = time.perf_counter()
    data = load_images("auto", tmp_path, train=True, count=50, download=case != "refused")
    assert time.perf_counter() - started < 6
    assert (data.name, len(data.labels)) == ("glyphs", 50)
    assert re.search(f"not in {tmp_path}.*{reasons[case]}.*uses glyphs instead", data.notice)
    assert "\n" not in data.notice


def real_data(*paths):
    folder = os.environ.get("LAB_DATA")
    if not folder or not all((Path(folder) / path).exists() for path in paths):
        pytest.skip(f"LAB_DATA has no {paths[0]}")
    return Path(folder)


@pytest.mark.parametrize("train", [True, False])
def test_real_cifar10(train):
    folder = real_data("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch")
    data = load_images("cifar10", folder, train=train, download=False)
    count = 50_000 if train else 10_000
    assert data.images.shape == (count, 3, 32, 32)
    assert data.labels.bincount().tolist() == [count // 10] * 10
    assert data.class_names[0] == "airplane"
    if train:  # the published mean of the channels
        mean = data.images.double().mean((0, 2, 3)) / 255
        assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError):  # the latter where torchvision was built for another torch
        return
    with warnings.catch_warnings():  # NumPy's, about flags in the pickles of that time
        warnings.simplefilter("ignore")
        theirs = CIFAR10(folder, train=train, download=False)
    assert np.array_equal(theirs.data, data.images.permute(0, 2, 3, 1).numpy())
    assert theirs.targets == data.labels.tolist()


# ── MNIST ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_mnist(server, monkeypatch):
    """Fashion-MNIST with 12 training and 5 test images, offered by the server."""
    generator = np.random.default_rng(4)
    parts, files = {}, {}
    for part, count in (("train", 12), ("t10k", 5)):
        images = generator.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = generator.integers(0, 10, count).astype(np.uint8)
        parts[part] = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
        headers = {"images-idx3": [2051, count, 28, 28], "labels-idx1": [2049, count]}
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = np.array(headers[kind], dtype=">u4").tobytes() + array.tobytes()
            packed = gzip.compress(content, 9)
            files[f"{part}-{kind}-ubyte"] = (md5(packed), md5(content))
            server.files[f"/{part}-{kind}-ubyte.gz"] = packed
    mnist = dataclasses.replace(image_sets.PUBLISHED["fashion-mnist"], mirrors=(server.url,), files=files)
    monkeypatch.setitem(image_sets.PUBLISHED, "fashion-mnist", mnist)
    return parts


def test_mnist_is_downloaded_and_read(server, small_mnist, tmp_path):
    for train, part in ((True, "train"), (False, "t10k")):
        for _ in range(2):
            data = load_images("fashion-mnist", tmp_path, train=train)
            assert torch.equal(data.images[:, 0], small_mnist[part][0])
            assert torch.equal(data.labels, small_mnist[part][1])
            assert data.images.shape[1:] == (1, 28, 28)
            assert data.class_names[9] == "Ankle boot"
    assert len(server.requests) == 4


def test_mnist_is_read_however_it_is_packed_and_damage_is_repaired(server, small_mnist, tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        content = gzip.decompress(server.files[f"/{name}.gz"])
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))  # as Debian packs it
        (folder / name).write_bytes(content)
    images = small_mnist["train"][0]
    assert torch.equal(load_images("fashion-mnist", tmp_path, train=True, download=False).images[:, 0], images)
    flip_a_bit(folder / "train-images-idx3-ubyte", 999)  # then the packed one counts
    assert torch.equal(load_images("fashion-mnist", tmp_path, train=True, download=False).images[:, 0], images)
    generator = np.random.default_rng(5)
    packed = folder / "train-images-idx3-ubyte.gz"
    for _ in range(10):
        flip_a_bit(packed, generator.integers(packed.stat().st_size), generator.integers(8))
        assert torch.equal(load_images("fashion-mnist", tmp_path, train=True).images[:, 0], images)
    packed.write_bytes(b"")
    with pytest.raises(CannotRun, match=r"train-images-idx3-ubyte.gz has the wrong checksum"):
        load_images("fashion-mnist", tmp_path, train=True, download=False)


def test_real_fashion_mnist():
    folder = real_data("FashionMNIST/raw")
    data = load_images("fashion-mnist", folder, train=True, download=False)
    assert data.images.shape == (60_000, 1, 28, 28)
    assert data.labels.bincount().tolist() == [6_000] * 10
    assert data.images.double().mean().item() / 255 == pytest.approx(0.2860, abs=5e-5)  # as published


# ── glyphs and names ─────────────────────────────────────────────────────────────────────────────


def test_glyphs_are_kept_and_damage_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "TEST_COUNT", 300)
    expected, labels = glyphs.make_glyphs(36, train=False)
    expected = torch.from_numpy(expected).permute(0, 3, 1, 2)
    data = load_images("glyphs36", tmp_path, train=False)
    assert torch.equal(data.images, expected)
    assert data.images.is_contiguous()
    assert torch.equal(data.labels, torch.from_numpy(labels))
    assert (data.name, data.class_names[10], data.notice) == ("glyphs36", "A", None)

    drawn = []
    make_glyphs = glyphs.make_glyphs
    monkeypatch.setattr(glyphs, "make_glyphs", lambda *args, **kw: drawn.append(1) or make_glyphs(*args, **kw))
    assert torch.equal(load_images("glyphs36", tmp_path, train=False).images, expected)
    assert drawn == []
    (kept,) = tmp_path.rglob("*.npz")
    generator = np.random.default_rng(6)
    for _ in range(8):
        flip_a_bit(kept, generator.integers(200, kept.stat().st_size - 3000), generator.integers(8))
        assert torch.equal(load_images("glyphs36", tmp_path, train=False).images, expected)
    assert len(drawn) == 8
    kept.write_bytes(kept.read_bytes()[:50_000])
    assert torch.equal(load_images("glyphs36", tmp_path, train=False).images, expected)
    assert leftovers(kept.parent) == []


def test_glyphs_work_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "TEST_COUNT", 20)
    (tmp_path / "file").write_text("not a folder")
    data = load_images("glyphs", tmp_path / "file", train=False)
    assert len(data.labels) == 20
    assert "were drawn and not kept: cannot write to" in data.notice


def test_a_few_glyphs_need_no_file(tmp_path):
    data = load_images("glyphs", tmp_path, train=True, count=30)
    assert torch.equal(
        data.images, torch.from_numpy(glyphs.make_glyphs(10, train=True, count=30)[0]).permute(0, 3, 1, 2)
    )
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused():
    with pytest.raises(CannotRun, match="no data set named 'imagenet'; choose one of auto, cifar10"):
        load_images("imagenet", train=True)
    assert IMAGE_SETS == ("auto", "cifar10", "cifar100", "mnist", "fashion-mnist", "glyphs", "glyphs36")


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


def test_stdlib_is_the_source_of_python_and_nothing_of_this_machine():
    data = load_text()
    assert data == load_text("stdlib")
    assert 2_000_000 < len(data.text) < 8_000_000
    assert "class OrderedDict" not in data.text[:100]
    for module in ("argparse", "dataclasses", "random", "zipapp"):
        path = Path(sysconfig.get_paths()["stdlib"]) / f"{module}.py"
        if path.exists():
            assert path.read_text(encoding="utf-8") in data.text
    assert data.text.index(Path(dataclasses.__file__).read_text()) < data.text.index(Path(io.__file__).read_text())
    assert sys.base_prefix not in data.text
    assert "Python 3." in data.notice


def test_text_files(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes("Grüße\nan alle\n".encode())
    data = load_text(str(path))
    assert (data.text, data.notice) == ("Grüße\nan alle\n", None)
    for content, message in ((b"\xff\xfe\x00", "utf-8"), (b"", "is empty")):
        path.write_bytes(content)
        with pytest.raises(CannotRun, match=message):
            load_text(str(path))
    with pytest.raises(CannotRun, match="No such file"):
        load_text(str(tmp_path / "missing.txt"))


def test_shakespeare_is_downloaded_and_verified(server, tmp_path, monkeypatch):
    text = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
    server.files["/input.txt"] = text
    monkeypatch.setattr(datasets, "SHAKESPEARE_URL", server.url + "input.txt")
    monkeypatch.setattr(datasets, "SHAKESPEARE_SHA256", hashlib.sha256(text).hexdigest())
    with pytest.raises(CannotRun, match=r"tinyshakespeare\.txt is not there"):
        load_text("shakespeare", tmp_path, download=False)
    assert load_text("shakespeare", tmp_path).text == text.decode()
    flip_a_bit(tmp_path / "tinyshakespeare.txt", 7)
    assert load_text("shakespeare", tmp_path).text == text.decode()
    assert len(server.requests) == 2


def test_real_shakespeare():
    folder = real_data("tinyshakespeare.txt")
    text = load_text("shakespeare", folder, download=False).text
    assert (len(text), len(set(text))) == (1_115_394, 65)


def test_imports_stay_light():
    code = (
        "import sys, shared.downloads; assert 'torch' not in sys.modules and 'numpy' not in sys.modules;"
        "import shared.datasets, shared.checkpoints;"
        "assert not {'torchvision', 'matplotlib', 'safetensors', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
