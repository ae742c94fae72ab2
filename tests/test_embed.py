"""Training the joint embedding: losses by hand, resuming to the bit, caches, and the command on a gallery made here."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import sys
import types

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy import sparse
from typer.testing import CliRunner

from shared.errors import GalleryError, InvalidInput, LienzoError
from shared.galleries import open_gallery
from shared.image_encoders import OnnxEncoder
from shared.joint_embedding import JointEmbedding
from training import embed, feature_cache
from training.cli import app
from training.embed import (
    PRESETS,
    CachedImages,
    EmbedSettings,
    JointNetwork,
    Pairs,
    TrainingFailed,
    contrastive_loss,
    embed_pairs,
    margin_loss,
    train_embedding,
)
from training.embed_command import comparison_markdown, parse_preset
from training.embed_encoders import open_image_encoder, open_sentence_encoder
from training.feature_cache import CachedSentences, FeatureCache
from training.onnx_tower import OnnxTower, TunedImages
from training.text_pairs import says_nothing, split_pairs

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}
GROUNDS = {"snow": (250, 250, 250), "night": (10, 10, 20), "sand": (200, 170, 120)}
COLUMNS = ("IMAGE_FILE", "DESCRIPTION", "AUTHOR", "TITLE", "TECHNIQUE", "DATE", "TYPE", "SCHOOL", "TIMEFRAME")


def write_semart(folder, *, splits=("train", "val", "test"), describe=True):
    """Boats of four colours on three grounds, each pair of colours twice or more, in SemArt's layout."""
    rng = np.random.default_rng(0)
    (folder / "Images").mkdir(parents=True)
    for split, count in zip(splits, (48, 12, 12), strict=False):
        rows = []
        for i in range(count):
            colour, ground = list(COLOURS)[i % 4], list(GROUNDS)[i // 4 % 3]
            pixels = np.zeros((40, 48, 3)) + GROUNDS[ground]
            pixels[12:30, 10:40] = COLOURS[colour]
            noisy = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "Images" / f"{split}{i}.png")
            text = f"A {colour} boat upon {ground}." if describe else ""
            rows.append((f"{split}{i}.png", text, "Anon", f"Boat {colour}", "", "", "landscape", "Dutch", ""))
        with (folder / f"semart_{split}.csv").open("w", encoding="latin1", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([COLUMNS, *rows])
    return folder


def write_network(path, *, operator="Relu"):
    """A small convolutional network: ``features [N, 12]`` and ``logits [N, 6]``."""
    rng = np.random.default_rng(0)
    tensors = {
        "conv.weight": rng.normal(0, 0.3, (12, 3, 5, 5)),
        "conv.bias": rng.normal(0, 0.3, 12),
        "fc.weight": rng.normal(0, 0.5, (6, 12)),
        "fc.bias": rng.normal(0, 0.1, 6),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight", "conv.bias"], ["a"], strides=[4, 4], pads=[2, 2, 2, 2]),
        helper.make_node(operator, ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["features"]),
        helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", d]) for n, d in (("features", 12), ("logits", 6))
    ]
    picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", "W"])
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "small", [picture], outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return write_semart(tmp_path_factory.mktemp("semart") / "boats")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "small.onnx")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """The cache that the commands here share."""
    return tmp_path_factory.mktemp("features")


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


# --- losses --------------------------------------------------------------------------------------------------------


def test_the_margin_loss_by_hand():
    text, image = unit([1, 0], [1, 0], [1, 0]), unit([3, 4], [3, 4], [0, 1])
    loss = margin_loss(text, image, torch.tensor([True, False, False]), margin=0.1)
    assert loss.item() == pytest.approx(((1 - 0.6) + (0.6 - 0.1) + 0) / 3)


def test_the_contrastive_loss_by_hand():
    text, image = unit([1, 0], [0, 1]), unit([1, 0], [3, 4])
    cosines = np.array([[1, 0.6], [0, 0.8]])
    expected = 0.0
    for each in (cosines, cosines.T):
        logits = 5 * each
        expected += np.mean(np.log(np.exp(logits).sum(1)) - np.diagonal(logits)) / 2
    assert contrastive_loss(text, image, 5.0).item() == pytest.approx(expected)


