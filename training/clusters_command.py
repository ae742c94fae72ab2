"""``lienzo-train clusters``: groups galleries by style, with progress, contact sheets and a table."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from shared.console import bar, console, explain_errors
from shared.errors import InvalidInput
from shared.files import write_atomically

if TYPE_CHECKING:
    from training.clusters import Clustering

CLUSTERS_FILE = "clusters.json"
CACHE_FOLDER = ".embeddings"


@explain_errors
def clusters(
    gallery: Annotated[list[str], typer.Option(help="'met' or a folder; repeat for several.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for clusters.json and the contact sheets.")],
    k: Annotated[
        str, typer.Option("--k", help="Number of clusters, or auto: the one of the best silhouette.")
    ] = "auto",
    k_range: Annotated[str, typer.Option(help="Numbers that auto tries.")] = "6-16",
    quantile: Annotated[float, typer.Option(help="Share of a cluster's pictures that lie within its radius.")] = 0.9,
    space: Annotated[Path | None, typer.Option(help="Style space to work in; the shipped one if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Of the clusters' starting points and of the silhouette's sample.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Group the pictures of galleries by style, so that each cluster can have its fast network.

    Example: `lienzo-train clusters --gallery met --gallery wikiart/ -o clusters --k 10`.

    Writes `clusters.json` and a contact sheet per cluster. Embeddings are kept in `OUTPUT/.embeddings`: the same
    command run again goes on where it was interrupted, and one with another `--k` need not read the pictures again.
    """
    number, numbers = _number(k), _range(k_range)
    # Here, so that --help does not wait for scikit-learn.
    import numpy as np

    from shared.galleries import open_gallery
    from shared.images import encode
    from shared.style_space import SHIPPED, StyleSpace
    from training.clusters import (
        check_count,
        check_settings,
        cluster_sheet,
        coverage,
        describe_clusters,
        embed_gallery,
        find_clusters,
    )
    from training.index_command import vgg19_encoder

    check_settings(k=number, k_range=numbers, quantile=quantile, seed=seed)
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"'{output}' is a file.", hint="Name a folder to write to.", field="output")
    if twice := [spec for i, spec in enumerate(gallery) if spec in gallery[:i]]:
        raise InvalidInput(f"the gallery '{twice[0]}' is named twice.", hint="Name each once.", field="gallery")
    styles = StyleSpace.load(space or SHIPPED)
    opened = {spec: open_gallery(spec) for spec in gallery}
    check_count(sum(len(each.pictures) for each in opened.values()), k=number, k_range=numbers)

    encoder, embedded = vgg19_encoder(device), {}
    for spec, each in opened.items():
        with bar(f"embedding {escape(each.name)}", len(each.pictures)) as update:
            embedded[spec] = embed_gallery(each, encoder, styles, output / CACHE_FOLDER, update)
    embeddings = np.concatenate([each.embeddings for each in embedded.values()])
    with bar("clustering") as update:
        partition = find_clusters(embeddings, k=number, k_range=numbers, quantile=quantile, seed=seed, on_fit=update)
    found = describe_clusters(partition, embedded, styles.fingerprint)

    pictures = [picture for each in embedded.values() for picture in each.pictures]
    sheets = {}
    with bar("drawing", len(found.clusters)) as update:
        for i, cluster in enumerate(found.clusters):
            sheets[cluster.id] = encode(cluster_sheet(partition, i, pictures, cluster), "jpeg", quality=88)
            update(i + 1)
    output.mkdir(parents=True, exist_ok=True)
    _remove_former_sheets(output, keep=sheets.keys())
    for id, sheet in sheets.items():
        write_atomically(output / f"{id}.jpg", sheet)
    found.save(output / CLUSTERS_FILE)

    by_member = {(spec, picture.id): picture for spec, each in embedded.items() for picture in each.pictures}
    table = Table("cluster", "size", "radius", "medoid", "labels", title=_title(found))
    for cluster in found.clusters:
        medoid = by_member[cluster.medoid.gallery, cluster.medoid.id]
        labels = ", ".join(f"{label} {count}" for label, count in list(cluster.labels.items())[:4])
        by = ", ".join(text for text in (medoid.artist, medoid.title) if text)
        table.add_row(cluster.id, f"{cluster.size:,}", f"{cluster.radius:.3f}", escape(by), escape(labels))
    console.print(table)
    for spec, each in embedded.items():
        share = f"{coverage(found, each.embeddings):.0%} of {len(each.pictures):,} pictures"
        console.print(escape(f"{spec}: {share} lie within the radius of the nearest cluster"), soft_wrap=True)
    if found.skipped:
        console.print(f"{CLUSTERS_FILE} names the pictures that could not be read: {len(found.skipped):,}")
    console.print(escape(f"{output / CLUSTERS_FILE}: {len(found.clusters)} clusters"), soft_wrap=True)


def _number(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise InvalidInput(f"k is '{text}', expected a number or auto.", field="k") from error


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})-(\d{1,6})", text.strip(), re.ASCII)
    if match is None:
        raise InvalidInput(f"'{text}' is no range of k.", hint="Write it like 6-16.", field="k_range")
    return int(match[1]), int(match[2])


def _remove_former_sheets(output: Path, keep: Container[str]) -> None:
    """Remove the sheets of clusters that an earlier run made in this folder and this one did not."""
    from training.clusters import Clustering

    try:
        former = Clustering.load(output / CLUSTERS_FILE)
    except InvalidInput:
        return
    for cluster in former.clusters:
        if cluster.id not in keep:
            (output / f"{cluster.id}.jpg").unlink(missing_ok=True)


def _title(found: Clustering) -> str:
    k = len(found.clusters)
    parts = [f"{k} clusters"]
    if k in found.silhouettes:
        parts.append(f"silhouette {found.silhouettes[k]:.3f}")
    parts += [f"{name.replace('nmi', 'NMI')} {value:.2f}" for name, value in found.agreement.items()]
    return ", ".join(parts)
