"""``lienzo``: serve, paint, stylize, optimise, and look after models and weights."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from services import keys_command
from services.optimize_command import ADAIN, load_decoder, load_encoder
from services.stylize_command import OWN_LIMITS, Painter, find_fast_model, painter, stylize_folder, stylize_video
from shared import video
from shared import weights as weights_library
from shared.console import EXIT_INCOMPLETE, console, explain_errors, notices, stages
from shared.errors import InvalidInput, WeightsUnavailable
from shared.images import FORMATS_BY_SUFFIX
from shared.motion import STEADY

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
app.add_typer(keys_command.app, name="keys")

Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the picture: .png, .jpg or .webp.")]
Size = Annotated[int | None, typer.Option(help="Longer side in pixels.", min=64, max=16384)]
Models = Annotated[list[Path] | None, typer.Option(help="A folder of fast models beside the shipped; repeatable.")]
GalleryOption = Annotated[str | None, typer.Option(help="'met' or a folder of pictures.")]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder", help="What finds the style picture: style, resnet152, resnet50, NETWORK.onnx, or several by +."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Strength = Annotated[float, typer.Option(help="0: the content as it is; 1: the painting.", min=0, max=1)]
PreserveColor = Annotated[bool, typer.Option("--preserve-color", help="Keep the content's colours.")]
Engine = Annotated[str, typer.Option(help="auto, fast, instant (one pass in any picture's style) or optimize.")]
EngineProvider = Annotated[
    str,
    typer.Option(
        help="What runs the fast networks: auto, onnxruntime (on the processor), openvino, cuda or tensorrt.",
        envvar="LIENZO_ENGINE",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback()
def _options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


def _show_presets(wanted: bool) -> None:
    if not wanted:
        return
    from shared.presets import PRESETS

    table = Table("preset", "what it does", "source", show_lines=True)
    for each in PRESETS.values():
        table.add_row(each.name, each.summary, each.source)
    console.print(table)
    raise typer.Exit


@app.command()
@explain_errors
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 3000,
    models: Models = None,
    gallery: GalleryOption = None,
    encoder: EncoderOption = None,
    device: Device = "auto",
    engine_provider: EngineProvider = "auto",
) -> None:
    """Serve text-to-art over HTTP.

    Everything that must be there is fetched and checked first, so that a started service answers.
    """
    address = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{port}"
    interface = _listenable(host, port)
    _configure(models, gallery, encoder, device, engine_provider)
    library = _prepare()
    if not library.models:
        raise InvalidInput(
            "there is no fast model to serve.", hint="Name a folder of models with --models.", field="models"
        )
    for model in library.models.values():
        log.info("style %s runs on %s", model.card.slug, model.provider)  # opens it: one that cannot run is told here
    _check_state()
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
    engine: Engine = "auto",
    content_id: Annotated[str | None, typer.Option(help="Paint this gallery picture.")] = None,
    style_id: Annotated[str | None, typer.Option(help="In this style: a gallery picture's id or a slug.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser, if it paints.")] = None,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    models: Models = None,
    gallery: GalleryOption = None,
    encoder: EncoderOption = None,
    device: Device = "auto",
    engine_provider: EngineProvider = "auto",
    as_json: AsJson = False,
) -> None:
    """Paint what the words say, without a server.

    Example: `lienzo paint "A boat trip on a sunny day" -o boat.png`
    """
    format = _format(output)
    _configure(models, gallery, encoder, device, engine_provider)
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
    picture: Annotated[Path, typer.Argument(help="What to paint: a picture, a folder of pictures, or a video.")],
    style: Annotated[str, typer.Option(help="A slug (see `lienzo models`), a model's folder, or a style picture.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Where to write: .png, .jpg or .webp; for a folder, a folder; for a video, .mp4, .mkv or .webm.",
        ),
    ],
    size: Size = None,
    engine: Engine = "auto",
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser, for a style picture.")] = 150,
    again: Annotated[
        bool, typer.Option("--again", help="Of a folder, paint anew also what is there, painted alike.")
    ] = False,
    steady: Annotated[
        float | None,
        typer.Option(
            help=f"Of a video: 0 paints each frame for itself, 1 flickers least; {STEADY:g} if left out.", min=0, max=1
        ),
    ] = None,
    models: Models = None,
    device: Device = "auto",
    engine_provider: EngineProvider = "auto",
    as_json: AsJson = False,
) -> None:
    """Paint a picture, a folder of pictures or a video in a fast style, or in the style of a picture.

    A picture in a style picture's manner is optimised, which takes its time, or with `--engine instant` painted in one
    pass; folders and videos always are.

    Examples:

    `lienzo stylize photo.jpg --style great-wave -o wave.png`

    `lienzo stylize holidays/ --style painting.jpg --size 1024 -o painted/` (sub-folders too; once more, and only what
    is new or changed is painted; what cannot be read is named at the end, with exit code 1)

    `lienzo stylize clip.mp4 --style great-wave --size 640 --steady 0.8 -o wave.mp4` (sound and time stamps are kept;
    needs `pip install 'lienzo[video]'`)
    """
    from shared.fast_painting import paint_fast

    kind = _kind(picture, output)
    for given, name, its in ((again, "again", "folder"), (steady is not None, "steady", "video")):
        if given and kind != its:
            raise InvalidInput(f"--{name} is for a {its}, but '{picture}' is a {kind}.", field=name)
    if kind != "picture":
        many = painter(
            style,
            engine=engine,
            size=size,
            strength=strength,
            preserve_color=preserve_color,
            models=models,
            device=device,
            engine_provider=engine_provider,
        )
        if kind == "folder":
            _stylize_folder(picture, output, many, size, again, as_json)
        else:
            _stylize_video(picture, output, many, size, STEADY if steady is None else steady, as_json)
        return
    format = _format(output)
    path = Path(style)
    if path.is_file():
        _check_engine(engine, "a style picture is painted by", "auto", "instant", "optimize")
        if engine == "instant":
            _stylize_instantly(picture, path, output, size, strength, preserve_color, format, device, as_json)
            return
        optimize(
            picture,
            [path],
            output,
            size=size,
            steps=steps,
            strength=strength,
            preserve_color=preserve_color,
            device=device,
            as_json=as_json,
        )
        return
    model = find_fast_model(style, models, device, engine_provider)
    _check_engine(engine, "a fast style is painted by", "auto", "fast")
    recipe = {"Software": "Lienzo", "Style": model.card.slug, "Engine": "fast"}
    data = _read(picture)
    with stages() as progress:
        painting = paint_fast(
            model,
            data,
            size=size,
            strength=strength,
            preserve_color=preserve_color,
            format=format,
            recipe=recipe,
            limits=OWN_LIMITS,
            on_strip=lambda done, total: progress("painting in strips", done, total),
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
    style: Annotated[list[Path], typer.Argument(help="The picture whose style to paint in; several are blended.")],
    output: Output,
    preset: Annotated[str, typer.Option(help="Published settings by name; see --list-presets.")] = "lienzo",
    list_presets: Annotated[
        bool,
        typer.Option(
            "--list-presets", help="List the presets and where they come from.", callback=_show_presets, is_eager=True
        ),
    ] = False,
    size: Annotated[
        int | None, typer.Option(help="Longer side in pixels; 512 with most presets.", min=64, max=8192)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Evaluations of the loss, over all scales.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam or lbfgs.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="adain (a first painting by statistics), content, style, grey, uniform, normal or white (noise), "
            "a picture to go on from, or a fast style's slug or 'nearest' for that network's painting."
        ),
    ] = None,
    scales: Annotated[int | None, typer.Option(help="Paint coarse to fine over this many sizes.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam, in units of the picture's range 0 to 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop when the loss stood still for this many steps; 0: never.")
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Average Adam's iterates with this decay, like 0.95.")] = None,
    content_weight: Annotated[float | None, typer.Option(help="Weight of the content loss.")] = None,
    style_weight: Annotated[float | None, typer.Option(help="Weight of the style loss.")] = None,
    tv_weight: Annotated[float | None, typer.Option(help="Weight of the total variation: smoothness.")] = None,
    content_layers: Annotated[
        str | None, typer.Option(help="Layers, comma separated, each with an optional weight: relu4_2:1.")
    ] = None,
    style_layers: Annotated[str | None, typer.Option(help="The same for style: relu1_1:0.2,relu2_1:0.2.")] = None,
    style_loss: Annotated[str | None, typer.Option(help="gram or wasserstein.")] = None,
    style_weights: Annotated[str | None, typer.Option(help="Of several style pictures: 2,1.")] = None,
    style_scale: Annotated[float, typer.Option(help="Above 1: larger strokes; below: smaller.", min=0.1, max=4)] = 1.0,
    style_mask: Annotated[
        list[Path] | None, typer.Option(help="Where a style is painted: a picture, light there. One for each style.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Where to paint at all: a picture, light there.")] = None,
    only: Annotated[str | None, typer.Option(help="content or style: what the loss sees of the one alone.")] = None,
    encoder: Annotated[str | None, typer.Option(help="vgg19, vgg19-torchvision, vgg16 or resnet50.")] = None,
    pooling: Annotated[str | None, typer.Option(help="max or average.")] = None,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    tile: Annotated[
        int | None, typer.Option(help="Look at larger pictures in tiles of this side: less memory.")
    ] = None,
    match_color: Annotated[
        bool, typer.Option("--match-color", help="Give the style the content's colours first.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Keep losses, snapshots, plot, sheet and checkpoints here.")
    ] = None,
    every: Annotated[int, typer.Option(help="Steps between two snapshots of the record.", min=1)] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --record.")] = False,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    models: Models = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Paint one picture in the style of others by optimising its pixels (Gatys et al. 2016).

    Examples:

    `lienzo optimize photo.jpg painting.jpg -o out.png`

    `lienzo optimize photo.jpg painting.jpg -o out.png --preset gatys --record run`

    `lienzo optimize photo.jpg sky.jpg earth.jpg --style-mask up.png --style-mask down.png -o out.png`
    """
    from services.optimize_command import Choices, paint, parse_layers, parse_numbers, plan

    format = _format(output)
    settled = plan(
        Choices(
            preset=preset,
            encoder=encoder,
            pooling=pooling,
            precision=precision,
            size=size,
            start=start,
            only=only,
            settings={
                "steps": steps,
                "optimizer": optimizer,
                "scales": scales,
                "learning_rate": learning_rate,
                "seed": seed,
                "patience": patience,
                "ema": ema,
                "tile": tile,
            },
            loss={
                "content_weight": content_weight,
                "style_weight": style_weight,
                "tv_weight": tv_weight,
                "content_layers": None if content_layers is None else parse_layers(content_layers),
                "style_layers": None if style_layers is None else parse_layers(style_layers),
                "style_form": style_loss,
            },
        )
    )
    pictures = [_read(path) for path in style]
    content_data = _read(content)
    painting = paint(
        settled,
        content_data,
        pictures,
        style_weights=style_weights and parse_numbers(style_weights),
        style_masks=style_mask and [_read(path) for path in style_mask],
        start=None
        if settled.warm_start in (None, ADAIN)
        else _starting_picture(settled.warm_start, content_data, pictures[0], settled.size, models, device),
        device=device,
        record=record,
        resume=resume,
        every=every,
        facts={"content": content.name, "styles": [path.name for path in style], "preset": preset},
        style_scale=style_scale,
        match_color=match_color,
        mask=mask and _read(mask),
        strength=strength,
        preserve_color=preserve_color,
        format=format,
        recipe={"Software": "Lienzo", "Engine": "optimize", "Preset": preset, "Steps": str(settled.settings.steps)},
    )
    _write(output, painting.data)
    facts = {
        "output": str(output),
        "engine": "optimize",
        "preset": preset,
        "steps": painting.steps,
        "losses": {name: float(f"{value:.6g}") for name, value in (painting.losses or {}).items()},
        "seconds": {name: round(spent, 3) for name, spent in painting.seconds.items()},
        "record": record and str(record),
    }
    _report(facts, as_json)


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
    into: Annotated[
        Path | None, typer.Option(help="Put a copy into this folder as well, for a bento or a machine without network.")
    ] = None,
) -> None:
    """Bring a network's weights into the cache, verified."""
    with stages() as progress:
        path = weights_library.fetch(name, path=source, progress=progress)
        if into is not None:
            path = weights_library.fetch(name, path=path, cache=into, progress=progress)
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
        for source in weights_library.ALL_SOURCES.values()
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
    names = [name] if name else [n for n in weights_library.ALL_SOURCES if weights_library.locate(n)]
    if not names:
        raise WeightsUnavailable("no weights are here.", hint="Fetch some with `lienzo weights fetch`.")
    for each in names:
        console.print(f"{each}: {weights_library.verify(each)} is whole", soft_wrap=True, highlight=False)


