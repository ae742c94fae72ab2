"""States every preset of the optimiser as its source has it, and computes its loss as the source writes it.

Nothing of Lienzo and no tensor library is used: NumPy in float64, from activations that the caller gives.

What a source says is written in its own terms (sums or means, levels 0–255 or 0–1, one weight for all layers or one for
each), so that a constant that was lost between its formula and ours shows as another loss. Where a source used the
original VGG-19, its formula is given activations enlarged by the two constants that the caller names.

Run ``python tests/golden/generate_presets.py`` to write ``presets.json`` beside this file: all that is not a loss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Activations = Mapping[str, np.ndarray]
"""``[C, H, W]`` by layer."""

FIRST_OF_EACH_BLOCK = ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"]

CONVERSION = {"CAFFE_STYLE_SCALE": 285.0, "CAFFE_CONTENT_SCALE": 30.0}
"""How many times larger the original network's activations are taken to be."""

# What holds where a source says nothing else. L-BFGS has no use for what is Adam's, nor Adam for what is of L-BFGS.
USUAL = {
    "encoder": "vgg19",
    "pooling": "max",
    "size": 512,
    "square": False,
    "optimizer": "adam",
    "learning_rate": 0.03,
    "final_rate": 0.05,
    "beta1": 0.9,
    "beta2": 0.99,
    "epsilon": 1e-8,
    "search_iterations": 20,
    "history": 20,
    "start": "content",
    "scales": 1,
    "carry_state": True,
    "seed": 0,
    "patience": 0,
    "tolerance": 1e-3,
    "ema": 0.0,
    "tile": 1536,
    "content_layers": ["relu4_2"],
    "style_layers": FIRST_OF_EACH_BLOCK,
    "tv_weight": 0.0,
    "style_form": "gram",
    "relative": False,
}

PRESETS = {
    # The service's own.
    "lienzo": {
        "steps": 200,
        "optimizer": "lbfgs",
        "scales": 2,
        "content_weight": 1.0,
        "style_weight": 20.0,
        "tv_weight": 60.0,
    },
    "wasserstein": {
        "steps": 200,
        "optimizer": "lbfgs",
        "scales": 2,
        "content_weight": 1.0,
        "style_weight": 60.0,
        "tv_weight": 60.0,
        "style_form": "wasserstein",
    },
    # Gatys, Ecker and Bethge 2016: white noise, L-BFGS, average pooling; α and β of Lasagne's reproduction.
    "gatys": {
        "steps": 500,
        "optimizer": "lbfgs",
        "pooling": "average",
        "start": "uniform",
        "content_weight": 1e-3,
        "style_weight": 1e6,
    },
    # 224 × 224 and 1,000 iterations from the content; the notebook's Adam: 5 grey levels a step throughout,
    # 0.99, 0.1.
    "thesis-adam": {
        "steps": 1000,
        "size": 224,
        "square": True,
        "learning_rate": 5 / 255,
        "final_rate": 1.0,
        "beta1": 0.99,
        "beta2": 0.999,
        "epsilon": 0.1,
        "content_layers": ["relu5_2"],
        "content_weight": 1e3,
        "style_weight": 1e-2,
    },
    # 10 calls of L-BFGS with at most 20 evaluations each; PyTorch allows five for every four iterations.
    "thesis-lbfgs": {
        "steps": 10 * 20,
        "size": 224,
        "square": True,
        "optimizer": "lbfgs",
        "search_iterations": 20 * 4 // 5,
        "content_layers": ["relu5_2"],
        "content_weight": 0.025,
        "style_weight": 1.0,
    },
    # neural_style.lua: -num_iterations 1000 -image_size 512 -lbfgs_num_correction 0 (optim's own: 100) -pooling max
    # -content_weight 5 -style_weight 100 -tv_weight 1e-3, half a sum of squares of levels 0–255.
    "neural-style": {
        "steps": 1000,
        "optimizer": "lbfgs",
        "start": "grey",
        "history": 100,
        "content_weight": 5.0,
        "style_weight": 100.0,
        "tv_weight": 1e-3 / 2 * 255**2,
    },
    # tf.optimizers.Adam(learning_rate=0.02, beta_1=0.99, epsilon=1e-1), 10 epochs of 100 steps, pictures in [0, 1].
    "tensorflow": {
        "steps": 10 * 100,
        "learning_rate": 0.02,
        "final_rate": 1.0,
        "beta1": 0.99,
        "beta2": 0.999,
        "epsilon": 0.1,
        "content_layers": ["relu5_2"],
        "content_weight": 1e4,
        "style_weight": 1e-2,
        "tv_weight": 30.0,
    },
    # The formulas alone are the slides'.
    "slides": {
        "steps": 500,
        "learning_rate": 0.02,
        "final_rate": 1.0,
        "start": "uniform",
        "content_weight": 1e-3,
        "style_weight": 2.5e5,
    },
}


def flat(features: np.ndarray) -> np.ndarray:
    """F of Gatys et al.: one row a filter, one column a position; N rows, M columns."""
    return features.reshape(len(features), -1)


def gram(features: np.ndarray) -> np.ndarray:
    """Gatys et al. 2016, equation 3: G_ij = sum_k F_ik F_jk."""
    return flat(features) @ flat(features).T


