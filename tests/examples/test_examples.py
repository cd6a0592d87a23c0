"""The programs in examples/ train, on small data; steps run as they are traced."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from examples import colour, counts, loader, table
from tests.training.uncompiled import uncompiled
from vaez_fast import Evaluation


@pytest.fixture(autouse=True)
def traced_steps() -> Iterator[None]:
    with uncompiled():
        yield


def better(first: Evaluation, second: Evaluation) -> bool:
    """Whether the second is better by more than its standard error."""
    assert math.isfinite(second.log_px)
    assert second.elbo <= second.log_px
    return second.elbo > first.elbo + second.elbo_error


def test_colour_images_are_learned() -> None:
    first, second = (colour.main(rows=128, epochs=n) for n in (1, 5))
    assert better(first, second)


def test_counts_are_learned() -> None:
    first, second = (counts.main(rows=512, genes=50, epochs=n) for n in (1, 12))
    assert better(first, second)


def test_a_table_is_learned_with_a_learned_prior() -> None:
    first, second = (table.main(rows=512, epochs=n) for n in (1, 30))
    assert better(first, second)


def test_a_loader_and_a_log_of_ones_own_are_used() -> None:
    lines = loader.main(rows=512, epochs=3)
    assert len(lines) == 3
    bounds = [float(line.split("ELBO ")[1].split()[0]) for line in lines]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1]


@pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")
def test_an_encoder_of_diffusers_is_trained() -> None:
    from examples import diffusers_encoder

    first, second = (diffusers_encoder.main(rows=36, epochs=n) for n in (1, 6))
    assert better(first, second)
