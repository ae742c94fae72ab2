"""Style embeddings: the statistics are AdaIN's, the space is a PCA, and spaces are told apart by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scenes import hills, strokes

from shared.errors import GalleryError
from shared.images import decode, encode, resize, to_tensor
from shared.style_space import LAYERS, LONGER_SIDE, SHIPPED, StyleSpace, mean_embedding, style_statistics

D = 2 * (64 + 128 + 256 + 512 + 512)


def random_statistics(n: int = 12, dimensions: int = 30, seed: int = 0) -> np.ndarray:
    """As real ones: at least 0, and spread more along some directions than along others."""
    rng = np.random.default_rng(seed)
    return np.abs(rng.standard_normal((n, dimensions)) * np.linspace(3, 0.1, dimensions) + 2).astype(np.float32)


@pytest.fixture(scope="module")
def space() -> StyleSpace:
    return StyleSpace.fit(random_statistics(), dimensions=6, fitted_on="numbers (12)")


# --- statistics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [32, 240])
def test_statistics_are_means_and_deviations_of_every_layer(encoder, height):
    picture = strokes(LONGER_SIDE, height)
    found = style_statistics(encoder, picture)
    assert found.shape == (D,) and found.dtype == np.float32 and (found >= 0).all()
    features = encoder(to_tensor(picture), LAYERS)
    start = 0
    for layer in LAYERS:
        values = features[layer][0].double().flatten(1).numpy()
        expected = np.concatenate([values.mean(1), values.std(1)])
        part = found[start : start + len(expected)]
        np.testing.assert_allclose(part, expected / np.linalg.norm(expected), rtol=1e-3, atol=1e-5)
        assert np.linalg.norm(part) == pytest.approx(1, abs=1e-5), "no layer drowns the others"
        start += len(expected)


def test_every_picture_is_brought_to_one_size_first(encoder):
    picture = strokes(400, 300)
    found = style_statistics(encoder, resize(picture, LONGER_SIDE))
    np.testing.assert_allclose(style_statistics(encoder, picture), found, atol=1e-6)
    larger = style_statistics(encoder, picture.resize((800, 600)))
    assert np.linalg.norm(larger - found) < 0.2 * np.linalg.norm(found)


@pytest.mark.parametrize("size", [(2000, 16), (16, 2000), (3200, 20)], ids=str)
def test_very_elongated_pictures_have_a_style_too(encoder, size):
    found = style_statistics(encoder, strokes(*size))
    assert found.shape == (D,) and np.isfinite(found).all()


def test_a_black_picture_has_a_style_too(encoder):
    found = style_statistics(encoder, hills(64, 64).point(lambda level: 0))
    assert np.isfinite(found).all()


def test_the_style_of_a_picture_is_its_manner_not_its_place(encoder, space):
    """Mirrored, a picture keeps its statistics almost; another manner does not."""
    picture = strokes(200, 160)
    own = style_statistics(encoder, picture)
    mirrored = style_statistics(encoder, picture.transpose(0))
    other = style_statistics(encoder, hills(200, 160))
    assert np.linalg.norm(own - mirrored) < 0.3 * np.linalg.norm(own - other)


# --- the space -----------------------------------------------------------------------------------------------------


def test_the_basis_is_the_principal_directions_by_decreasing_spread():
    statistics = random_statistics()
    fitted = StyleSpace.fit(statistics, dimensions=5, whitening=0)
    values, vectors = np.linalg.eigh(np.cov(statistics.astype(np.float64).T, bias=True))
    for direction, expected in zip(fitted.basis, vectors.T[::-1][:5], strict=True):
        assert abs(direction @ expected) == pytest.approx(1, abs=1e-3)
        assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-5)
    spreads = ((statistics - fitted.mean) @ fitted.basis.T).std(0)
    np.testing.assert_allclose(spreads, np.sqrt(values[::-1][:5]), rtol=1e-3)
    assert (np.diff(spreads) <= 1e-6).all()


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_takes_away_a_power_of_the_spread(whitening):
    statistics = random_statistics(40)
    plain = StyleSpace.fit(statistics, dimensions=5, whitening=0)
    spread = ((statistics - plain.mean) @ plain.basis.T).std(0)
    whitened = StyleSpace.fit(statistics, dimensions=5, whitening=whitening)
    np.testing.assert_allclose(
        ((statistics - whitened.mean) @ whitened.basis.T).std(0), spread ** (1 - whitening), rtol=1e-3
    )


def test_fitting_again_gives_the_same_space():
    """An SVD may return either of two signs; the space fixes them."""
    first = StyleSpace.fit(random_statistics(), dimensions=6)
    assert StyleSpace.fit(random_statistics(), dimensions=6).fingerprint == first.fingerprint
    reordered = StyleSpace.fit(random_statistics()[::-1], dimensions=6)
    np.testing.assert_allclose(reordered.basis, first.basis, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("pictures", "asked", "expected"), [(2, 64, 1), (5, 64, 4), (30, 8, 8)])
def test_there_are_fewer_dimensions_than_pictures(pictures, asked, expected):
    fitted = StyleSpace.fit(random_statistics(pictures), dimensions=asked)
    assert fitted.basis.shape == (expected, 30) and fitted.mean.shape == (30,)
    assert np.isfinite(fitted.basis).all()


def test_pictures_that_are_all_alike_do_not_break_the_fit():
    fitted = StyleSpace.fit(np.repeat(random_statistics(1), 4, axis=0), dimensions=3)
    assert np.isfinite(fitted.project(random_statistics(1))).all()


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_an_embedding_has_length_1_and_only_the_direction_from_the_mean_counts(seed, distance):
    fitted = StyleSpace.fit(random_statistics(), dimensions=6)
    statistics = random_statistics(3, seed=seed).astype(np.float64)
    embedding = fitted.project(statistics)
    assert embedding.shape == (3, 6) and embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(fitted.project(statistics[1]), embedding[1], atol=1e-5)
    further = fitted.mean + distance * (statistics - fitted.mean)
    np.testing.assert_allclose(fitted.project(further), embedding, atol=1e-3)


def test_the_mean_picture_has_no_direction_but_is_no_error(space):
    embedding = space.project(space.mean)
    assert np.isfinite(embedding).all() and np.linalg.norm(embedding) <= 1 + 1e-5


def test_a_picture_is_embedded_as_its_statistics(encoder):
    pictures = [strokes(96, 80, seed) for seed in range(3)] + [hills(96, 80, seed) for seed in range(3)]
    statistics = np.stack([style_statistics(encoder, picture) for picture in pictures])
    fitted = StyleSpace.fit(statistics, dimensions=4)
    np.testing.assert_allclose(fitted.embed(encoder, pictures[0]), fitted.project(statistics[0]), atol=1e-5)
    embeddings = fitted.project(statistics)
    alike, unlike = embeddings[0] @ embeddings[1], embeddings[0] @ embeddings[3]
    assert alike > 0 > unlike, "strokes are like strokes"


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=5))
def test_the_mean_of_embeddings_is_the_middle_direction(seeds):
    vectors = np.stack([np.random.default_rng(seed).standard_normal(7) for seed in seeds])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = mean_embedding(list(vectors))
    assert np.linalg.norm(mean) == pytest.approx(1)
    np.testing.assert_allclose(mean, vectors.sum(0) / np.linalg.norm(vectors.sum(0)), atol=1e-9)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_space_survives_being_saved(space, tmp_path):
    space.save(tmp_path / "new" / "folder" / "space.safetensors")
    loaded = StyleSpace.load(tmp_path / "new" / "folder" / "space.safetensors")
    np.testing.assert_array_equal(loaded.mean, space.mean)
    np.testing.assert_array_equal(loaded.basis, space.basis)
    assert loaded.fitted_on == "numbers (12)" and loaded.fingerprint == space.fingerprint
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["space.safetensors"]


def test_the_fingerprint_is_the_numbers(space):
    renamed = StyleSpace(space.mean, space.basis, "something else")
    assert renamed.fingerprint == space.fingerprint and len(space.fingerprint) == 16
    other = [
        StyleSpace(space.mean + np.float32(1e-3), space.basis),
        StyleSpace(space.mean, -space.basis),
        StyleSpace(space.mean, space.basis[:-1]),
        StyleSpace.fit(random_statistics(), dimensions=6, whitening=0.4),
        StyleSpace.fit(random_statistics(seed=1), dimensions=6),
    ]
    assert len({space.fingerprint, *(one.fingerprint for one in other)}) == 6


def test_statistics_of_other_layers_or_sizes_are_another_space(space, monkeypatch):
    before = space.fingerprint
    for name, value in (("LONGER_SIDE", 256), ("LAYERS", LAYERS[:-1])):
        with monkeypatch.context() as patch:
            patch.setattr(f"shared.style_space.{name}", value)
            assert StyleSpace(space.mean, space.basis).fingerprint != before


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "], ids=repr)
def test_a_file_that_is_no_space_is_refused_by_name(tmp_path, data):
    path = tmp_path / "space.safetensors"
    path.write_bytes(data)
    with pytest.raises(GalleryError, match=r"the style space '.*space\.safetensors' cannot be read") as refusal:
        StyleSpace.load(path)
    assert refusal.value.code == "gallery_error"


def test_a_truncated_or_foreign_file_is_refused(space, tmp_path):
    path = tmp_path / "space.safetensors"
    space.save(path)
    whole = path.read_bytes()
    for length in (7, 50, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(GalleryError, match="cannot be read"):
            StyleSpace.load(path)
    save_file({"embeddings": np.zeros((2, 3), np.float32)}, path)
    with pytest.raises(GalleryError, match="cannot be read"):
        StyleSpace.load(path)
    with pytest.raises(GalleryError, match="cannot be read"):
        StyleSpace.load(tmp_path / "missing.safetensors")


def test_the_shipped_space_is_a_space_of_paintings(encoder):
    space = StyleSpace.load()
    assert SHIPPED.is_file() and space.mean.shape == (D,) and space.basis.shape == (64, D)
    assert "met (174)" in space.fitted_on
    assert np.isfinite(space.basis).all() and np.isfinite(space.mean).all()
    embedding = space.embed(encoder, strokes(200, 160))
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    as_jpeg = space.embed(encoder, decode(encode(strokes(200, 160), "jpeg")))
    assert embedding @ as_jpeg > 0.95, "a JPEG of a picture has the picture's style"
    assert embedding @ space.embed(encoder, hills(200, 160)) < 0.8


def test_a_space_read_in_reduced_precision_is_close(vgg19, encoder):
    from shared.encoders import Encoder

    space, picture = StyleSpace.load(), strokes(200, 160)
    reduced = space.embed(Encoder(vgg19, dtype=torch.bfloat16), picture)
    assert reduced @ space.embed(encoder, picture) > 0.99
