"""The benchmark suite: its clock, its byte counts, and that a wrong output gets no time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.process import ROOT, environment
from bench.timing.clock import DeviceClock, interleave, peak_memory
from bench.training.baselines import TextbookVAE
from tests.bench.timing.fake_gpu import Calm
from vaez_fast.model import MODELS, VAE
from vaez_kernels import bernoulli_log_prob as our_log_prob
from vaez_kernels import noise_key
from vaez_kernels import rsample_kl as ours
from vaez_kernels.bernoulli.case import LikelihoodCase
from vaez_kernels.bernoulli.case import textbook_log_prob as bernoulli_log_prob
from vaez_kernels.error_bounds import Check
from vaez_kernels.latent.case import LatentCase
from vaez_kernels.latent.case import textbook_rsample_kl as rsample_kl

CPU = torch.device("cpu")


@pytest.fixture
def case() -> LatentCase:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mu, logvar = draw(64, 20).requires_grad_(), draw(64, 20).requires_grad_()
    return LatentCase(mu, logvar, noise_key(0, "train"), draw(1, 64, 20), draw(64))


def test_right_outputs_pass_their_check(case: LatentCase) -> None:
    assert case.check(case.run(rsample_kl, backward=True), ours=False).passed
    check = case.check(case.run(lambda m, v: ours(m, v, case.noise), backward=True), ours=True)
    assert check.passed
    assert 0 < check.error < 1


def wrong_variance(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """The article's published defect: σ where σ² belongs."""
    z, _ = rsample_kl(mu, logvar)
    sigma = torch.exp(0.5 * logvar)
    return z, 0.5 * (mu.square() + sigma - 1 - sigma.log()).sum(1)


