"""README says what is true: its lines are the ones that run, its tables list what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.settings import Settings
from shared.fast_models import SHIPPED, ModelLibrary

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `LIENZO_(\w+)` \| `?([^`|]*?)`? \|", README, re.MULTILINE))
    expected = {
        name.upper(): "" if field.default in (None, ()) else str(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert rows == expected


def test_every_shipped_network_stands_in_the_table() -> None:
    for slug in ModelLibrary((SHIPPED,)).models:
        assert f"| `{slug}` |" in README


def test_ci_runs_the_test_line() -> None:
    line = next(line for line in README.splitlines() if line.startswith("pip install") and "[test]" in line)
    assert line == "pip install -e '.[test]' && pytest"
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("picture", re.findall(r"!\[[^]]*\]\(([^)]+)\)", README))
def test_every_picture_is_there(picture: str) -> None:
    assert (ROOT / picture).is_file()
