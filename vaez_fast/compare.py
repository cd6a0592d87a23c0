"""`vaez-fast compare`: every op on each available backend, against float64 and the fallback."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaez_kernels import interpreting, use_backend
from vaez_kernels.backend import triton
from vaez_kernels.cases import OPS, cases, ours, textbook, truth
from vaez_kernels.error_bounds import KL_ERROR, Rules, spacing
from vaez_kernels.testing import Case, Tensors

from .config import ConfigError
from .names import BACKENDS
from .system.errors import UserError
from .system.progress import Progress

# Relative errors and ulps only count numbers that are at least this fraction of the largest one.
# Where an output passes through zero, they would grow without bound.
SMALL = 1e-3

LEGEND = """\
abs, rel, ulp: largest error against float64 (rel and ulp only for numbers above a thousandth of the
largest). torch: largest error of textbook PyTorch with the same dtype and eps. fallback: largest
distance from the fallback. A row passes if abs ≤ torch + tolerance, and the fallback is at most two
tolerances away (not required for products of 16-bit inputs). The tolerance is 1e-6 of the largest
number, or 1e-6 if that is larger (plus one ulp of the largest number in bfloat16 and float16, two
ulps for results of a matrix product). For a mixture's gradient the 1e-6 is multiplied by its
largest |log q|. If float32 is multiplied as bfloat16 or TF32, torch
counts twice and rounds operands as the backend does: to nearest, except that the interpreter
truncates to bfloat16. The analytic KL and its gradient must also be within a relative error of
1e-5, and the interpreted stream must equal the fallback's bit for bit.""".splitlines()


class CompareError(UserError, RuntimeError):
    """A backend ended without results."""


@dataclass(frozen=True)
class Row:
    """One output (or gradient) of one case on one backend. Errors are maxima over its numbers."""

    op: str
    output: str
    backend: str
    dtype: str
    case: str
    absolute: float
    relative: float
    ulp: float
    textbook_absolute: float | None  # PyTorch's own error in the same dtype
    tolerance: float
    from_fallback: float | None
    passed: bool


def available() -> dict[str, str]:
    """Each backend, and why it cannot run here (empty if it can)."""
    no_triton = "" if triton is not None else "triton is not installed"
    no_cuda = "" if torch.cuda.is_available() else "no CUDA device is here"
    if interpreting() and not no_cuda:
        no_cuda = "TRITON_INTERPRET=1 turns the kernels into interpreted ones"
    return {"fallback": "", "interpreter": no_triton, "cuda": no_triton or no_cuda}


def chosen(names: Sequence[str] | None) -> list[str]:
    """The backends to run: those named, or all that can run here.

    Raises:
        ConfigError: an unknown name, or a backend that cannot run here.
    """
    reasons = available()
    if names is None:
        return [name for name in BACKENDS if not reasons[name]]
    for name in names:
        if name not in BACKENDS:
            raise ConfigError(f"backends must be among {', '.join(BACKENDS)}, got {name!r}")
        if reasons[name]:
            raise ConfigError(f"backends: {name!r} cannot run here: {reasons[name]}")
    return [name for name in BACKENDS if name in names]


def compare(
    backends: Sequence[str], ops: Sequence[str] = tuple(OPS), show_progress: bool = False
) -> list[Row]:
    """Run all cases of `ops` on each backend. The fallback always runs, for comparison.

    Raises:
        ConfigError: an unknown op.
        CompareError: the interpreter's process failed.
    """
    for op in ops:
        if op not in OPS:
            raise ConfigError(f"ops must be among {', '.join(OPS)}, got {op!r}")
    grid = cases(ops, large="cuda" in backends)
    results = {"fallback": run(grid, "fallback", show_progress)}
    for name in backends:
        if name == "interpreter" and not interpreting():
            results[name] = _run_interpreter(ops, show_progress)
        elif name != "fallback":
            results[name] = run(grid, name, show_progress)
    return compared(grid, backends, results, show_progress)


def compare_on_cuda(case: Case) -> list[Row]:
    """The rows of one case, on the fallback and on CUDA."""
    backends = ("fallback", "cuda")
    return compared([case], backends, {name: run([case], name) for name in backends})


def compared(
    grid: list[Case],
    backends: Sequence[str],
    results: dict[str, list[Tensors]],
    show_progress: bool = False,
) -> list[Row]:
    """The rows for the results of `run`, by backend; the fallback's results must be among them."""
    rows: list[Row] = []
    with Progress(len(grid), "reference", show=show_progress) as progress:
        for i, case in enumerate(grid):
            wanted, own = truth(case), functools.cache(functools.partial(_own_errors, case))
            rules: Rules = OPS[case.op].RULES
            for name in backends:
                if i < len(results[name]):  # the interpreter runs the small sizes, which come first
                    mine, other = results[name][i], results["fallback"][i]
                    rows += _rows(case, name, mine, wanted, own(rules.operands(case, name)), other)
            progress.advance()
    return rows


def run(grid: list[Case], backend: str, show_progress: bool = False) -> list[Tensors]:
    """Outputs and gradients of each case, on the CPU, from one backend."""
    device = torch.device("cuda" if backend == "cuda" else "cpu")
    results = []
    with (
        use_backend("torch" if backend == "fallback" else "triton"),
        Progress(len(grid), backend, show=show_progress) as progress,
    ):
        for case in grid:
            results.append(ours(case, device))
            progress.advance()
    return results


