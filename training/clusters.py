"""Clusters of style: galleries embedded in the style space, grouped by spherical k-means, described and drawn."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import normalized_mutual_info_score, silhouette_score

from shared.encoders import Encoder
from shared.errors import GalleryError, InvalidInput
from shared.fast_models import LONGEST_SLUG, SLUG, slugged
from shared.files import write_atomically
from shared.galleries import Gallery, Picture
from shared.gallery_index import read_ahead
from shared.images import decode
from shared.sheets import Panel, draw_sheet
from shared.style_space import LONGER_SIDE, StyleSpace

log = logging.getLogger(__name__)

FORMAT = 1
NEAREST = 16
"""Members that a cluster names: what a network of it would be trained on."""

MINI_BATCH_ABOVE = 10_000
"""Pictures. Above, k-means starts from mini-batches: several times faster, and it ends at much the same centres."""

SILHOUETTE_SAMPLE = 5_000
"""Pictures. The silhouette needs all distances between them: 100 MB for this many."""

SHARD = 256
"""Pictures a file of the cache, so what a killed run loses at most."""

_STARTS = 10
_MOST_STEPS = 300
_SMALLEST_RADIUS = 1e-4  # a card's radius is positive, also where all members are one point

_TILE, _COLUMNS, _ROWS = 160, 6, 4

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Distance = Annotated[float, Field(ge=0, le=2)]
_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Member:
    """A picture of a cluster.

    Attributes:
        gallery: what :func:`shared.galleries.open_gallery` was given.
        id: of the picture in that gallery.
        distance: cosine distance to the cluster's centre.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    gallery: str
    id: str
    distance: _Distance


@dataclass(frozen=True)
class Cluster:
    """A part of style space.

    Attributes:
        id: a slug; from the commonest style label where at least half of the members bear one, else ``cluster-03``.
        centre: ``[K]``, of length 1.
        radius: cosine distance within which a style counts as this one.
        size: number of members.
        medoid: the member nearest to the centre. That is also the member whose mean distance to all members is
            smallest, the usual definition: the centre is their mean direction m, and the mean of 1 − x·xⱼ over j is
            1 − x·m.
        nearest: up to :data:`NEAREST` members, nearest to the centre first.
        labels: style label to number of members that bear it, the commonest first.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern=rf"^{SLUG.pattern}$", max_length=LONGEST_SLUG)]
    title: Annotated[str, Field(min_length=1)]
    centre: Annotated[tuple[_Finite, ...], Field(min_length=1)]
    radius: Annotated[float, Field(gt=0, le=2)]
    size: _Count
    medoid: Member
    nearest: Annotated[tuple[Member, ...], Field(min_length=1, max_length=NEAREST)]
    labels: Mapping[str, _Count]


@dataclass(frozen=True)
class Clustering:
    """The clusters of some galleries, the largest first.

    Attributes:
        style_space: fingerprint of the space that the centres lie in.
        silhouettes: mean silhouette (cosine, −1 to 1) by number of clusters, of every number that was tried.
        agreement: ``nmi`` and ``purity`` (both 0 to 1) between clusters and style labels; empty where the pictures
            do not bear at least two labels.
        pictures: number of pictures by gallery.
        skipped: pictures that could not be read, as ``path: reason``.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    style_space: str
    clusters: Annotated[tuple[Cluster, ...], Field(min_length=1)]
    silhouettes: Mapping[int, _Finite]
    agreement: Mapping[str, _Finite]
    pictures: Mapping[str, _Count]
    skipped: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write the clusters as JSON."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)
        write_atomically(path, f"{text}\n".encode())

    @classmethod
    def load(cls, path: Path) -> Clustering:
        """Read clusters that :meth:`save` wrote.

        Raises:
            InvalidInput: the file is missing or malformed.
        """
        hint = "Make it again with `lienzo-train clusters`."
        try:
            content = from_json(path.read_bytes(), allow_inf_nan=False)
            if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                raise ValueError(f"it has no format {FORMAT}")
            clustering = TypeAdapter(cls).validate_python(content)
            _check_consistent(clustering)
        except ValidationError as error:  # a ValueError too, of many lines
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidInput(f"the clusters '{path}' are malformed: {where}: {first['msg']}.", hint=hint) from error
        except OSError as error:
            raise InvalidInput(f"the clusters '{path}' cannot be read: {error.strerror}.", hint=hint) from error
        except ValueError as error:
            raise InvalidInput(f"the clusters '{path}' are malformed: {error}.", hint=hint) from error
        return clustering


