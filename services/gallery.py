"""The gallery of the settings, opened alike by the Retriever and by what checks everything before it starts."""

from __future__ import annotations

from collections.abc import Callable

from services.settings import settings
from shared import weights
from shared.encoders import Encoder
from shared.gallery_index import Progress
from shared.image_encoders import open_encoder
from shared.joint_embedding import JointEmbedding
from shared.retrieval import Retrieval, open_sentences


def open_retrieval(encoder: Callable[[], Encoder], *, progress: Progress | None = None) -> Retrieval:
    """The gallery with its index and with all that content and styles are found by.

    Args:
        encoder: makes the VGG-19 encoder at first need.
        progress: told what is fetched, embedded and read.

    Raises:
        LienzoError: something that the settings name is missing, corrupt or does not fit; the message says what.
    """
    config = settings()
    finder = open_encoder(config.style_encoder, device=config.device, vgg19=encoder, progress=progress)
    sentences = open_sentences(config.sentences)
    return Retrieval.open(
        config.gallery,
        encoder,
        finder=finder,
        index=config.gallery_index,
        uri=config.index_uri,
        cache=weights.cache_dir(),
        sentences=sentences,
        embedding=config.embedding and JointEmbedding.load(config.embedding, sentences=sentences),
        progress=progress,
    )
