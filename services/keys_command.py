"""``lienzo keys``: who may ask a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from services import keys as keys_library
from shared.console import console, explain_errors, notices
from shared.errors import InvalidInput

app = typer.Typer(
    help="API keys: add, list, remove. A server started with LIENZO_KEYS=FILE asks everybody for one.",
    no_args_is_help=True,
)

File = Annotated[
    Path | None, typer.Option("--file", envvar="LIENZO_KEYS", help="The file of keys; LIENZO_KEYS where left out.")
]


@app.command("add")
@explain_errors
def add(
    name: Annotated[str, typer.Argument(help="Who gets it: a person or a program; it appears in the log.")],
    file: File = None,
    rate: Annotated[float | None, typer.Option(help="Requests a minute; LIENZO_KEY_RATE where left out.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests at once; LIENZO_KEY_BURST where left out.")] = None,
) -> None:
    """Make a key. It is shown once; the file keeps its hash alone. A running server takes it within seconds.

    Example: `lienzo keys add alice --file keys.json`
    """
    path = _named(file)
    key = keys_library.add(path, name, rate=rate, burst=burst)
    notices.print(f"the key of {name}, which nobody can show again:", markup=False, soft_wrap=True)
    console.print(key, markup=False, highlight=False, soft_wrap=True)


@app.command("list")
@explain_errors
def list_keys(
    file: File = None, as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False
) -> None:
    """List who has a key, since when, and how often each may ask."""
    found = keys_library.read(_named(file))
    if as_json:
        console.print_json(json.dumps([key.model_dump(exclude={"sha256"}) for key in found]))
        return
    table = Table("name", "created", "a minute", "at once")
    for key in found:
        table.add_row(key.name, key.created, "" if key.rate is None else f"{key.rate:g}", str(key.burst or ""))
    console.print(table)


@app.command("remove")
@explain_errors
def remove(name: Annotated[str, typer.Argument(help="Whose.")], file: File = None) -> None:
    """Take a key back. A running server refuses it within seconds."""
    keys_library.remove(_named(file), name)


def _named(file: Path | None) -> Path:
    if file is None:
        raise InvalidInput("no file of keys is named.", hint="Give --file, or set LIENZO_KEYS.", field="file")
    return file
