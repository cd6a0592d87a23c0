"""The packages as they are imported: which imports they need, and which they avoid."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.process import ROOT, environment


def python(code: str) -> str:
    return finished(code).stdout


def finished(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_kernels_folder_shadows_no_package() -> None:
    # A package on PyPI has the name "kernels". With an __init__.py our folder would hide it.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_ops_work_where_triton_is_not_installed() -> None:
    printed = python(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, vaez_kernels as v\n"
        "mu = torch.ones(2, 3, requires_grad=True)\n"
        "z, kl = v.rsample_kl(mu, torch.zeros(2, 3), v.noise_key(0, 'train'))\n"
        "(z.sum() + kl.sum()).backward(); print(kl.tolist(), mu.grad.tolist()[0])\n"
        "try:\n"
        "    with v.use_backend('triton'): v.rsample(mu, mu, v.noise_key(0, 'train'))\n"
        "except RuntimeError as e: print(e)\n"
    )
    assert "[1.5, 1.5] [2.0, 2.0, 2.0]" in printed
    assert "triton is not installed" in printed


@pytest.mark.parametrize("triton", ["installed", "missing"])
def test_the_import_says_nothing_and_leaves_the_compiler_to_the_first_call(triton: str) -> None:
    hide = "sys.modules['triton'] = None\n" if triton == "missing" else ""
    done = finished(
        f"import sys\n{hide}import vaez_kernels, vaez_fast.training.train\n"
        "import vaez_fast.measures.evaluate\n"
        "print([m for m in ('torch._inductor', 'torch._dynamo') if m in sys.modules])"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_kernels_know_nothing_of_the_study() -> None:
    printed = python(
        "import sys, vaez_kernels, vaez_kernels.reference\n"
        "print([m for m in sys.modules if m.split('.')[0] in\n"
        "       ('vaez_fast', 'bench', 'torchvision', 'mlxtend')])"
    )
    assert printed.strip() == "[]"


def test_training_needs_no_library_that_a_bare_gpu_machine_lacks() -> None:
    printed = python(
        "import sys, vaez_fast.cli.main, vaez_fast.training.train\n"
        "import vaez_fast.measures.aggregate, vaez_fast.measures.features\n"
        "import vaez_fast.measures.image_metrics, vaez_fast.measures.samplers\n"
        "print([m for m in ('torchvision', 'mlxtend', 'pandas', 'scipy', 'pytest', 'sklearn',\n"
        "                   'torchmetrics', 'matplotlib')\n"
        "       if m in sys.modules])"
    )
    assert printed.strip() == "[]"


def test_the_ops_are_the_same_under_both_names() -> None:
    assert (
        python(
            "import vaez_fast.ops as a, vaez_kernels as b\n"
            "print(all(getattr(a, n) is getattr(b, n) for n in a.__all__))"
        ).strip()
        == "True"
    )
