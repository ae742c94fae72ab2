"""One way to import torchvision that also works beside a torch build its compiled extension cannot load with."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from types import ModuleType

import torch

_lock = threading.Lock()


def import_torchvision() -> ModuleType:
    """The torchvision package, with ``models`` and ``transforms`` (v2 included) usable.

    Package indexes serve torchvision as a CUDA build. Beside a CPU build of torch its extension ``_C`` lacks torch's
    CUDA libraries and is skipped. The import then stops at ``operator torchvision::nms does not exist``, because
    ``torchvision._meta_registrations`` describes two operators that only the extension declares. Neither models nor
    transforms call them, so declaring their signatures lets the import go through; ``torchvision.ops.nms`` itself
    still says that the extension is missing. Where the extension loads, nothing is declared.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: the import failed for any other reason.
    """
    with _lock:
        try:
            torchvision = importlib.import_module("torchvision")
        except RuntimeError as error:
            if "operator torchvision::nms does not exist" not in str(error):
                raise
            _declare_operators()
            # The failed import leaves submodules behind whose parent is gone.
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            torchvision = importlib.import_module("torchvision")
        importlib.import_module("torchvision.transforms.v2")
        return torchvision


@functools.cache  # operators vanish with the Library object that declared them
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
