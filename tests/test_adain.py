"""Adaptive instance normalisation paints any style at once, and is a better start than the content."""

from __future__ import annotations

import pytest
import torch
from scenes import hills, strokes
from torch import nn

from shared import weights
from shared.adain import LAYER, AdaINDecoder, paint_by_statistics
from shared.architectures import ADAIN_DECODER
from shared.images import to_tensor
from shared.optimizer import DEFAULT_LOSS, OptimizerSettings, optimize
from shared.perceptual_loss import PerceptualLoss


@pytest.fixture(scope="module")
def tensors():
    return weights.load("adain-decoder")


@pytest.fixture(scope="module")
def decoder(tensors) -> AdaINDecoder:
    return AdaINDecoder(tensors)


@pytest.fixture(scope="module")
def content() -> torch.Tensor:
    return to_tensor(hills(101, 77))


@pytest.fixture(scope="module")
def style() -> torch.Tensor:
    return to_tensor(strokes(96, 88))


def published(tensors) -> nn.Sequential:
    """The decoder as its authors drew it: VGG-19 up to relu4_1 mirrored (Huang and Belongie 2017, section 6.1)."""
    widths = [512, 256, 256, 256, 256, 128, 128, 64, 64, 3]
    layers: list[nn.Module] = []
    for i, name in enumerate(ADAIN_DECODER.convolutions):
        convolution = nn.Conv2d(widths[i], widths[i + 1], 3)
        convolution.load_state_dict({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})
        layers += [nn.ReflectionPad2d(1), convolution]
        if i < 8:
            layers.append(nn.ReLU())
        if i in (0, 4, 6):
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
    return nn.Sequential(*layers)


def test_the_decoder_is_the_published_one(decoder, tensors):
    features = torch.rand(2, 512, 5, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = published(tensors)(features).clamp(0, 1)
        torch.testing.assert_close(decoder(features), expected, rtol=1e-4, atol=1e-4)
    assert expected.shape == (2, 3, 40, 56) and expected.std() > 0.05


@pytest.mark.parametrize("size", [(64, 64), (77, 101), (65, 72), (96, 33)])
def test_every_size_is_kept_and_the_range_too(encoder, decoder, style, size):
    content = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    painted = paint_by_statistics(encoder, decoder, content, style)
    assert painted.shape == content.shape and painted.dtype == torch.float32
    assert painted.min() >= 0 and painted.max() <= 1 and painted.is_contiguous()


def test_the_decoder_is_given_the_contents_activations_with_the_styles_statistics(encoder, content, style):
    """Equation 8, seen from the decoder; and at strength 0 nothing is exchanged."""
    given = []

    def decode(features: torch.Tensor) -> torch.Tensor:
        given.append(features)
        return torch.zeros(1, 3, features.shape[-2] * 8, features.shape[-1] * 8)

    for strength in (1.0, 0.0, 0.5):
        paint_by_statistics(encoder, decode, content[..., :72, :96], style, strength=strength)
    with torch.no_grad():
        wanted, kept = encoder(style, [LAYER])[LAYER], encoder(content[..., :72, :96], [LAYER])[LAYER]
    torch.testing.assert_close(given[0].mean((-2, -1)), wanted.mean((-2, -1)), rtol=1e-3, atol=1e-3)
    # A channel that is dead in the content stays constant, whatever the style's deviation.
    alive = kept.std((-2, -1)) > 1e-2
    torch.testing.assert_close(given[0].std((-2, -1))[alive], wanted.std((-2, -1))[alive], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(given[1], kept)
    torch.testing.assert_close(given[2], (given[0] + given[1]) / 2)


def test_it_paints_and_gives_the_optimiser_a_lead(encoder, decoder, content, style):
    loss = PerceptualLoss(encoder, DEFAULT_LOSS)
    targets = loss.content_target(content), loss.style_target(style)
    painted = paint_by_statistics(encoder, decoder, content, style)
    with torch.no_grad():
        before, after = loss(content, *targets).values(), loss(painted, *targets).values()
    assert after["style"] < 0.7 * before["style"]
    settings = OptimizerSettings(steps=8, scales=1)
    warm = optimize(content, style, encoder, settings, start=painted).losses["total"]
    cold = optimize(content, style, encoder, settings).losses["total"]
    assert warm < 0.9 * cold


def test_reduced_precision_paints_nearly_the_same(vgg19, tensors, encoder, decoder, content, style):
    from shared.encoders import Encoder

    expected = paint_by_statistics(encoder, decoder, content, style)
    reduced = paint_by_statistics(
        Encoder(vgg19, dtype=torch.bfloat16), AdaINDecoder(tensors, dtype=torch.bfloat16), content, style
    )
    assert (reduced - expected).abs().mean() < 0.02
