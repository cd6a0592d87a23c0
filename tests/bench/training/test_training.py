"""The checks of training against float64: they pass each precision's own error and no more."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.training.baselines import TextbookVAE
from bench.training.checks import (
    check_metrics,
    check_products,
    float64_metrics,
    metrics_tolerance,
    worse,
)
from bench.training.products import Job, Product, operands
from vaez_fast.measures.evaluate import Evaluator, Metrics
from vaez_fast.model import VAE
from vaez_kernels import noise_key
from vaez_kernels.error_bounds import Check

IMAGES, SAMPLES = 24, 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TRUTH = {"rate": 18.0, "elbo": -142.0, "log_px": -138.0}
SIZE = 160.0  # nats: the size of such metrics


@pytest.fixture(scope="module")
def vae() -> VAE:
    vae = VAE("altosaar").requires_grad_(False)
    for p in vae.parameters():  # as far from the start as after training
        p.mul_(1.5)
    return vae


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    u = torch.rand(IMAGES, 784, generator=torch.Generator().manual_seed(0))
    return (u < 0.13).to(torch.uint8)


@pytest.fixture(scope="module")
def truth(vae: VAE, pixels: Tensor) -> dict[str, float]:
    textbook = TextbookVAE("altosaar")
    textbook.load_state_dict(vae.state_dict())
    return float64_metrics(textbook, pixels, noise_key(0, "evaluate"), SAMPLES)


def evaluated(vae: VAE, pixels: Tensor, precision: str, samples: int = SAMPLES) -> Metrics:
    return Evaluator(pixels, 1.0, noise_key(0, "evaluate"), precision)(vae, samples)


@pytest.mark.parametrize("precision", DTYPES)
def test_an_evaluation_passes_by_the_tolerance_of_its_own_precision(
    vae: VAE, pixels: Tensor, truth: dict[str, float], precision: str
) -> None:
    # Both run on every machine: a processor without bfloat16 products emulates them.
    found = evaluated(vae, pixels, precision)
    check = check_metrics(found, truth, DTYPES[precision], IMAGES)
    assert check.passed
    assert check.error > 0


def test_bfloat16_products_do_not_pass_for_float32(
    vae: VAE, pixels: Tensor, truth: dict[str, float]
) -> None:
    found = evaluated(vae, pixels, "bfloat16")
    assert not check_metrics(found, truth, torch.float32, IMAGES).passed


@pytest.mark.parametrize("precision", DTYPES)
def test_one_sample_less_is_seen_in_either_precision(
    vae: VAE, pixels: Tensor, truth: dict[str, float], precision: str
) -> None:
    found = evaluated(vae, pixels, precision, SAMPLES - 1)
    assert not check_metrics(found, truth, DTYPES[precision], IMAGES).passed


def metrics(**moved: float) -> Metrics:
    at = {name: value + moved.get(name, 0.0) for name, value in TRUTH.items()}
    return Metrics(at["elbo"], at["rate"], 124.0, at["log_px"], 1.0, 128)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("precision", DTYPES)
def test_errors_just_under_the_tolerance_pass_and_just_over_it_fail(
    precision: str, name: str, sign: int
) -> None:
    dtype = DTYPES[precision]
    # The encoder multiplies in float32, whatever the decoder does.
    limit = metrics_tolerance(torch.float32 if name == "rate" else dtype, 500, SIZE)
    for share in (0.99, 1.01):
        check = check_metrics(metrics(**{name: sign * share * limit}), TRUTH, dtype, 500)
        assert check.error == pytest.approx(share, rel=1e-6)
        assert check.passed == (share < 1)


@pytest.mark.parametrize("name", TRUTH)
def test_a_nan_among_the_metrics_fails(name: str) -> None:
    found = metrics(**{name: math.nan})
    assert not check_metrics(found, TRUTH, torch.float32, 500).passed


def test_the_mean_of_500_images_may_err_by_a_fiftieth_of_a_nat_in_bfloat16() -> None:
    assert metrics_tolerance(torch.bfloat16, 500, SIZE) == pytest.approx(0.021, abs=5e-4)
    assert metrics_tolerance(torch.float32, 500, SIZE) == pytest.approx(2.7e-4, abs=5e-6)


def test_more_images_average_the_products_errors_and_not_those_of_float32_sums() -> None:
    few, many = (metrics_tolerance(torch.bfloat16, n, 0.0) for n in (100, 10_000))
    assert few / many == pytest.approx(10)
    sums = metrics_tolerance(torch.float32, 10**12, SIZE)
    assert sums == pytest.approx(28 * 2.0**-24 * SIZE, rel=1e-4)
    # Measured with a trained model on 1,000 images: −0.0020 ± 0.0015 nats at worst.
    assert metrics_tolerance(torch.bfloat16, 1_000, SIZE) > 0.0020 + 4 * 0.0015


def test_the_worse_of_two_checks_decides() -> None:
    good, bad, broken = (Check(error, "truth") for error in (0.5, 2.0, math.nan))
    assert worse(good, bad).error == worse(bad, good).error == 2.0
    assert not worse(good, broken).passed
    assert not worse(broken, good).passed


class OffProducts(TorchDispatchMode):
    """Makes all products but float64's wrong: by a share of the result and a share of its terms."""

    def __init__(self, of_result: float, of_terms: float) -> None:
        super().__init__()
        self.of_result, self.of_terms = of_result, of_terms

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.ops.aten.mm.default or args[0].dtype == torch.float64:
            return func(*args, **(kwargs or {}))
        left, right = (x.double() for x in args)
        exact, terms = func(left, right), func(left.abs(), right.abs())
        return (exact + self.of_result * exact.abs() + self.of_terms * terms).to(args[0].dtype)


def multiplied(product: Product) -> Job:
    left, right = operands(product, torch.device("cpu"))
    return Job(left, right, lambda: left @ right)


@pytest.mark.parametrize("precision", DTYPES)
def test_a_product_may_be_rounded_once_and_its_sum_in_float32(precision: str) -> None:
    dtype, k = DTYPES[precision], 512
    product = Product(((64, k), (k, 1)), ((k, 32), (32, 1)), dtype)
    assert product.operations == 2 * 64 * k * 32
    half_ulp = {"float32": 2.0**-24, "bfloat16": 2.0**-8}[precision]
    of_a_sum = k * 2.0**-24
    for of_result, of_terms, passes in (
        (0.0, 0.0, True),
        (0.0, 0.9 * of_a_sum if precision == "float32" else 0.0, True),
        (0.0, 1.1 * of_a_sum + 2 * half_ulp, False),
        (2.1 * half_ulp + (of_a_sum * 50 if precision == "float32" else 0.0), 0.0, False),
    ):
        with OffProducts(of_result, of_terms):
            check = check_products([multiplied(product)])
        assert check.passed == passes, (of_result, of_terms, check)
