"""On Linux, the C library keeps the memory that a program frees, so that the next array of that size is ready to use.

By itself glibc gives every array above 32 MB back to the system and maps the next one anew, and the system sets up all
of its pages again: in a training program on CPUs, a third of the processors' time.
"""

import ctypes
import os
import sys
from collections.abc import Mapping

VARIABLE, CHOICES = "EXPERIMENTS_MEMORY", ("kept", "fresh")

# Numbers from <malloc.h>: no array is mapped by itself, nothing is given back (-1), and all threads share one heap,
# because what one thread frees another one needs.
SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
# The same for a program that cannot say it itself.
VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}


def keep_freed_memory() -> bool:
    """Tells glibc to keep what this process frees, and returns whether it did. To be called before threads start.

    It does nothing with another C library, and where the environment says something else: `EXPERIMENTS_MEMORY=fresh`,
    a variable of glibc's `malloc`, or another allocator in its place.
    """
    if not sys.platform.startswith("linux") or is_settled(os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(number, value) for number, value in SETTINGS.values())


def is_settled(environment: Mapping[str, str]) -> bool:
    """Whether the user has said how memory is to be handed out. Huge pages go with memory that is kept.

    >>> is_settled({"MALLOC_ARENA_MAX": "2"}), is_settled({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})
    (True, False)
    """
    tunables = environment.get("GLIBC_TUNABLES", "").split(":")
    return (
        environment.get(VARIABLE) == "fresh"
        or any(name.startswith("MALLOC_") for name in environment)
        or any(t.startswith("glibc.malloc.") and not t.startswith("glibc.malloc.hugetlb=") for t in tunables)
        or "malloc" in environment.get("LD_PRELOAD", "")
    )


def is_command(package: str) -> bool:
    """Whether Python is about to run a module of `package`, as `python -m package.module`.

    While Python looks for the module, `-m` stands where the path of the program will stand.
    """
    if sys.argv[:1] != ["-m"]:
        return False
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    return module == package or module.startswith(f"{package}.")
