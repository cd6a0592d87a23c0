"""Tests of computed results, run in a process that computes them (see test_cuda_tests.py)."""
