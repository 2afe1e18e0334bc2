"""The heap of a process of its own: blocks that go back when they are freed, and a limit on its growth."""

import ctypes
import resource
import sys
from pathlib import Path

M_MMAP_THRESHOLD = -3
"""Number of this parameter in malloc.h."""


def return_freed_blocks() -> None:
    """Let every block of 128 KiB and more go back to the system once it is freed.

    glibc raises this threshold with every large block that is freed and keeps what lies below, up to 64 MB for each
    group of threads, so that by chance a heap counts what nobody uses. Fixed, what counts is what is needed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)


def limit_growth(megabytes: int) -> None:
    """Let the heap of this process grow by so many megabytes at most from now on. Linux only."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    most = int(status["VmData"].split()[0]) * 1024 + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
