"""An evaluation measures what it says, goes on where it was interrupted, and tells the same on its page and as data."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import read_raw_card, write_card, write_negative
from scenes import hills, strokes, write_hills
from typer.testing import CliRunner, Result

from shared.devices import pick_dtype
from shared.encoders import Encoder
from shared.errors import InvalidInput, WeightsUnavailable
from shared.fast_models import ModelLibrary, read_card
from shared.files import sha256
from shared.galleries import open_gallery
from shared.images import decode, resize, to_tensor
from shared.optimizer import OptimizerSettings, StylePicture, optimize
from shared.perceptual_loss import LossSettings, PerceptualLoss
from training import evaluation, report
from training.cli import app
from training.content_pictures import ContentPictures
from training.evaluation import (
    Colours,
    EvaluationSettings,
    Lpips,
    border_profile,
    colour_distance,
    find_pictures,
    latencies,
    open_lpips,
    pick_contents,
    raster_peak,
    to_lab,
)
from training.reference import marks_up_to, steps_as_good

SIZE = 64
LOSS = LossSettings(style_weight=3.0, tv_weight=0.5)
MALICE = "<script>alert('x')</script>"


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def lienzo_evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", "--device", "cpu", "--no-lpips", *map(str, arguments)])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Contents in two folders, one with a title of malice; three style pictures; four models that paint the negative.

    ``one`` learned from one picture, ``two`` from two and bears a title of malice; the style picture of ``lost`` is
    nowhere, and one of the two of ``half`` is.
    """
    folder = tmp_path_factory.mktemp("evaluation")
    for seed, name in enumerate(("paintings", "photographs")):
        (folder / name).mkdir()
        for i in range(3):
            hills(96, 80, seed=10 * seed + i).save(folder / name / f"{i}.png")
    (folder / "paintings" / "metadata.csv").write_text(
        "file,title\n" + "".join(f'{i}.png,"{MALICE}"\n' for i in range(3))
    )
    (folder / "styles" / "below").mkdir(parents=True)
    files = [folder / "styles" / "a.png", folder / "styles" / "below" / "b.png", folder / "styles" / "c.png"]
    for i, file in enumerate(files):
        strokes(90, 70, seed=i).save(file)
    a, b, _ = (sha256(file) for file in files)
    training = {"loss": LOSS.as_dict(), "style_size": SIZE}
    for slug, hashes, name in (
        ("one", [a], "One"),
        ("two", [a, b], MALICE),
        ("half", [b, "2" * 64], "Half"),
        ("lost", ["1" * 64], "Lost"),
    ):
        styles = [{"title": f"{name} {i}", "artist": "Nobody", "sha256": digest} for i, digest in enumerate(hashes)]
        write_negative(folder / "models", slug, name=name, styles=styles, training=training)
    return folder


def options(place: Path, output: Path, *more: object) -> list[object]:
    contents = ["--content", place / "paintings", "--content", place / "photographs"]
    return ["-o", output, "--models", place / "models", "--styles", place / "styles", *contents, "--size", SIZE, *more]


@pytest.fixture(scope="module")
def written(place, vgg19_weights, tmp_path_factory) -> Path:
    """The report of three pairs and the reference after 2 and 3 steps; read only."""
    output = tmp_path_factory.mktemp("report")
    result = lienzo_evaluate(*options(place, output, "--pairs", 3, "--marks", "2,3"))
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def record(written) -> dict:
    return json.loads((written / "evaluation.json").read_text())


def model_of(record: dict, slug: str) -> dict:
    return next(model for model in record["models"] if model["slug"] == slug)


# --- the report ----------------------------------------------------------------------------------------------------


def test_the_report_is_whole_and_nothing_else_is_left(written):
    names = {path.name for path in written.iterdir()}
    assert names == {"report.html", "evaluation.json", "table.md", "sheet-1.jpg", "reference"}
    # The styles a, b, and a with b, on three contents each; the contents' own files are no style.
    assert len(list((written / "reference").iterdir())) == 9
    width, height = decode(written / "sheet-1.jpg").size
    assert width > 5 * SIZE and height > 4 * SIZE


