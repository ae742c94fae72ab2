"""The Retriever: words → content pictures → style pictures, the gallery's picture files, and instant paintings.

Instant paintings are made here because the network that they need is: the VGG-19 that embeds uploaded styles. In the
Optimizer they would wait for optimisations, the Stylizer does without PyTorch, and a service of their own would hold
both once more.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import bentoml

from services import metrics
from services.gallery import open_retrieval
from services.messages import CONNECTION, Answer, about, answers
from services.settings import settings
from shared import weights
from shared.adain import AdaINDecoder
from shared.devices import bound_gpu_memory, pick_device
from shared.encoders import Encoder, load_encoder
from shared.errors import EngineUnavailable, GalleryError, NotFound, WeightsUnavailable
from shared.galleries import Picture
from shared.images import DecodeLimits, decode, encode, thumbnail
from shared.instant_painting import paint_instantly
from shared.text_search import Match

log = logging.getLogger(__name__)

DECODER = "adain-decoder"


# Paintings wait for one another in their threads; some are left for those who search.
@bentoml.service(traffic={"timeout": settings().retrieval_seconds}, runner_connection=CONNECTION, threads=8)
class Retriever:
    """Finds pictures of one gallery, and paints in the style of any."""

    def __init__(self) -> None:
        config = settings()
        self._encoder: Encoder | None = None
        self._decoder: AdaINDecoder | None = None
        self._painting = threading.Lock()
        self._limits = DecodeLimits(max_pixels=config.max_pixels, max_bytes=config.max_body_bytes)
        self._device = pick_device(config.device)
        bound_gpu_memory(self._device, config.gpu_bytes)
        self._retrieval = open_retrieval(self._load_encoder)
        metrics.provider.labels("instant", str(self._device)).set(1)
        log.info("engine instant runs on %s", self._device)

    def __is_ready__(self) -> bool:
        if not all(picture.path.exists() for picture in self._retrieval.gallery.pictures[:1]):
            raise GalleryError("the gallery's pictures are gone.", hint="Put their folder back.")
        if self._encoder is None and weights.locate("vgg19") is None:
            raise WeightsUnavailable("the weights of vgg19 are gone.", hint="Run `lienzo weights fetch vgg19`.")
        return True

    @bentoml.api
    @answers
    def about(self) -> Answer:
        """Name, size and first picture of the gallery, how content is searched for, and the device that paints."""
        gallery = self._retrieval.gallery
        return {
            "name": gallery.name,
            "first": gallery.pictures[0].id,
            "pictures": len(gallery.pictures),
            "indexed": len(self._retrieval.index),
            "search": self._retrieval.text.parts,
            "device": str(self._device),
        }

    @bentoml.api
    @answers
    def content(self, title: str, description: str, k: int) -> Answer:
        """Pictures that fit the words, the nearest first."""
        return [_match(match) for match in self._retrieval.content(title, description, k)]

    @bentoml.api
    @answers
    def style(self, content_id: str | None = None, picture: bytes | None = None, k: int = 5) -> Answer:
        """Pictures whose style is near that of a gallery picture or of an uploaded one, the nearest first."""
        if content_id is not None:
            matches = self._retrieval.style_of(content_id, k)
        else:
            with about("image"):
                matches = self._retrieval.style_like(decode(picture, limits=self._limits), k)
        return [_match(match) for match in matches]

    @bentoml.api
    @answers
    def picture(self, picture_id: str) -> Answer:
        """A gallery picture: its record, its file's bytes, its style embedding."""
        record = self._retrieval.picture(picture_id)
        try:
            data = record.path.read_bytes()
        except OSError as error:
            raise NotFound(f"the file of picture '{record.id}' is gone.", hint="Choose another picture.") from error
        return {
            **_record(record),
            "data": data,
            "embedding": self._retrieval.index.embedding(record.id),
            "style_space": self._retrieval.space.fingerprint,
        }

    @bentoml.api
    @answers
    def thumbnail(self, picture_id: str, size: int) -> Answer:
        """A gallery picture as a JPEG whose longer side is at most ``size`` pixels."""
        record = self._retrieval.picture(picture_id)
        return encode(thumbnail(decode(record.path), size), "jpeg", quality=85)

    @bentoml.api
    @answers
    def embed(self, picture: bytes) -> Answer:
        """The style embedding of an uploaded picture, and the space that it lies in."""
        with about("style_image"):
            embedding = self._retrieval.embed(decode(picture, limits=self._limits))
        return {"embedding": embedding, "style_space": self._retrieval.space.fingerprint}

    @bentoml.api
    @answers
    def distance(self, content_id: str, style_id: str) -> Answer:
        """How far apart the styles of two gallery pictures are."""
        return self._retrieval.distance(content_id, style_id)

    @bentoml.api
    @answers
    def paint(
        self,
        content: bytes,
        style: bytes,
        size: int,
        strength: float,
        preserve_color: bool,
        format: str,
        recipe: dict,
    ) -> Answer:
        """Paint ``content`` in the style of ``style``; see :func:`shared.instant_painting.paint_instantly`."""
        # One at a time: it takes all processors.
        # The style picture was decoded for its embedding before: what fails here is the content.
        with self._painting, about("image"):
            decoder, encoder = self._load_decoder(), self._load_encoder()
            painting = paint_instantly(
                encoder,
                decoder,
                content,
                style,
                size=size,
                strength=strength,
                preserve_color=preserve_color,
                format=format,
                recipe=recipe,
                limits=self._limits,
            )
        return {"data": painting.data, "seconds": dict(painting.seconds), "device": str(encoder.device)}

    def _load_encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = load_encoder(device=self._device.type)
        return self._encoder

    def _load_decoder(self) -> AdaINDecoder:
        if self._decoder is None:
            if weights.locate(DECODER) is None:  # a download would keep somebody waiting
                raise EngineUnavailable(
                    f"engine 'instant' needs the network '{DECODER}', which is not here.",
                    hint=f"Use another engine, or let the operator run `lienzo weights fetch {DECODER}`.",
                    field="engine",
                )
            encoder = self._load_encoder()
            self._decoder = AdaINDecoder(weights.load(DECODER), dtype=encoder.dtype, device=encoder.device)
        return self._decoder


def _match(match: Match) -> dict[str, Any]:
    return {**_record(match.picture), "distance": round(match.distance, 6)}


def _record(picture: Picture) -> dict[str, Any]:
    return {"id": picture.id, "title": picture.title, "artist": picture.artist, "date": picture.date}
