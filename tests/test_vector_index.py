"""Both vector indexes find what NumPy finds, write whole or not at all, and are refused where they do not belong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import milvus_index, vector_index
from shared.errors import GalleryError, InvalidInput, NotFound
from shared.milvus_index import MilvusIndex
from shared.vector_index import UNFINISHED, ExactIndex, VectorIndex

KINDS = ("exact16", "exact32", "milvus")


class Place:
    """Where a test's indexes of one kind live; each has a name."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder, self._opened = kind, folder, []

    def create(self, dimensions: int, *, name: str = "a", encoder: str = "E") -> VectorIndex:
        if self.kind == "milvus":
            index = MilvusIndex.create(self.uri, name, encoder=encoder, dimensions=dimensions)
        else:
            dtype = {"exact16": "float16", "exact32": "float32"}[self.kind]
            index = ExactIndex.create(self.folder / name, encoder=encoder, dimensions=dimensions, dtype=dtype)
        self._opened.append(index)
        return index

    def open(self, *, name: str = "a", **expected: str) -> VectorIndex:
        if self.kind == "milvus":
            index = MilvusIndex.open(self.uri, name, **expected)
        else:
            index = ExactIndex.open(self.folder / name, **expected)
        self._opened.append(index)
        return index

    @property
    def uri(self) -> str:
        return str(self.folder / "vectors.db")

    @property
    def stored(self) -> type:
        return np.float16 if self.kind == "exact16" else np.float32

    def close(self) -> None:
        for index in self._opened:
            index.close()


@pytest.fixture(scope="module", params=KINDS)
def place(request, tmp_path_factory) -> Iterator[Place]:
    """Milvus Lite takes a second to start, so a module's tests have one; their collections replace one another."""
    if request.param == "milvus":
        pytest.importorskip("pymilvus", reason="Milvus is an extra of its own")
    place = Place(request.param, tmp_path_factory.mktemp("indexes"))
    yield place
    place.close()


def vectors(count: int, dimensions: int = 8, seed: int = 0) -> np.ndarray:
    """``[count, dimensions]`` float32 of length 1."""
    return unit(np.random.default_rng(seed).standard_normal((count, dimensions)))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def names(count: int, first: int = 0) -> list[str]:
    return [f"p{i}" for i in range(first, first + count)]


