"""Vectors by id, searched by cosine: the interface, and the exact index in a folder.

:class:`shared.milvus_index.MilvusIndex` is the other implementation, for galleries beyond one machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import torch

from shared.errors import GalleryError, InvalidInput, NotFound
from shared.files import sha256, write_atomically

FORMAT = 1
DTYPES = ("float16", "float32")
LENGTH_TOLERANCE = 1e-4
UNFINISHED = ""
"""In place of a gallery's fingerprint: the index is being built, or its building was interrupted."""

HINT = "Build it again with `lienzo-train index`, which takes up what is whole."

_MANIFEST = "index.json"
_SEGMENT = re.compile(r"[0-9a-f]{32}\.npy")
# Rows turned to float32 at once: with 2,048 dimensions 2 MB, which stay in a core's cache until they are multiplied.
_BLOCK = 256
_COPIED_AT_ONCE = 4096
_SCORES_AT_ONCE = 2**25


@dataclass(frozen=True)
class Header:
    """What an index is and what it belongs to.

    Attributes:
        encoder: fingerprint of what made the vectors.
        gallery: fingerprint of the gallery whose vectors these are; :data:`UNFINISHED` while they are being made.
        dimensions: of each vector.
        content: SHA-256 over the ids and vectors in order; see :attr:`Rows.content`.
    """

    encoder: str
    gallery: str
    dimensions: int
    content: str

    def check(self, where: object, *, encoder: str | None, gallery: str | None) -> None:
        """Refuse another encoder or gallery than is expected; ``None`` expects nothing.

        Raises:
            GalleryError: naming what was found and what was expected.
        """
        if encoder is not None and self.encoder != encoder:
            raise GalleryError(
                f"the index '{where}' was built with encoder {self.encoder}, expected {encoder}.", hint=HINT
            )
        if gallery is not None and self.gallery == UNFINISHED:
            raise GalleryError(f"the index '{where}' is unfinished: its building was interrupted.", hint=HINT)
        if gallery is not None and self.gallery != gallery:
            raise GalleryError(
                f"the index '{where}' was built for gallery {self.gallery}, expected {gallery}.", hint=HINT
            )


class VectorIndex(Protocol):
    """Vectors of unit length by id, in an order of their own, on disk or on a server.

    Each write happens whole or not at all: killed at any point, it leaves the index as it was. One process may write
    at a time; those that opened the index before go on with what they opened.
    """

    @property
    def header(self) -> Header:
        """What the index belongs to."""

    @property
    def ids(self) -> tuple[str, ...]:
        """In the index's order: that of their arrival."""

    @property
    def versions(self) -> Mapping[str, str]:
        """What each vector was made from, as :meth:`upsert` was told, by id."""

    def __len__(self) -> int:
        """Number of vectors."""

    def vector(self, id: str) -> np.ndarray:
        """The vector of ``id``, ``[K]`` float32 of length 1.

        Raises:
            NotFound: the index has no such id.
        """

    def search(
        self, queries: np.ndarray, k: int, *, exclude: Sequence[AbstractSet[str]] = ()
    ) -> list[list[tuple[str, float]]]:
        """For each query its ``k`` nearest, or all where there are fewer: id and cosine distance, the nearest first.

        Distances are those of the stored vectors in float64, from 0 to 2; equal ones keep the index's order.

        Args:
            queries: ``[Q, K]``, of any length but 0.
            exclude: for each query the ids to leave out; empty where nothing is.

        Raises:
            InvalidInput: a query has other dimensions or no direction, or ``k`` is below 1.
        """

    def upsert(self, ids: Sequence[str], vectors: np.ndarray, versions: Sequence[str] = ()) -> None:
        """Put vectors in; a known id keeps its place in the order, a new one comes last.

        Args:
            vectors: ``[N, K]``, each of length 1.
            versions: of what each vector was made from, such as a file's hash; none where not given.

        Raises:
            InvalidInput: an id occurs twice, or the vectors have another shape or length.
        """

    def remove(self, ids: Sequence[str]) -> None:
        """Take vectors out; ids that are not there are passed over."""

    def assign(self, gallery: str) -> None:
        """Say whose vectors these are: a gallery's fingerprint, or :data:`UNFINISHED`."""

    def close(self) -> None:
        """Let go of files and connections."""


