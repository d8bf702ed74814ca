"""Reads a .npy file under a cap on this process's own memory: once as a whole, once as a map. Started by mapped.py.

    python capped_reader.py FILE.npy BYTES

It may take BYTES more than it has when NumPy is loaded. One JSON object tells what came of it. Linux only: RLIMIT_DATA
counts what a process asks for (its own writable pages) and not the pages of a file that it looks at.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np

ROWS_AT_ONCE = 1024


def status_bytes(field: str) -> int:
    """One of the sizes in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(path: str, room: int) -> None:
    cap = status_bytes("VmData") + room
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    try:
        np.load(path)
        loaded = "loaded"
    except MemoryError as error:
        loaded = f"MemoryError: {error}"
    before = status_bytes("RssAnon")
    rows = np.load(path, mmap_mode="r")  # (N, C) bytes
    total = sum(int(rows[start : start + ROWS_AT_ONCE].sum()) for start in range(0, len(rows), ROWS_AT_ONCE))
    own, looked_at = status_bytes("RssAnon") - before, status_bytes("RssFile")
    print(json.dumps({"loaded": loaded, "total": total, "own_bytes": own, "mapped_bytes": looked_at}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