def wrong_gradient(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Right values, but the KL has no gradient in mu."""
    z, _ = rsample_kl(mu, logvar)
    return z, rsample_kl(mu.detach(), logvar)[1]


def wrong_noise(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.exp(0.5 * logvar) * torch.rand_like(mu)
    return z, rsample_kl(mu, logvar)[1]


@pytest.mark.parametrize("wrong", [wrong_variance, wrong_gradient, wrong_noise])
def test_wrong_outputs_fail_their_check(
    case: LatentCase,
    wrong: type[wrong_variance],  # type: ignore[valid-type]
) -> None:
    assert not case.check(case.run(wrong, backward=True), ours=False).passed


def test_another_key_fails_the_check_of_our_noise(case: LatentCase) -> None:
    other = noise_key(1, "train")
    for backward in (False, True):
        outputs = case.run(lambda m, v: ours(m, v, other), backward)
        assert not case.check(outputs, ours=True).passed


def test_outputs_of_another_step_fail_until_the_case_advances(case: LatentCase) -> None:
    # As in a replayed graph, the step advances first, and outputs are checked at the new step.
    later = case.noise + torch.tensor([0, 1])
    outputs = case.run(lambda m, v: ours(m, v, later), backward=True)
    assert not case.check(outputs, ours=True).passed
    case.advance()
    assert case.check(outputs, ours=True).passed


def test_a_nan_is_no_pass() -> None:
    assert not Check(float("nan"), "anything").passed


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def images(request: pytest.FixtureRequest) -> LikelihoodCase:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 100, 784, generator=generator)).to(request.param)
    x = torch.randint(2, (100, 784), generator=generator, dtype=torch.uint8)
    return LikelihoodCase(logits.requires_grad_(), x, torch.randn(3, 100, generator=generator))


def test_right_log_probs_pass_their_check(images: LikelihoodCase) -> None:
    for forward, is_ours in ((bernoulli_log_prob, False), (our_log_prob, True)):
        check = images.check(images.run(forward, backward=True), is_ours)
        assert check.passed
        assert 0 < check.error < 1


def expanded_wrongly(logits: Tensor, x: Tensor) -> Tensor:
    return bernoulli_log_prob(logits, x.roll(1, 0))


def without_softplus(logits: Tensor, x: Tensor) -> Tensor:
    return (logits * x - logits.clamp(min=0)).sum(-1)


def detached_target_part(logits: Tensor, x: Tensor) -> Tensor:
    """Right values, but the softplus has no gradient in the logits."""
    y = x.to(logits.dtype)
    return (logits * y).sum(-1) + (our_log_prob(logits.detach(), x) - (logits.detach() * y).sum(-1))


@pytest.mark.parametrize("wrong", [expanded_wrongly, without_softplus, detached_target_part])
def test_wrong_log_probs_fail_their_check(
    images: LikelihoodCase,
    wrong: type[expanded_wrongly],  # type: ignore[valid-type]
) -> None:
    assert not images.check(images.run(wrong, backward=True), ours=False).passed


def test_a_wrong_last_row_fails_its_check(images: LikelihoodCase) -> None:
    # Only the first and the last rows of values and gradients are checked.
    for which in (0, 1):
        outputs = [x.detach().clone() for x in images.run(our_log_prob, backward=True)]
        outputs[which][-1, -1] += 10
        assert not images.check(tuple(outputs), ours=True).passed


def test_rivals_are_called_in_turn_and_each_starts_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.timing.clock.Waits", Calm)  # a disturbed call would be timed again
    calls: list[str] = []
    rivals = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = interleave(rivals, CPU, budget=0.0)
    assert {name: len(times.wall) for name, times in seconds.items()} == {"a": 11, "b": 11, "c": 11}
    rounds = [calls[-33:][i : i + 3] for i in range(0, 33, 3)]
    assert rounds[:4] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_the_clock_moves_only_when_told() -> None:
    clock = DeviceClock()
    assert clock() == clock() == 0.0
    clock.advance(0.25)
    assert clock() == 0.25


def test_peak_memory_sees_what_a_call_allocates() -> None:
    a = torch.ones(1 << 20)
    peak = peak_memory(lambda: (a + 1) * 2, CPU)
    assert peak is not None
    assert 8 << 20 <= peak < 9 << 20  # two results of 4 MiB exist at once


@pytest.mark.parametrize("name", MODELS)
def test_the_textbook_model_is_ours_in_plain_pytorch(name: str) -> None:
    x = torch.rand(4, 784)
    mu, logvar = VAE(name, 3).encode(x)
    q = TextbookVAE(name, 3).posterior(x)
    torch.testing.assert_close(q.loc, mu)
    torch.testing.assert_close(2 * q.scale.log(), logvar)


def test_a_row_whose_check_fails_has_no_time_and_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "bench_wrong.py").write_text(
        "import pytest, torch\n"
        "from vaez_kernels.error_bounds import Check\n"
        "from bench.timing.clock import CLOCK\n"
        "from bench.timing.rows import Bench, Group, Rival\n"
        "@pytest.mark.benchmark(timer=CLOCK)\n"
        "@pytest.mark.parametrize('provider', ['right', 'wrong'])\n"
        "def test_row(benchmark, provider):\n"
        "    bench = Bench(torch.device('cpu'), True, 1e9)\n"
        "    work = lambda: torch.ones(8) + 1\n"
        "    rivals = {'right': Rival(work, Check(0.5, 'truth')),\n"
        "              'wrong': Rival(work, Check(3.0, 'truth'))}\n"
        "    make = lambda: Group('group', rivals, {}, 64)\n"
        "    bench.record(benchmark, bench.measured(0, make, 0.01), provider)\n"
    )
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", str(tmp_path / "bench_wrong.py"), "-q"]
    command += ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-p", "no:cacheprovider"]
    command += ["--benchmark-only", f"--benchmark-json={report}"]
    # xdist's variables would disable benchmarks in the child.
    variables = {n: v for n, v in environment().items() if not n.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "off by 3 times the tolerance" in done.stdout
    assert '"provider": "right"' in report.read_text()
    assert '"provider": "wrong"' not in report.read_text()
