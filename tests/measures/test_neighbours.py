"""Precision, recall, density and coverage, compared with the definitions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vaez_fast.measures import neighbours as measured
from vaez_fast.measures.neighbours import Neighbours, neighbours, squared_radii
from vaez_kernels import noise_key, normal


def draws(n: int, d: int, step: int) -> Tensor:
    return normal(noise_key(0, "evaluate", step), 1, n, d)[0]


def textbook(real: Tensor, generated: Tensor) -> Neighbours:
    """From the definitions, one ball after the other."""
    real, generated = real.double(), generated.double()

    def radius(x: Tensor, i: int) -> float:
        return float((x - x[i]).norm(dim=1).sort().values[5])  # 0 is x itself

    def balls(centres: Tensor, points: Tensor) -> Tensor:
        rows = [(points - c).norm(dim=1) <= radius(centres, i) for i, c in enumerate(centres)]
        return torch.stack(rows).double()  # (centres, points)

    of_real, of_generated = balls(real, generated), balls(generated, real)
    return Neighbours(
        precision=float(of_real.amax(0).mean()),
        recall=float(of_generated.amax(0).mean()),
        density=float(of_real.sum()) / (5 * len(generated)),
        coverage=float(of_real.amax(1).mean()),
    )


@pytest.mark.parametrize(
    ("real", "generated"),
    [
        (draws(150, 6, 1), draws(110, 6, 2)),
        (draws(150, 6, 1), 0.5 * draws(110, 6, 2)),  # precise, does not cover
        (draws(150, 6, 1), 2 * draws(110, 6, 2)),
        (draws(90, 2, 1), draws(140, 2, 2) + 1),
    ],
)
def test_scores_are_those_of_the_definitions(
    real: Tensor, generated: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = textbook(real, generated)
    assert len({round(share, 3) for share in own}) == 4
    assert neighbours(real, generated) == pytest.approx(own, abs=1e-12)
    monkeypatch.setattr(measured, "ROWS_AT_ONCE", 37)
    assert neighbours(real, generated) == pytest.approx(own, abs=1e-12)
    assert neighbours(real, generated, squared_radii(real)) == pytest.approx(own, abs=1e-12)


def test_the_real_radii_are_those_that_are_given() -> None:
    real, generated = draws(80, 3, 1), draws(80, 3, 2)
    everywhere = torch.full((80,), 1e6)
    found = neighbours(real, generated, everywhere)
    assert (found.precision, found.coverage, found.density) == (1, 1, 80 / 5)
    assert found.recall == neighbours(real, generated).recall


def test_equal_laws_in_many_dimensions_have_the_scores_of_the_authors_program() -> None:
    # Of 10,000 + 10,000 draws of N(0, I_1000) the README of prdc reports .477, .471, 1.056, .974.
    # The density does not depend on the number of draws; of 2,000 it has a deviation of 0.08.
    real, generated = draws(2000, 1000, 3), draws(2000, 1000, 4)
    assert neighbours(real, generated).density == pytest.approx(1.056, abs=0.25)


def test_a_mode_that_is_left_out_costs_recall_and_coverage_but_no_precision() -> None:
    real = draws(400, 4, 5)
    real[200:] += 30
    half, whole = neighbours(real, draws(400, 4, 6)), neighbours(real, real + 0.001)
    assert half.precision > 0.9
    assert half.coverage <= 0.5 < 0.9 < whole.coverage
    assert half.recall <= 0.5 < 0.9 < whole.recall


def test_a_far_outlier_makes_everything_precise_but_not_dense() -> None:
    # Naeem et al., figure 1: precision is fooled by one real outlier, density is not.
    real, generated = draws(300, 2, 7), draws(300, 2, 8) + 8
    honest = neighbours(real, generated)
    real[0] = 20
    fooled = neighbours(real, generated)
    assert honest.precision == 0
    assert fooled.precision > 0.9
    assert fooled.density < 0.3


def test_copies_are_in_balls_of_radius_zero() -> None:
    point = torch.ones(8, 3)
    assert neighbours(point, point) == (1, 1, 8 / 5, 1)


def test_too_few_features_are_refused() -> None:
    with pytest.raises(ValueError, match="features must be at least 6, got 5"):
        neighbours(draws(50, 2, 1), draws(5, 2, 2))
