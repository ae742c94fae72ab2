"""Content pictures for training: random crops of any folder of pictures, read ahead so that the trainer never waits."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.errors import InvalidInput
from shared.images import decode, to_tensor

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def list_pictures(folder: Path) -> tuple[Path, ...]:
    """Every picture file below ``folder`` (COCO's and WikiArt's layouts alike), sorted by name.

    Hidden files and folders are left out: a training below this very folder keeps its sample sheets in one.

    Raises:
        InvalidInput: the folder does not exist or has no picture.
    """
    if not folder.is_dir():
        raise InvalidInput(f"'{folder}' is not a folder.", hint="Name a folder of pictures.", field="content")
    paths = tuple(
        sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.is_file()
        )
    )
    if not paths:
        raise InvalidInput(
            f"'{folder}' has no picture in it or below it.",
            hint=f"Pictures are recognised by their ending: {', '.join(sorted(SUFFIXES))}.",
            field="content",
        )
    return paths


class ContentPictures:
    """Batches of random crops, each a pure function of (seed, step), so that a resumed run sees the same ones.

    Every epoch is a new permutation. A crop covers a random 40 to 100 % of the picture's shorter side, is flipped
    half the time, and is reduced to ``crop`` pixels. Files that cannot be read are reported once and replaced.

    Args:
        paths: picture files.
        crop: side of the crops in pixels.
        batch: crops a step.
        seed: of the permutations and crops.
    """

    def __init__(self, paths: tuple[Path, ...], *, crop: int, batch: int, seed: int = 0):
        self.paths = paths
        self.crop = crop
        self.batch = batch
        self.seed = seed
        self._cache: OrderedDict[Path, Image.Image] = OrderedDict()
        self._unreadable: set[Path] = set()
        self._lock = threading.Lock()

    def batch_at(self, step: int) -> Tensor:
        """The crops of batch ``step``, ``[batch, 3, crop, crop]``."""
        first = step * self.batch
        return torch.cat([self._crop_at(first + i) for i in range(self.batch)])

    def batches(self, first: int, *, stride: int = 1, offset: int = 0) -> Iterator[Tensor]:
        """Endless batches from number ``first`` on, prepared in threads ahead of the trainer.

        Args:
            stride, offset: with several workers, each takes every ``stride``-th batch from its ``offset`` on.
        """
        threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        with ThreadPoolExecutor(threads, thread_name_prefix="content") as pool:
            numbers = itertools.count(first)
            waiting: deque[Future[Tensor]] = deque()
            try:
                while True:
                    while len(waiting) < threads + 2:
                        waiting.append(pool.submit(self.batch_at, next(numbers) * stride + offset))
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def centre_crops(self) -> Tensor:
        """One crop from the middle of each picture, ``[len(paths), 3, crop, crop]``: for validation."""
        crops = []
        for path in self.paths:
            picture = self._picture(path)
            if picture is not None:
                side = min(picture.size)
                left, top = (picture.width - side) // 2, (picture.height - side) // 2
                crops.append(self._reduce(picture, (left, top, left + side, top + side)))
        if not crops:
            raise InvalidInput("none of the validation pictures can be read.", field="content")
        return torch.cat(crops)

    def _crop_at(self, position: int) -> Tensor:
        epoch, place = divmod(position, len(self.paths))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.paths))
        rng = np.random.default_rng((self.seed, epoch, place))
        for attempt in range(len(self.paths)):
            picture = self._picture(self.paths[order[(place + attempt) % len(order)]])
            if picture is not None:
                break
        else:
            raise InvalidInput("none of the content pictures can be read.", field="content")
        shorter = min(picture.size)
        side = round(max(min(self.crop, shorter), shorter * rng.uniform(0.4, 1.0)))
        left = int(rng.integers(picture.width - side + 1))
        top = int(rng.integers(picture.height - side + 1))
        crop = self._reduce(picture, (left, top, left + side, top + side))
        return crop.flip(-1) if rng.random() < 0.5 else crop

    def _reduce(self, picture: Image.Image, box: tuple[int, int, int, int]) -> Tensor:
        return to_tensor(picture.resize((self.crop, self.crop), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))

    def _picture(self, path: Path) -> Image.Image | None:
        """The picture with a shorter side of about twice the crop, kept in memory while there is room."""
        with self._lock:
            if path in self._unreadable:
                return None
            if path in self._cache:
                self._cache.move_to_end(path)
                return self._cache[path]
        try:
            picture = decode(path)
        except (InvalidInput, OSError) as error:
            with self._lock:
                if path not in self._unreadable:
                    log.warning("skipping %s: %s", path, error)
                self._unreadable.add(path)
            return None
        ratio = 2 * self.crop / min(picture.size)
        if ratio < 1:
            picture = picture.resize(
                (round(picture.width * ratio), round(picture.height * ratio)), Image.Resampling.LANCZOS
            )
        with self._lock:
            self._cache[path] = picture
            # 1,500 pictures of 512 × 700 pixels are 1.6 GB.
            while len(self._cache) > 1500:
                self._cache.popitem(last=False)
        return picture