def markdown_rows(written: Path) -> tuple[list[str], dict[str, list[str]]]:
    lines = [line for line in (written / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return cells[0], {row[0]: row for row in cells[2:]}


def test_the_table_says_what_the_record_says(written, record):
    headings, rows = markdown_rows(written)
    assert list(rows) == [model["slug"] for model in record["models"]] == ["half", "lost", "one", "two"]
    for model in record["models"]:
        row = dict(zip(headings, rows[model["slug"]], strict=True))
        assert row["border"] == f"{model['border']:.2f}" and "LPIPS" not in row
        assert row["raster"] == f"{model['raster']:.2f} ({model['raster_of_content']:.2f})"
        assert row["ms at 512"] == f"{1000 * model['seconds']['512']:.0f}"
        assert row["parameters"] == "1" and row["MB"] == f"{model['bytes'] / 1e6:.2f}"
        if model["slug"] == "lost":
            assert {row[name] for name in ("total loss", "style", "reference 2", "as good as", "colour to style")} == {
                "–"
            }
            continue
        for heading, term in (("total loss", "total"), ("content", "content"), ("style", "style"), ("tv", "tv")):
            assert row[heading] == f"{model['losses'][term]:.3g}"
        for mark in ("2", "3"):
            found = model["reference"][mark]
            assert row[f"reference {mark}"] == f"{found['losses']['total']:.3g} ({found['share']:.0%})"
        assert row["as good as"] == {None: "> 3", 2: "≤ 2", 3: "3"}[model["equals_steps"]]


def test_the_page_has_the_same_cells_as_the_table(written):
    headings, rows = markdown_rows(written)
    page = (written / "report.html").read_text()
    body = re.search(r"<tbody>(.*?)</tbody>", page, re.DOTALL)[1]
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", body)
    assert [cell.replace("&gt;", ">") for cell in cells] == [cell for row in rows.values() for cell in row]
    assert all(f"<dt>{heading}</dt>" in page for heading in headings)


def test_a_models_numbers_are_medians_over_its_pairs(record):
    assert len(record["contents"]) == 3
    for model in record["models"]:
        assert [pair["content"] for pair in model["pairs"]] == [content["title"] for content in record["contents"]]
        for name in ("raster", "raster_of_content", "colour_between_sizes"):
            assert model[name] == statistics.median(pair[name] for pair in model["pairs"])
        assert model["border"] == max(model["border_profile"])
        for term, value in model["losses"].items():
            assert value == statistics.median(pair["losses"][term] for pair in model["pairs"])
        totals = {}
        for mark, found in (model["reference"] or {}).items():
            of_pairs = [pair["reference"][mark]["total"] for pair in model["pairs"]]
            totals[mark] = statistics.median(of_pairs)
            assert found["losses"]["total"] == totals[mark]
            better = [pair["losses"]["total"] <= total for pair, total in zip(model["pairs"], of_pairs, strict=True)]
            assert found["share"] == sum(better) / 3
        if totals:
            as_good = [int(mark) for mark in sorted(totals) if totals[mark] <= model["losses"]["total"]]
            assert model["equals_steps"] == (as_good[0] if as_good else None)


def test_losses_are_those_of_the_negative_at_the_cards_weights(place, record, encoder):
    judge = PerceptualLoss(encoder, LOSS)
    contents = pick_contents([open_gallery(place / name) for name in ("paintings", "photographs")], 3, SIZE)
    files = {"one": ["a.png"], "two": ["a.png", "below/b.png"], "half": ["below/b.png"]}
    for slug, names in files.items():
        styles = [to_tensor(resize(decode(place / "styles" / name), SIZE)) for name in names]
        target = judge.style_target(styles)
        for pair, content in zip(model_of(record, slug)["pairs"], contents, strict=True):
            with torch.no_grad():
                expected = judge(1 - content.picture, judge.content_target(content.picture), target).values()
            assert pair["losses"] == pytest.approx(expected, rel=1e-3), slug


def test_the_reference_is_the_optimiser_from_noise_on_the_mean_of_the_styles(place, vgg19, encoder, tmp_path):
    """Like the comparison on the cards; judged here by the loss of its last evaluation's picture."""
    (content,) = pick_contents([open_gallery(place / "photographs")], 1, SIZE)
    styles = [to_tensor(resize(decode(place / "styles" / name), SIZE)) for name in ("a.png", "below/b.png")]
    judge = PerceptualLoss(encoder, LOSS)
    target = judge.style_target(styles)
    mean = [judge.style_target(style).grams["relu3_1"] for style in styles]
    torch.testing.assert_close(target.grams["relu3_1"], sum(mean) / 2)
    library = ModelLibrary([place / "models"], device="cpu")
    found = evaluation.evaluate(
        [library["two"]],
        [content],
        find_pictures([style.sha256 for style in library["two"].card.styles], [place / "styles"]),
        EvaluationSettings(size=SIZE, marks=(4,), seed=5, device="cpu", lpips=False),
        tmp_path,
    )
    pictures = []
    settings = OptimizerSettings(
        steps=4, start="uniform", scales=1, learning_rate=0.02, final_rate=1.0, seed=5, loss=LOSS
    )
    optimize(
        content.picture,
        [StylePicture(style) for style in styles],
        Encoder(vgg19, dtype=pick_dtype("auto", "cpu")),
        settings,
        on_iteration=lambda iteration: pictures.append(iteration.picture()),
    )
    with torch.no_grad():
        expected = judge(pictures[-1], judge.content_target(content.picture), target).values()
    (model,) = found.models
    assert model.reference[4].losses == pytest.approx(expected, rel=2e-2)
    assert model.pairs[0].reference == {4: model.reference[4].losses}


def test_what_was_not_found_is_said(written, record):
    notes = {model["slug"]: model["notes"] for model in record["models"]}
    assert notes["one"] == notes["two"] == []
    assert notes["lost"] == ["lost was measured without losses: none of its style pictures was found."]
    assert notes["half"] == ["half was measured against 1 of its 2 style pictures."]
    for text in (notes["lost"][0], notes["half"][0]):
        assert text in (written / "report.html").read_text() and text in (written / "table.md").read_text()
    lost = model_of(record, "lost")
    assert lost["losses"] == {} and lost["reference"] is None and lost["colour_to_style"] is None
    assert lost["border"] == pytest.approx(1, abs=1e-3) and [style["found"] for style in lost["styles"]] == [False]
    assert [style["found"] for style in model_of(record, "half")["styles"]] == [True, False]


def test_the_page_escapes_what_others_wrote_and_loads_nothing(written, record):
    page = (written / "report.html").read_text()
    assert model_of(record, "two")["name"] == MALICE and MALICE in {c["title"] for c in record["contents"]}
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3  # the card's name, its style's title, and a content
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {"sheet-1.jpg", "evaluation.json", "table.md"} <= set(links)
    assert all(link.startswith("#") or (written / link).is_file() for link in links)
    assert not re.search(r"@import|url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len({name.partition("-")[0] for name in ids}) == 2, "two figures"
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_contents_are_taken_evenly(record):
    assert [content["source"] for content in record["contents"]] == ["paintings", "photographs", "paintings"]


# --- the cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def again(written, tmp_path) -> Path:
    """A copy of the report's folder without the report: what an interrupted evaluation leaves."""
    shutil.copytree(written / "reference", tmp_path / "again" / "reference")
    return tmp_path / "again"


@pytest.fixture
def descents(monkeypatch) -> list[int]:
    """The last step of each descent of the reference that is really made."""
    made, really = [], evaluation.reference_losses

    def counted(*arguments, **more):
        made.append(max(arguments[6]))
        return really(*arguments, **more)

    monkeypatch.setattr(evaluation, "reference_losses", counted)
    return made


def only_one(place: Path, output: Path, marks: str) -> dict:
    result = lienzo_evaluate(*options(place, output, "--pairs", 3, "--marks", marks, "--only", "one"))
    assert result.exit_code == 0, result.output
    return json.loads((output / "evaluation.json").read_text())["models"][0]


def test_what_was_measured_is_not_measured_again(place, again, descents, record):
    assert only_one(place, again, "2,3")["reference"] == model_of(record, "one")["reference"]
    assert only_one(place, again, "2")["pairs"][0]["reference"].keys() == {"2"}
    assert descents == []


def test_only_what_is_missing_or_damaged_is_measured_again(place, again, descents, record):
    for i, file in enumerate(sorted((again / "reference").iterdir())[:8]):
        file.write_text('{"losses": ') if i % 2 else file.unlink()
    found = only_one(place, again, "2,3")
    assert 2 <= len(descents) <= 3
    assert found["reference"]["3"]["losses"] == pytest.approx(model_of(record, "one")["reference"]["3"]["losses"])


def test_the_comparison_goes_into_the_cards_that_ask_for_it(place, again, tmp_path, record):
    models = tmp_path / "models"
    shutil.copytree(place / "models", models)
    before = {folder.name: read_card(folder) for folder in models.iterdir()}
    arguments = ["--models", models, "--pairs", 3, "--marks", "2,3", "--cards"]
    result = lienzo_evaluate(*options(place, again)[:2], *options(place, again)[4:], *arguments)
    assert result.exit_code == 0, result.output
    for slug, old in before.items():
        measured, card = model_of(record, slug), read_card(models / slug)
        assert card.model_copy(update={"reference": old.reference}) == old, "nothing else has changed"
        if measured["reference"] is None:
            assert card.reference == old.reference, slug
            continue
        assert (card.reference.pairs, card.reference.size) == (3, SIZE)
        assert card.reference.network_total == pytest.approx(measured["losses"]["total"])
        assert card.reference.equals_steps == measured["equals_steps"]
        expected = {step: mark["losses"]["total"] for step, mark in measured["reference"].items()}
        assert card.reference.optimizer_total == pytest.approx(expected)


@pytest.mark.slow
def test_more_steps_are_another_descent(place, again, descents, record):
    found = only_one(place, again, "4")
    assert descents == [4, 4, 4] and found["reference"].keys() == {"4"}
    assert only_one(place, again, "2,3,4")["reference"]["2"] == model_of(record, "one")["reference"]["2"]
    assert len(descents) == 3, "the older steps were kept"


@pytest.mark.slow
def test_another_network_of_the_same_style_costs_nothing(place, again, descents, tmp_path, record):
    card = read_raw_card(place / "models" / "one")
    write_negative(tmp_path / "models", "quarter", name="Another", styles=card["styles"], training=card["training"])
    arguments = options(
        place, again, "--pairs", 3, "--marks", "3", "--models", tmp_path / "models", "--only", "quarter"
    )
    assert lienzo_evaluate(*arguments).exit_code == 0
    assert descents == []
    write_card(tmp_path / "models" / "quarter", read_raw_card(tmp_path / "models" / "quarter") | {
        "training": card["training"] | {"loss": LossSettings().as_dict()}
    })  # fmt: skip
    assert lienzo_evaluate(*arguments).exit_code == 0
    assert descents == [3, 3, 3], "other weights are another reference"


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_and_has_written_no_report(place, tmp_path, monkeypatch):
    made, really = [], evaluation.reference_losses

    def interrupted(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return really(*arguments)

    monkeypatch.setattr(evaluation, "reference_losses", interrupted)
    arguments = options(place, tmp_path / "out", "--pairs", 3, "--marks", 2, "--only", "one")
    assert lienzo_evaluate(*arguments).exit_code == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["reference"]
    assert len(list((tmp_path / "out" / "reference").iterdir())) == 2
    made.clear()
    assert lienzo_evaluate(*arguments).exit_code == 0
    assert len(made) == 1


def test_the_marks_on_the_way():
    assert marks_up_to(120) == (25, 50, 75, 100, 120) and marks_up_to(25) == (25,) and marks_up_to(3) == (3,)
    assert [steps_as_good(total, {50: 2.0, 25: 3.0}) for total in (4.0, 3.0, 2.5, 1.0)] == [25, 25, 50, None]


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [("--no-reference",), ("--marks", "0")], ids=str)
def test_without_a_reference_there_is_none(place, tmp_path, descents, without):
    result = lienzo_evaluate(*options(place, tmp_path, "--pairs", 1, *without, "--only", "one", "--only", "lost"))
    assert result.exit_code == 0, result.output
    assert "total loss" in result.stdout and "lost was measured without losses" in result.stdout
    assert descents == [] and not (tmp_path / "reference").exists()
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert [model["slug"] for model in found["models"]] == ["one", "lost"]
    assert found["models"][0]["losses"]["total"] > 0 and found["models"][0]["reference"] is None
    assert "reference" not in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", 31], "size is 31, expected 32 to 1024"),
        (["--size", 4096], "size is 4096"),
        (["--marks", "a"], "'a' is no list of steps"),
        (["--marks", "-5"], "a mark is -5"),
        (["--marks", "9999"], "a mark is 9999, expected 1 to 5000"),
        (["--only", "nobody"], "there is no fast style 'nobody'"),
        (["--content", "nowhere"], "no gallery folder nowhere"),
        (["--styles", "nowhere"], "'nowhere' is not a folder"),
        (["--models", "nowhere"], "the model folder 'nowhere' does not exist"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_nothing_is_written(place, tmp_path, more, message):
    result = lienzo_evaluate(*options(place, tmp_path / "out", *more))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_no_model_is_refused(place, tmp_path):
    (tmp_path / "empty").mkdir()
    result = lienzo_evaluate("-o", tmp_path / "out", "--models", tmp_path / "empty")
    assert result.exit_code == 2 and "there is no fast model in" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_report_is_refused(place, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = lienzo_evaluate(*options(place, tmp_path / "out", "--no-reference", "--pairs", 1))
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert (tmp_path / "out").read_text() == "mine"


# --- what is painted -----------------------------------------------------------------------------------------------


def test_contents_are_drawn_by_the_seed_and_crops_from_the_middle(place):
    galleries = [open_gallery(place / "paintings"), open_gallery(place / "photographs")]
    first, same = (pick_contents(galleries, 6, SIZE, seed=1) for _ in range(2))
    assert [c.source for c in first] == ["paintings", "photographs"] * 3
    assert all(torch.equal(a.picture, b.picture) for a, b in zip(first, same, strict=True))
    orders = {tuple(c.picture.mean().item() for c in pick_contents(galleries, 6, SIZE, seed=s)) for s in range(5)}
    assert len(orders) > 1
    for content in first:
        assert content.picture.shape == (1, 3, SIZE, SIZE) and content.larger.shape == (1, 3, 96, 96)
    crops = [ContentPictures((p.path,), crop=SIZE, batch=1).centre_crops() for p in galleries[1].pictures]
    assert any(torch.equal(first[1].picture, crop) for crop in crops)
    assert len(pick_contents(galleries, 50, SIZE)) == 6, "no more than there are"


def test_no_picture_is_painted_twice_and_no_style_picture_at_all(tmp_path):
    paths = write_hills(tmp_path / "folder", 3)
    (tmp_path / "folder" / "damaged.png").write_bytes(paths[0].read_bytes()[:200])
    gallery = open_gallery(tmp_path / "folder")
    found = pick_contents([gallery, gallery], 10, SIZE, leave_out={sha256(paths[1])})
    assert sorted(content.title for content in found) == sorted(gallery.pictures[i].title for i in (0, 2))
    with pytest.raises(InvalidInput, match="no content picture that can be read"):
        pick_contents([gallery], 10, SIZE, leave_out={sha256(path) for path in paths})


def test_style_pictures_are_found_by_their_hash(place):
    wanted = {sha256(place / "styles" / "below" / "b.png"), "1" * 64}
    assert find_pictures(wanted, [place / "styles"]) == {min(wanted - {"1" * 64}): place / "styles" / "below" / "b.png"}
    assert find_pictures(wanted, []) == {}


# --- the border ----------------------------------------------------------------------------------------------------


def content_of(size: int) -> torch.Tensor:
    return to_tensor(hills(size, size, seed=3)) * 0.8 + 0.2 * picture(size, size)


def framed(first: int, last: int, by: float):
    """Paints the negative, and a frame in it from one depth to another."""

    def paint(pictures: torch.Tensor) -> torch.Tensor:
        painted = 1 - pictures
        depth = evaluation._depth(*pictures.shape[-2:])
        painted[..., (depth >= first) & (depth < last)] += by
        return painted

    return paint


def test_a_network_without_a_border_of_its_own_draws_no_frame():
    assert border_profile(lambda pictures: 1 - pictures, content_of(128)) == pytest.approx([1] * 4, abs=0.01)


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("by", [0.1, -0.1])
def test_a_frame_is_seen_where_it_is(ring, by):
    profile = border_profile(framed(4 * ring, 4 * ring + 4, by), content_of(128))
    assert profile[ring] > 1.2
    assert [value for i, value in enumerate(profile) if i != ring] == pytest.approx([1] * 3, abs=0.01)


def test_a_stronger_frame_counts_more_and_a_change_everywhere_nothing():
    weak, strong = (border_profile(framed(0, 4, by), content_of(128))[0] for by in (0.05, 0.2))
    assert strong > 2 * weak
    darker = border_profile(lambda pictures: 0.5 * (1 - pictures), content_of(128))
    assert darker == pytest.approx([1] * 4, abs=0.01)


@pytest.mark.parametrize(("height", "width", "rings"), [(32, 32, 1), (45, 70, 1), (64, 64, 2), (130, 200, 4)])
def test_small_pictures_have_narrow_frames(height, width, rings):
    profile = border_profile(framed(0, 4, 0.3), picture(height, width))
    assert len(profile) == rings and profile[0] > 1.2


def test_a_content_of_one_colour_has_a_border_too():
    assert border_profile(lambda pictures: 1 - pictures, torch.full((1, 3, 64, 64), 0.4)) == pytest.approx([1, 1])
    assert border_profile(framed(0, 4, 0.1), torch.full((1, 3, 64, 64), 0.4))[0] > 5


# --- the raster ----------------------------------------------------------------------------------------------------


def test_noise_has_no_raster():
    assert statistics.mean(raster_peak(picture(128, 128, seed)) for seed in range(10)) == pytest.approx(1, abs=0.15)


def falling_noise(side: int, seed: int) -> torch.Tensor:
    """Noise whose amplitude falls with the frequency, as that of natural pictures does."""
    down, across = torch.meshgrid(torch.fft.fftfreq(side), torch.fft.fftfreq(side), indexing="ij")
    spectrum = torch.fft.fft2(picture(side, side, seed) - 0.5) / (down.square() + across.square() + side**-2).sqrt()
    return torch.fft.ifft2(spectrum).real


def test_a_slope_of_the_spectrum_is_no_raster():
    assert statistics.mean(raster_peak(falling_noise(128, seed)) for seed in range(10)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("period", [2, 4])
@pytest.mark.parametrize("direction", ["down", "across", "checkerboard"])
def test_a_raster_that_is_hardly_seen_stands_out(period, direction):
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    phase = {"down": rows, "across": columns, "checkerboard": rows + columns}[direction]
    lines = 0.02 * (phase % period == 0).float()
    scene = to_tensor(hills(128, 128)) * 0.9 + 0.05 * picture(128, 128)
    assert raster_peak(scene + lines) > 3 * raster_peak(scene)


@pytest.mark.parametrize("period", [3, 5, 7])
def test_another_period_is_no_raster(period):
    lines = 0.02 * (torch.arange(128) % period == 0).float().expand(1, 3, 128, 128)
    scene = to_tensor(hills(128, 128)) * 0.9 + 0.05 * picture(128, 128)
    assert raster_peak(scene + lines) < 1.5 * raster_peak(scene)


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (256, 40)], ids=str)
def test_every_size_has_a_raster_number(shape):
    assert 0.2 < raster_peak(picture(*shape)) < 4
    assert raster_peak(torch.full((1, 3, *shape), 0.5)) == pytest.approx(1, abs=0.01)


# --- colours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (100, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
    ],
    ids=str,
)
def test_lab_of_known_colours(rgb, lab):
    found = to_lab(torch.tensor(rgb).float().reshape(1, 3, 1, 1))
    np.testing.assert_allclose(found.flatten(), lab, atol=0.05)


def test_the_distance_of_colours():
    a, moved = to_lab(picture(40, 40)), torch.tensor([3.0, 4.0, 12.0]).reshape(1, 3, 1, 1)

    def colours(lab: torch.Tensor) -> Colours:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "to_lab", lambda lab: lab)
            return Colours.of([lab])

    assert colour_distance(colours(a), colours(a)) == pytest.approx(0, abs=1e-2)
    assert colour_distance(colours(a), colours(a + moved)) == pytest.approx(13, rel=1e-3)
    # Spread by a half about its mean: the root of the mean squared distance that each pixel moves.
    mean = a.mean((2, 3), keepdim=True)
    spread = (0.5 * (a - mean)).square().sum(1).mean().sqrt()
    assert colour_distance(colours(a), colours(mean + 1.5 * (a - mean))) == pytest.approx(float(spread), rel=1e-3)


def test_pictures_of_any_size_count_alike_in_a_style():
    small, large = picture(8, 8), 0.3 * picture(50, 50, 1)
    both = Colours.of([small, large])
    expected = (to_lab(small).mean((2, 3)) + to_lab(large).mean((2, 3))) / 2
    torch.testing.assert_close(both.means, expected)


# --- LPIPS ---------------------------------------------------------------------------------------------------------


def test_without_its_network_lpips_is_left_out_and_the_report_says_so(place, tmp_path, monkeypatch):
    really = evaluation.weights.load

    def load(name, **more):
        if name == "vgg16":
            raise WeightsUnavailable("the weights 'vgg16' could not be had.")
        return really(name, **more)

    monkeypatch.setattr(evaluation.weights, "load", load)
    arguments = options(place, tmp_path, "--no-reference", "--pairs", 1, "--only", "lost")
    result = CliRunner().invoke(app, ["evaluate", "--device", "cpu", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "evaluation.json").read_text())
    (note,) = found["notes"]
    assert note.startswith("LPIPS was not measured: VGG-16 could not be had") and found["models"][0]["lpips"] is None
    assert "LPIPS was not measured" in (tmp_path / "report.html").read_text()
    assert "| LPIPS |" not in (tmp_path / "table.md").read_text()


def test_where_lpips_can_be_had_it_is_a_column(place, tmp_path, monkeypatch):
    """The distance is drawn here: the mean absolute difference, 0.5 and less for a negative."""
    monkeypatch.setattr(evaluation, "open_lpips", lambda _: (lambda a, b: float((a - b).abs().mean()), ""))
    arguments = options(place, tmp_path, "--no-reference", "--pairs", 1, "--only", "lost")
    assert CliRunner().invoke(app, ["evaluate", "--device", "cpu", *map(str, arguments)]).exit_code == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    headings, rows = markdown_rows(tmp_path)
    (content,) = pick_contents([open_gallery(place / name) for name in ("paintings", "photographs")], 1, SIZE)
    assert found["models"][0]["lpips"] == pytest.approx(float((1 - 2 * content.picture).abs().mean()), rel=1e-4)
    assert rows["lost"][headings.index("LPIPS")] == f"{found['models'][0]['lpips']:.3f}" and found["notes"] == []


def test_only_what_lpips_needs_may_be_missing(monkeypatch):
    monkeypatch.setattr(evaluation.weights, "load", lambda name, **_: {})

    def missing(name):
        def fail(tensors):
            raise ModuleNotFoundError(name=name)

        monkeypatch.setattr(evaluation, "Lpips", fail)

    missing("torchmetrics")
    assert open_lpips() == (None, "LPIPS was not measured: the package torchmetrics is not installed.")
    missing("another")
    with pytest.raises(ModuleNotFoundError):
        open_lpips()


@pytest.fixture(scope="module")
def vgg16_of_any_weights() -> dict[str, torch.Tensor]:
    """What LPIPS computes is tested with drawn convolutions; the trained ones are half a gigabyte."""
    generator, tensors, inputs = torch.Generator().manual_seed(0), {}, 3
    for name in evaluation.VGG16.convolutions:
        outputs = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}[name[4]]
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.1
        inputs = outputs
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    tensors["input.weight"] = torch.diag(1 / deviation)[:, :, None, None]
    tensors["input.bias"] = -mean / deviation
    return tensors


