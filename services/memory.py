"""What uploads leave behind: memory that is free, but that the C library does not hand back to the system by itself."""

from __future__ import annotations

import ctypes
import threading
import time

LOOK_SECONDS = 5.0
IDLE_SECONDS = 0.05
"""Processor time in which nothing is left behind."""


def hand_back() -> bool:
    """Give the memory that this process has freed back to the system; False where the C library is not glibc.

    After a picture of 60 megapixels glibc keeps hundreds of megabytes in its arenas: by itself it hands back only what
    lies above everything that is still needed. It takes 15 ms where there is little, 130 ms where there is much.
    """
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return False
    trim(0)
    return True


def keep_handing_back() -> None:
    """Call :func:`hand_back` in a thread of its own, every few seconds in which this process has worked."""
    if hand_back():
        threading.Thread(target=_keep_handing_back, name="memory", daemon=True).start()


def _keep_handing_back() -> None:
    seen = 0.0
    while True:
        if time.process_time() - seen > IDLE_SECONDS:
            hand_back()
            seen = time.process_time()
        time.sleep(LOOK_SECONDS)