def _configure(
    models: list[Path] | None, gallery: str | None, encoder: str | None, device: str, engine_provider: str
) -> None:
    """Hand the options on as the settings' environment variables: the services may run in other processes."""
    for folder in models or ():
        if not folder.is_dir():
            raise InvalidInput(f"'{folder}' is not a folder.", hint="Name a folder of models.", field="models")
    if models:
        os.environ["LIENZO_MODELS"] = os.pathsep.join(map(str, models))
    if gallery:
        os.environ["LIENZO_GALLERY"] = gallery
    if encoder:
        os.environ["LIENZO_STYLE_ENCODER"] = encoder
    if device != "auto":
        os.environ["LIENZO_DEVICE"] = device
    os.environ["LIENZO_ENGINE"] = engine_provider
    _make_paths_absolute()


def _make_paths_absolute() -> None:
    """Make the paths among the settings absolute, whoever set them: the services run in another folder than this."""

    def set_absolute(name: str, absolute: Callable[[str], str], *words: str) -> None:
        if (value := os.environ.get(name)) and value not in words:
            os.environ[name] = absolute(value)

    def one(path: str) -> str:
        return str(Path(path).absolute())

    def each(paths: str) -> str:
        return os.pathsep.join(one(path) for path in paths.split(os.pathsep) if path)

    for name in ("GALLERY_INDEX", "EMBEDDING", "KEYS", "STATE", "CACHE", "WEIGHTS"):
        set_absolute(f"LIENZO_{name}", one)
    set_absolute("LIENZO_MODELS", each)
    set_absolute("LIENZO_GALLERY", one, "met")
    set_absolute("LIENZO_SENTENCES", one, "auto", "off")
    set_absolute("LIENZO_INDEX_URI", lambda uri: uri if "://" in uri else one(uri))
    if "LIENZO_STYLE_ENCODER" in os.environ:
        from shared.image_encoders import absolute_spec  # it imports PyTorch

        set_absolute("LIENZO_STYLE_ENCODER", absolute_spec)


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