def test_lpips_looks_through_the_given_network(vgg16_of_any_weights):
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("torchmetrics comes with the extra train")
    measure = Lpips(vgg16_of_any_weights)
    a, b = picture(64, 64), picture(64, 64, 1)
    assert measure(a, a) == pytest.approx(0, abs=1e-6)
    encoder = Encoder(vgg16_of_any_weights, evaluation.VGG16)
    layers = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
    expected = 0.0
    with torch.no_grad():
        found = [encoder(each, layers) for each in (a, b)]
        for layer, linear in zip(layers, measure._network.lins, strict=True):
            x, y = (each[layer] / each[layer].norm(dim=1, keepdim=True) for each in found)
            expected += float(linear((x - y).square()).mean())
    assert measure(a, b) == pytest.approx(expected, rel=1e-2) and expected > 0.01


# --- speed ---------------------------------------------------------------------------------------------------------


def test_models_take_turns_and_a_first_round_is_not_counted(place, monkeypatch):
    models, order = list(ModelLibrary([place / "models"], device="cpu").models.values())[:2], []
    clock = iter(range(1000))
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(clock) ** 2)
    monkeypatch.setattr(
        "shared.fast_models.FastModel.paint", lambda self, pictures: order.append((self.card.slug, pictures.shape[-1]))
    )
    found = latencies(models, [32, 40], rounds=3)
    slugs = [model.card.slug for model in models]
    assert order == [(slug, size) for _ in range(4) for slug in slugs for size in (32, 40)]
    # The clock shows squares, so the i-th reading and the next are 2 i + 1 apart. It is read once a painting in the
    # first round, and twice in the others; the median is that of the second of those.
    for place_in_round, (slug, size) in enumerate(order[:4]):
        assert found[slug][size] == 2 * (4 + 2 * (4 + place_in_round)) + 1