def squares_of(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    return (features - target) ** 2


def layer_style(features: np.ndarray, target: np.ndarray) -> float:
    """Gatys et al. 2016, equation 4: E_l = 1 / (4 N² M²) sum (G - A)²."""
    n, m = flat(features).shape
    return float(squares_of(gram(features), gram(target)).sum() / (4 * n**2 * m**2))


def mean_style(features: np.ndarray, target: np.ndarray) -> float:
    """TensorFlow's: Gram matrices over the number of positions, and the mean of their squared differences."""
    m = flat(features).shape[1]
    return float(squares_of(gram(features) / m, gram(target) / m).mean())


def differences(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of neighbours down and across in ``[3, H, W]``."""
    return pixels[:, 1:] - pixels[:, :-1], pixels[:, :, 1:] - pixels[:, :, :-1]


def mean_variation(pixels: np.ndarray) -> float:
    down, across = differences(pixels)
    return float((down**2).mean() + (across**2).mean())


def transport(features: np.ndarray, target: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of normal distributions without any matrix root.

    |m - n|² + tr A + tr B - 2 tr (A^½ B A^½)^½, in which the last trace is the sum of the singular values of XᵀY for
    A = XXᵀ and B = YYᵀ, such as the centred activations over the root of their number.
    """
    (m, x), (n, y) = (_centred(flat(each)) for each in (features, target))
    # Triangular factors have the same products, and at most as many columns as there are channels.
    x, y = np.linalg.qr(x.T, mode="r").T, np.linalg.qr(y.T, mode="r").T
    shared = np.linalg.svd(x.T @ y, compute_uv=False).sum()
    return float(((m - n) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * shared)


def _centred(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    means = f.mean(1)
    return means, (f - means[:, None]) / np.sqrt(f.shape[1])


def terms(
    preset: str,
    features: Activations,
    content: Activations,
    style: Activations,
    pixels: np.ndarray,
    *,
    caffe_content: float,
    caffe_style: float,
) -> dict[str, float]:
    """The weighted content, style and total variation terms of one picture.

    Args:
        features, content, style: activations of the picture, the content and the style; one size.
        pixels: of the picture, ``[3, H, W]`` in [0, 1].
        caffe_content, caffe_style: how many times larger activations of the original network are.
    """
    blocks = FIRST_OF_EACH_BLOCK
    # As the original network would give them.
    caffe = {name: caffe_content * values for name, values in features.items()}
    caffe_target = {name: caffe_content * values for name, values in content.items()}
    strong = {name: caffe_style * values for name, values in features.items()}
    strong_target = {name: caffe_style * values for name, values in style.items()}
    down, across = differences(pixels)

    if preset == "lienzo":
        return {
            "content": squares_of(features["relu4_2"], content["relu4_2"]).mean(),
            "style": 20.0 * sum(mean_style(features[name], style[name]) for name in blocks) / 5,
            "tv": 60.0 * mean_variation(pixels),
        }
    if preset == "wasserstein":
        distances = [transport(features[name], style[name]) / len(features[name]) for name in blocks]
        return {
            "content": squares_of(features["relu4_2"], content["relu4_2"]).mean(),
            "style": 60.0 * sum(distances) / 5,
            "tv": 60.0 * mean_variation(pixels),
        }
    if preset == "gatys":
        # Equations 1, 5 and 7 with w_l = 1/5.
        alpha, beta = 1e-3, 1e6
        return {
            "content": alpha * squares_of(features["relu4_2"], content["relu4_2"]).sum() / 2,
            "style": beta * sum(layer_style(features[name], style[name]) / 5 for name in blocks),
            "tv": 0.0,
        }
    if preset == "thesis-adam":
        alpha, beta = 1e3, 1e-2
        return {
            "content": alpha * squares_of(caffe["relu5_2"], caffe_target["relu5_2"]).mean(),
            "style": beta * sum(mean_style(strong[name], strong_target[name]) / 5 for name in blocks),
            "tv": 0.0,
        }
    if preset == "thesis-lbfgs":
        alpha, beta = 0.025, 1.0
        return {
            "content": alpha * squares_of(caffe["relu5_2"], caffe_target["relu5_2"]).sum(),
            "style": beta * sum(layer_style(strong[name], strong_target[name]) / 5 for name in blocks),
            "tv": 0.0,
        }
    if preset == "neural-style":
        # nn.MSECriterion of Gram matrices over the number of elements; a module with strength 100 for each layer.
        def module(name: str) -> float:
            elements = strong[name].size
            return squares_of(gram(strong[name]) / elements, gram(strong_target[name]) / elements).mean()

        levels_down, levels_across = differences(255 * pixels)
        return {
            "content": 5.0 * squares_of(caffe["relu4_2"], caffe_target["relu4_2"]).mean(),
            "style": sum(100.0 * module(name) for name in blocks),
            # Its gradient is strength × (differences to either side): that of half the squares.
            "tv": 1e-3 * ((levels_down**2).sum() + (levels_across**2).sum()) / 2,
        }
    if preset == "tensorflow":
        return {
            "content": 1e4 * squares_of(caffe["relu5_2"], caffe_target["relu5_2"]).mean(),
            "style": 1e-2 / 5 * sum(mean_style(strong[name], strong_target[name]) for name in blocks),
            "tv": 30.0 * (np.abs(down).sum() + np.abs(across).sum()),
        }
    if preset == "slides":

        def cost(name: str) -> float:
            n_c, h, w = features[name].shape
            return squares_of(gram(features[name]), gram(style[name])).sum() / (h * w * n_c) ** 2

        return {
            "content": 1e-3 * squares_of(features["relu4_2"], content["relu4_2"]).sum() / 2,
            "style": 2.5e5 * sum(0.2 * cost(name) for name in blocks),
            "tv": 0.0,
        }
    raise KeyError(preset)


def golden() -> dict:
    return {
        "conversion": CONVERSION,
        "presets": {name: USUAL | stated for name, stated in PRESETS.items()},
    }


if __name__ == "__main__":
    Path(__file__).with_name("presets.json").write_text(json.dumps(golden(), indent=1) + "\n", encoding="utf-8")