@dataclass(frozen=True)
class EmbeddedGallery:
    """A gallery in the style space.

    Attributes:
        pictures: those that could be read, in the gallery's order.
        embeddings: ``[N, K]`` float32, each of length 1.
        skipped: those that could not, as ``path: reason``.
    """

    pictures: tuple[Picture, ...]
    embeddings: np.ndarray
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Partition:
    """Which picture belongs to which cluster; clusters are counted from the largest.

    Attributes:
        centres: ``[k, K]``, each of length 1: the mean direction of its members.
        radii: ``[k]``, cosine distances.
        assignment: ``[N]``, each picture's cluster, the one whose centre is nearest.
        distances: ``[N]``, cosine distance of each picture to that centre.
        silhouettes: by number of clusters, of every number that was tried.
    """

    centres: np.ndarray
    radii: np.ndarray
    assignment: np.ndarray
    distances: np.ndarray
    silhouettes: Mapping[int, float] = field(default_factory=dict)

    def members(self, cluster: int) -> np.ndarray:
        """Positions of the pictures of a cluster, nearest to its centre first."""
        positions = np.flatnonzero(self.assignment == cluster)
        return positions[np.argsort(self.distances[positions], kind="stable")]


def embed_gallery(
    gallery: Gallery,
    encoder: Encoder,
    space: StyleSpace,
    cache: Path,
    on_picture: Callable[[int, int], None] | None = None,
) -> EmbeddedGallery:
    """The style embeddings of a gallery's pictures, from the cache as far as they are there, the others computed.

    Pictures are decoded in threads ahead of the network. New embeddings join the cache every :data:`SHARD` pictures
    and when the run ends in any way but a kill, so that the next run goes on from there. A picture is known by its id
    (the path within its gallery, in effect), its file's size and its file's time of change. The result does not depend
    on the timing of threads, and only embeddings are held in memory.

    Args:
        cache: folder of the cache; several galleries and spaces can share one.
        on_picture: called with the pictures done and the pictures in all.

    Raises:
        GalleryError: no picture could be read.
        OSError: the cache cannot be written.
    """
    shards = _Shards(cache, space)
    known = shards.read()
    total, reasons = len(gallery.pictures), {}
    keys = [_key(gallery, picture) for picture in gallery.pictures]
    todo = [i for i in range(total) if keys[i] not in known]
    done = total - len(todo)
    if on_picture is not None and done:
        on_picture(done, total)
    try:
        with closing(read_ahead(_decoded, [gallery.pictures[i].path for i in todo])) as decoded:
            for i, picture in zip(todo, decoded, strict=True):
                if isinstance(picture, str):
                    reasons[i] = picture
                    log.warning("left out of the clusters: %s: %s", gallery.pictures[i].path, picture)
                else:
                    known[keys[i]] = shards.add(keys[i], space.embed(encoder, picture))
                done += 1
                if on_picture is not None:
                    on_picture(done, total)
    finally:
        shards.flush()
    read = [i for i in range(total) if i not in reasons]
    if not read:
        raise GalleryError(f"none of the {total} pictures of gallery '{gallery.name}' can be read.")
    return EmbeddedGallery(
        tuple(gallery.pictures[i] for i in read),
        np.stack([known[keys[i]] for i in read]),
        tuple(f"{gallery.pictures[i].path}: {reason}" for i, reason in reasons.items()),
    )


