"""Verified downloads, and the folder that data sets are kept in.

A file gets its name only when it is whole and its checksum is right; until then it is a hidden `.part` file beside
it, and each process writes its own. So two runs that download at once do not meet, and nothing half-made is used.
"""

import hashlib
import http.client
import os
import tarfile
import threading
import time
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from shared.errors import CannotRun
from shared.records import ROOT

ATTEMPTS = 4
CHUNK_BYTES = 256 * 1024
ABANDONED_S = 120  # a .part file that nobody has written to for so long belongs to a process that was killed
WORTH_RETRYING = {408, 425, 429}  # and 5xx; the other 4xx mean that asking again is of no use

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where the server tells


class _Interrupted(Exception):
    """This attempt failed; `is_final` where a further one at the same address would fail too."""

    def __init__(self, reason: str, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Where data sets are kept: `data_dir`, else $LAB_DATA, else `data/` in this checkout. It may not exist yet."""
    return Path(data_dir or os.environ.get("LAB_DATA") or ROOT / "data").expanduser()


def is_offline() -> bool:
    """Whether the user forbids network access, with LAB_OFFLINE=1."""
    return os.environ.get("LAB_OFFLINE", "") not in ("", "0")


def has_digest(content: Path | bytes, digest: str) -> bool:
    """Whether a file, or bytes, have this checksum in hexadecimal: SHA-256, or by its length MD5.

    MD5 stands where a data set's author has published nothing else. It finds every accident, and though two files
    with one MD5 can be made together, none can be made to match that of a file which somebody else published.
    """
    hasher = hashlib.new({64: "sha256", 32: "md5"}[len(digest)], usedforsecurity=False)
    if isinstance(content, bytes):
        hasher.update(content)
    elif not content.is_file():
        return False
    else:
        with content.open("rb") as file:
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
    return hasher.hexdigest() == digest


def can_reach(url: str, timeout_s: float = 3.0) -> bool:
    """Whether a server offers `url`, answered within `timeout_s`."""
    answers = []

    def ask() -> None:
        with suppress(OSError, http.client.HTTPException):
            _open(urllib.request.Request(url, method="HEAD"), timeout_s).close()
            answers.append(True)

    # In a thread, because looking up a name has no time-out of its own and can take half a minute offline.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(answers)


def download(
    urls: str | Sequence[str],
    destination: Path,
    digest: str,
    *,
    attempts: int = ATTEMPTS,
    timeout_s: float = 20.0,
    progress: Progress | None = None,
) -> Path:
    """Bring a file to `destination`, unless it is there already; return `destination`.

    `urls` are addresses of the same file, tried in turn. `digest` is its SHA-256 or MD5 in hexadecimal. A cut
    connection is resumed, also by a later call. `timeout_s` limits each silence, not the whole; no attempts means
    that the file is only verified. Raises CannotRun, with the way to do it by hand, where all attempts failed or
    LAB_OFFLINE is set, and where the folder cannot be written.
    """
    if has_digest(destination, digest):
        return destination
    addresses = [urls] if isinstance(urls, str) else list(urls)
    by_hand = f"fetch {addresses[0]} by hand, save it as {destination} and run this again"
    state = "has the wrong checksum" if destination.exists() else "is not there"
    if is_offline():
        reason = "LAB_OFFLINE is set"
    elif attempts == 0:
        reason = "downloads are switched off"
    else:
        with _converted_errors(destination.parent), _partial_file(destination) as partial:
            reason = _fetch_from_any(addresses, partial, digest, attempts, timeout_s, progress)
            if not reason:
                os.replace(partial, destination)
                return destination
    raise CannotRun(f"{destination} {state} and could not be downloaded ({reason}); {by_hand}")


def store(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when two processes store it at once. Raises CannotRun if it cannot be."""
    with _converted_errors(path.parent), _partial_file(path) as partial:
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def read_archive(archive: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The content of these members of a tar file.

    Nothing is unpacked to a path that the archive chooses, so it cannot write outside of a folder, and links and
    devices are refused. Raises CannotRun where a member is missing or is no file.
    """
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                member = tar.getmember(name)
                file = tar.extractfile(member) if member.isreg() else None
                if file is None:
                    raise KeyError(f"{name} is not a regular file")
                yield name, file.read()
    except (KeyError, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise CannotRun(f"{archive} cannot be unpacked ({error}); delete it and run this again") from error


def _open(request: urllib.request.Request, timeout_s: float) -> http.client.HTTPResponse:
    request.add_header("User-Agent", "pytorch-gpu-lab")  # some hosts refuse urllib's own name
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s)
    return response


def _fetch_from_any(
    addresses: list[str], partial: Path, digest: str, attempts: int, timeout_s: float, progress: Progress | None
) -> str:
    """Complete `partial` within so many attempts; return "" or why the last one failed."""
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(0.5 * 2**attempt, 10.0))
        url = addresses[attempt % len(addresses)]
        try:
            _fetch(url, partial, digest, timeout_s, progress)
            return ""
        except _Interrupted as error:
            reason = f"{url}: {error}"
            if error.is_final:
                addresses = [other for other in addresses if other != url]
                if not addresses:
                    break
    return reason


def _fetch(url: str, partial: Path, digest: str, timeout_s: float, progress: Progress | None) -> None:
    """Complete `partial` and verify it. Raises _Interrupted; what has arrived by then stays, unless it is wrong."""
    done_bytes = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done_bytes}-"} if done_bytes else {})
    came_at_once = False
    try:
        with _open(request, timeout_s) as response:
            is_resumed = response.status == 206 and done_bytes > 0
            if is_resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {done_bytes}-"):
                partial.unlink()
                raise _Interrupted("the server resumed at another place")
            if not is_resumed:  # also where the server knows no ranges and sends everything again
                done_bytes = 0
            total_bytes = None if response.length is None else done_bytes + response.length
            with partial.open("ab" if is_resumed else "wb") as file:
                while chunk := _read(response):
                    file.write(chunk)
                    done_bytes += len(chunk)
                    if progress:
                        progress(done_bytes, total_bytes)
            if total_bytes is not None and done_bytes < total_bytes:
                raise _Interrupted(f"the connection was cut at {done_bytes:,} of {total_bytes:,} bytes")
            came_at_once = total_bytes is not None and not is_resumed
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:  # 416: nothing comes after what we have, so it is complete or wrong
            is_final = 400 <= error.code < 500 and error.code not in WORTH_RETRYING
            raise _Interrupted(f"HTTP {error.code} {error.reason}", is_final) from None
    except urllib.error.URLError as error:
        raise _Interrupted(str(error.reason)) from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Interrupted(str(error) or type(error).__name__) from None
    if not has_digest(partial, digest):
        partial.unlink(missing_ok=True)
        # What was begun earlier may be at fault, but a file that came at once will be the same next time.
        raise _Interrupted("what came has the wrong checksum", is_final=came_at_once)


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK_BYTES)
    except OSError as error:  # kept apart from the errors of the disk
        raise _Interrupted(str(error) or type(error).__name__) from None


@contextmanager
def _partial_file(destination: Path) -> Iterator[Path]:
    """The path of a `.part` file that only this process writes; an abandoned one is taken over.

    Taking over is a rename, which succeeds for one process only. What is left at the end is marked as abandoned,
    with a time of change long ago.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    mine = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.part")
    for other in destination.parent.glob(f".{escape(destination.name)}.*.part"):
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > ABANDONED_S:
                other.replace(mine)
    try:
        yield mine
    finally:
        with suppress(FileNotFoundError):
            os.utime(mine, (0, 0))


@contextmanager
def _converted_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotRun(
            f"cannot write to {folder} ({error.strerror or error}); free some space there, or set LAB_DATA to a folder "
            "that you can write to"
        ) from error
