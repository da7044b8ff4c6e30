"""Memory of processes that do the same again and again: what is freed is kept for the next time.

By default glibc gives each array of 128 kB or more back to the system at once, and clearing new pages then takes an
eighth of the time of an ingest, and a third of that of making batches. Huge pages, which NumPy asks for, are searched
for and cleared as a whole: twice the time of a first unit.
"""

from __future__ import annotations

import ctypes
import functools

import pyarrow as pa

__all__ = ["keep_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_PR_SET_THP_DISABLE = 41  # prctl.h of Linux


@functools.cache
def keep_memory() -> None:
    """Let the C library keep freed memory, in this process. Other C libraries have no `mallopt`, other systems no
    `prctl`: nothing changes there."""
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own gives memory back as eagerly
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    if hasattr(library, "mallopt"):
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            library.mallopt(parameter, 1 << 30)
