"""Measurements of painted films: frames a second, flicker before and after steadying, and what that costs the picture.

The film is made here, so its motion is known exactly: pictures of a gallery, one sliding over another that is panned
and zoomed, with noise. Flicker is measured along that motion, not along the one that steadying estimates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

from shared.fast_models import FastModel
from shared.fast_painting import paint_picture
from shared.motion import flicker
from shared.video import paint_video, read_frames

RATE = 24
_ZOOM, _PAN = 0.003, (0.0025, 0.001)
_SLIDE = (-0.006, 0.002)
"""A frame's motion: of the ground, its zoom and the pan in widths; of what slides over it, the same."""

_TRAIL, _COARSE = 6, 9
"""Frames for which a ghost is looked for, and pixels over which its level is averaged."""


@dataclass(frozen=True)
class MovingPictures:
    """One picture that slides over another, which is panned and zoomed.

    Attributes:
        ground, slider: ``uint8 [H, W, 3]`` and smaller; the ground is larger than the film, to move within.
        size: width and height of the film.
        frames: how many.
        noise: deviation of every level from its true one, of 255; drawn anew for every frame.
    """

    ground: np.ndarray
    slider: np.ndarray
    size: tuple[int, int]
    frames: int
    noise: float

    @classmethod
    def of(cls, pictures: Sequence[Image.Image], size: int, frames: int, noise: float) -> MovingPictures:
        """Of two pictures, 16 by 9, with a longer side of ``size`` pixels."""
        width, height = size // 2 * 2, round(size * 9 / 32) * 2
        scale = max(1.3 * width / pictures[0].width, 1.3 * height / pictures[0].height)
        ground = pictures[0].resize((round(pictures[0].width * scale), round(pictures[0].height * scale)))
        scale = 0.5 * height / pictures[1].height
        slider = pictures[1].resize((round(pictures[1].width * scale), round(pictures[1].height * scale)))
        return cls(np.asarray(ground), np.asarray(slider), (width, height), frames, noise)

    def frame(self, at: int) -> np.ndarray:
        """``uint8 [H, W, 3]``."""
        grid = self._grid()
        picture = _sampled(self.ground, self._on_ground(grid, at))
        over = _sampled(self.slider, self._on_slider(grid, at))
        picture = np.where(self._covered(grid, at)[..., None], over, picture)
        noise = np.random.default_rng(at).normal(0, self.noise, picture.shape)
        return np.rint(np.clip(picture + noise, 0, 255)).astype(np.uint8)

    def motion(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        """The flow from the frame before to this one, and which pixels were to be seen there: ``bool [H, W]``."""
        grid = self._grid()
        covered = self._covered(grid, at)
        earlier = np.where(
            covered[..., None],
            self._on_slider(grid, at) + self._corner(at - 1),
            (self._on_ground(grid, at) - self._offset(at - 1)) / self._scale(at - 1),
        )
        width, height = self.size
        inside = ((earlier >= 0) & (earlier <= (width - 1, height - 1))).all(axis=-1)
        # Within a pixel of an edge of what slides, two neighbours mix.
        edge = cv2.dilate(covered.astype(np.uint8), np.ones((5, 5))) != cv2.erode(
            covered.astype(np.uint8), np.ones((5, 5))
        )
        seen = inside & ~edge & (self._covered(earlier, at - 1) == covered)
        return (earlier - grid).astype(np.float32), seen

    def _grid(self) -> np.ndarray:
        width, height = self.size
        return np.stack(np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height)), axis=-1)

    def _scale(self, at: int) -> float:
        return 1 - _ZOOM * at

    def _offset(self, at: int) -> np.ndarray:
        return np.array(_PAN) * self.size[0] * at + 0.02 * self.size[0]

    def _corner(self, at: int) -> np.ndarray:
        width, height = self.size
        return np.array([0.55 * width, 0.2 * height]) + np.array(_SLIDE) * width * at

    def _on_ground(self, points: np.ndarray, at: int) -> np.ndarray:
        return points * self._scale(at) + self._offset(at)

    def _on_slider(self, points: np.ndarray, at: int) -> np.ndarray:
        return points - self._corner(at)

    def _covered(self, points: np.ndarray, at: int) -> np.ndarray:
        place = self._on_slider(points, at)
        height, width = self.slider.shape[:2]
        return ((place >= 0) & (place <= (width - 1, height - 1))).all(axis=-1)