def reference(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosine distances by NumPy in float64."""
    rows, query = rows.astype(np.float64), np.asarray(query, np.float64)
    return np.clip(1 - rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query), 0, 2)


def check_against_numpy(
    found: list[tuple[str, float]], ids: list[str], rows: np.ndarray, query: np.ndarray, k: int
) -> None:
    """``found`` are the ``k`` nearest of ``rows``, at their distances, and in order; equal rows in the given order."""
    exact = reference(rows, query)
    distances = [distance for _, distance in found]
    assert distances == sorted(distances) and len({id for id, _ in found}) == len(found) == min(k, len(ids))
    np.testing.assert_allclose(distances, np.sort(exact)[:k], atol=1e-12)
    for id, distance in found:
        assert distance == pytest.approx(exact[ids.index(id)], abs=1e-12)
    places = [ids.index(id) for id, _ in found]
    for one, other, first, second in zip(places, places[1:], distances, distances[1:], strict=False):
        assert first != second or one < other


# --- searching -----------------------------------------------------------------------------------------------------


def test_the_nearest_are_numpys(place):
    rows, queries = vectors(300, 24), np.random.default_rng(1).standard_normal((5, 24))
    index = place.create(24)
    index.upsert(names(300), rows)
    found = index.search(queries, 17)
    assert len(found) == 5
    for query, own in zip(queries, found, strict=True):
        check_against_numpy(own, names(300), rows.astype(place.stored), query, 17)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 9), st.integers(1, 50), st.integers(1, 3), st.booleans(), st.integers(0, 2**31)
)
def test_any_exact_search_is_numpys(tmp_path_factory, n, dimensions, k, batch, halves, seed):
    """With few distinct coordinates, so that many rows are the same and many distances equal."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(-1, 2, (n, dimensions)) + 0.0
    raw[~raw.any(axis=1), 0] = 1
    rows, ids = unit(raw), names(n)
    dtype = "float16" if halves else "float32"
    index = ExactIndex.create(tmp_path_factory.mktemp("any"), encoder="E", dimensions=dimensions, dtype=dtype)
    cut = int(rng.integers(0, n + 1))
    index.upsert(ids[:cut], rows[:cut])
    index.upsert(ids[cut:], rows[cut:])
    queries = rng.standard_normal((batch, dimensions))
    exclude = [{ids[i] for i in rng.integers(0, n, 2)} for _ in range(batch)]
    for query, left_out, found in zip(queries, exclude, index.search(queries, k, exclude=exclude), strict=True):
        left = [i for i in range(n) if ids[i] not in left_out]
        check_against_numpy(found, [ids[i] for i in left], rows[left].astype(dtype), query, k)


def test_copies_keep_the_order_of_the_index_beyond_the_k_nearest(place):
    """More copies than asked for, so that those returned must be the first of them, whatever a product rounds to."""
    which = np.random.default_rng(0).integers(0, 2, 200)
    index = place.create(17)
    index.upsert(names(200), vectors(2, 17)[which])
    expected = [f"p{i}" for i in np.flatnonzero(which == 1)][:30]
    found = index.search(vectors(2, 17)[1:], 30)[0]
    assert [id for id, _ in found] == expected and len({distance for _, distance in found}) == 1


def test_what_is_excluded_is_left_out_of_its_own_query_only(place):
    rows = vectors(20)
    index = place.create(8)
    index.upsert(names(20), rows)
    same, without = index.search(rows[[3, 3]], 20, exclude=[set(), {"p3", "p7", "unknown"}])
    assert same[0] == ("p3", pytest.approx(0, abs=1e-6)) and len(same) == 20
    assert [pair for pair in same if pair[0] not in ("p3", "p7")] == without
    assert index.search(rows[:1], 5, exclude=[set(names(20))]) == [[]]


def test_more_than_there_are_is_all_there_are(place):
    index = place.create(8)
    assert index.search(vectors(2), 3) == [[], []] and len(index) == 0 and index.ids == ()
    index.upsert(names(4), vectors(4))
    assert sorted(id for id, _ in index.search(vectors(1), 100)[0]) == names(4)


@pytest.mark.parametrize(
    ("queries", "k", "exclude", "message"),
    [
        (np.ones((1, 7)), 1, (), r"queries have the shape \[1, 7\], expected \[Q, 8\]"),
        (np.ones(8), 1, (), r"queries have the shape \[8\]"),
        (np.ones((1, 8)), 0, (), "k is 0, expected 1 or more"),
        (np.zeros((1, 8)), 1, (), "no direction"),
        (np.full((1, 8), np.nan), 1, (), "no direction"),
        (np.ones((1, 8)), 1, [set(), set()], "2 sets to exclude for 1 queries"),
    ],
)
def test_a_malformed_query_is_refused(place, queries, k, exclude, message):
    index = place.create(8)
    index.upsert(names(3), vectors(3))
    with pytest.raises(InvalidInput, match=message):
        index.search(queries, k, exclude=exclude)


def test_a_vector_is_given_back_with_length_1(place):
    rows = vectors(3, 64)
    index = place.create(64)
    index.upsert(names(3), rows)
    found = index.vector("p1")
    assert found.dtype == np.float32 and np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found, rows[1], atol=1e-3 if place.kind == "exact16" else 1e-6)
    with pytest.raises(NotFound, match=r"picture 'x+' is not in the gallery's index") as refusal:
        index.vector("x" * 10_000)
    assert len(refusal.value.message) < 200


# --- writing -------------------------------------------------------------------------------------------------------


def state(index: VectorIndex) -> tuple:
    """Everything that an index shows."""
    probes = vectors(3, index.header.dimensions, seed=9)
    return index.header, index.ids, dict(index.versions), len(index), index.search(probes, 50)


