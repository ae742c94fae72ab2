"""A gallery's index: a folder with a vector index for each space that its pictures are embedded in.

``DIR/index.json`` names the spaces and the pictures that were left out, ``DIR/<space>/`` holds the vectors (or a
collection in Milvus does), ``DIR/files.json`` remembers the hashes of files that have not been touched since.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from shared.errors import GalleryError, InvalidInput
from shared.files import sha256, write_atomically
from shared.galleries import Gallery, Picture
from shared.images import decode, resize
from shared.milvus_index import MilvusIndex
from shared.style_space import StyleEncoder
from shared.vector_index import UNFINISHED, ExactIndex, VectorIndex

log = logging.getLogger(__name__)

FORMAT = 1
SHIPPED = Path(__file__).parent / "assets" / "galleries"
MAX_K = 100
BATCH = 16
"""Pictures that an encoder is given at once."""
SHARD = 128
"""Pictures after which the index is written: what a kill loses. More in large galleries, see :func:`shards`."""
LONGER_SIDE = 1024
"""Pixels. Larger pictures are brought to this before they wait for an encoder, so that memory stays bounded."""

_RECORD, _FILES = "index.json", "files.json"
_SPACE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")

Progress = Callable[[str, int, int], None]


class ImageEncoder(Protocol):
    """What turns pictures into vectors that the cosine compares.

    Attributes:
        name: what the encoder is called.
        fingerprint: names the very space: vectors of encoders with other fingerprints cannot be compared.
        dimensions: of an embedding.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings of pictures, ``[N, K]`` float32, each of length 1."""


def space_name(encoder: ImageEncoder) -> str:
    """What the space of an encoder is called in an index: its name in lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", encoder.name.lower()).strip("-")[:40].rstrip("-")


@dataclass(frozen=True)
class GalleryIndex:
    """The vectors of a gallery's pictures, by space.

    Attributes:
        issues: pictures that are not in it, and why.
    """

    spaces: Mapping[str, VectorIndex]
    issues: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def open(
        cls, folder: Path, gallery: Gallery, encoders: Sequence[ImageEncoder], *, uri: str | None = None
    ) -> GalleryIndex:
        """The index of ``gallery`` in ``folder``, in the spaces of ``encoders``.

        Args:
            uri: of Milvus, where the vectors were put there.

        Raises:
            GalleryError: there is no index, it is damaged, it lacks a space, or it was built for another gallery or
                with another encoder; the message names both.
        """
        record = _Record.read(folder)
        spaces: dict[str, VectorIndex] = {}
        for encoder in encoders:
            name = space_name(encoder)
            if name not in record.stores:
                raise GalleryError(
                    f"the index '{folder}' has no space '{name}', only {', '.join(record.stores)}.",
                    hint=f"Add it: lienzo-train index -o {folder} --encoder {encoder.name}.",
                )
            expected = {"encoder": encoder.fingerprint, "gallery": gallery.image_fingerprint}
            spaces[name] = _open_space(folder, name, record.stores[name], uri, **expected)
        return cls(spaces, record.issues)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the pictures in the first space."""
        return next(iter(self.spaces.values())).ids

    def __len__(self) -> int:
        return len(next(iter(self.spaces.values())))

    def embedding(self, id: str, *, space: str = StyleEncoder.name) -> np.ndarray:
        """The embedding of the picture ``id``, ``[K]`` float32 of length 1.

        Raises:
            NotFound: the index has no such picture.
        """
        return self.spaces[space].vector(id)

    def nearest(
        self, embedding: np.ndarray, k: int, *, exclude: str | None = None, space: str = StyleEncoder.name
    ) -> list[tuple[str, float]]:
        """The ``k`` pictures nearest to an embedding: id and cosine distance (0 to 2), the nearest first.

        Equal distances keep the index's order: the gallery's, with pictures that were added later at the end.

        Args:
            exclude: id of a picture to leave out: a picture is no style for itself.
        """
        if not 1 <= k <= MAX_K:
            raise InvalidInput(f"k is {k}, expected 1 to {MAX_K}.", field="k")
        left_out = frozenset() if exclude is None else frozenset({exclude})
        return self.spaces[space].search(embedding[None], k, exclude=[left_out])[0]

    def close(self) -> None:
        """Let go of files and connections."""
        for space in self.spaces.values():
            space.close()


@dataclass(frozen=True)
class Changes:
    """What :func:`update_index` did, in pictures.

    Attributes:
        added: embedded in a space that did not have them.
        issues: pictures left out, and why.
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    issues: tuple[str, ...] = ()

    @property
    def pictures(self) -> int:
        """That are in the index now."""
        return self.added + self.changed + self.unchanged

    def __str__(self) -> str:
        return f"{self.added} added, {self.changed} changed, {self.removed} removed"