def _check_state() -> None:
    """Open the store of the jobs, which says it where that cannot be."""
    from services.jobs import JobStore

    JobStore.of_settings()


def _prepare() -> ModelLibrary:
    """Fetch and check everything that a service needs, with progress, before any service starts."""
    from services import keys
    from services.gallery import open_retrieval
    from services.settings import settings
    from shared.devices import pick_device
    from shared.fast_models import ModelLibrary
    from shared.retrieval import SENTENCES

    config = settings()
    pick_device(config.device)
    if config.keys is not None:
        keys.read(config.keys)
    with stages() as progress:
        for network in ("vgg19", "adain-decoder"):
            weights_library.fetch(network, progress=progress)
        if config.sentences == "auto":
            try:
                weights_library.fetch(SENTENCES, progress=progress)
            except WeightsUnavailable as error:
                log.debug("%s", error)
                notices.print(
                    f"content is found by words alone: '{SENTENCES}' could not be fetched "
                    f"(`lienzo weights fetch {SENTENCES}` says why; LIENZO_SENTENCES=off does not try)",
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
    library = ModelLibrary(
        config.model_folders, device=config.device, engine=config.engine, gpu_memory=config.gpu_bytes
    )
    for refusal in library.refusals:
        notices.print(f"refused: {refusal.reason}", style="yellow", markup=False, soft_wrap=True)
    with stages() as progress:
        retrieval = open_retrieval(lambda: load_encoder(config.device), progress=progress)
    retrieval.close()  # one process at a time can have a file of Milvus Lite
    for issue in retrieval.gallery.issues[:10]:
        notices.print(f"gallery: {issue}", style="yellow", markup=False, soft_wrap=True)
    return library


def _check_engine(engine: str, what: str, *engines: str) -> None:
    if engine not in engines:
        raise InvalidInput(f"engine is '{engine}', but {what} {', '.join(engines)}.", field="engine")


def _kind(source: Path, output: Path) -> str:
    """What is to be painted: ``folder``, ``video`` or ``picture``; of a video, that it can be written is checked."""
    if source.is_dir():
        return "folder"
    if source.suffix.lower() in video.SUFFIXES or output.suffix.lower() in video.CONTAINERS:
        video.container(output)
        _check_place(output)
        return "video"
    return "picture"


def _stylize_folder(folder: Path, output: Path, many: Painter, size: int | None, again: bool, as_json: bool) -> None:
    began = time.perf_counter()
    made = stylize_folder(folder, output, many, size=size, again=again)
    facts = {"output": str(output), "style": many.recipe["Style"], "engine": many.recipe["Engine"]}
    facts |= {"provider": many.provider()} if made.painted else {}
    facts |= {"painted": made.painted, "skipped": made.skipped, "failed": dict(made.failures)}
    _report(facts | {"seconds": {"all": round(time.perf_counter() - began, 4)}}, as_json)
    for name, reason in made.failures:
        notices.print(f"not painted: {name}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    if made.failures:
        raise typer.Exit(EXIT_INCOMPLETE)


def _stylize_video(source: Path, output: Path, many: Painter, size: int | None, steady: float, as_json: bool) -> None:
    began = time.perf_counter()
    made = stylize_video(source, output, many, size=size, steady=steady)
    seconds = time.perf_counter() - began
    facts = {"output": str(output), "style": many.recipe["Style"], "engine": many.recipe["Engine"]}
    facts |= {"provider": many.provider(), **made, "frames_per_second": round(made["frames"] / seconds, 3)}
    _report(facts | {"seconds": {"all": round(seconds, 4)}}, as_json)


def _stylize_instantly(
    content: Path,
    style: Path,
    output: Path,
    size: int | None,
    strength: float,
    preserve_color: bool,
    format: str,
    device: str,
    as_json: bool,
) -> None:
    from shared.instant_painting import paint_instantly

    pictures = _read(content), _read(style)
    encoder = load_encoder(device)
    painting = paint_instantly(
        encoder,
        load_decoder(encoder),
        *pictures,
        size=size,
        strength=strength,
        preserve_color=preserve_color,
        format=format,
        recipe={"Software": "Lienzo", "Engine": "instant"},
    )
    _write(output, painting.data)
    _report(
        {
            "output": str(output),
            "style": style.name,
            "engine": "instant",
            "provider": str(encoder.device),
            "seconds": {name: round(spent, 4) for name, spent in painting.seconds.items()},
        },
        as_json,
    )


def _starting_picture(
    start: str, content: bytes, style: bytes, size: int, models: list[Path] | None, device: str
) -> bytes:
    """The picture that ``--start`` names: a file, or the content painted by a fast style.

    Raises:
        InvalidInput: it is neither; the message lists what can be given.
    """
    from shared.fast_models import SHIPPED, ModelLibrary
    from shared.fast_painting import paint_fast
    from shared.optimizer import STARTS

    if Path(start).is_file():
        return _read(Path(start))
    library = ModelLibrary((SHIPPED, *(models or ())), device=device)
    if start == "nearest":
        from shared.images import decode
        from shared.style_space import StyleSpace

        space = StyleSpace.load()
        embedding = space.embed(load_encoder(device), decode(style))
        serving = library.nearest(embedding, space.fingerprint)
        if serving is None:
            raise InvalidInput(
                "no fast style lies in this style space.", hint="Name a slug or a picture.", field="start"
            )
        model = serving.model
    elif start in library.models:
        model = library[start]
    else:
        raise InvalidInput(
            f"start is '{start}', expected one of {ADAIN}, {', '.join(STARTS)}, a picture's file, nearest, "
            f"or a fast style: {', '.join(library.models)}.",
            field="start",
        )
    return paint_fast(model, content, size=size).data


def _format(output: Path) -> str:
    """The picture format that the output's ending names, checked before any work is done."""
    format = FORMATS_BY_SUFFIX.get(output.suffix.lower())
    if format is None:
        raise InvalidInput(
            f"'{output}' ends in no picture format that is written.",
            hint=f"End it in {', '.join(FORMATS_BY_SUFFIX)}.",
            field="output",
        )
    _check_place(output)
    return format


def _check_place(output: Path) -> None:
    if not output.parent.is_dir():
        raise InvalidInput(f"the folder '{output.parent}' does not exist.", hint="Create it first.", field="output")
    if output.is_dir():
        raise InvalidInput(f"'{output}' is a folder.", hint="Name a file.", field="output")


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
