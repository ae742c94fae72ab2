"""What is exported is what was trained, in one file that runs at every size, here and on every shipped model."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from models import card_fields, random_network
from onnx import numpy_helper

from shared.errors import InvalidInput
from shared.fast_models import SHIPPED, Card, ModelLibrary, read_card
from shared.files import sha256
from shared.galleries import read_met
from shared.images import decode, to_array, to_tensor
from shared.losses import grid_energy
from shared.style_space import StyleSpace
from shared.transform_network import MIN_SIDE, STRIDE, TransformNetwork
from training import export
from training.checkpoints import LATEST, save_checkpoint
from training.evaluation import border_profile
from training.export import PARITY_LIMIT, PARITY_SHAPES, ParityError, export_model, measure_parity, write_onnx
from training.train_command import export_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def network() -> TransformNetwork:
    """As the trainer hands it over: in training mode, channels last. Its weights are the same in float16."""
    network = random_network().train().to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    return network


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory) -> Path:
    """The folder of an exported model; read only."""
    folder = tmp_path_factory.mktemp("models") / "test-style"
    export_model(network, folder, card_fields())
    return folder


@pytest.fixture(scope="module")
def session(exported) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])


def pixels(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# --- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(1, 32, 32), (1, 33, 32), (1, 32, 33), (2, 33, 33), (1, 34, 71), (3, 35, 46), (5, 47, 32), (1, 131, 200)],
    ids=str,
)
@torch.no_grad()
def test_every_size_and_batch_is_painted_as_pytorch_paints_it(network, session, shape):
    pictures = pixels(*shape)
    (painted,) = session.run(None, {"pictures": pictures.numpy()})
    assert painted.shape == pictures.shape and painted.dtype == np.float32
    np.testing.assert_allclose(painted, network(pictures).numpy(), atol=PARITY_LIMIT)


def test_the_input_is_dynamic_and_named_as_the_card_says(session, exported):
    (given,), (answered,) = session.get_inputs(), session.get_outputs()
    assert given.name == read_card(exported).input.name == "pictures" and answered.name == "painted"
    for value in (given, answered):
        assert value.type == "tensor(float)"
        assert value.shape[1] == 3
        assert all(isinstance(value.shape[i], str) for i in (0, 2, 3)), "names, not numbers"
    assert len(set(given.shape)) == 4, "height and width are free of each other"


def test_the_folder_is_one_network_with_its_weights_inside_and_a_card(exported, network, tmp_path):
    assert sorted(path.name for path in exported.iterdir()) == ["card.json", "model.onnx"]
    model = onnx.load(exported / "model.onnx", load_external_data=False)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    weights = sum(tensor.numel() * 2 for tensor in network.state_dict().values())
    assert weights < (exported / "model.onnx").stat().st_size < 1.2 * weights + 100_000
    # Alone in another folder, it still runs.
    alone = shutil.copy(exported / "model.onnx", tmp_path)
    onnxruntime.InferenceSession(alone, providers=["CPUExecutionProvider"])


def assert_is_portable(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (operators,) = model.opset_import
    assert operators.domain == "" and operators.version >= 17
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # any word may stand in a million weights
    data = model.SerializeToString()
    homes = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix, str(Path(torch.__file__).parents[1])}
    for place in homes - {"/"}:
        assert place.encode() not in data, f"the exporting machine's {place}"
    assert not re.search(rb'File "|\.py\b|site-packages', data)


def test_the_file_is_portable_and_names_nothing_of_this_machine(exported):
    assert_is_portable(exported / "model.onnx")


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an ONNX file that carry a parameter's name."""
    initializers = onnx.load(path).graph.initializer
    names = TransformNetwork("quarter").state_dict().keys()
    return {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in initializers if t.name in names}


@pytest.mark.parametrize("half", [False, True])
def test_weights_keep_their_names(network, tmp_path, half):
    write_onnx(network, tmp_path / "model.onnx", half=half)
    state = network.state_dict()
    found = weights_of(tmp_path / "model.onnx")
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, state[name].half() if half else state[name]), name