def test_added_changed_and_removed(place):
    rows = vectors(30)
    index = place.create(8)
    index.upsert(names(20), rows[:20], [f"v{i}" for i in range(20)])
    index.upsert(["p20", "p3", "p21"], rows[[20, 25, 21]], ["v20", "w3", "v21"])
    index.remove(["p0", "p3", "unknown"])
    index.upsert(["p5", "p3"], rows[[26, 27]])
    index.assign("G")
    current = {i: i for i in range(1, 22) if i != 3} | {5: 26, 3: 27}
    ids = [f"p{i}" for i in current]
    assert index.ids == tuple(ids) and len(index) == 21
    assert index.versions["p4"] == "v4" and index.versions["p5"] == "" and index.versions["p3"] == ""
    stored = rows[list(current.values())].astype(place.stored)
    for probe in vectors(4, seed=5):
        check_against_numpy(index.search(probe[None], 21)[0], ids, stored, probe, 21)
    again = place.open(encoder="E", gallery="G")
    assert state(again) == state(index)
    again.remove(names(30))
    assert state(place.open()) == state(again) and len(again) == 0 and again.search(rows[:1], 3) == [[]]


def test_the_content_hash_is_of_ids_and_vectors_alone(place):
    rows = vectors(10)
    one, two = place.create(8, name="a"), place.create(8, name="b", encoder="other")
    one.upsert(names(10), rows)
    for i in range(10):
        two.upsert(names(10)[i : i + 1], rows[i : i + 1], ["v"])
    two.assign("G")
    assert one.header.content == two.header.content
    two.upsert(["p4"], rows[5:6])
    assert one.header.content != two.header.content
    two.upsert(["p4"], rows[4:5])
    assert one.header.content == two.header.content
    two.remove(["p9"])
    two.upsert(["q9"], rows[9:])
    assert one.header.content != two.header.content


def test_milvus_and_the_exact_index_agree_on_the_content(tmp_path):
    pytest.importorskip("pymilvus", reason="Milvus is an extra of its own")
    exact = ExactIndex.create(tmp_path / "exact", encoder="E", dimensions=8, dtype="float32")
    milvus = MilvusIndex.create(str(tmp_path / "a.db"), "a", encoder="E", dimensions=8)
    for index in (exact, milvus):
        index.upsert(names(9), vectors(9))
        index.remove(["p2"])
    assert exact.header == milvus.header and state(exact) == state(milvus)
    milvus.close()


@pytest.mark.parametrize(
    ("ids", "rows", "versions", "message"),
    [
        (["a", "a"], vectors(2), (), "the id 'a' occurs twice"),
        (["a"], vectors(2), (), r"1 ids come with vectors of shape \[2, 8\]"),
        (["a"], vectors(1, 7), (), r"shape \[1, 7\] and 1 versions, expected \[1, 8\]"),
        (["a"], vectors(1), ("1", "2"), "2 versions"),
        (["a", "b"], vectors(2) * [[1], [1.1]], (), "the vector of 'b' has length 1.1, expected 1"),
        (["a"], np.full((1, 8), np.nan), (), "the vector of 'a' has length nan"),
    ],
)
def test_malformed_rows_are_refused_and_change_nothing(place, ids, rows, versions, message):
    index = place.create(8)
    index.upsert(names(3), vectors(3))
    before = state(index)
    with pytest.raises(InvalidInput, match=message):
        index.upsert(ids, rows, versions)
    assert state(index) == before == state(place.open())


class Killed(BaseException):
    """As a kill: nothing may catch it and tidy up."""


