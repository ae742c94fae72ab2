"""Servers started for real, as an operator starts them, and watched until they answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
START_SECONDS = 180


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        url: where it listens.
        process: the one that was started; the services are its children.
        log: what it has said.
    """

    url: str
    process: psutil.Popen
    log: Path

    def workers(self) -> dict[str, psutil.Process]:
        """The services' processes by name."""
        found = {}
        for child in self.process.children(recursive=True):
            command = child.cmdline()
            if "--service-name" in command:
                found[command[command.index("--service-name") + 1]] = child
        return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(
    folder: Path,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    *,
    program: str = "lienzo",
    probe: str = "/readyz",
) -> Iterator[Server]:
    """Run ``program serve`` on a free port until the block ends.

    Args:
        folder: for the log and for what BentoML writes.
        program: ``lienzo`` or ``bentoml``, as pip installed it.
        probe: the block begins when this answers 200.
    """
    port, log = free_port(), folder / "server.log"
    command = [str(SCRIPTS / program), "serve", "--host", "127.0.0.1", "--port", str(port), *arguments]
    with log.open("wb") as output:
        process = psutil.Popen(
            command,
            cwd=ROOT,
            # A home of its own: servers that share one delete each other's metrics, and paint each other's jobs.
            env={
                **os.environ,
                "BENTOML_DO_NOT_TRACK": "True",
                "BENTOML_HOME": str(folder),
                "LIENZO_STATE": str(folder / "state"),
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_ready(server, probe)
        yield server
    finally:
        stop(server)


def stop(server: Server, number: int = signal.SIGTERM) -> list[psutil.Process]:
    """Send the server's process group a signal and wait; what is left after a minute is killed and returned."""
    family = [server.process]
    if server.process.is_running():
        family += server.process.children(recursive=True)
        os.killpg(server.process.pid, number)
    _, left = psutil.wait_procs(family, timeout=60)
    # Each service leads a session of its own, so that killing the group alone would leave it.
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    return left


def raw(url: str, request: bytes, *, wait: bool = True) -> bytes:
    """What the server answers to these bytes: a client would tidy an address, or refuse to send it."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b"")) if wait else b""


def _wait_until_ready(server: Server, probe: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.process.returncode}:\n{_tail(server.log)}")
        try:
            if httpx.get(f"{server.url}{probe}", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    raise RuntimeError(f"the server was not ready after {START_SECONDS} s:\n{_tail(server.log)}")


def _tail(log: Path, lines: int = 60) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