def _run_interpreter(ops: Sequence[str], show_progress: bool) -> list[Tensors]:
    # Triton reads TRITON_INTERPRET when a kernel is decorated, so this needs another process.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.pt")
        command = [sys.executable, "-m", "vaez_fast.compare", str(file), *ops]
        environment = os.environ | {
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        # The progress bar goes to our terminal. Without a terminal, errors go into our exception.
        to = None if show_progress and sys.stderr.isatty() else subprocess.PIPE
        done = subprocess.run(command, env=environment, stderr=to, text=True)
        if done.returncode != 0:
            said = f":\n{done.stderr}" if done.stderr else " (see above)"
            raise CompareError(f"the interpreter's process ended with {done.returncode}{said}")
        loaded: list[Tensors] = torch.load(file, weights_only=True)
        return loaded


def _rows(
    case: Case,
    backend: str,
    mine: Tensors,
    wanted: Tensors,
    own_errors: dict[str, float],
    fallback: Tensors,
) -> Iterator[Row]:
    rules: Rules = OPS[case.op].RULES
    for name, actual in mine.items():
        want = wanted[name]
        error = (actual.double() - want).abs()
        own = own_errors.get(name)
        by_operands = own_errors[name] if rules.operands(case, backend) else 0.0
        tolerance = rules.tolerance(name, actual.dtype, wanted, by_operands)
        passed = bool(error.max() <= (own or 0.0) + tolerance)
        counted = want.abs() >= SMALL * want.abs().max()
        if rules.promises_digits(case, name):
            counted = want != 0
            limit = KL_ERROR * want.abs()
            if actual.dtype.itemsize == 2:
                limit = limit + spacing(want, actual.dtype)
            passed = passed and bool((error <= limit).all())
        apart = None
        if backend != "fallback":
            apart = float((actual.double() - fallback[name].double()).abs().max())
            # The noise is bit-identical on a CPU; everything else is within the tolerance.
            exact = backend == "interpreter" and name == "n"
            # For 16-bit inputs, each backend rounds products in its own way.
            free = rules.products and case.dtype != torch.float32
            passed = passed and (free or apart <= (0.0 if exact else 2.0 * tolerance))
        yield Row(
            op=case.op,
            output=name,
            backend=backend,
            dtype=str(case.dtype).removeprefix("torch."),
            case=case.name,
            absolute=float(error.max()),
            relative=_largest(error / want.abs(), counted),
            ulp=_largest(error / spacing(want, actual.dtype), counted),
            textbook_absolute=own,
            tolerance=tolerance,
            from_fallback=apart,
            passed=passed,
        )


def _own_errors(case: Case, operands: str) -> dict[str, float]:
    # errors of textbook code, for each output; there is none for the noise stream
    outputs = textbook(case, operands)
    if outputs is None:
        return {}
    wanted = truth(case, rounded=True)
    errors = {name: (output.double() - wanted[name]).abs() for name, output in outputs.items()}
    # An overflow in textbook code must not allow any error.
    return {name: float(error[error.isfinite()].max()) for name, error in errors.items()}


def _largest(values: Tensor, counted: Tensor) -> float:
    return float(values[counted].max()) if counted.any() else 0.0


def record(rows: list[Row], environment: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a comparison."""
    return {
        "schema": 1,
        "passed": all(row.passed for row in rows),
        "environment": environment,
        "rows": [{name: _json(v) for name, v in asdict(row).items()} for row in rows],
    }


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of text with the worst case for each op, backend, dtype and output."""
    for op in dict.fromkeys(row.op for row in rows):
        yield ""
        yield op
        yield (
            f"  {'backend':<12}{'dtype':<10}{'output':<16}{'abs':>9}{'torch':>9}{'rel':>9}"
            f"{'ulp':>9}{'fallback':>10}{'cases':>7}  verdict"
        )
        of_op = [row for row in rows if row.op == op]
        for key in dict.fromkeys((row.backend, row.dtype, row.output) for row in of_op):
            group = [row for row in of_op if (row.backend, row.dtype, row.output) == key]
            failed = sum(not row.passed for row in group)
            yield (
                f"  {key[0]:<12}{key[1]:<10}{key[2]:<16}"
                + _worst(row.absolute for row in group)
                + _worst(row.textbook_absolute for row in group)
                + _worst(row.relative for row in group)
                + _worst(row.ulp for row in group)
                + " "
                + _worst(row.from_fallback for row in group)
                + f"{len(group):>7}  {f'{failed} FAILED' if failed else 'pass'}"
            )
    failures = [row for row in rows if not row.passed]
    for row in failures:
        own = 0.0 if row.textbook_absolute is None else row.textbook_absolute
        apart = "" if row.from_fallback is None else f"; {row.from_fallback:.2e} from the fallback"
        yield ""
        yield (
            f"FAILED: {row.op}, {row.output}, {row.backend}, {row.case}: off by {row.absolute:.2e} "
            f"({row.relative:.1e} relative), allowed {own:.2e} (torch's) + {row.tolerance:.2e}"
            f"{apart}"
        )
    yield ""
    yield f"{len(rows) - len(failures)} of {len(rows)} comparisons passed."
    yield from LEGEND


def _worst(values: Iterator[float | None]) -> str:
    known = [v for v in values if v is not None]
    if any(math.isnan(v) for v in known):
        return f"{'nan':>9}"
    return f"{max(known):>9.1e}" if known else f"{'–':>9}"


if __name__ == "__main__":
    torch.save(
        run(cases(sys.argv[2:], large=False), "interpreter", show_progress=True), sys.argv[1]
    )