@dataclass(frozen=True)
class Rows:
    """The rows of an index in its order, without their vectors.

    Attributes:
        digests: SHA-256 of each vector's bytes as stored (little-endian).
    """

    ids: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    digests: tuple[bytes, ...] = ()

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Place in the order by id."""
        return {id: i for i, id in enumerate(self.ids)}

    @cached_property
    def content(self) -> str:
        """SHA-256 (hex) over each row's id and its vector's SHA-256, in order."""
        digest = hashlib.sha256()
        for id, row in zip(self.ids, self.digests, strict=True):
            digest.update(id.encode() + b"\0" + row)
        return digest.hexdigest()

    def with_rows(self, ids: Sequence[str], versions: Sequence[str], digests: Sequence[bytes]) -> Rows:
        """These rows with others changed in place or added at the end."""
        all_ids, all_versions, all_digests = list(self.ids), list(self.versions), list(self.digests)
        for id, version, digest in zip(ids, versions, digests, strict=True):
            if (i := self.position.get(id)) is not None:
                all_versions[i], all_digests[i] = version, digest
            else:
                all_ids.append(id)
                all_versions.append(version)
                all_digests.append(digest)
        return Rows(tuple(all_ids), tuple(all_versions), tuple(all_digests))

    def kept(self, mask: np.ndarray) -> Rows:
        """The rows where ``mask``, ``[N]``, is true."""
        chosen = np.flatnonzero(mask)
        return Rows(*(tuple(column[i] for i in chosen) for column in (self.ids, self.versions, self.digests)))


def checked_rows(
    ids: Sequence[str], vectors: np.ndarray, versions: Sequence[str], dimensions: int
) -> tuple[np.ndarray, Sequence[str]]:
    """The vectors and versions of an upsert, or the refusal that :meth:`VectorIndex.upsert` promises."""
    vectors = np.asarray(vectors)
    versions = versions or [""] * len(ids)
    if vectors.shape != (len(ids), dimensions) or len(versions) != len(ids):
        raise InvalidInput(
            f"{len(ids)} ids come with vectors of shape {list(vectors.shape)} and {len(versions)} versions, "
            f"expected [{len(ids)}, {dimensions}] and {len(ids)}."
        )
    if len(set(ids)) != len(ids):
        twice = next(id for i, id in enumerate(ids) if id in ids[:i])
        raise InvalidInput(f"the id '{twice[:80]}' occurs twice.")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= LENGTH_TOLERANCE))  # not a number is wrong too
    if wrong.size:
        i = int(wrong[0])
        raise InvalidInput(f"the vector of '{ids[i][:80]}' has length {lengths[i]:.6g}, expected 1.")
    return vectors, versions


def checked_queries(
    queries: np.ndarray, k: int, exclude: Sequence[AbstractSet[str]], dimensions: int
) -> tuple[np.ndarray, Sequence[AbstractSet[str]]]:
    """The queries as ``[Q, K]`` float64 of length 1, and what to leave out of each, or a refusal."""
    queries = np.asarray(queries, dtype=np.float64)
    if queries.ndim != 2 or queries.shape[1] != dimensions:
        raise InvalidInput(f"queries have the shape {list(queries.shape)}, expected [Q, {dimensions}].")
    if k < 1:
        raise InvalidInput(f"k is {k}, expected 1 or more.", field="k")
    exclude = exclude or [frozenset()] * len(queries)
    if len(exclude) != len(queries):
        raise InvalidInput(f"{len(exclude)} sets to exclude for {len(queries)} queries.", field="exclude")
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InvalidInput("a query has no direction: its length is 0 or not finite.")
    return queries / lengths, exclude


def cosine_distances(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosine distance, 0 to 2 in float64, of ``[N, K]`` rows to a ``[K]`` query of length 1.

    Row by row: a matrix product rounds equal rows differently, and the order of equal distances would be chance.
    """
    distances = np.empty(len(rows))
    for begin in range(0, len(rows), _COPIED_AT_ONCE):
        block = rows[begin : begin + _COPIED_AT_ONCE].astype(np.float64)
        lengths = np.sqrt((block * block).sum(axis=1))
        distances[begin : begin + len(block)] = 1 - (block * query).sum(axis=1) / lengths
    return distances.clip(0, 2)


def unit(vector: np.ndarray) -> np.ndarray:
    """A stored vector as ``[K]`` float32 of length 1: as float16 it is so only nearly."""
    exact = vector.astype(np.float64)
    return (exact / np.linalg.norm(exact)).astype(np.float32)


def slack(dimensions: int, dtype: str) -> float:
    """How far a product of a stored row with a query in float32 can be from the cosine.

    The row's length is not quite 1, and a sum of ``dimensions`` products is rounded as often.
    """
    return LENGTH_TOLERANCE + (2.0**-11 if dtype == "float16" else 0.0) + dimensions * 2.0**-23


