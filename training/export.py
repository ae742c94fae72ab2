"""Exports a trained network as a fast model: ``model.onnx`` and ``card.json``, compared with PyTorch first."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch

from shared.errors import LienzoError
from shared.fast_models import CARD_FILE, MODEL_FILE, Card, InputCard, ParityCard
from shared.files import sha256
from shared.onnx_runtime import open_session
from shared.transform_network import MIN_SIDE, STRIDE, TransformNetwork

log = logging.getLogger(__name__)

OPSET = 18
PARITY_LIMIT = 1e-3
"""Largest difference, on [0, 1], between PyTorch's output and ONNX Runtime's that an export may have."""

PARITY_SHAPES = ((1, 64, 64), (2, 97, 131), (1, 255, 190), (3, 32, 45), (1, 301, 402))
"""Batch, height and width of the comparisons: even and odd, small and usual, one picture and several."""

_INPUT = InputCard()


class ParityError(LienzoError):
    """The exported network computes something else than the trained one."""

    code = "parity"


def write_onnx(network: TransformNetwork, path: Path, *, half: bool = False) -> None:
    """Write ``network`` to ``path`` with dynamic batch, height and width, its weights inside the file.

    Args:
        half: store the weights as float16, which halves the file. They are widened when it is loaded: all computation
            stays fp32. Rounding them moved five paintings by less than a tenth of a level (89 dB).
    """
    network = network.cpu().float().eval()
    # Odd sizes that differ, so that the exporter takes neither for a constant nor both for one.
    example = torch.rand(2, 3, 67, 93)
    dynamic = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=(dynamic,),
            input_names=[_INPUT.name],
            output_names=["painted"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        program.save(path, external_data=False)
    model = onnx.load(path)
    # Where each node came from in PyTorch is of no use to a server, and names the exporting machine's files.
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.functions[:]
    if half:
        _store_halves(model.graph, network.state_dict().keys())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _store_halves(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Store the initializers ``names`` as float16 with a cast to float32 behind each, which runtimes fold at load."""
    wide = {}
    for tensor in graph.initializer:
        if tensor.name in names:
            with np.errstate(over="ignore"):  # parity will tell
                halves = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(halves, tensor.name))
            wide[tensor.name] = f"{tensor.name}.wide"
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in wide:
                node.input[i] = wide[name]
    casts = [
        onnx.helper.make_node("Cast", [name], [cast], name=cast, to=onnx.TensorProto.FLOAT)
        for name, cast in wide.items()
    ]
    kept = [value for value in graph.value_info if value.name not in wide]  # it says that they are float32
    del graph.value_info[:]
    graph.value_info.extend(kept)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@torch.no_grad()
def measure_parity(network: TransformNetwork, path: Path) -> ParityCard:
    """Compare ``network`` with the file at ``path`` at :data:`PARITY_SHAPES`, on the CPU in fp32.

    Raises:
        ParityError: a shape differs, or an output by more than :data:`PARITY_LIMIT`.
    """
    network = network.cpu().float().eval()
    session = open_session(path, device="cpu")
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, height, width in PARITY_SHAPES:
        pictures = torch.rand(batch, 3, height, width, generator=generator)
        (painted,) = session.run(None, {_INPUT.name: pictures.numpy()})
        expected = network(pictures).numpy()
        if painted.shape != expected.shape:
            raise ParityError(f"ONNX Runtime paints {painted.shape} where PyTorch paints {expected.shape}.")
        # NumPy's maximum keeps a NaN, which Python's would drop.
        worst = float(np.maximum(worst, np.abs(painted - expected).max()))
    if not worst <= PARITY_LIMIT:
        raise ParityError(
            f"the exported network differs from the trained one by {worst:.2g}, expected at most {PARITY_LIMIT}.",
            hint="This is a bug of the exporter's version; nothing was written.",
        )
    return ParityCard(max_difference=worst, shapes=PARITY_SHAPES)


def _write_smallest(network: TransformNetwork, path: Path) -> ParityCard:
    """With weights of float16 where that keeps parity, else of float32."""
    try:
        write_onnx(network, path, half=True)
        return measure_parity(network, path)
    except ParityError as error:
        log.info("weights stay float32: %s", error)
    write_onnx(network, path)
    return measure_parity(network, path)


def export_model(network: TransformNetwork, folder: Path, card_fields: Mapping[str, object]) -> Card:
    """Write the fast model ``folder``, replacing what was there only once the new one is whole and compared.

    Args:
        network: the trained network.
        folder: the model's folder; its name is the slug.
        card_fields: the fields of :class:`shared.fast_models.Card` that the export does not know by itself.

    Raises:
        ParityError: the export differs from the network; nothing is written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        staged = Path(temporary) / "model"
        staged.mkdir(mode=0o755)
        parity = _write_smallest(network, staged / MODEL_FILE)
        card = Card.model_validate(
            {
                **card_fields,
                "slug": folder.name,
                "width": network.width,
                "parameters": sum(p.numel() for p in network.parameters()),
                "input": _INPUT,
                "stride": STRIDE,
                "min_side": MIN_SIDE,
                "opset": OPSET,
                "parity": parity,
                "sha256": sha256(staged / MODEL_FILE),
            }
        )
        (staged / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        replaced = Path(temporary) / "replaced"
        if folder.exists():
            folder.rename(replaced)
        try:
            staged.rename(folder)
        except BaseException:
            if replaced.exists():
                replaced.rename(folder)
            raise
    log.info("exported %s, parity %.1e", folder, parity.max_difference)
    return card
