"""Data sets: whether their entries fit each other, and rows that are held out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vaez_fast.sources import Entry, SparseRows, check_entries, split, take


def data(n: int = 50) -> dict[str, Entry]:
    """Entries of both kinds; row i of each is recognised by i."""
    i = torch.arange(n)
    return {"x": i[:, None] + torch.tensor([0.0, 0.5]), "label": i, "counts": diagonal(i + 1.0)}


def diagonal(values: torch.Tensor) -> SparseRows:
    n = len(values)
    return SparseRows.of((torch.arange(n + 1), torch.arange(n), values, (n, n)))


def numbers(part: dict[str, Entry]) -> list[int]:
    """The original indices of a part's rows, which all its entries must agree on."""
    x, label, counts = part.values()
    assert isinstance(counts, SparseRows)
    assert isinstance(x, torch.Tensor)
    assert isinstance(label, torch.Tensor)
    assert torch.equal(x[:, 0], label.float())
    found, at = counts.dense().max(1)
    assert torch.equal(found - 1, label.float())
    assert torch.equal(at, label)
    whole: list[int] = label.tolist()
    return whole


def test_the_number_of_rows_is_that_of_every_entry() -> None:
    assert check_entries(data(7)) == 7


ones = torch.ones(2, 3)
NAN, INFINITY = float("nan"), float("inf")
BAD: list[tuple[Any, type[Exception], str]] = [
    ([ones], TypeError, "data must be a dict of tensors, got list"),
    ({}, ValueError, "data must have at least one entry"),
    ({"x": [1, 2]}, TypeError, "x must be a tensor or SparseRows, got list"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x must have shape \(N, ...\) without a 0, got \(\)"),
    ({"x": torch.ones(0, 3)}, ValueError, r"x must have shape .* got \(0, 3\)"),
    ({"x": torch.ones(3, 0)}, ValueError, r"x must have shape .* got \(3, 0\)"),
    ({"x": ones, "y": torch.ones(3)}, ValueError, "x has 2 and y has 3"),
    ({"x": ones, "y": diagonal(torch.tensor([1, 2, 3]))}, ValueError, "x has 2 and y has 3"),
    ({"x": ones * NAN}, ValueError, "x has NaN or infinity in 2 of 2 rows"),
    ({"x": torch.tensor([1, INFINITY, NAN])}, ValueError, "x has NaN or infinity in 2 of 3 rows"),
    (
        {"x": ones, "y": diagonal(torch.tensor([1, INFINITY]))},
        ValueError,
        "y has NaN or infinity in 1 of 2 rows",
    ),
]


@pytest.mark.parametrize(("given", "kind", "says"), BAD)
def test_entries_that_do_not_fit_are_refused(given: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=f"^check_entries: .*{says}"):
        check_entries(given)


def test_finite_numbers_whose_sum_overflows_are_no_fault() -> None:
    assert check_entries({"x": torch.full((4,), 3e38), "y": torch.full((4,), 6e4).half()}) == 4


def test_taken_rows_are_those_of_the_index_in_every_entry() -> None:
    assert numbers(take(data(), torch.tensor([7, 3, 7]))) == [7, 3, 7]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_every_row_is_in_one_part_and_the_parts_keep_their_order(fraction: float) -> None:
    training, held_out = (numbers(part) for part in split(data(), fraction))
    assert len(held_out) == round(50 * fraction)
    assert sorted(training + held_out) == list(range(50))
    assert training == sorted(training)
    assert held_out == sorted(held_out)


def test_the_held_out_rows_are_drawn_from_the_seed() -> None:
    first, again, other = (numbers(split(data(), 0.3, seed)[1]) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first != list(range(15))
    assert first != list(range(35, 50))


def test_a_larger_fraction_holds_out_the_same_rows_and_more() -> None:
    small, large = (set(numbers(split(data(), f)[1])) for f in (0.1, 0.4))
    assert small < large


@pytest.mark.parametrize(("fraction", "sizes"), [(0.001, (49, 1)), (0.999, (1, 49))])
def test_no_part_is_empty(fraction: float, sizes: tuple[int, int]) -> None:
    assert tuple(len(numbers(part)) for part in split(data(), fraction)) == sizes


def test_every_row_is_held_out_by_some_seeds_and_not_by_others() -> None:
    times = torch.zeros(50)
    for seed in range(200):
        times[numbers(split(data(), 0.2, seed)[1])] += 1
    # Each is binomial(200, 0.2): 40 ± 5.7.
    assert times.min() > 40 - 5 * 5.7
    assert times.max() < 40 + 5 * 5.7


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, NAN])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"^split: fraction must be above 0 and below 1, got"):
        split(data(), fraction)


def test_one_row_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"^split: data must have at least two rows, got 1"):
        split(data(1), 0.5)


def test_split_checks_the_entries() -> None:
    with pytest.raises(ValueError, match=r"^split: .* x has 2 and y has 3"):
        split({"x": ones, "y": torch.ones(3)}, 0.5)
