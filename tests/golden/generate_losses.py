"""Computes the golden values of tests/test_losses.py from the papers' formulas, number by number.

Nothing of Lienzo and no tensor library is used: plain loops over Python's floats, which are IEEE doubles.

Run ``python tests/golden/generate_losses.py`` to write ``losses.json`` beside this file.
"""

from __future__ import annotations

import json
from pathlib import Path

CHANNELS, HEIGHT, WIDTH = 3, 4, 5


def activations(seed: int, channels: int = CHANNELS, height: int = HEIGHT, width: int = WIDTH) -> list:
    """``[channels][height][width]`` numbers in (0, 1) from a linear congruential generator."""
    state = seed
    found = []
    for _ in range(channels):
        rows = []
        for _ in range(height):
            row = []
            for _ in range(width):
                state = (1103515245 * state + 12345) % 2**31
                row.append((state >> 8) / 2**23)
            rows.append(row)
        found.append(rows)
    return found


def flat(features: list) -> list:
    """F of Gatys et al. 2016: one row a filter, one column a position."""
    return [[value for row in channel for value in row] for channel in features]


def gram(features: list) -> list:
    """Gatys et al. 2016, equation 3: G_ij = sum_k F_ik F_jk."""
    f = flat(features)
    return [[sum(a * b for a, b in zip(left, right, strict=True)) for right in f] for left in f]


def content_loss(features: list, target: list) -> float:
    """Gatys et al. 2016, equation 1: half the sum of squared differences."""
    total = 0.0
    for left, right in zip(flat(features), flat(target), strict=True):
        for a, b in zip(left, right, strict=True):
            total += (a - b) ** 2
    return total / 2


def style_loss(features: list, target: list) -> float:
    """Gatys et al. 2016, equation 4: E = 1 / (4 N² M²) sum (G - A)²."""
    n, m = len(features), len(flat(features)[0])
    g, a = gram(features), gram(target)
    return sum((g[i][j] - a[i][j]) ** 2 for i in range(n) for j in range(n)) / (4 * n**2 * m**2)


def style_gradient(features: list, target: list) -> list:
    """Gatys et al. 2016, equation 6: dE / dF_ij = 1 / (N² M²) (Fᵀ (G - A))_ji, for activations above 0."""
    f, g, a = flat(features), gram(features), gram(target)
    n, m = len(f), len(f[0])
    return [[sum(f[k][j] * (g[k][i] - a[k][i]) for k in range(n)) / (n**2 * m**2) for j in range(m)] for i in range(n)]


def variation(picture: list) -> tuple[float, float]:
    """Squared differences of neighbours, summed, down and across (Mahendran and Vedaldi 2015, beta = 2)."""
    down = across = 0.0
    for channel in picture:
        for y in range(len(channel)):
            for x in range(len(channel[0])):
                if y + 1 < len(channel):
                    down += (channel[y + 1][x] - channel[y][x]) ** 2
                if x + 1 < len(channel[0]):
                    across += (channel[y][x + 1] - channel[y][x]) ** 2
    return down, across


def absolute_variation(picture: list) -> float:
    """Absolute differences of neighbours, summed over both directions: anisotropic total variation."""
    total = 0.0
    for channel in picture:
        for y in range(len(channel)):
            for x in range(len(channel[0])):
                if y + 1 < len(channel):
                    total += abs(channel[y + 1][x] - channel[y][x])
                if x + 1 < len(channel[0]):
                    total += abs(channel[y][x + 1] - channel[y][x])
    return total


def guided_gram(features: list, guide: list) -> list:
    """Gatys et al. 2017, equation 3, with the squares of their guidance channel as weights that sum to 1."""
    f, m = flat(features), flat([guide])[0]
    return [[sum(w * a * b for w, a, b in zip(m, left, right, strict=True)) / sum(m) for right in f] for left in f]


def guided_means(features: list, guide: list) -> list:
    f, m = flat(features), flat([guide])[0]
    return [sum(w * a for w, a in zip(m, row, strict=True)) / sum(m) for row in f]


def covariance(features: list) -> tuple[list, list]:
    """Means and covariance of the channels: each difference from the mean, not the difference of two large sums."""
    f = flat(features)
    means = [sum(row) / len(row) for row in f]
    centred = [[a - mean for a in row] for row, mean in zip(f, means, strict=True)]
    return means, [
        [sum(a * b for a, b in zip(left, right, strict=True)) / len(left) for right in centred] for left in centred
    ]


def product(a: list, b: list) -> list:
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def inverse(matrix: list) -> list:
    """By elimination after Gauss and Jordan with the largest pivot of each column."""
    n = len(matrix)
    rows = [list(row) + [float(i == j) for j in range(n)] for i, row in enumerate(matrix)]
    for i in range(n):
        best = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[best] = rows[best], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for r in range(n):
            if r != i:
                rows[r] = [a - rows[r][i] * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[n:] for row in rows]


def matrix_root(matrix: list) -> list:
    """The square root with positive eigenvalues, symmetric or not, by the iteration of Denman and Beavers 1976."""
    n = len(matrix)
    y, z = matrix, [[float(i == j) for j in range(n)] for i in range(n)]
    for _ in range(40):
        over_y, over_z = inverse(y), inverse(z)
        y, z = (
            [[(a + b) / 2 for a, b in zip(p, q, strict=True)] for p, q in zip(left, right, strict=True)]
            for left, right in ((y, over_z), (z, over_y))
        )
    return y


def wasserstein(features: list, target: list) -> float:
    """Squared 2-Wasserstein distance of normal distributions, as Dowson and Landau 1982 write it:

    |m - n|² + tr(A + B - 2 (AB)^½). AB is not symmetric, and no eigenvector is computed.
    """
    (m, a), (n, b) = covariance(features), covariance(target)
    root = matrix_root(product(a, b))
    means = sum((x - y) ** 2 for x, y in zip(m, n, strict=True))
    return means + sum(a[i][i] + b[i][i] - 2 * root[i][i] for i in range(len(a)))


def golden() -> dict:
    features, target = activations(1), activations(2)
    # Another size than the features': what gram_matrix divides by the number of positions for.
    other = activations(3, CHANNELS, 2, 7)
    down, across = variation(features)
    (guide,) = activations(4, 1)
    guide[0] = [0.0] * WIDTH
    return {
        "features": features,
        "target": target,
        "other": other,
        "gram": gram(features),
        "gram_other": gram(other),
        "content_loss": content_loss(features, target),
        "style_loss": style_loss(features, target),
        "style_gradient": style_gradient(features, target),
        "variation_down": down,
        "variation_across": across,
        "absolute_variation": absolute_variation(features),
        "guide": guide,
        "guided_gram": guided_gram(features, guide),
        "guided_means": guided_means(features, guide),
        "wasserstein": wasserstein(features, target),
    }


if __name__ == "__main__":
    Path(__file__).with_name("losses.json").write_text(json.dumps(golden(), indent=1) + "\n", encoding="utf-8")