def find_clusters(
    embeddings: np.ndarray,
    *,
    k: int | None,
    k_range: tuple[int, int],
    quantile: float,
    seed: int,
    on_fit: Callable[[int, int], None] | None = None,
) -> Partition:
    """Group embeddings by direction: spherical k-means (Dhillon and Modha 2001), started from scikit-learn's k-means.

    The start is the best of ten runs from k-means++ (Arthur and Vassilvitskii 2007), in mini-batches above
    :data:`MINI_BATCH_ABOVE` pictures. Then, in turns, every centre becomes the mean direction of its members and every
    picture joins the nearest centre, until none moves.

    Args:
        embeddings: ``[N, K]``, each of length 1.
        k: number of clusters; None tries every number of ``k_range`` and takes the one whose silhouette
            (Rousseeuw 1987; cosine, on a sample of at most :data:`SILHOUETTE_SAMPLE`) is largest.
        k_range: smallest and largest number to try.
        quantile: share of a cluster's members that lie within its radius, above 0 and at most 1.
        seed: of the starts and the sample.
        on_fit: called with the numbers of clusters tried and those to try.

    Raises:
        InvalidInput: a setting is out of range, or the pictures are too few or too alike for so many clusters.
    """
    check_settings(k=k, k_range=k_range, quantile=quantile, seed=seed)
    tried = [k] if k is not None else list(range(k_range[0], k_range[1] + 1))
    check_count(len(embeddings), k=k, k_range=k_range)
    distinct = len(np.unique(embeddings, axis=0))
    if distinct < tried[-1]:
        raise InvalidInput(
            f"the pictures have {distinct} different styles, too few for {tried[-1]} clusters.",
            hint="Ask for fewer, or add pictures.",
            field="k",
        )
    silhouette = _Silhouette(embeddings, seed)
    silhouettes, best = {}, None
    for done, number in enumerate(tried, start=1):
        centres, assignment = _spherical_k_means(embeddings, number, seed)
        score = silhouette(assignment)
        if best is None or score > best[0]:
            best = score, centres, assignment
        if not math.isnan(score):
            silhouettes[number] = score
        if on_fit is not None:
            on_fit(done, len(tried))
    _, centres, assignment = best
    # The largest first; of equal ones that with the earliest picture, so that numbers do not hang on k-means' own.
    first = [int(np.argmax(assignment == cluster)) for cluster in range(len(centres))]
    sizes = np.bincount(assignment)
    order = sorted(range(len(centres)), key=lambda cluster: (-sizes[cluster], first[cluster]))
    centres, assignment = centres[order], np.argsort(order)[assignment]
    distances = np.clip(1 - np.einsum("nk,nk->n", embeddings, centres[assignment], dtype=np.float64), 0, 2)
    radii = np.array([np.quantile(distances[assignment == cluster], quantile) for cluster in range(len(centres))])
    return Partition(centres, radii, assignment, distances, silhouettes)


def check_settings(*, k: int | None, k_range: tuple[int, int], quantile: float, seed: int) -> None:
    """Refuse what no pictures could be clustered with; the arguments are those of :func:`find_clusters`.

    Raises:
        InvalidInput: the message names the setting and its limits.
    """
    if k is not None and k < 2:
        raise InvalidInput(f"k is {k}, expected 2 or more, or auto.", field="k")
    if k is None and not 2 <= k_range[0] <= k_range[1]:
        raise InvalidInput(
            f"the range of k is {k_range[0]}-{k_range[1]}, expected two numbers from 2 on, the smaller first.",
            field="k_range",
        )
    if not 0 < quantile <= 1:
        raise InvalidInput(f"quantile is {quantile}, expected above 0 and at most 1.", field="quantile")
    if not 0 <= seed < 2**32:
        raise InvalidInput(f"seed is {seed}, expected 0 to {2**32 - 1}.", field="seed")


def check_count(pictures: int, *, k: int | None, k_range: tuple[int, int]) -> None:
    """Refuse more clusters than pictures; where k is to be found, the silhouette needs one picture more.

    Raises:
        InvalidInput: the message states both numbers.
    """
    least, what = (k_range[1] + 1, f"up to {k_range[1]}") if k is None else (k, str(k))
    if pictures < least:
        raise InvalidInput(
            f"there are {pictures} pictures to cluster, but {what} clusters need at least {least}.",
            hint="Add pictures, or ask for fewer clusters.",
            field="k",
        )


def describe_clusters(partition: Partition, galleries: Mapping[str, EmbeddedGallery], style_space: str) -> Clustering:
    """Names, members and labels for a partition of the galleries' pictures.

    Args:
        partition: of the galleries' embeddings, one gallery after the other.
        galleries: by what :func:`shared.galleries.open_gallery` was given.
        style_space: fingerprint of the embeddings' space.
    """
    pictures = [(spec, picture) for spec, gallery in galleries.items() for picture in gallery.pictures]
    labels = [picture.style for _, picture in pictures]
    found: list[Cluster] = []
    for number in range(len(partition.centres)):
        positions = partition.members(number)
        counts = Counter(labels[i] for i in positions if labels[i])
        # The commonest first; of equally common ones in the alphabet's order.
        common = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
        # A few labelled pictures do not speak for many of which nothing is known.
        label = next(iter(common)) if 2 * counts.total() >= len(positions) else ""
        id, title = _name(label, number + 1, {cluster.id for cluster in found})
        members = tuple(
            Member(pictures[i][0], pictures[i][1].id, round(float(partition.distances[i]), 6))
            for i in positions[:NEAREST]
        )
        radius = max(_SMALLEST_RADIUS, math.ceil(partition.radii[number] * 1e4) / 1e4)  # up: who is in stays in
        centre = tuple(round(float(x), 6) for x in partition.centres[number])
        found.append(Cluster(id, title, centre, radius, len(positions), members[0], members, common))
    return Clustering(
        style_space=style_space,
        clusters=tuple(found),
        silhouettes={k: round(score, 4) for k, score in partition.silhouettes.items()},
        agreement={name: round(value, 4) for name, value in label_agreement(labels, partition.assignment).items()},
        pictures={spec: len(gallery.pictures) for spec, gallery in galleries.items()},
        skipped=tuple(line for gallery in galleries.values() for line in gallery.skipped),
    )


