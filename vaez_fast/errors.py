"""What kind of failure an exception is."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a CUDA device or on the host.

    The host's allocator raises a plain RuntimeError, which only its words tell from others.
    """
    import torch  # not for `vaez-fast --help`

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in said or "can't allocate memory" in said or "not enough memory" in said
    )
