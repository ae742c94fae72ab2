"""Clusters of style: found where there are some, the same every time, and a run that is killed goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes import hills, strokes
from typer.testing import CliRunner, Result

from shared.errors import GalleryError, InvalidInput
from shared.fast_models import SLUG, ClusterCard
from shared.galleries import Picture, open_gallery
from shared.images import decode
from shared.style_space import StyleSpace
from training import clusters as library
from training.cli import app
from training.clusters import (
    Cluster,
    Clustering,
    EmbeddedGallery,
    Member,
    Partition,
    cluster_sheet,
    coverage,
    describe_clusters,
    embed_gallery,
    find_clusters,
    label_agreement,
)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def bunches(sizes: tuple[int, ...], *, spread: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around the first axes of 16, and which axis each is at, in shuffled order."""
    rng = np.random.default_rng(seed)
    at = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return unit(np.eye(16)[at] + rng.normal(size=(len(at), 16)) * spread), at


def clustered(embeddings: np.ndarray, k: int | None = None, **changes: object) -> Partition:
    return find_clusters(embeddings, **({"k": k, "k_range": (2, 6), "quantile": 0.9, "seed": 0} | changes))


# --- finding -------------------------------------------------------------------------------------------------------


def test_bunches_are_found_and_counted_from_the_largest():
    embeddings, at = bunches((30, 12, 20))
    partition = clustered(embeddings, 3)
    np.testing.assert_array_equal(partition.assignment, np.array([0, 2, 1])[at])
    np.testing.assert_allclose(np.linalg.norm(partition.centres, axis=1), 1, atol=1e-6)
    assert np.all(np.argmax(partition.centres, axis=1) == [0, 2, 1])


@pytest.mark.parametrize("sizes", [(20, 20, 20), (40, 10, 15, 12)])
def test_the_silhouette_finds_the_number_of_bunches(sizes):
    partition = clustered(bunches(sizes)[0])
    assert len(partition.centres) == len(sizes)
    assert list(partition.silhouettes) == [2, 3, 4, 5, 6]
    assert max(partition.silhouettes, key=partition.silhouettes.get) == len(sizes)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.sampled_from([0.5, 0.9, 1.0]))
def test_what_a_partition_promises(seed, k, quantile):
    embeddings = unit(np.random.default_rng(seed).normal(size=(40, 8)))
    partition = clustered(embeddings, k, quantile=quantile, seed=seed)
    distances = 1 - embeddings @ partition.centres.T
    np.testing.assert_array_equal(partition.assignment, distances.argmin(1))
    np.testing.assert_allclose(partition.distances, distances.min(1), atol=1e-6)
    sizes = np.bincount(partition.assignment, minlength=k)
    assert sizes.min() >= 1 and list(sizes) == sorted(sizes, reverse=True)
    for cluster in range(k):
        members = partition.members(cluster)
        within = partition.distances[members] <= partition.radii[cluster] + 1e-9
        assert within.mean() >= quantile - 1 / len(members)
        assert np.all(np.diff(partition.distances[members]) >= 0)
        # The centre is the members' mean direction, so nearest to it is nearest to all of them.
        mean = embeddings[members].mean(0)
        np.testing.assert_allclose(partition.centres[cluster], mean / np.linalg.norm(mean), atol=1e-5)
        to_all = (1 - embeddings[members] @ embeddings[members].T).mean(1)
        assert to_all[0] == pytest.approx(to_all.min(), abs=1e-6)
    again = clustered(embeddings, k, quantile=quantile, seed=seed)
    np.testing.assert_array_equal(again.assignment, partition.assignment)
    np.testing.assert_array_equal(again.centres, partition.centres)


def test_the_radius_is_the_quantile_of_the_distances():
    embeddings, _ = bunches((30, 20))
    for quantile in (0.5, 0.9, 1.0):
        partition = clustered(embeddings, 2, quantile=quantile)
        for cluster in range(2):
            expected = np.quantile(partition.distances[partition.assignment == cluster], quantile)
            assert partition.radii[cluster] == pytest.approx(expected)