class ExactIndex:
    """Every vector compared with every query, in this process, from a memory-mapped matrix in a folder.

    The matrix is kept in segments (``<SHA-256>.npy``, never changed), of which ``index.json`` says which rows count.
    A write adds a segment and then replaces ``index.json`` in one step; small segments are merged as they become many,
    so that a row is copied a logarithmic number of times.

    A search goes through the matrix once, in float32 and block by block, and computes the rows that can be among the
    nearest again in float64.
    """

    def __init__(self, folder: Path, header: Header, dtype: str, rows: Rows, places: np.ndarray, segments: _Segments):
        self._folder, self._header, self._dtype = folder, header, dtype
        self._rows, self._places, self._segments = rows, places, segments

    @classmethod
    def create(cls, folder: Path, *, encoder: str, dimensions: int, dtype: str = "float16") -> ExactIndex:
        """An empty, unfinished index in ``folder``; one that was there is gone.

        Args:
            dtype: what vectors are stored as. ``float16`` takes half the memory, is searched almost twice as fast, and
                moves a cosine by some 1e-5.

        Raises:
            InvalidInput: there is no such dtype.
        """
        if dtype not in DTYPES:
            raise InvalidInput(f"dtype is '{dtype}', expected one of {', '.join(DTYPES)}.", field="dtype")
        folder.mkdir(parents=True, exist_ok=True)
        header = Header(encoder, UNFINISHED, dimensions, "")
        index = cls(folder, header, dtype, Rows(), np.empty(0, np.int64), _Segments())
        index._commit(index._rows, index._places, index._segments)
        return index

    @classmethod
    def open(cls, folder: Path, *, encoder: str | None = None, gallery: str | None = None) -> ExactIndex:
        """The index in ``folder``; every vector is read and held against the content hash.

        Raises:
            GalleryError: there is none, it is damaged, or it belongs to another encoder or gallery than is expected.
        """
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
            if manifest["format"] != FORMAT:
                raise GalleryError(
                    f"the index '{folder}' has format {manifest['format']}, expected {FORMAT}.", hint=HINT
                )
            header = Header(*(manifest[name] for name in ("encoder", "gallery", "dimensions", "content")))
            header.check(folder, encoder=encoder, gallery=gallery)
            segments = _Segments.open(folder, manifest["segments"], manifest["dtype"], header.dimensions)
            places = _from_runs(manifest["places"])
            ids, versions = tuple(manifest["ids"]), tuple(manifest["versions"])
            if not len(ids) == len(versions) == len(places) == len(set(ids)):
                raise ValueError(f"{len(ids)} ids and {len(versions)} versions for {len(places)} vectors")
            if len(places) and not 0 <= places.min() <= places.max() < len(segments):
                raise ValueError(f"there are {len(segments)} rows, but row {places.max()} is to be used")
            rows = Rows(ids, versions, tuple(_digests(segments.blocks(places))))
        except (OSError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise GalleryError(f"the index '{folder}' cannot be read: {error}.", hint=HINT) from error
        if rows.content != header.content:
            raise GalleryError(
                f"the index '{folder}' is damaged: the hash of its content is {rows.content[:16]}…, "
                f"expected {header.content[:16]}….",
                hint=HINT,
            )
        return cls(folder, header, manifest["dtype"], rows, places, segments)

    @property
    def header(self) -> Header:
        """See :attr:`VectorIndex.header`."""
        return self._header

    @property
    def ids(self) -> tuple[str, ...]:
        """See :attr:`VectorIndex.ids`."""
        return self._rows.ids

    @property
    def versions(self) -> Mapping[str, str]:
        """See :attr:`VectorIndex.versions`."""
        return dict(zip(self._rows.ids, self._rows.versions, strict=True))

    def __len__(self) -> int:
        return len(self._rows.ids)

    def vector(self, id: str) -> np.ndarray:
        """See :meth:`VectorIndex.vector`."""
        if id not in self._rows.position:
            raise unknown(id)
        return unit(self._segments.rows(self._places[[self._rows.position[id]]])[0])

    def search(
        self, queries: np.ndarray, k: int, *, exclude: Sequence[AbstractSet[str]] = ()
    ) -> list[list[tuple[str, float]]]:
        """See :meth:`VectorIndex.search`."""
        queries, exclude = checked_queries(queries, k, exclude, self._header.dimensions)
        at_once = max(1, _SCORES_AT_ONCE // max(1, len(self._segments)))
        found = []
        for begin in range(0, len(queries), at_once):
            some = queries[begin : begin + at_once]
            scores = self._scores(some)
            for query, own, left_out in zip(some, scores, exclude[begin : begin + at_once], strict=True):
                found.append(self._nearest(query, own, k, left_out))
        return found

    def upsert(self, ids: Sequence[str], vectors: np.ndarray, versions: Sequence[str] = ()) -> None:
        """See :meth:`VectorIndex.upsert`."""
        vectors, versions = checked_rows(ids, vectors, versions, self._header.dimensions)
        if not ids:
            return
        stored = np.ascontiguousarray(vectors, dtype=_stored(self._dtype))
        rows = self._rows.with_rows(ids, versions, list(_digests([stored])))
        places = np.concatenate([self._places, np.empty(len(rows.ids) - len(self), np.int64)])
        places[[rows.position[id] for id in ids]] = len(self._segments) + np.arange(len(ids))
        self._commit(rows, places, self._segments.with_part(None, stored))

    def remove(self, ids: Sequence[str]) -> None:
        """See :meth:`VectorIndex.remove`."""
        gone = [self._rows.position[id] for id in set(ids) if id in self._rows.position]
        if gone:
            mask = np.ones(len(self), bool)
            mask[gone] = False
            self._commit(self._rows.kept(mask), self._places[mask], self._segments)

    def assign(self, gallery: str) -> None:
        """See :meth:`VectorIndex.assign`."""
        if gallery != self._header.gallery:
            self._commit(self._rows, self._places, self._segments, gallery)

    def close(self) -> None:
        """See :meth:`VectorIndex.close`; the maps of files go with the object."""

    def _scores(self, queries: np.ndarray) -> np.ndarray:
        """Nearly the cosines of all vectors in the index's order, ``[Q, N]`` float32."""
        columns = torch.from_numpy(queries.T.astype(np.float32))
        scores = torch.empty(len(self._segments), len(queries))
        block = torch.empty(_BLOCK, self._header.dimensions)
        done = 0
        for _, part in self._segments.parts:
            matrix = torch.from_numpy(part)
            if matrix.dtype == torch.float32:
                torch.mm(matrix, columns, out=scores[done : done + len(part)])
            else:
                for begin in range(0, len(part), _BLOCK):
                    halves = matrix[begin : begin + _BLOCK]
                    rows = block[: len(halves)].copy_(halves)
                    torch.mm(rows, columns, out=scores[done + begin : done + begin + len(halves)])
            done += len(part)
        found = scores.numpy()
        whole = len(self) == done and np.array_equal(self._places, np.arange(done))
        return np.ascontiguousarray((found if whole else found[self._places]).T)

    def _nearest(
        self, query: np.ndarray, scores: np.ndarray, k: int, exclude: AbstractSet[str]
    ) -> list[tuple[str, float]]:
        left_out = [self._rows.position[id] for id in exclude if id in self._rows.position]
        scores[left_out] = -np.inf
        count = min(k, len(self) - len(left_out))
        if count < 1:
            return []
        # The k-th best score is off by the slack at most, and so is any that belongs before it.
        least = np.partition(scores, len(self) - count)[len(self) - count]
        candidates = np.flatnonzero(scores >= least - 2 * slack(self._header.dimensions, self._dtype))
        distances = cosine_distances(self._segments.rows(self._places[candidates]), query)
        order = np.argsort(distances, kind="stable")[:count]
        return [(self._rows.ids[candidates[i]], float(distances[i])) for i in order]

    def _commit(self, rows: Rows, places: np.ndarray, segments: _Segments, gallery: str | None = None) -> None:
        """Make this the index: segments first, then the manifest that names them, then the object's own state."""
        segments, places = segments.settled(self._folder, places.copy())
        gallery = self._header.gallery if gallery is None else gallery
        header = Header(self._header.encoder, gallery, self._header.dimensions, rows.content)
        manifest = {
            "format": FORMAT,
            "encoder": header.encoder,
            "gallery": header.gallery,
            "content": header.content,
            "dimensions": header.dimensions,
            "dtype": self._dtype,
            "segments": [[name, len(part)] for name, part in segments.parts],
            "places": _runs(places),
            "ids": rows.ids,
            "versions": rows.versions,
        }
        write_atomically(self._folder / _MANIFEST, json.dumps(manifest, separators=(",", ":")).encode())
        self._header, self._rows, self._places, self._segments = header, rows, places, segments
        named = {name for name, _ in segments.parts}
        for path in self._folder.iterdir():
            if path.suffix in (".npy", ".part") and path.name not in named:
                with contextlib.suppress(OSError):
                    path.unlink()


@dataclass(frozen=True)
class _Segments:
    """Matrices one below the other; a row's number is its place in all of them together.

    Attributes:
        parts: file name and ``[N, K]`` matrix; no name where it is not written yet.
    """

    parts: tuple[tuple[str | None, np.ndarray], ...] = ()

    @classmethod
    def open(cls, folder: Path, named: Sequence[tuple[str, int]], dtype: str, dimensions: int) -> _Segments:
        parts = []
        for name, length in named:
            if not _SEGMENT.fullmatch(name):
                raise ValueError(f"'{name}' is no segment's name")
            part = _map(folder / name)
            if part.shape != (length, dimensions) or part.dtype != _stored(dtype):
                raise ValueError(
                    f"{name} holds {part.dtype} {list(part.shape)}, expected {dtype} [{length}, {dimensions}]"
                )
            parts.append((name, part))
        return cls(tuple(parts))

    def __len__(self) -> int:
        return sum(len(part) for _, part in self.parts)

    def with_part(self, name: str | None, part: np.ndarray) -> _Segments:
        return _Segments((*self.parts, (name, part)))

    def rows(self, places: np.ndarray) -> np.ndarray:
        """The rows with these numbers, ``[len(places), K]``."""
        found, begin = np.empty((len(places), self.parts[0][1].shape[1]), self.parts[0][1].dtype), 0
        for _, part in self.parts:
            here = (places >= begin) & (places < begin + len(part))
            found[here] = part[places[here] - begin]
            begin += len(part)
        return found

    def blocks(self, places: np.ndarray) -> Iterator[np.ndarray]:
        """The rows with these numbers, some at a time."""
        for begin in range(0, len(places), _COPIED_AT_ONCE):
            yield self.rows(places[begin : begin + _COPIED_AT_ONCE])

    def settled(self, folder: Path, places: np.ndarray) -> tuple[_Segments, np.ndarray]:
        """All parts written: what is new, with earlier parts that are small beside it, as one file.

        Where most rows are not used any more, everything is written anew without them.

        Args:
            places: of the rows that are used; changed in place.
        """
        first = next((i for i, (name, _) in enumerate(self.parts) if name is None), len(self.parts))
        new = sum(len(part) for _, part in self.parts[first:])
        while new and first and len(self.parts[first - 1][1]) <= 2 * new:
            first -= 1
            new += len(self.parts[first][1])
        if len(self) > 2 * len(places):
            first = 0
        if first == len(self.parts):
            return self, places
        kept, begin = _Segments(self.parts[:first]), sum(len(part) for _, part in self.parts[:first])
        moved = places >= begin
        if moved.any():
            chosen = places[moved]
            name = _write_segment(folder, self.blocks(chosen), (len(chosen), self.parts[0][1].shape[1]))
            kept = kept.with_part(name, _map(folder / name))
            places[moved] = begin + np.arange(len(chosen))
        return kept, places


def unknown(id: str) -> NotFound:
    """The refusal of an id that an index does not have."""
    return NotFound(f"picture '{id[:80]}' is not in the gallery's index.", field="content_id")


def _map(path: Path) -> np.ndarray:
    # Copy-on-write: PyTorch wants memory that it might write to; nothing does.
    return np.load(path, mmap_mode="c")


def _stored(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


def _write_segment(folder: Path, blocks: Iterator[np.ndarray], shape: tuple[int, int]) -> str:
    """Write a .npy file that is named after its bytes; returns the name."""
    temporary = folder / f"{uuid4().hex}.part"
    with temporary.open("xb") as file:
        for i, block in enumerate(blocks):
            if i == 0:
                form: dict[str, Any] = {"descr": block.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, form)
            file.write(block.tobytes())
        file.flush()
        os.fsync(file.fileno())
    name = f"{sha256(temporary)[:32]}.npy"
    temporary.replace(folder / name)
    return name


def _digests(blocks: Iterator[np.ndarray] | Sequence[np.ndarray]) -> Iterator[bytes]:
    for block in blocks:
        for row in block:
            yield hashlib.sha256(row).digest()


def _runs(places: np.ndarray) -> list[list[int]]:
    """Row numbers as ``[first, past the last]`` of each stretch that ascends by one."""
    if not len(places):
        return []
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in np.split(places, breaks)]


def _from_runs(runs: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(np.arange(first, end) for first, end in runs)])