@torch.no_grad()
def test_halves_compute_in_fp32(tmp_path):
    """What the file holds is the network whose weights were rounded, not one that computes in float16."""
    network, rounded = random_network("quarter", seed=3), random_network("quarter", seed=3)
    rounded.load_state_dict({name: tensor.half().float() for name, tensor in network.state_dict().items()})
    write_onnx(network, tmp_path / "model.onnx", half=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    pictures = pixels(1, 40, 56)
    (painted,) = session.run(None, {"pictures": pictures.numpy()})
    assert np.abs(painted - rounded(pictures).numpy()).max() < 2e-5
    assert np.abs(painted - network(pictures).numpy()).max() > 2e-5


def test_weights_that_float16_cannot_hold_stay_float32(tmp_path):
    network = random_network("quarter")
    with torch.no_grad():
        # A scale that float16 rounds to zero, made up for in the layer behind.
        network.up2.norm.weight.mul_(1e-9)
        network.up2.norm.bias.mul_(1e-9)
        network.leave.weight.mul_(1e9)
    card = export_model(network, tmp_path / "model", card_fields())
    assert card.parity.max_difference <= PARITY_LIMIT
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(tmp_path / "model" / "model.onnx").values())


# --- the card ------------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_exported(exported, network):
    card = read_card(exported)
    assert card.slug == "test-style" and card.name == "A Test" and card.width == "quarter"
    assert card.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert (card.stride, card.min_side) == (STRIDE, MIN_SIDE)
    assert card.opset == onnx.load(exported / "model.onnx").opset_import[0].version
    assert card.parity.shapes == PARITY_SHAPES and 0 <= card.parity.max_difference <= PARITY_LIMIT
    assert card.sha256 == sha256(exported / "model.onnx")
    assert card.styles[0].title == "Strokes" and card.data == {"content": "hills", "pictures": 2}


def test_parity_is_measured_at_odd_and_even_sizes_and_several_batches():
    assert {height % 2 for _, height, _ in PARITY_SHAPES} == {width % 2 for *_, width in PARITY_SHAPES} == {0, 1}
    assert len({batch for batch, *_ in PARITY_SHAPES}) > 1


def test_a_library_serves_the_export(exported, network):
    painted = ModelLibrary([exported.parent], device="cpu", engine="onnxruntime")["test-style"].paint(
        pixels(1, 45, 67).numpy()
    )
    with torch.no_grad():
        np.testing.assert_allclose(painted, network(pixels(1, 45, 67)).numpy(), atol=PARITY_LIMIT)


def test_another_networks_file_is_no_parity(exported):
    with pytest.raises(ParityError, match="differs from the trained one by") as error:
        measure_parity(random_network(seed=1), exported / "model.onnx")
    assert error.value.code == "parity"


def test_an_output_of_another_size_is_no_parity(exported, network):
    class Cropped(TransformNetwork):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return super().forward(pictures)[..., :-1]

    cropped = Cropped("quarter")
    cropped.load_state_dict(network.state_dict())
    with pytest.raises(ParityError, match="ONNX Runtime paints .* where PyTorch paints"):  # noqa: RUF043
        measure_parity(cropped, exported / "model.onnx")


def test_an_output_that_is_no_number_is_no_parity(exported, network):
    broken = TransformNetwork("quarter")
    broken.load_state_dict(network.state_dict() | {"leave.bias": torch.full((3,), torch.nan)})
    with pytest.raises(ParityError, match="differs from the trained one by nan"):
        measure_parity(broken, exported / "model.onnx")