@dataclass(frozen=True)
class Embedded:
    """Some pictures' embeddings.

    Attributes:
        ids: of the pictures that could be read.
        vectors: by space, ``[len(ids), K]``.
        issues: why a picture could not be read, by id.
    """

    ids: tuple[str, ...]
    vectors: Mapping[str, np.ndarray]
    issues: Mapping[str, str]


EmbedShards = Callable[[Sequence[Sequence[Picture]], Sequence[ImageEncoder], Callable[[int], None]], Iterator[Embedded]]
"""Embeds shards of pictures, here or elsewhere, in their order, and tells how many more pictures are done."""


def embed_pictures(
    pictures: Sequence[Picture], encoders: Sequence[ImageEncoder], on_pictures: Callable[[int], None] = lambda _: None
) -> Embedded:
    """Decode pictures in threads and embed them in batches.

    Args:
        on_pictures: told how many more pictures are done.
    """
    ids: list[str] = []
    batch: list[Image.Image] = []
    issues: dict[str, str] = {}
    vectors: dict[str, list[np.ndarray]] = {
        space_name(encoder): [np.empty((0, encoder.dimensions), np.float32)] for encoder in encoders
    }

    def embed() -> None:
        if batch:
            for encoder in encoders:
                vectors[space_name(encoder)].append(encoder.embed(batch))
            batch.clear()

    with closing(read_ahead(_read_bounded, [picture.path for picture in pictures])) as decoded:
        for i, (picture, found) in enumerate(zip(pictures, decoded, strict=True), start=1):
            if isinstance(found, str):
                issues[picture.id] = found
                log.info("left out of the index: %s: %s", picture.id, found)
            else:
                ids.append(picture.id)
                batch.append(found)
            if i % BATCH == 0 or i == len(pictures):
                embed()
                on_pictures((i - 1) % BATCH + 1)
    return Embedded(tuple(ids), {name: np.concatenate(parts) for name, parts in vectors.items()}, issues)


def embed_here(
    shards: Sequence[Sequence[Picture]], encoders: Sequence[ImageEncoder], on_pictures: Callable[[int], None]
) -> Iterator[Embedded]:
    """Embed the shards in this process, one after the other."""
    for shard in shards:
        yield embed_pictures(shard, encoders, on_pictures)


def update_index(
    folder: Path,
    gallery: Gallery,
    encoders: Sequence[ImageEncoder],
    *,
    uri: str | None = None,
    embed: EmbedShards = embed_here,
    progress: Progress | None = None,
) -> Changes:
    """Bring the index in ``folder`` up to the gallery as it is; build it where there is none.

    Only pictures that are new, or whose file holds something else than before, are embedded. What is done is kept
    after each shard, so that an interrupted run is taken up by the next; until it is done, the index is refused as
    unfinished. A space that is damaged or was built with another encoder is built anew.

    Args:
        uri: of Milvus, for vectors that are to lie there.
        embed: embeds the shards.
        progress: told the stage, how many pictures are done and how many there are.

    Raises:
        GalleryError: no picture could be read, or Milvus refuses.
        InvalidInput: a space's name is malformed or occurs twice, or pymilvus is not installed.
        OSError: the folder cannot be written.
    """
    names = [space_name(encoder) for encoder in encoders]
    if malformed := [name for name in names if not _SPACE_NAME.fullmatch(name) or names.count(name) > 1]:
        raise InvalidInput(f"'{malformed[0]}' is no name of a space, or occurs twice.", field="encoder")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        record = _Record.read(folder) if (folder / _RECORD).is_file() else _Record()
        files, issues = _versions(folder, gallery, progress)
        stores = {name: _store_of(name, record.stores.get(name), uri) for name in names}
        spaces: dict[str, VectorIndex] = {}
        try:
            for encoder in encoders:
                known = record.stores.get(space_name(encoder)) == stores[space_name(encoder)]
                spaces[space_name(encoder)] = _space_to_update(folder, encoder, stores[space_name(encoder)], uri, known)
            # Before the first vector: a run that takes this up must know where vectors are.
            _Record(record.stores | stores, record.issues).write(folder)
            changes = _update_spaces(spaces, gallery, encoders, files, issues, embed, progress)
        finally:
            for space in spaces.values():
                space.close()
        _Record(record.stores | stores, changes.issues).write(folder)
        if changes.issues:
            log.warning("index %s: %d pictures left out, the first: %s", folder, len(changes.issues), changes.issues[0])
        for name in names:
            if stores[name]["kind"] != "exact":
                shutil.rmtree(folder / name, ignore_errors=True)
    return changes


