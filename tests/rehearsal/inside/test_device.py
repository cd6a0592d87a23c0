"""Memory is limited, fresh memory is not zero, and wrong calls are refused."""

from __future__ import annotations

import os

import pytest
import torch

from tests.rehearsal import stand_in


def test_the_device_says_that_it_is_rehearsed() -> None:
    name, capability = {
        "h100": ("NVIDIA H100 (rehearsed)", (9, 0)),
        "a100": ("NVIDIA A100 (rehearsed)", (8, 0)),
    }[os.environ["REHEARSAL_DEVICE"]]
    assert torch.cuda.get_device_name() == name
    assert torch.cuda.get_device_capability() == capability
    assert torch.cuda.get_device_properties(0).total_memory == 80 << 30


def test_more_memory_than_there_is_is_refused() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(81 << 30, dtype=torch.uint8, device="cuda")
    stand_in.set_memory(torch.cuda.memory_reserved() + (64 << 20))
    torch.empty(32 << 20, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(128 << 20, dtype=torch.uint8, device="cuda")


def test_memory_that_is_freed_can_be_had_again() -> None:
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    assert torch.cuda.mem_get_info() == (free - (1 << 30), total)
    del x
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info() == (free, total)


def test_fresh_memory_is_not_a_number() -> None:
    torch.cuda.empty_cache()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert torch.empty(3 << 20, device="cuda", dtype=dtype)[-100:].cpu().isnan().all()


def test_a_copy_beyond_its_allocation_is_refused() -> None:
    import ctypes

    cudart = ctypes.CDLL("libcudart.so.13")
    pointer = ctypes.c_void_p()
    assert cudart.cudaMalloc(ctypes.byref(pointer), 1 << 20) == 0
    here = ctypes.create_string_buffer(64)
    at_end = ctypes.c_void_p((pointer.value or 0) + (1 << 20) - 32)
    to_device = 1
    assert cudart.cudaMemcpyAsync(at_end, here, ctypes.c_size_t(32), to_device, None) == 0
    assert cudart.cudaMemcpyAsync(at_end, here, ctypes.c_size_t(33), to_device, None) == 1
    assert cudart.cudaMemsetAsync(at_end, 0, ctypes.c_size_t(33), None) == 1
    assert cudart.cudaFree(pointer) == 0
    assert cudart.cudaFree(pointer) == 1
    assert cudart.cudaGetLastError() == 1


def test_what_the_stand_in_lacks_fails_by_name(capfd: pytest.CaptureFixture[str]) -> None:
    import ctypes

    unsupported = 801
    assert ctypes.CDLL("libcublas.so.13").cublasSgetrfBatched() == unsupported
    assert ctypes.CDLL("libcuda.so.1").cuStreamWriteValue32_v2() == unsupported
    told = capfd.readouterr().err
    assert "has no cublasSgetrfBatched" in told
    assert "has no cuStreamWriteValue32_v2" in told
