"""`vaez-fast compare`: an error just above an op's limit fails, one just below it passes.

The backends here are fakes: they return the truth, rounded to each output's dtype, with an error
added to one number. The limits are those of the printed legend, computed independently here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.cli.few_cases import few_cases
from vaez_fast import compare
from vaez_fast.compare import Row
from vaez_kernels import cases
from vaez_kernels.testing import DTYPES, Case, Tensors, on_device

FLOAT32, BFLOAT16, FLOAT16 = DTYPES
ULP = {FLOAT32: 2.0**-23, BFLOAT16: 2.0**-7, FLOAT16: 2.0**-10}  # for numbers from 1 to 2
ANALYTIC = ("kl_standard_normal", "rsample_kl/analytic")
FLOAT_LAYER = "linear_bernoulli_log_prob/float32"
HALF_LAYER = "linear_bernoulli_log_prob/bfloat16-products"
BEYOND = 1.1  # an error of a limit times this must fail, one of a limit over this must pass

# (case, output) → the error to add; mostly 0.
Errors = Callable[[Case, str], float]


def promised(case: Case, name: str) -> torch.dtype:
    """Gradients and z have the inputs' dtype; sums and the stream are float32."""
    in_float32 = ("n", "kl", "log_prob", "log_likelihood")
    if name == "grad x":
        return cases.OPS[case.op].inputs(case)["x"].dtype
    return FLOAT32 if name in in_float32 else case.dtype


def pretended(case: Case, errors: Errors) -> Tensors:
    numbers = {}
    for name, want in cases.truth(case).items():
        # At the smallest number, where rounding changes the error least.
        actual, at = want.clone().flatten(), int(want.abs().argmin())
        actual[at] += errors(case, name)
        numbers[name] = actual.view(want.shape).to(promised(case, name))
    return numbers


def compared(
    monkeypatch: pytest.MonkeyPatch, op: str, fallback: Errors, interpreter: Errors | None = None
) -> list[Row]:
    """Rows of the fake backends: the fallback's, and the interpreter's if it is given."""
    backends = {"fallback": fallback} | ({"interpreter": interpreter} if interpreter else {})

    def run(grid: list[Case], backend: str, show_progress: bool = False) -> list[Tensors]:
        return [pretended(case, backends[backend]) for case in grid]

    monkeypatch.setattr(compare, "run", run)
    monkeypatch.setattr(compare, "interpreting", lambda: True)
    return compare.compare(list(backends), [op])


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    few_cases(monkeypatch, ((3, 7, 19),))
    monkeypatch.setattr(cases.FOLDERS["importance"], "SHAPE", (9, 2, 5, 19, 23, 84))


def operands_of(case: Case, backend: str) -> str:
    operands: str = cases.OPS[case.op].RULES.operands(case, backend)
    return operands


def largest(x: Tensor) -> float:
    return float(x.abs().max())


def ulp_of(value: float, dtype: torch.dtype) -> float:
    return ULP[dtype] * 2.0 ** torch.tensor(value).log2().floor().item()


def own_error(case: Case, name: str, backend: str = "fallback") -> float:
    """The error of textbook PyTorch, whose products round operands as the backend does."""
    outputs = cases.textbook(case, operands_of(case, backend))
    if outputs is None:
        return 0.0
    return largest(outputs[name].double() - cases.truth(case, rounded=True)[name])


class Output(NamedTuple):
    op: str
    name: str
    dtype: torch.dtype = FLOAT32


OUTPUTS = [
    Output("normal", "n"),
    Output("uniform", "n"),
    Output("rsample", "z"),
    Output("rsample", "z", BFLOAT16),
    Output("rsample", "grad logvar", FLOAT16),
    Output("rsample_kl/total-derivative", "kl"),
    Output("rsample_kl/total-derivative", "grad mu"),
    Output("rsample_kl/sticking-the-landing", "grad logvar", BFLOAT16),
    Output("rsample_kl/analytic", "grad mu"),
    Output("bernoulli_log_prob/uint8", "log_prob"),
    Output("bernoulli_log_prob/uint8", "log_prob", FLOAT16),
    Output("bernoulli_log_prob/float32", "grad logits", BFLOAT16),
    Output("bernoulli_log_prob/float32", "grad x"),
    Output("mixture_log_prob", "log_prob"),
    Output("mixture_log_prob", "grad z"),
    Output("mixture_log_prob/leave_out", "grad z", FLOAT16),
    Output(FLOAT_LAYER, "log_prob"),
    Output(FLOAT_LAYER, "grad weight"),
    Output(FLOAT_LAYER, "grad hidden", FLOAT16),
    Output(HALF_LAYER, "log_prob"),
    Output(HALF_LAYER, "grad hidden"),
    Output("importance_log_likelihood/float32", "log_likelihood"),
    Output("importance_log_likelihood/tf32", "log_prob"),
    Output("importance_log_likelihood/bfloat16", "log_prob"),
]


