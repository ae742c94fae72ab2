"""A text finds the pictures that share its words, honestly ranked, or is refused."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import GalleryError, InvalidInput, NoMatch
from shared.galleries import Gallery, Picture, read_met
from shared.lexicon import GROUPS
from shared.text_search import RELATED_WEIGHT, TextIndex

QUERIES = json.loads((Path(__file__).parent / "data" / "met_queries.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def met() -> TextIndex:
    return TextIndex(read_met())


def gallery(*titles: str, **texts) -> Gallery:
    return Gallery("small", tuple(Picture(f"p{i}", Path("p.jpg"), title, **texts) for i, title in enumerate(titles)))


def found(index: TextIndex, title: str, description: str = "", k: int = 5) -> list[tuple[str, float]]:
    return [(match.picture.id, match.distance) for match in index.search(title, description, k)]


# --- The numbers, by hand. None of these animals is in the lexicon. ---

SEEN_ONCE, SEEN_TWICE, UNKNOWN = math.log(4 / 2) + 1, math.log(4 / 3) + 1, math.log(4 / 1) + 1  # idf, 3 pictures


@pytest.fixture(scope="module")
def animals() -> TextIndex:
    return TextIndex(gallery("Zebra", "Zebra with a quagga", "Okapi"))


def test_the_same_word_alone_is_at_distance_0_and_the_rest_by_cosine(animals):
    zebra_of_both = SEEN_TWICE / math.hypot(SEEN_TWICE, SEEN_ONCE)
    (first, d0), (second, d1) = found(animals, "zebra")
    assert (first, second) == ("p0", "p1")
    assert d0 == pytest.approx(0, abs=1e-12)
    assert d1 == pytest.approx(1 - zebra_of_both, abs=1e-12)


def test_words_unknown_to_the_gallery_add_distance(animals):
    expected = 1 - SEEN_ONCE / math.hypot(SEEN_ONCE, UNKNOWN)
    assert found(animals, "an okapi and a wombat") == [("p2", pytest.approx(expected, abs=1e-12))]


def test_repeated_words_count_logarithmically(animals):
    twice = (1 + math.log(2)) * SEEN_ONCE
    expected = 1 - twice / math.hypot(twice, UNKNOWN)
    assert found(animals, "okapi okapi wombat") == [("p2", pytest.approx(expected, abs=1e-12))]


def test_title_and_description_count_the_same_and_ties_keep_the_gallerys_order(animals):
    expected = 1 - 1 / math.sqrt(2)
    result = found(animals, "okapi", "zebra")
    assert [id for id, _ in result] == ["p0", "p2", "p1"]
    assert [distance for _, distance in result[:2]] == pytest.approx([expected, expected], abs=1e-12)
    assert found(animals, "zebra", "okapi") == result


def test_a_short_title_weighs_as_much_as_a_long_description(animals):
    # Two unknown words make the description long; the title alone decides.
    assert found(animals, "okapi", "a zebra, a wombat and a numbat")[0][0] == "p2"
    assert found(animals, "zebra", "an okapi, a wombat and a numbat")[0][0] == "p0"


def test_fields_count_by_their_weight():
    index = TextIndex(gallery("Zebra", artist="Quagga", technique="Okapi"))
    title, artist, technique = 1 + math.log(3), 1 + math.log(2), 1.0  # one picture: every idf is 1
    length = math.hypot(title, artist, technique)
    for word, weight in (("zebra", title), ("quagga", artist), ("okapi", technique)):
        assert found(index, word) == [("p0", pytest.approx(1 - weight / length, abs=1e-12))]


def test_a_related_word_counts_its_share_of_the_word_itself():
    index = TextIndex(gallery("Ship", "Boat", "Okapi"))
    length = math.hypot(1, RELATED_WEIGHT)
    expected = [("p1", pytest.approx(1 - 1 / length)), ("p0", pytest.approx(1 - RELATED_WEIGHT / length))]
    assert found(index, "boat") == expected


# --- Words ---


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("boats", "Boating"),
        ("cities", "The City"),
        ("women", "A Woman"),
        ("Children", "child"),
        ("geese", "Goose"),
        ("dancing", "They danced"),
        ("Cezanne", "Cézanne"),
        ("CÉZANNE", "Ce\u0301zanne"),
        ("Manet's", "Manet"),
        ("Manet’s", "Manet"),
        ("self-portrait", "Self Portraits"),
        ("the last painting of a fire", "Last Fire"),
        ("Strasse", "Straße"),
    ],
)
def test_forms_of_a_word_are_one(query, title):
    assert found(TextIndex(gallery(title, "Okapi")), query) == [("p0", pytest.approx(0, abs=1e-12))]


@pytest.mark.parametrize(
    ("date", "century"),
    [
        ("ca. 1665–67", "17th"),
        ("1600", "16th"),
        ("1601", "17th"),
        ("1590s", "16th"),
        ("2005", "21st"),
        ("early 12th century", "12th"),
    ],
)
def test_a_century_finds_its_years(date, century):
    dated, other = (Picture(id, Path("p.jpg"), "Okapi", date=text) for id, text in (("p0", date), ("p1", "1234")))
    assert [id for id, _ in found(TextIndex(Gallery("dated", (other, dated))), f"{century} century")] == ["p0"]


def test_no_word_of_the_lexicon_is_closer_to_another_than_to_itself():
    words = sorted({word for line in GROUPS for word in line.replace(">", " ").split()})
    assert all(re.fullmatch(r"[a-z]{2,}", word) for word in words)
    index = TextIndex(gallery(*words))
    for i, word in enumerate(words):
        distances = dict(found(index, word, k=100))
        assert distances[f"p{i}"] == min(distances.values())


def test_a_rare_related_word_does_not_outrank_a_common_word_itself():
    # Among many common words the rare "ship" weighs three times what "boat" weighs, more than 1 / RELATED_WEIGHT.
    common = "zebra quagga okapi wombat numbat kudu eland bongo dingo tapir ocelot serval caracal lynx gnu"
    index = TextIndex(gallery(f"Ship {common}", *[f"Boat {common}"] * 50))
    assert [id for id, _ in found(index, "boat", k=100)] == [f"p{i}" for i in range(1, 51)] + ["p0"]


def test_a_one_way_relation_has_one_way():
    assert any(line.startswith("pet > dog cat") for line in GROUPS)
    index = TextIndex(gallery("Dog", "Pet"))
    assert [id for id, _ in found(index, "pet")] == ["p1", "p0"]
    assert [id for id, _ in found(index, "dog")] == ["p0"]


# --- Refusals ---


@pytest.mark.parametrize("text", ["the of and", "", "?!", "a b c 1 22", "a picture of the painting", "\x00\ud800"])
def test_a_text_without_words_is_refused(met, text):
    with pytest.raises(NoMatch, match="no word to look for") as refusal:
        met.search(text, text)
    assert refusal.value.code == "no_match"
    assert "women" in refusal.value.hint


def test_unknown_words_are_named_and_known_ones_suggested(met):
    with pytest.raises(NoMatch) as refusal:
        met.search("Hoarse", "wifi router")
    assert refusal.value.message == "No picture fits the words hoarse, wifi, router."
    assert refusal.value.hint.startswith("Did you mean horse")
    assert "women" in refusal.value.hint


def test_a_known_word_lost_among_thousands_of_unknown_ones_is_no_match(met):
    with pytest.raises(NoMatch) as refusal:
        met.search("", "boat " + " ".join(f"qx{i:04}zv" for i in range(5000)))
    assert len(refusal.value.message) < 500
    assert "boat?" not in refusal.value.hint


@pytest.mark.parametrize("k", [-1, 0, 101])
def test_k_out_of_range_is_refused(met, k):
    with pytest.raises(InvalidInput, match=f"k is {k}; it must be from 1 to 100") as refusal:
        met.search("boat", k=k)
    assert refusal.value.field == "k"
    assert refusal.value.code == "invalid_input"


def test_a_gallery_without_words_is_refused():
    with pytest.raises(GalleryError, match="no words"):
        TextIndex(gallery("1", "22"))


# --- The default gallery ---


def test_the_nearest_k_come_first(met):
    everything = found(met, "Women", k=100)
    assert len(everything) > 20
    for k in (1, 5, 20):
        assert found(met, "Women", k=k) == everything[:k]


def test_people_who_ask_in_everyday_words_find_fitting_pictures(met):
    """Hit@5: a picture that a person accepts is among the first five.

    The accepted pictures were chosen by looking at the pictures, before any search. The lexicon was written
    with the development queries known; the held-out ones were written and judged after it, and a failure there
    has not led to a change.
    """
    rates = {}
    for part, queries in QUERIES.items():
        hits = []
        for query in queries:
            accepted = {met.gallery.by_id(id).id for id in query["accept"]}
            try:
                matches = met.search(query["title"], query["description"])
            except NoMatch:
                matches = []
            hits.append(any(match.picture.id in accepted for match in matches))
        rates[part] = sum(hits) / len(hits)
    assert rates["development"] >= 0.9
    assert rates["held_out"] >= 0.7
    assert sum(rates[part] * len(queries) for part, queries in QUERIES.items()) / sum(map(len, QUERIES.values())) >= 0.8


def test_the_same_query_gives_the_same_answer_in_every_process():
    code = """
