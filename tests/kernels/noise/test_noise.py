"""The noise stream: Philox against published test vectors, numbers against their definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.helpers import assert_within, strided_keys
from vaez_kernels import PURPOSES, noise, noise_key, normal, reference, uniform
from vaez_kernels.compiler import has_cpu_compiler

KEY = noise_key(2024, "train", 7)

# Random123's kat_vectors for philox4x32-10: counter, key, output.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def _hex(words: str) -> list[int]:
    return [int(word, 16) for word in words.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_random123s_known_answers(counter: str, key: str, answer: str) -> None:
    words = noise.twin.philox4x32(
        tuple(torch.tensor(k) for k in _hex(key)),  # type: ignore[arg-type]
        tuple(torch.tensor([c]) for c in _hex(counter)),  # type: ignore[arg-type]
    )
    assert [int(word) for word in words] == _hex(answer)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_references_philox_gives_them_too(counter: str, key: str, answer: str) -> None:
    k0, k1 = _hex(key)
    words = reference.philox4x32((k0, k1), np.array(_hex(counter), dtype=np.uint64))
    assert words.tolist() == _hex(answer)


SHAPES = [(1, 1, 1), (3, 7, 3), (1, 129, 19), (8, 7, 20), (2, 5, 128), (3, 3, 257), (50, 64, 64)]


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_follow_the_definition(shape: tuple[int, int, int]) -> None:
    wanted = reference.normal(KEY, *shape)
    assert_within("normal", normal(KEY, *shape), wanted, 1e-6 * wanted.abs().clamp(min=1.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_uniforms_follow_the_definition(shape: tuple[int, int, int]) -> None:
    # The word and its sum with ½ are rounded to 24 bits, each with an error of at most 2⁻²⁴. The
    # clamp below 1 adds no error.
    assert_within("uniform", uniform(KEY, *shape), reference.uniform(KEY, *shape), 2.0**-23)


def _edge_words() -> Tensor:
    near = torch.arange(2000)
    powers = 2 ** torch.arange(1, 32)
    anywhere = torch.randint(0, 2**32, (100_000,), generator=torch.Generator().manual_seed(0))
    edges = (
        near,
        noise.twin.NEAR_ONE - 1000 + near,
        2**32 - 1 - near,
        powers - 1,
        powers,
        anywhere,
    )
    return torch.cat(edges)


def test_the_radius_keeps_its_digits_at_both_ends() -> None:
    words = _edge_words()
    # u has 33 bits, so float64 holds it exactly, and its logarithm to a unit in the last place.
    wanted = torch.sqrt(-2.0 * torch.log((words.double() + 0.5) * 2.0**-32))
    # Twice the spacing of float32: half the rounding errors of the logarithm, and that of the root.
    assert_within("radius", noise.twin.radius_of(words), wanted, 2.4e-7 * wanted)


def test_the_largest_normal_is_below_6_77() -> None:
    # The radius decreases with the word, so word 0 has the largest radius.
    assert noise.twin.radius_of(torch.tensor([0])).item() == pytest.approx(
        math.sqrt(66 * math.log(2))
    )
    assert 6.76 < noise.twin.radius_of(_edge_words()).max().item() < 6.77


def test_the_angle_is_right_in_all_quadrants_and_at_their_borders() -> None:
    border = torch.arange(8)[:, None] * 2**29 + torch.arange(-500, 500)
    words = torch.cat((border.flatten() % 2**32, _edge_words()))
    angle = 2.0 * torch.pi * (words.double() + 0.5) * 2.0**-32
    cos, sin = noise.twin.cos_sin_of(words)
    # The angle omits the ½ (7e-10). The rest are a few roundings of a polynomial below 1.
    assert_within("cos", cos, torch.cos(angle), 2e-7)
    assert_within("sin", sin, torch.sin(angle), 2e-7)


def test_uniforms_lie_strictly_between_0_and_1() -> None:
    u = noise.twin.uniform_of(torch.tensor([0, 1, 2**32 - 2**8, 2**32 - 2, 2**32 - 1]))
    assert u.dtype == torch.float32
    assert u.min().item() == 2.0**-33
    assert u.max().item() == 1.0 - 2.0**-24


def test_compiled_and_eager_draw_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1e6 numbers: eager code runs over many chunks, the last one partial.
    compiled_quads = noise.twin.compiled_quads
    calls = []

    def counted(normal: bool) -> Any:
        calls.append(normal)
        return compiled_quads(normal)

    monkeypatch.setattr(noise.twin, "compiled_quads", counted)
    shape = (5, 1001, 203)
    compiled = normal(KEY, *shape), uniform(KEY, *shape)
    if has_cpu_compiler():
        assert calls == [True, False]
    monkeypatch.setattr(noise.twin, "has_cpu_compiler", lambda: False)
    calls.clear()
    eager = normal(KEY, *shape), uniform(KEY, *shape)
    assert not calls
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize("columns", [1, 19, 20, 257])
class TestANumberDependsOnItsAddressAlone:
    def test_not_on_how_many_samples_or_rows_are_drawn(self, draw: Any, columns: int) -> None:
        assert torch.equal(draw(KEY, 2, 3, columns), draw(KEY, 9, 11, columns)[:2, :3])

    def test_row_offset_continues_the_rows(self, draw: Any, columns: int) -> None:
        assert torch.equal(draw(KEY, 3, 4, columns, row_offset=5), draw(KEY, 3, 9, columns)[:, 5:])

    def test_sample_offset_continues_the_samples(self, draw: Any, columns: int) -> None:
        assert torch.equal(draw(KEY, 3, 4, columns, sample_offset=6), draw(KEY, 9, 4, columns)[6:])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_sample_begins_where_the_one_before_it_ends(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(noise.twin, "has_cpu_compiler", lambda: False)
    # For 49, 98 and other n in this range, n times its float64 reciprocal is below 1.
    for quads in range(1, 260):
        wanted = reference.normal(KEY, 5, 1, 4 * quads)
        assert_within(f"{quads} quads", normal(KEY, 5, 1, 4 * quads), wanted, 1e-5)


def test_samples_beyond_what_float32_counts_keep_their_numbers() -> None:
    # From 2²³ on, float32 cannot represent halves.
    many = normal(KEY, 2**23 + 5, 1, 1)[-8:]
    assert torch.equal(many, normal(KEY, 8, 1, 1, sample_offset=2**23 - 3))


@pytest.mark.parametrize("columns", [3, 20])
@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_row_offsets_carry_into_the_counters_second_word(name: str, columns: int) -> None:
    quads = -(-columns // 4)
    # Rows on both sides of quad 2³², and the largest allowed offset.
    for offset in (2**32 // quads - 2, 2**32, 2**40 + 12345, 2**48 - 1):
        actual = getattr(noise, name)(KEY, 2, 5, columns, row_offset=offset)
        wanted = getattr(reference, name)(KEY, 2, 5, columns, row_offset=offset)
        assert_within(f"{name} at row {offset}", actual, wanted, 1e-5)


@pytest.mark.parametrize("offset", [2**31 - 1, 2**32 - 3])
def test_sample_offsets_reach_all_32_bits(offset: int) -> None:
    actual = normal(KEY, 3, 5, 20, sample_offset=offset)
    wanted = reference.normal(KEY, 3, 5, 20, sample_offset=offset)
    assert_within("normal", actual, wanted, 1e-5)


def test_seed_purpose_and_step_each_change_every_number() -> None:
    keys = [noise_key(3, purpose, 5) for purpose in PURPOSES]
    keys += [noise_key(4, "train", 5), noise_key(2**32 - 1, "train", 5)]
    keys += [noise_key(3, "train", 6), noise_key(3, "train", 2**32 - 1)]
    draws = torch.stack([normal(key, 2, 10, 20).flatten() for key in keys])
    for i in range(len(draws)):
        for j in range(i):
            assert not (draws[i] == draws[j]).any(), (i, j)


def test_all_64_bits_of_the_key_and_32_of_the_step_reach_the_stream() -> None:
    key = noise_key(2**32 - 1, "generate", 2**32 - 1)
    assert_within("normal", normal(key, 2, 3, 20), reference.normal(key, 2, 3, 20), 1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(3, 300), (300, 3), (7, 19), (1, 1000)])
def test_no_two_addresses_share_their_numbers(rows: int, columns: int) -> None:
    # Single numbers (24 bits) collide by chance. Quads of four do not at these sizes.
    padded = -(-columns // 4) * 4
    quads = uniform(KEY, 5, rows, padded).reshape(-1, 4)
    assert len(torch.unique(quads, dim=0)) == len(quads)


def _kolmogorov_smirnov(cdf: Tensor) -> float:
    """√n times the largest distance between the empirical and the uniform distribution."""
    ranked = cdf.double().flatten().sort().values
    steps = torch.arange(len(ranked) + 1, dtype=torch.float64) / len(ranked)
    return len(ranked) ** 0.5 * max(
        (ranked - steps[:-1]).max().item(), (steps[1:] - ranked).max().item()
    )


# Each statistic below exceeds its limit with probability 1e-3 under the tested distribution. The
# key is fixed, so a test that passes once always passes.
NORMAL_LIMIT = 3.29  # of |N(0, 1)|
KOLMOGOROV_LIMIT = 1.95  # 2 exp(−2·1.95²) = 1e-3


@pytest.mark.parametrize("shape", [(1, 10_000, 100), (1000, 10, 100), (50, 1000, 19)])
def test_normals_and_uniforms_have_their_laws(shape: tuple[int, int, int]) -> None:
    n, u = normal(KEY, *shape), uniform(KEY, *shape)
    assert _kolmogorov_smirnov(torch.special.ndtr(n.double())) < KOLMOGOROV_LIMIT
    assert _kolmogorov_smirnov(u) < KOLMOGOROV_LIMIT


def test_normals_have_the_moments_of_a_normal() -> None:
    n = normal(KEY, 10, 1000, 100).double()
    # Mean and standard deviation of the first four moments.
    for power, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        score = ((n**power).mean().item() - mean) / math.sqrt(variance / n.numel())
        assert abs(score) < NORMAL_LIMIT, f"moment {power}: {score:.2f} standard deviations"


@pytest.mark.parametrize("power", [1, 2])
def test_neighbours_are_uncorrelated(power: int) -> None:
    # Also squares: only they would show that two numbers share a radius.
    n = normal(KEY, 10, 1000, 100).double() ** power
    later = normal(torch.stack((KEY[0], KEY[1] + 1)), 10, 1000, 100).double() ** power
    n, later = ((x - x.mean()) / x.std() for x in (n, later))
    pairs = {f"columns {k} apart": (n[..., k:], n[..., :-k]) for k in (1, 2, 3, 4)}
    pairs |= {"rows": (n[:, 1:], n[:, :-1]), "samples": (n[1:], n[:-1]), "steps": (n, later)}
    for name, (one, other) in pairs.items():
        score = (one * other).mean().item() * math.sqrt(one.numel())
        assert abs(score) < NORMAL_LIMIT, f"{name}: {score:.2f} standard deviations"


def test_noise_key_holds_purpose_seed_and_step() -> None:
    for index, purpose in enumerate(PURPOSES):
        key = noise_key(0x89ABCDEF, purpose, 0xFEDCBA98)
        assert (key.dtype, key.tolist()) == (torch.int64, [index << 32 | 0x89ABCDEF, 0xFEDCBA98])
    assert noise_key(1, "train").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("args", "error", "names"),
    [
        ((-1, "train"), ValueError, "seed"),
        ((2**32, "train"), ValueError, "seed"),
        ((1.0, "train"), TypeError, "seed"),
        ((True, "train"), TypeError, "seed"),
        ((1, "test"), ValueError, "purpose"),
        ((1, "train", -1), ValueError, "step"),
        ((1, "train", 2**32), ValueError, "step"),
    ],
)
def test_noise_key_names_the_argument_it_refuses(
    args: tuple[Any, ...], error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=names):
        noise_key(*args)


@pytest.mark.parametrize(
    ("args", "options", "error", "names"),
    [
        ((1234, 1, 1, 1), {}, TypeError, "noise"),
        ((KEY.int(), 1, 1, 1), {}, TypeError, "noise"),
        ((KEY[:1], 1, 1, 1), {}, ValueError, "noise"),
        ((KEY, -1, 1, 1), {}, ValueError, "S"),
        ((KEY, 1, 1.0, 1), {}, TypeError, "B"),
        ((KEY, 1, 1, 1), {"row_offset": -1}, ValueError, "row_offset"),
        ((KEY, 1, 1, 1), {"row_offset": 2**48}, ValueError, "row_offset"),
        ((KEY, 3, 1, 1), {"sample_offset": 2**32 - 2}, ValueError, "sample_offset"),
    ],
)
def test_draws_name_the_argument_they_refuse(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=f"uniform: {names} must"):
        uniform(*args, **options)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_no_samples_rows_or_columns_give_an_empty_result(shape: tuple[int, int, int]) -> None:
    assert normal(KEY, *shape).shape == shape


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize("compiles", [True, False])
def test_a_key_in_awkward_memory_draws_what_it_would_elsewhere(
    draw: Any, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiles:
        monkeypatch.setattr(noise.twin, "has_cpu_compiler", lambda: False)
    for key in strided_keys():
        wanted = getattr(reference, draw.__name__)(key.clone().contiguous(), 2, 3, 5)
        assert_within("numbers", draw(key, 2, 3, 5), wanted, 1e-6 * wanted.abs().clamp(min=1))


@pytest.mark.parametrize("draw", [normal, uniform])
def test_vmap_over_keys_draws_the_numbers_of_each(draw: Callable[..., Tensor]) -> None:
    keys = torch.stack([noise_key(1, "train", step) for step in range(4)])
    found = torch.func.vmap(lambda key: draw(key, 2, 40, 30))(keys)
    assert torch.equal(found, torch.stack([draw(key, 2, 40, 30) for key in keys]))


def test_the_last_step_is_taken_and_a_key_of_any_64_bits() -> None:
    assert normal(torch.tensor((-1, 2**32 - 1)), 1, 2, 3).isfinite().all()


def test_a_step_is_not_read_where_a_call_is_traced() -> None:
    traced = torch.compile(lambda key: normal(key, 1, 2, 3), backend="eager", fullgraph=True)
    assert torch.equal(traced(KEY), normal(KEY, 1, 2, 3))
    meta = normal(torch.empty(2, dtype=torch.int64, device="meta"), 1, 2, 3)
    assert meta.shape == (1, 2, 3)