def test_hard_negatives_by_hand():
    """Two negatives of cosine 0.8 and 0: weights 2 e^(0.8 β) and 2 over their sum."""
    text, image = unit([1, 0], [0, 1], [-1, 0]), unit([1, 0], [4, 3], [0, 1])
    cosines, scale, beta = (text @ image.T).numpy(), 4.0, 2.0
    expected = 0.0
    for each in (cosines, cosines.T):
        for query in range(3):
            others = np.delete(each[query], query)
            weights = 2 * np.exp(beta * others) / np.exp(beta * others).sum()
            negatives = (weights * np.exp(scale * others)).sum()
            own = np.exp(scale * each[query, query])
            expected -= np.log(own / (own + negatives)) / 6
    assert contrastive_loss(text, image, scale, beta).item() == pytest.approx(expected)
    assert contrastive_loss(text, image, scale, beta) > contrastive_loss(text, image, scale)


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: margin_loss(a, b, torch.tensor([True, False, True, False]), 0.1),
        lambda a, b: contrastive_loss(a, b, 7.0),
    ],
    ids=["margin", "contrastive"],
)
def test_gradients_agree_with_finite_differences(loss):
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda a, b: loss(*(torch.nn.functional.normalize(p, dim=-1) for p in (a, b))), points
    )


# --- settings ------------------------------------------------------------------------------------------------------


def test_the_published_settings():
    thesis, semart = PRESETS["thesis"], PRESETS["semart"]
    assert (thesis.dimensions, semart.dimensions) == (28, 128)
    assert dataclasses.replace(thesis, dimensions=128) == semart
    assert (thesis.margin, thesis.mismatches, thesis.learning_rate) == (0.1, 0.8, 1e-4)
    assert (thesis.batch, thesis.epochs, thesis.least_words) == (28, 10, 10)
    assert (thesis.loss, thesis.activation, thesis.image_output, thesis.sentences) == (
        "margin",
        "tanh",
        "logits",
        False,
    )


def test_a_preset_with_settings():
    name, settings = parse_preset("semart:epochs=3,standardize=true", ["epochs=9", "batch=8"])
    assert name == "semart"
    assert settings == dataclasses.replace(PRESETS["semart"], epochs=3, batch=8, standardize=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("worst", "no preset 'worst'. Presets are thesis, semart, best"),
        ("best:speed=9", "no setting 'speed'"),
        ("best:epochs=many", "epochs is 'many', expected a whole number"),
        ("best:standardize=1", "standardize is '1', expected true or false"),
        ("best:epochs=0", "epochs is 0, expected at least 1"),
        ("best:dropout=1.5", "dropout is 1.5, expected 0 to"),
        ("best:loss=hinge", "loss is 'hinge', expected one of margin, contrastive"),
    ],
)
def test_wrong_settings_are_refused(spec, message):
    with pytest.raises(InvalidInput, match=message):
        parse_preset(spec)


# --- training ------------------------------------------------------------------------------------------------------


def random_pairs(count, seed, views=2):
    """Texts and pictures that are noisy images of the same few numbers."""
    truth = np.random.default_rng(0)
    maps = [truth.normal(size=(4, d)) for d in (15, 9)]
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, 4))
    pictures = (hidden @ maps[1])[:, None] + 0.1 * rng.normal(size=(count, 1 + views, 9))
    pictures /= np.linalg.norm(pictures, axis=-1, keepdims=True)
    return Pairs(sparse.csr_array((hidden @ maps[0]).astype(np.float32)), CachedImages(pictures.astype(np.float16)))


SMALL = EmbedSettings(dimensions=6, epochs=4, batch=16, learning_rate=1e-2, hardness=0.5)


