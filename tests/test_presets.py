"""Presets are what their sources publish, and what the command line makes of them is what was asked for."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import hills, strokes

from services.optimize_command import ADAIN, Choices, Plan, plan
from shared import presets, weights
from shared.architectures import ARCHITECTURES, VGG19
from shared.encoders import Encoder
from shared.errors import InvalidInput
from shared.images import decode, encode, to_tensor
from shared.optimized_painting import paint_optimized
from shared.optimizer import DEFAULT_LOSS, STARTS
from shared.perceptual_loss import PerceptualLoss
from shared.presets import CAFFE_CONTENT_SCALE, CAFFE_STYLE_SCALE, PRESETS, preset, relative_loss

GOLDEN = Path(__file__).parent / "golden"
golden = json.loads((GOLDEN / "presets.json").read_text(encoding="utf-8"))

READABLE = [name for name, architecture in ARCHITECTURES.items() if architecture.layers]
"""Networks that are read by layer name."""


@pytest.fixture(scope="module")
def generator():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(GOLDEN)
        patch.delitem(sys.modules, "generate_presets", raising=False)
        import generate_presets
    return generate_presets


@pytest.fixture(scope="module")
def encoders(vgg19, encoder) -> dict[str, Encoder]:
    return {"max": encoder, "average": Encoder(vgg19, pooling="average")}


def test_the_golden_values_are_the_generators(generator):
    assert json.loads(json.dumps(generator.golden())) == golden


# What the sources say


def test_every_preset_has_a_golden_and_the_first_is_the_services():
    assert list(PRESETS) == list(golden["presets"])
    assert next(iter(PRESETS)) == Choices().preset == "lienzo"
    assert PRESETS["lienzo"].settings.loss == DEFAULT_LOSS
    for name, each in PRESETS.items():
        assert each.name == name and each.summary and each.source


@pytest.mark.parametrize("name", golden["presets"])
def test_no_number_of_a_preset_changes_unnoticed(name):
    """But for how a formula's constants are spread over the layers: that is for the losses below to tell."""
    each = PRESETS[name]
    found = {key: getattr(each, key) for key in ("encoder", "pooling", "size", "square")}
    found |= each.settings.as_dict()
    found |= found.pop("loss")
    for key in ("content_layers", "style_layers"):
        found[key] = list(found[key])
    for key in ("content_form", "tv_form"):
        del found[key]
    expected = golden["presets"][name]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key


def test_the_conversion_to_the_normalised_network_does_not_change_unnoticed():
    assert {name: getattr(presets, name) for name in golden["conversion"]} == golden["conversion"]


@pytest.mark.parametrize("name", golden["presets"])
def test_the_loss_is_the_sources_own_formula(generator, encoders, name):
    """On one triple of pictures, from the same activations."""
    each = PRESETS[name]
    encoder, loss = encoders[each.pooling], each.settings.loss
    noise = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(5))
    pictures = {
        "picture": 0.7 * to_tensor(hills(64, 48, seed=1)) + 0.3 * noise,
        "content": to_tensor(hills(64, 48, seed=2)),
        "style": to_tensor(strokes(64, 48)),
    }
    with torch.no_grad():
        judge = PerceptualLoss(encoder, loss)
        content, style = judge.content_target(pictures["content"]), judge.style_target(pictures["style"])
        found = judge(pictures["picture"], content, style).values()
        seen = {
            key: {layer: values[0].double().numpy() for layer, values in encoder(picture, loss.layers).items()}
            for key, picture in pictures.items()
        }
    expected = generator.terms(
        name,
        seen["picture"],
        seen["content"],
        seen["style"],
        pictures["picture"][0].double().numpy(),
        caffe_content=CAFFE_CONTENT_SCALE,
        caffe_style=CAFFE_STYLE_SCALE,
    )
    del found["total"]
    # Where a layer has fewer positions than channels, rounding in fp32 decides what has no spread.
    tolerance = 1e-3 if loss.style_form == "wasserstein" else 1e-4
    assert found == {term: pytest.approx(value, rel=tolerance) for term, value in expected.items()}
    assert found["content"] > 0 and found["style"] > 0


def test_a_preset_that_does_not_exist_is_told_with_those_that_do():
    with pytest.raises(InvalidInput, match="no preset 'gatys2016'") as refusal:
        preset("gatys2016")
    assert refusal.value.field == "preset"
    assert refusal.value.hint == f"Presets are: {', '.join(PRESETS)}."
    assert preset("slides") is PRESETS["slides"]


