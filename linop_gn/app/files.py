"""Files that a command reads and writes: whole or not at all, with errors that a person can act on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["UnusableFileError", "require_folder", "write_whole"]


class UnusableFileError(ValueError):
    """A file that was given holds something else."""


def require_folder(given: str) -> Path:
    """The folder, made if need be, once it is known that files can be written there; OSError if not."""
    if not given:
        raise UnusableFileError("the folder for the report has no name: give --out DIR, or leave it out.")
    folder = Path(given)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(error.errno, "not a folder", given) from error
    with tempfile.TemporaryFile(dir=folder):
        return folder


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, then put it in its place: on a full disk the file that was there stays."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
