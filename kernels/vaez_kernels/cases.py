"""Every op's cases, by name, for the tests, `vaez-fast compare` and the benchmarks.

An op's case.py has, for each name in its `OPS`:

- `cases()` and `large_cases()`: calls to compare, of small sizes and of sizes that fill a GPU;
- `inputs(case)`: the tensors on the CPU, by argument name, the same for every backend;
- three ways to compute a case, each of which returns outputs and gradients ("grad mu") on the CPU:
  `ours(case, device)`, the public function on the backend in force; `truth(case, rounded)`, the
  float64 reference; `textbook(case, operands)`, the code that a user would write, in the dtype of
  the inputs (None if no such code exists). With `rounded`, eps and the upstream gradients of the
  truth are rounded to the case's dtype, as in a user's code. `operands` says what the operands of a
  matrix product are rounded to;
- `RULES`: where the requirements on the results differ from the common rule;
- `TIMED`: how the op is timed, if the benchmark of all ops times it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from .bernoulli import case as bernoulli
from .gaussian import case as gaussian
from .importance import case as importance
from .latent import case as latent
from .linear_bernoulli import case as linear_bernoulli
from .mixture import case as mixture
from .noise import case as noise
from .testing import Case, Timed

ROOMS: dict[str, ModuleType] = {
    "noise": noise,
    "latent": latent,
    "bernoulli": bernoulli,
    "gaussian": gaussian,
    "mixture": mixture,
    "linear_bernoulli": linear_bernoulli,
    "importance": importance,
}
# The case module of each op, by the op's name in `vaez-fast compare`.
OPS: dict[str, ModuleType] = {name: room for room in ROOMS.values() for name in room.OPS}
# The ops that bench/ops/bench_ops.py times, by the name of the test, most important first.
TIMED: dict[str, Timed] = {
    "latent": latent.TIMED,
    "likelihood": bernoulli.TIMED,
    "linear": linear_bernoulli.TIMED,
    "mixture": mixture.TIMED,
}


def cases(ops: Sequence[str], large: bool) -> list[Case]:
    """All cases of `ops`, always the same; with `large`, followed by sizes that fill a GPU."""
    grid = [case for room in ROOMS.values() for case in room.cases()]
    if large:
        grid += [case for room in ROOMS.values() for case in room.large_cases()]
    return [case for case in grid if case.op in ops]