# --- replacing a model ---------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch, exported):
    """The exporter takes seconds; here it hands out the module's export, whatever network it is given."""
    monkeypatch.setattr(
        export, "write_onnx", lambda network, path, half=False: shutil.copy(exported / "model.onnx", path)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failed_export_keeps_the_previous_model_and_leaves_nothing_behind(quick, network, tmp_path):
    export_model(network, tmp_path / "wave", card_fields(name="Before"))
    before = contents(tmp_path)
    with pytest.raises(ParityError):
        export_model(random_network(seed=1), tmp_path / "wave", card_fields(name="After"))
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["wave"]
    with pytest.raises(ParityError):
        export_model(random_network(seed=1), tmp_path / "new", card_fields())
    assert [path.name for path in tmp_path.iterdir()] == ["wave"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=type)
def test_dying_between_the_old_model_and_the_new_one_brings_the_old_one_back(
    quick, network, tmp_path, monkeypatch, failure
):
    export_model(network, tmp_path / "wave", card_fields(name="Before"))
    before = contents(tmp_path)
    really = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == "model":
            raise failure
        return really(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(failure)):
        export_model(network, tmp_path / "wave", card_fields(name="After"))
    assert contents(tmp_path) == before


def test_a_new_export_replaces_the_old_model_as_a_whole(quick, network, tmp_path):
    export_model(network, tmp_path / "wave", card_fields(name="Before"))
    (tmp_path / "wave" / "leftover.bin").touch()
    card = export_model(network, tmp_path / "wave", card_fields(name="After"))
    assert read_card(tmp_path / "wave") == card and card.name == "After"
    assert sorted(contents(tmp_path)) == ["wave/card.json", "wave/model.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_others_may_read_the_model(quick, network, tmp_path):
    """A server often runs as another user than the trainer."""
    export_model(network, tmp_path / "models" / "wave", card_fields())
    for path in (tmp_path / "models" / "wave").rglob("*"):
        assert path.stat().st_mode & 0o444 == 0o444, path
    assert (tmp_path / "models" / "wave").stat().st_mode & 0o055 == 0o055


# --- a checkpoint to ONNX ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, network) -> Path:
    average = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    save_checkpoint(tmp_path / "run", {"settings": {"width": "quarter"}, "average": average})
    return tmp_path / "run"


@pytest.mark.slow
def test_a_checkpoint_is_exported(run, network, tmp_path):
    parity = export_checkpoint(run, tmp_path / "out.onnx")
    assert parity.max_difference <= PARITY_LIMIT
    assert measure_parity(network, tmp_path / "out.onnx").max_difference <= PARITY_LIMIT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "run"]


def test_a_failed_export_of_a_checkpoint_keeps_the_older_file(run, tmp_path, exported, monkeypatch):
    def another_network(network, path):
        shutil.copy(exported / "model.onnx", path)
        network.leave.bias.data += 1

    monkeypatch.setattr("training.train_command.write_onnx", another_network)
    (tmp_path / "out.onnx").write_bytes(b"older")
    with pytest.raises(ParityError):
        export_checkpoint(run, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "run"]


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="there is no checkpoint in"):
        export_checkpoint(tmp_path, tmp_path / "out.onnx")
    (tmp_path / LATEST).write_bytes(b"garbage")
    with pytest.raises(InvalidInput, match="no checkpoint in"):
        export_checkpoint(tmp_path, tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == [LATEST]


@pytest.mark.slow
def test_writing_leaves_the_network_as_it_was(tmp_path):
    network = random_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    write_onnx(network, tmp_path / "model.onnx")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# --- what ships ----------------------------------------------------------------------------------------------------

SHIPPED_MODELS = sorted(path for path in SHIPPED.glob("*") if path.is_dir()) if SHIPPED.is_dir() else []
each_shipped_model = pytest.mark.parametrize("folder", SHIPPED_MODELS, ids=lambda folder: folder.name)


def test_at_least_thirteen_models_ship():
    assert len(SHIPPED_MODELS) >= 13
    library = ModelLibrary(device="cpu")
    assert library.refusals == []
    assert sorted(library.models) == [folder.name for folder in SHIPPED_MODELS]


@each_shipped_model
def test_a_shipped_models_card_is_its_own(folder):
    card = read_card(folder)
    assert isinstance(card, Card) and card.slug == folder.name
    assert card.sha256 == sha256(folder / "model.onnx")
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.onnx"]
    assert card.name and card.styles and card.licence and card.commit
    assert card.training["steps"] > 50 and card.data["pictures"] > 50
    assert card.parity.max_difference <= PARITY_LIMIT
    assert card.reference is not None and card.reference.pairs > 0
    assert card.opset >= 17 and card.stride == STRIDE and card.min_side == MIN_SIDE


@each_shipped_model
def test_a_shipped_models_cluster_lies_in_the_shipped_style_space(folder):
    cluster, space = read_card(folder).cluster, StyleSpace.load()
    assert cluster is not None and cluster.style_space == space.fingerprint
    assert len(cluster.centre) == len(space.basis)
    assert np.linalg.norm(cluster.centre) == pytest.approx(1, abs=1e-4)
    assert 0 < cluster.radius < 1


@each_shipped_model
def test_a_shipped_model_is_portable(folder):
    assert_is_portable(folder / "model.onnx")


@each_shipped_model
@torch.no_grad()
def test_a_shipped_model_paints_as_pytorch_paints_with_its_weights(folder):
    """The network is built again from the file's own weights, so this compares every operator of the file."""
    card = read_card(folder)
    network = TransformNetwork(card.width).eval()
    network.load_state_dict(weights_of(folder / "model.onnx"), strict=True)
    assert card.parameters == sum(parameter.numel() for parameter in network.parameters())
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 64, 64), (2, 97, 131), (1, 130, 33), (3, 32, 45)):
        pictures = pixels(*shape)
        (painted,) = session.run(None, {"pictures": pictures.numpy()})
        assert painted.shape == pictures.shape
        np.testing.assert_allclose(painted, network(pictures).numpy(), atol=PARITY_LIMIT)


