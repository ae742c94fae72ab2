"""The convolutional networks that losses look through, as data: which layers there are and what each of them sees.

VGG-16 and VGG-19: Simonyan and Zisserman 2015, configurations D and E; only the parts before the classifier are here.
ResNet-50 and ResNet-152: He et al. 2016 with the stride on the 3×3 convolution of a block ("v1.5"), as torchvision
trains them, with the classifier's shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from shared.errors import InvalidInput


@dataclass(frozen=True)
class Layer:
    """One named step of a network.

    Attributes:
        kind: ``conv``, ``relu``, ``pool``, or ``block`` (a bottleneck block of ResNet with its rectifier).
        inputs, channels: channels that go in and come out.
        kernel, stride, padding: of the window that moves over the picture; a block's is that of its 3×3 convolution.
        scale: picture pixels from one activation to the next.
        reach: an activation depends on no pixel further than this many from its own, to any side.
    """

    name: str
    kind: str
    inputs: int
    channels: int
    kernel: int
    stride: int
    padding: int
    scale: int
    reach: int


@dataclass(frozen=True)
class Architecture:
    """A network's layers, from the picture inwards.

    Attributes:
        content_layers, style_layers: what is compared where nothing else is said, with weights.
        convolutions: (outputs, inputs, kernel) by the name of each convolution with weights.
        classifier: (classes, features) of the linear map after the average over the last layer; None: it is left out.
    """

    name: str
    layers: Mapping[str, Layer]
    content_layers: Mapping[str, float]
    style_layers: Mapping[str, float]
    convolutions: Mapping[str, tuple[int, int, int]]
    classifier: tuple[int, int] | None = None

    def check(self, layers: Iterable[str]) -> tuple[str, ...]:
        """``layers`` as a tuple.

        Raises:
            InvalidInput: none was given, or one does not exist; the message lists those that do.
        """
        layers = tuple(layers)
        unknown = [name for name in layers if name not in self.layers]
        if unknown or not layers:
            what = f"unknown {self.name} layer {', '.join(map(repr, unknown))}." if unknown else "no layer was named."
            raise InvalidInput(what, hint=f"Layers are: {', '.join(self.layers)}.", field="layers")
        return layers

    def __getitem__(self, layer: str) -> Layer:
        """The layer of that name; raises InvalidInput where it does not exist."""
        (name,) = self.check([layer])
        return self.layers[name]

    def through(self, layers: Iterable[str]) -> tuple[Layer, ...]:
        """Every layer up to the deepest of ``layers``: what has to be computed for them."""
        names = list(self.layers)
        deepest = max(names.index(name) for name in self.check(layers))
        return tuple(self.layers[name] for name in names[: deepest + 1])

    def size(self, layer: str, height: int, width: int) -> tuple[int, int]:
        """Height and width of the activations at ``layer`` for a picture of ``height`` × ``width``."""
        for step in self.through([layer]):
            height, width = (
                (side + 2 * step.padding - step.kernel) // step.stride + 1
                if side + 2 * step.padding >= step.kernel
                else 0
                for side in (height, width)
            )
        return height, width


class _Builder:
    """Adds layers one after the other and keeps count of what an activation sees."""

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.convolutions: dict[str, tuple[int, int, int]] = {}
        self.channels, self.scale, self.reach = 3, 1, 0

    def add(self, name: str, kind: str, channels: int, kernel: int = 1, stride: int = 1, padding: int = 0) -> None:
        self.reach += kernel // 2 * self.scale
        self.scale *= stride
        self.layers[name] = Layer(name, kind, self.channels, channels, kernel, stride, padding, self.scale, self.reach)
        if kind == "conv":
            self.convolutions[name] = (channels, self.channels, kernel)
        if kind == "block":
            width = channels // 4
            self.convolutions[f"{name}.conv1"] = (width, self.channels, 1)
            self.convolutions[f"{name}.conv2"] = (width, width, 3)
            self.convolutions[f"{name}.conv3"] = (channels, width, 1)
            if self.channels != channels:
                self.convolutions[f"{name}.shortcut"] = (channels, self.channels, 1)
        self.channels = channels

    def build(
        self, name: str, content: Mapping[str, float], style: Iterable[str], classes: int | None = None
    ) -> Architecture:
        style = tuple(style)
        return Architecture(
            name,
            MappingProxyType(self.layers),
            MappingProxyType(dict(content)),
            MappingProxyType(dict.fromkeys(style, 1 / len(style))),
            MappingProxyType(self.convolutions),
            None if classes is None else (classes, self.channels),
        )


def _vgg(name: str, convolutions: tuple[int, ...]) -> Architecture:
    network = _Builder()
    for block, (count, channels) in enumerate(zip(convolutions, (64, 128, 256, 512, 512), strict=True), start=1):
        for i in range(1, count + 1):
            network.add(f"conv{block}_{i}", "conv", channels, kernel=3, padding=1)
            network.add(f"relu{block}_{i}", "relu", channels)
        network.add(f"pool{block}", "pool", channels, kernel=2, stride=2)
    return network.build(name, {"relu4_2": 1.0}, (f"relu{block}_1" for block in range(1, 6)))


def _resnet(name: str, blocks: tuple[int, ...], content: str) -> Architecture:
    network = _Builder()
    network.add("conv1", "conv", 64, kernel=7, stride=2, padding=3)
    network.add("relu1", "relu", 64)
    network.add("pool1", "pool", 64, kernel=3, stride=2, padding=1)
    for stage, (count, channels) in enumerate(zip(blocks, (256, 512, 1024, 2048), strict=True), start=1):
        for i in range(1, count + 1):
            stride = 2 if i == 1 and stage > 1 else 1
            network.add(f"layer{stage}_{i}", "block", channels, kernel=3, stride=stride, padding=1)
    style = ("relu1", "layer1_1", "layer2_1", "layer3_1", "layer4_1")
    return network.build(name, {content: 1.0}, style, classes=1000)


VGG16 = _vgg("vgg16", (2, 2, 3, 3, 3))
VGG19 = _vgg("vgg19", (2, 2, 4, 4, 4))
RESNET50 = _resnet("resnet50", (3, 4, 6, 3), content="layer3_2")
RESNET152 = _resnet("resnet152", (3, 8, 36, 3), content="layer3_12")

ADAIN_DECODER = Architecture(
    "adain-decoder",
    MappingProxyType({}),
    MappingProxyType({}),
    MappingProxyType({}),
    MappingProxyType(
        {
            "conv4_1": (256, 512, 3),
            "conv3_4": (256, 256, 3),
            "conv3_3": (256, 256, 3),
            "conv3_2": (256, 256, 3),
            "conv3_1": (128, 256, 3),
            "conv2_2": (128, 128, 3),
            "conv2_1": (64, 128, 3),
            "conv1_2": (64, 64, 3),
            "conv1_1": (3, 64, 3),
        }
    ),
)
"""Not read by layer name: it goes from activations to pixels (:mod:`shared.adain`)."""

ARCHITECTURES = MappingProxyType({a.name: a for a in (VGG19, VGG16, RESNET50, RESNET152, ADAIN_DECODER)})
