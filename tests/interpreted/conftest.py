"""These tests run in a separate process, started by tests/kernels/test_interpreter.py."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