def test_presets_cannot_be_changed_by_whoever_reads_them():
    with pytest.raises(TypeError):
        PRESETS["lienzo"] = PRESETS["gatys"]
    with pytest.raises(TypeError):
        PRESETS["gatys"].settings.loss.style_layers["relu1_1"] = 1.0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_paints(encoders, name):
    """Three steps of it; the picture is brought to the shape that the source worked at."""
    each = PRESETS[name]
    seen = []
    painting = paint_optimized(
        encoders[each.pooling],
        encode(hills(80, 60)),
        encode(strokes(70, 70)),
        dataclasses.replace(each.settings, steps=3),
        size=64,
        square=each.square,
        on_iteration=lambda iteration: seen.append(iteration.losses["total"]),
    )
    assert painting.steps == len(seen) == 3
    assert all(math.isfinite(total) and total > 0 for total in seen)
    assert decode(painting.data).size == ((64, 64) if each.square else (64, 48))
    assert np.asarray(decode(painting.data)).std() > 0


@pytest.mark.parametrize("name", READABLE)
def test_the_relative_loss_is_of_layers_that_the_network_has(name):
    loss, network = relative_loss(name), ARCHITECTURES[name]
    assert loss.relative and loss.content_layers and loss.style_layers
    assert set(loss.layers) <= set(network.layers)
    assert (loss.content_layers, loss.style_layers) == (network.content_layers, network.style_layers)
    same = ("content_weight", "style_weight", "tv_weight", "content_form", "style_form", "tv_form")
    assert all(getattr(loss, field) == getattr(DEFAULT_LOSS, field) for field in same)


# What the command line makes of them


@pytest.fixture(autouse=True)
def no_weights(request, monkeypatch):
    """A plan is made before anything slow: for its tests, nothing may be loaded or fetched."""
    if "planned" in request.fixturenames:

        def fail(*_, **__):
            raise AssertionError("weights were touched")

        for name in ("load", "fetch", "locate"):
            monkeypatch.setattr(weights, name, fail)


@pytest.fixture
def planned():
    """Makes a plan of fields of :class:`Choices`."""

    def make(**choices) -> Plan:
        return plan(Choices(**choices))

    return make


NOTHING_ASKED = {
    "settings": dict.fromkeys(("steps", "optimizer", "scales", "learning_rate", "seed", "patience", "ema", "tile")),
    "loss": dict.fromkeys(
        ("content_weight", "style_weight", "tv_weight", "content_layers", "style_layers", "style_form")
    ),
}
"""As the command line says that an option was not given."""


@pytest.mark.parametrize("name", PRESETS)
def test_where_nothing_is_asked_the_preset_holds(planned, name):
    found, each = planned(preset=name, **NOTHING_ASKED), PRESETS[name]
    assert found.preset is each
    assert found.settings == each.settings
    assert (found.encoder, found.pooling, found.size) == (each.encoder, each.pooling, each.size)
    assert (found.precision, found.warm_start) == ("auto", ADAIN if each.warm else None)


def test_the_services_presets_start_from_a_first_painting_and_published_ones_as_published(planned):
    assert [name for name, each in PRESETS.items() if each.warm] == ["lienzo", "wasserstein"]
    assert planned(start="content").warm_start is None
    assert planned(preset="gatys", start="adain").warm_start == ADAIN
    # The decoder knows the activations of one network.
    assert planned(encoder="vgg16").warm_start is None
    with pytest.raises(InvalidInput, match="needs the encoder vgg19, not vgg16") as refusal:
        planned(encoder="vgg16", start="adain")
    assert refusal.value.field == "start"


def test_what_is_asked_goes_before_the_preset(planned):
    asked = {
        "steps": 7,
        "optimizer": "adam",
        "scales": 2,
        "learning_rate": 0.5,
        "seed": 9,
        "patience": 3,
        "ema": 0.9,
        "tile": 512,
    }
    loss = {
        "content_weight": 0.0,
        "style_weight": 3.0,
        "tv_weight": 0.25,
        "content_layers": {"relu3_1": 1.0},
        "style_layers": {"conv1_1": 2.0, "pool3": 1.0},
        "style_form": "wasserstein",
    }
    found = planned(
        preset="gatys",
        encoder="vgg19",
        pooling="max",
        precision="bfloat16",
        size=100,
        start="grey",
        settings=asked,
        loss=loss,
    )
    assert (found.pooling, found.precision, found.size, found.warm_start) == ("max", "bfloat16", 100, None)
    assert {name: getattr(found.settings, name) for name in asked} == asked
    assert found.settings.start == "grey"
    assert {name: getattr(found.settings.loss, name) for name in loss} == loss
    # All else is still the preset's.
    kept = PRESETS["gatys"].settings
    assert dataclasses.replace(found.settings, **{name: getattr(kept, name) for name in asked}, start=kept.start) == (
        dataclasses.replace(kept, loss=found.settings.loss)
    )
    assert found.settings.loss.content_form == kept.loss.content_form
    assert PRESETS["gatys"].settings.steps == 500, "the preset itself stays"


@pytest.mark.parametrize("start", STARTS)
def test_a_start_by_name_is_a_setting(planned, start):
    found = planned(start=start)
    assert (found.settings.start, found.warm_start) == (start, None)


def test_any_other_start_is_kept_to_be_looked_up(planned):
    found = planned(preset="gatys", start="udnie")
    assert (found.settings.start, found.warm_start) == ("uniform", "udnie")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("only", "other"), [("content", "style"), ("style", "content")])
