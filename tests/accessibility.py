"""axe-core, which looks for breaches of WCAG in a page; fetched from npm's registry, pinned and checked."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

VERSION = "4.10.3"
SHA512 = "Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg=="
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FORBIDDEN = {"serious", "critical"}


def axe_script(folder: Path) -> str:
    """The script, unpacked in ``folder``; skips the test where npm cannot fetch it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("the accessibility tests fetch axe-core with the program npm, which is not here")
    command = [npm, "pack", f"axe-core@{VERSION}", "--prefer-offline", "--ignore-scripts", "--silent"]
    packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    archive = folder / f"axe-core-{VERSION}.tgz"
    if packed.returncode or not archive.exists():
        pytest.skip(f"npm could not fetch axe-core {VERSION}: {packed.stderr.strip()[-300:] or packed.returncode}")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    assert digest == SHA512, f"axe-core {VERSION} has the SHA-512 {digest}, expected {SHA512}"
    with tarfile.open(archive) as files:
        return files.extractfile("package/axe.min.js").read().decode()


def violations(page, script: str) -> list[str]:
    """What axe finds serious or critical in the page as it is, a line each."""
    page.evaluate(script)
    options = {"runOnly": RULES, "resultTypes": ["violations"]}
    found = page.evaluate("async options => (await axe.run(document, options)).violations", options)
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['failureSummary']}"
        for rule in found
        if rule["impact"] in FORBIDDEN
        for node in rule["nodes"]
    ]
