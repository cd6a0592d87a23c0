"""Bad input to every public function and command gets one clear error that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaez_fast.cli import main
from vaez_fast.data import binarize, load
from vaez_fast.model import VAE
from vaez_kernels import (
    kl_standard_normal,
    kl_standard_normal_mc,
    noise_key,
    normal,
    rsample,
    rsample_kl,
    uniform,
    use_backend,
)

MU, LOGVAR = torch.zeros(3, 4), torch.zeros(3, 4)
KEY = noise_key(0, "train")
PIXELS = torch.zeros(2, 784, dtype=torch.uint8)


def forced(backend: str) -> None:
    with use_backend(backend):
        rsample(MU, LOGVAR, KEY)


# What is called, the error's type, and what its message must say.
CALLS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: noise_key(-1, "train"), ValueError, "seed must be at least 0"),
    (lambda: noise_key(2**32, "train"), ValueError, "seed must be below 4294967296"),
    (lambda: noise_key(0.5, "train"), TypeError, "seed must be an integer"),  # type: ignore[arg-type]
    (lambda: noise_key(0, "test"), ValueError, "purpose must be one of train, binarize"),
    (lambda: noise_key(0, "train", 2**32), ValueError, "step must be below"),
    (lambda: normal(KEY, -1, 2, 3), ValueError, "S must be at least 0, got -1"),
    (lambda: normal(KEY, 1, 2.0, 3), TypeError, "B must be an integer"),  # type: ignore[arg-type]
    (lambda: normal(KEY.int(), 1, 2, 3), TypeError, r"noise must be int64 \(key, step\)"),
    (lambda: uniform(KEY[:1], 1, 2, 3), ValueError, r"noise must have shape \(2,\)"),
    (lambda: uniform(7, 1, 2, 3), TypeError, r"noise must be a tensor made by noise_key"),  # type: ignore[arg-type]
    (lambda: normal(KEY, 1, 2, 3, row_offset=-1), ValueError, "row_offset must be at least 0"),
    (lambda: normal(KEY, 2, 1, 1, sample_offset=2**32 - 1), ValueError, "sample_offset must be"),
    (lambda: rsample([0.0], LOGVAR, KEY), TypeError, "mu must be a tensor, got list"),  # type: ignore[arg-type]
    (lambda: rsample(MU, LOGVAR[:2], KEY), ValueError, r"logvar must have mu's shape \(3, 4\)"),
    (lambda: rsample(MU[0], LOGVAR[0], KEY), ValueError, r"mu must have shape \(B, D\)"),
    (lambda: rsample(MU.int(), LOGVAR.int(), KEY), TypeError, "mu must be float32, bfloat16"),
    (lambda: rsample(MU, LOGVAR.half(), KEY), TypeError, "logvar must have mu's dtype"),
    (lambda: rsample(MU[:, :0], LOGVAR[:, :0], KEY), ValueError, "at least one column"),
    (lambda: rsample(MU, LOGVAR, KEY, 0), ValueError, "num_samples must be at least 1"),
    (lambda: rsample(MU, LOGVAR, KEY, True), TypeError, "num_samples must be an integer"),
    (lambda: rsample(MU, LOGVAR.to("meta"), KEY), ValueError, "logvar must be on mu's device cpu"),
    (lambda: rsample(MU, LOGVAR, KEY.to("meta")), ValueError, "noise must be on mu's device cpu"),
    (lambda: kl_standard_normal(MU, None), TypeError, "logvar must be a tensor"),  # type: ignore[arg-type]
    (lambda: kl_standard_normal_mc(MU, LOGVAR, KEY, 1, "stl"), ValueError, "estimator must be one"),
    (lambda: rsample_kl(MU, LOGVAR, KEY, 1, "none"), ValueError, "kl must be one of analytic"),
    (lambda: forced("cuda"), ValueError, "name must be one of torch, triton"),
    (lambda: load("mnist-10k"), ValueError, "mnist-5k, mnist, fashion-mnist, kmnist"),
    (lambda: binarize(PIXELS.float(), "threshold"), TypeError, "images must be uint8"),
    (lambda: binarize(PIXELS, "static"), ValueError, "noise"),
    (lambda: binarize(PIXELS, "otsu"), ValueError, "static, dynamic, threshold, none"),
    (lambda: VAE("mlp"), ValueError, "model must be one of altosaar, lyeoni, burda"),
]


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case[2])
def test_a_call_is_refused_with_the_argument_named(
    case: tuple[Callable[[], object], type[Exception], str],
) -> None:
    call, kind, message = case
    with pytest.raises(kind, match=message):
        call()


COMMANDS: list[tuple[list[str], str]] = [
    (["--data", "mnist-10k"], "data must be one of mnist-5k, mnist, fashion-mnist, kmnist"),
    (["--binarize", "otsu"], "binarize must be one of static, dynamic, threshold, none"),
    (["--model", "resnet"], "model must be one of altosaar, lyeoni, burda"),
    (["--objective", "beta"], "objective must be one of elbo, kl, iwae"),
    (["--objective", "iwae", "--decoder", "separate"], "objective 'iwae' needs decoder joint"),
    (["--objective", "iwae", "--beta", "2"], "beta needs objective elbo"),
    (
        ["--objective", "iwae", "--kl", "analytic"],
        "objective 'iwae' needs kl total-derivative or doubly-reparameterised, got 'analytic'",
    ),
    (["--kl", "doubly-reparameterised"], "kl 'doubly-reparameterised' needs objective iwae"),
    (["--num-samples", "0"], "num_samples must be a positive integer, got 0"),
    (
        ["--objective", "kl", "--decoder", "separate", "--num-samples", "2"],
        "num_samples needs objective elbo or iwae",
    ),
    (["--decoder", "randn", "--num-samples", "2"], "leave objective, kl, beta and num_samples"),
    (["--test-samples", "0"], "test_samples must be a positive integer, got 0"),
    (["--kl", "exact"], "kl must be one of analytic"),
    (["--kl", "as-published"], "kl 'as-published' needs objective kl"),
    (["--decoder", "separate"], "objective 'elbo' needs decoder joint, got 'separate'"),
    (["--objective", "kl"], "objective 'kl' needs decoder separate or simultaneous, got 'joint'"),
    (["--decoder", "randn", "--kl", "total-derivative"], "decoder 'randn' has no encoder"),
    (["--beta", "0"], "beta must be a positive number, got 0.0"),
    (["--objective", "kl", "--decoder", "separate", "--beta", "2"], "beta needs objective elbo"),
    (["--epochs", "0"], "epochs must be a positive integer, got 0"),
    (["--steps", "-5"], "steps must be a positive integer, got -5"),
    (["--batch-size", "0"], "batch_size must be a positive integer"),
    (["--batch-size", "4001", "--steps", "1"], "batch_size must be at most 4000"),
    (["--lr", "0"], "lr must be a positive number, got 0.0"),
    (["--lr", "nan"], "lr must be a positive number, got nan"),
    (["--seed", "-1"], "seed must be an integer in [0, 2**32), got -1"),
    (["--precision", "float16"], "precision must be one of float32, bfloat16, auto"),
    (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    (["--device", "cpu:3"], "device must be auto, cpu, cuda or cuda:N, got 'cpu:3'"),
    (["--device", "cuda:99"], "device 'cuda:99' is not here"),
]


@pytest.mark.parametrize(("flags", "message"), COMMANDS, ids=lambda v: " ".join(v))
def test_a_command_is_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", *flags, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vaez-fast train: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "out is needed: a folder for the results (--out, or out in the --config file)"),
        (
            ["train", "--epochs", "3", "--steps", "4", "--out", "x"],
            "exactly one of epochs and steps must be set",
        ),
        (["train", "--epochs", "many", "--out", "x"], "epochs must be an integer, got 'many'"),
        (["train", "--lr", "fast", "--out", "x"], "lr must be a number, got 'fast'"),
        (["train", "--steps", "--out", "x"], "steps: expected one argument"),
        (["train", "--json=x"], "json: ignored explicit argument 'x'"),
        (["train", "--modle", "burda", "--out", "x"], "no flag '--modle'; did you mean --model?"),
        (["train", "--modl", "burda", "--out", "x"], "no flag '--modl'; did you mean --model?"),
        (["train", "runs/x"], "no argument was expected at 'runs/x'"),
        (["train", "--out", ""], "out must be a path, got ''"),
        (["article"], "out is needed"),
        (["theory"], "out is needed"),
        (["report"], "the following arguments are required: DIR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_command_line_that_does_not_parse_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"vaez-fast {arguments[0]}: error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_unknown_command_names_the_nearest_and_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    captured = capsys.readouterr()
    commands = "train, evaluate, sample, article, theory, compare, report, env"
    assert captured.err == (
        f"vaez-fast: error: no command 'trian'; did you mean train? (there are {commands})\n"
    )


def test_without_a_command_there_is_help_and_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "exit status: 0 done; 1 the run failed" in captured.err


def test_triton_forced_where_it_cannot_run_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here, and triton runs on it")
    with pytest.raises(RuntimeError, match=r"backend 'triton' was forced"):
        forced("triton")


def test_an_unknown_backend_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VAEZ_BACKEND", "numpy")
    with pytest.raises(ValueError, match="VAEZ_BACKEND must be one of torch, triton"):
        rsample(MU, LOGVAR, KEY)


def test_a_tensor_of_bad_values_is_not_an_error() -> None:
    bad: Tensor = torch.full((1, 4), float("nan"))
    assert kl_standard_normal(bad, bad).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["article", "--seeds", "1"], 2, "seeds must be at least 2"),
        (["article", "--beta", "1"], 2, "betas must differ from each other and from 1"),
        (["article", "--beta", "0"], 2, "beta must be a positive number"),
        (["article", "--steps", "0"], 2, "steps must be a positive integer"),
        (["article", "--data", "cifar"], 2, "data must be one of"),
        (["article", "--data", "mnist", "--data-root", "/proc/no"], 1, "mnist"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("vaez-fast article: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_theory_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--out", "/proc/no"]) == 1
    assert capsys.readouterr().err.startswith("vaez-fast theory: error: ")
