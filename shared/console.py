"""The terminal, as both command lines use it: one console, one kind of progress bar, one way to end in an error.

Nothing else in ``shared`` prints, and nothing else in ``shared`` imports this module.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shared.errors import LienzoError

P = ParamSpec("P")
R = TypeVar("R")

console = Console()
"""Results go here."""

notices = Console(stderr=True)
"""Progress and errors go here, so that results can be piped."""

EXIT_INCOMPLETE = 1
"""Some of what was asked for is done; the rest was named."""

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def explain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Make a command end with one clear line and exit code 2 where it raises a :class:`LienzoError` or an OSError."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (LienzoError, OSError) as error:
            logging.getLogger(__name__).debug("the command failed", exc_info=True)
            _complain(error)
            raise typer.Exit(EXIT_BAD_INPUT) from error
        except ModuleNotFoundError as error:
            _complain(
                f"the package '{error.name}' is not installed. Install what training needs: pip install -e '.[train]'"
            )
            raise typer.Exit(EXIT_BAD_INPUT) from error
        except KeyboardInterrupt:
            notices.print("interrupted", style="yellow")
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return wrapped


def _complain(problem: object) -> None:
    notices.print(f"error: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(description: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, gone when done; none where stderr is no terminal.

    Yields a function ``update(done, total=None, note="")``.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=notices, transient=True, disable=not notices.is_terminal) as progress:
        task = progress.add_task(description, total=total, note="")

        def update(done: float, total: float | None = None, note: str = "") -> None:
            progress.update(task, completed=done, note=note, **({} if total is None else {"total": total}))

        yield update


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar a stage, for functions that report ``(stage, done, total)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notices, transient=True, disable=not notices.is_terminal) as progress:
        tasks: dict[str, object] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total or None)
            progress.update(tasks[stage], completed=done, total=total or None)

        yield update