def killed_after(calls: int, function: Callable) -> Callable:
    """``function`` that works so many times; the next call is the end of the process."""
    left = iter(range(calls))

    def call(*args, **kwargs):
        if next(left, None) is None:
            raise Killed
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("step", ["the rows", "half of the rows", "what makes them count"])
def test_a_write_that_is_killed_leaves_the_old_index(place, monkeypatch, step):
    """Killed before a step of the writing; what it left is in nobody's way afterwards."""
    rows = vectors(40)
    index = place.create(8)
    index.upsert(names(20), rows[:20], ["old"] * 20)
    index.assign("G")
    before = state(index)
    if place.kind == "milvus":
        done, method = {
            "the rows": (0, "_insert"),  # that are replaced are marked, then new ones come in
            "half of the rows": (1, "_insert"),
            "what makes them count": (0, "_put_state"),
        }[step]
        monkeypatch.setattr(index, method, killed_after(done, getattr(index, method)))
    elif step == "what makes them count":
        monkeypatch.setattr(vector_index, "write_atomically", killed_after(0, vector_index.write_atomically))
    else:
        hashed = killed_after(0, vector_index.sha256)  # the file is there under its temporary name
        monkeypatch.setattr(vector_index, "sha256" if step == "half of the rows" else "_write_segment", hashed)
    ids, versions = names(20, 10), ["new"] * 20
    with pytest.raises(Killed):
        index.upsert(ids, rows[20:], versions)
    monkeypatch.undo()
    after = place.open(encoder="E", gallery="G")
    assert state(after) == before
    after.upsert(ids, rows[20:], versions)
    assert list(after.ids) == names(30) and set(after.versions.values()) == {"old", "new"}
    current = np.concatenate([rows[:10], rows[20:]]).astype(place.stored)
    check_against_numpy(after.search(rows[:1], 30)[0], names(30), current, rows[0], 30)
    if place.kind != "milvus":
        named = {name for name, _ in json.loads((place.folder / "a" / "index.json").read_bytes())["segments"]}
        assert {path.name for path in (place.folder / "a").iterdir()} == named | {"index.json"}


def test_an_index_opened_before_a_write_goes_on_with_what_it_knew(place):
    rows = vectors(40)
    index = place.create(8)
    index.upsert(names(20), rows[:20])
    reader = place.open()
    before = state(reader)
    writer = place.open()
    writer.upsert(names(20, 10), rows[20:])
    writer.remove(["p0"])
    assert state(reader) == before


def test_many_small_writes_leave_few_segments_and_no_waste(tmp_path):
    index, rows = ExactIndex.create(tmp_path, encoder="E", dimensions=8), vectors(40)
    for i in range(40):
        index.upsert([f"p{i}"], rows[i : i + 1])
        assert len(list(tmp_path.glob("*.npy"))) <= 6
    for i in range(40):  # again: every row replaced
        index.upsert([f"p{i}"], rows[i : i + 1])
    index.remove(names(30))
    manifest = json.loads((tmp_path / "index.json").read_bytes())
    assert sum(length for _, length in manifest["segments"]) <= 20
    check_against_numpy(index.search(rows[:1], 10)[0], names(10, 30), rows[30:].astype(np.float16), rows[0], 10)
    assert ExactIndex.open(tmp_path).ids == tuple(names(10, 30))


def test_half_precision_takes_half_the_room(tmp_path):
    sizes = []
    for dtype in ("float16", "float32"):
        ExactIndex.create(tmp_path / dtype, encoder="E", dimensions=256, dtype=dtype).upsert(
            names(50), vectors(50, 256)
        )
        sizes.append(sum(path.stat().st_size for path in (tmp_path / dtype).glob("*.npy")))
    assert sizes == [50 * 256 * 2 + 128, 50 * 256 * 4 + 128]
    with pytest.raises(InvalidInput, match="dtype is 'int8', expected one of float16, float32"):
        ExactIndex.create(tmp_path / "other", encoder="E", dimensions=8, dtype="int8")
    assert not (tmp_path / "other").exists()


# --- refusals ------------------------------------------------------------------------------------------------------


def test_another_encoder_or_gallery_is_refused_by_name(place):
    index = place.create(8)
    index.upsert(names(3), vectors(3))
    with pytest.raises(GalleryError, match="is unfinished") as refusal:
        place.open(encoder="E", gallery="G")
    assert "lienzo-train index" in refusal.value.hint
    index.assign("G")
    place.open(encoder="E", gallery="G")
    with pytest.raises(GalleryError, match="was built with encoder E, expected F"):
        place.open(encoder="F", gallery="G")
    with pytest.raises(GalleryError, match="was built for gallery G, expected H"):
        place.open(encoder="E", gallery="H")
    index.assign(UNFINISHED)
    with pytest.raises(GalleryError, match="is unfinished"):
        place.open(gallery="G")


def test_an_index_that_is_not_there_is_refused(place):
    with pytest.raises(GalleryError, match="nowhere"):
        place.open(name="nowhere")


