"""What really happened while lines were calculated: memory that PyTorch allocated, and what Python opened or ran."""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from shared.dispatch import Watcher, tensors_in

# Audit events of Python that a calculation has no business with.
WATCHED = (
    "open", "exec", "compile", "import", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "marshal.", "pickle.",
    "code.", "object.__getattr__", "function.__new__", "urllib.", "pathlib.", "glob.", "tempfile.", "webbrowser.",
)  # fmt: skip

_events: list[str] | None = None  # None while nobody watches
_watched_thread = 0  # a progress bar draws itself in another one
_is_hooked = False


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _events is not None and event.startswith(WATCHED) and threading.get_ident() == _watched_thread:
        _events.append(f"{event} {str(arguments)[:60]}")


@contextmanager
def watch_python() -> Iterator[list[str]]:
    """Collects this thread's watched audit events. Python has no way to take a hook off, so it is put on once."""
    global _events, _is_hooked, _watched_thread
    if not _is_hooked:
        sys.addaudithook(_hear)
        _is_hooked = True
    events: list[str] = []
    _events, _watched_thread = events, threading.get_ident()
    try:
        yield events
    finally:
        _events = None


class Allocations(Watcher):
    """Counts what each PyTorch operation inside the block allocates: results that do not share an input's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.largest_bytes = self.total_bytes = self.operations = 0

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        self.operations += 1
        known = {x.untyped_storage().data_ptr() for x in tensors_in(args)}
        for x in tensors_in(result):
            storage = x.untyped_storage()
            if storage.data_ptr() not in known:
                self.largest_bytes = max(self.largest_bytes, storage.nbytes())
                self.total_bytes += storage.nbytes()

    def restart(self) -> None:
        self.largest_bytes = self.total_bytes = self.operations = 0
