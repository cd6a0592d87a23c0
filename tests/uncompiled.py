"""Training steps that run operator by operator, as they were traced.

Compiling one takes 10 to 20 s of processor time. Many tests are about what surrounds the steps
(when a run stops, what it keeps, what it says) or about formulas, which no compiler changes. That
compiled steps compute the same is tested in test_engine.py, test_train.py and test_kills.py, and
checked by the benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def uncompiled() -> Iterator[None]:
    """Engines that are built in this block do not compile their steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vaez_fast.training.engine.compile_graph", lambda graph, *_, **__: graph)
        # Steps that were compiled before are not used, and uncompiled ones not left behind.
        patch.setattr("vaez_fast.training.engine._graphs", {})
        yield
