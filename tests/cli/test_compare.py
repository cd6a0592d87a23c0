"""`vaez-fast compare`: right ops pass, wrong ops fail by name, bad settings are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cli.few_cases import few_cases
from vaez_fast import compare
from vaez_fast.cli.main import main
from vaez_kernels import (
    cases,
    importance,
    importance_estimates,
    interpreting,
    kl_standard_normal,
    linear_bernoulli_log_prob,
    rsample,
)
from vaez_kernels.backend import triton
from vaez_kernels.error_bounds import spacing
from vaez_kernels.latent import case as latent
from vaez_kernels.linear_bernoulli.case import Lowered

QUICK = ["rsample", "kl_standard_normal", "bernoulli_log_prob/uint8"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes, float32 alone, nothing compiled."""
    few_cases(monkeypatch, ((8, 7, 3), (1, 7, 19)))
    monkeypatch.setattr(cases.FOLDERS["importance"], "SHAPE", (9, 2, 5, 19, 23, 84))
    for module in cases.FOLDERS.values():
        if hasattr(module, "DTYPES"):
            monkeypatch.setattr(module, "DTYPES", (torch.float32,))
    monkeypatch.setattr(importance.twin, "has_cpu_compiler", lambda: False)


@pytest.mark.skipif(triton is None, reason="triton is not installed: nothing to interpret")
@pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 is set already")
def test_interpreter_and_fallback_pass_and_the_json_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "comparison.json"
    last_layer = "linear_bernoulli_log_prob/bfloat16-products"
    ops = f"normal,rsample_kl/analytic,{last_layer}"
    flags = ["--backends", "fallback,interpreter", "--ops", ops]
    assert main(["compare", *flags, "--out", str(file)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert content["passed"] is True
    assert f"{len(content['rows'])} of {len(content['rows'])} comparisons passed" in printed
    seen = {(r["op"], r["backend"], r["output"], r["dtype"]) for r in content["rows"]}
    halves = ("float32", "bfloat16", "float16")
    assert seen == {
        ("rsample_kl/analytic", backend, output, dtype)
        for backend in ("fallback", "interpreter")
        for output in ("z", "kl", "grad mu", "grad logvar")
        for dtype in halves
    } | {
        (op, backend, output, "float32")
        for backend in ("fallback", "interpreter")
        for op, outputs in (
            ("normal", ["n"]),
            (last_layer, ["log_prob", "grad hidden", "grad weight", "grad bias"]),
        )
        for output in outputs
    }
    # The error that the stream promises, and the same bits from both backends.
    for row in content["rows"]:
        if row["op"] == "normal":
            assert row["absolute"] < 7e-6
            assert row["from_fallback"] in (None, 0.0)


@pytest.mark.usefixtures("few")
def test_json_is_all_that_is_printed_and_the_same_as_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--backends", "fallback", "--ops", "normal,rsample"]
    assert main(["compare", *flags, "--json", "--out", str(tmp_path / "c.json")]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "c.json").read_text()
    assert json.loads(printed)["config"] == {"backends": "fallback", "ops": "normal,rsample"}
    again = ["compare", "--config", str(tmp_path / "c.json"), "--json"]
    assert main(again) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows == json.loads(printed)["rows"]


@pytest.mark.usefixtures("few")
def test_every_op_is_compared_on_every_case() -> None:
    grid = cases.cases(list(cases.OPS), large=True)
    assert {case.op for case in grid} == set(cases.OPS)
    assert len(set(grid)) == len(grid)
    rows = compare.compare(["fallback"])
    assert {row.op for row in rows} == set(cases.OPS)
    assert all(row.passed for row in rows)
    assert all(row.from_fallback is None for row in rows)


def wrong_variance(mu: Tensor, logvar: Tensor) -> Tensor:
    """The article's published defect: σ where σ² belongs."""
    sigma = torch.exp(0.5 * logvar)
    return 0.5 * (mu.square() + sigma - 1 - sigma.log()).sum(1)


def wrong_digits(mu: Tensor, logvar: Tensor) -> Tensor:
    """The textbook formula: right, but it loses the digits of a small KL."""
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)


def wrong_gradient(mu: Tensor, logvar: Tensor) -> Tensor:
    return kl_standard_normal(mu.detach(), logvar) + 0 * mu.sum(1)


def not_a_number(mu: Tensor, logvar: Tensor) -> Tensor:
    return kl_standard_normal(mu, logvar) * torch.tensor(float("nan"))


@pytest.mark.parametrize("wrong", [wrong_variance, wrong_digits, wrong_gradient, not_a_number])
@pytest.mark.usefixtures("few")
def test_a_wrong_kl_fails_and_is_named(
    wrong: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(latent, "kl_standard_normal", wrong)
    file = tmp_path / "c.json"
    flags = ["--backends", "fallback", "--ops", ",".join(QUICK), "--out", str(file)]
    assert main(["compare", *flags]) == 1
    failed = [row for row in json.loads(file.read_text())["rows"] if not row["passed"]]
    assert {row["op"] for row in failed} == {"kl_standard_normal"}
    printed = capsys.readouterr().out
    assert printed.count("\nFAILED: kl_standard_normal, ") == len(failed) > 0


@pytest.mark.usefixtures("few")
def test_other_noise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(**arguments: Any) -> Tensor:
        return rsample(**arguments, row_offset=1)

    monkeypatch.setattr(latent, "rsample", shifted)
    rows = compare.compare(["fallback"], ["rsample"])
    # dz/dmu is 1 with any noise.
    assert {row.output for row in rows if not row.passed} == {"z", "grad logvar"}


@pytest.mark.usefixtures("few")
def test_products_of_lesser_precision_than_asked_for_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(precision: str, **tensors: Tensor) -> Tensor:
        return linear_bernoulli_log_prob(**tensors, precision="bfloat16")

    monkeypatch.setattr(cases.FOLDERS["linear_bernoulli"], "linear_bernoulli_log_prob", hasty)
    rows = compare.compare(["fallback"], list(cases.FOLDERS["linear_bernoulli"].OPS))
    # The gradient of a target needs no product of that precision.
    right = {(row.op, row.output) for row in rows if row.passed}
    assert right == {
        ("linear_bernoulli_log_prob/float32", "grad x"),
        *(
            ("linear_bernoulli_log_prob/bfloat16-products", output)
            for output in ("log_prob", "grad hidden", "grad weight", "grad bias")
        ),
    }


@pytest.mark.usefixtures("few")
def test_importance_samples_of_other_noise_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(**arguments: Any) -> Any:
        return importance_estimates(**arguments, row_offset=1)

    monkeypatch.setattr(cases.FOLDERS["importance"], "importance_estimates", shifted)
    rows = compare.compare(["fallback"], list(cases.FOLDERS["importance"].OPS))
    assert not any(row.passed for row in rows)


def test_the_textbook_loses_the_bits_that_the_backend_does() -> None:
    values = torch.tensor([1.0 + 2.0**-7 + 2.0**-8, -1.0 - 2.0**-10 - 2.0**-11, 3.0])
    values.requires_grad_()
    for operands, wanted in (
        ("bfloat16, cut", [1.0 + 2.0**-7, -1.0, 3.0]),
        ("tf32", [1.0 + 2.0**-7 + 2.0**-8, -1.0 - 2.0**-9, 3.0]),
    ):
        lowered: Tensor = Lowered.apply(values, operands)
        assert lowered.tolist() == wanted
        (grad,) = torch.autograd.grad(lowered, values, values.detach())
        assert grad.tolist() == wanted


def test_ulps_are_the_spacing_of_the_dtype() -> None:
    values = torch.tensor([1.0, 1.99, 2.0, 0.75, 0.0, 1e-45])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
        wanted = torch.tensor([eps, eps, 2 * eps, eps / 2, eps * tiny, eps * tiny]).double()
        assert torch.equal(spacing(values, dtype), wanted)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--backends", "tpu"], 2, "backends must be among fallback, interpreter, cuda, with"),
        (
            ["--backends", "fallback", "--ops", "kl"],
            2,
            "ops must be among normal, uniform, rsample",
        ),
        (["--out", "/proc/no/such/file"], 1, "cannot write /proc/no/such/file"),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    flags: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *flags]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("vaez-fast compare: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_backend_that_cannot_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--backends", "cuda"]) == 2
    assert "'cuda' cannot run here: no CUDA device is here" in capsys.readouterr().err
