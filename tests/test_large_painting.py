"""A picture painted in strips is the picture painted whole: no other statistics, no seams, at any size."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from models import write_negative
from PIL import Image
from scenes import strokes

from shared import fast_models
from shared.engines import open_engine
from shared.errors import ModelRefused
from shared.fast_models import MODEL_FILE, SHIPPED, FastModel, read_card
from shared.fast_painting import paint_fast
from shared.images import encode, from_array, to_array
from shared.large_painting import LargePainter

FOLDER = SHIPPED / "udnie"


def model(engine: str) -> FastModel:
    return FastModel(FOLDER, read_card(FOLDER), "cpu", engine)


def painter(engine: str, strip_pixels: int) -> LargePainter:
    def open_graph(graph: bytes):
        return open_engine(graph, engine=engine, threads=1)

    return LargePainter((FOLDER / MODEL_FILE).read_bytes(), open_graph, strip_pixels=strip_pixels)


def in_strips(picture: Image.Image, large: LargePainter, **options: object) -> np.ndarray:
    levels = np.asarray(picture)
    painted = np.zeros_like(levels)

    def write(first: int, rows: np.ndarray) -> None:
        painted[first : first + len(rows)] = rows

    large.paint(*levels.shape[:2], lambda low, high: levels[low:high], write, **options)
    return painted.astype(int)


def whole(picture: Image.Image, engine: str) -> np.ndarray:
    return np.asarray(from_array(model(engine).paint(to_array(picture)))).astype(int)


@pytest.mark.parametrize("size", [(96, 128), (97, 130), (99, 131), (64, 257)], ids=str)
def test_strips_make_the_whole_painting_at_any_size(size):
    picture = strokes(*size)
    difference = np.abs(in_strips(picture, painter("onnxruntime", 1500)) - whole(picture, "onnxruntime"))
    # Activations are kept as float16 between the layers: a level at a few of the pixels.
    assert difference.max() <= 2 and difference.mean() < 0.05


def test_strips_in_bfloat16_are_as_near_as_its_rounding_lets_them():
    picture = strokes(131, 98)
    difference = np.abs(in_strips(picture, painter("openvino", 3000)) - whole(picture, "openvino"))
    assert difference.max() <= 3 and difference.mean() < 0.3


def test_strips_leave_no_seam():
    """Where strips meet, the difference from the whole painting jumps no more than anywhere else."""
    picture, large = strokes(192, 160), painter("onnxruntime", 192 * 16)
    jumps = np.abs(np.diff(in_strips(picture, large) - whole(picture, "onnxruntime"), axis=0)).mean((1, 2))
    seams = [16 * i - 1 for i in range(1, 10)]
    assert jumps[seams].mean() <= 2 * jumps.mean() + 0.01


def test_strips_do_not_change_with_their_number():
    picture = strokes(96, 120)
    few, many = (in_strips(picture, painter("onnxruntime", pixels)) for pixels in (96 * 120, 96 * 8))
    assert np.abs(few - many).max() <= 1


def test_progress_counts_every_strip_to_the_end():
    told = []
    in_strips(strokes(64, 64), painter("onnxruntime", 64 * 16), on_strip=lambda *both: told.append(both))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert {total for _, total in told} == {len(told)} and len(told) > 16


def test_a_network_of_another_kind_is_refused(tmp_path):
    data = (write_negative(tmp_path, "negative") / MODEL_FILE).read_bytes()
    with pytest.raises(ModelRefused, match="cannot paint large pictures"):
        LargePainter(data, lambda graph: open_engine(graph))


def test_a_model_that_is_replaced_or_removed_still_paints_large_pictures_itself(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "udnie")
    kept = FastModel(folder, read_card(folder), "cpu", "onnxruntime")
    _ = kept.running  # as a service opens it when it takes the model
    shutil.copy(SHIPPED / "the-scream" / MODEL_FILE, folder)
    picture = strokes(64, 80)
    assert np.abs(in_strips(picture, kept.large) - whole(picture, "onnxruntime")).max() <= 2
    gone = FastModel(folder, kept.card, "cpu", "onnxruntime")
    _ = gone.running
    shutil.rmtree(folder)
    assert in_strips(picture, gone.large).any()


@pytest.mark.parametrize("options", [{}, {"strength": 0.5, "preserve_color": True}], ids=["plain", "finished"])
def test_what_takes_too_much_memory_is_painted_in_strips(monkeypatch, options):
    data, told = encode(strokes(90, 75)), []
    usual = paint_fast(model("onnxruntime"), data, **options)
    monkeypatch.setattr(fast_models, "WHOLE_BYTES", 90 * 75 * 700 - 1)
    large = paint_fast(model("onnxruntime"), data, on_strip=lambda *both: told.append(both), **options)
    first, second = (np.asarray(Image.open(io.BytesIO(each.data))).astype(int) for each in (usual, large))
    assert told and np.abs(first - second).max() <= 2
    told.clear()
    monkeypatch.setattr(fast_models, "WHOLE_BYTES", 90 * 75 * 700)
    paint_fast(model("onnxruntime"), data, on_strip=lambda *both: told.append(both))
    assert not told
