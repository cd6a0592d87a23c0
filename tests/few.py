"""Runs of each test few combinations of its parameters, in which each value of each one occurs.

A plugin of pytest for places where all combinations would take too long: `PYTEST_PLUGINS=tests.few`
holds for the tests that a test starts in a process of its own, too. `make test` runs them all.
"""

from __future__ import annotations

from collections import defaultdict

import pytest


def _values(item: pytest.Item) -> set[tuple[str, str]]:
    callspec = getattr(item, "callspec", None)
    return {(name, str(value)) for name, value in callspec.params.items()} if callspec else set()


def few(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of the combinations of one test, chosen by how many new values each adds."""
    kept, met = items[:1], _values(items[0])
    while (best := max(items, key=lambda item: len(_values(item) - met))) not in kept:
        kept.append(best)
        met |= _values(best)
    return kept


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    of_tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        of_tests[item.nodeid.split("[")[0]].append(item)
    kept = {item for of_test in of_tests.values() for item in few(of_test)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
