"""Kernels are compiled here: not without Triton, nor where it interprets them."""

from vaez_kernels.backend import interpreting, triton

if triton is None or interpreting():
    collect_ignore_glob = ["test_*.py"]
