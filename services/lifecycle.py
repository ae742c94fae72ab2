"""How the processes of a server begin and end: logs, signals, and nobody who stays behind.

BentoML's supervisor starts each service in a process of its own and hands SIGTERM on to all of them at once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Any

import bentoml
import psutil

from services import logs, memory
from services.access import running
from services.health import Inside, revive, survives
from services.settings import settings
from shared.errors import LienzoError

log = logging.getLogger(__name__)

SUPERVISOR = "LIENZO_SUPERVISOR_PID"
"""Environment variable by which a service knows who started it."""
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 1.0


def equip(gateway: bentoml.Service[Any], check: Callable[[], None]) -> None:
    """Give a gateway and all services behind it what their operator needs, in place of what BentoML does about it.

    BentoML's access lines and metrics show paths as they were sent: a ``%0a`` in one forges a line, and everybody can
    make as many time series as there are paths.

    Args:
        check: called by the supervisor before any service starts; what it raises ends the server.
    """

    def deploy() -> None:
        os.environ[SUPERVISOR] = str(os.getpid())
        logs.configure(settings().log, "supervisor")
        try:
            check()
        except LienzoError as error:
            log.critical("%s", error)
            sys.exit(2)

    gateway.inner.deploy_checked = bentoml.on_deployment(deploy)
    for service in gateway.all_services().values():
        service.config["metrics"] = {"enabled": False}
        service.config["logging"] = {"access": {"enabled": False}}
        inside = service is not gateway
        if inside:
            service.inner.__init__ = survives(service.inner.__init__)
            service.inner.revive = revive
            service.add_asgi_middleware(Inside)
        service.inner.__init__ = _logged(service.name, service.inner.__init__)
        service.inner.start_watched = bentoml.on_startup(_starter(service.name, gateway.name if inside else None))


def _logged(name: str, begin: Callable[[Any], None]) -> Callable[[Any], None]:
    """``__init__`` with the log configured before it, where a supervisor has started this process."""

    @functools.wraps(begin)
    def begun(service: Any) -> None:
        if SUPERVISOR in os.environ:
            logs.configure(settings().log, name)
        begin(service)

    return begun


def _starter(name: str, gateway: str | None) -> Callable[[Any], None]:
    """The hook that a service's process runs once it has begun.

    Args:
        gateway: name of the service that must end before this one; None in the gateway itself.
    """

    def start(service: Any) -> None:
        config = settings()
        family = Family(os.environ.get(SUPERVISOR), gateway)
        seconds = config.shutdown_seconds

        def finish() -> None:
            if gateway is None:
                running.wait_until_none(seconds)
            else:
                # At once: nobody waits for a job any more, and a step may take longer than the grace at the end.
                if hasattr(service, "hand_back"):
                    service.hand_back(seconds)
                family.wait_for_gateway(seconds + _GRACE_SECONDS)

        end_gracefully(finish)
        threading.Thread(target=family.watch, name="family", daemon=True).start()
        if not getattr(service, "keeps_freed_memory", False):
            memory.keep_handing_back()
        log.info("ready")

    return start


class Family:
    """The supervisor and the gateway, seen from a service.

    Args:
        supervisor: its process id, from the environment; None where nobody told.
        gateway: name of the gateway's service; None in the gateway.
    """

    def __init__(self, supervisor: str | None, gateway: str | None):
        self.supervisor = int(supervisor) if supervisor else None
        self.gateway = gateway
        self._gateways: list[psutil.Process] = []

    def watch(self) -> None:
        """End this process when its supervisor does: who was killed sent no signal."""
        while self.supervisor is None or os.getppid() == self.supervisor:
            if self.gateway is not None and not any(process.is_running() for process in self._gateways):
                self._gateways = self._find()
            time.sleep(_LOOK_SECONDS)
        log.error("the supervisor is gone")
        os.kill(os.getpid(), signal.SIGTERM)

    def wait_for_gateway(self, seconds: float) -> None:
        """Wait until the gateway has ended: what it is finishing may still need this service."""
        psutil.wait_procs(self._gateways, timeout=seconds)

    def _find(self) -> list[psutil.Process]:
        found = []
        with contextlib.suppress(psutil.Error):
            for sibling in psutil.Process(os.getppid()).children():
                with contextlib.suppress(psutil.Error):
                    command = sibling.cmdline()
                    if ("--service-name", self.gateway) in pairwise(command):
                        found.append(sibling)
        return found


def end_gracefully(finish: Callable[[], None]) -> None:
    """On SIGTERM or SIGINT take nothing new, run ``finish``, and only then end as the server would have at once.

    A second signal ends it at once. What has not ended some seconds after that, such as a painting in a thread, which
    nobody can stop, is left.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def end(number: int, frame: FrameType | None) -> None:
        finish()
        before[number](number, frame)
        time.sleep(_GRACE_SECONDS)
        log.warning("what still runs is given up")
        os._exit(0)

    def asked(number: int, frame: FrameType | None) -> None:
        if running.draining.is_set():
            before[number](number, frame)
            return
        running.draining.set()
        threading.Thread(target=end, args=(number, frame), name="end", daemon=True).start()

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, asked)
