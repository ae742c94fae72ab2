"""API keys: a JSON file of their hashes, who has which, and how often each may ask.

A key is 256 random bits, so its SHA-256 alone does: to find a key from its hash, or another of the same hash, takes
2^256 tries however fast one is. Slow hashes such as scrypt protect passwords, which people choose and others guess;
here one would only make every request dear, and refusing strangers dearest.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import InvalidInput, LienzoError, NotFound
from shared.files import write_atomically

log = logging.getLogger(__name__)

PREFIX = "lienzo_"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
LOOK_AGAIN_SECONDS = 1.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Key(_Part):
    """One key as the file has it."""

    name: str = Field(pattern=NAME)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the whole key, as text")
    created: str
    rate: float | None = Field(default=None, gt=0, description="requests a minute; the server's setting where none")
    burst: int | None = Field(default=None, ge=1, description="requests at once; the server's setting where none")


class KeyFile(_Part):
    """The file: every key that is good."""

    format: Literal[1] = 1
    keys: tuple[Key, ...] = ()


class KeysUnreadable(LienzoError):
    """The file of keys is missing or malformed."""

    code = "keys_unreadable"


def read(path: Path) -> tuple[Key, ...]:
    """The keys in a file.

    Raises:
        KeysUnreadable: there is no such file, or it is not one of ours.
    """
    try:
        return KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise KeysUnreadable(
            f"the file of keys '{path}' cannot be read: {error.strerror}.", hint="Make one with `lienzo keys add NAME`."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise KeysUnreadable(
            f"the file of keys '{path}' is malformed: {'.'.join(map(str, first['loc']))}: {first['msg']}.",
            hint="Put a copy back, or remove it and add the keys anew.",
        ) from error


def add(path: Path, name: str, *, rate: float | None = None, burst: int | None = None) -> str:
    """Make a key for ``name`` and write its hash into the file, which is made where there is none.

    Returns:
        The key. Nothing keeps it: who loses it needs a new one.

    Raises:
        InvalidInput: the name or a rate is not allowed, or the name has a key already.
        KeysUnreadable: what is there is no file of keys.
    """
    key, created = PREFIX + secrets.token_urlsafe(32), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        made = Key(name=name, sha256=_hash(key), created=created, rate=rate, burst=burst)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise InvalidInput(
            f"{field} is '{first['input']}': {first['msg']}.",
            hint="A name has at most 64 letters, digits, '.', '_' and '-'." if field == "name" else "",
            field=field,
        ) from error
    with _locked(path):
        keys = read(path) if path.exists() else ()
        if any(other.name == name for other in keys):
            raise InvalidInput(
                f"'{name}' has a key already.", hint="Choose another name, or remove that one first.", field="name"
            )
        _write(path, (*keys, made))
    return key


def remove(path: Path, name: str) -> None:
    """Take the key of ``name`` out of the file.

    Raises:
        NotFound: nobody of that name has one.
        KeysUnreadable: what is there is no file of keys.
    """
    with _locked(path):
        keys = read(path)
        left = tuple(key for key in keys if key.name != name)
        if left == keys:
            raise NotFound(f"'{name[:80]}' has no key.", hint="`lienzo keys list` shows who has one.", field="name")
        _write(path, left)


class KeyRing:
    """The keys of a running server: the file is read again when it changes.

    Args:
        path: of the file.
        rate, burst: of the keys that have none of their own: requests a minute, and at once.
        clock: seconds that never go back.

    Raises:
        KeysUnreadable: the file cannot be read at the start. Later the last good one holds.
    """

    def __init__(self, path: Path, *, rate: float, burst: int, clock: Callable[[], float] = time.monotonic):
        self._path = path
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, TokenBucket] = {}
        self._stamp = _stamp(path)
        self._keys = read(path)
        self._looked = clock()

    def find(self, presented: str) -> Key | None:
        """The key that was presented, or None."""
        self._look_again()
        digest, found = _hash(presented), None
        for key in self._keys:  # all of them, each in constant time: how long it takes tells nothing
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def wait(self, key: Key) -> float:
        """0 where ``key`` may ask now, and that is counted; else the seconds until it may."""
        with self._lock:
            rate, burst = key.rate or self._rate, key.burst or self._burst
            bucket = self._buckets.get(key.sha256)
            if bucket is None or (bucket.rate, bucket.burst) != (rate, burst):
                bucket = self._buckets[key.sha256] = TokenBucket(rate, burst, self._clock())
            return bucket.take(self._clock())

    def _look_again(self) -> None:
        with self._lock:
            if self._clock() - self._looked < LOOK_AGAIN_SECONDS:
                return
            self._looked = self._clock()
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._keys = read(self._path)
            except KeysUnreadable as error:
                log.error("the keys stay as they were: %s", error)
                return
            good = {key.sha256 for key in self._keys}
            self._buckets = {hash: bucket for hash, bucket in self._buckets.items() if hash in good}
            log.info("the keys were read again: %d", len(self._keys))


class TokenBucket:
    """Lets ``burst`` requests through at once and ``rate`` a minute in the long run."""

    def __init__(self, rate: float, burst: int, now: float):
        self.rate = rate
        self.burst = burst
        self._tokens = float(burst)
        self._filled = now

    def take(self, now: float) -> float:
        """0 where there was a token, which is gone now; else the seconds until the next."""
        self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate / 60)
        self._filled = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) * 60 / self.rate


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _locked(path: Path) -> FileLock:
    """Two who add at once both get their key."""
    if not path.parent.is_dir():
        raise InvalidInput(f"the folder '{path.parent}' does not exist.", hint="Create it first.", field="file")
    return FileLock(path.with_name(f".{path.name}.lock"))


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    write_atomically(path, KeyFile(keys=keys).model_dump_json(indent=2, exclude_none=True).encode() + b"\n")