def shards(pictures: Sequence[Picture]) -> list[Sequence[Picture]]:
    """Pictures in the portions after which an index is written: at most 64 portions up to a quarter of a million."""
    size = min(max(SHARD, len(pictures) // 64), 4096)
    return [pictures[begin : begin + size] for begin in range(0, len(pictures), size)]


def open_index(
    gallery: Gallery,
    encoders: Sequence[ImageEncoder],
    *,
    path: Path | None = None,
    uri: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> GalleryIndex:
    """The index of ``gallery``: from ``path`` if given, else the one shipped for it, else kept in the cache.

    Args:
        uri: of Milvus, where the vectors of ``path`` lie there.
        cache: folder of the indexes that are built where none was given, and brought up to date as galleries change.

    Raises:
        GalleryError: ``path`` holds no index of this gallery, or nothing is there and no cache was given.
    """
    if path is not None:
        return GalleryIndex.open(path, gallery, encoders, uri=uri)
    # By where the gallery lies: when its pictures change, its index is brought up to date.
    where = os.path.commonpath([picture.path.parent for picture in gallery.pictures])
    identity = [FORMAT, gallery.name, where, *(encoder.fingerprint for encoder in encoders)]
    places = [SHIPPED / gallery.name]
    if cache is not None:
        places.append(cache / f"index-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]}")
    for place in places:
        if place.is_dir():
            try:
                return GalleryIndex.open(place, gallery, encoders)
            except GalleryError as error:
                log.info("%s", error)
    if cache is None:
        raise GalleryError(
            f"gallery '{gallery.name}' has no index.",
            hint=f"Build one with `lienzo-train index --gallery {gallery.name} -o DIR`.",
        )
    changes = update_index(places[-1], gallery, encoders, progress=progress)
    log.info("index of gallery '%s': %s", gallery.name, changes)
    return GalleryIndex.open(places[-1], gallery, encoders)


def read_ahead(read: Callable[[Path], Image.Image], paths: Sequence[Path]) -> Iterator[Image.Image | str]:
    """The pictures in order, read by threads ahead of who uses them; in place of an unreadable one, the reason."""
    workers = min(8, os.cpu_count() or 1)

    def read_or_explain(path: Path) -> Image.Image | str:
        try:
            return read(path)
        except InvalidInput as error:
            return error.message
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[Future[Image.Image | str]] = deque()
        try:
            for path in paths:
                waiting.append(pool.submit(read_or_explain, path))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# --- the folder ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """``index.json``.

    Attributes:
        stores: by space, ``{"kind": "exact"}`` or ``{"kind": "milvus", "collection": …}``. Where Milvus is does not
            belong here: addresses change, and may carry a password.
    """

    stores: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    issues: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> _Record:
        hint = "Build one with `lienzo-train index`."
        try:
            found = json.loads((folder / _RECORD).read_bytes())
            if found["format"] != FORMAT:
                raise GalleryError(f"the index '{folder}' has format {found['format']}, expected {FORMAT}.", hint=hint)
            stores = {name: dict(store) for name, store in found["spaces"].items() if _SPACE_NAME.fullmatch(name)}
            return cls(stores, tuple(map(str, found["issues"])))
        except FileNotFoundError as error:
            raise GalleryError(f"there is no gallery index in '{folder}'.", hint=hint) from error
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise GalleryError(f"the gallery index '{folder}' cannot be read: {error}.", hint=hint) from error

    def write(self, folder: Path) -> None:
        record = {"format": FORMAT, "spaces": self.stores, "issues": self.issues}
        write_atomically(folder / _RECORD, json.dumps(record, indent=1).encode())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process is writing the index '%s'; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _store_of(name: str, known: Mapping[str, str] | None, uri: str | None) -> Mapping[str, str]:
    """Where a space's vectors are to lie."""
    if uri is None:
        return {"kind": "exact"}
    if known is not None and known.get("kind") == "milvus":
        return known
    return {"kind": "milvus", "collection": f"lienzo_{name.replace('-', '_')}_{uuid4().hex[:12]}"}


def _open_space(folder: Path, name: str, store: Mapping[str, str], uri: str | None, **expected: str) -> VectorIndex:
    if store.get("kind") == "exact":
        return ExactIndex.open(folder / name, **expected)
    if uri is None:
        raise GalleryError(
            f"the vectors of the index '{folder}' are in Milvus, and its address is not given.",
            hint="Name it: LIENZO_INDEX_URI for a service, --index-uri for a command.",
        )
    return MilvusIndex.open(uri, str(store.get("collection")), **expected)


def _space_to_update(
    folder: Path, encoder: ImageEncoder, store: Mapping[str, str], uri: str | None, known: bool
) -> VectorIndex:
    """The space as it is, or an empty one where there is none that can be gone on with."""
    if known:
        try:
            return _open_space(folder, space_name(encoder), store, uri, encoder=encoder.fingerprint)
        except GalleryError as error:
            log.warning("built anew: %s", error.message)
    shape = {"encoder": encoder.fingerprint, "dimensions": encoder.dimensions}
    if uri is None:
        return ExactIndex.create(folder / space_name(encoder), **shape)
    return MilvusIndex.create(uri, store["collection"], **shape)


# --- bringing it up to date ----------------------------------------------------------------------------------------


def _update_spaces(
    spaces: Mapping[str, VectorIndex],
    gallery: Gallery,
    encoders: Sequence[ImageEncoder],
    files: Mapping[str, str],
    issues: dict[str, str],
    embed: EmbedShards,
    progress: Progress | None,
) -> Changes:
    known = {name: space.versions for name, space in spaces.items()}
    stale = {name: {id for id, version in files.items() if known[name].get(id) != version} for name in spaces}
    gone = {name: [id for id in known[name] if id not in files] for name in spaces}
    todo = [picture for picture in gallery.pictures if any(picture.id in ids for ids in stale.values())]
    for name, space in spaces.items():
        if stale[name] or gone[name]:
            space.assign(UNFINISHED)
            space.remove(gone[name])
    working = [encoder for encoder in encoders if stale[space_name(encoder)]]
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress("embedding", done, len(todo))

    for portion in embed(shards(todo), working, count):
        issues |= portion.issues
        for name in (space_name(encoder) for encoder in working):
            chosen = [i for i, id in enumerate(portion.ids) if id in stale[name]]
            ids = [portion.ids[i] for i in chosen]
            spaces[name].upsert(ids, portion.vectors[name][chosen], [files[id] for id in ids])
            spaces[name].remove(list(portion.issues))
    if len(issues) == len(gallery.pictures):
        raise GalleryError(f"none of the {len(issues)} pictures of gallery '{gallery.name}' can be read.")
    for space in spaces.values():
        space.assign(gallery.image_fingerprint)
    embedded = [picture.id for picture in todo if picture.id not in issues]
    added = sum(any(id not in ids for ids in known.values()) for id in embedded)
    return Changes(
        added=added,
        changed=len(embedded) - added,
        removed=len({id for ids in known.values() for id in ids if id not in files or id in issues}),
        unchanged=len(files) - len(todo),
        issues=tuple(f"{id}: {reason}" for id, reason in issues.items()),
    )


def _versions(folder: Path, gallery: Gallery, progress: Progress | None) -> tuple[dict[str, str], dict[str, str]]:
    """What each picture's file holds, as a hash by id, and why others have none.

    A file of the same size and time of change as last time is not read again.
    """
    known, seen = _read_files(folder / _FILES), {}
    versions, issues = {}, {}
    for done, picture in enumerate(gallery.pictures, start=1):
        try:
            status = picture.path.stat()
            look = [status.st_size, status.st_mtime_ns]
            last = known.get(picture.id)
            version = last[2] if last is not None and last[:2] == look else sha256(picture.path)[:32]
            versions[picture.id], seen[picture.id] = version, [*look, version]
        except OSError as error:
            issues[picture.id] = str(error)
            log.info("left out of the index: %s: %s", picture.id, error)
        if progress is not None:
            progress("reading files", done, len(gallery.pictures))
    if seen != known:
        write_atomically(folder / _FILES, json.dumps(seen, separators=(",", ":")).encode())
    return versions, issues


def _read_files(path: Path) -> dict[str, list[Any]]:
    """What :func:`_versions` wrote: only a shortcut, so anything else is as good as nothing."""
    try:
        found = json.loads(path.read_bytes())
        return {str(id): [int(size), int(time), str(version)] for id, (size, time, version) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _read_bounded(path: Path) -> Image.Image:
    picture = decode(path)
    return resize(picture, LONGER_SIDE) if max(picture.size) > LONGER_SIDE else picture
