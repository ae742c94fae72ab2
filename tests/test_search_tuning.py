"""The content search is measured and tuned as by hand, and never on what it is tuned with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from shared.errors import InvalidInput
from shared.galleries import Gallery, Picture
from training import search_tuning
from training.cli import app
from training.search_tuning import Query

GALLERY = Gallery("g", tuple(Picture(f"p{i}", Path("p.jpg"), f"Picture {i}") for i in range(4)))
QUERIES = [Query(f"query {i}", "", (i % 4,)) for i in range(40)]
RIGHT = np.eye(4)[[i % 4 for i in range(40)]]


def test_ranks_are_of_the_first_accepted_picture():
    similarities = np.array([[0.1, 0.4, 0.3, 0.2], [0.5, 0.5, 0.5, 0.5]])
    assert search_tuning.ranks(similarities, [Query("", "", (0, 3)), Query("", "", (2,))]).tolist() == [3, 3]


def test_measures_and_their_intervals():
    found = search_tuning.measures(np.array([1, 1, 5, 10]))
    assert {name: each.mean for name, each in found.items()} == pytest.approx(
        {"hit@1": 0.5, "hit@5": 0.75, "MRR": (1 + 1 + 0.2 + 0.1) / 4}
    )
    assert all(0 <= each.low < each.mean < each.high <= 1 for each in found.values())
    certain = search_tuning.measures(np.ones(7, int))["hit@1"]
    assert (certain.low, certain.high) == (1, 1)


def test_the_part_that_knows_gets_the_weight():
    weights = search_tuning.tune({"words": RIGHT, "sentences": 1 - RIGHT}, QUERIES)
    assert weights["words"] > 0.5
    assert search_tuning.tune({"words": RIGHT, "sentences": RIGHT}, QUERIES) == {"words": 0.5, "sentences": 0.5}


def test_cross_validation_finds_a_rule_and_no_chance():
    rng = np.random.default_rng(1)
    ruled = search_tuning.cross_validated_ranks({"words": RIGHT, "sentences": 1 - RIGHT}, QUERIES)
    assert (ruled == 1).all()
    chance = {name: rng.random((40, 4)) for name in ("words", "sentences")}
    seen = search_tuning.ranks(sum(w * chance[n] for n, w in search_tuning.tune(chance, QUERIES).items()), QUERIES)
    unseen = search_tuning.cross_validated_ranks(chance, QUERIES)
    assert (1 / unseen).mean() <= (1 / seen).mean()


def test_the_threshold_separates_best():
    found = search_tuning.calibrate(np.array([0.2, 0.5, 0.6]), np.array([0.1, 0.3, 0.1, 0.1]))
    assert (found.threshold, found.answered, found.let_through) == (pytest.approx(0.15), 1, 0.25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "neither a list"),
        ('[{"title": "boat"}]', "'accept'"),
        ('[{"title": "boat", "accept": []}]', "accepts no picture"),
        ('[{"title": "boat", "accept": ["p9"]}]', "p9"),
        ('["boat"]', "cannot be used"),
    ],
)
def test_query_files_that_are_none(tmp_path, content, message):
    file = tmp_path / "queries.json"
    file.write_text(content)
    with pytest.raises(InvalidInput, match=message):
        search_tuning.read_queries(file, GALLERY)


def test_query_files_by_name_and_plain(tmp_path):
    file = tmp_path / "queries.json"
    entry = {"title": "boat", "accept": ["p2"]}
    for content in ([entry], {"first": [entry]}):
        file.write_text(json.dumps(content))
        assert search_tuning.read_queries(file, GALLERY) == [Query("boat", "", (2,))]
    file.write_text('["a", 3]')
    with pytest.raises(InvalidInput, match="texts only"):
        search_tuning.read_texts(file)


def test_the_command(minilm, tmp_path):
    queries, elsewhere, output = (tmp_path / name for name in ("q.json", "e.json", "out.json"))
    queries.write_text(
        json.dumps([{"title": "Boating", "accept": ["met-436947"]}, {"title": "bat", "accept": ["met-456949"]}])
    )
    elsewhere.write_text('["USB cable", "tax return"]')
    options = ["--queries", str(queries), "--elsewhere", str(elsewhere), "--json", str(output)]
    result = CliRunner().invoke(app, ["tune-search", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text())
    assert found["measures"]["as shipped"]["hit@1"]["mean"] == 1
    assert set(found["measures"]) == {"words", "sentences", "tuned", "as shipped"}
    assert found["refusals"]["e"][0]["let_through"] == 0

    refused = CliRunner().invoke(app, ["tune-search", "--queries", str(tmp_path / "absent.json")])
    assert refused.exit_code == 2
