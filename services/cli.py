"""``lienzo``: serve, paint, stylize, optimise, and look after models and weights."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from shared import weights as weights_library
from shared.console import bar, console, explain_errors, notices, stages
from shared.errors import InvalidInput, WeightsUnavailable
from shared.images import FORMATS

if TYPE_CHECKING:
    from shared.fast_models import ModelLibrary

log = logging.getLogger(__name__)

app = typer.Typer(
    help="Words in, a painting out.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
weights = typer.Typer(help="The pretrained networks: fetch, list, verify.", no_args_is_help=True)
app.add_typer(weights, name="weights")

PICTURE_SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the picture: .png, .jpg or .webp.")]
Size = Annotated[int | None, typer.Option(help="Longer side in pixels.", min=64, max=8192)]
Models = Annotated[list[Path] | None, typer.Option(help="A folder of fast models beside the shipped; repeatable.")]
GalleryOption = Annotated[str | None, typer.Option(help="'met' or a folder of pictures.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Strength = Annotated[float, typer.Option(help="0: the content as it is; 1: the painting.", min=0, max=1)]
PreserveColor = Annotated[bool, typer.Option("--preserve-color", help="Keep the content's colours.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback()
def _options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


@app.command()
@explain_errors
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 3000,
    models: Models = None,
    gallery: GalleryOption = None,
    device: Device = "auto",
) -> None:
    """Serve text-to-art over HTTP.

    Everything that must be there is fetched and checked first, so that a started service answers.
    """
    address = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{port}"
    interface = _listenable(host, port)
    _configure(models, gallery, device)
    library = _prepare()
    if not library.models:
        raise InvalidInput(
            "there is no fast model to serve.", hint="Name a folder of models with --models.", field="models"
        )
    for model in library.models.values():
        log.info("style %s runs on %s", model.card.slug, model.provider)  # opens it: one that cannot run is told here
    notices.print(
        f"[bold]Lienzo[/bold] starts on {escape(address)}; when it says it is ready, open that address, or:\n"
        f"  curl -X POST {escape(address)}/v1/text_to_art -H 'content-type: application/json' "
        """-d '{"title":"A boat trip on a sunny day"}' -o boat.png""",
        highlight=False,
        soft_wrap=True,
    )
    # The project folder when run from a clone, else wherever the packages are installed.
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "bentoml", "serve", "services.text_to_art:TextToArt"]
    command += ["--host", interface, "--port", str(port), "--working-dir", str(root)]
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": os.environ.get("BENTOML_DO_NOT_TRACK", "True")}
    os.execve(sys.executable, command, environment)


@app.command()
@explain_errors
def paint(
    title: Annotated[str, typer.Argument(help="A few words, as a painting's title.")],
    output: Output,
    description: Annotated[str, typer.Option(help="What the picture shows.")] = "",
    size: Size = 512,
    engine: Annotated[str, typer.Option(help="auto, fast or optimize.")] = "auto",
    content_id: Annotated[str | None, typer.Option(help="Paint this gallery picture.")] = None,
    style_id: Annotated[str | None, typer.Option(help="In this style: a gallery picture's id or a slug.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser, if it paints.")] = None,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    models: Models = None,
    gallery: GalleryOption = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Paint what the words say, without a server.

    Example: `lienzo paint "A boat trip on a sunny day" -o boat.png`
    """
    format = _format(output)
    _configure(models, gallery, device)
    _prepare()
    # The service's own classes, in this process: one way to do the main job.
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    from pydantic import ValidationError

    from services import pipeline
    from services.schemas import TextToArt as Request
    from services.text_to_art import TextToArt

    fields = {"title": title, "description": description, "size": size, "engine": engine, "format": format}
    fields |= {"content_id": content_id, "style_id": style_id, "strength": strength, "preserve_color": preserve_color}
    try:
        request = Request(**fields, **({} if steps is None else {"steps": steps}))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "input"
        raise InvalidInput(f"{name}: {first['msg'].removeprefix('Value error, ')}.", field=name) from error
    with notices.status("painting …"):
        outcome = pipeline.text_to_art(TextToArt.inner(), request)
    _write(output, outcome.data)
    _report(
        {
            "output": str(output),
            "content": outcome.content,
            "content_title": outcome.content_title,
            "content_distance": outcome.content_distance,
            "style": outcome.style,
            "style_title": outcome.style_title,
            "style_distance": outcome.style_distance,
            "engine": outcome.engine,
            "provider": outcome.provider,
            "model": outcome.model,
            "model_distance": outcome.model_distance,
            "steps": outcome.steps,
            "seconds": {name: round(spent, 4) for name, spent in outcome.seconds.items()},
        },
        as_json,
    )