@dataclass(frozen=True)
class VideoCost:
    """What a film costs, file to file, and how it looks.

    Attributes:
        steady: see :class:`shared.motion.Steadier`.
        per_second, cpu_seconds: frames a second, and the processor's time a frame, which other processes do not
            lengthen; with decoding, painting, steadying and encoding.
        flicker: mean temporal error, levels of 255; see :func:`shared.motion.flicker`.
        film_flicker: the same of the film that was painted: its noise.
        sharpness: mean gradient, over that of the film painted frame by frame.
        ghost: mean difference, levels of 255, from the film painted frame by frame, both blurred so that flicker counts
            little, where something was uncovered or came in during the last frames: what is left of what was there.
        elsewhere: the same everywhere else; a ghost is what exceeds it.
    """

    size: tuple[int, int]
    frames: int
    steady: float
    per_second: float
    cpu_seconds: float
    flicker: float
    film_flicker: float
    sharpness: float
    ghost: float
    elsewhere: float


def video_costs(
    model: FastModel,
    film: MovingPictures,
    steadies: Sequence[float],
    folder: Path,
    *,
    on_frame: Callable[[], None] | None = None,
) -> list[VideoCost]:
    """Paint the film frame by frame, and once with each steadiness.

    Args:
        folder: where the films are written; ``steady-0.mp4`` and so on.
    """
    source = folder / "film.mp4"
    write_film(source, film)
    motions = [film.motion(at) for at in range(1, film.frames)]
    film_flicker = _flicker(read_frames(source), motions)
    model.paint(np.zeros((1, 3, *reversed(film.size)), np.float32))  # opens the engine
    costs: list[VideoCost] = []
    plain: list[np.ndarray] = []
    for steady in (0.0, *steadies):
        painted = folder / f"steady-{steady:g}.mp4"
        began, cpu = time.perf_counter(), time.process_time()
        paint_video(
            source,
            painted,
            lambda picture: paint_picture(model, picture),
            steady=steady,
            on_frame=lambda *_: on_frame() if on_frame else None,
        )
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        frames = list(read_frames(painted))
        plain = plain or frames
        costs.append(
            VideoCost(
                film.size,
                film.frames,
                steady,
                film.frames / seconds,
                cpu / film.frames,
                _flicker(iter(frames), motions),
                film_flicker,
                _sharpness(frames) / _sharpness(plain),
                *_ghost(frames, plain, motions),
            )
        )
    return costs


def write_film(path: Path, film: MovingPictures) -> None:
    """Write the film, nearly without loss."""
    with av.open(str(path), "w") as made:
        stream = made.add_stream("libx264", rate=RATE, options={"crf": "8", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = *film.size, "yuv420p"
        for at in range(film.frames):
            frame = av.VideoFrame.from_ndarray(film.frame(at), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, RATE)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))


def _sampled(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    columns, rows = (np.ascontiguousarray(places[..., i], np.float32) for i in (0, 1))
    return cv2.remap(picture.astype(np.float32), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _flicker(frames: Iterator[np.ndarray], motions: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    before, errors = next(frames), []
    for frame, (flow, seen) in zip(frames, motions, strict=True):
        errors.append(flicker(before, frame, flow, seen))
        before = frame
    return float(np.mean(errors))


def _sharpness(frames: Sequence[np.ndarray]) -> float:
    return float(
        np.mean([np.abs(np.diff(frame.astype(np.float32), axis=axis)).mean() for frame in frames for axis in (0, 1)])
    )


def _ghost(
    frames: Sequence[np.ndarray], plain: Sequence[np.ndarray], motions: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, float]:
    differences = []
    for at in range(_TRAIL, len(frames)):
        zone = ~np.all([seen for _, seen in motions[at - _TRAIL : at]], axis=0)
        steadied, by_itself = (cv2.blur(each[at].astype(np.float32), (_COARSE, _COARSE)) for each in (frames, plain))
        difference = np.abs(steadied - by_itself)
        differences.append((difference[zone].mean(), difference[~zone].mean()))
    ghost, elsewhere = np.mean(differences, axis=0)
    return float(ghost), float(elsewhere)
