"""Code is compiled in threads that end: what torch keeps in one must not be missed by the next."""

from __future__ import annotations

import subprocess
import sys

from bench.soak.kills import ROOT, environment

# Torch 2.11 died of a segmentation fault at the second tracing, hence a process of its own.
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
