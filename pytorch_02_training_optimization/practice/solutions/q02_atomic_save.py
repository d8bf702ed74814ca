"""Write under another name, flush the content, rename, flush the names: four calls, and none of them can be left out.

Writing in place destroys the old file before the new one is there. Without the first flush, the rename may reach the disk
before the content: after the cut the right name stands for an empty file, the most frequent form of a lost checkpoint.
Without the second one the rename itself may be lost, although somebody was told that it is saved, and perhaps deleted the
copy before. The other name is always the same, so the next save writes over what a cut has left. shared/checkpoints.py does
this with a folder, and adds digests, since a disk may also return something else than was written.
"""

from typing import Protocol


class Disk(Protocol):
    def write(self, name: str, data: bytes) -> None: ...

    def flush(self, name: str) -> None: ...

    def rename(self, old: str, new: str) -> None: ...

    def delete(self, name: str) -> None: ...

    def flush_folder(self) -> None: ...


def save(disk: "Disk", name: str, data: bytes) -> None:
    unfinished = name + ".unfinished"
    try:
        disk.write(unfinished, data)
        disk.flush(unfinished)
    except OSError:
        disk.delete(unfinished)
        raise
    disk.rename(unfinished, name)
    disk.flush_folder()
