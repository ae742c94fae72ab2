"""Fast models are found, refused by name where they do not match, and run where they say they run."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from models import cluster, read_raw_card, write_card, write_negative
from PIL import Image
from scenes import hills

from shared.errors import EngineUnavailable, InvalidInput, ModelRefused, NotFound, PictureError
from shared.fast_models import Card, FastModel, ModelLibrary, cosine_distance, read_card
from shared.fast_painting import paint_fast
from shared.images import decode, encode, to_array
from shared.onnx_runtime import available_cpus, open_session

GPU = Path("/dev/nvidiactl").exists()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder for models."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def model(folder) -> Path:
    return write_negative(folder, "negative")


@pytest.fixture
def negative(model) -> FastModel:
    return FastModel(model, read_card(model), "cpu", "onnxruntime")


def pixels(height: int = 40, width: int = 48, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 3, height, width), dtype=np.float32)


# --- cards ---------------------------------------------------------------------------------------------------------


def test_a_model_that_matches_its_card_is_read(model):
    card = read_card(model)
    assert (card.slug, card.name, card.min_side) == ("negative", "A Test", 32)
    assert card.sha256 == hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()
    assert card.input.name == "pictures" and card.input.layout == "NCHW" and card.input.colour == "RGB"
    assert (card.input.minimum, card.input.maximum) == (0, 1)
    assert Card.model_validate_json(card.model_dump_json()) == card


@pytest.mark.parametrize("name", ["model.onnx", "card.json"])
def test_a_missing_file_is_refused_by_name(model, name):
    (model / name).unlink()
    with pytest.raises(ModelRefused, match=f"has no {name}") as refusal:
        read_card(model)
    assert refusal.value.code == "model_refused"
    assert "model.onnx and card.json" in refusal.value.hint


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: data + b"\0", lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: b""],
    ids=["shorter", "longer", "one bit", "empty"],
)
def test_a_network_that_is_not_the_cards_is_refused_by_name(model, change):
    before = (model / "model.onnx").read_bytes()
    (model / "model.onnx").write_bytes(change(before))
    with pytest.raises(ModelRefused, match="model 'negative' in .* does not match its card") as refusal:  # noqa: RUF043
        read_card(model)
    for data in (before, change(before)):
        assert hashlib.sha256(data).hexdigest()[:12] in refusal.value.message
    assert "export the folder again" in refusal.value.hint


def without(name: str):
    return lambda card: {key: value for key, value in card.items() if key != name}


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (without("slug"), "slug"),
        (without("sha256"), "sha256"),
        (without("parity"), "parity"),
        (lambda card: card | {"path": "/etc/passwd"}, "path"),
        (lambda card: card | {"input": card.get("input", {}) | {"file": "x"}}, "input.file"),
        (lambda card: card | {"styles": [{"title": "x", "sha256": "0" * 64, "url": "http://x"}]}, "styles.0.url"),
        (lambda card: card | {"styles": [{"title": "x", "sha256": "0" * 63}]}, "styles.0.sha256"),
        (lambda card: card | {"sha256": card["sha256"] + "0"}, "sha256"),
        (lambda card: card | {"sha256": card["sha256"].upper()}, "sha256"),
        (lambda card: card | {"format": 2}, "format"),
        (lambda card: card | {"min_side": "many"}, "min_side"),
        (lambda card: card | {"name": ""}, "name"),
        (lambda card: card | {"name": "n" * 121}, "name"),
        (lambda card: card | {"input": {"layout": "NHWC"}}, "input.layout"),
        (lambda card: card | {"cluster": cluster([1.0], radius=0.0)}, "cluster.radius"),
        (lambda card: card | {"cluster": cluster([1.0], radius=math.nan)}, "cluster.radius"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_card_is_refused_with_the_place(model, change, at):
    write_card(model, change(read_raw_card(model)))
    with pytest.raises(ModelRefused, match="the card of model 'negative' is malformed") as refusal:
        read_card(model)
    assert f"malformed: {at}: " in refusal.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"slug":' * 1000], ids=repr)
def test_a_card_that_is_no_json_object_is_refused(model, data):
    (model / "card.json").write_bytes(data)
    with pytest.raises(ModelRefused, match="the card of model 'negative' is malformed"):
        read_card(model)


@pytest.mark.parametrize(
    "slug",
    ["../negative", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "", "A", "ä", "a--b", "-a", "a-", "a\n", "a" * 65],
    ids=repr,
)
def test_a_slug_that_could_be_a_path_is_refused(model, slug):
    write_card(model, read_raw_card(model) | {"slug": slug})
    with pytest.raises(ModelRefused, match="malformed: slug: "):
        read_card(model)


# --- the library ---------------------------------------------------------------------------------------------------


def test_models_are_found_by_scanning(folder):
    for slug in ("wave", "night", "a-1"):
        write_negative(folder, slug)
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.txt").write_text("not a model")
    (folder / "loose.json").write_text("{}")
    library = ModelLibrary([folder])
    assert sorted(library.models) == ["a-1", "night", "wave"] and len(library) == 3
    assert library.refusals == []
    assert library["night"].folder == folder / "night"


def test_a_folder_added_is_a_style_added(folder):
    write_negative(folder, "wave")
    assert sorted(ModelLibrary([folder]).models) == ["wave"]
    write_negative(folder, "night")
    assert sorted(ModelLibrary([folder]).models) == ["night", "wave"]


def test_an_unknown_style_is_not_found_and_the_hint_lists_those_there_are(folder):
    write_negative(folder, "wave")
    write_negative(folder, "night")
    library = ModelLibrary([folder])
    with pytest.raises(NotFound, match="there is no fast style 'waves'") as refusal:
        library["waves"]
    assert refusal.value.hint == "Styles are: night, wave."
    assert refusal.value.field == "style"
    with pytest.raises(NotFound) as refusal:
        library["x" * 10_000]
    assert len(refusal.value.message) < 200
    with pytest.raises(NotFound) as refusal:
        ModelLibrary([])["wave"]
    assert refusal.value.hint == "Styles are: none."


def test_a_later_folders_model_replaces_an_earlier_one(tmp_path):
    for place, name in (("shipped", "Old"), ("own", "New")):
        write_negative(tmp_path / place, "wave", name=name)
    write_negative(tmp_path / "shipped", "night")
    library = ModelLibrary([tmp_path / "shipped", tmp_path / "own"])
    assert library["wave"].card.name == "New" and library["wave"].folder == tmp_path / "own" / "wave"
    assert sorted(library.models) == ["night", "wave"]
    assert ModelLibrary([tmp_path / "own", tmp_path / "shipped"])["wave"].card.name == "Old"


def test_one_bad_model_is_refused_by_name_and_the_others_serve(folder, caplog):
    write_negative(folder, "good")
    bad = write_negative(folder, "bad")
    (bad / "model.onnx").write_bytes(b"another network")
    with caplog.at_level(logging.ERROR):
        library = ModelLibrary([folder])
    assert list(library.models) == ["good"]
    (refusal,) = library.refusals
    assert refusal.folder == bad and "model 'bad'" in refusal.reason and "does not match its card" in refusal.reason
    assert "model 'bad'" in caplog.text


def test_a_refused_model_does_not_replace_a_good_one(tmp_path):
    write_negative(tmp_path / "first", "wave", name="Good")
    bad = write_negative(tmp_path / "second", "wave", name="Bad")
    (bad / "model.onnx").write_bytes(b"")
    assert ModelLibrary([tmp_path / "first", tmp_path / "second"])["wave"].card.name == "Good"


def test_a_folder_of_models_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="does not exist") as refusal:
        ModelLibrary([tmp_path / "missing"])
    assert refusal.value.field == "models"


# --- the nearest model ---------------------------------------------------------------------------------------------


SPACE = cluster([1.0], radius=1)["style_space"]


def test_the_nearest_model_and_whether_it_knows_the_style(folder):
    write_negative(folder, "east", cluster=cluster([1.0, 0.0], radius=0.2))
    write_negative(folder, "north", cluster=cluster([0.0, 1.0], radius=0.2))
    write_negative(folder, "other-space", cluster=cluster([1.0, 0.0], radius=2) | {"style_space": "f" * 16})
    write_negative(folder, "no-cluster")
    library = ModelLibrary([folder])
    for degrees in (0, 20, 40, 50, 80, 90, 200):
        angle = math.radians(degrees)
        found = library.nearest(np.array([math.cos(angle), math.sin(angle)], np.float32), SPACE)
        expected = {"east": 1 - math.cos(angle), "north": 1 - math.sin(angle)}
        slug = min(expected, key=expected.get)
        assert found.model.card.slug == slug, degrees
        assert found.distance == pytest.approx(expected[slug], abs=1e-6)
        assert found.inside == (expected[slug] <= 0.2)


def test_the_edge_of_a_cluster_belongs_to_it(folder):
    write_negative(folder, "edge", cluster=cluster([1.0, 0.0], radius=1.0))
    library = ModelLibrary([folder])
    assert library.nearest(np.array([0, 1], np.float32), SPACE).inside
    assert not library.nearest(np.array([-0.01, 1], np.float32), SPACE).inside


def test_a_wide_cluster_serves_what_a_nearer_narrow_one_does_not_hold(folder):
    write_negative(folder, "narrow", cluster=cluster([1.0, 0.0], radius=0.01))
    write_negative(folder, "wide", cluster=cluster([0.0, 1.0], radius=0.9))
    library = ModelLibrary([folder])
    for degrees, slug, inside in (
        (5, "narrow", True),
        (20, "wide", True),
        (-20, "narrow", False),
        (-80, "narrow", False),
    ):
        angle = math.radians(degrees)
        found = library.nearest(np.array([math.cos(angle), math.sin(angle)], np.float32), SPACE)
        assert (found.model.card.slug, found.inside) == (slug, inside), degrees


def test_nothing_is_near_where_no_model_has_a_cluster(folder):
    write_negative(folder, "no-cluster")
    assert ModelLibrary([folder]).nearest(np.ones(4, np.float32), SPACE) is None
    assert ModelLibrary([]).nearest(np.ones(4, np.float32), SPACE) is None


vectors = arrays.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32))


@given(vectors, vectors)
def test_cosine_distance_lies_between_0_and_2_and_ignores_lengths(a, b):
    distance = cosine_distance(a, b)
    assert 0 <= distance <= 2
    assert distance == cosine_distance(b, a)
    if np.linalg.norm(a) > 1e-3:
        assert cosine_distance(a, a) == pytest.approx(0, abs=1e-5)
        assert cosine_distance(a, 4 * a) == pytest.approx(0, abs=1e-5)
        assert cosine_distance(a, -a) == pytest.approx(2, abs=1e-5)


def test_a_distance_to_no_number_is_none():
    assert math.isnan(cosine_distance(np.array([math.nan, 1]), np.array([1.0, 1.0]))), "and never a perfect match"


# --- painting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 33, 70), (3, 47, 32)], ids=str)
def test_a_model_paints(negative, shape):
    batch, height, width = shape
    content = pixels(height, width, batch)
    painted = negative.paint(content)
    assert painted.dtype == np.float32
    np.testing.assert_array_equal(painted, 1 - content)


def test_any_float_type_and_layout_is_painted(negative):
    content = pixels()
    expected = negative.paint(content)
    channels_last = np.ascontiguousarray(content.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for other in (content.astype(np.float64), channels_last, content[..., ::-1][..., ::-1]):
        np.testing.assert_array_equal(negative.paint(other), expected)


@pytest.mark.parametrize(
    "shape", [(3, 40, 40), (1, 4, 40, 40), (1, 1, 40, 40), (1, 40, 40, 3), (1, 1, 3, 40, 40)], ids=str
)
def test_another_shape_is_refused(negative, shape):
    with pytest.raises(InvalidInput, match="expected \\(N, 3, height, width\\)") as refusal:
        negative.paint(np.zeros(shape, np.float32))
    assert str(shape) in refusal.value.message


@pytest.mark.parametrize(("height", "width"), [(31, 200), (200, 31), (1, 1)])
def test_a_picture_too_small_for_the_model_is_refused(negative, height, width):
    with pytest.raises(InvalidInput) as refusal:
        negative.paint(pixels(height, width))
    assert f"{width}×{height}" in refusal.value.message and "'negative'" in refusal.value.message
    assert "at least 32" in refusal.value.message and refusal.value.field == "size"


def test_the_session_opens_at_first_use_and_only_once(negative, monkeypatch):
    opened = []
    really = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: opened.append(a) or really(*a, **k))
    assert opened == []
    negative.paint(pixels())
    negative.paint(pixels(64, 64))
    assert negative.provider == "CPUExecutionProvider"
    assert len(opened) == 1


@pytest.mark.parametrize(("engine", "name"), [("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")])
@pytest.mark.parametrize("data", [b"", b"no network", b"\x08\x0a" * 50], ids=["empty", "text", "rubbish"])
def test_a_file_that_is_no_network_is_refused_though_its_hash_matches(model, data, engine, name):
    (model / "model.onnx").write_bytes(data)
    write_card(model, read_raw_card(model) | {"sha256": hashlib.sha256(data).hexdigest()})
    library = ModelLibrary([model.parent], device="cpu", engine=engine)
    with pytest.raises(ModelRefused, match=f"{name} cannot load"):
        library["negative"].paint(pixels())


def test_a_missing_network_is_refused(tmp_path):
    with pytest.raises(ModelRefused, match="ONNX Runtime cannot load"):
        open_session(tmp_path / "missing.onnx", device="cpu")


# --- devices -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(GPU, reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu(model, capfd):
    library = ModelLibrary([model.parent], device="cuda")
    with pytest.raises(EngineUnavailable, match="CUDAExecutionProvider was asked for") as refusal:
        library["negative"].paint(pixels())
    assert refusal.value.code == "engine_unavailable" and "device 'cpu'" in refusal.value.hint
    assert capfd.readouterr().out == "", "the library prints nothing where results go"


@pytest.mark.skipif(GPU, reason="there is a GPU here")
def test_auto_takes_the_cpu_where_there_is_no_gpu(model):
    assert "CPU" in ModelLibrary([model.parent])["negative"].provider


def test_cuda_is_refused_where_onnx_runtime_was_built_without_it(model, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineUnavailable, match="offers only CPUExecutionProvider") as refusal:
        open_session(model / "model.onnx", device="cuda")
    assert "onnxruntime-gpu" in refusal.value.hint
    assert open_session(model / "model.onnx", device="auto").get_providers() == ["CPUExecutionProvider"]


def test_auto_says_where_a_gpu_does_not_start(model, monkeypatch, caplog):
    """A GPU is there, but its libraries are not: the session runs, on the CPU, and the log says so."""
    if GPU or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs ONNX Runtime's CUDA build on a machine without a GPU")
    monkeypatch.setattr("shared.onnx_runtime.gpu_present", lambda: True)
    with caplog.at_level(logging.WARNING):
        session = open_session(model / "model.onnx", device="auto")
    assert session.get_providers()[0] == "CPUExecutionProvider"
    assert "runs on CPUExecutionProvider" in caplog.text


def test_an_unknown_device_is_refused(model):
    with pytest.raises(InvalidInput, match="device is 'tpu', expected auto, cpu or cuda") as refusal:
        open_session(model / "model.onnx", device="tpu")
    assert refusal.value.field == "device"


def test_a_session_uses_the_threads_that_it_may(model):
    assert 1 <= available_cpus() <= 4096
    assert (
        open_session(model / "model.onnx", device="cpu").get_session_options().intra_op_num_threads == available_cpus()
    )
    session = open_session(model / "model.onnx", device="cpu", threads=3)
    assert session.get_session_options().intra_op_num_threads == 3


# --- from bytes to bytes -------------------------------------------------------------------------------------------


@pytest.fixture
def photograph() -> bytes:
    return encode(hills(80, 60))


def levels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data)).astype(int)


def test_bytes_are_painted_into_bytes(negative, photograph):
    painting = paint_fast(negative, photograph)
    np.testing.assert_allclose(levels(painting.data), 255 - levels(photograph), atol=1)
    assert list(painting.seconds) == ["decode", "network", "finish", "encode"]
    assert all(0 <= seconds < 60 for seconds in painting.seconds.values())


@pytest.mark.parametrize(("size", "expected"), [(None, (80, 60)), (160, (160, 120)), (48, (48, 36)), (79, (79, 59))])
def test_the_longer_side_is_the_size(negative, photograph, size, expected):
    assert decode(paint_fast(negative, photograph, size=size).data).size == expected


def test_a_size_that_makes_a_side_too_small_is_refused(negative, photograph):
    with pytest.raises(InvalidInput, match="40×30 pixels") as refusal:
        paint_fast(negative, photograph, size=40)
    assert refusal.value.field == "size"


def test_strength_blends_with_the_content(negative, photograph):
    content, painted = levels(photograph), 255 - levels(photograph)
    for strength in (0, 0.25, 1):
        blended = levels(paint_fast(negative, photograph, strength=strength).data)
        np.testing.assert_allclose(blended, (1 - strength) * content + strength * painted, atol=1)


def test_colours_can_be_the_contents(negative, photograph):
    painting = paint_fast(negative, photograph, preserve_color=True)
    chroma = [np.asarray(decode(data).convert("YCbCr")).astype(int)[..., 1:] for data in (painting.data, photograph)]
    plain = np.asarray(decode(paint_fast(negative, photograph).data).convert("YCbCr")).astype(int)[..., 1:]
    kept, lost = (np.abs(other - chroma[1]).mean() for other in (chroma[0], plain))
    assert kept < 0.5 * lost


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_recipe_is_written_into_the_picture(negative, photograph, format):
    data = paint_fast(negative, photograph, format=format, recipe={"Style": "negative"}).data
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == format.upper()
        text = picture.text if format == "png" else json.loads(picture.getexif()[270])
    assert text == {"Style": "negative"}


def test_bytes_that_are_no_picture_are_refused(negative):
    with pytest.raises(PictureError):
        paint_fast(negative, b"no picture")
    with pytest.raises(InvalidInput, match="strength"):
        paint_fast(negative, encode(hills(64, 64)), strength=1.5)


def test_the_picture_that_is_painted_is_the_one_that_was_sent(negative, photograph):
    """Decoded as the library decodes everything, painted at full precision, rounded once."""
    painting = decode(paint_fast(negative, photograph).data)
    expected = 1 - to_array(decode(photograph))
    assert np.abs(to_array(painting) - expected).max() <= 0.5 / 255 + 1e-6
