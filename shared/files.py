"""Files: written whole or not at all, and named by their SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that no reader ever sees part of it; see :func:`written_atomically`.

    Raises:
        OSError: the folder does not exist, is not writable, or the disk is full.
    """
    with written_atomically(path) as temporary, temporary.open("xb") as file:
        file.write(data)


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """The path of a temporary file to write, which takes the name ``path`` when the block ends well.

    It lies in the same folder (a rename is atomic only within one file system), is flushed to the disk, and then takes
    the name in one step. Whatever goes wrong, an older file of that name stays as it was and the temporary file is
    removed.

    Raises:
        OSError: the folder does not exist, is not writable, or the disk is full.
    """
    path = Path(path)
    # A plain open respects the umask; tempfile's would leave files that only their owner can read.
    temporary = path.with_name(f".{uuid4().hex}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 lower-case hexadecimal digits, read in blocks so that size does not matter."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
