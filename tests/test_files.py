from __future__ import annotations

import hashlib
import os
import sys

import pytest

from shared.files import sha256, write_atomically


def test_writes_the_bytes_and_nothing_else(tmp_path):
    path = tmp_path / "card.json"
    write_atomically(path, b"\0whole\n")
    assert path.read_bytes() == b"\0whole\n"
    assert list(tmp_path.iterdir()) == [path]


def test_replaces_an_older_file(tmp_path):
    path = tmp_path / "card.json"
    path.write_bytes(b"a longer text that stood here before")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_respects_the_umask(tmp_path):
    path = tmp_path / "card.json"
    old = os.umask(0o027)
    try:
        write_atomically(path, b"x")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_behind(tmp_path, monkeypatch, failure):
    path = tmp_path / "card.json"
    path.write_bytes(b"old")
    seen = []

    def fail(descriptor):
        seen.extend(name.name for name in tmp_path.iterdir() if name != path)
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(failure)):
        write_atomically(path, b"new")
    assert len(seen) == 1, "the new bytes were in a temporary file of the same folder when the disk failed"
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_a_name_that_cannot_be_taken_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "card.json"
    folder.mkdir()
    with pytest.raises(OSError):
        write_atomically(folder, b"new")
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "card.json", b"x")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_still_works(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"


def test_sha256_of_known_bytes(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_a_file_larger_than_any_block(tmp_path):
    data = bytes(range(256)) * 12_345
    path = tmp_path / "large"
    path.write_bytes(data)
    assert sha256(path) == hashlib.sha256(data).hexdigest()
