"""Published settings of the per-image optimiser, by name.

Formulas are those of the source: what a formula divides by and what we divide by differ by constants, which are in the
layer weights. Where a source leaves a number open, or meant another network, the preset says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from shared.architectures import ARCHITECTURES, VGG19
from shared.errors import InvalidInput
from shared.optimizer import DEFAULT_LOSS, OptimizerSettings
from shared.perceptual_loss import LossSettings

CAFFE_STYLE_SCALE = 285.0
CAFFE_CONTENT_SCALE = 30.0
"""How many times larger activations of the original VGG-19 are than those of the activation-normalised one.

Weights published for the original network are brought to the normalised one by these: style losses go with the fourth
power, content losses with the second. The true factor differs from channel to channel and is not recorded in the
normalised weights; these two are such that the first settings of the thesis start where its table 3 does (style loss
1.2e8) and come to rest at its balance (content 1.7 times style).
"""


@dataclass(frozen=True)
class Preset:
    """A way of painting.

    Attributes:
        summary: one line for a listing.
        source: where the settings were published.
        encoder, pooling: the network to look through.
        size: longer side in pixels that the source worked at.
        square: the source brought both pictures to a square, whatever their shape.
        warm: start from a painting by adaptive instance normalisation.
    """

    name: str
    summary: str
    source: str
    settings: OptimizerSettings = field(default_factory=OptimizerSettings)
    encoder: str = "vgg19"
    pooling: str = "max"
    size: int = 512
    square: bool = False
    warm: bool = False


def _style_layers(weight: float, *, over_channels_squared: bool = False) -> Mapping[str, float]:
    """``weight`` for relu1_1 … relu5_1, or weight / C² at each."""
    layers = (f"relu{block}_1" for block in range(1, 6))
    return MappingProxyType(
        {layer: weight / (VGG19[layer].channels ** 2 if over_channels_squared else 1) for layer in layers}
    )


def _content(layer: str, weight: float = 1.0) -> Mapping[str, float]:
    return MappingProxyType({layer: weight})


_STYLE = CAFFE_STYLE_SCALE**4
_CONTENT = CAFFE_CONTENT_SCALE**2

_PRESETS = (
    Preset(
        "lienzo",
        "From a first painting by AdaIN, L-BFGS, coarse to fine, in few steps: what the service paints with.",
        "This project; weights chosen by eye. First painting: Huang and Belongie 2017.",
        OptimizerSettings(optimizer="lbfgs"),
        warm=True,
    ),
    Preset(
        "wasserstein",
        "As lienzo, with styles compared as distributions instead of Gram matrices.",
        "Wasserstein-2 style loss: Vacher et al. 2020, and style-transfer-pytorch (Crowson); weights chosen by eye.",
        OptimizerSettings(optimizer="lbfgs", loss=replace(DEFAULT_LOSS, style_form="wasserstein", style_weight=60.0)),
        warm=True,
    ),
    Preset(
        "gatys",
        "The paper: noise, L-BFGS, average pooling, 500 evaluations.",
        "Gatys, Ecker and Bethge 2016, equations 1, 4, 5 and 7. On its normalised network the sums balance with "
        "content 1e-3 against style 1e6, as in Lasagne's reproduction (Recipes, Art Style Transfer); the paper's own "
        "α/β of 1e-3 is for activations scaled otherwise.",
        OptimizerSettings(
            steps=500,
            optimizer="lbfgs",
            start="uniform",
            scales=1,
            loss=LossSettings(
                content_layers=_content("relu4_2"),
                style_layers=_style_layers(0.2 / 4),
                content_weight=1e-3,
                style_weight=1e6,
                tv_weight=0.0,
                content_form="half_sum",
            ),
        ),
        pooling="average",
    ),
    Preset(
        "thesis-adam",
        "The thesis's first experiment: 1,000 steps of Adam from the content, α 1e3, β 1e-2, conv5_2.",
        "Thesis on bimodal style transfer from text to images, section 4.3.2 to 4.3.5 and table 3. It names neither "
        "learning rate nor betas: those are of the TensorFlow notebook of 2018 that has the same layers and weights. "
        "Its content values (table 3) are of means over activations.",
        OptimizerSettings(
            steps=1000,
            learning_rate=5 / 255,
            beta1=0.99,
            beta2=0.999,
            epsilon=0.1,
            final_rate=1.0,
            scales=1,
            loss=LossSettings(
                content_layers=_content("relu5_2", _CONTENT),
                style_layers=_style_layers(_STYLE / 5),
                content_weight=1e3,
                style_weight=1e-2,
                tv_weight=0.0,
            ),
        ),
        size=224,
        square=True,
    ),
    Preset(
        "thesis-lbfgs",
        "The thesis's second experiment: 10 outer iterations of L-BFGS from the content, α 0.025, β 1.",
        "Thesis on bimodal style transfer from text to images, section 4.3.6 and table 4; 20 evaluations an outer "
        "iteration, as in the Keras example that has the same weights.",
        OptimizerSettings(
            steps=200,
            optimizer="lbfgs",
            search_iterations=16,
            scales=1,
            loss=LossSettings(
                content_layers=_content("relu5_2", _CONTENT),
                style_layers=_style_layers(_STYLE / 5 / 4),
                content_weight=0.025,
                style_weight=1.0,
                tv_weight=0.0,
                content_form="sum",
            ),
        ),
        size=224,
        square=True,
    ),
    Preset(
        "neural-style",
        "Justin Johnson's neural-style: L-BFGS from grey, 1,000 evaluations, style 100, content 5, TV 1e-3.",
        "github.com/jcjohnson/neural-style, defaults of neural_style.lua; Gram matrices divided by C·H·W. It starts "
        "from the mean colour with noise of 0.001 grey levels: grey.",
        OptimizerSettings(
            steps=1000,
            optimizer="lbfgs",
            start="grey",
            scales=1,
            history=100,
            loss=LossSettings(
                content_layers=_content("relu4_2", _CONTENT),
                style_layers=_style_layers(_STYLE, over_channels_squared=True),
                content_weight=5.0,
                style_weight=1e2,
                tv_weight=1e-3 / 2 * 255**2,
                tv_form="sum_squared",
            ),
        ),
    ),
    Preset(
        "tensorflow",
        "The TensorFlow tutorial: Adam from the content, 1,000 steps, content 1e4, style 1e-2, TV 30.",
        "tensorflow.org, tutorials/generative/style_transfer.",
        OptimizerSettings(
            steps=1000,
            learning_rate=0.02,
            beta1=0.99,
            beta2=0.999,
            epsilon=0.1,
            final_rate=1.0,
            scales=1,
            loss=LossSettings(
                content_layers=_content("relu5_2", _CONTENT),
                style_layers=_style_layers(_STYLE / 5),
                content_weight=1e4,
                style_weight=1e-2,
                tv_weight=30.0,
                tv_form="sum_absolute",
            ),
        ),
    ),
    Preset(
        "slides",
        "The slides' cost functions: ½ ‖·‖² for content, 1/(h w n_c)² for style, λ per layer, random start.",
        "Slides on style transfer between pictures (2017), after Gatys et al. 2015. They leave α, β, λ and the "
        "optimiser open: here α 1e-3 and β 2.5e5 as in 'gatys' (whose style loss is a quarter of theirs), λ 1/5, Adam.",
        OptimizerSettings(
            steps=500,
            start="uniform",
            learning_rate=0.02,
            final_rate=1.0,
            scales=1,
            loss=LossSettings(
                content_layers=_content("relu4_2"),
                style_layers=_style_layers(0.2),
                content_weight=1e-3,
                style_weight=2.5e5,
                tv_weight=0.0,
                content_form="half_sum",
            ),
        ),
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _PRESETS})
"""Every preset by name; the first is the default."""


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InvalidInput: there is none; the message lists them.
    """
    if name not in PRESETS:
        raise InvalidInput(f"there is no preset '{name}'.", hint=f"Presets are: {', '.join(PRESETS)}.", field="preset")
    return PRESETS[name]


def relative_loss(architecture: str) -> LossSettings:
    """The default loss for a network whose activations are not normalised: every layer relative to its target.

    The weights are those that leave the balance of the default on VGG-19 about as it is.
    """
    network = ARCHITECTURES[architecture]
    return replace(
        DEFAULT_LOSS,
        content_layers=network.content_layers,
        style_layers=network.style_layers,
        relative=True,
    )
