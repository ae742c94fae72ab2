"""Motion between the frames of a film: where each pixel was, how a painted film flickers, and making it steadier.

Pictures are ``uint8 [H, W, 3]``, RGB. A flow is ``float32 [H, W, 2]``: how far right and down, in pixels, the point
that a pixel of the later frame shows was in the earlier one.
"""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np

from shared.errors import EngineUnavailable

STEADY = 0.8
"""Share of the painting before in a painted frame, where it can be followed: flicker is then half or less, and nothing
trails. Chosen by `lienzo-train bench video` and by looking."""

LEAST_FOLLOWED = 0.25
"""Where less of a frame can be followed it is another scene, and what agrees with the one before does so by chance."""

_TOLERANCE = 12.0
"""Levels of 255 by which a small neighbourhood may differ from where it is said to come from, and still be trusted."""

_NEIGHBOURHOOD = 7

_TONE, _TONE_TOLERANCE = 15, 10.0
"""Pixels over which the tone of two paintings is compared, and levels by which it may differ. Strokes that flicker do
not change it; what a network paints around a thing, such as a halo, goes when the thing goes, though the film there
stands still."""


def missing(package: str) -> EngineUnavailable:
    """The error of one who has not installed what videos need."""
    return EngineUnavailable(
        f"videos need the package '{package}', which is not installed.", hint="Install it: pip install 'lienzo[video]'."
    )


def _cv2() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise missing("opencv-python-headless") from error
    return cv2


class Steadier:
    """Blends every painted frame with the painting before, moved along the optical flow of the film that is painted.

    Where the flow there and the flow back disagree (Ruder, Dosovitskiy and Brox 2016, equation 5: it was hidden) and
    where the film's own pixels differ from those they are said to come from, nothing is blended, so that what moves
    leaves no ghost; after a cut, nothing at all. Where the tone of the painting itself has changed, less is blended.
    Note that those authors put the comparison into the loss of an optimiser; here it is applied to finished frames, so
    that any engine's film can be steadied.

    Args:
        steady: 0 leaves the frames as they are; towards 1 more of the painting before stays.

    Raises:
        EngineUnavailable: the extra ``video`` is not installed.
    """

    def __init__(self, steady: float = STEADY):
        self._steady = steady
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        if steady:
            _cv2()

    def __call__(self, content: np.ndarray, painted: np.ndarray) -> np.ndarray:
        """The next frame of the painted film; ``content`` is the frame that was painted, of the same shape."""
        if not self._steady:
            return painted
        result = painted.astype(np.float32)
        if self._before is not None:
            content_before, painted_before = self._before
            flow, trusted = followed(content_before, content)
            if (trusted > 0.5).mean() >= LEAST_FOLLOWED:
                change = warp(painted_before, flow) - result
                share = self._steady * trusted * _agreement(change, _TONE, _TONE_TOLERANCE)
                result += share[..., None] * change
        # In full precision: rounded every time, a slow change would stand still.
        self._before = content, result
        return np.rint(np.clip(result, 0, 255)).astype(np.uint8)


def followed(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The flow between two frames, and how far each pixel of the later one can be trusted to come from there.

    Returns:
        the flow, and ``float32 [H, W]`` in [0, 1]: 0 where it was hidden or outside, else falling with the difference
        between the colours of its neighbourhood here and there.
    """
    flow = optical_flow(before, after)
    seen = visible(flow, optical_flow(after, before))
    return flow, seen * _agreement(after - warp(before, flow), _NEIGHBOURHOOD, _TOLERANCE)


def optical_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The flow between two frames of one shape, by dense inverse search (Kroeger et al. 2016)."""
    cv2 = _cv2()
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (after, before)]
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(*grey, None)


def warp(before: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The earlier frame ``[H, W]`` or ``[H, W, C]`` moved to the later one's place, ``float32``.

    By cubic interpolation: linear interpolation, once a frame, would blur what stays for long.
    """
    cv2 = _cv2()
    columns, rows = _positions(flow)
    return cv2.remap(before.astype(np.float32), columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def visible(flow: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Which pixels of the later frame were to be seen in the earlier one: ``bool [H, W]``.

    Those that the flow there and back brings home, within the tolerance of Sundaram et al. 2010 (equation 5 of Ruder et
    al. 2016), and that come from inside the frame.

    Args:
        back: the flow the other way: where each pixel of the earlier frame is in the later one, minus its place.
    """
    height, width = flow.shape[:2]
    columns, rows = _positions(flow)
    inside = (columns >= 0) & (columns <= width - 1) & (rows >= 0) & (rows <= height - 1)
    returned = warp(back, flow)
    return inside & (_squared(flow + returned) <= 0.01 * (_squared(flow) + _squared(returned)) + 0.5)


def flicker(before: np.ndarray, after: np.ndarray, flow: np.ndarray, seen: np.ndarray) -> float:
    """Temporal error of two consecutive painted frames: what changed though the film only moved.

    The mean absolute difference between the later frame and the earlier one moved along the flow of the film that was
    painted, where ``seen``, in levels of 255; 0 where nothing is seen. After the temporal error of Ruder et al. 2016
    and the warping error of Lai et al. 2018, which take squares.
    """
    if not seen.any():
        return 0.0
    return float(np.abs(after.astype(np.float32) - warp(before, flow))[seen].mean())


def _agreement(difference: np.ndarray, window: int, tolerance: float) -> np.ndarray:
    """``float32 [H, W]`` in [0, 1]: 1 where the mean difference over a window is 0, 1/e where it is the tolerance."""
    cv2 = _cv2()
    mean = cv2.split(cv2.blur(difference, (window, window)))
    # Channel by channel: three times as fast as along the last axis.
    largest = functools.reduce(np.maximum, map(np.abs, mean))
    return np.exp(-((largest / np.float32(tolerance)) ** 2))


def _squared(flow: np.ndarray) -> np.ndarray:
    return flow[..., 0] ** 2 + flow[..., 1] ** 2


def _positions(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column and row in the earlier frame of each pixel of the later one."""
    height, width = flow.shape[:2]
    columns = np.arange(width, dtype=np.float32)[None] + flow[..., 0]
    rows = np.arange(height, dtype=np.float32)[:, None] + flow[..., 1]
    return columns.astype(np.float32), rows.astype(np.float32)
