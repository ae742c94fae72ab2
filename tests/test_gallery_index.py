"""A gallery's index follows its pictures, and serves no other gallery and no other space than its own."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import hills, strokes

from shared import gallery_index
from shared.errors import GalleryError, InvalidInput, NotFound
from shared.galleries import Gallery, open_gallery, read_folder, read_met
from shared.gallery_index import (
    MAX_K,
    SHIPPED,
    Changes,
    GalleryIndex,
    embed_here,
    open_index,
    shards,
    update_index,
)
from shared.images import decode
from shared.style_space import StyleEncoder, StyleSpace
from shared.vector_index import ExactIndex


@dataclasses.dataclass
class Colours:
    """An encoder that needs no network: a picture's thumbnail as a direction."""

    name: str = "colours"
    fingerprint: str = "colours-1"
    dimensions: int = 12
    seen: list[int] = dataclasses.field(default_factory=list)

    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        self.seen.append(len(pictures))
        rows = [np.asarray(picture.resize((2, 2)), np.float32).ravel() + 1 for picture in pictures]
        return np.stack([row / np.linalg.norm(row) for row in rows])

    @property
    def count(self) -> int:
        return sum(self.seen)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures of strokes, two of hills."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        strokes(60, 50 + i, seed=i).save(folder / f"strokes-{i}.png")
    for i in range(2):
        hills(60, 50 + i, seed=i).save(folder / f"hills-{i}.png")
    return folder


@pytest.fixture
def gallery(folder) -> Gallery:
    return read_folder(folder)


@pytest.fixture
def built(gallery, tmp_path) -> Path:
    update_index(tmp_path / "index", gallery, [Colours()])
    return tmp_path / "index"


def vector(path: Path) -> np.ndarray:
    return Colours().embed([decode(path)])[0]


# --- building ------------------------------------------------------------------------------------------------------


def test_every_picture_is_embedded_in_the_gallerys_order(gallery, tmp_path):
    stages = []
    changes = update_index(tmp_path / "a", gallery, [Colours()], progress=lambda *stage: stages.append(stage))
    assert changes == Changes(5, 0, 0, 0) and str(changes) == "5 added, 0 changed, 0 removed" and changes.pictures == 5
    index = GalleryIndex.open(tmp_path / "a", gallery, [Colours()])
    assert index.ids == tuple(picture.id for picture in gallery.pictures) and len(index) == 5 and index.issues == ()
    for picture in gallery.pictures:
        found = index.embedding(picture.id, space="colours")
        np.testing.assert_allclose(found, vector(picture.path), atol=1e-3)
        assert index.nearest(found, 1, space="colours")[0][0] == picture.id
        assert picture.id not in dict(index.nearest(found, 5, exclude=picture.id, space="colours"))
    assert stages[-1] == ("embedding", 5, 5) and ("reading files", 5, 5) in stages


@pytest.mark.parametrize("k", [0, -1, MAX_K + 1])
def test_k_out_of_range_is_refused(built, gallery, k):
    index = GalleryIndex.open(built, gallery, [Colours()])
    with pytest.raises(InvalidInput, match=f"k is {k}, expected 1 to {MAX_K}") as refusal:
        index.nearest(np.ones(12), k, space="colours")
    assert refusal.value.field == "k"


def test_unreadable_and_vanished_pictures_are_left_out_and_listed(folder, tmp_path, caplog):
    (folder / "bad.png").write_bytes(b"no picture")
    gallery = read_folder(folder)
    _ = gallery.image_fingerprint
    (folder / "strokes-0.png").unlink()
    with caplog.at_level(logging.WARNING):
        changes = update_index(tmp_path / "index", gallery, [Colours()])
    assert changes.added == 4 and [issue.partition(":")[0] for issue in changes.issues] == ["strokes-0", "bad"]
    index = GalleryIndex.open(tmp_path / "index", gallery, [Colours()])
    assert index.issues == changes.issues and len(index) == 4
    assert "2 pictures left out, the first: strokes-0: " in caplog.text
    with pytest.raises(NotFound, match="picture 'bad' is not in the gallery's index"):
        index.embedding("bad", space="colours")


