"""What uploads leave behind: memory that is free, but that the C library does not hand back to the system by itself."""

from __future__ import annotations

import ctypes
import threading
import time

import psutil

LOOK_SECONDS = 2.0
MOST_CHANGE = 16 * 2**20
"""Bytes by which a process may have grown or shrunk before something is handed back again: it takes milliseconds."""


def hand_back() -> bool:
    """Give the memory that this process has freed back to the system; False where the C library is not glibc.

    After a picture of 60 megapixels glibc keeps hundreds of megabytes, spread over its arenas: what lies at the end of
    one is handed back at once, what lies before something that lives only by ``malloc_trim``.
    """
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return False
    trim(0)
    return True


def keep_handing_back() -> None:
    """Call :func:`hand_back` in a thread of its own whenever this process has become larger or smaller."""
    if hand_back():
        threading.Thread(target=_keep_handing_back, name="memory", daemon=True).start()


def _keep_handing_back() -> None:
    process, last = psutil.Process(), 0
    while True:
        # Smaller too: the last time may have been in the middle of a large picture.
        if abs(process.memory_info().rss - last) > MOST_CHANGE:
            hand_back()
            last = process.memory_info().rss
        time.sleep(LOOK_SECONDS)
