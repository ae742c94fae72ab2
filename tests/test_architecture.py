"""The rooms' rules: which way imports go, what each room may use, and what no code may do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("shared", "training", "services")
MODULES = [path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
each_module = pytest.mark.parametrize("module", MODULES, ids=str)

COMMAND_LINES = {
    "services/cli.py",
    "services/keys_command.py",
    "services/optimize_command.py",
    "services/stylize_command.py",
    "training/bench_command.py",
    "training/cli.py",
    "training/clusters_command.py",
    "training/embed_command.py",
    "training/evaluate_command.py",
    "training/index_command.py",
    "training/load_command.py",
    "training/search_command.py",
    "training/styles_command.py",
    "training/train_command.py",
}
"""What draws progress bars: the command lines, and what they run."""


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), filename=str(module))


def imports(module: Path) -> Iterator[str]:
    """Full names of everything that a module imports, at its top or inside a function."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            # "from shared import console" imports a module too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(module: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)}


def calls(module: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls by the name that they are written with, such as ``torch.load``."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_rooms_are_there():
    assert {module.parts[0] for module in MODULES} == set(ROOMS)
    assert all(sum(module.parts[0] == room for module in MODULES) > 5 for room in ROOMS)


@each_module
def test_imports_point_one_way(module):
    """services → shared ← training."""
    allowed = {"shared": {"shared"}, "training": {"shared", "training"}, "services": {"shared", "services"}}
    crossed = packages(module) & {*ROOMS, "tests"} - allowed[module.parts[0]]
    assert not crossed, f"{module} imports {', '.join(crossed)}"


_WEB = {"bentoml", "fastapi", "starlette", "uvicorn", "httptools", "multipart"}
_TERMINAL = {"typer", "click", "rich", "argparse", "tqdm"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] == "shared"], ids=str)
def test_the_library_knows_neither_http_nor_the_terminal(module):
    foreign = packages(module) & (_WEB | _TERMINAL)
    assert not foreign or (module.as_posix() == "shared/console.py" and foreign <= _TERMINAL)


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] == "training"], ids=str)
def test_training_knows_no_http(module):
    assert not packages(module) & _WEB


@each_module
def test_only_the_command_lines_draw_on_the_terminal(module):
    uses = any(name.startswith("shared.console") for name in imports(module))
    assert not uses or module.as_posix() in COMMAND_LINES


_PRINTS = {"print", "sys.stdout.write", "sys.stderr.write"}


@each_module
def test_nothing_prints_but_the_console(module):
    if module.as_posix() != "shared/console.py":
        assert not [node.lineno for name, node in calls(module) if name in _PRINTS]


_NEVER = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "marshal.loads", "eval", "exec"}


@each_module
def test_nothing_unpickles_or_evaluates(module):
    found = {name: node.lineno for name, node in calls(module) if name in _NEVER}
    assert not found
    names = set(imports(module))
    assert not {"pickle.load", "pickle.loads", "joblib.load", "torch.load"} & names, "imported by its bare name"


@each_module
def test_torch_loads_weights_only(module):
    for name, node in calls(module):
        if name in {"torch.load", "torch.jit.load", "torch.hub.load"}:
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            safe = name == "torch.load" and ast.unparse(options.get("weights_only", node)) == "True"
            assert safe, f"{module}:{node.lineno}"
        if name in {"np.load", "numpy.load"}:
            assert all(k.arg != "allow_pickle" for k in node.keywords), f"{module}:{node.lineno}"


def test_the_checks_see_what_they_look_for():
    """Torch is loaded somewhere, and the console is used somewhere: the walks above are not blind."""
    loads = [module for module in MODULES for name, _ in calls(module) if name == "torch.load"]
    assert Path("training/checkpoints.py") in loads and Path("shared/weights.py") in loads
    console = {m.as_posix() for m in MODULES if any(name.startswith("shared.console") for name in imports(m))}
    assert console == COMMAND_LINES


@each_module
def test_subprocesses_get_no_shell(module):
    for name, node in calls(module):
        assert name not in {"os.system", "os.popen"}, f"{module}:{node.lineno}"
        if name.startswith("subprocess."):
            assert all(keyword.arg != "shell" for keyword in node.keywords), f"{module}:{node.lineno}"


@each_module
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(tree(module)), f"{module} has no docstring"


@each_module
def test_no_except_is_bare(module):
    for node in ast.walk(tree(module)):
        assert not isinstance(node, ast.ExceptHandler) or node.type is not None, f"{module}:{node.lineno}"


@each_module
def test_nothing_edits_the_import_path(module):
    assert "sys.path" not in {ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}


def imported_by(name: str) -> set[str]:
    """Top-level packages in memory after a fresh interpreter imported ``name``."""
    code = f"import sys, {name}; print(*{{module.partition('.')[0] for module in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("name", ["shared.fast_models", "shared.fast_painting", "shared.onnx_runtime", "shared.images"])
def test_fast_painting_does_not_need_pytorch(name):
    """A server that only runs ONNX models starts quickly and small."""
    found = imported_by(name)
    assert "shared" in found
    assert not found & {"torch", "torchvision", "training", "services", "typer", "rich", "bentoml"}


def test_the_reference_optimiser_needs_no_web_server():
    found = imported_by("shared.optimized_painting")
    assert "torch" in found, "the walk above is not blind"
    assert not found & {"training", "services", "typer", "bentoml", "onnx", "tensorboard", "matplotlib"}