def test_a_gallery_of_unreadable_pictures_is_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    gallery = read_folder(tmp_path / "pictures")
    with pytest.raises(GalleryError, match="none of the 1 pictures of gallery"):
        update_index(tmp_path / "index", gallery, [Colours()])
    with pytest.raises(GalleryError, match="is unfinished"):
        GalleryIndex.open(tmp_path / "index", gallery, [Colours()])


@pytest.mark.parametrize("names", [["a", "a"], ["../a", "A"], [""], ["../.."]])
def test_spaces_that_would_share_a_folder_or_have_none_are_refused(gallery, tmp_path, names):
    with pytest.raises(InvalidInput, match="is no name of a space, or occurs twice"):
        update_index(tmp_path / "index", gallery, [Colours(name=name) for name in names])
    assert not (tmp_path / "index").exists()


def test_large_pictures_do_not_wait_at_their_full_size(tmp_path):
    (tmp_path / "pictures").mkdir()
    strokes(1500, 700).save(tmp_path / "pictures" / "large.png")
    sizes = []

    class Sizes(Colours):
        def embed(self, pictures):
            sizes.extend(picture.size for picture in pictures)
            return super().embed(pictures)

    update_index(tmp_path / "index", read_folder(tmp_path / "pictures"), [Sizes()])
    assert sizes == [(1024, 478)]


def test_shards_are_few_and_hold_every_picture(gallery):
    for count, longest in ((0, 0), (1, 1), (1000, 128), (64_000, 1000), (1_000_000, 4096)):
        parts = shards(gallery.pictures[:1] * count)
        assert sum(map(len, parts)) == count and max(map(len, parts), default=0) == longest


# --- bringing it up to date ----------------------------------------------------------------------------------------


def test_only_what_is_new_is_embedded(folder, built):
    (folder / "hills-1.png").unlink()
    hills(60, 50, seed=7).save(folder / "strokes-1.png")
    strokes(60, 50, seed=8).save(folder / "new.png")
    gallery, encoder = read_folder(folder), Colours()
    changes = update_index(built, gallery, [encoder])
    assert str(changes) == "1 added, 1 changed, 1 removed" and changes.unchanged == 3 and encoder.count == 2
    index = GalleryIndex.open(built, gallery, [encoder])
    assert set(index.ids) == {picture.id for picture in gallery.pictures} and index.ids[-1] == "new"
    for picture in gallery.pictures:
        np.testing.assert_allclose(index.embedding(picture.id, space="colours"), vector(picture.path), atol=1e-3)
    encoder.seen.clear()
    assert str(update_index(built, gallery, [encoder])) == "0 added, 0 changed, 0 removed" and not encoder.seen


def test_a_file_that_was_only_touched_is_read_but_not_embedded(folder, built, monkeypatch):
    os.utime(folder / "hills-0.png", (1, 1))
    read, encoder = [], Colours()
    monkeypatch.setattr(
        gallery_index, "sha256", lambda path, hash=gallery_index.sha256: read.append(path) or hash(path)
    )
    update_index(built, read_folder(folder), [encoder])
    assert [path.name for path in read] == ["hills-0.png"] and not encoder.seen
    (built / "files.json").write_text("damaged")
    read.clear()
    update_index(built, read_folder(folder), [encoder])
    assert len(read) == 5 and not encoder.seen, "only a shortcut"


def test_texts_do_not_matter(gallery, built):
    retold = Gallery(gallery.name, (dataclasses.replace(gallery.pictures[0], title="Other"), *gallery.pictures[1:]))
    assert retold.fingerprint != gallery.fingerprint
    assert len(GalleryIndex.open(built, retold, [Colours()])) == 5


def test_a_picture_that_cannot_be_read_any_more_is_taken_out(folder, built):
    (folder / "hills-0.png").write_bytes(b"no picture")
    changes = update_index(built, read_folder(folder), [Colours()])
    assert str(changes) == "0 added, 0 changed, 1 removed" and changes.issues[0].startswith("hills-0: ")
    assert "hills-0" not in GalleryIndex.open(built, read_folder(folder), [Colours()]).ids