@pytest.mark.parametrize(
    "settings", [SMALL, dataclasses.replace(SMALL, loss="margin", activation="tanh")], ids=["ours", "published"]
)
def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path, settings):
    pairs, validation = random_pairs(41, seed=1), random_pairs(20, seed=2)
    whole = train_embedding(pairs, validation, settings, tmp_path / "whole", device="cpu")

    class Stopped(Exception):
        pass

    def stop(epoch):
        if epoch.epoch == 2:
            raise Stopped

    def stop_within(done, total):
        if done == total // 4 * 3 + 1:
            raise Stopped

    with pytest.raises(Stopped):
        train_embedding(pairs, validation, settings, tmp_path / "parts", device="cpu", on_epoch=stop)
    with pytest.raises(Stopped):
        train_embedding(pairs, validation, settings, tmp_path / "parts", device="cpu", on_step=stop_within)
    epochs = []
    parts = train_embedding(pairs, validation, settings, tmp_path / "parts", device="cpu", on_epoch=epochs.append)
    assert [epoch.epoch for epoch in epochs] == [4]
    assert parts.history == whole.history and parts.best_epoch == whole.best_epoch
    np.testing.assert_array_equal(parts.text_side.weight, whole.text_side.weight)
    np.testing.assert_array_equal(parts.image_side.weight, whole.image_side.weight)


def test_it_learns(tmp_path):
    """Four hidden numbers tell 60 pairs apart."""
    settings = dataclasses.replace(SMALL, epochs=12, dropout=0.0)
    result = train_embedding(random_pairs(200, seed=1), random_pairs(60, seed=2), settings, tmp_path, device="cpu")
    first, best = result.history[0], result.history[result.best_epoch - 1]
    assert best["text_to_image"]["R@5"]["value"] > 0.8 > 5 / 60
    assert best["loss"] < first["loss"]


def test_the_projections_are_the_networks():
    """What is saved (scaling folded in, no PyTorch) puts texts and pictures where the training saw them."""
    pairs = random_pairs(12, seed=1)
    for settings in (SMALL, dataclasses.replace(PRESETS["thesis"], dimensions=5)):
        trained = JointNetwork(15, pairs.images.all(), settings)
        text, image = embed_pairs(trained, pairs, torch.device("cpu"))
        sides = trained.sides()
        np.testing.assert_allclose(sides[0](pairs.text), text, atol=1e-5)
        np.testing.assert_allclose(sides[1](pairs.images.all().numpy()), image, atol=1e-5)


def test_an_aligned_network_starts_from_the_common_space():
    """Texts whose last columns lie in the space of the pictures have the cosines of that space before any step."""
    rng = np.random.default_rng(0)
    pictures, sentences = (rng.normal(size=(8, 9)) for _ in range(2))
    pictures, sentences = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (pictures, sentences))
    text = sparse.csr_array(np.hstack([rng.random((8, 5)), 3 * sentences]).astype(np.float32))
    pairs = Pairs(text, CachedImages(pictures[:, None].astype(np.float32)))
    network = JointNetwork(14, pairs.images.all(), dataclasses.replace(SMALL, dimensions=12), aligned=True)
    points = embed_pairs(network, pairs, torch.device("cpu"))
    np.testing.assert_allclose(points[0] @ points[1].T, sentences @ pictures.T, atol=1e-5)


def test_the_extra_text_is_not_validated_on():
    pairs = dataclasses.replace(random_pairs(12, seed=1), extra=(3, 7))
    without = pairs.text.toarray()
    without[:, 3:7] = 0
    trained = JointNetwork(15, pairs.images.all(), SMALL)
    found, _ = embed_pairs(trained, pairs, torch.device("cpu"))
    np.testing.assert_allclose(found, trained.sides()[0](without), atol=1e-5)


def test_resuming_with_other_settings_is_refused(tmp_path):
    pairs, validation = random_pairs(20, seed=1), random_pairs(9, seed=2)
    train_embedding(pairs, validation, SMALL, tmp_path, device="cpu")
    with pytest.raises(InvalidInput, match=r"other settings \(batch: 16 then, 8 now\)"):
        train_embedding(pairs, validation, dataclasses.replace(SMALL, batch=8), tmp_path, device="cpu")
    with pytest.raises(InvalidInput, match="other texts, pictures or encoders"):
        train_embedding(random_pairs(20, seed=3), validation, SMALL, tmp_path, device="cpu")


