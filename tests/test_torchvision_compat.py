"""torchvision imports beside any build of torch, and is left alone where it imports by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(code: str, *, before: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter, with the folder ``before`` ahead of the installed packages."""
    path = os.pathsep.join(str(folder) for folder in (before, ROOT) if folder)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def fake_torchvision(folder: Path, code: str) -> Path:
    package = folder / "torchvision"
    (package / "transforms").mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    (package / "transforms" / "__init__.py").touch()
    (package / "transforms" / "v2.py").touch()
    return folder


def test_models_and_transforms_run():
    result = run("""
import torch
from shared.torchvision_compat import import_torchvision

torchvision = import_torchvision()
assert import_torchvision() is torchvision
from torchvision.transforms import v2

network = torchvision.models.resnet50(weights=None).eval()
picture = v2.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(v2.Resize((64, 64))(torch.rand(1, 3, 80, 96)))
with torch.inference_mode():
    scores = network(picture)
assert scores.shape == (1, 1000) and scores.isfinite().all()
""")
    assert result.returncode == 0, result.stderr


def test_nothing_is_declared_where_torchvision_imports_by_itself(tmp_path):
    result = run(
        """
import torch
from shared.torchvision_compat import import_torchvision

assert import_torchvision().complete
assert not hasattr(torch.ops.torchvision, "nms")
""",
        before=fake_torchvision(tmp_path, "complete = True\n"),
    )
    assert result.returncode == 0, result.stderr


def test_operators_are_declared_where_the_extension_is_missing(tmp_path):
    """As torchvision does it: describe an operator that nothing declared."""
    code = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets

@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return dets
"""
    folder = fake_torchvision(tmp_path, code)
    plain = run("import torchvision", before=folder)
    assert plain.returncode != 0 and "operator torchvision::nms does not exist" in plain.stderr

    result = run("from shared.torchvision_compat import import_torchvision; import_torchvision()", before=folder)
    assert result.returncode == 0, result.stderr


def test_another_failure_is_not_hidden(tmp_path):
    result = run(
        "from shared.torchvision_compat import import_torchvision; import_torchvision()",
        before=fake_torchvision(tmp_path, "raise RuntimeError('a different build fault')\n"),
    )
    assert result.returncode != 0
    assert "RuntimeError: a different build fault" in result.stderr