def test_a_space_is_added_to_those_that_are_there_and_follows_by_itself(folder, built):
    gallery, first, second = read_folder(folder), Colours(), Colours("second", "second-1")
    changes = update_index(built, gallery, [second])
    assert changes.added == 5 and second.count == 5
    assert set(GalleryIndex.open(built, gallery, [first, second]).spaces) == {"colours", "second"}
    strokes(60, 50, seed=8).save(folder / "hills-0.png")
    gallery = read_folder(folder)
    update_index(built, gallery, [second])
    with pytest.raises(GalleryError, match="was built for gallery"):
        GalleryIndex.open(built, gallery, [first])
    changes = update_index(built, gallery, [first, second])
    assert str(changes) == "0 added, 1 changed, 0 removed" and first.count == 1
    np.testing.assert_allclose(
        GalleryIndex.open(built, gallery, [first]).embedding("hills-0", space="colours"),
        vector(folder / "hills-0.png"),
        atol=1e-3,
    )


def test_a_space_of_another_encoder_or_a_damaged_one_is_built_anew(built, gallery, caplog):
    other = Colours(fingerprint="colours-2")
    update_index(built, gallery, [other])
    assert other.count == 5 and "was built with encoder colours-1, expected colours-2" in caplog.text
    next((built / "colours").glob("*.npy")).write_bytes(b"garbage")
    again = Colours(fingerprint="colours-2")
    update_index(built, gallery, [again])
    assert again.count == 5 and len(GalleryIndex.open(built, gallery, [again])) == 5


class Interrupted(BaseException):
    """As a kill."""


def test_a_run_that_was_killed_is_taken_up(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_index, "SHARD", 2)

    def killed_in_the_second_shard(parts, encoders, on_pictures):
        yield from embed_here(parts[:1], encoders, on_pictures)
        raise Interrupted

    with pytest.raises(Interrupted):
        update_index(tmp_path / "index", gallery, [Colours()], embed=killed_in_the_second_shard)
    with pytest.raises(GalleryError, match="is unfinished: its building was interrupted") as refusal:
        GalleryIndex.open(tmp_path / "index", gallery, [Colours()])
    assert "lienzo-train index" in refusal.value.hint
    encoder = Colours()
    assert update_index(tmp_path / "index", gallery, [encoder]).added == 3 and encoder.count == 3
    assert GalleryIndex.open(tmp_path / "index", gallery, [encoder]).ids == tuple(p.id for p in gallery.pictures)


def test_vectors_may_lie_in_milvus(folder, tmp_path):
    pytest.importorskip("pymilvus", reason="Milvus is an extra of its own")
    uri, index, gallery, encoder = str(tmp_path / "vectors.db"), tmp_path / "index", read_folder(folder), Colours()
    update_index(index, gallery, [encoder])
    update_index(index, gallery, [encoder], uri=uri)
    assert not (index / "colours").exists() and "vectors.db" not in (index / "index.json").read_text()
    strokes(60, 50, seed=8).save(folder / "new.png")
    gallery = read_folder(folder)
    assert str(update_index(index, gallery, [encoder], uri=uri)) == "1 added, 0 changed, 0 removed"
    with pytest.raises(GalleryError, match="are in Milvus, and its address is not given") as refusal:
        GalleryIndex.open(index, gallery, [encoder])
    assert "LIENZO_INDEX_URI" in refusal.value.hint
    opened = GalleryIndex.open(index, gallery, [encoder], uri=uri)
    assert len(opened) == 6
    assert opened.nearest(vector(folder / "new.png"), 1, space="colours") == [("new", pytest.approx(0, abs=1e-6))]
    opened.close()


# --- refusals ------------------------------------------------------------------------------------------------------