def beyond_the_textbook(case: Case, name: str, backend: str = "fallback") -> float:
    """What the legend allows beyond PyTorch's own error."""
    wanted = cases.truth(case)
    size = largest(wanted[name])
    allowed = 1e-6 * max(1.0, size)
    if case.op.startswith("mixture") and name == "grad z":
        allowed *= max(1.0, largest(wanted["log_prob"]))
    if operands_of(case, backend):
        allowed += own_error(case, name, backend)
    dtype = promised(case, name)
    if dtype != FLOAT32:
        allowed += (2 if cases.OPS[case.op].RULES.products else 1) * ulp_of(size, dtype)
    return allowed


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda o: f"{o.op} {o.name} {o.dtype}")
def test_an_error_above_the_limit_fails_and_one_below_it_passes(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    for factor, passes in ((BEYOND, False), (1 / BEYOND, True)):

        def errors(case: Case, name: str) -> float:
            if name != output.name:
                return 0.0
            return factor * (own_error(case, name) + beyond_the_textbook(case, name))  # noqa: B023

        rows = compared(monkeypatch, output.op, errors)
        chosen = [row for row in rows if row.dtype == str(output.dtype).removeprefix("torch.")]
        there = [row for row in chosen if row.output == output.name]
        assert there
        assert all(row.passed == passes for row in there), [r for r in there if r.passed != passes]
        assert all(row.passed for row in chosen if row.output != output.name)


@pytest.mark.parametrize("output", ["kl", "grad mu", "grad logvar"])
@pytest.mark.parametrize("op", ANALYTIC)
@pytest.mark.parametrize("factor", [BEYOND, 1 / BEYOND])
def test_an_analytic_kl_keeps_five_digits_near_zero(
    factor: float, op: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def errors(case: Case, name: str) -> float:
        if (case.values, case.dtype, name) != ("near zero", FLOAT32, output):
            return 0.0
        smallest = cases.truth(case)[name].abs().min()
        return factor * 1e-5 * float(smallest)  # far below what other numbers may err by

    rows = compared(monkeypatch, op, errors)
    # Where the op also computes z, the gradients of z and KL are summed, which cancels digits.
    promised = output == "kl" or op == "kl_standard_normal"
    failed = [(row.output, row.dtype, "near zero" in row.case) for row in rows if not row.passed]
    assert failed == ([(output, "float32", True)] if promised and factor > 1 else [])


@pytest.mark.parametrize(("share", "passes"), [(2.2, False), (1.8, True)])
def test_a_kernel_that_differs_from_the_fallback_fails_though_the_textbook_errs_more(
    share: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Textbook code in bfloat16 is wrong by tenths of a nat; backends must agree more closely.
    op = "bernoulli_log_prob/uint8"

    def errors(case: Case, name: str) -> float:
        if (name, case.dtype) != ("log_prob", BFLOAT16):
            return 0.0
        return share * beyond_the_textbook(case, name)

    rows = compared(monkeypatch, op, lambda case, name: 0.0, errors)
    rows = [row for row in rows if row.dtype == "bfloat16"]
    apart = [row for row in rows if row.backend == "interpreter" and row.output == "log_prob"]
    assert all(row.absolute < 0.5 * (row.textbook_absolute or 0.0) for row in apart)
    assert apart
    assert all(row.passed == passes for row in apart)
    assert all(row.passed for row in rows if row not in apart)


def test_the_stream_differs_from_the_fallbacks_in_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def errors(case: Case, name: str) -> float:
        return 2e-7

    same = compared(monkeypatch, "normal", errors, errors)
    assert all(row.passed for row in same)
    apart = compared(monkeypatch, "normal", lambda case, name: 0.0, errors)
    assert {row.backend for row in apart if not row.passed} == {"interpreter"}
    assert not any(row.passed for row in apart if row.backend == "interpreter")


def opposite(monkeypatch: pytest.MonkeyPatch, op: str, share: float) -> list[Row]:
    """Rows of log p; the backends have this share of their limits as errors of opposite signs."""

    def errors(backend: str, sign: float) -> Errors:
        def of_case(case: Case, name: str) -> float:
            parts = (f(case, name, backend) for f in (own_error, beyond_the_textbook))
            return sign * share * sum(parts) if name == "log_prob" else 0.0

        return of_case

    rows = compared(monkeypatch, op, errors("fallback", 1.0), errors("interpreter", -1.0))
    return [row for row in rows if row.backend == "interpreter" and row.output == "log_prob"]


def test_float32_of_rounded_products_must_be_the_fallbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    # At 0.95 each backend is close enough to the truth, but the two are too far from each other.
    assert all(row.passed for row in opposite(monkeypatch, HALF_LAYER, 0.45))
    assert not any(row.passed for row in opposite(monkeypatch, HALF_LAYER, 0.95))


def test_products_of_16_bits_may_be_rounded_elsewhere_than_the_fallbacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [r for r in opposite(monkeypatch, FLOAT_LAYER, 0.95) if r.dtype != "float32"]
    assert rows
    for row in rows:
        assert row.passed
        assert row.from_fallback is not None
        assert row.from_fallback > 2 * row.tolerance


@pytest.mark.parametrize(("op", "output"), [("rsample", "z"), ("mixture_log_prob", "log_prob")])
def test_a_nan_fails(op: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = compared(monkeypatch, op, lambda case, name: torch.nan if name == output else 0.0)
    assert all(row.passed == (row.output != output) for row in rows)


def test_a_record_with_one_failure_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(case: Case, name: str) -> float:
        return 1.0 if (name, case.dtype) == ("z", FLOAT32) and not case.halves else 0.0

    rows = compared(monkeypatch, "rsample", one)
    assert {row.passed for row in rows} == {True, False}
    assert compare.record(rows, {})["passed"] is False
    assert compare.record([row for row in rows if row.passed], {})["passed"] is True


def test_errors_are_measured_where_they_are_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = compared(monkeypatch, "rsample", lambda case, name: 3.0 if name == "z" else 0.0)
    for row in rows:
        assert row.absolute == pytest.approx(3.0, rel=1e-2) if row.output == "z" else row.passed


@pytest.mark.parametrize("op", cases.OPS)
def test_the_yardstick_is_no_licence(op: str) -> None:
    # The error of textbook float32 is a few roundings of sums of a hundred terms, and of the
    # operands of products. A wrong textbook formula would let wrong kernels pass.
    for case in cases.cases([op], large=False):
        if case.dtype != FLOAT32 or cases.textbook(case) is None or case.values == "wide":
            continue
        wanted = cases.truth(case, rounded=True)
        for name, output in (cases.textbook(case) or {}).items():
            size = max(1.0, largest(wanted[name]))
            assert largest(output.double() - wanted[name]) < 2e-5 * size, (case.name, name)


@pytest.mark.parametrize("op", cases.OPS)
def test_tensors_keep_their_strides_on_another_device(op: str) -> None:
    for case in cases.cases([op], large=False):
        given = cases.OPS[op].inputs(case)
        moved = on_device(torch.device("meta"), given)
        for name, x in given.items():
            if isinstance(x, Tensor):
                assert (moved[name].device.type, moved[name].stride()) == ("meta", x.stride())


@pytest.mark.parametrize("op", cases.OPS)
def test_every_kind_of_input_is_compared(op: str) -> None:
    grid = cases.cases([op], large=False)
    if op in cases.FOLDERS["noise"].OPS:
        assert any(case.row_offset > 2**32 for case in grid)
    elif op in cases.FOLDERS["latent"].OPS:
        for dtype in DTYPES:
            kinds = {(case.values, case.halves) for case in grid if case.dtype == dtype}
            values = {"normal", "near zero", "wide"}
            assert kinds == {(v, False) for v in values} | {("normal", True)}
        near_zero = next(case for case in grid if case.values == "near zero")
        halves = next(case for case in grid if case.halves)
        assert not cases.OPS[halves.op].inputs(halves)["mu"].is_contiguous()
        assert cases.OPS[near_zero.op].inputs(near_zero)["mu"].abs().max() < 3
    elif op in cases.FOLDERS["importance"].OPS:
        assert {case.called for case in grid} == {True, False}
    else:
        assert {case.dtype for case in grid} == ({FLOAT32} if op == HALF_LAYER else set(DTYPES))
        assert op in cases.FOLDERS["linear_bernoulli"].OPS or any(
            case.values == "wide" for case in grid
        )


def test_gradients_are_taken_along_no_special_direction() -> None:
    # dz/dmu is 1, so this gradient is the upstream gradient, summed over samples.
    case = cases.cases(["rsample"], large=False)[0]
    assert case.shape[1:] == (7, 19)
    assert len(cases.truth(case)["grad mu"].unique()) == 7 * 19


def test_the_interpreter_is_compared_with_a_textbook_that_cuts_bits_off() -> None:
    (case,) = cases.cases([HALF_LAYER], large=False)
    backends = ("fallback", "interpreter", "cuda")
    wanted = ["bfloat16", "bfloat16, cut", "bfloat16"]
    assert [operands_of(case, backend) for backend in backends] == wanted
    tf32 = cases.cases(["importance_log_likelihood/tf32"], large=False)[0]
    assert [operands_of(tf32, backend) for backend in backends] == ["", "tf32", "tf32"]
    plain = cases.cases(["rsample", FLOAT_LAYER], large=False)
    assert {operands_of(case, "cuda") for case in plain} == {""}