@pytest.fixture
def exact(tmp_path) -> Path:
    index = ExactIndex.create(tmp_path / "exact", encoder="E", dimensions=8)
    index.upsert(names(20), vectors(20))
    index.assign("G")
    return tmp_path / "exact"


def test_one_changed_byte_is_found_by_the_hash(exact):
    (segment,) = exact.glob("*.npy")
    whole = bytearray(segment.read_bytes())
    whole[-7] ^= 1
    segment.write_bytes(whole)
    with pytest.raises(GalleryError, match="is damaged: the hash of its content is"):
        ExactIndex.open(exact)


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "index.json").read_bytes()) | changes
    (folder / "index.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, expected 1"),
        ({"ids": names(20, 1)}, "is damaged"),
        ({"ids": names(19)}, "19 ids and 20 versions for 20 vectors"),
        ({"ids": ["p0"] * 20}, "cannot be read"),
        ({"ids": None}, "cannot be read"),
        ({"places": [[0, 19], [20, 21]]}, "there are 20 rows, but row 20 is to be used"),
        ({"places": [[-1, 19]]}, "cannot be read"),
        ({"places": [[1, 20], [0, 1]]}, "is damaged"),
        ({"segments": [["../../secret.npy", 20]]}, "is no segment's name"),
        ({"segments": [["0" * 32 + ".npy", 20]]}, "cannot be read"),
        ({"dimensions": 4}, r"expected float16 \[20, 4\]"),
        ({"dtype": "float32"}, r"holds float16 \[20, 8\], expected float32"),
        ({"dtype": "object"}, "cannot be read"),
    ],
    ids=str,
)
def test_a_manifest_that_contradicts_itself_is_refused(exact, change, message):
    change_manifest(exact, **change)
    with pytest.raises(GalleryError, match=message):
        ExactIndex.open(exact)


@pytest.mark.parametrize("cut", [0, 20, 300])
def test_a_cut_file_is_refused(exact, cut):
    for path in exact.iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[:cut])
        with pytest.raises(GalleryError, match="cannot be read"):
            ExactIndex.open(exact)
        path.write_bytes(whole)
    ExactIndex.open(exact)


def test_milvus_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(InvalidInput, match="needs the package 'pymilvus'") as refusal:
        MilvusIndex.open("http://user:secret@localhost:19530", "a")
    assert "pip install 'lienzo[milvus]'" in refusal.value.hint and "secret" not in str(refusal.value)


def test_what_is_no_file_of_milvus_lite_is_refused(tmp_path):
    pytest.importorskip("pymilvus", reason="Milvus is an extra of its own")
    with pytest.raises(InvalidInput, match="is no file of Milvus Lite"):
        MilvusIndex.open(str(tmp_path / "vectors"), "a")
    assert not (tmp_path / "vectors").exists()


def test_a_collection_of_somebody_elses_is_refused(tmp_path):
    pymilvus = pytest.importorskip("pymilvus", reason="Milvus is an extra of its own")
    uri = str(tmp_path / "vectors.db")
    client = pymilvus.MilvusClient(uri)
    client.create_collection("theirs", dimension=8)
    with pytest.raises(GalleryError, match="is no index of Lienzo's"):
        MilvusIndex.open(uri, "theirs")
    with pytest.raises(GalleryError, match="there is no index"):
        MilvusIndex.open(uri, "nowhere")
    client.close()


def test_an_altered_collection_is_found_by_its_hash_before_it_is_written_to(tmp_path):
    pytest.importorskip("pymilvus", reason="Milvus is an extra of its own")
    index = MilvusIndex.create(str(tmp_path / "vectors.db"), "a", encoder="E", dimensions=8)
    index.upsert(names(5), vectors(5))
    index._client.delete("a", filter='id == "p3"')
    again = MilvusIndex.open(str(tmp_path / "vectors.db"), "a")
    index.close()  # the file stays open for the other
    with pytest.raises(GalleryError, match="is damaged: the hash of its content is"):
        again.upsert(names(1, 9), vectors(1))
    again.close()


def test_a_password_is_not_shown():
    assert milvus_index.shown_uri("https://user:secret@host:19530") == "https://host:19530"
    assert milvus_index.shown_uri("a/b.db") == "a/b.db"
