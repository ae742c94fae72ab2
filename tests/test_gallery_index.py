"""A gallery's index finds the nearest styles, and serves no other gallery and no other space than its own."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scenes import hills, strokes

from shared import gallery_index
from shared.errors import GalleryError, InvalidInput, NotFound
from shared.galleries import Gallery, open_gallery, read_folder, read_met
from shared.gallery_index import MAX_K, SHIPPED, GalleryIndex, open_index
from shared.images import decode
from shared.style_space import StyleSpace, style_statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three pictures of strokes, two of hills."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        strokes(90, 70 + i, seed=i).save(folder / f"strokes-{i}.png")
    for i in range(2):
        hills(90, 70 + i, seed=i).save(folder / f"hills-{i}.png")
    return folder


@pytest.fixture(scope="module")
def gallery(folder) -> Gallery:
    return read_folder(folder)


@pytest.fixture(scope="module")
def space(gallery, encoder) -> StyleSpace:
    return StyleSpace.fit(
        np.stack([style_statistics(encoder, decode(picture.path)) for picture in gallery.pictures]), dimensions=4
    )


@pytest.fixture(scope="module")
def index(gallery, encoder, space) -> GalleryIndex:
    return GalleryIndex.build(gallery, encoder, space)


@pytest.fixture
def saved(index, tmp_path) -> Path:
    index.save(tmp_path / "index.safetensors")
    return tmp_path / "index.safetensors"


def of_vectors(vectors: np.ndarray) -> GalleryIndex:
    """An index of these embeddings, scaled to length 1, with ids p0, p1 …"""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return GalleryIndex(tuple(f"p{i}" for i in range(len(unit))), unit.astype(np.float32), "gallery", "space")


# --- building ------------------------------------------------------------------------------------------------------


def test_every_picture_is_embedded_in_the_gallerys_order(index, gallery, encoder, space):
    assert index.ids == tuple(picture.id for picture in gallery.pictures)
    assert index.embeddings.shape == (5, 4) and index.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(index.embeddings, axis=1), 1, atol=1e-5)
    for picture in gallery.pictures:
        expected = space.embed(encoder, decode(picture.path))
        np.testing.assert_allclose(index.embedding(picture.id), expected, atol=1e-5)
    assert index.gallery == gallery.fingerprint and index.style_space == space.fingerprint
    assert index.issues == ()


def test_strokes_are_nearest_to_strokes(index):
    for i in range(3):
        near = index.nearest(index.embedding(f"strokes-{i}"), 2, exclude=f"strokes-{i}")
        assert {id for id, _ in near} == {f"strokes-{j}" for j in range(3)} - {f"strokes-{i}"}


def test_progress_is_told(gallery, encoder, space):
    calls = []
    GalleryIndex.build(gallery, encoder, space, on_picture=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 5) for done in range(1, 6)]


def test_unreadable_pictures_are_left_out_and_listed(tmp_path, encoder, space, caplog):
    for name in ("a", "b", "c"):
        strokes(40, 40).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    gallery, calls = read_folder(tmp_path), []
    with caplog.at_level(logging.WARNING):
        index = GalleryIndex.build(gallery, encoder, space, on_picture=lambda *call: calls.append(call))
    assert index.ids == ("a", "c") and index.embeddings.shape[0] == 2
    (issue,) = index.issues
    assert issue.startswith("b: ") and "b: " in caplog.text
    assert calls[-1] == (3, 3)
    with pytest.raises(NotFound, match="picture 'b' is not in the gallery's index") as refusal:
        index.embedding("b")
    assert refusal.value.code == "not_found"


def test_a_picture_that_vanished_is_left_out(tmp_path, encoder, space):
    for name in ("a", "b"):
        strokes(40, 40).save(tmp_path / f"{name}.png")
    gallery = read_folder(tmp_path)
    _ = gallery.fingerprint
    (tmp_path / "a.png").unlink()
    assert GalleryIndex.build(gallery, encoder, space).ids == ("b",)


def test_a_gallery_of_unreadable_pictures_is_refused(tmp_path, encoder, space):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(GalleryError, match="none of the 1 pictures of gallery"):
        GalleryIndex.build(read_folder(tmp_path), encoder, space)


# --- the nearest ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 50), st.integers(0, 2**31))
def test_the_nearest_are_those_of_a_plain_sort(n, dimensions, k, seed):
    rng = np.random.default_rng(seed)
    index = of_vectors(rng.standard_normal((n, dimensions)))
    query = rng.standard_normal(dimensions)
    query /= np.linalg.norm(query)
    found = index.nearest(query.astype(np.float32), k)
    cosine = 1 - index.embeddings.astype(np.float64) @ query
    assert len(found) == min(k, n)
    distances = [distance for _, distance in found]
    assert distances == sorted(distances) and min(distances) >= 0
    np.testing.assert_allclose(distances, np.maximum(np.sort(cosine)[:k], 0), atol=1e-5)
    for id, distance in found:
        assert distance == pytest.approx(max(0, cosine[int(id[1:])]), abs=1e-5)
    assert len({id for id, _ in found}) == len(found)


@pytest.mark.parametrize("dimensions", [3, 17, 63, 64])
@pytest.mark.parametrize("n", [2, 5, 37, 100])
def test_pictures_at_one_distance_keep_the_gallerys_order(n, dimensions):
    """Copies of one picture, at every place and whatever the size: rounding must not shuffle them."""
    rng = np.random.default_rng(n * dimensions)
    index = of_vectors(np.repeat(rng.standard_normal((1, dimensions)), n, axis=0))
    query = rng.standard_normal(dimensions).astype(np.float32)
    found = index.nearest(query / np.linalg.norm(query), min(n, MAX_K))
    assert [id for id, _ in found] == [f"p{i}" for i in range(n)]
    assert len({distance for _, distance in found}) == 1


def test_copies_of_two_pictures_keep_the_gallerys_order():
    which = np.random.default_rng(0).integers(0, 2, 300)
    index = of_vectors(np.eye(2)[which])
    expected = [f"p{i}" for i in np.flatnonzero(which == 1)][:MAX_K]
    assert [id for id, _ in index.nearest(np.array([0, 1], np.float32), MAX_K)] == expected


def test_a_picture_is_no_style_for_itself(index):
    own = index.embedding("strokes-0")
    (nearest,) = index.nearest(own, 1)
    assert nearest == ("strokes-0", pytest.approx(0, abs=1e-6))
    without = index.nearest(own, 5, exclude="strokes-0")
    assert len(without) == 4 and "strokes-0" not in dict(without)
    assert index.nearest(own, 5, exclude="unknown") == index.nearest(own, 5)


def test_distances_are_never_negative():
    index = of_vectors(np.random.default_rng(0).standard_normal((200, 64)))
    for i in range(0, 200, 7):
        assert index.nearest(index.embedding(f"p{i}") * np.float32(1.000001), 1)[0][1] >= 0


@pytest.mark.parametrize("k", [0, -1, MAX_K + 1])
def test_k_out_of_range_is_refused(index, k):
    with pytest.raises(InvalidInput, match=f"k is {k}, expected 1 to {MAX_K}") as refusal:
        index.nearest(index.embeddings[0], k)
    assert refusal.value.field == "k"


def test_an_unknown_id_is_not_found(index):
    with pytest.raises(NotFound) as refusal:
        index.embedding("x" * 10_000)
    assert len(refusal.value.message) < 200


# --- files ---------------------------------------------------------------------------------------------------------


def test_an_index_survives_being_saved(index, gallery, space, tmp_path):
    path = tmp_path / "new" / "folder" / "index.safetensors"
    index.save(path)
    loaded = GalleryIndex.load(path, gallery=gallery, space=space)
    assert loaded.ids == index.ids
    np.testing.assert_array_equal(loaded.embeddings, index.embeddings)
    assert (loaded.gallery, loaded.style_space) == (index.gallery, index.style_space)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_an_index_of_another_gallery_is_refused(saved, folder, gallery, space, tmp_path):
    strokes(50, 50).save(tmp_path / "other.png")
    with pytest.raises(GalleryError, match="belongs to another gallery") as refusal:
        GalleryIndex.load(saved, gallery=read_folder(tmp_path), space=space)
    assert gallery.fingerprint in refusal.value.message and saved.name in refusal.value.message
    assert "lienzo-train index" in refusal.value.hint
    retold = dataclasses.replace(gallery.pictures[0], title="Another title")
    changed = Gallery(gallery.name, (retold, *gallery.pictures[1:]))
    with pytest.raises(GalleryError, match="belongs to another gallery"):
        GalleryIndex.load(saved, gallery=changed, space=space)


def test_an_index_in_another_style_space_is_refused(saved, gallery, space):
    other = StyleSpace(space.mean, -space.basis)
    with pytest.raises(GalleryError, match="belongs to another style space") as refusal:
        GalleryIndex.load(saved, gallery=gallery, space=other)
    assert space.fingerprint in refusal.value.message and other.fingerprint in refusal.value.message


def rewritten(index: GalleryIndex, path: Path, embeddings: np.ndarray | None = None, **metadata: str | None) -> Path:
    fields = {
        "format": "1",
        "gallery": index.gallery,
        "style_space": index.style_space,
        "ids": json.dumps(index.ids),
    } | metadata
    tensors = {"embeddings": index.embeddings if embeddings is None else embeddings}
    save_file(tensors, path, {key: value for key, value in fields.items() if value is not None})
    return path


def test_an_index_of_another_format_is_refused(index, gallery, space, tmp_path):
    GalleryIndex.load(rewritten(index, tmp_path / "same"), gallery=gallery, space=space)
    with pytest.raises(GalleryError, match="belongs to another format \\(2, expected 1\\)"):
        GalleryIndex.load(rewritten(index, tmp_path / "newer", format="2"), gallery=gallery, space=space)
    with pytest.raises(GalleryError, match="belongs to another format \\(None, expected 1\\)"):
        GalleryIndex.load(rewritten(index, tmp_path / "older", format=None), gallery=gallery, space=space)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": None},
        {"ids": "no json"},
        {"ids": "5"},
        {"ids": "null"},
        {"ids": '["a", "b"]'},
        {"embeddings": np.zeros((6, 4), np.float32)},
        {"embeddings": np.zeros((), np.float32)},
    ],
    ids=str,
)
def test_an_index_that_contradicts_itself_is_refused(index, gallery, space, tmp_path, change):
    path = rewritten(index, tmp_path / "index.safetensors", **change)
    with pytest.raises(GalleryError, match="cannot be read"):
        GalleryIndex.load(path, gallery=gallery, space=space)


def test_a_corrupt_or_missing_file_is_refused(saved, gallery, space):
    whole = saved.read_bytes()
    for data in (b"", b"garbage", whole[:20], whole[:-1], b"\xff" * 64):
        saved.write_bytes(data)
        with pytest.raises(GalleryError, match=r"the gallery index '.*index\.safetensors' cannot be read") as refusal:
            GalleryIndex.load(saved, gallery=gallery, space=space)
        assert "lienzo-train index" in refusal.value.hint
    saved.unlink()
    with pytest.raises(GalleryError, match="cannot be read"):
        GalleryIndex.load(saved, gallery=gallery, space=space)


# --- where an index comes from -------------------------------------------------------------------------------------


@pytest.fixture
def no_encoder():
    def make():
        pytest.fail("the index was built although there is one")

    return make


def test_a_named_index_is_the_only_one_looked_at(saved, gallery, space, no_encoder, tmp_path):
    assert open_index(gallery, space, path=saved, encoder=no_encoder).ids == tuple(p.id for p in gallery.pictures)
    saved.write_bytes(b"garbage")
    with pytest.raises(GalleryError, match="cannot be read"):
        open_index(gallery, space, path=saved, cache=tmp_path, encoder=no_encoder)


def test_an_index_is_built_once_and_then_comes_from_the_cache(gallery, space, encoder, no_encoder, tmp_path):
    cache = tmp_path / "cache"
    built = open_index(gallery, space, cache=cache, encoder=lambda: encoder)
    (file,) = cache.iterdir()
    again = open_index(gallery, space, cache=cache, encoder=no_encoder)
    np.testing.assert_array_equal(again.embeddings, built.embeddings)
    # A damaged one is built again; one of another space has a file of its own.
    file.write_bytes(b"garbage")
    np.testing.assert_array_equal(open_index(gallery, space, cache=cache, encoder=lambda: encoder).ids, built.ids)
    other = StyleSpace(space.mean, -space.basis)
    open_index(gallery, other, cache=cache, encoder=lambda: encoder)
    assert len(list(cache.iterdir())) == 2
    open_index(gallery, space, cache=cache, encoder=no_encoder)


def test_a_shipped_index_is_found_by_the_gallerys_name_and_held_against_it(
    index, gallery, space, encoder, no_encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr(gallery_index, "SHIPPED", tmp_path)
    index.save(tmp_path / f"{gallery.name}.safetensors")
    assert open_index(gallery, space, encoder=no_encoder).ids == index.ids
    namesake = Gallery(gallery.name, gallery.pictures[:2])
    assert open_index(namesake, space, encoder=lambda: encoder).ids == index.ids[:2], "built, not mistaken"


def test_without_an_index_and_an_encoder_the_hint_says_how_to_build_one(gallery, space, tmp_path):
    with pytest.raises(GalleryError, match="has no index") as refusal:
        open_index(gallery, space, cache=tmp_path)
    assert "lienzo-train index --gallery" in refusal.value.hint


def test_the_shipped_index_is_that_of_the_met_in_the_shipped_space(no_encoder):
    gallery, space = open_gallery("met"), StyleSpace.load()
    index = GalleryIndex.load(SHIPPED / "met.safetensors", gallery=gallery, space=space)
    assert index.ids == tuple(picture.id for picture in gallery.pictures) and len(index.ids) == 174
    np.testing.assert_allclose(np.linalg.norm(index.embeddings, axis=1), 1, atol=1e-4)
    assert open_index(gallery, space, encoder=no_encoder).ids == index.ids


def test_the_shipped_embeddings_are_what_the_pictures_give(encoder):
    """Computed anew in fp32; those that ship may have been computed in bfloat16."""
    gallery, space = read_met(), StyleSpace.load()
    index = GalleryIndex.load(SHIPPED / "met.safetensors", gallery=gallery, space=space)
    for picture in gallery.pictures[::60]:
        embedding = space.embed(encoder, decode(picture.path))
        assert embedding @ index.embedding(picture.id) > 0.99
        assert index.nearest(embedding, 1)[0][0] == picture.id
