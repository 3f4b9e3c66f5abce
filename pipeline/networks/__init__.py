"""Teachers and students by timm name."""

import ctypes

from pipeline.torchvision_shim import import_torchvision

import_torchvision()  # timm imports it, too, and must find it importable


def _keep_memory() -> None:
    """Have glibc keep what torch frees, for the next step's tensors.

    Else it hands tensors of some MB back to the system, which zeroes their pages for each step
    anew: a twelfth of the time of training on two cores, and a fifth of evaluation's.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's alone
        libc.mallopt(trim_threshold, -1)
        libc.mallopt(mmap_max, 0)


_keep_memory()
