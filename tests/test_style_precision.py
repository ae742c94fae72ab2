"""Precision by style label, checked by hand on a few vectors, and the command that measures it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import write_extractor
from PIL import Image
from typer.testing import CliRunner, Result

from shared.errors import InvalidInput
from shared.galleries import open_gallery
from shared.image_encoders import open_encoder
from training import bench_command
from training.style_precision import Labels, difference, embed_pictures, interval, labelled, style_precision


def at(*degrees: float) -> np.ndarray:
    """Rows of length 1 at these angles: the nearer the angles, the nearer by cosine."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


# By angle: two pictures of Ann (style a), one of Bob's (a), then two of Cid's (b) and one of Dan's (b).
ROWS = at(0, 1, 5, 90, 91, 8)
LABELS = Labels(("a", "a", "a", "b", "b", "b"), ("Ann", "ann", "Bob", "Cid", "Cid", "Dan"))


def test_precision_among_all_others_by_hand():
    found = style_precision(ROWS, LABELS, k=2)
    # Two nearest: 0 → 1, 2; 1 → 0, 2; 2 → 5, 1; 3 → 4, 5; 4 → 3, 5; 5 → 2, 1.
    np.testing.assert_array_equal(found.values, [1, 1, 0.5, 1, 1, 0])
    assert found.precision == pytest.approx(4.5 / 6) and found.pictures == 6
    assert found.chance == pytest.approx(2 / 5) and found.ceiling == 1
    assert found.by_style == {"a": (pytest.approx(2.5 / 3), 3), "b": (pytest.approx(2 / 3), 3)}


def test_precision_among_other_artists_by_hand():
    found = style_precision(ROWS, LABELS, k=2, other_artists=True)
    # Two nearest: 0 → 2, 5; 1 → 2, 5; 2 → 5, 1; 3 → 5, 2; 4 → 5, 2; 5 → 2, 1.
    np.testing.assert_array_equal(found.values, [0.5, 0.5, 0.5, 0.5, 0.5, 0])
    # Candidates of one's style, of all: 1 of 4, 1 of 4, 2 of 5, 1 of 4, 1 of 4, 2 of 5.
    assert found.chance == pytest.approx((4 / 4 + 2 * 2 / 5) / 6)
    assert found.ceiling == pytest.approx((4 * 0.5 + 2) / 6)


def test_pictures_that_nothing_could_be_found_for_do_not_count():
    labels = Labels(("a", "a", "a", "b", "b", "c"), ("Ann", "ann", "Bob", "Cid", "Cid", "Dan"))
    among_all, among_others = (style_precision(ROWS, labels, k=2, other_artists=others) for others in (False, True))
    assert (among_all.pictures, among_others.pictures) == (5, 3)
    assert set(among_all.by_style) == {"a", "b"} and set(among_others.by_style) == {"a"}
    assert np.isnan(among_others.values[3:]).all()
    assert style_precision(ROWS[:2], Labels(("a", "a"), ("Ann", "Ann")), other_artists=True) is None


def test_unknown_artists_are_nobody_elses():
    labels = Labels(("a", "a", "b", "b"), ("", "", "", ""))
    rows = at(0, 1, 50, 51)
    assert style_precision(rows, labels, k=1, other_artists=True).precision == 1
    assert style_precision(rows, labels, k=1).precision == 1


def test_fewer_candidates_than_k_are_not_made_up():
    found = style_precision(ROWS, LABELS, k=50)
    assert found.precision == pytest.approx(2 / 50) == found.ceiling