def test_many_pictures_are_clustered_in_mini_batches_to_the_same_end(monkeypatch):
    embeddings, _ = bunches((200, 150, 100))
    expected = clustered(embeddings, 3)
    monkeypatch.setattr(library, "MINI_BATCH_ABOVE", 100)
    monkeypatch.setattr(library, "SILHOUETTE_SAMPLE", 60)
    monkeypatch.setattr(library, "KMeans", None)
    partition = clustered(embeddings)
    np.testing.assert_array_equal(partition.assignment, expected.assignment)
    assert partition.silhouettes[3] == pytest.approx(expected.silhouettes[3], abs=0.05)


def test_a_picture_a_cluster_is_possible_and_has_no_silhouette():
    partition = clustered(np.eye(4, dtype=np.float32), 4)
    assert sorted(partition.assignment) == [0, 1, 2, 3] and partition.silhouettes == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 1}, "k is 1, expected 2 or more"),
        ({"k": -3}, "k is -3"),
        ({"k": 11}, "there are 10 pictures to cluster, but 11 clusters need at least 11"),
        ({"k_range": (2, 10)}, "there are 10 pictures to cluster, but up to 10 clusters need at least 11"),
        ({"k_range": (1, 3)}, "the range of k is 1-3"),
        ({"k_range": (5, 3)}, "the range of k is 5-3"),
        ({"k": 2, "quantile": 0.0}, "quantile is 0.0"),
        ({"k": 2, "quantile": 1.01}, "quantile is 1.01"),
        ({"k": 2, "quantile": float("nan")}, "quantile is nan"),
        ({"k": 2, "seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InvalidInput) as refusal:
        clustered(bunches((5, 5))[0], **changes)
    assert refusal.value.message.startswith(message)


def test_pictures_that_are_alike_do_not_make_clusters():
    embeddings = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    with pytest.raises(InvalidInput, match="the pictures have 3 different styles, too few for 4 clusters"):
        clustered(embeddings, 4)
    assert len(clustered(embeddings, 3).centres) == 3


# --- describing ----------------------------------------------------------------------------------------------------


def gallery_of(embeddings: np.ndarray, labels: list[str], prefix: str = "p") -> EmbeddedGallery:
    pictures = tuple(
        Picture(f"{prefix}{i}", Path(f"{prefix}{i}.png"), f"Title {i}", style=label) for i, label in enumerate(labels)
    )
    return EmbeddedGallery(pictures, embeddings)


@pytest.fixture(scope="module")
def described() -> tuple[Clustering, Partition, np.ndarray]:
    """Bunches of 30, 25 and 10: two mostly of Ukiyo e, one without labels; the first 20 pictures are gallery a's."""
    embeddings, at = bunches((30, 25, 10))
    labels = [("Ukiyo e", "Ukiyo e", "")[place] for place in at]
    labels[int(np.argmax(at == 0))] = "Baroque"
    galleries = {
        "a": gallery_of(embeddings[:20], labels[:20], "a"),
        "b/": dataclasses.replace(gallery_of(embeddings[20:], labels[20:], "b"), skipped=("b/x.jpg: broken",)),
    }
    partition = clustered(embeddings, 3)
    return describe_clusters(partition, galleries, "fingerprint"), partition, embeddings


def test_clusters_are_named_after_their_commonest_label(described):
    clustering, *_ = described
    assert [(cluster.id, cluster.title) for cluster in clustering.clusters] == [
        ("ukiyo-e", "Ukiyo e"),
        ("ukiyo-e-2", "Ukiyo e 2"),
        ("cluster-03", "Cluster 3"),
    ]
    assert [dict(cluster.labels) for cluster in clustering.clusters] == [
        {"Ukiyo e": 29, "Baroque": 1},
        {"Ukiyo e": 25},
        {},
    ]
    assert list(clustering.clusters[0].labels) == ["Ukiyo e", "Baroque"]


def test_a_cluster_whose_labels_are_mostly_unknown_is_not_named_after_the_few():
    embeddings = np.eye(2, dtype=np.float32)[[0] * 5 + [1] * 4]
    labels = ["Baroque", "Baroque", "", "", "", "Rococo", "Realism", "", ""]
    clustering = describe_clusters(clustered(embeddings, 2), {"g": gallery_of(embeddings, labels)}, "f")
    assert [cluster.id for cluster in clustering.clusters] == ["cluster-01", "realism"]
    assert dict(clustering.clusters[0].labels) == {"Baroque": 2}


def test_what_is_said_of_a_cluster(described):
    clustering, partition, _ = described
    assert clustering.style_space == "fingerprint" and clustering.pictures == {"a": 20, "b/": 45}
    assert clustering.skipped == ("b/x.jpg: broken",)
    ids = [f"a{i}" for i in range(20)] + [f"b{i}" for i in range(45)]
    for number, cluster in enumerate(clustering.clusters):
        positions = partition.members(number)
        assert cluster.size == len(positions)
        assert [member.id for member in cluster.nearest] == [ids[i] for i in positions[:16]]
        assert all(member.gallery == ("a" if member.id.startswith("a") else "b/") for member in cluster.nearest)
        assert cluster.medoid == cluster.nearest[0]
        assert cluster.medoid.distance == pytest.approx(partition.distances[positions[0]], abs=1e-6)
        assert cluster.radius == pytest.approx(partition.radii[number], abs=1.1e-4)
        assert cluster.radius >= partition.radii[number]
        np.testing.assert_allclose(cluster.centre, partition.centres[number], atol=1e-6)
        # A model's card takes it as it is.
        ClusterCard(
            id=cluster.id, style_space=clustering.style_space, centre=cluster.centre, radius=cluster.radius
        )  # fmt: skip


def test_a_cluster_of_one_picture_has_a_radius_that_a_card_takes():
    partition = clustered(np.eye(3, dtype=np.float32), 3)
    clustering = describe_clusters(partition, {"g": gallery_of(np.eye(3), ["A", "B", "C"])}, "f")
    assert all(0 < cluster.radius <= 1e-3 and cluster.size == 1 for cluster in clustering.clusters)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=80), min_size=4, max_size=4))