# --- many models ---------------------------------------------------------------------------------------------------


def test_many_models_and_widths_fill_several_sheets_and_one_line_a_style(place, tmp_path):
    library = ModelLibrary([place / "models"], device="cpu")
    (content,) = pick_contents([open_gallery(place / "photographs")], 1, SIZE)
    settings = EvaluationSettings(size=SIZE, marks=(), device="cpu", lpips=False)
    found = evaluation.evaluate([library["lost"]], [content], {}, settings, tmp_path)
    (model,) = found.models
    copies = tuple(
        replace(
            model,
            slug=f"style-{i // 3}-{i}",
            parameters=10**5 * 4 ** (i % 3),
            styles=({"title": f"{i // 3}", "artist": "", "found": False},),
        )
        for i in range(12)
    )
    paintings = {copy.slug: found.paintings["lost"] for copy in copies}
    many = replace(found, models=copies, paintings=paintings)
    sheets = report.contact_sheets(many)
    assert len(sheets) == 3 and sheets[0].width > sheets[2].width
    plot = report.plot_widths(copies)
    assert [f">style-{i}-{3 * i}<" in plot for i in range(4)] == [True] * 4
    (tmp_path / "sheet-9.jpg").write_bytes(b"of an evaluation of more models")
    report.write_report(tmp_path, many, created="2001-02-03")
    assert sorted(path.name for path in tmp_path.glob("sheet-*.jpg")) == [f"sheet-{i}.jpg" for i in (1, 2, 3)]
