"""The suite that measures: its clock, its byte counts, and that a wrong output gets no time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.accuracy import Check, LatentCase, check_latent
from bench.baselines import TextbookVAE, rsample_kl
from bench.measure import DeviceClock, interleave, peak_memory
from bench.traffic import rsample_kl_floor
from vaez_fast.model import MODELS, VAE
from vaez_kernels import noise_key
from vaez_kernels import rsample_kl as ours

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def case() -> LatentCase:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mu, logvar = draw(64, 20).requires_grad_(), draw(64, 20).requires_grad_()
    return LatentCase(mu, logvar, noise_key(0, "train"), draw(1, 64, 20), draw(64))


def test_right_outputs_pass_their_check(case: LatentCase) -> None:
    assert check_latent(case, rsample_kl, our_noise=False).passed
    check = check_latent(case, lambda m, v: ours(m, v, case.noise), our_noise=True)
    assert check.passed
    assert 0 < check.error < 1


def wrong_variance(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """The article's published defect: σ where σ² belongs."""
    z, _ = rsample_kl(mu, logvar)
    sigma = torch.exp(0.5 * logvar)
    return z, 0.5 * (mu.square() + sigma - 1 - sigma.log()).sum(1)


def wrong_gradient(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Right values; the KL does not reach mu."""
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
    assert not check_latent(case, wrong, our_noise=False).passed


def test_another_key_fails_the_check_of_our_noise(case: LatentCase) -> None:
    other = noise_key(1, "train")
    assert not check_latent(case, lambda m, v: ours(m, v, other), our_noise=True).passed


def test_a_nan_is_no_pass() -> None:
    assert not Check(float("nan"), "anything").passed


def test_floor_is_12_and_20_bytes_an_element_for_float32() -> None:
    rows, columns = 1000, 64
    forward = rsample_kl_floor(1, rows, columns, 4, backward=False)
    both = rsample_kl_floor(1, rows, columns, 4, backward=True)
    assert forward == 12 * rows * columns + 4 * rows
    assert both - forward == 20 * rows * columns + 4 * rows


def test_rivals_are_called_in_turn_and_each_starts_a_round() -> None:
    calls: list[str] = []
    rivals = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = interleave(rivals, CPU, budget=0.0)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 11, "b": 11, "c": 11}
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
    assert 8 << 20 <= peak < 9 << 20  # two results of 4 MiB at once


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
        "from bench.accuracy import Check\n"
        "from bench.measure import CLOCK\n"
        "from bench.rows import Bench, Group, Rival\n"
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
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "off by 3 times the tolerance" in done.stdout
    assert '"provider": "right"' in report.read_text()
    assert '"provider": "wrong"' not in report.read_text()
