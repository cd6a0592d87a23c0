"""Training steps that run operator by operator, as traced, instead of compiled.

Compiling a step takes 10 to 20 s of processor time. Many tests are about what surrounds the steps
(when a run stops, what it keeps, what it prints) or about formulas, which a compiler does not
change. test_engine.py, test_train.py, test_kills.py and the benchmarks check that compiled steps
compute the same.
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
        # An empty cache, so that no step compiled before is used and no uncompiled one stays.
        patch.setattr("vaez_fast.training.engine.compiled_graphs", {})
        yield