def test_an_index_of_another_gallery_or_encoder_is_refused(built, gallery, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    strokes(50, 50).save(other / "other.png")
    with pytest.raises(GalleryError, match="was built for gallery") as refusal:
        GalleryIndex.open(built, read_folder(other), [Colours()])
    assert gallery.image_fingerprint in refusal.value.message and "lienzo-train index" in refusal.value.hint
    with pytest.raises(GalleryError, match="was built with encoder colours-1, expected x"):
        GalleryIndex.open(built, gallery, [Colours(fingerprint="x")])
    with pytest.raises(GalleryError, match="has no space 'joint', only colours") as refusal:
        GalleryIndex.open(built, gallery, [Colours(name="joint")])
    assert "--encoder joint" in refusal.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":1}', '{"format":1,"spaces":[],"issues":[]}', "\xff"])
def test_a_malformed_record_is_refused(built, gallery, text):
    (built / "index.json").write_text(text, encoding="latin-1")
    with pytest.raises(GalleryError, match="cannot be read"):
        GalleryIndex.open(built, gallery, [Colours()])


def test_another_format_and_a_missing_folder_are_refused(built, gallery, tmp_path):
    record = json.loads((built / "index.json").read_text())
    (built / "index.json").write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(GalleryError, match="has format 2, expected 1"):
        GalleryIndex.open(built, gallery, [Colours()])
    with pytest.raises(GalleryError, match="there is no gallery index in") as refusal:
        GalleryIndex.open(tmp_path / "nowhere", gallery, [Colours()])
    assert "lienzo-train index" in refusal.value.hint


# --- where an index comes from -------------------------------------------------------------------------------------


class NoNetwork(Colours):
    """An encoder that must not be needed."""

    def embed(self, pictures):
        pytest.fail("the index was built although there is one")


def test_a_named_index_is_the_only_one_looked_at(built, gallery, tmp_path):
    assert len(open_index(gallery, [NoNetwork()], path=built)) == 5
    (built / "index.json").write_text("garbage")
    with pytest.raises(GalleryError, match="cannot be read"):
        open_index(gallery, [NoNetwork()], path=built, cache=tmp_path)


def test_an_index_is_built_once_and_then_comes_from_the_cache(gallery, folder, tmp_path):
    cache, first = tmp_path / "cache", open_index(gallery, [Colours()], cache=tmp_path / "cache")
    again = open_index(gallery, [NoNetwork()], cache=cache)
    assert again.ids == first.ids
    strokes(60, 50, seed=8).save(folder / "new.png")
    encoder = Colours()
    assert len(open_index(read_folder(folder), [encoder], cache=cache)) == 6 and encoder.count == 1
    # Another encoder's index has a folder of its own.
    open_index(gallery, [Colours(fingerprint="x")], cache=cache)
    assert len(list(cache.iterdir())) == 2


def test_a_shipped_index_is_found_by_the_gallerys_name_and_held_against_it(built, gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_index, "SHIPPED", tmp_path / "shipped")
    shutil.copytree(built, tmp_path / "shipped" / gallery.name)
    assert len(open_index(gallery, [NoNetwork()])) == 5
    namesake = Gallery(gallery.name, gallery.pictures[:2])
    assert len(open_index(namesake, [Colours()], cache=tmp_path / "cache")) == 2, "built, not mistaken"


def test_without_an_index_and_a_cache_the_hint_says_how_to_build_one(gallery):
    with pytest.raises(GalleryError, match="has no index") as refusal:
        open_index(gallery, [Colours()])
    assert "lienzo-train index --gallery" in refusal.value.hint


def no_network() -> None:
    pytest.fail("the shipped index is enough")


def test_the_shipped_index_is_that_of_the_met_in_the_shipped_space():
    gallery = open_gallery("met")
    index = open_index(gallery, [StyleEncoder(StyleSpace.load(), no_network)])
    assert index.ids == tuple(picture.id for picture in gallery.pictures) and len(index) == 174
    shipped = [path for path in (SHIPPED / "met").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in shipped) < 40_000
    assert ExactIndex.open(SHIPPED / "met" / "style").header.gallery == gallery.image_fingerprint


def test_the_shipped_embeddings_are_what_the_pictures_give(encoder):
    """Computed anew in fp32; those that ship may have been computed in bfloat16."""
    gallery, style = read_met(), StyleEncoder(StyleSpace.load(), lambda: encoder)
    index = open_index(gallery, [style])
    for picture in gallery.pictures[::60]:
        embedding = style.embed([decode(picture.path)])[0]
        assert embedding @ index.embedding(picture.id) > 0.99
        assert index.nearest(embedding, 1)[0][0] == picture.id