def test_a_loss_that_is_no_number_ends_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "contrastive_loss", lambda text, *_: text.sum() * math.nan)
    with pytest.raises(TrainingFailed, match="not a number in epoch 1"):
        train_embedding(random_pairs(20, seed=1), random_pairs(9, seed=2), SMALL, tmp_path, device="cpu")
    assert not list(tmp_path.iterdir())


# --- pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "A work made of oil on canvas.", "a painting made of oil on panel, transferred to canvas"]
)
def test_a_formula_says_nothing(text):
    assert says_nothing(text)


@pytest.mark.parametrize("text", ["A work made of oil on canvas. It shows a boat.", "A boat made of straw.", "Oil"])
def test_a_description_says_something(text):
    assert not says_nothing(text)


def test_pairs_follow_the_gallerys_split(gallery):
    split = split_pairs(open_gallery(gallery))
    assert (len(split.train), len(split.validation), len(split.test), split.notes) == (48, 12, 12, ())


def test_a_gallery_without_a_split_gets_one_by_its_ids(tmp_path):
    split = split_pairs(open_gallery(write_semart(tmp_path / "boats", splits=("train",))))
    again = split_pairs(open_gallery(tmp_path / "boats"))
    assert [p.id for p in split.train] == [p.id for p in again.train]
    assert len(split.train) > 30 and len(split.validation) >= 2
    assert len(split.all) == 48 and "hash of the ids" in split.notes[0]


def test_formulas_and_bare_titles_are_not_measured_on(tmp_path):
    folder = write_semart(tmp_path / "boats")
    for split in ("train", "val"):
        table = folder / f"semart_{split}.csv"
        lines = table.read_text("latin1").splitlines()
        cells = lines[1].split("\t")
        lines[1] = "\t".join([cells[0], "A work made of oil on canvas.", *cells[2:]])
        cells = lines[2].split("\t")
        lines[2] = "\t".join([cells[0], "", *cells[2:]])
        table.write_text("\n".join(lines), "latin1")
    split = split_pairs(open_gallery(folder))
    assert (len(split.train), len(split.validation)) == (48, 10)
    assert [p.description for p in split.train[:2]] == ["", ""]
    assert [note.partition(" ")[0] for note in split.notes] == ["2", "2", "2"]


# --- encoders and caches -------------------------------------------------------------------------------------------


class Counting:
    """Wraps an encoder and counts what it is asked for; after ``fails_at`` pictures it fails."""

    def __init__(self, inner, fails_at=None):
        self.inner, self.seen, self.fails_at = inner, 0, fails_at
        self.name, self.fingerprint, self.dimensions = inner.name, inner.fingerprint, getattr(inner, "dimensions", 0)

    def embed(self, pictures, *, augment=None):
        if self.seen == self.fails_at:
            raise KeyboardInterrupt
        self.seen += len(pictures)
        return self.inner.embed(pictures, augment=augment)

    def encode(self, texts):
        self.seen += len(texts)
        return self.inner.encode(texts)


def test_features_are_computed_once(tmp_path, gallery, network):
    encoder = Counting(OnnxEncoder(network, "features"))
    paths = [picture.path for picture in open_gallery(gallery).pictures[:6]]
    counts = [2, 2, 2, 2, 0, 0]
    found, problems = FeatureCache(tmp_path, encoder).features(paths, counts)
    assert encoder.seen == 6 + 8 and not any(problems)
    again, _ = FeatureCache(tmp_path, encoder).features(paths, counts)
    assert encoder.seen == 14
    np.testing.assert_array_equal(found, again)
    more, _ = FeatureCache(tmp_path, encoder).features(paths, [3, 2, 2, 2, 0, 0])
    assert encoder.seen == 15
    np.testing.assert_array_equal(more[:, :3], found)
    plain = encoder.inner.embed([Image.open(path) for path in paths])
    np.testing.assert_allclose(found[:, 0], plain, atol=1e-3)
    assert np.abs(found[0, 1] - found[0, 0]).max() > 1e-3, "a crop is not the whole"
    assert not found[4:, 1:].any()


def test_an_interrupted_cache_goes_on(tmp_path, gallery, network, monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD", 2)
    inner = OnnxEncoder(network, "features")
    paths = [picture.path for picture in open_gallery(gallery).pictures[:6]]
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, Counting(inner, fails_at=5)).features(paths, [0] * 6)
    rest = Counting(inner)
    FeatureCache(tmp_path, rest).features(paths, [0] * 6)
    assert rest.seen == 1


