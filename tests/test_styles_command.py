"""``lienzo-train styles``: a network for each cluster, and one that fails stops no other."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from models import write_negative
from scenes import strokes, write_hills
from typer.testing import CliRunner, Result

from shared.errors import InvalidInput, NotFound
from shared.fast_models import Card, ClusterCard, read_card
from shared.files import sha256
from training import ray_tasks, styles_command
from training.cli import app
from training.clusters import NEAREST, Cluster, Clustering, Member
from training.styles_command import StylesFailed, cluster_jobs, picture_jobs, run_jobs, slug_of
from training.train_command import StyleJob, StyleSource

SPACE = "0123456789abcdef"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """Seven drawings, the last of which is none."""
    folder = tmp_path_factory.mktemp("drawn") / "gallery"
    folder.mkdir()
    for i in range(6):
        strokes(64, 48, seed=i).save(folder / f"drawing-{i}.png")
    (folder / "drawing-6.png").write_bytes(b"no picture")
    return folder


def cluster(gallery: Path, id: str, numbers: tuple[int, ...], **changes: object) -> Cluster:
    rng = np.random.default_rng(len(id))
    centre = rng.normal(size=4)
    members = tuple(Member(str(gallery), f"drawing-{i}", round(0.1 * place, 6)) for place, i in enumerate(numbers))
    fields = {
        "id": id, "title": id.title(), "centre": tuple(float(x) for x in (centre / np.linalg.norm(centre)).round(6)),
        "radius": 0.4321, "size": len(members), "medoid": members[0], "nearest": members, "labels": {},
    }  # fmt: skip
    return Cluster(**(fields | changes))


def write_clusters(folder: Path, gallery: Path, *clusters: Cluster) -> Path:
    clustering = Clustering(
        style_space=SPACE, clusters=clusters, silhouettes={}, agreement={}, pictures={str(gallery): 7}, skipped=()
    )
    folder.mkdir(parents=True, exist_ok=True)
    clustering.save(folder / "clusters.json")
    return folder / "clusters.json"


@pytest.fixture
def file(gallery, tmp_path) -> Path:
    """Two clusters, of three pictures and of two."""
    return write_clusters(
        tmp_path / "clusters", gallery, cluster(gallery, "first", (2, 0, 1)), cluster(gallery, "other", (5, 4))
    )


@pytest.fixture
def pattern(tmp_path) -> StyleJob:
    return StyleJob(
        styles=(), content=tmp_path / "content", slug="pattern", output=tmp_path / "models", title="", init="",
        time_budget=None, settings={}, device="cpu", reference_pairs=0, content_credit="", licence="CC0", commit="",
        created="2001-02-03",
    )  # fmt: skip


def lienzo_train(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(result: Result) -> str:
    """The one line that a refusal is, whatever was logged before."""
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.stderr.splitlines()[-1] == line
    return line


# --- the jobs ------------------------------------------------------------------------------------------------------


def test_each_cluster_is_a_job_that_learns_from_its_medoid(file, gallery, pattern):
    first, other = cluster_jobs(file, pattern, members=1)
    assert (first.slug, first.title, other.slug) == ("first", "First", "other")
    assert [style.path for style in first.styles] == [gallery / "drawing-2.png"]
    assert [style.path for style in other.styles] == [gallery / "drawing-5.png"]
    assert first.styles[0].title == "Drawing 2" and other.styles[0].source == ""
    for job in (first, other):
        same = {"content", "output", "licence", "created", "device", "settings"}
        assert all(getattr(job, name) == getattr(pattern, name) for name in same)


def test_a_job_serves_the_cluster_as_it_was_found(file, pattern):
    for job, found in zip(cluster_jobs(file, pattern, members=1), Clustering.load(file).clusters, strict=True):
        assert job.cluster == ClusterCard(id=found.id, style_space=SPACE, centre=found.centre, radius=found.radius)
        assert ClusterCard.model_validate_json(job.cluster.model_dump_json()) == job.cluster


def test_a_job_learns_from_so_many_members_or_as_many_as_there_are(file, gallery, pattern):
    jobs = cluster_jobs(file, pattern, members=3, source="drawn")
    assert [[style.path.stem for style in job.styles] for job in jobs] == [
        ["drawing-2", "drawing-0", "drawing-1"],
        ["drawing-5", "drawing-4"],
    ]
    assert {style.source for job in jobs for style in job.styles} == {"drawn"}


def test_only_some_clusters_are_taken(file, pattern):
    assert [job.slug for job in cluster_jobs(file, pattern, members=1, only=["other"])] == ["other"]
    with pytest.raises(InvalidInput, match="no cluster 'third'") as refusal:
        cluster_jobs(file, pattern, members=1, only=["other", "third"])
    assert refusal.value.field == "only" and "first, other" in refusal.value.hint


@pytest.mark.parametrize("members", [0, -1, NEAREST + 1])
def test_a_number_of_members_that_no_cluster_can_name_is_refused(file, pattern, members):
    with pytest.raises(InvalidInput, match=f"members is {members}, expected 1 to {NEAREST}") as refusal:
        cluster_jobs(file, pattern, members=members)
    assert refusal.value.field == "members"


def test_a_picture_that_is_not_in_the_gallery_any_more_is_named(gallery, pattern, tmp_path):
    gone = Member(str(gallery), "drawing-9", 0.0)
    file = write_clusters(tmp_path / "c", gallery, cluster(gallery, "gone", (0,), medoid=gone, nearest=(gone,)))
    with pytest.raises(NotFound, match="drawing-9"):
        cluster_jobs(file, pattern, members=1)


def test_only_galleries_that_are_needed_are_opened(gallery, pattern, tmp_path):
    away = Member(str(tmp_path / "away"), "drawing-0", 0.0)
    file = write_clusters(
        tmp_path / "c", gallery, cluster(gallery, "here", (0,)), cluster(gallery, "there", (1,), nearest=(away,))
    )
    assert len(cluster_jobs(file, pattern, members=1, only=["here"])) == 1
    with pytest.raises(Exception, match="away"):
        cluster_jobs(file, pattern, members=1)


def test_a_long_title_fits_the_card(gallery, pattern, tmp_path):
    file = write_clusters(tmp_path / "c", gallery, cluster(gallery, "long", (0,), title="x" * 300))
    (job,) = cluster_jobs(file, pattern, members=1)
    assert job.title == "x" * 120


# --- what is done --------------------------------------------------------------------------------------------------


def write_model(job: StyleJob, **changes: object) -> Card:
    """The model of a job, as an export would leave it."""
    fields = {"name": job.title, "cluster": job.cluster.model_dump(mode="json")} | changes
    return read_card(write_negative(job.output, job.slug, **fields))


def test_clusters_that_have_their_network_are_left_out(file, pattern):
    first, _ = cluster_jobs(file, pattern, members=1)
    write_model(first)
    assert [job.slug for job in cluster_jobs(file, pattern, members=1)] == ["other"]
    assert [job.slug for job in cluster_jobs(file, pattern, members=1, skip_done=False)] == ["first", "other"]
    with (pattern.output / "first" / "model.onnx").open("ab") as model:
        model.write(b"one byte more")
    assert len(cluster_jobs(file, pattern, members=1)) == 2, "a damaged model is none"


@pytest.mark.parametrize(
    "change", [{"style_space": "f" * 16}, {"radius": 0.5}, {"centre": (1.0, 0.0, 0.0, 0.0)}], ids=str
)
def test_a_network_of_another_clustering_does_not_count(file, pattern, change):
    first, _ = cluster_jobs(file, pattern, members=1)
    write_model(first, cluster=first.cluster.model_copy(update=change).model_dump(mode="json"))
    assert [job.slug for job in cluster_jobs(file, pattern, members=1)] == ["first", "other"]


# --- pictures ------------------------------------------------------------------------------------------------------


def test_each_picture_is_a_job_named_after_its_file(gallery, pattern, tmp_path):
    strokes(40, 40).save(tmp_path / "claude-monet_Water Lilies.png")
    jobs = picture_jobs([tmp_path / "claude-monet_Water Lilies.png", gallery], pattern, source="drawn")
    assert [job.slug for job in jobs] == ["water-lilies", *(f"drawing-{i}" for i in range(7))]
    assert jobs[0].styles == (StyleSource(tmp_path / "claude-monet_Water Lilies.png", source="drawn"),)
    assert all(job.cluster is None and len(job.styles) == 1 for job in jobs)


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("The Great Wave off Kanagawa", "the-great-wave-off-kanagawa"),
        ("Café — Nuit!", "cafe-nuit"),
        ("x" * 80, "x" * 64),
    ],
)
def test_slugs(title, slug):
    assert slug_of(title) == slug


def test_a_title_without_a_letter_is_refused():
    with pytest.raises(InvalidInput, match="leaves no slug"):
        slug_of("神奈川")


# --- one after the other -------------------------------------------------------------------------------------------


@pytest.fixture
def training(monkeypatch):
    """Jobs are run by writing their model at once; those whose slug is in the list fail."""
    failing: list[str] = []

    def run(job: StyleJob) -> Card:
        if job.slug in failing:
            raise OSError(28, "No space left on device")
        return write_model(job)

    monkeypatch.setattr(styles_command, "run_style_job", run)
    return failing


def test_a_cluster_that_fails_does_not_stop_the_others(file, pattern, training, caplog):
    training.append("first")
    done = run_jobs(cluster_jobs(file, pattern, members=1), engine="local")
    assert next(done).slug == "other"
    with pytest.raises(StylesFailed, match=r"1 of 2 clusters have no network; 'first': .*No space left") as failure:
        next(done)
    assert "run the same command again" in failure.value.hint and failure.value.code == "styles_failed"
    assert "first" in caplog.text
    training.clear()
    assert [card.slug for card in run_jobs(cluster_jobs(file, pattern, members=1), engine="local")] == ["first"]


def test_all_failures_are_counted(file, pattern, training):
    training += ["first", "other"]
    with pytest.raises(StylesFailed, match=r"2 of 2 clusters have no network; 'first': .* \(and 1 more failed\)"):
        list(run_jobs(cluster_jobs(file, pattern, members=1), engine="local"))


def test_workers_of_torchrun_but_the_first_have_no_card(file, pattern, monkeypatch):
    monkeypatch.setattr(styles_command, "run_style_job", lambda job: None)
    assert list(run_jobs(cluster_jobs(file, pattern, members=1), engine="local")) == []


@pytest.mark.parametrize(
    ("options", "message"), [({"engine": "spark"}, "engine is 'spark', expected one of local, ray"),
                             ({"engine": "ray", "workers": 0}, "workers is 0, expected at least 1")],
)  # fmt: skip
def test_an_engine_that_there_is_not_is_refused(file, pattern, options, message):
    with pytest.raises(InvalidInput, match=message) as refusal:
        list(run_jobs(cluster_jobs(file, pattern, members=1), **options))
    assert refusal.value.field in options


def test_ray_that_is_not_installed_is_named_with_its_extra(file, pattern, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match="needs the package 'ray'") as refusal:
        list(run_jobs(cluster_jobs(file, pattern, members=1), engine="ray"))
    assert ".[ray]" in refusal.value.hint


# --- the command ---------------------------------------------------------------------------------------------------


def styles_arguments(file: Path, pattern: StyleJob, *more: object) -> list[object]:
    return ["styles", "--clusters", file, "--content", pattern.content, "-o", pattern.output, *more]


def test_the_command_trains_what_is_left_and_says_so(file, pattern, training, monkeypatch):
    monkeypatch.setattr(
        styles_command, "run_style_job", lambda job: write_model(job, training={"steps": 7, "seconds": 9})
    )
    arguments = styles_arguments(file, pattern)
    result = lienzo_train(*arguments, "--only", "other")
    assert result.exit_code == 0 and result.stdout.splitlines()[0] == "other: 7 steps in 9 s", result.output
    assert lienzo_train(*arguments).stdout.startswith("first: 7 steps")
    again = lienzo_train(*arguments)
    assert again.exit_code == 0 and "every cluster has its network" in again.stdout
    card = read_card(pattern.output / "first")
    assert card.cluster.style_space == SPACE and card.cluster.radius == 0.4321


def test_the_options_reach_the_jobs(file, pattern, monkeypatch):
    jobs = []
    monkeypatch.setattr(styles_command, "run_style_job", lambda job: jobs.append(job) or write_model(job))
    options = [
        "--members", 2, "--steps", 5, "--optimizer", "adam", "--ema", 0, "--target", "random", "--patience", 3,
        "--accumulate", 2, "--style-weight", 3, "--time-budget", "15m", "--init", "udnie", "--source", "drawn",
    ]  # fmt: skip
    assert lienzo_train(*styles_arguments(file, pattern, *options)).exit_code == 0
    for job in jobs:
        assert len(job.styles) == 2 and job.styles[0].source == "drawn" and job.init == "udnie"
        assert job.time_budget == 900 and job.settings["loss"].style_weight == 3
        expected = {"steps": 5, "optimizer": "adam", "ema": 0, "target": "random", "patience": 3, "accumulate": 2}
        assert {name: job.settings[name] for name in expected} == expected
    assert [job.slug for job in jobs] == ["first", "other"]


def test_a_failure_ends_the_command_with_one_line_and_code_2(file, pattern, training):
    training.append("first")
    result = lienzo_train(*styles_arguments(file, pattern))
    assert "1 of 2 clusters have no network; 'first'" in error_of(result)
    assert result.stdout.startswith("other: ")
    assert sorted(path.name for path in pattern.output.iterdir()) == ["other"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "spark"], "engine is 'spark'"),
        (["--engine", "ray", "--workers", "0"], "workers is 0"),
        (["--members", "0"], "members is 0"),
        (["--members", "17"], "members is 17"),
        (["--only", "third"], "no cluster 'third'"),
        (["--target", "each"], "target is 'each'"),
        (["--time-budget", "soon"], "is no duration"),
    ],
    ids=str,
)
def test_bad_options_end_in_one_line_and_nothing_is_written(file, pattern, options, message):
    result = lienzo_train(*styles_arguments(file, pattern, *options))
    assert message in error_of(result) and result.stdout == ""
    assert not pattern.output.exists()


def test_a_file_that_holds_no_clusters_is_refused(pattern, tmp_path):
    (tmp_path / "clusters.json").write_text("{}")
    assert "are malformed" in error_of(lienzo_train(*styles_arguments(tmp_path / "clusters.json", pattern)))
    assert "cannot be read" in error_of(lienzo_train(*styles_arguments(tmp_path / "none.json", pattern)))


# --- Ray -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        ([{"CPU": 16.0}], None, (1, 0)),
        ([{"CPU": 16.0}], 4, (4, 0)),
        ([{"CPU": 16.0}], 5, (3, 0)),
        ([{"CPU": 2.0}], 8, (1, 0)),
        # A job that wants more than any one machine has would wait for ever.
        ([{"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 2.0}], 2, (4, 0)),
        ([{"CPU": 4.0}, {"memory": 1e9}], 1, (4, 0)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}], 1, (1, 1)),
    ],
    ids=str,
)
def test_a_job_asks_for_no_more_than_a_machine_has(nodes, workers, share):
    assert ray_tasks.share(nodes, workers) == share


@pytest.mark.slow
def test_ray_trains_the_clusters_and_names_the_one_that_fails(gallery, pattern, tmp_path, vgg19_weights, monkeypatch):
    """From the command to the models, on a Ray of this machine alone; paths are relative to where the command runs."""
    pytest.importorskip("ray", reason="Ray is an extra of its own")
    write_hills(pattern.content, 16)
    broken = cluster(gallery, "broken", (6,))
    whole = [cluster(gallery, "first", (2, 0, 1)), cluster(gallery, "other", (5, 4))]
    file = write_clusters(tmp_path / "clusters", gallery, broken, *whole)
    monkeypatch.chdir(tmp_path)
    paths = dataclasses.replace(pattern, content=Path("content"), output=Path("models"))
    options = [
        "--engine", "ray", "--steps", 2, "--crop", 32, "--batch", 1, "--width", "quarter", "--style-size", 48,
        "--precision", "float32", "--reference-pairs", 0, "--device", "cpu", "--members", 2,
    ]  # fmt: skip
    result = lienzo_train(*styles_arguments(Path("clusters/clusters.json"), paths, *options))
    message = error_of(result)
    assert "1 of 3 clusters have no network; 'broken': the style picture" in message and "drawing-6.png" in message
    assert sorted(line.partition(":")[0] for line in result.stdout.splitlines()) == ["first", "other"]
    assert sorted(path.name for path in pattern.output.iterdir()) == [".training", "first", "other"]
    for found in Clustering.load(file).clusters[1:]:
        card = read_card(pattern.output / found.id)
        assert card.training["steps"] == 2 and card.cluster.centre == found.centre
        assert [style.sha256 for style in card.styles] == [
            sha256(gallery / f"{member.id}.png") for member in found.nearest[:2]
        ]
    assert [job.slug for job in cluster_jobs(file, pattern, members=2)] == ["broken"]
