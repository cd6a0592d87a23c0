"""The theory behind the study as numbers and figures: the KL term, and the linear VAE.

Each claim is computed twice, by formula and by simulation or integration, and the record says how
far apart the two are. `write` makes theory.json and its figures; `table` prints the findings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..system.files import OutputError, prepare_files, read_json, write_atomically
from . import clusters as theory_clusters
from . import curvature as theory_curvature
from . import flow as theory_flow
from . import identity as theory_identity
from . import linear as theory_linear
from . import momentum as theory_momentum
from . import rotation as theory_rotation
from . import sampling as theory_sampling
from . import summands as theory_summands

KIND, SCHEMA = "vaez-fast theory", 1
DIGITS = 7  # significant digits; further ones differ between machines


def compute() -> dict[str, Any]:
    """The record: every number that is printed or drawn, KLs in nats.

    They are per latent dimension in the parts on the KL term, and of all latents in `linear`,
    `rotation` and `identity`.
    """
    record = {
        "kind": KIND,
        "schema": SCHEMA,
        "seed": theory_sampling.SEED,
        "derivatives": theory_summands.summands(),
        "surface": theory_flow.surface(),
        "flow": theory_flow.flows(),
        "spiral": theory_momentum.spiral(),
        "published_code": theory_flow.published_code(),
        "monte_carlo_kl": theory_sampling.monte_carlo_kl(),
        "estimators": theory_sampling.estimators(),
        "null": theory_sampling.null(),
        "curvature": theory_curvature.curvature(),
        "linear": theory_linear.linear(),
        "clusters": theory_clusters.clusters(),
        "rotation": theory_rotation.rotation(),
        "identity": theory_identity.identity(),
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
    least = part["least_curvature"]
    yield _row(
        "zeros of F = ½mu²", f"{_list(part['zeros_of_F'])}; F'' ≥ {least['F']:.3g}, so no other"
    )
    yield _row(
        "zeros of G = ½(sigma² − 1 − ln sigma²)",
        f"{_list(part['zeros_of_G'])}; G'' ≥ {least['G']:.3g}, from {low:g} to {high:g}",
    )
    yield _row("largest |F + G − KL|", f"{part['sum_off_kl']:.1e}")
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
    yield from _whole_elbo(record)


def _whole_elbo(record: dict[str, Any]) -> Iterator[str]:
    part = record["curvature"]
    yield f"the mean ELBO of a linear VAE at q(z|x) = N(0, 1), decoder's noise {part['noise']:g}"
    for case in part["cases"]:
        shown = f"{case['kind']}, curvatures {_list(case['hessian_eigenvalues'])}"
        yield _row(f"data with variance {case['eigenvalue']:g}", shown)

    part = record["linear"]
    informative = f"{part['informative']} informative of {part['latents']} latents"
    yield f"linear VAE on Gaussian data, {informative}"
    yield _row("KL per latent", _list(part["kl_per_latent"]))
    total = f"{part['rate']:.4f} + {part['distortion']:.4f} = {-part['log_px']:.4f}"
    yield _row("rate + distortion = −mean log p(x)", total)
    yield _row("largest |Cov q(z) − I|", f"{part['aggregate_off_identity']:.1e}")
    sample = part["simulated"]
    yield _row(
        f"largest |z| of moments of {sample['draws']:,} draws",
        f"{sample['largest_z_of_moments']:.2f}",
    )

    part = record["clusters"]
    yield f"the same on two clusters with {100 * part['between']:g} % of the variance"
    fit = f"{part['kl']:.4f}; of a Gaussian fit {part['kl_of_gaussian_fit']:.4f}"
    yield _row("KL(q(z) ‖ N(0, 1)) by quadrature", fit)
    yield _row("largest |trapezoidal − Gauss–Hermite|", f"{part['off_hermite']:.1e}")

    part = record["rotation"]
    yield f"Σ → QΣQᵀ, {part['cases']} cases in {part['dimensions']} dimensions"
    yield _row("largest |change of the KL|", f"{part['kl_off']:.1e}")
    yield _row(
        "a diagonal q loses, decoder turned by 45°", f"{part['largest_loss']:.4f} nats of the ELBO"
    )

    part = record["identity"]
    yield f"log p(x) = ELBO + KL(q ‖ p(z|x)), {part['cases']} random q in a linear VAE"
    yield _row("largest |difference| / |ELBO|", f"{part['off']:.1e}")


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
