"""Every picture of a folder painted into another: what is there already is left, what cannot be read is named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from shared.errors import InvalidInput
from shared.files import write_atomically
from shared.images import DEFAULT_LIMITS, FORMATS_BY_SUFFIX, DecodeLimits, decode, encode, read_metadata
from shared.prefetching import prefetched

SUFFIXES = (*FORMATS_BY_SUFFIX, ".gif", ".bmp", ".tif", ".tiff")
"""Endings of the files that are painted; those that are not written become ``NAME.tif.png``."""


@dataclass(frozen=True)
class PaintedFolder:
    """What became of the pictures, named by their paths within the folder.

    Attributes:
        painted, skipped: how many were painted now, and how many were there, painted alike.
        failures: what could not be painted, and why.
    """

    painted: int
    skipped: int
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Task:
    """One picture on its way through the stages; ``picture`` is what the last stage made of it."""

    source: Path
    target: Path
    recipe: Mapping[str, str]
    picture: Image.Image | None = None
    failure: str | None = None


def paint_folder(
    folder: Path,
    output: Path,
    paint: Callable[[Image.Image], Image.Image],
    *,
    recipe: Mapping[str, str],
    size: int | None = None,
    again: bool = False,
    limits: DecodeLimits = DEFAULT_LIMITS,
    on_picture: Callable[[int, int, str], None] | None = None,
) -> PaintedFolder:
    """Paint every picture of a folder and its sub-folders into ``output``, in the same layout.

    Each painting carries the recipe and the SHA-256 of the file that it was painted from. A painting that is there with
    both as they would be written now is left as it is, which makes an interrupted run resumable. Reading, painting and
    writing each have a thread; files appear whole or not at all.

    Args:
        paint: from a picture to its painting; called in one thread.
        recipe: every setting that changes the paintings, as text; goes into their metadata.
        size: longer side of the paintings in pixels; each picture's own where not given.
        again: paint anew what is there already.
        limits: of what is read.
        on_picture: told how many are done, how many there are, and the name of the last.

    Raises:
        InvalidInput: there is no picture in the folder, or the output is the folder itself or a file.
    """
    sources = pictures_in(folder, output)
    painted = skipped = 0
    failures: list[tuple[str, str]] = []
    with ExitStack() as stack:
        tasks = (_Task(path, _target(path, folder, output), recipe) for path in sources)
        read = stack.enter_context(prefetched(_read(task, size, again, limits) for task in tasks))
        done = stack.enter_context(prefetched(_attempt(task, lambda each: paint(each.picture)) for task in read))
        for count, task in enumerate(done, 1):
            name = task.source.relative_to(folder).as_posix()
            task = _attempt(task, _write)
            if task.failure:
                failures.append((name, task.failure))
            elif task.picture is None:
                skipped += 1
            else:
                painted += 1
            if on_picture:
                on_picture(count, len(sources), name)
    return PaintedFolder(painted, skipped, tuple(failures))


def pictures_in(folder: Path, output: Path) -> list[Path]:
    """The pictures below a folder, in the order of their names, but for hidden files and what lies in ``output``.

    Raises:
        InvalidInput: as :func:`paint_folder`.
    """
    inside, outside = folder.resolve(), output.resolve()
    if inside == outside:
        raise InvalidInput(
            f"'{output}' is the folder that is painted.", hint="Name another folder for the paintings.", field="output"
        )
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"'{output}' is a file.", hint="Name a folder.", field="output")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and not path.resolve().is_relative_to(outside)
    ]
    if not found:
        raise InvalidInput(
            f"there is no picture in '{folder}'.", hint=f"Pictures end in {', '.join(SUFFIXES)}.", field="picture"
        )
    return found


def _target(path: Path, folder: Path, output: Path) -> Path:
    target = output / path.relative_to(folder)
    return target if target.suffix.lower() in FORMATS_BY_SUFFIX else target.with_name(f"{target.name}.png")


def _attempt(task: _Task, work: Callable[[_Task], Image.Image]) -> _Task:
    """The task after one more stage; what is wrong with this picture alone stops no other."""
    if task.picture is None or task.failure:
        return task
    try:
        return replace(task, picture=work(task))
    except (InvalidInput, OSError) as error:
        return replace(task, failure=str(error))


def _read(task: _Task, size: int | None, again: bool, limits: DecodeLimits) -> _Task:
    try:
        with task.source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        recipe = {**task.recipe, "Source": digest}
        if not again and task.target.is_file() and read_metadata(task.target) == recipe:
            return task
        return replace(task, recipe=recipe, picture=decode(task.source, limits=limits, longer_side=size))
    except (InvalidInput, OSError) as error:
        return replace(task, failure=str(error))


def _write(task: _Task) -> Image.Image:
    task.target.parent.mkdir(parents=True, exist_ok=True)
    format = FORMATS_BY_SUFFIX[task.target.suffix.lower()]
    write_atomically(task.target, encode(task.picture, format, metadata=dict(task.recipe)))
    return task.picture
