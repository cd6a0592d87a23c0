"""A pytest plugin that runs few combinations of a test's parameters, with every value of each one.

It is for places where all combinations would take too long. Set with
`PYTEST_PLUGINS=tests.project.few`, it also applies to a pytest that a test starts.
"""

from __future__ import annotations

from collections import defaultdict

import pytest


def leave_out(config: pytest.Config, items: list[pytest.Item], left: set[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = [item for item in items if item not in left]


def few(items: list[pytest.Item]) -> set[pytest.Item]:
    """Combinations of one test, chosen greedily by how many new values each adds."""
    kept, met = {items[0]}, _values(items[0])
    values = {item: _values(item) for item in items}
    while (best := max(items, key=lambda item: len(values[item] - met))) not in kept:
        kept.add(best)
        met |= values[best]
    return kept


def _values(item: pytest.Item) -> set[tuple[str, str]]:
    callspec = getattr(item, "callspec", None)
    return {(name, str(value)) for name, value in callspec.params.items()} if callspec else set()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    of_tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        of_tests[item.nodeid.split("[")[0]].append(item)
    leave_out(config, items, set(items).difference(*map(few, of_tests.values())))
