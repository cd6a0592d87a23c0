"""KL(q(z) ‖ N(0, I)) as an interval, where the answer is known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from tests.measures.made_codes import (
    CENTRES,
    clustered_codes,
    encoded,
    gaussian_codes,
    gaussian_kl,
    grid_kl,
)
from vaez_fast.measures import law
from vaez_fast.measures.aggregate import surgery
from vaez_fast.measures.codes import Codes
from vaez_fast.measures.densities import fit_gaussian, standard_normal
from vaez_fast.measures.law import (
    Bound,
    LawOfZ,
    best_density,
    fit_densities,
    lower_bound,
    measure_law,
    upper_bound,
)
from vaez_kernels import noise_key, normal

NOISE = noise_key(0, "evaluate", 17)
SIZES = (1_000, 500, 4_000)
# A linear VAE: mu is linear in Gaussian x, σ is the same for all x.
COVARIANCE = torch.tensor([[1.5, 0.9, 0.0], [0.9, 1.0, -0.4], [0.0, -0.4, 0.7]])
SIGMA = 0.5


def agrees(bound: Bound, truth: float, below: float = 0.0) -> bool:
    """Within five standard errors, which fails by chance once in 10⁶, or `below` lower."""
    slack = 5 * bound.standard_error
    return truth - below - slack <= bound.value <= truth + slack


@pytest.fixture(scope="module")
def linear() -> Codes:
    return gaussian_codes(COVARIANCE, SIGMA, SIZES)


@pytest.fixture(scope="module")
def clusters() -> Codes:
    return clustered_codes(SIZES)


@pytest.fixture(scope="module")
def law_of_clusters(clusters: Codes) -> LawOfZ:
    return measure_law(clusters, seed=0)


def test_a_linear_vaes_kl_is_reached_from_both_sides(linear: Codes) -> None:
    aggregate = COVARIANCE + SIGMA**2 * torch.eye(3)
    truth = gaussian_kl(aggregate)
    densities = fit_densities(linear, 0, ("diagonal", "full-covariance"))
    full = lower_bound(densities["full-covariance"], linear.test.z)
    # KL(N ‖ fit) of 9 fitted parameters is 9/(2·1000) on average.
    assert agrees(full, truth, below=0.02)
    diagonal = lower_bound(densities["diagonal"], linear.test.z)
    assert agrees(diagonal, gaussian_kl(torch.diag(aggregate.diagonal())), below=0.02)
    assert full.value - diagonal.value > 0.1
    assert best_density(densities, linear.validation.z) == "full-covariance"
    above, below = upper_bound(linear, NOISE, 1_000)
    assert below.value - 5 * below.standard_error <= truth <= above.value + 5 * above.standard_error
    assert above.value - below.value < 1.0  # 1,000 images of σ = 0.5 nearly fill three dimensions
    assert above.value > below.value


def test_the_bounds_from_above_are_the_surgerys(linear: Codes) -> None:
    """Leave-one-out and plug-in of one pass; `surgery` takes two. Both sum float32 densities."""
    wanted = surgery(linear.train.mu, linear.train.logvar, NOISE, 300)
    plug_in, leave_one_out = upper_bound(linear, NOISE, 300)
    for bound, parts in (
        (plug_in, wanted.marginal_kl),
        (leave_one_out, wanted.leave_one_out_marginal_kl),
    ):
        assert bound.value == pytest.approx(parts.value, abs=1e-5)
        assert bound.standard_error == pytest.approx(parts.standard_error, rel=1e-4)
    assert plug_in.how == "plug-in, 300 draws of the mixture of 1,000 posteriors"
    assert leave_one_out.how == "leave-one-out, 300 draws of the mixture of 1,000 posteriors"


def test_a_mixtures_kl_lies_between_the_bounds(law_of_clusters: LawOfZ) -> None:
    variance = (0.2**2 + 0.3**2) * torch.eye(2).double().expand(3, 2, 2)
    components = MultivariateNormal(CENTRES.double(), variance)
    truth = grid_kl(MixtureSameFamily(Categorical(torch.ones(3).double()), components))
    found = law_of_clusters
    assert found.kl_lower == found.lower["mixture-10"]._replace(how=found.kl_lower.how)
    # Seventeen parameters, if the ten components join to three.
    assert agrees(found.kl_lower, truth, below=0.05)
    assert found.lower["full-covariance"].value < truth - 0.3
    above, below = found.kl_upper, found.leave_one_out
    assert below.value - 5 * below.standard_error <= truth <= above.value + 5 * above.standard_error
    assert above.value - below.value < 0.2


def test_the_record_is_of_the_codes_that_it_names(law_of_clusters: LawOfZ, clusters: Codes) -> None:
    found = law_of_clusters
    assert found.informative == found.measured == [0, 1]
    names = ["diagonal", "full-covariance", "mixture-10", "mixture-50", "flow"]
    assert list(found.lower) == names
    assert found.kl_lower.how == (
        "mixture-10, fitted to 1,000 codes, chosen on 500 and evaluated on 4,000 others"
    )
    assert found.kl_upper.how.startswith("plug-in, 1,000 draws of the mixture of 1,000")
    ratio = fit_gaussian(clusters.train.z).log_prob(clusters.test.z)
    ratio = ratio + (0.5 * clusters.test.z.double().square() + 0.5 * math.log(2 * math.pi)).sum(1)
    assert found.lower["full-covariance"].value == pytest.approx(float(ratio.mean()))
    error = float(ratio.std()) / math.sqrt(4_000)
    assert found.lower["full-covariance"].standard_error == pytest.approx(error)
    squares = clusters.test.z.double().square().sum(1)
    assert found.squared_norm.mean == pytest.approx(float(squares.mean()))
    assert found.squared_norm.variance == pytest.approx(float(squares.var()))
    assert found.squared_norm.shell == pytest.approx(float(squares.var()) / 4)


def test_the_record_is_json(law_of_clusters: LawOfZ) -> None:
    record = json.loads(json.dumps(law_of_clusters.as_dict(), allow_nan=False))
    assert set(record["kl_lower"]) == set(record["kl_upper"]) == {"value", "standard_error", "how"}
    assert set(record["lower"]["flow"]) == {"value", "standard_error", "how"}
    assert record["squared_norm"]["shell"] == law_of_clusters.squared_norm.shell
    assert [t["threshold"] for t in record["thresholds"]] == [0.01, 0.1, 0.5]
    assert set(record["thresholds"][0]["lower"]["mixture-50"]) == set(record["kl_upper"])


def with_weak_latents(sizes: tuple[int, int, int]) -> Codes:
    """Latents of 0.05 nat, 1.4 nats (bimodal), about 0.2 nat and none."""
    parts = []
    for seed, size in enumerate(sizes):
        eps = normal(noise_key(300 + seed, "evaluate"), 1, size, 4)[0]
        mu = torch.stack([0.3 * eps[:, 0], eps[:, 1].sign(), 0.6 * eps[:, 2], 0 * eps[:, 3]], 1)
        sigma = torch.tensor([0.94, 0.3, 0.8, 1.0]).expand_as(mu)
        parts.append(encoded(mu, sigma, 50 + seed))
    return Codes(*parts)


def test_thresholds_move_the_latents_that_are_measured() -> None:
    codes = with_weak_latents((4_000, 500, 4_000))
    found = measure_law(codes, 0, fit_densities(codes, 0, ("full-covariance", "mixture")))
    assert found.informative == [1, 2]
    assert [t.informative for t in found.thresholds] == [3, 2, 1]
    same = found.thresholds[1].lower
    assert same == {name: found.lower[name] for name in ("full-covariance", "mixture-50")}
    latents = codes.informative(0.01)
    expected = lower_bound(fit_gaussian(codes.train.z[:, latents]), codes.test.z[:, latents])
    assert found.thresholds[0].lower["full-covariance"] == expected
    # The bimodal latent has most of the KL, whatever the threshold.
    values = [t.lower["mixture-50"].value for t in found.thresholds]
    assert max(values) - min(values) < 0.1 < 0.3 < min(values)


def test_latents_that_are_not_measured_add_nothing(linear: Codes) -> None:
    def widened(part: Tensor, fill: Tensor) -> Tensor:
        return torch.cat([fill, part], 1)

    parts = []
    for seed, (mu, logvar, z) in enumerate((linear.train, linear.validation, linear.test)):
        noise = normal(noise_key(400 + seed, "evaluate"), 1, len(z), 1)[0]
        zero = torch.zeros_like(noise)
        fills = zip((mu, logvar, z), (zero, zero, noise), strict=True)
        parts.append(type(linear.train)(*(widened(part, fill) for part, fill in fills)))
    wide = fit_densities(Codes(*parts), 0, ("full-covariance",))["full-covariance"]
    narrow = fit_densities(linear, 0, ("full-covariance",))["full-covariance"]
    assert wide.latents.tolist() == [1, 2, 3]
    expected = lower_bound(narrow, linear.test.z)
    found = lower_bound(wide, parts[2].z)
    assert found.value == pytest.approx(expected.value, abs=1e-9)
    assert found.standard_error == pytest.approx(expected.standard_error, abs=1e-9)


def test_exact_normals_have_no_kl() -> None:
    zeros = [torch.zeros(size, 12) for size in SIZES]
    codes = Codes(*(encoded(mu, 1.0, 60 + seed) for seed, mu in enumerate(zeros)))
    found = measure_law(codes, 0)
    assert found.informative == []
    assert len(found.measured) == 10
    assert [t.informative for t in found.thresholds] == [0, 0, 0]
    assert all(t.lower == {} for t in found.thresholds)
    for name, bound in found.lower.items():
        # Below 0 by what the fit takes from noise: parameters / (2 · 1000), more for a mixture.
        least = {"diagonal": 0.03, "full-covariance": 0.08}.get(name, 1.0)
        assert agrees(bound, 0.0, below=least), name
    assert found.kl_upper.value == pytest.approx(0.0, abs=1e-4)  # mixture_log_prob's float32
    assert found.leave_one_out.value == pytest.approx(0.0, abs=1e-4)
    # |z|² is chi-squared of ten: four moments give the errors of mean and variance.
    assert found.squared_norm.mean == pytest.approx(10, abs=5 * math.sqrt(20 / 4_000))
    assert found.squared_norm.shell == pytest.approx(1, abs=5 * math.sqrt((2 + 1.2) / 4_000))


def test_the_standard_normal_itself_bounds_with_zero(linear: Codes) -> None:
    bound = lower_bound(standard_normal(3, linear.test.z.device), linear.test.z)
    assert bound.value == pytest.approx(0, abs=1e-12)
    assert bound.standard_error == pytest.approx(0, abs=1e-12)
    assert bound.how == "mean of log r(z) − log p(z) over 4,000 codes"


def test_one_informative_latent_takes_the_next_into_its_flow(clusters: Codes) -> None:
    def narrowed(codes: Codes, columns: list[int]) -> Codes:
        parts = (codes.train, codes.validation, codes.test)
        return Codes(*(type(p)(*(part[:, columns] for part in p)) for p in parts))

    weak = with_weak_latents((200, 50, 50))
    assert narrowed(weak, [1, 3]).measured().tolist() == [0]
    assert fit_densities(narrowed(weak, [3, 1, 0]), 0, ("flow",))["flow"].latents.tolist() == [1, 2]
    assert list(fit_densities(narrowed(weak, [1]), 0)) == [
        "diagonal", "full-covariance", "mixture-10",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least 2"):
        fit_densities(narrowed(weak, [1]), 0, ("flow",))


def test_draws_are_limited_by_time_and_by_what_they_are_good_for() -> None:
    assert law.draws_within_seconds(50_000, 128) == 500
    assert law.draws_within_seconds(50_000, 2) == 10_000
    assert law.draws_within_seconds(10**9, 128) == 2


def test_one_image_or_draw_is_refused(linear: Codes) -> None:
    with pytest.raises(ValueError, match="two images and two draws are needed, got 1000 and 1"):
        upper_bound(linear, NOISE, 1)
    few = Codes(encoded(torch.zeros(1, 3), 1.0, 0), linear.validation, linear.test)
    with pytest.raises(ValueError, match="needed, got 1 and 5"):
        upper_bound(few, NOISE, 5)