@app.command()
@explain_errors
def stylize(
    picture: Annotated[Path, typer.Argument(help="The picture to paint.")],
    style: Annotated[str, typer.Option(help="A slug (see `lienzo models`), a model's folder, or a style picture.")],
    output: Output,
    size: Size = None,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser, for a style picture.")] = 150,
    models: Models = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Paint a picture in a fast style; in the style of a picture where STYLE is one (slower: it is optimised)."""
    from shared.fast_models import SHIPPED, SLUG, FastModel, ModelLibrary, read_card
    from shared.fast_painting import paint_fast

    format = _format(output)
    path = Path(style)
    if path.is_file():
        _optimize_files(picture, path, output, size or 512, as_json, device, strength, preserve_color, {"steps": steps})
        return
    if path.is_dir():
        model = FastModel(path, read_card(path), device)
    elif not SLUG.fullmatch(style):
        raise InvalidInput(
            f"'{style}' is no file, no folder, and no slug of a style.",
            hint="Name a picture, a model's folder, or a style that `lienzo models` lists.",
            field="style",
        )
    else:
        model = ModelLibrary((SHIPPED, *(models or ())), device=device)[style]
    recipe = {"Software": "Lienzo", "Style": model.card.slug, "Engine": "fast"}
    painting = paint_fast(
        model,
        _read(picture),
        size=size,
        strength=strength,
        preserve_color=preserve_color,
        format=format,
        recipe=recipe,
    )
    _write(output, painting.data)
    _report(
        {
            "output": str(output),
            "style": model.card.slug,
            "engine": "fast",
            "provider": model.provider,
            "seconds": {name: round(spent, 4) for name, spent in painting.seconds.items()},
        },
        as_json,
    )


@app.command()
@explain_errors
def optimize(
    content: Annotated[Path, typer.Argument(help="The picture to paint.")],
    style: Annotated[Path, typer.Argument(help="The picture whose style to paint in.")],
    output: Output,
    size: Annotated[int, typer.Option(help="Longer side in pixels.", min=64, max=4096)] = 512,
    steps: Annotated[int, typer.Option(help="Evaluations of the loss.")] = 200,
    optimizer: Annotated[str, typer.Option(help="adam or lbfgs.")] = "adam",
    start: Annotated[str, typer.Option(help="content, style, noise or grey.")] = "content",
    scales: Annotated[int, typer.Option(help="Paint coarse to fine over this many sizes.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 0.03,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    content_weight: Annotated[float | None, typer.Option(help="Weight of the content loss.")] = None,
    style_weight: Annotated[float | None, typer.Option(help="Weight of the style loss.")] = None,
    tv_weight: Annotated[float | None, typer.Option(help="Weight of the total variation.")] = None,
    content_layers: Annotated[
        str | None, typer.Option(help="Layers, comma separated, each with an optional weight: relu4_2:1.")
    ] = None,
    style_layers: Annotated[str | None, typer.Option(help="The same for style: relu1_1:0.2,relu2_1:0.2.")] = None,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Paint one picture in the style of another by optimising its pixels (Gatys et al. 2016).

    Example: `lienzo optimize photo.jpg painting.jpg -o out.png --steps 300`
    """
    from shared.optimizer import DEFAULT_LOSS

    loss: dict[str, Any] = {
        "content_weight": content_weight,
        "style_weight": style_weight,
        "tv_weight": tv_weight,
        "content_layers": content_layers and parse_layers(content_layers),
        "style_layers": style_layers and parse_layers(style_layers),
    }
    settings = {
        "steps": steps,
        "optimizer": optimizer,
        "start": start,
        "scales": scales,
        "learning_rate": learning_rate,
        "seed": seed,
        "loss": dataclasses.replace(DEFAULT_LOSS, **{n: value for n, value in loss.items() if value is not None}),
    }
    _optimize_files(content, style, output, size, as_json, device, strength, preserve_color, settings)


@app.command()
@explain_errors
def models(
    models: Annotated[list[Path] | None, typer.Argument(help="Folders of fast models beside the shipped.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the fast styles, and the folders that were refused."""
    from shared.fast_models import SHIPPED, ModelLibrary

    library = ModelLibrary((SHIPPED, *(models or ())))
    if as_json:
        console.print_json(json.dumps([model.card.model_dump(mode="json") for model in library.models.values()]))
    else:
        table = Table("slug", "name", "trained on", "width", "as good as")
        for model in library.models.values():
            card, reference = model.card, model.card.reference
            steps = f"{reference.equals_steps} reference steps" if reference and reference.equals_steps else ""
            first = card.styles[0]
            trained = f"{first.title}, {first.artist}" if len(card.styles) == 1 else f"{len(card.styles)} pictures"
            table.add_row(card.slug, card.name, trained, card.width, steps)
        console.print(table)
    for refusal in library.refusals:
        notices.print(f"refused: {refusal.reason}", style="yellow", markup=False, soft_wrap=True)


@weights.command("fetch")
@explain_errors
def fetch_weights(
    name: Annotated[str, typer.Argument(help="Which network; see `lienzo weights list`.")] = "vgg19",
    source: Annotated[
        Path | None, typer.Option("--from", help="Take them from this file instead of the network.")
    ] = None,
) -> None:
    """Bring a network's weights into the cache, verified."""
    with stages() as progress:
        path = weights_library.fetch(name, path=source, progress=progress)
    console.print(str(path), soft_wrap=True, highlight=False)


@weights.command("list")
@explain_errors
def list_weights(as_json: AsJson = False) -> None:
    """List the networks, where they come from, and whether they are here."""
    rows = [
        {
            "name": source.name,
            "description": source.description,
            "licence": source.licence,
            "path": str(weights_library.locate(source.name) or ""),
        }
        for source in weights_library.SOURCES.values()
    ]
    if as_json:
        console.print_json(json.dumps(rows))
        return
    table = Table("name", "description", "licence", "here")
    for row in rows:
        table.add_row(row["name"], row["description"], row["licence"], row["path"] or "no")
    console.print(table)


@weights.command("verify")
@explain_errors
def verify_weights(
    name: Annotated[str | None, typer.Argument(help="Which network; every one that is here if left out.")] = None,
) -> None:
    """Compare the weights in the cache with the hashes that are pinned."""
    names = [name] if name else [n for n in weights_library.SOURCES if weights_library.locate(n)]
    if not names:
        raise WeightsUnavailable("no weights are here.", hint="Fetch some with `lienzo weights fetch`.")
    for each in names:
        console.print(f"{each}: {weights_library.verify(each)} is whole", soft_wrap=True, highlight=False)


def parse_layers(text: str) -> dict[str, float]:
    """``relu4_2:1,relu3_1:0.5`` as weights by layer; a layer without a number weighs an equal share of 1.

    Raises:
        InvalidInput: a weight is no number.
    """
    parts = [part.strip().partition(":") for part in text.split(",") if part.strip()]
    try:
        return {name: float(weight) if weight else 1 / len(parts) for name, _, weight in parts}
    except ValueError as error:
        raise InvalidInput(
            f"'{text}' is no list of layers.", hint="Write it like relu4_2:1,relu3_1:0.5.", field="layers"
        ) from error


def _configure(models: list[Path] | None, gallery: str | None, device: str) -> None:
    """Hand the options on as the settings' environment variables: the services may run in other processes."""
    for folder in models or ():
        if not folder.is_dir():
            raise InvalidInput(f"'{folder}' is not a folder.", hint="Name a folder of models.", field="models")
    if models:
        os.environ["LIENZO_MODELS"] = os.pathsep.join(str(folder.resolve()) for folder in models)
    if gallery:
        os.environ["LIENZO_GALLERY"] = gallery if gallery == "met" else str(Path(gallery).resolve())
    if device != "auto":
        os.environ["LIENZO_DEVICE"] = device


def _listenable(host: str, port: int) -> str:
    """The IP address of ``host``, on which ``port`` is free.

    Raises:
        InvalidInput: nothing can listen there.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InvalidInput(
            f"nothing can listen on {host}:{port}: {error.strerror or error}.",
            hint="Choose another --port or --host.",
            field="port",
        ) from error
    return address[0]


def _prepare() -> ModelLibrary:
    """Fetch and check everything that a service needs, with progress, before any service starts."""
    from services.settings import settings
    from shared.devices import pick_device
    from shared.fast_models import ModelLibrary
    from shared.retrieval import Retrieval

    config = settings()
    pick_device(config.device)
    with stages() as progress:
        weights_library.fetch("vgg19", progress=progress)
    library = ModelLibrary(config.model_folders, device=config.device)
    for refusal in library.refusals:
        notices.print(f"refused: {refusal.reason}", style="yellow", markup=False, soft_wrap=True)
    with bar("indexing the gallery") as update:
        retrieval = Retrieval.open(
            config.gallery,
            lambda: _encoder(config.device),
            index=config.gallery_index,
            cache=weights_library.cache_dir(),
            on_picture=lambda done, total: update(done, total),
        )
    for issue in retrieval.gallery.issues[:10]:
        notices.print(f"gallery: {issue}", style="yellow", markup=False, soft_wrap=True)
    return library


def _encoder(device: str) -> Any:
    from shared.devices import keep_freed_memory, pick_device, pick_dtype
    from shared.encoders import Encoder

    keep_freed_memory()
    target = pick_device(device)
    with stages() as progress:
        tensors = weights_library.load("vgg19", progress=progress)
    return Encoder(tensors, dtype=pick_dtype("auto", target), device=target)


def _optimize_files(
    content: Path,
    style: Path,
    output: Path,
    size: int,
    as_json: bool,
    device: str,
    strength: float,
    preserve_color: bool,
    settings: dict[str, Any],
) -> None:
    from shared.optimized_painting import paint_optimized
    from shared.optimizer import Iteration, OptimizerSettings

    format = _format(output)
    chosen = OptimizerSettings(**settings)
    pictures = _read(content), _read(style)
    encoder = _encoder(device)
    with bar("optimising", chosen.steps) as update:

        def show(iteration: Iteration) -> None:
            # Reading the losses waits for the device; now and then is enough for the eye.
            if iteration.step % 5 == 0 or iteration.step == iteration.steps:
                losses = iteration.losses
                update(
                    iteration.step,
                    note=f"{iteration.width}×{iteration.height}  content {losses['content']:.2f}  "
                    f"style {losses['style']:.2f}",
                )

        painting = paint_optimized(
            encoder,
            *pictures,
            chosen,
            size=size,
            strength=strength,
            preserve_color=preserve_color,
            format=format,
            recipe={"Software": "Lienzo", "Engine": "optimize", "Steps": str(chosen.steps)},
            on_iteration=show,
        )
    _write(output, painting.data)
    _report(
        {
            "output": str(output),
            "engine": "optimize",
            "device": str(encoder.device),
            "steps": painting.steps,
            "losses": {name: round(value, 5) for name, value in (painting.losses or {}).items()},
            "seconds": {name: round(spent, 3) for name, spent in painting.seconds.items()},
        },
        as_json,
    )


def _format(output: Path) -> str:
    """The picture format that the output's ending names, checked before any work is done."""
    format = PICTURE_SUFFIXES.get(output.suffix.lower())
    if format not in FORMATS:
        raise InvalidInput(
            f"'{output}' ends in no picture format that is written.",
            hint=f"End it in {', '.join(PICTURE_SUFFIXES)}.",
            field="output",
        )
    if not output.parent.is_dir():
        raise InvalidInput(f"the folder '{output.parent}' does not exist.", hint="Create it first.", field="output")
    if output.is_dir():
        raise InvalidInput(f"'{output}' is a folder.", hint="Name a file.", field="output")
    return format


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InvalidInput(f"'{path}' is not a file.", hint="Name a picture file.", field="picture")
    return path.read_bytes()


def _write(path: Path, data: bytes) -> None:
    from shared.files import write_atomically

    write_atomically(path, data)


def _report(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(json.dumps(facts))
        return
    for name, value in facts.items():
        if value not in (None, "", {}):
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            console.print(f"{name.replace('_', ' '):>16}  {shown}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point of ``lienzo``."""
    app()
