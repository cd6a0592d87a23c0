"""Claims about computed results, tested in a process that has them (see test_cuda_tests.py)."""