def test_damaged_shards_and_pictures_are_passed_over(tmp_path, gallery, network):
    encoder = Counting(OnnxEncoder(network, "features"))
    paths = [picture.path for picture in open_gallery(gallery).pictures[:3]]
    FeatureCache(tmp_path / "cache", encoder).features(paths, [0] * 3)
    (shard,) = (tmp_path / "cache" / encoder.fingerprint).iterdir()
    shard.write_bytes(b"damaged")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    found, problems = FeatureCache(tmp_path / "cache", encoder).features([*paths, broken, tmp_path / "gone"], [0] * 5)
    assert encoder.seen == 6 and [bool(problem) for problem in problems] == [False, False, False, True, True]
    assert found[:3].any(axis=(1, 2)).all() and not found[3:].any()
    with pytest.raises(GalleryError, match="none of the 1 pictures"):
        FeatureCache(tmp_path / "cache", encoder).features([broken], [0])


class Vowels:
    """A sentence encoder that counts vowels."""

    name, fingerprint = "vowels", "vowels"

    def encode(self, texts):
        counts = np.array([[1 + text.count(vowel) for vowel in "aeiou"] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_sentences_are_read_once(tmp_path):
    encoder = Counting(Vowels())
    first = CachedSentences(encoder, tmp_path, name="vowels").encode(["one boat", "two boats", "one boat"])
    assert encoder.seen == 1 + 2  # the empty text tells the dimensions
    again = CachedSentences(encoder, tmp_path, name="vowels").encode(["two boats", "one boat"])
    assert encoder.seen == 4
    np.testing.assert_array_equal(first[[1, 0]], again)
    np.testing.assert_allclose(again, Vowels().encode(["two boats", "one boat"]))


def test_a_network_in_pytorch_is_the_one_in_onnx(tmp_path, network):
    pictures = np.random.default_rng(0).normal(size=(2, 3, 40, 56)).astype(np.float32)
    for output in ("features", "logits"):
        tower = OnnxTower(network, output)
        (expected,) = onnxruntime.InferenceSession(network).run([output], {"image": pictures})
        np.testing.assert_allclose(tower(torch.from_numpy(pictures)).detach().numpy(), expected, atol=1e-5)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(1.5)
    tower.save(tmp_path / "tuned.onnx")
    (tuned,) = onnxruntime.InferenceSession(tmp_path / "tuned.onnx").run(["logits"], {"image": pictures})
    np.testing.assert_allclose(tower(torch.from_numpy(pictures)).detach().numpy(), tuned, atol=1e-5)
    assert np.abs(tuned - expected).max() > 0.1


def test_tuned_images_are_the_encoders(gallery, network):
    encoder = OnnxEncoder(network, "features")
    paths = tuple(picture.path for picture in open_gallery(gallery).pictures[:3])
    images = TunedImages(paths, encoder, OnnxTower(network, "features"))
    np.testing.assert_allclose(images.all(), encoder.embed([Image.open(path) for path in paths]), atol=1e-5)
    batch = images.batch(np.array([2, 0]), np.random.default_rng(0))
    assert batch.requires_grad and batch.shape == (2, 12)


def test_an_operator_that_cannot_be_trained_is_named(tmp_path):
    with pytest.raises(Exception, match="cannot be trained here: Sigmoid"):
        OnnxTower(write_network(tmp_path / "odd.onnx", operator="Sigmoid"), "features")


class FakeClip(torch.nn.Module):
    """Pictures and texts as the mean colour and as the count of three letters."""

    def __init__(self):
        super().__init__()
        self.weight, self.logit_scale = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.tensor(1.0))

    def encode_image(self, prepared):
        return self.weight * prepared.mean((2, 3))

    def encode_text(self, tokens):
        return self.weight * (1 + tokens)


@pytest.fixture
def open_clip(monkeypatch):
    """The part of open_clip that is used, with a model that needs no download; returns what was asked for."""
    asked = []

    def create_model_from_pretrained(model, pretrained, *, device, weights_only):
        asked.append((model, pretrained))
        if pretrained == "gone":
            raise RuntimeError("no such weights\nand more")
        assert weights_only
        return FakeClip(), lambda picture: torch.from_numpy(np.asarray(picture, np.float32).transpose(2, 0, 1))

    def get_tokenizer(model):
        return lambda texts: torch.tensor([[text.count(letter) for letter in "rgb"] for text in texts]).float()

    fake = types.ModuleType("open_clip")
    fake.create_model_from_pretrained, fake.get_tokenizer = create_model_from_pretrained, get_tokenizer
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    return asked


def test_clip_reads_pictures_and_texts(open_clip):
    encoder = open_image_encoder("open_clip:ViT-B-32/laion", "features", device="cpu")
    assert open_clip == [("ViT-B-32", "laion")]
    red = Image.new("RGB", (16, 9), (200, 0, 0))
    np.testing.assert_allclose(encoder.embed([red, red]), [[1, 0, 0]] * 2)
    np.testing.assert_allclose(encoder.encode(["r"]), [np.array([2, 1, 1]) / math.sqrt(6)], rtol=1e-6)
    assert (encoder.dimensions, encoder.embed([]).shape) == (3, (0, 3))
    half = Image.fromarray(np.repeat([[[255, 0, 0]] * 8 + [[0, 0, 255]] * 8], 9, 0).astype(np.uint8))
    views = np.concatenate([encoder.embed([half], augment=np.random.default_rng(seed)) for seed in range(8)])
    assert len(np.unique(views.round(4), axis=0)) > 1
    hub = open_sentence_encoder("open_clip:hf-hub:timm/ViT-B-16-SigLIP", device="cpu")
    assert open_clip[-1] == ("hf-hub:timm/ViT-B-16-SigLIP", None)
    assert hub.fingerprint != encoder.fingerprint


def test_without_open_clip_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(LienzoError, match=r"not installed \(open_clip\)\. Install it: pip install -e '\.\[clip\]'"):
        open_image_encoder("open_clip:ViT-B-32/laion", "features")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("open_clip:ViT-B-32", "names no model"),
        ("open_clip:ViT-B-32/gone", "cannot load 'ViT-B-32/gone': no such weights"),
    ],
)
def test_a_clip_that_is_not_there(open_clip, spec, message):
    with pytest.raises(LienzoError, match=message) as refusal:
        open_image_encoder(spec, "features", device="cpu")
    assert "and more" not in str(refusal.value)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def lienzo_train(gallery, network, features):
    def run(*arguments, gallery=gallery, encoder=network):
        given = ["embed", "--gallery", gallery, "--image-encoder", encoder, "--features", features, *arguments]
        return CliRunner().invoke(app, [str(argument) for argument in given])

    return run


