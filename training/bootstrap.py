"""How sure a figure is: the bootstrap (Efron 1979), which draws what was measured again and again, with replacement."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BOUNDS = (0.025, 0.975)


def interval(
    figure: Callable[[np.ndarray], np.ndarray], count: int, *, samples: int, seed: int = 0
) -> tuple[float, float]:
    """The ends of a figure's 95 % interval, as percentiles over the samples.

    Args:
        figure: from the numbers of what was drawn, ``[samples, count]`` in [0, count), to the figure of each sample.
        count: of what was measured.
    """
    drawn = np.random.default_rng(seed).integers(count, size=(samples, count))
    low, high = np.quantile(figure(drawn), _BOUNDS)
    return float(low), float(high)
