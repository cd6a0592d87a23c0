"""Every op's cases, by name, for the tests, `vaez-fast compare` and the benchmarks.

An op's case.py has, for each name in its `OPS`:

- `cases()` and `large_cases()`: calls to compare, of small sizes and of sizes that fill a GPU;
- `inputs(case)`: the arguments of the public function, by name, with tensors on the CPU. They are
  the same for every backend;
- three ways to compute the outputs, by name, from a case and its arguments: `call`, the public
  function; `truth`, the formula in float64; `textbook`, the code that a user would write, in the
  dtype of the inputs (None if no such code exists);
- `LEAVES`: the names of the arguments with a gradient;
- `RULES`: where the requirements on the results differ from the common rule;
- `TIMED`: how the op is timed, if the benchmark of all ops times it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType

import torch

from .bernoulli import case as bernoulli
from .gaussian import case as gaussian
from .importance import case as importance
from .latent import case as latent
from .latent import moments_case as moments
from .linear_bernoulli import case as linear_bernoulli
from .mixture import case as mixture
from .noise import case as noise
from .testing import Case, Tensors, Timed, in_float64, on_device, with_gradients

FOLDERS: dict[str, ModuleType] = {
    "noise": noise,
    "latent": latent,
    "bernoulli": bernoulli,
    "gaussian": gaussian,
    "mixture": mixture,
    "linear_bernoulli": linear_bernoulli,
    "importance": importance,
}
# The case module of each op, by the op's name in `vaez-fast compare`.
OPS: dict[str, ModuleType] = {name: module for module in FOLDERS.values() for name in module.OPS}
# The ops that bench/ops/bench_ops.py times, by the name of the test, most important first.
TIMED: dict[str, Timed] = {
    "latent": latent.TIMED,
    "moments": moments.TIMED,
    "likelihood": bernoulli.TIMED,
    "linear": linear_bernoulli.TIMED,
    "mixture": mixture.TIMED,
}


def cases(ops: Sequence[str], large: bool) -> list[Case]:
    """All cases of `ops`, always the same; with `large`, followed by sizes that fill a GPU."""
    grid = [case for module in FOLDERS.values() for case in module.cases()]
    if large:
        grid += [case for module in FOLDERS.values() for case in module.large_cases()]
    return [case for case in grid if case.op in ops]


def ours(case: Case, device: torch.device) -> Tensors:
    """Outputs and gradients of the public function, computed on `device`, then moved to the CPU."""
    module = OPS[case.op]
    return with_gradients(case, module.call, on_device(device, module.inputs(case)), module.LEAVES)


def truth(case: Case, rounded: bool = False) -> Tensors:
    """Outputs and gradients in float64.

    With `rounded`, eps and the upstream gradients are rounded to the case's dtype, as in a user's
    code.
    """
    module = OPS[case.op]
    formula = partial(module.truth, rounded=rounded)
    return with_gradients(case, formula, in_float64(module.inputs(case)), module.LEAVES, rounded)


def textbook(case: Case, operands: str = "") -> Tensors | None:
    """Outputs and gradients of textbook code in the dtype of the inputs; None if there is none.

    `operands` says what the operands of a matrix product are rounded to.
    """
    module = OPS[case.op]
    if module.textbook is None:
        return None
    code = partial(module.textbook, operands=operands)
    return with_gradients(case, code, module.inputs(case), module.LEAVES)
