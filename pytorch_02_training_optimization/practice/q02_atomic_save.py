"""Replace a file so that a power cut at any moment leaves the old one or the new one, whole.

A checkpoint of 40 GB takes a minute to write, and the machine can die in each second of it. A disk makes it harder than it
looks: what is written lies in memory first, and reaches the disk when the system likes, in an order that it likes.
"""

from typing import Protocol


class Disk(Protocol):
    """One folder on a disk, and what a system promises about it. Behind each method, the call of Python that it stands for.

    A power cut may come at any moment, also in the middle of write(). What is not flushed may then be lost, wholly or in
    part; what is flushed is safe. That holds for the content of a file and, separately, for the list of names in the
    folder: changes of names reach the disk in their order, at the latest at flush_folder(), and perhaps before the content.
    """

    def write(self, name: str, data: bytes) -> None:
        """open(name, "wb").write(data): an old content is gone first. Raises OSError where the disk is full."""

    def flush(self, name: str) -> None:
        """os.fsync(file): the content of this file is safe. Raises OSError where the disk is full."""

    def rename(self, old: str, new: str) -> None:
        """os.replace(old, new): one step; a file that had the name `new` is gone."""

    def delete(self, name: str) -> None:
        """Path(name).unlink(missing_ok=True)"""

    def flush_folder(self) -> None:
        """os.fsync(folder): the names are safe."""


def save(disk: "Disk", name: str, data: bytes) -> None:
    """Put `data` into the file `name`, which may be there already.

    A power cut at any moment leaves the old file (or none, where none was) or the new one. Once save() has returned, it
    leaves the new one. Then no file is in the folder that was not there before, whatever an earlier save, cut off by a
    power cut, has left behind: saves are tried again with the same name. Other files are not touched. An OSError goes on to
    the caller, with the folder as it was.
    """
    # TODO: which calls, and in which order? Ask after each line what a power cut would leave.
    raise NotImplementedError