def label_agreement(labels: Sequence[str], assignment: np.ndarray) -> dict[str, float]:
    """How far clusters follow style labels, over the pictures that bear one; empty below two different labels.

    ``nmi`` is the mutual information over the mean of both entropies; ``purity`` the share of pictures that bear the
    commonest label of their cluster (Manning, Raghavan and Schütze 2008, section 16.3). Purity alone rises with k.
    """
    labelled = [(label, int(cluster)) for label, cluster in zip(labels, assignment, strict=True) if label]
    if len({label for label, _ in labelled}) < 2:
        return {}
    commonest: Counter[int] = Counter()
    for (_, cluster), count in Counter(labelled).items():
        commonest[cluster] = max(commonest[cluster], count)
    return {
        "nmi": float(normalized_mutual_info_score(*zip(*labelled, strict=True))),
        "purity": commonest.total() / len(labelled),
    }


def coverage(clustering: Clustering, embeddings: np.ndarray) -> float:
    """Share of styles that lie within the radius of the cluster whose centre is nearest: those a network would serve.

    Args:
        embeddings: ``[N, K]``, each of length 1, in the clustering's style space; at least one.
    """
    centres = np.array([cluster.centre for cluster in clustering.clusters])
    radii = np.array([cluster.radius for cluster in clustering.clusters])
    distances = 1 - embeddings @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    nearest = distances.argmin(1)
    return float((distances[np.arange(len(nearest)), nearest] <= radii[nearest]).mean())


def cluster_sheet(
    partition: Partition, number: int, pictures: Sequence[Picture], cluster: Cluster, tile: int = _TILE
) -> Image.Image:
    """A contact sheet of one cluster: the members nearest to the centre, the medoid first, and below the farthest.

    Args:
        number: of the cluster in ``partition``.
        pictures: all pictures, in the partition's order.
        cluster: the same cluster's description.
        tile: longer side of each picture in pixels.
    """
    positions = partition.members(number)
    near, rest = positions[: _COLUMNS * _ROWS], positions[_COLUMNS * _ROWS :]
    far = rest[-_COLUMNS:]
    width = _COLUMNS * tile

    def heading(text: str) -> list[Panel]:
        return [Panel(None, text, width)]

    def tiles(row: np.ndarray) -> list[Panel]:
        return [_tile(pictures[i], float(partition.distances[i]), tile) for i in row]

    rows = [heading(f"{cluster.title} ({cluster.id}): {cluster.size} pictures, radius {cluster.radius:.2f}")]
    rows += [tiles(near[at : at + _COLUMNS]) for at in range(0, len(near), _COLUMNS)]
    if len(far):
        rows += [heading("farthest from the centre"), tiles(far)]
    return draw_sheet(rows, margin=8, font_size=12)


def _check_consistent(clustering: Clustering) -> None:
    ids = [cluster.id for cluster in clustering.clusters]
    if len(set(ids)) < len(ids):
        raise ValueError("two clusters have one id")
    if len({len(cluster.centre) for cluster in clustering.clusters}) > 1:
        raise ValueError("the centres differ in their number of dimensions")
    for cluster in clustering.clusters:
        if not math.isclose(math.hypot(*cluster.centre), 1, abs_tol=1e-3):
            raise ValueError(f"the centre of {cluster.id} is not of length 1")


# Embedding