def test_any_labels_make_different_slugs(labels):
    embeddings = np.eye(4, dtype=np.float32)
    partition = Partition(embeddings, np.full(4, 0.1), np.arange(4), np.zeros(4))
    clustering = describe_clusters(partition, {"g": gallery_of(embeddings, labels)}, "f")
    ids = [cluster.id for cluster in clustering.clusters]
    assert len(set(ids)) == 4 and all(SLUG.fullmatch(id) and len(id) <= 64 for id in ids)
    assert all(cluster.title for cluster in clustering.clusters)


def test_agreement_by_hand():
    # Clusters {A A B}, {B B}, {C}; one picture without a label.
    labels, assignment = ["A", "A", "B", "B", "B", "C", ""], np.array([0, 0, 0, 1, 1, 2, 2])
    found = label_agreement(labels, assignment)
    assert found["purity"] == pytest.approx(5 / 6)
    share = np.array([[2, 1, 0], [0, 2, 0], [0, 0, 1]]) / 6
    rows, columns = share.sum(1, keepdims=True), share.sum(0, keepdims=True)
    mutual = sum(p * np.log(p / q) for p, q in zip(share.flat, (rows * columns).flat, strict=True) if p)
    entropies = [-(p * np.log(p)).sum() for p in (rows, columns)]
    assert found["nmi"] == pytest.approx(mutual / np.mean(entropies))
    assert label_agreement(["A", "A", ""], np.array([0, 1, 0])) == {}
    assert label_agreement(["A", "B"], np.array([0, 1])) == {"nmi": pytest.approx(1), "purity": 1}


def test_coverage_asks_the_nearest_centre_alone():
    def cluster(id: str, centre: tuple[float, float], radius: float) -> Cluster:
        member = Member("g", id, 0.0)
        return Cluster(id, id, centre, radius, 1, member, (member,), {})

    # A style 40 degrees from the first axis lies within the second's wide radius, but nearest to the first.
    clustering = Clustering("f", (cluster("a", (1, 0), 0.1), cluster("b", (0, 1), 0.9)), {}, {}, {"g": 2}, ())
    degrees = np.radians([0, 20, 40, 50, 90])
    styles = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    assert coverage(clustering, styles) == pytest.approx(4 / 5)
    assert coverage(clustering, styles[2:3]) == 0


def test_coverage_of_what_was_clustered_is_the_quantile(described):
    clustering, _, embeddings = described
    assert 0.85 <= coverage(clustering, embeddings) <= 0.95


