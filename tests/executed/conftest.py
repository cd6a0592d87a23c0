"""These tests compile kernels. They are not collected without Triton or under its interpreter."""

from vaez_kernels.backend import interpreting, triton

if triton is None or interpreting():
    collect_ignore_glob = ["test_*.py"]
