"""The vector index in Milvus (Wang et al. 2021): a file by Milvus Lite, or a cluster, for galleries beyond one machine.

pymilvus is an extra of its own, and imported where it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from shared.errors import GalleryError, InvalidInput
from shared.vector_index import (
    FORMAT,
    HINT,
    UNFINISHED,
    Header,
    Rows,
    checked_queries,
    checked_rows,
    cosine_distances,
    slack,
    unit,
    unknown,
)

P = ParamSpec("P")
R = TypeVar("R")

_PROPERTY = "lienzo"
_FOREVER = 2**62
# What a query may return, in a cluster as it comes.
_MOST = 16_384
_BYTES_AT_ONCE = 2**23
_MORE = 16

# Milvus Lite serves a file to all clients of a process, and knows of none of them.
_lock = threading.Lock()
_open_files: Counter[str] = Counter()


@dataclass(frozen=True)
class _State(Header):
    """What the collection says of itself, in one property, so that it changes in one step.

    Attributes:
        generation: number of writes so far.
        count: of rows that are there now.
        next_position: of the next new row.
        format: of rows and properties.
    """

    generation: int = 0
    count: int = 0
    next_position: int = 0
    format: int = FORMAT


def _explained(method: Callable[P, R]) -> Callable[P, R]:
    """Turn what pymilvus raises into a :class:`GalleryError` that names the collection."""

    @wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from pymilvus.exceptions import MilvusException

        try:
            return method(*args, **kwargs)
        except MilvusException as error:
            raise GalleryError(
                f"Milvus refused to work on '{args[0]._where}': {error.message}.",
                hint="Check that it runs and can be reached, and look into its log.",
            ) from error

    return wrapped


class MilvusIndex:
    """Vectors in a collection of Milvus, float32, searched there without approximation (``FLAT``) and ranked here.

    A row carries the writes (generations) since which and until which it counts, and the collection's property names
    the generation that is in force. A write adds rows of the next generation, marks those that it replaces, and then
    changes the property: until then, nobody sees anything of it. What an interrupted write left is cleared away by the
    next, and so are replaced rows, so that an index opened before a write still finds all that it knew.
    """

    def __init__(self, client: Any, uri: str, collection: str, state: _State):
        self._client, self._uri, self._collection, self._state = client, uri, collection, state
        self._where = f"{shown_uri(uri)} {collection}"
        self._table: tuple[Rows, tuple[int, ...]] | None = None
        self._clean = self._closed = False

    @classmethod
    def create(cls, uri: str, collection: str, *, encoder: str, dimensions: int) -> MilvusIndex:
        """An empty, unfinished index as ``collection``; one that was there is gone.

        Args:
            uri: a file that ends in ``.db``, or the address of a cluster, ``http://…`` or ``https://…``.

        Raises:
            InvalidInput: pymilvus is not installed, or ``uri`` is neither.
            GalleryError: Milvus cannot be reached, or refuses.
        """
        index = cls(_connect(uri), uri, collection, _State(encoder, UNFINISHED, dimensions, Rows().content))
        index._create()
        return index

    @classmethod
    def open(cls, uri: str, collection: str, *, encoder: str | None = None, gallery: str | None = None) -> MilvusIndex:
        """The index that ``collection`` holds; its vectors stay where they are, so their hash is not computed again.

        Raises:
            InvalidInput: pymilvus is not installed, or ``uri`` is neither a file nor an address.
            GalleryError: Milvus cannot be reached; there is no such collection, it is no index, or it belongs to
                another encoder or gallery than is expected.
        """
        index = cls(_connect(uri), uri, collection, _State("", UNFINISHED, 0, ""))
        try:
            index._read_state()
            index._state.check(index._where, encoder=encoder, gallery=gallery)
        except GalleryError:
            index.close()
            raise
        return index

    @property
    def header(self) -> Header:
        """See :attr:`shared.vector_index.VectorIndex.header`."""
        return Header(self._state.encoder, self._state.gallery, self._state.dimensions, self._state.content)

    @property
    def ids(self) -> tuple[str, ...]:
        """See :attr:`shared.vector_index.VectorIndex.ids`; fetched at first need."""
        return self._rows()[0].ids

    @property
    def versions(self) -> Mapping[str, str]:
        """See :attr:`shared.vector_index.VectorIndex.versions`; fetched at first need."""
        rows, _ = self._rows()
        return dict(zip(rows.ids, rows.versions, strict=True))

    def __len__(self) -> int:
        return self._state.count

    @_explained
    def vector(self, id: str) -> np.ndarray:
        """See :meth:`shared.vector_index.VectorIndex.vector`."""
        found = self._stored([id])
        if not found:
            raise unknown(id)
        return unit(np.asarray(found[0]["vector"], np.float32))

    @_explained
    def search(
        self, queries: np.ndarray, k: int, *, exclude: Sequence[AbstractSet[str]] = ()
    ) -> list[list[tuple[str, float]]]:
        """See :meth:`shared.vector_index.VectorIndex.search`.

        Raises:
            InvalidInput: also where ``k``, with what is excluded, is more than Milvus returns at once.
        """
        queries, exclude = checked_queries(queries, k, exclude, self._state.dimensions)
        most = max((len(left_out) for left_out in exclude), default=0) + k
        if most + _MORE > _MOST:
            raise InvalidInput(f"k is {k}, expected at most {_MOST - _MORE - most + k} in Milvus.", field="k")
        if not len(queries) or not len(self):
            return [[] for _ in queries]
        found = [None] * len(queries)
        waiting, limit = list(range(len(queries))), most + _MORE
        # Again with a higher limit where equal distances may go on beyond it.
        while waiting:
            hits = self._client.search(
                self._collection,
                data=[queries[i].astype(np.float32) for i in waiting],
                limit=limit,
                filter=self._visible(),
                output_fields=["id", "position", "vector"],
            )
            cut = [i for i, own in zip(waiting, hits, strict=True) if self._cut_short(own, most, limit)]
            for i, own in zip(waiting, hits, strict=True):
                found[i] = _ranked(own, queries[i], k, exclude[i])
            waiting, limit = cut, min(4 * limit, _MOST)
        return found

    def upsert(self, ids: Sequence[str], vectors: np.ndarray, versions: Sequence[str] = ()) -> None:
        """See :meth:`shared.vector_index.VectorIndex.upsert`."""
        vectors, versions = checked_rows(ids, vectors, versions, self._state.dimensions)
        if ids:
            self._write(ids, np.ascontiguousarray(vectors, dtype="<f4"), versions, ())

    def remove(self, ids: Sequence[str]) -> None:
        """See :meth:`shared.vector_index.VectorIndex.remove`."""
        gone = sorted({id for id in ids if id in self._rows()[0].position})
        if gone:
            self._write((), np.empty((0, self._state.dimensions), "<f4"), (), gone)

    @_explained
    def assign(self, gallery: str) -> None:
        """See :meth:`shared.vector_index.VectorIndex.assign`."""
        if gallery != self._state.gallery:
            self._put_state(replace(self._state, gallery=gallery))

    def close(self) -> None:
        """See :meth:`shared.vector_index.VectorIndex.close`.

        The last index of this process in a file of Milvus Lite lets go of it, so that another process may have it.
        """
        if self._closed:
            return
        self._closed = True
        self._client.close()
        if _is_file(self._uri):
            from milvus_lite.server_manager import server_manager_instance

            with _lock:
                _open_files[self._uri] -= 1
                if not _open_files[self._uri]:
                    server_manager_instance.release_server(self._uri)

    @_explained
    def _create(self) -> None:
        from pymilvus import DataType

        if self._client.has_collection(self._collection):
            self._client.drop_collection(self._collection)
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, max_length=96, is_primary=True)
        schema.add_field("name", DataType.VARCHAR, max_length=40)
        schema.add_field("id", DataType.VARCHAR, max_length=2048)
        schema.add_field("version", DataType.VARCHAR, max_length=128)
        schema.add_field("digest", DataType.VARCHAR, max_length=64)
        for name in ("position", "since", "until"):
            schema.add_field(name, DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._state.dimensions)
        parameters = self._client.prepare_index_params()
        parameters.add_index("vector", index_type="FLAT", metric_type="COSINE")
        self._client.create_collection(
            self._collection,
            schema=schema,
            index_params=parameters,
            consistency_level="Strong",
            properties={_PROPERTY: json.dumps(asdict(self._state))},
        )

    @_explained
    def _read_state(self) -> None:
        if not self._client.has_collection(self._collection):
            raise GalleryError(f"there is no index '{self._where}'.", hint=HINT)
        properties = self._client.describe_collection(self._collection).get("properties") or {}
        try:
            found = json.loads(properties[_PROPERTY])
            if found["format"] != FORMAT:
                raise GalleryError(
                    f"the index '{self._where}' has format {found['format']}, expected {FORMAT}.", hint=HINT
                )
            self._state = _State(**found)
        except (KeyError, TypeError, ValueError) as error:
            raise GalleryError(f"the collection '{self._where}' is no index of Lienzo's.", hint=HINT) from error
        self._client.load_collection(self._collection)

    def _put_state(self, state: _State) -> None:
        self._client.alter_collection_properties(self._collection, {_PROPERTY: json.dumps(asdict(state))})
        self._state = state

    def _visible(self) -> str:
        generation = self._state.generation
        return f"since <= {generation} and until > {generation}"

    def _rows(self) -> tuple[Rows, tuple[int, ...]]:
        """All rows in order, and their positions, which have gaps where rows were removed."""
        if self._table is None:
            self._table = self._fetch_rows()
        return self._table

    @_explained
    def _fetch_rows(self) -> tuple[Rows, tuple[int, ...]]:
        found: list[Mapping[str, Any]] = []
        for begin in range(0, self._state.next_position, _MOST):
            stretch = f"position >= {begin} and position < {begin + _MOST} and {self._visible()}"
            fields = ["id", "version", "digest", "position"]
            found += self._client.query(self._collection, filter=stretch, output_fields=fields, limit=_MOST)
        found.sort(key=lambda row: row["position"])
        rows = Rows(
            tuple(row["id"] for row in found),
            tuple(row["version"] for row in found),
            tuple(bytes.fromhex(row["digest"]) for row in found),
        )
        if rows.content != self._state.content:
            raise GalleryError(
                f"the index '{self._where}' is damaged: the hash of its content is {rows.content[:16]}…, "
                f"expected {self._state.content[:16]}….",
                hint=HINT,
            )
        return rows, tuple(row["position"] for row in found)

    def _stored(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of these ids that are in force, with their vectors."""
        found: list[dict[str, Any]] = []
        for some in _portions(ids, self._state.dimensions):
            condition = f"name in {json.dumps([_name(id) for id in some])} and {self._visible()}"
            found += self._client.query(self._collection, filter=condition, output_fields=["*"], limit=len(some))
        return found

    @_explained
    def _write(self, ids: Sequence[str], vectors: np.ndarray, versions: Sequence[str], gone: Sequence[str]) -> None:
        rows, positions = self._rows()
        self._clear_away()
        generation, next_position = self._state.generation + 1, self._state.next_position
        replaced = [*gone, *(id for id in ids if id in rows.position)]
        self._insert([{**row, "until": generation} for row in self._stored(replaced)])
        digests = [hashlib.sha256(vector).digest() for vector in vectors]
        new = []
        for id, version, digest, vector in zip(ids, versions, digests, vectors, strict=True):
            place = rows.position.get(id)
            if place is None:
                position, next_position = next_position, next_position + 1
            else:
                position = positions[place]
            new.append(
                {
                    "key": f"{_name(id)}@{generation}",
                    "name": _name(id),
                    "id": id,
                    "version": version,
                    "digest": digest.hex(),
                    "position": position,
                    "since": generation,
                    "until": _FOREVER,
                    "vector": vector,
                }
            )
        self._insert(new)
        left = np.array([id not in set(gone) for id in rows.ids], bool)
        kept = rows.kept(left)
        after = kept.with_rows(ids, versions, digests)
        added = range(self._state.next_position, next_position)
        places = (*(position for position, stays in zip(positions, left, strict=True) if stays), *added)
        state = replace(
            self._state,
            content=after.content,
            generation=generation,
            count=len(after.ids),
            next_position=next_position,
        )
        self._put_state(state)
        self._table = after, places

    def _insert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for some in _portions(rows, self._state.dimensions):
            self._client.upsert(self._collection, some)

    def _clear_away(self) -> None:
        """Undo an interrupted write, and drop rows replaced before this object's own writes; once is enough."""
        if self._clean:
            return
        generation = self._state.generation
        self._client.delete(self._collection, filter=f"since > {generation} or until <= {generation}")
        marked = f"until > {generation} and until < {_FOREVER}"
        while rows := self._client.query(
            self._collection,
            filter=marked,
            output_fields=["*"],
            limit=min(_MOST, _portion(self._state.dimensions)),
        ):
            self._insert([{**row, "until": _FOREVER} for row in rows])
        self._clean = True

    def _cut_short(self, hits: Sequence[Any], needed: int, limit: int) -> bool:
        """Whether a row that was not returned could be as near as the last that is needed."""
        if len(hits) < limit or limit == _MOST:
            return False
        allowance = 2 * slack(self._state.dimensions, "float32")
        return hits[-1]["distance"] >= hits[needed - 1]["distance"] - allowance