# --- the file ------------------------------------------------------------------------------------------------------


def test_saved_clusters_are_the_same_when_loaded(described, tmp_path):
    clustering, *_ = described
    clustering.save(tmp_path / "clusters.json")
    assert Clustering.load(tmp_path / "clusters.json") == clustering
    assert json.loads((tmp_path / "clusters.json").read_bytes())["format"] == 1


@pytest.fixture
def content(described, tmp_path) -> dict:
    described[0].save(tmp_path / "clusters.json")
    return json.loads((tmp_path / "clusters.json").read_text())


def altered(path: tuple, value: object):
    def alter(content: dict) -> None:
        *parents, last = path
        for parent in parents:
            content = content[parent]
        content[last] = value

    return alter


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (altered(("format",), 2), "it has no format 1"),
        (lambda content: content.pop("format"), "it has no format 1"),
        (lambda content: content.pop("style_space"), "style_space"),
        (altered(("more",), 1), "more"),
        (altered(("clusters",), []), "clusters"),
        (altered(("clusters", 0, "id"), "No Slug"), "clusters.0.id"),
        (altered(("clusters", 1, "id"), "ukiyo-e"), "two clusters have one id"),
        (altered(("clusters", 0, "radius"), 0), "clusters.0.radius"),
        (altered(("clusters", 0, "centre"), [1.0]), "the centres differ"),
        (altered(("clusters", 0, "centre", 0), "x"), "clusters.0.centre.0"),
        (altered(("clusters", 0, "centre", 0), 9.0), "the centre of ukiyo-e is not of length 1"),
        (altered(("clusters", 0, "medoid"), "a1"), "clusters.0.medoid"),
        (altered(("clusters", 0, "nearest"), []), "clusters.0.nearest"),
        (altered(("clusters", 0, "labels"), {"A": "many"}), "clusters.0.labels.A"),
        (altered(("silhouettes",), {"some": 0.5}), "silhouettes.some"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(content, alter, reason, tmp_path):
    alter(content)
    path = tmp_path / "clusters.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidInput) as refusal:
        Clustering.load(path)
    assert reason in refusal.value.message and "\n" not in str(refusal.value)
    assert "lienzo-train clusters" in refusal.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"format": NaN}', b"[" * 5000], ids=lambda data: repr(data[:8])
)
def test_what_is_no_file_of_clusters_is_refused_in_one_line(data, tmp_path):
    (tmp_path / "clusters.json").write_bytes(data)
    with pytest.raises(InvalidInput, match="are malformed") as refusal:
        Clustering.load(tmp_path / "clusters.json")
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        Clustering.load(tmp_path / "clusters.json")


# --- embedding -----------------------------------------------------------------------------------------------------


@pytest.fixture
def wikiart(tmp_path) -> Path:
    """WikiArt's layout: four pictures of strokes, four of hills, and one that is broken."""
    folder = tmp_path / "wikiart"
    for style, draw in (("Pointillism", strokes), ("Color_Field", hills)):
        (folder / style).mkdir(parents=True)
        for i in range(4):
            draw(80, 20 + i, seed=i).save(folder / style / f"nobody_picture-{i}.png")
    (folder / "Pointillism" / "nobody_broken.png").write_bytes(b"no picture")
    return folder


class Colours:
    """In a style space's place: the mean colour, without a network. Counts the pictures that it is asked for.

    Args:
        fail_after: interrupt the run at the picture after so many.
    """

    basis = np.eye(3)

    def __init__(self, fingerprint: str = "colours", fail_after: int | None = None):
        self.fingerprint, self.fail_after, self.calls = fingerprint, fail_after, 0

    def embed(self, encoder: None, picture: Image.Image) -> np.ndarray:
        if self.calls == self.fail_after:
            raise KeyboardInterrupt
        self.calls += 1
        return unit(np.asarray(picture, np.float32).mean((0, 1)) + 1)


