"""A sentence transformer encodes as its authors' package does; what it cannot read, it refuses by name."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from shared.errors import InvalidInput, LienzoError, ModelRefused
from shared.sentence_encoder import SentenceEncoder

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sentences.json").read_text(encoding="utf-8"))
TEXTS = [each["text"] for each in GOLDEN]
EXPECTED = np.array([each["embedding"] for each in GOLDEN], np.float32)


@pytest.fixture(scope="module")
def exact(minilm) -> SentenceEncoder:
    return SentenceEncoder.open(minilm, precision="float32")


def test_minilm_gives_what_sentence_transformers_gives(exact):
    embeddings = exact.encode(TEXTS)
    assert embeddings.shape == (len(TEXTS), 384) == (len(TEXTS), exact.dimensions)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings[:, : EXPECTED.shape[1]], EXPECTED, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_a_text_is_the_same_alone_as_among_others(exact):
    together = exact.encode(TEXTS[:4])
    for i, text in enumerate(TEXTS[:4]):
        np.testing.assert_allclose(exact.encode([text])[0], together[i], atol=2e-6)


def test_reduced_precision_is_close_and_has_a_fingerprint_of_its_own(minilm, exact):
    reduced = SentenceEncoder.open(minilm, precision="bfloat16")
    assert (reduced.encode(TEXTS[:2]) * exact.encode(TEXTS[:2])).sum(axis=1).min() > 0.999
    assert reduced.fingerprint != exact.fingerprint
    assert SentenceEncoder.open(minilm, precision="float32").fingerprint == exact.fingerprint


def test_threads_share_an_encoder(exact):
    texts = [f"a picture of {number} boats" for number in range(6)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda text: exact.encode([text])[0], texts))
    np.testing.assert_allclose(together, exact.encode(texts), atol=2e-6)


def test_nothing_to_encode_and_progress(exact):
    assert exact.encode([]).shape == (0, 384)
    seen = []
    exact.encode([""] * 40, on_text=lambda *event: seen.append(event))
    assert seen == [(32, 40), (40, 40)]


# --- a network in ONNX: an embedding a word, averaged ---

VOCABULARY = {"[UNK]": 0, "boat": 1, "sea": 2, "cat": 3}
VECTORS = np.array([[0, 0], [1, 0], [0, 1], [-1, 0]], np.float32)


@pytest.fixture
def words(tmp_path) -> Path:
    folder = tmp_path / "words"
    folder.mkdir()
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"max_position_embeddings": 4}')
    values = helper.make_tensor("vectors", TensorProto.FLOAT, VECTORS.shape, VECTORS.ravel())
    graph = helper.make_graph(
        [helper.make_node("Gather", ["vectors", "input_ids"], ["last_hidden_state"])],
        "words",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "l"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", "l", 2])],
        [values],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    return folder


def test_an_onnx_folder_is_pooled_over_its_tokens_alone(words):
    encoder = SentenceEncoder.open(words, threads=1)
    half = 2**-0.5
    texts = ["boat", "sea", "boat sea", "", "\ud800"]
    expected = [[1, 0], [0, 1], [half, half], [0, 0], [0, 0]]
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-6)


def test_the_first_token_where_the_folder_says_so(words):
    (words / "1_Pooling").mkdir()
    (words / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}'
    )
    np.testing.assert_allclose(SentenceEncoder.open(words).encode(["sea boat"]), [[0, 1]], atol=1e-6)


def test_what_exceeds_the_limit_is_not_read(words):
    np.testing.assert_allclose(SentenceEncoder.open(words).encode(["sea sea sea sea cat cat cat"]), [[0, 1]], atol=1e-6)
    (words / "sentence_bert_config.json").write_text('{"max_seq_length": 1}')
    np.testing.assert_allclose(SentenceEncoder.open(words).encode(["boat sea"]), [[1, 0]], atol=1e-6)


# --- refusals ---


def refusal(folder: Path) -> LienzoError:
    with pytest.raises(LienzoError) as caught:
        SentenceEncoder.open(folder)
    return caught.value


def test_a_folder_that_is_none(tmp_path):
    error = refusal(tmp_path / "absent")
    assert isinstance(error, InvalidInput) and error.field == "sentences"
    assert "is not a folder" in error.message


def test_a_pickle_is_not_read(words):
    (words / "model.onnx").rename(words / "pytorch_model.bin")
    error = refusal(words)
    assert isinstance(error, ModelRefused)
    assert "a pickle is not read" in error.message and "safetensors" in error.hint


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_an_incomplete_folder(words, missing):
    (words / missing).unlink()
    assert "cannot be read" in refusal(words).message


@pytest.mark.parametrize("broken", ["config.json", "tokenizer.json", "model.onnx"])
def test_a_damaged_folder(words, broken):
    (words / broken).write_bytes(b"{")
    assert isinstance(refusal(words), ModelRefused)


def test_modules_that_are_not_known(words):
    (words / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    assert "Dense" in refusal(words).message


@pytest.mark.parametrize(("name", "value"), [("model_type", "mpnet"), ("hidden_act", "relu")])
def test_another_architecture(minilm, tmp_path, name, value):
    folder = tmp_path / "other"
    shutil.copytree(minilm, folder, copy_function=lambda source, target: Path(target).symlink_to(source))
    config = json.loads((folder / "config.json").read_text()) | {name: value}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    error = refusal(folder)
    assert f"{name} '{value}'" in error.message and "ONNX" in error.hint