from shared.errors import NoMatch
from shared.galleries import read_met
from shared.text_search import TextIndex

index = TextIndex(read_met())
for text in ("A boat trip on a sunny day", "lovers, people, a feast and an animal in the country"):
    print([(match.picture.id, match.distance) for match in index.search(text, "music at night", 100)])
try:
    index.search("hoarse")
except NoMatch as refusal:
    print(refusal)
"""
    answers = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    ]
    assert answers[0] == answers[1]
    assert "met-436947" in answers[0] and "No picture fits the words hoarse." in answers[0]


def test_threads_share_an_index(met):
    rng = random.Random(0)
    words = [word for query in QUERIES["development"] for word in query["description"].split()]
    texts = [" ".join([*rng.choices(words, k=8), f"running{i}nesses"]) for i in range(200)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda text: found(met, "boat", text), texts))
    assert together == [found(met, "boat", text) for text in texts]


def test_ten_thousand_words_take_less_than_a_second(met):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(9_000)]
    words += [tag for picture in met.gallery.pictures for tag in picture.tags] * 2
    assert len(words) >= 10_000
    start = time.perf_counter()
    matches = met.search("A very long story", " ".join(words))
    assert time.perf_counter() - start < 1
    assert matches


@pytest.mark.parametrize("text", ["a" * 100_000, "é" * 100_000, "a\u0345" * 50_000, "'s " * 33_000, "ﷺ" * 30_000])
def test_texts_of_one_endless_word_do_not_hang(met, text):
    start = time.perf_counter()
    with pytest.raises(NoMatch):
        met.search(text, text)
    assert time.perf_counter() - start < 2


anything = st.lists(st.text() | st.sampled_from(["boats", "Women", "MADONNA", "cézanne", "the", "1889"])).map(" ".join)


@given(title=anything, description=anything, k=st.integers(1, 100))
def test_any_text_gives_sorted_distances_or_no_match(met, title, description, k):
    try:
        matches = met.search(title, description, k)
    except NoMatch as refusal:
        assert refusal.message and refusal.hint
        return
    distances = [match.distance for match in matches]
    assert 1 <= len(matches) <= k
    assert distances == sorted(distances)
    assert distances[0] >= 0 and distances[-1] < 1
    assert len({match.picture.id for match in matches}) == len(matches)
