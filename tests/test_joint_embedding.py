"""The joint embedding at work: words as scikit-learn counts them, projections by hand, files that hold together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import write_extractor
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer

from shared.errors import GalleryError, InvalidInput, NoMatch
from shared.image_encoders import open_encoder
from shared.joint_embedding import (
    CARD_FILE,
    WEIGHTS_FILE,
    EncoderName,
    JointEmbedding,
    Projection,
    TextFeatures,
    WordWeights,
    joined,
)
from shared.retrieval import Retrieval
from training.index_command import build_index

TEXTS = ["A boat on a river, a boat!", "The river by night", "Boats and a Rivière", "two dogs run by the river", ""]


class Letters:
    """A sentence encoder that counts the vowels."""

    fingerprint = "letters"

    def encode(self, texts):
        counts = np.array([[text.count(vowel) for vowel in "aeiou"] for text in texts], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)


def embedding(sentences: Letters | None = None) -> JointEmbedding:
    rng = np.random.default_rng(0)
    words = {"description": WordWeights.fit(TEXTS), "title": WordWeights.fit(["River", "Boats at night"])}
    texts = TextFeatures(words, sentences, 5 if sentences else 0, 0.5)
    return JointEmbedding(
        texts,
        Projection(rng.normal(size=(4, texts.dimensions)).astype(np.float32), np.ones(4, np.float32), "tanh"),
        Projection(rng.normal(size=(4, 7)).astype(np.float32), np.zeros(4, np.float32), "tanh"),
        EncoderName("net.onnx:features", "abc", 7),
        EncoderName("letters", "letters", 5) if sentences else None,
        about={"preset": "test"},
    )


def test_words_weigh_as_in_scikit_learn():
    weights, reference = WordWeights.fit(TEXTS), TfidfVectorizer(stop_words="english")
    reference.fit(TEXTS)
    assert list(weights.words) == reference.get_feature_names_out().tolist()
    np.testing.assert_allclose(weights.idf, reference.idf_, rtol=1e-6)
    new = [*TEXTS, "an unknown river", "nothing known"]
    np.testing.assert_allclose(weights(new).toarray(), reference.transform(new).toarray(), atol=1e-6)


def test_rare_words_are_counted_by_occurrence():
    """Twice in one text is twice: what counts is how often a word is seen, not in how many texts."""
    assert WordWeights.fit(TEXTS, least=2).words == ("boat", "river")
    pruned, reference = WordWeights.fit(TEXTS, least=2), TfidfVectorizer(vocabulary=["boat", "river"])
    np.testing.assert_allclose(pruned(TEXTS).toarray(), reference.fit_transform(TEXTS).toarray(), atol=1e-6)


@pytest.mark.parametrize("texts", [["", "the and of"], ["a b c"]])
def test_an_empty_vocabulary_gives_no_columns(texts):
    weights = WordWeights.fit(texts)
    assert weights.words == () and weights(["a boat"]).shape == (1, 0)


def test_a_projection_by_hand():
    side = Projection(np.array([[1.0, 0], [0, 2]], np.float32), np.array([0, 1], np.float32))
    np.testing.assert_allclose(side(np.array([[3.0, 1.5]])), [[3 / 5, 4 / 5]], atol=1e-6)
    bent = Projection(side.weight, side.bias, "tanh")(np.array([[3.0, 1.5]]))
    np.testing.assert_allclose(bent, [np.tanh([3, 4]) / np.linalg.norm(np.tanh([3, 4]))], atol=1e-6)


def test_text_is_words_beside_sentences():
    whole = embedding(Letters())
    words = TextFeatures(whole._text_features.words)
    features = whole._text_features(["River"], ["a boat"]).toarray()
    np.testing.assert_allclose(features[:, :-5], words(["River"], ["a boat"]).toarray())
    np.testing.assert_allclose(features[:, -5:], 0.5 * Letters().encode(["River. a boat"]))
    points = whole.text(["River", ""], ["a boat", ""])
    assert points.shape == (2, 4) and points.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("title", "description", "expected"),
    [
        ("A boat.", "It sails", "A boat. It sails"),
        ("A boat", "", "A boat."),
        ("", "It sails", "It sails"),
        ("", "", ""),
    ],
)
def test_title_and_description_as_one_text(title, description, expected):
    assert joined(title, description) == expected


@pytest.mark.parametrize("sentences", [None, Letters()])
def test_what_is_saved_is_what_is_loaded(tmp_path, sentences):
    before = embedding(sentences)
    before.save(tmp_path)
    after = JointEmbedding.load(tmp_path, sentences=sentences)
    assert (after.fingerprint, after.dimensions, after.image_encoder) == (before.fingerprint, 4, before.image_encoder)
    assert after.about == {"preset": "test"}
    titles, descriptions = ["River", "Boats", ""], ["by night", "two dogs", "a boat"]
    np.testing.assert_array_equal(after.text(titles, descriptions), before.text(titles, descriptions))
    pictures = np.random.default_rng(1).normal(size=(5, 7))
    np.testing.assert_array_equal(after.image(pictures), before.image(pictures))
    assert {path.name for path in tmp_path.iterdir()} == {CARD_FILE, WEIGHTS_FILE}


def test_the_fingerprint_tells_embeddings_apart(tmp_path):
    assert embedding().fingerprint == embedding().fingerprint != embedding(Letters()).fingerprint


def _other_weights(folder):
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(tensors | {"text.bias": tensors["text.bias"] + 1}, folder / WEIGHTS_FILE)


def _edit_card(**changes):
    def edit(folder):
        card = json.loads((folder / CARD_FILE).read_text())
        (folder / CARD_FILE).write_text(json.dumps(card | changes))

    return edit


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / CARD_FILE).unlink(), "cannot be read"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"no tensors"), "cannot be read"),
        (lambda folder: (folder / CARD_FILE).write_text("{}"), "cannot be read"),
        (_edit_card(format="0"), "format 0, expected 1"),
        (_edit_card(activation="none"), "do not belong together"),
        (_other_weights, "do not belong together"),
    ],
)
def test_damaged_files_are_refused(tmp_path, harm, message):
    embedding().save(tmp_path)
    harm(tmp_path)
    with pytest.raises(GalleryError, match=message):
        JointEmbedding.load(tmp_path)


def test_the_sentence_encoder_must_be_the_one(tmp_path):
    embedding(Letters()).save(tmp_path)
    with pytest.raises(InvalidInput, match=r"needs the sentence encoder letters .*, and none was given"):
        JointEmbedding.load(tmp_path)
    other = Letters()
    other.fingerprint = "other"
    with pytest.raises(InvalidInput, match=r"another one was given \(other\)"):
        JointEmbedding.load(tmp_path, sentences=other)


def test_features_of_another_encoder_are_refused():
    with pytest.raises(InvalidInput, match=r"\[2, 9\], expected \[N, 7\]"):
        embedding().image(np.zeros((2, 9)))
    with pytest.raises(InvalidInput, match="1 of title, 2 of description"):
        embedding().text(["one"], ["two", "three"])


# Pictures found by what is in them


COLOURS = {"bench": (230, 20, 20), "castle": (20, 230, 20), "harbour": (20, 20, 230)}


@pytest.fixture
def gallery(tmp_path):
    """Three pictures whose titles do not say their colours."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (64, 48), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def colours(tmp_path):
    """An embedding that knows three words for colours, and the ONNX file whose vectors it reads; both in folders."""
    extractor = write_extractor(tmp_path / "mean.onnx")
    encoder = open_encoder(str(extractor), device="cpu")
    vectors = encoder.embed([Image.new("RGB", (64, 48), colour) for colour in COLOURS.values()])
    words = {"description": WordWeights(("blue", "green", "red"), np.ones(3, np.float32))}
    texts = TextFeatures(words, None, 0, 1.0)
    point = np.linalg.pinv(vectors.astype(np.float64)).T.astype(np.float32)  # the pictures become the unit vectors
    text = Projection(np.eye(3, dtype=np.float32)[:, ::-1].copy(), np.zeros(3, np.float32), "none")
    image = Projection(point, np.zeros(3, np.float32), "none")
    joint = JointEmbedding(texts, text, image, EncoderName(encoder.name, encoder.fingerprint, encoder.dimensions))
    joint.save(tmp_path / "joint")
    return tmp_path / "joint", extractor