def test_every_readable_picture_is_embedded_in_order(wikiart, tmp_path):
    gallery, calls = open_gallery(wikiart), []
    embedded = embed_gallery(gallery, None, Colours(), tmp_path / "cache", lambda *call: calls.append(call))
    readable = [picture for picture in gallery.pictures if "broken" not in picture.id]
    assert embedded.pictures == tuple(readable) and calls == [(done, 9) for done in range(1, 10)]
    assert [picture.style for picture in readable] == ["Color Field"] * 4 + ["Pointillism"] * 4
    for picture, embedding in zip(readable, embedded.embeddings, strict=True):
        np.testing.assert_allclose(embedding, Colours().embed(None, decode(picture.path)), atol=0.01)
    assert len(np.unique(embedded.embeddings, axis=0)) == 8
    (line,) = embedded.skipped
    assert line.startswith(f"{wikiart.resolve() / 'Pointillism' / 'nobody_broken.png'}: These bytes are no JPEG")


def test_the_embeddings_are_the_style_spaces(wikiart, encoder, tmp_path):
    gallery, space = open_gallery(wikiart), StyleSpace.load()
    two = dataclasses.replace(gallery, pictures=gallery.pictures[3:5])
    embedded = embed_gallery(two, encoder, space, tmp_path / "cache")
    expected = np.stack([space.embed(encoder, decode(picture.path)) for picture in embedded.pictures])
    np.testing.assert_allclose(embedded.embeddings, expected, atol=1e-4)


def test_the_order_does_not_depend_on_which_picture_is_decoded_first(wikiart, tmp_path, monkeypatch):
    gallery, order = open_gallery(wikiart), []

    def slow_first(path: Path, **options: object) -> Image.Image:
        time.sleep(0.1 if path.name == "nobody_picture-0.png" else 0)
        picture = decode(path, **options)
        order.append(path)
        return picture

    expected = embed_gallery(gallery, None, Colours(), tmp_path / "cache")
    monkeypatch.setattr(library, "decode", slow_first)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    embedded = embed_gallery(gallery, None, Colours(), tmp_path / "another")
    assert order[0].name != "nobody_picture-0.png", "the first to be asked for was not the first to be there"
    np.testing.assert_array_equal(embedded.embeddings, expected.embeddings)
    assert embedded.pictures == expected.pictures


def test_only_so_many_pictures_are_held_at_once(tmp_path, monkeypatch):
    folder, held, most = tmp_path / "many", 0, 0
    folder.mkdir()
    for i in range(60):
        Image.new("RGB", (16, 16), (4 * i, 0, 0)).save(folder / f"{i:02}.png")

    def count(path: Path, **options: object) -> Image.Image:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return decode(path, **options)

    def release(done: int, total: int) -> None:
        nonlocal held
        held -= 1

    monkeypatch.setattr(library, "decode", count)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    embed_gallery(open_gallery(folder), None, Colours(), tmp_path / "cache", release)
    assert most <= 10 and held == 0


def test_the_cache_spares_the_network_and_gives_the_same(wikiart, tmp_path):
    gallery, cache = open_gallery(wikiart), tmp_path / "cache"
    first = embed_gallery(gallery, None, Colours(), cache)
    counting, calls = Colours(), []
    again = embed_gallery(open_gallery(wikiart), None, counting, cache, lambda *call: calls.append(call))
    assert counting.calls == 0 and calls == [(8, 9), (9, 9)]
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    assert again.pictures == first.pictures and again.skipped == first.skipped
    # A gallery that lies elsewhere now keeps its embeddings.
    moved = Path(shutil.copytree(wikiart, tmp_path / "other" / "wikiart"))
    np.testing.assert_array_equal(
        embed_gallery(open_gallery(moved), None, counting, cache).embeddings, first.embeddings
    )
    assert counting.calls == 0


def test_a_picture_that_changed_and_a_new_one_are_embedded_anew(wikiart, tmp_path):
    cache, changed = tmp_path / "cache", wikiart / "Pointillism" / "nobody_picture-0.png"
    before = embed_gallery(open_gallery(wikiart), None, Colours(), cache)
    hills(60, 60, seed=9).save(changed)
    strokes(60, 60, seed=9).save(wikiart / "Pointillism" / "nobody_new.png")
    os.utime(wikiart / "Pointillism" / "nobody_picture-1.png", ns=(0, 0))
    counting = Colours()
    after = embed_gallery(open_gallery(wikiart), None, counting, cache)
    assert counting.calls == 3
    (position,) = [i for i, picture in enumerate(after.pictures) if picture.path == changed.resolve()]
    np.testing.assert_allclose(after.embeddings[position], Colours().embed(None, decode(changed)), atol=0.01)
    np.testing.assert_array_equal(after.embeddings[:4], before.embeddings[:4])