def refusal(result):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return next(line for line in result.stderr.splitlines() if line.startswith("error: "))


SHORT = ("--set", "views=1", "--set", "least_words=1", "--epochs", "3", "--set", "batch=16")


def test_the_command_from_gallery_to_embedding(tmp_path, lienzo_train, gallery, network):
    result = lienzo_train("-o", tmp_path / "out", "--json", tmp_path / "all.json", *SHORT, "--seed", 4)
    assert result.exit_code == 0, result.output
    for text in ("epoch", "MR", "R@1", "R@5", "R@10", "12 test", "95 % intervals", "48 training pairs"):
        assert text in result.stdout, text
    assert "the words of a text are counted and no more" in result.stderr
    report = json.loads((tmp_path / "all.json").read_text())
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["epoch"] for row in report["history"]] == [1, 2, 3]
    assert report["settings"]["seed"] == 4 and report["pairs"] == {"train": 48, "validation": 12, "test": 12}
    assert Image.open(tmp_path / "out" / "recall.png").width > 500
    assert list((tmp_path / "out" / ".training" / "tensorboard").iterdir())

    embedding = JointEmbedding.load(tmp_path / "out")
    encoder = OnnxEncoder(network, "features")
    assert embedding.image_encoder.fingerprint == encoder.fingerprint
    pictures = [p for p in open_gallery(gallery).pictures if p.split == "test"]
    points = embedding.image(encoder.embed([Image.open(p.path) for p in pictures]))
    found = embedding.text(["Boat red"], ["A red boat upon snow."]) @ points.T
    assert "red" in pictures[int(found.argmax())].description
    once_more = lienzo_train("-o", tmp_path / "out", *SHORT, "--seed", 4)
    assert once_more.exit_code == 0, once_more.output
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["history"] == report["history"] and again["test"] == report["test"]