def test_a_gallery_is_indexed_and_searched_by_what_its_pictures_show(gallery, colours, tmp_path, encoder):
    folder, extractor = colours
    _, changes = build_index(str(gallery), tmp_path / "index", encoders=["style", f"joint:{folder}@{extractor}"])
    assert changes.added == 3
    joint = JointEmbedding.load(folder)
    found = Retrieval.open(gallery, lambda: encoder, index=tmp_path / "index", embedding=joint)
    assert found.text.parts == ("words", "pictures")
    for word, title in (("red", "Bench"), ("green", "Castle"), ("blue", "Harbour")):
        assert found.content("", f"something {word}", 1)[0].picture.title == title
    blind = Retrieval.open(gallery, lambda: encoder, index=tmp_path / "index")
    with pytest.raises(NoMatch):
        blind.content("", "something red", 1)


def test_an_index_without_the_embeddings_space_or_of_another_one_is_refused(gallery, colours, tmp_path, encoder):
    folder, extractor = colours
    build_index(str(gallery), tmp_path / "index", encoders=["style"])
    joint = JointEmbedding.load(folder)
    with pytest.raises(GalleryError, match="no space 'joint'"):
        Retrieval.open(gallery, lambda: encoder, index=tmp_path / "index", embedding=joint)
    build_index(str(gallery), tmp_path / "index", encoders=[f"joint:{folder}@{extractor}"])
    Retrieval.open(gallery, lambda: encoder, index=tmp_path / "index", embedding=joint)
    other = embedding()
    with pytest.raises(GalleryError, match=f"{joint.fingerprint}, expected {other.fingerprint}"):
        Retrieval.open(gallery, lambda: encoder, index=tmp_path / "index", embedding=other)


def test_an_embedding_takes_the_encoder_that_it_was_trained_with(gallery, colours, tmp_path):
    folder, _ = colours
    other = write_extractor(tmp_path / "other.onnx", shape=("m", 3, "h", "w"))
    with pytest.raises(InvalidInput, match=r"trained with the image encoder mean.onnx .*, not with other.onnx"):
        build_index(str(gallery), tmp_path / "index", encoders=[f"joint:{folder}@{other}"])