@each_shipped_model
def test_a_shipped_model_keeps_every_size(folder):
    model = ModelLibrary([SHIPPED], device="cpu")[folder.name]
    for height, width in ((32, 32), (33, 34), (35, 63), (96, 41), (127, 128)):
        painted = model.paint(pixels(1, height, width).numpy())
        assert painted.shape == (1, 3, height, width)
        assert painted.min() >= 0 and painted.max() <= 1 and np.isfinite(painted).all()


BORDER_LIMIT = 1.2
"""Of :func:`training.evaluation.border_profile`: the same networks padded with zeros draw frames of 1.25 and more."""


def middle(picture: torch.Tensor, side: int) -> torch.Tensor:
    top, left = ((length - side) // 2 for length in picture.shape[-2:])
    return picture[..., top : top + side, left : left + side]


@each_shipped_model
def test_a_shipped_model_draws_no_frame(folder):
    model = ModelLibrary([SHIPPED], device="cpu")[folder.name]

    def paint(picture: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model.paint(picture.numpy()))

    # From the middle of paintings, or their own frames would count.
    pictures = [to_tensor(decode(picture.path, longer_side=400)) for picture in read_met().pictures[5::11]]
    crops = [middle(picture, 192) for picture in pictures if min(picture.shape[-2:]) >= 192]
    assert len(crops) > 10
    rings = np.median([border_profile(paint, crop) for crop in crops], axis=0)
    assert rings.max() <= BORDER_LIMIT


@each_shipped_model
def test_a_shipped_model_paints_no_raster(folder):
    """Paintings have up to 5e-5 of it, and so has what these paint; without a weight on it, five times that."""
    model = ModelLibrary([SHIPPED], device="cpu")[folder.name]
    for picture in read_met().pictures[::60]:
        painted = model.paint(to_array(decode(picture.path, longer_side=320)))
        assert grid_energy(torch.from_numpy(painted)) < 1e-4