class _Shards:
    """The cache on disk: safetensors files of embeddings and their keys, in a folder per style space."""

    def __init__(self, cache: Path, space: StyleSpace):
        self._folder = cache / space.fingerprint
        self._dimensions = len(space.basis)
        self._new: dict[str, np.ndarray] = {}

    def read(self) -> dict[str, np.ndarray]:
        """Every embedding by its picture's key; files that cannot be read are passed over."""
        found: dict[str, np.ndarray] = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="np") as file:
                    keys, rows = json.loads((file.metadata() or {})["keys"]), file.get_tensor("embeddings")
                if rows.shape != (len(keys), self._dimensions):
                    raise ValueError(f"{len(keys)} keys for embeddings of shape {rows.shape}")
                found.update(zip(keys, rows, strict=True))
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                log.warning("not used of the cache: %s: %s", path, error)
        return found

    def add(self, key: str, embedding: np.ndarray) -> np.ndarray:
        self._new[key] = embedding
        if len(self._new) >= SHARD:
            self.flush()
        return embedding

    def flush(self) -> None:
        """Write what is new."""
        if self._new:
            # Named after its keys, so that two runs at once do not overwrite each other's.
            keys = json.dumps(list(self._new))
            name = hashlib.sha256(keys.encode()).hexdigest()[:20]
            self._folder.mkdir(parents=True, exist_ok=True)
            data = save({"embeddings": np.stack(list(self._new.values()))}, {"keys": keys})
            write_atomically(self._folder / f"{name}.safetensors", data)
            self._new.clear()


def _key(gallery: Gallery, picture: Picture) -> str:
    try:
        status = picture.path.stat()
        version = [status.st_size, status.st_mtime_ns]
    except OSError:
        version = []  # decoding will say what is wrong
    return hashlib.sha256(json.dumps([gallery.name, picture.id, *version]).encode()).hexdigest()[:32]


def _decoded(path: Path) -> Image.Image:
    """A picture at the size that embeddings are made at."""
    return decode(path, longer_side=LONGER_SIDE)


# Clustering


def _spherical_k_means(embeddings: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres ``[k, K]`` of length 1 and the assignment ``[N]`` to the nearest of them; no cluster is empty."""
    if len(embeddings) > MINI_BATCH_ABOVE:
        start = MiniBatchKMeans(k, n_init=_STARTS, batch_size=4096, random_state=seed)
    else:
        start = KMeans(k, n_init=_STARTS, random_state=seed)
    assignment = start.fit_predict(embeddings)
    for _ in range(_MOST_STEPS):
        centres = _mean_directions(embeddings, assignment, k)
        before, assignment = assignment, (embeddings @ centres.T).argmax(1)
        if np.array_equal(assignment, before):
            break
    if empty := k - len(np.unique(assignment)):
        raise InvalidInput(
            f"{empty} of {k} clusters have no picture: the styles are too few or too alike.",
            hint="Ask for fewer clusters.",
            field="k",
        )
    return centres, assignment


def _mean_directions(embeddings: np.ndarray, assignment: np.ndarray, k: int) -> np.ndarray:
    sums = np.stack([embeddings[assignment == cluster].sum(0, dtype=np.float64) for cluster in range(k)])
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(embeddings.dtype)


class _Silhouette:
    """The mean silhouette of an assignment, over one sample for all assignments, whose distances are kept."""

    def __init__(self, embeddings: np.ndarray, seed: int):
        count = len(embeddings)
        sample = np.random.default_rng(seed).permutation(count)[:SILHOUETTE_SAMPLE]
        self._sample = np.sort(sample)
        chosen = embeddings[self._sample]
        self._distances = np.clip(1 - chosen @ chosen.T, 0, 2)
        np.fill_diagonal(self._distances, 0)  # not by a rounding error more, as scikit-learn demands

    def __call__(self, assignment: np.ndarray) -> float:
        """NaN where the silhouette is not defined: all sampled pictures in one cluster, or each in its own."""
        labels = assignment[self._sample]
        if not 2 <= len(np.unique(labels)) < len(labels):
            return math.nan
        return float(silhouette_score(self._distances, labels, metric="precomputed"))


# Descriptions


def _name(label: str, position: int, taken: set[str]) -> tuple[str, str]:
    """Slug and title of a cluster: its label's, with a number from the second of that label on."""
    slug = slugged(label, LONGEST_SLUG - 4)
    if not slug:
        slug, label = f"cluster-{position:02}", f"Cluster {position}"
    id, number = slug, 1
    while id in taken:
        number += 1
        id = f"{slug}-{number}"
    return id, label if number == 1 else f"{label} {number}"


def _tile(picture: Picture, distance: float, side: int) -> Panel:
    caption = f"{distance:.2f} {picture.title}"
    try:
        return Panel(decode(picture.path, longer_side=side), caption, side)
    except (InvalidInput, OSError) as error:
        log.warning("not on the sheet: %s: %s", picture.path, error)
        return Panel(None, caption, side)
