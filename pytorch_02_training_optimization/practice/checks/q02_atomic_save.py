"""A pretended disk knows, after each call, everything that a power cut could leave; all of it must be right.

It allows what POSIX allows: content that was not flushed is old, absent, half or whole, and of the changes of names any
first ones have happened.
"""

import errno
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shared.practice import Wrong, expect

NAME = "last.pt"
Files = dict[str, bytes]


class PowerCut(BaseException):
    """No finally and no except of a dead process runs; the disk answers every later call with it again."""


@dataclass(eq=False)
class Content:
    """Of one file: as programs see it, and all that a power cut may leave."""

    seen: bytes = b""
    possible: set[bytes] = field(default_factory=lambda: {b""})


class PretendedDisk:
    """The folder as programs see it, and behind it what the disk has. `cut_at` and `full_at` number the calls from 1."""

    def __init__(self, files: Files, cut_at: int = 0, full_at: int = 0) -> None:
        self.names = {name: Content(data, {data}) for name, data in files.items()}
        self.safe_names = [dict(self.names)]  # all lists of names that a power cut may leave
        self.calls: list[str] = []
        self.cut_at, self.full_at, self.is_dead = cut_at, full_at, False
        self.after_each: Callable[[PretendedDisk], None] = lambda disk: None

    def _begin(self, call: str) -> bool:
        """Whether this call finds the disk full."""
        if self.is_dead:
            raise PowerCut
        self.calls.append(call)
        if len(self.calls) == self.cut_at:
            self.is_dead = True
        return len(self.calls) == self.full_at

    def _end(self) -> None:
        self.after_each(self)
        if self.is_dead:
            raise PowerCut

    def write(self, name: str, data: bytes) -> None:
        expect(isinstance(data, bytes), "disk.write(name, data) takes bytes for data")
        is_full = self._begin(f"write({name!r})")
        if name not in self.names:
            self._rename_in(lambda names: names.__setitem__(name, Content()))
        content = self.names[name]
        content.seen = data[: len(data) // 2] if is_full or self.is_dead else data
        content.possible |= {b"", data[: len(data) // 2], content.seen}
        self._end()
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self, name: str) -> None:
        is_full = self._begin(f"flush({name!r})")
        expect(name in self.names, f"flush({name!r}): there is no such file")
        if not is_full:
            self.names[name].possible = {self.names[name].seen}
        self._end()
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def rename(self, old: str, new: str) -> None:
        self._begin(f"rename({old!r}, {new!r})")
        expect(old in self.names, f"rename({old!r}, {new!r}): there is no file {old!r}")
        self._rename_in(lambda names: names.__setitem__(new, names.pop(old)))
        self._end()

    def delete(self, name: str) -> None:
        self._begin(f"delete({name!r})")
        self._rename_in(lambda names: names.pop(name, None))
        self._end()

    def flush_folder(self) -> None:
        self._begin("flush_folder()")
        self.safe_names = [dict(self.names)]
        self._end()

    def _rename_in(self, change: Callable[[dict[str, Content]], object]) -> None:
        change(self.names)
        self.safe_names.append(dict(self.names))

    def files(self) -> Files:
        return {name: content.seen for name, content in self.names.items()}

    def after_a_cut(self) -> Iterator[tuple[str, bytes | None]]:
        """Each name with each content that it may have after a power cut now; None where it may be gone."""
        everything = {name for names in self.safe_names for name in names}
        for name in sorted(everything):
            for names in self.safe_names:
                contents = sorted(names[name].possible, key=len) if name in names else [None]
                yield from ((name, data) for data in contents)

    def worst_after_a_cut(self) -> Files:
        """One folder that a cut may leave: the latest names, with the shortest contents."""
        return {name: min(content.possible, key=len) for name, content in self.safe_names[-1].items()}


def check(answer: Any, seed: int) -> None:
    generator = random.Random(seed)
    old, new, newer = (generator.randbytes(length) for length in (40, 60, 20))
    others = {"best.pt": generator.randbytes(30), "settings.yaml": b"lr: 0.1\n"}
    for before in ({NAME: old, **others}, others, {NAME: old}):
        expect_saved(answer, before, new)
    for before in ({NAME: old, **others}, others):
        disk = expect_whole_at_every_cut(answer, before, new)
        for cut_at in range(1, len(disk.calls) + 1):
            expect_next_save(answer, before, new, newer, cut_at)
        for full_at, call in enumerate(disk.calls, 1):
            if call.startswith(("write", "flush(")):
                expect_error_goes_on(answer, before, new, full_at)


def told(disk: PretendedDisk) -> str:
    return ", ".join(disk.calls) or "nothing"


def expect_saved(answer: Any, before: Files, new: bytes) -> PretendedDisk:
    disk = PretendedDisk(before)
    returned = answer.save(disk, NAME, new)
    expect(returned is None, "save() returns nothing")
    found = disk.files()
    expect(NAME in found, f"after save(disk, {NAME!r}, data) there is no file {NAME}; it did: {told(disk)}")
    expect(found[NAME] == new, f"after save(disk, {NAME!r}, data) the file {NAME} holds {len(found[NAME])} bytes, and not the "
           f"{len(new)} bytes of data")  # fmt: skip
    left = sorted(found.keys() - before.keys() - {NAME})
    expect(not left, f"save() has left behind {', '.join(left)}")
    touched = sorted(name for name in before if name != NAME and found.get(name) != before[name])
    expect(not touched, f"save() has changed another file: {', '.join(touched)}")
    return disk


def described(data: bytes | None, whole: bytes) -> str:
    return "gone" if data is None else "empty" if not data else f"cut off after {len(data)} of {len(whole)} bytes"


def expect_whole_at_every_cut(answer: Any, before: Files, new: bytes) -> PretendedDisk:
    disk = PretendedDisk(before)
    old = before.get(NAME)

    def look(disk: PretendedDisk) -> None:
        for name, data in disk.after_a_cut():
            when = f"after a power cut in or behind {disk.calls[-1]}, call {len(disk.calls)} of save(),"
            if name == NAME:
                had = "the old checkpoint was whole" if old else "there was no checkpoint before"
                expect(data in (old, new), f"{when} {NAME} may be {described(data, new)}; {had}")
            elif name in before:
                expect(data == before[name], f"{when} another file, {name}, may have changed")

    disk.after_each = look
    answer.save(disk, NAME, new)
    lost = [data for name, data in disk.after_a_cut() if name == NAME and data != new]
    expect(
        not lost,
        f"after save() has returned, a power cut may still leave {'no' if lost and lost[0] is None else 'the old'} {NAME}; "
        f"it did: {told(disk)}",
    )
    return disk


def expect_next_save(answer: Any, before: Files, new: bytes, newer: bytes, cut_at: int) -> None:
    """What a cut has left must not stand in the way of the next save, nor stay for ever."""
    disk = PretendedDisk(before, cut_at=cut_at)
    try:
        answer.save(disk, NAME, new)
    except PowerCut:
        pass
    else:
        raise Wrong("save() caught the end of its own process; catch OSError, not every exception")
    for left in (disk.files(), disk.worst_after_a_cut()):
        again = PretendedDisk(left)
        answer.save(again, NAME, newer)
        found = again.files()
        remains = sorted(found.keys() - before.keys() - {NAME})
        expect(not remains, f"a power cut at call {cut_at} of a save, {disk.calls[-1]}, then another save with the same name: "
               f"{', '.join(remains)} stays behind")  # fmt: skip
        expect(
            found[NAME] == newer, f"after a power cut at call {cut_at} of a save, the next save did not write its data"
        )


def expect_error_goes_on(answer: Any, before: Files, new: bytes, full_at: int) -> None:
    disk = PretendedDisk(before, full_at=full_at)
    try:
        answer.save(disk, NAME, new)
    except OSError:
        pass
    else:
        raise Wrong(
            f"the disk was full at call {full_at}, {disk.calls[full_at - 1]}, and save() returned as if all were well"
        )
    found = disk.files()
    expect(
        found.get(NAME) == before.get(NAME),
        f"the disk was full at {disk.calls[full_at - 1]}, and {NAME} is not as it was",
    )
    left = sorted(found.keys() - before.keys())
    expect(not left, f"the disk was full at {disk.calls[full_at - 1]}, and {', '.join(left)} fills it further")


def in_place(disk: Any, name: str, data: bytes) -> None:
    disk.write(name, data)
    disk.flush(name)
    disk.flush_folder()


def by_steps(*steps: str) -> dict[str, object]:
    """A save that does the named steps in this order."""

    def save(disk: Any, name: str, data: bytes) -> None:
        other, kept = f"{name}.new", f"{name}.old"
        actions: dict[str, Callable[[], None]] = {
            "write": lambda: disk.write(other, data),
            "flush": lambda: disk.flush(other),
            "rename": lambda: disk.rename(other, name),
            "flush folder": disk.flush_folder,
            "flush after": lambda: disk.flush(name),
            "delete the old": lambda: disk.delete(name),
            "keep the old": lambda: disk.rename(name, kept) if name in disk.names else None,
            "delete what was kept": lambda: disk.delete(kept),
        }
        try:
            for step in steps:
                actions[step]()
        except OSError:
            disk.delete(other)
            raise

    return {"save": save}


def leaves_it_where_full(disk: Any, name: str, data: bytes) -> None:
    disk.write(f"{name}.new", data)
    disk.flush(f"{name}.new")
    disk.rename(f"{name}.new", name)
    disk.flush_folder()


def under_a_random_name(disk: Any, name: str, data: bytes) -> None:
    other = f".{name}-{random.getrandbits(64):x}"
    try:
        disk.write(other, data)
        disk.flush(other)
    except OSError:
        disk.delete(other)
        raise
    disk.rename(other, name)
    disk.flush_folder()


def swallows_the_error(disk: Any, name: str, data: bytes) -> None:
    try:
        leaves_it_where_full(disk, name, data)
    except OSError:
        disk.delete(f"{name}.new")


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "writes in place": ({"save": in_place}, "last.pt may be empty"),
    "does not flush": (by_steps("write", "rename", "flush folder"), "last.pt may be empty"),
    "flushes after the rename": (by_steps("write", "rename", "flush after", "flush folder"), "last.pt may be empty"),
    "deletes the old one first": (
        by_steps("write", "flush", "delete the old", "rename", "flush folder"),
        "last.pt may be gone",
    ),
    "moves the old one aside": (
        by_steps("write", "flush", "keep the old", "rename", "flush folder", "delete what was kept", "flush folder"),
        "last.pt may be gone",
    ),
    "does not flush the names": (by_steps("write", "flush", "rename"), "may still leave the old"),
    "flushes the names before": (by_steps("write", "flush", "flush folder", "rename"), "may still leave the old"),
    "leaves the half file of a full disk": ({"save": leaves_it_where_full}, "fills it further"),
    "a new name each time": ({"save": under_a_random_name}, "stays behind"),
    "swallows the error": ({"save": swallows_the_error}, "returned as if all were well"),
}