def shown_uri(uri: str) -> str:
    """The URI without the name and password that it may carry."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _ranked(hits: Sequence[Any], query: np.ndarray, k: int, exclude: AbstractSet[str]) -> list[tuple[str, float]]:
    entities = sorted((hit["entity"] for hit in hits), key=lambda entity: entity["position"])
    entities = [entity for entity in entities if entity["id"] not in exclude]
    if not entities:
        return []
    distances = cosine_distances(np.array([entity["vector"] for entity in entities], np.float32), query)
    return [(entities[i]["id"], float(distances[i])) for i in np.argsort(distances, kind="stable")[:k]]


def _name(id: str) -> str:
    """An id as it can stand in a filter, whatever is in it."""
    return hashlib.sha256(id.encode()).hexdigest()[:40]


def _portion(dimensions: int) -> int:
    return max(1, _BYTES_AT_ONCE // (4 * dimensions))


def _portions(rows: Sequence[Any], dimensions: int) -> Iterator[list[Any]]:
    """Rows by as many as fit into one message."""
    size = min(_MOST, _portion(dimensions))
    for begin in range(0, len(rows), size):
        yield list(rows[begin : begin + size])


def _is_file(uri: str) -> bool:
    return "://" not in uri


def _connect(uri: str) -> Any:
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        if _is_file(uri):
            import milvus_lite  # noqa: F401
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the index '{shown_uri(uri)}' needs the package '{error.name}'.",
            hint="Install it: pip install 'lienzo[milvus]'.",
            field="index_uri",
        ) from error
    if _is_file(uri):
        if not uri.endswith(".db"):
            raise InvalidInput(
                f"'{uri}' is no file of Milvus Lite.",
                hint="End it in .db, or name a cluster: http://HOST:19530.",
                field="index_uri",
            )
        with contextlib.suppress(OSError):
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
    try:
        with _lock:
            client = MilvusClient(uri)
            _open_files[uri] += 1
        return client
    except MilvusException as error:
        hint = (
            "Only one process at a time can have a file of Milvus Lite open."
            if _is_file(uri)
            else "Check the address, and that Milvus runs there."
        )
        raise GalleryError(f"Milvus cannot be opened at '{shown_uri(uri)}': {error.message}.", hint=hint) from error