def test_words_learn_their_pictures(tmp_path, lienzo_train):
    """Twelve kinds of picture, one of each in the test: the first five hold the right one nearly always."""
    lienzo_train("-o", tmp_path / "out", *SHORT, "--epochs", "12", "--set", "learning_rate=0.01")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["test"]["text_to_image"]["R@5"]["value"] > 0.8 > 5 / 12


def test_the_encoder_can_be_trained_along(tmp_path, lienzo_train, network):
    result = lienzo_train("-o", tmp_path / "out", *SHORT, "--finetune", "--epochs", "1", "--set", "extra_share=0.5")
    assert result.exit_code == 0, result.output
    assert "extra text" in result.stdout
    tuned = OnnxEncoder(tmp_path / "out" / "image-encoder.onnx", "features")
    embedding = JointEmbedding.load(tmp_path / "out")
    assert embedding.image_encoder.fingerprint == tuned.fingerprint
    assert tuned.fingerprint != OnnxEncoder(network, "features").fingerprint


def test_presets_compared(tmp_path, lienzo_train):
    result = lienzo_train(
        "-o", tmp_path / "out", "--compare", "thesis:dimensions=5", "--compare", "best", "--seeds", "2", *SHORT
    )
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [len(reports) for reports in data["reports"].values()] == [2, 2]
    assert [report["settings"]["seed"] for report in data["reports"]["best"]] == [0, 1]
    row = next(r for r in data["rows"] if r["preset"] == "best" and r["direction"] == "text_to_image")
    values = [report["test"]["text_to_image"]["R@10"]["value"] for report in data["reports"]["best"]]
    assert row["R@10"] == pytest.approx([np.mean(values), np.std(values, ddof=1)])
    written = (tmp_path / "out" / "comparison.md").read_text()
    assert written == comparison_markdown(data["rows"]) and written.count("\n") == 2 + 4
    assert (tmp_path / "out" / "thesis-dimensions-5-seed1" / "joint.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image-encoder", "missing.onnx"), "there is no ONNX file 'missing.onnx'"),
        (("--image-encoder", "vgg"), "there is no image encoder 'vgg'"),
        (("--sentence-encoder", "missing"), "'missing' is not a folder"),
        (("--set", "least_words=1000"), "no word of the 48 training descriptions occurs 1000 times"),
        (("--preset", "worst"), "there is no preset 'worst'"),
        (("--compare", "best", "--compare", "best"), "'best' is compared twice"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, lienzo_train, arguments, message):
    result = lienzo_train("-o", tmp_path / "out", *SHORT, *arguments)
    assert message in refusal(result)
    assert not (tmp_path / "out").exists()


def test_an_output_that_the_network_lacks_is_refused(tmp_path, lienzo_train, network):
    line = refusal(lienzo_train("-o", tmp_path / "out", encoder=f"{network}:scores"))
    assert "has no output 'scores'. Its outputs are: features, logits." in line


def test_a_gallery_without_descriptions_is_refused(tmp_path, lienzo_train):
    bare = write_semart(tmp_path / "bare", describe=False)
    assert "no picture of the gallery 'bare' has a description" in refusal(
        lienzo_train("-o", tmp_path / "out", gallery=bare)
    )


def test_another_run_in_the_folder_is_refused(tmp_path, lienzo_train):
    assert lienzo_train("-o", tmp_path / "out", *SHORT, "--epochs", "1").exit_code == 0
    before = (tmp_path / "out" / "report.json").read_bytes()
    line = refusal(lienzo_train("-o", tmp_path / "out", *SHORT, "--epochs", "2"))
    assert "other settings (epochs: 1 then, 2 now)" in line
    assert (tmp_path / "out" / "report.json").read_bytes() == before