def test_only_one_of_the_two_is_reconstructed_from_noise(planned, name, only, other):
    found, each = planned(preset=name, only=only, **NOTHING_ASKED).settings, PRESETS[name].settings
    assert getattr(found.loss, f"{other}_layers") == {}
    assert getattr(found.loss, f"{only}_layers") == getattr(each.loss, f"{only}_layers")
    assert (found.loss.tv_weight, found.start) == (0.0, "uniform")
    assert found == dataclasses.replace(each, start="uniform", loss=found.loss)
    assert planned(preset=name, only=only).warm_start is None


def test_a_reconstruction_starts_and_is_smoothed_as_it_is_asked_to(planned):
    found = planned(only="style", start="content", loss={"tv_weight": 4.0, "style_layers": {"relu1_1": 1.0}}).settings
    assert (found.start, found.loss.tv_weight) == ("content", 4.0)
    assert (dict(found.loss.style_layers), dict(found.loss.content_layers)) == ({"relu1_1": 1.0}, {})
    found = planned(only="content", start="udnie")
    assert found.warm_start == "udnie"


@pytest.mark.parametrize(("only", "other"), [("content", "style"), ("style", "content")])
def test_only_the_one_with_layers_of_the_other_is_refused(planned, only, other):
    with pytest.raises(InvalidInput, match=f"only is '{only}', but {other} layers were named") as refusal:
        planned(only=only, loss={f"{other}_layers": {"relu1_1": 1.0}})
    assert refusal.value.field == "only"


@pytest.mark.parametrize("encoder", ["vgg19-torchvision", "vgg16", "resnet50"])
def test_with_another_network_the_default_is_relative(planned, encoder):
    found, network = planned(encoder=encoder).settings.loss, weights.architecture(encoder)
    assert found == relative_loss(network.name)
    assert set(found.layers) <= set(network.layers)
    # Weights that are asked for are then relative ones.
    asked = planned(encoder=encoder, loss={"style_weight": 2.0}).settings.loss
    assert asked == dataclasses.replace(found, style_weight=2.0)
    only = planned(encoder=encoder, only="content").settings.loss
    assert only.relative and only.content_layers == network.content_layers and not only.style_layers


def test_with_another_network_a_published_preset_stays_as_it_was_published(planned):
    assert planned(preset="gatys", encoder="vgg16").settings == PRESETS["gatys"].settings
    assert not planned(encoder="vgg19").settings.loss.relative


@pytest.mark.parametrize(
    ("choices", "field", "complaint"),
    [
        ({"preset": "nope"}, "preset", list(PRESETS)),
        ({"encoder": "alexnet"}, "encoder", ["vgg19", "vgg19-torchvision", "vgg16", "resnet50"]),
        ({"pooling": "median"}, "pooling", ["max", "average"]),
        ({"encoder": "adain-decoder"}, "encoder", ["vgg19", "vgg19-torchvision", "vgg16", "resnet50"]),
        ({"precision": "float16"}, "precision", ["auto", "float32", "bfloat16"]),
        ({"only": "both"}, "only", ["content", "style"]),
        ({"settings": {"optimizer": "sgd"}}, "optimizer", ["adam", "lbfgs"]),
        ({"loss": {"style_form": "histogram"}}, "style_form", ["gram", "wasserstein"]),
        ({"loss": {"content_layers": {"relu9_9": 1.0}}}, "layers", list(VGG19.layers)),
        ({"loss": {"style_layers": {"layer1_1": 1.0}}}, "layers", list(VGG19.layers)),
        (
            {"encoder": "resnet50", "loss": {"style_layers": {"relu1_1": 1.0}}},
            "layers",
            list(ARCHITECTURES["resnet50"].layers),
        ),
        # Layers of VGG-19, which the preset names.
        ({"encoder": "resnet50", "preset": "gatys"}, "layers", list(ARCHITECTURES["resnet50"].layers)),
    ],
)
def test_a_name_that_cannot_be_is_told_with_those_that_can(planned, choices, field, complaint):
    with pytest.raises(InvalidInput) as refusal:
        planned(**choices)
    assert refusal.value.field == field
    line = str(refusal.value)
    assert "\n" not in line
    assert ", ".join(complaint) in line


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"settings": {"steps": 0}}, "steps is 0"),
        ({"settings": {"learning_rate": math.nan}}, "learning_rate is nan"),
        ({"settings": {"learning_rate": 0.1}}, "a learning rate is Adam's"),
        ({"loss": {"tv_weight": -1.0}}, "tv_weight is -1"),
        ({"loss": {"style_weight": math.inf}}, "style_weight is inf"),
        ({"loss": {"content_layers": {}, "style_layers": {}}}, "no layer was named"),
        ({"preset": "gatys", "settings": {"ema": 0.9}}, "ema averages the iterates of adam"),
    ],
)
def test_a_number_that_cannot_be_is_told(planned, choices, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        planned(**choices)