def test_another_space_has_a_cache_of_its_own(wikiart, tmp_path):
    gallery, cache = open_gallery(wikiart), tmp_path / "cache"
    embed_gallery(gallery, None, Colours(), cache)
    other = Colours("other")
    embed_gallery(gallery, None, other, cache)
    assert other.calls == 8


@pytest.mark.parametrize("after", [0, 3, 7])
def test_a_run_that_is_stopped_goes_on_where_it_was(wikiart, tmp_path, monkeypatch, after):
    monkeypatch.setattr(library, "SHARD", 2)
    gallery, cache = open_gallery(wikiart), tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        embed_gallery(gallery, None, Colours(fail_after=after), cache)
    counting = Colours()
    resumed = embed_gallery(gallery, None, counting, cache)
    assert counting.calls == 8 - after
    whole = embed_gallery(gallery, None, Colours(), tmp_path / "another")
    np.testing.assert_array_equal(resumed.embeddings, whole.embeddings)


def test_a_killed_run_loses_less_than_a_shard(wikiart, tmp_path, monkeypatch):
    """Nothing is written after a kill, so what counts is what is on the disk after each picture."""
    monkeypatch.setattr(library, "SHARD", 3)
    cache, gallery, on_disk = tmp_path / "cache", open_gallery(wikiart), []

    def look(done: int, total: int) -> None:
        on_disk.append(len(list(cache.rglob("*.safetensors"))))

    embed_gallery(gallery, None, Colours(), cache, look)
    # The broken picture is the fifth.
    assert on_disk == [0, 0, 1, 1, 1, 1, 2, 2, 2] and len(list(cache.rglob("*.safetensors"))) == 3
    assert not list(cache.rglob("*.part"))


