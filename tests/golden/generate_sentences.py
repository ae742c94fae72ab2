"""Computes the golden values of tests/test_sentence_encoder.py with the package ``sentence-transformers``.

Run ``python tests/golden/generate_sentences.py FOLDER`` with the folder that ``lienzo weights fetch minilm`` names, to
write ``sentences.json`` beside this file. Needs ``pip install sentence-transformers``; Lienzo itself does without.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from shared.torchvision_compat import import_torchvision

import_torchvision()  # transformers imports it, and it has to work beside any build of torch

from sentence_transformers import SentenceTransformer  # noqa: E402

TEXTS = (
    "a storm at sea",
    "Two men in straw hats, smoking!",
    "Ça va? ÉLAN naïve 東京 " + "x" * 150,
    "",
    "word " * 400,
)
NUMBERS = 24  # of the 384 of each embedding


def main(folder: str) -> None:
    embeddings = SentenceTransformer(folder, device="cpu").encode(list(TEXTS), normalize_embeddings=True)
    golden = [
        {"text": text, "embedding": [round(float(value), 7) for value in embedding[:NUMBERS]]}
        for text, embedding in zip(TEXTS, embeddings, strict=True)
    ]
    Path(__file__).with_name("sentences.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
