"""The theory behind the study as numbers and figures: the KL term of one (mu, sigma).

Each claim is computed twice, by formula and by simulation or integration, and the record says how
far apart the two are. `write` makes theory.json and its figures; `table` prints the findings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..system.files import OutputError, prepare_files, read_json, write_atomically
from . import flow as theory_flow
from . import momentum as theory_momentum
from . import sampling as theory_sampling

KIND, SCHEMA = "vaez-fast theory", 1
DIGITS = 7  # significant digits; further ones differ between machines


def compute() -> dict[str, Any]:
    """The record: every number that is printed or drawn. KLs in nats per latent dimension."""
    record = {
        "kind": KIND,
        "schema": SCHEMA,
        "seed": theory_sampling.SEED,
        "derivatives": theory_flow.derivatives(),
        "surface": theory_flow.surface(),
        "flow": theory_flow.flows(),
        "spiral": theory_momentum.spiral(),
        "published_code": theory_flow.published_code(),
        "monte_carlo_kl": theory_sampling.monte_carlo_kl(),
        "estimators": theory_sampling.estimators(),
        "null": theory_sampling.null(),
    }
    return {name: _rounded(part) for name, part in record.items()}


def write(out: Path) -> dict[str, Any]:
    """Compute everything, write the figures and then theory.json into `out`; returns the record.

    Raises:
        OutputError: `out` cannot be written, or holds another kind of theory.json.
    """
    from .figures import FIGURES  # imports matplotlib

    path = out / "theory.json"
    prepare_files(out, path.name, *FIGURES)
    if path.exists() and not _is_ours(path):
        raise OutputError(f"out: {path} is not a record of the theory; name another folder")
    record = compute()
    for name, draw in FIGURES.items():
        write_atomically(out / name, draw(record))
    write_atomically(path, _json(record).encode())  # last: it marks a complete folder
    return record


def table(record: dict[str, Any]) -> Iterator[str]:
    """The record's findings, one claim per line, each with its agreement."""
    yield "KL(N(mu, sigma²) ‖ N(0, 1)), nats per latent dimension"
    part = record["derivatives"]
    low, high = part["searched"]["sigma"]
    slope = part["least_slope"]
    yield _row("zeros of dKL/dmu = mu", f"{_list(part['zeros_of_F'])}; slope ≥ {slope['F']:.3g}")
    yield _row(
        "zeros of dKL/dsigma = sigma − 1/sigma",
        f"{_list(part['zeros_of_G'])}; slope ≥ {slope['G']:.3g}, from {low:g} to {high:g}",
    )
    yield _row("curvatures at (0, 1)", _list(record["surface"]["hessian_eigenvalues"]))

    part = record["flow"]
    yield f"gradient flow from {len(part['starts'])} starts"
    yield _row("eigenvalues in (mu, sigma)", _list(part["rates"]))
    yield _row("eigenvalues in (mu, ln sigma²)", _list(part["rates_in_logvar"]))
    yield _row("largest |Runge–Kutta − closed form|", f"{part['off_closed_form']:.1e}")
    yield _row("the same in (mu, ln sigma²)", f"{part['logvar_off_closed_form']:.1e}")
    yield _row("KL falls at every step", "yes" if part["kl_always_falls"] else "NO")
    yield _row("largest |(dKL/dt) / (−‖∇KL‖²) − 1|", f"{part['dissipation_off']:.1e}")

    part = record["spiral"]
    bounds = _list(part["critical_friction"])
    yield f"momentum with friction {part['friction']:g}; oscillates below {bounds}"
    yield _row("eigenvalues without momentum", _eigen(part["flow_eigenvalues"]))
    yield _row("eigenvalues with momentum", _eigen(part["heavy_ball_eigenvalues"]))
    for name, key in (("flow", "flow_crossings"), ("momentum", "heavy_ball_crossings")):
        yield _row(f"crossings of mu = 0, of sigma = 1: {name}", _list(part[key]))

    yield f"  furthest past mu = 0 and sigma = 1 in {part['optimiser_steps']:,} exact steps:"
    for row in part["optimisers"]:
        settings = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
        yield _row(f"  {row['optimiser']}({settings})", _list(row["past"]))

    part = record["monte_carlo_kl"]
    yield f"Monte Carlo KL, {part['draws']:,} draws at {part['points']} points"
    chance = f"{part['largest_z']:.2f} (chance of a larger: {part['chance_of_larger']:.2f})"
    yield _row("largest |z| against the analytic KL", chance)
    held = f"{part['intervals_that_hold']} of {part['points']}"
    yield _row("95 % intervals that hold it", held)

    part = record["estimators"]
    yield f"variance of the KL's gradient from one sample, {part['draws']:,} draws"
    count = part["compared"]
    yield _row(f"largest |z| of {count} variances by formula", f"{part['largest_z']:.2f}")
    yield _row(f"largest |z| of {count} means", f"{part['largest_z_of_mean']:.2f}")
    above = f"sigma > {part['equal_sigma']:.4f}, for any mu"
    yield _row("sticking the landing varies less where", above)

    part = record["published_code"]
    yield "the published code's KL, sigma where sigma² belongs"
    start = f"{part['initial_as_published']:.2f} nats, truly {part['initial_kl']:.2f}"
    yield _row(f"at sigma = {part['initial_sigma']:.3f}, {part['latents']} latents", start)
    rates = f"{part['rate_as_published']:g}, truly {part['rate']:g}"
    yield _row("relaxation rate of sigma at 1", rates)

    part = record["null"]
    yield f"KL of a diagonal Gaussian fitted to n draws of N(0, I), {part['latents']} latents"
    for row in part["simulated"]:
        yield (
            f"  n = {row['n']:<5,}  expected {row['expected']:.4f}  "
            f"mean of {row['fits']} fits {row['mean']:.4f}  z {row['z']:+.2f}"
        )


def _row(claim: str, value: str) -> str:
    return f"  {claim:<44}{value}"


def _list(values: list[float]) -> str:
    return ", ".join(f"{x:.4g}" for x in values)


def _eigen(values: list[list[float]]) -> str:
    """Conjugate pairs as one a ± bi."""
    shown = []
    for real, imaginary in values:
        if imaginary == 0:
            shown.append(f"{real:.4g}")
        elif imaginary > 0:
            shown.append(f"{real:.4g} ± {imaginary:.4g}i")
    return ", ".join(shown)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") + 0.0  # −0.0 becomes 0.0
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    return value


def _json(record: dict[str, Any]) -> str:
    """One line per part: with one line per number, diffs would be thousands of lines."""
    lines = (f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in record.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _is_ours(path: Path) -> bool:
    try:
        return read_json(path).get("kind") == KIND
    except OutputError:
        return False