def test_a_damaged_shard_is_made_again(wikiart, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(library, "SHARD", 4)
    gallery, cache = open_gallery(wikiart), tmp_path / "cache"
    first = embed_gallery(gallery, None, Colours(), cache)
    damaged, _ = sorted(cache.rglob("*.safetensors"))
    data = damaged.read_bytes()
    for wrong in (b"", data[:-1], b"\xff" * 64, data.replace(b'"keys"', b'"kind"')):
        damaged.write_bytes(wrong)
        counting = Colours()
        again = embed_gallery(gallery, None, counting, cache)
        assert counting.calls == 4 and f"not used of the cache: {damaged}" in caplog.text
        np.testing.assert_array_equal(again.embeddings, first.embeddings)
        assert damaged.read_bytes() == data, "made again under the same name"


def test_a_gallery_of_which_nothing_can_be_read_is_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    with pytest.raises(GalleryError, match="none of the 1 pictures of gallery 'pictures' can be read"):
        embed_gallery(open_gallery(tmp_path / "pictures"), None, Colours(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# --- the sheet -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "rows"), [(2, 1), (6, 1), (24, 4), (25, 5), (40, 5)])
def test_a_sheet_has_at_most_four_rows_of_the_nearest_and_one_of_the_farthest(tmp_path, size, rows):
    """The medoid is red, the other near ones green, the farthest blue."""
    paths = []
    for i in range(size):
        colour = "red" if i == 0 else "blue" if size > 24 and i >= max(24, size - 6) else (0, 255, 0)
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (32, 32), colour).save(paths[-1])
    pictures = [Picture(path.stem, path, path.stem) for path in paths]
    partition = Partition(np.eye(1), np.array([1.0]), np.zeros(size, int), np.linspace(0, 1, size))
    clustering = describe_clusters(
        partition, {"g": EmbeddedGallery(tuple(pictures), np.ones((size, 1)))}, "f"
    )  # fmt: skip
    sheet = np.asarray(cluster_sheet(partition, 0, pictures, clustering.clusters[0], tile=32)).reshape(-1, 3)
    counts = {
        name: int((sheet == colour).all(1).sum()) / 32**2
        for name, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255)))
    }
    far = min(6, max(0, size - 24))
    assert counts == {"red": 1, "green": min(size, 24) - 1, "blue": far}
    assert rows == -(-min(size, 24) // 6) + bool(far)


# --- the command ---------------------------------------------------------------------------------------------------


def clusters(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["clusters", *map(str, arguments)])


def test_the_command_from_pictures_to_clusters(vgg19_weights, wikiart, tmp_path):
    output, shipped = tmp_path / "out" / "clusters", StyleSpace.load()
    space = StyleSpace(shipped.mean, shipped.basis[:8])
    space.save(tmp_path / "space.safetensors")
    arguments = ["--gallery", wikiart, "-o", output, "--space", tmp_path / "space.safetensors", "--device", "cpu"]
    result = clusters(*arguments, "--k", 2)
    assert result.exit_code == 0, result.output
    clustering = Clustering.load(output / "clusters.json")
    assert {cluster.id for cluster in clustering.clusters} == {"pointillism", "color-field"}
    assert clustering.style_space == space.fingerprint and clustering.agreement == {"nmi": 1, "purity": 1}
    assert clustering.pictures == {str(wikiart): 8} and len(clustering.skipped) == 1
    for cluster in clustering.clusters:
        assert open_gallery(cluster.medoid.gallery).by_id(cluster.medoid.id).style == cluster.title
    names = {path.name for path in output.iterdir()}
    assert names == {"clusters.json", "pointillism.jpg", "color-field.jpg", ".embeddings"}
    for text in ("pointillism", "Pointillism 4", "of 8 pictures lie within", "could not be read: 1\n"):
        assert text in result.stdout, result.stdout

    # Too few are readable for nine: refused, and what was there stays.
    before = (output / "clusters.json").read_bytes()
    line = clusters(*arguments, "--k", 9).stderr.splitlines()[-1]
    assert line.startswith("error: there are 8 pictures to cluster, but 9 clusters need at least 9.")
    assert (output / "clusters.json").read_bytes() == before and {path.name for path in output.iterdir()} == names

    # Sheets of clusters that are no more go, and a file of the user's stays.
    (output / "mine.jpg").write_bytes(b"mine")
    (wikiart / "Pointillism").rename(wikiart / "Dots")
    result = clusters(*arguments, "--k-range", "2-2")
    assert result.exit_code == 0, result.output
    names = {path.name for path in output.iterdir()}
    assert names == {"clusters.json", "dots.jpg", "color-field.jpg", "mine.jpg", ".embeddings"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "1"], "k is 1, expected 2 or more, or auto."),
        (["--k", "many"], "k is 'many', expected a number or auto."),
        (["--k", "10"], "there are 9 pictures to cluster, but 10 clusters need at least 10."),
        ([], "there are 9 pictures to cluster, but up to 16 clusters need at least 17."),
        (["--k-range", "6"], "'6' is no range of k. Write it like 6-16."),
        (["--k-range", "9-3"], "the range of k is 9-3"),
        (["--k", "2", "--quantile", "1.5"], "quantile is 1.5"),
        (["--k", "2", "--quantile", "0"], "quantile is 0.0"),
        (["--k", "2", "--seed", "-1"], "seed is -1"),
        (["--k", "2", "--gallery", "nowhere"], "There is no gallery folder nowhere"),
        (["--k", "2", "--gallery", "empty"], "holds no usable picture"),
        (["--k", "2", "--gallery", "wikiart"], "the gallery 'wikiart' is named twice"),
        (["--k", "2", "--space", "wikiart"], "the style space 'wikiart' cannot be read"),
        (["--k", "2", "-o", "file"], "'file' is a file"),
        (["--k", "2", "--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(wikiart, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    result = clusters("--gallery", "wikiart", "-o", "out", *options)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert {path.name for path in tmp_path.iterdir()} == {"wikiart", "empty", "file"}


def test_the_command_has_the_options_that_others_rely_on():
    command = typer.main.get_command(app).commands["clusters"]
    options = {option for parameter in command.params for option in parameter.opts}
    names = "--gallery --output -o --k --k-range --quantile --space --seed --device"
    assert set(names.split()) <= options
