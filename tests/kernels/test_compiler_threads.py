"""Code is compiled in threads that end: later threads must not need data stored in earlier ones."""

from __future__ import annotations

import subprocess
import sys

from bench.process import ROOT, environment

# A separate process, because torch 2.11 crashed with a segmentation fault at the second tracing.
PROGRAM = """
import threading
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from vaez_kernels.compiler import isolated

def trace():
    return make_fx(torch.neg, tracing_mode="symbolic")(torch.zeros(5))

for thread in [threading.Thread(target=isolated, args=(trace,)) for _ in range(2)]:
    thread.start()
    thread.join()
print(isolated(trace)(torch.ones(3)).tolist())
"""


def test_graphs_are_traced_in_one_thread_after_another() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[-1.0, -1.0, -1.0]\n"