def test_chance_is_what_random_vectors_have():
    rng = np.random.default_rng(0)
    labels = Labels(tuple(rng.choice(list("aaab"), 400)), tuple(str(i // 2) for i in range(400)))
    rows = rng.normal(size=(400, 64))
    found = style_precision(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels, other_artists=True)
    assert found.precision == pytest.approx(found.chance, abs=0.03)
    assert found.low < found.chance < found.high


def test_an_interval_counts_artists_and_not_pictures():
    """Ten artists whose pictures all fare alike say no more than ten pictures."""
    rng = np.random.default_rng(0)
    fates = rng.random(10)
    one, many = (
        Labels(("a",) * (10 * each), tuple(f"artist {i // each}" for i in range(10 * each))) for each in (1, 20)
    )
    narrow = interval(fates, one)
    assert interval(fates.repeat(20), many) == pytest.approx(narrow)
    assert narrow[0] < fates.mean() < narrow[1]
    assert interval(np.ones(10), one) == (1, 1)
    assert interval(np.append(np.ones(9), np.nan), one) == (1, 1)


def test_a_difference_is_between_the_same_pictures():
    good, bad = (
        style_precision(at(0, 1, 90, 91), LABELS_OF_FOUR, k=1),
        style_precision(at(0, 90, 1, 91), LABELS_OF_FOUR, k=1),
    )
    assert difference(bad, good, LABELS_OF_FOUR) == (1, 1, 1)
    assert difference(good, good, LABELS_OF_FOUR) == (0, 0, 0)


LABELS_OF_FOUR = Labels(("a", "a", "b", "b"), ("Ann", "Bob", "Cid", "Dan"))


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def wikiart(tmp_path) -> Path:
    """Two styles in red and blue, two artists each; a style of one picture; a file that is none."""
    rng = np.random.default_rng(0)
    for style, colour in (("Red_Style", (230, 40, 40)), ("Blue_Style", (40, 40, 230))):
        for i, artist in enumerate(("ann-lee", "bob-ray")):
            for number in range(2):
                levels = np.clip(np.array(colour) + rng.integers(-30, 30, (40, 50, 3)) + 10 * i, 0, 255)
                path = tmp_path / "wikiart" / style / f"{artist}-{style[0].lower()}_work-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(levels.astype(np.uint8)).save(path)
    (tmp_path / "wikiart" / "Lone").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "wikiart" / "Lone" / "cid_black.png")
    (tmp_path / "wikiart" / "Lone" / "dan_broken.png").write_bytes(b"no picture")
    return tmp_path / "wikiart"


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(bench_command.app, ["retrieval", *map(str, arguments)], env={"COLUMNS": "160"})


def test_pictures_are_embedded_once_for_all_encoders(wikiart, tmp_path):
    network = write_extractor(tmp_path / "mean.onnx")
    single, both = (
        open_encoder(spec, device="cpu") for spec in (f"{network}:features", f"{network}:features+{network}:with_one")
    )
    calls = []
    embed = both.parts[0].embed
    for part in (single, both.parts[0]):
        part.embed = lambda pictures: calls.append(len(pictures)) or embed(pictures)
    seen = []
    found = embed_pictures(labelled(open_gallery(wikiart)), [single, both], on_picture=lambda *at: seen.append(at))
    assert calls == [9] and seen == [(10, 10)]
    assert [rows.shape for rows in found.embeddings] == [(9, 3), (9, 7)]
    np.testing.assert_allclose(found.embeddings[1][:, :3] * np.sqrt(2), found.embeddings[0], atol=1e-6)
    assert found.labels.styles.count("Red Style") == 4 and found.labels.artists[0] == "Ann Lee B"
    assert len(found.issues) == 1 and "broken" in found.issues[0]
    assert 0 < found.seconds[0] < found.seconds[1]


def test_the_table_and_the_json(wikiart, tmp_path):
    network, out = write_extractor(tmp_path / "mean.onnx"), tmp_path / "bench.json"
    result = bench(
        *("--gallery", wikiart, "--encoder", network, "--encoder", f"{network}:with_one", "-k", 2, "--json", out)
    )
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["settings"] == {"k": 2, "bootstrap_rounds": 2000}
    assert found["gallery"]["pictures"] == 9 and len(found["issues"]) == 1 and found["machine"]["device"] == "cpu"
    first, second = found["encoders"]
    assert (first["encoder"], first["dimensions"], second["encoder"]) == ("mean.onnx", 3, "mean.onnx:with_one")
    # Colours tell these styles apart, and nothing is left to find for the lone picture.
    for way in ("all", "other artists"):
        assert first["precision"][way]["precision"] == 1 and first["precision"][way]["pictures"] == 8
    assert first["precision"]["other artists"]["chance"] == pytest.approx(2 / 7)
    assert first["above_first"]["all"] == [0, 0, 0]
    for said in ("P@2, all", "P@2, other artists", "mean.onnx:with_one", "Red Style", "best possible"):
        assert said in result.output


def test_without_labels_there_is_nothing_to_measure(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    result = bench("--gallery", tmp_path)
    assert result.exit_code == 2
    assert "0 styles of gallery" in result.stderr and "metadata.csv" in result.stderr
    with pytest.raises(InvalidInput, match="expected at least 2 such styles"):
        labelled(open_gallery(tmp_path))


def test_an_encoder_that_is_missing_is_said_before_anything_is_read(wikiart):
    result = bench("--gallery", wikiart, "--encoder", "gone.onnx")
    assert result.exit_code == 2 and "there is no ONNX file 'gone.onnx'" in result.stderr
