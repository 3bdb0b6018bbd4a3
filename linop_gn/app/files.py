"""Files that a command reads and writes: whole or not at all, with errors that a person can act on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["MissingDataError", "UnusableFileError", "replaced", "require_folder", "update_page", "with_table"]
__all__ += ["write_whole"]


class MissingDataError(RuntimeError):
    """Data, or a package, that only a command needs are not there."""


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


def replaced(page: str, table: str, begin: str, end: str) -> str:
    """``page`` with what stands between its two markers replaced by ``table``.

    Raises
    ------
    ValueError
        For a page without the markers.
    """
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(
            f"the page has no lines {begin} and {end}, between which the table goes: put {begin} and {end} on lines of "
            "their own."
        )
    return f"{before}{begin}\n{table}{end}{after}"


def with_table(page: Path, table: str, begin: str, end: str) -> str:
    """The text of the file ``page``, with ``table`` between its two markers."""
    try:
        return replaced(page.read_text(encoding="utf-8"), table, begin, end)
    except ValueError as error:
        raise UnusableFileError(f"{page}: {error}") from error


def update_page(page: Path, table: str, begin: str, end: str) -> None:
    """Write ``table`` between the two markers of the file ``page``."""
    write_whole(page, with_table(page, table, begin, end).encode())
