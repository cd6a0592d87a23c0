"""The figures of the theory, each drawn from its part of the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import style
from ..drawing.style import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION
from . import linear_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
WHITE_BOX = {"color": "white", "alpha": 0.8, "pad": 1.0}
KL_LEVELS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)


def derivatives(record: Record) -> bytes:
    """F and G, the KL's summands, with their derivatives and their only zeros."""
    part = record["derivatives"]
    with style.figure(2, sharey=True) as (figure, (left, right)):
        for ax, x, name in ((left, "mu", "F"), (right, "sigma", "G")):
            (zero,) = part[f"zeros_of_{name}"]
            ax.axhline(0.0, color=GREY, linewidth=1.0)
            ax.plot(part[x], part[f"slope_of_{name}"], "--", color=ORANGE)
            ax.plot(part[x], part[name], color=BLUE, linewidth=2.2)
            ax.plot(zero, 0.0, "o", color=VERMILLION, markersize=8, zorder=3)
            _say(ax, zero + 0.15, -0.5, f"only zero: {x} = {zero:g}", VERMILLION)
            ax.set_xlabel(x)
        _say(left, -2.1, 2.6, "F", BLUE)
        _say(left, -1.1, -2.0, "dF/dmu", "#B27B00")
        _say(right, 2.25, 0.75, "G", BLUE)
        _say(right, 0.55, -2.0, "dG/dsigma", "#B27B00")
        left.set(title="F = ½mu²", ylabel="nats (nats per unit)", ylim=(-3.0, 4.0))
        right.set(title="G = ½(sigma² − 1 − ln sigma²)", xlim=(0.0, 3.0))
        return style.png(figure)


def surface(record: Record) -> bytes:
    """The KL over the plane, with its minimum and its curvatures there."""
    part = record["surface"]
    with style.figure() as (figure, (ax,)):
        _contours(ax, part, filled=True)
        ax.plot(*part["minimum"], "o", color=VERMILLION, markersize=8)
        a, b = part["hessian_eigenvalues"]
        ax.annotate(
            f"minimum (0, 1), KL = 0\ncurvature {a:g} in mu, {b:g} in sigma",
            part["minimum"],
            (0.0, 2.55),
            ha="center",
            va="center",
            bbox={"color": "white", "alpha": 0.9, "pad": 3},
            arrowprops={"arrowstyle": "-", "color": VERMILLION, "shrinkB": 5},
        )
        ax.set_title("KL(N(mu, sigma²) ‖ N(0, 1)), nats", loc="left")
        return style.png(figure)


def _contours(ax: Axes, part: Record, filled: bool = False) -> None:
    x, y, z = part["mu"], part["sigma"], np.array(part["kl"])
    ax.grid(False)
    if filled:
        ax.contourf(x, y, z, (0.0, *KL_LEVELS, 9.0), cmap="Blues", alpha=0.55)
    lines = ax.contour(x, y, z, KL_LEVELS, colors=BLUE if filled else "#C8C8C8", linewidths=1.0)
    if filled:
        ax.clabel(lines, fontsize=10, fmt="%g")
    ax.set(xlabel="mu", ylabel="sigma", xlim=(-3.0, 3.0), ylim=(0.05, 3.0))


def gradient_flow(record: Record) -> bytes:
    """Paths from every start, integrated and in closed form, in both coordinates."""
    part = record["flow"]
    with style.figure() as (figure, (ax,)):
        _contours(ax, record["surface"])
        t = np.array(part["t"])
        for (mu0, sigma0), mu, sigma, other in zip(
            part["starts"], part["mu"], part["sigma"], part["sigma_in_logvar"], strict=True
        ):
            ax.plot(mu, other, "--", color=ORANGE, linewidth=1.6)
            ax.plot(mu, sigma, color=BLUE)
            at = t[::10]
            exact = np.sqrt(1.0 + (sigma0**2 - 1.0) * np.exp(-2.0 * at))
            ax.plot(mu0 * np.exp(-at), exact, ".", color=BLUE, markersize=5)
            ax.plot(mu0, sigma0, "o", color=BLACK, markersize=4)
        ax.plot(0.0, 1.0, "o", color=VERMILLION, markersize=8, zorder=4)
        _say(ax, -2.9, 2.76, "solid: descent in (mu, sigma)", BLUE)
        _say(ax, 0.3, 2.76, "dashed: in (mu, ln sigma²)", "#B27B00")
        title = "Gradient flow: lines integrated, dots closed form every 0.4 of time"
        ax.set_title(title, loc="left")
        return style.png(figure)


def _say(ax: Axes, x: float, y: float, text: str, colour: str, **more: Any) -> None:
    ax.text(x, y, text, color=colour, **({"bbox": WHITE_BOX} | more))


def lyapunov(record: Record) -> bytes:
    """KL(t) falls along every path."""
    part = record["flow"]
    with style.figure() as (figure, (ax,)):
        for (mu0, _), kl in zip(part["starts"], part["kl"], strict=True):
            ax.semilogy(part["t"], kl, color=GREEN if mu0 == 0 else BLUE, linewidth=1.3)
        _say(ax, 4.1, 3e-3, "mu₀ ≠ 0: as $e^{-2t}$", BLUE)
        _say(ax, 3.0, 3e-9, "mu₀ = 0: as $e^{-4t}$", GREEN, ha="right")
        ax.set(xlabel="time t (learning rate × steps)", ylabel="KL (nats)", xlim=(0.0, 6.0))
        ax.set_title(f"The KL falls along all {len(part['starts'])} paths of the flow", loc="left")
        return style.png(figure)


def spiral(record: Record) -> bytes:
    """The flow and the heavy ball from the same start."""
    part = record["spiral"]
    with style.figure() as (figure, (ax,)):
        _contours(ax, record["surface"])
        ax.plot(*part["heavy_ball"], color=VERMILLION, linewidth=1.3)
        ax.plot(*part["flow"], color=BLUE, linewidth=2.4)
        ax.plot(*part["start"], "o", color=BLACK)
        ax.plot(0.0, 1.0, "o", color=BLACK, markersize=4, zorder=4)
        _say(ax, 2.08, 0.3, "start", BLACK)
        _say(ax, 0.5, 0.36, "gradient flow:\nλ = −1, −2", BLUE)
        roots = [f"{a:.2g} ± {b:.2f}i" for a, b in part["heavy_ball_eigenvalues"] if b > 0]
        label = f"with momentum, friction {part['friction']:g}:\nλ = " + ", ".join(roots)
        _say(ax, -2.9, 2.6, label.replace("-", "−"), VERMILLION)
        title = "The gradient flow never turns back; momentum winds around the minimum"
        ax.set_title(title, loc="left")
        return style.png(figure)


def monte_carlo_kl(record: Record) -> bytes:
    """Monte Carlo minus analytic KL with 95 % intervals."""
    part = record["monte_carlo_kl"]
    mus = sorted(set(part["mu"]))
    sigmas = sorted(set(part["sigma"]))
    with style.figure() as (figure, (ax,)):
        ax.axhline(0.0, color=GREY, linewidth=1.0)
        for i, (mu, colour) in enumerate(zip(mus, (BLACK, BLUE, GREEN, VERMILLION), strict=True)):
            chosen = [k for k, m in enumerate(part["mu"]) if m == mu]
            x = [sigmas.index(part["sigma"][k]) + 0.16 * (i - 1.5) for k in chosen]
            off = [part["off"][k] for k in chosen]
            half = [part["half_interval"][k] for k in chosen]
            ax.errorbar(x, off, half, fmt="o", color=colour, markersize=5, capsize=3)
            place = {"transform": ax.transAxes, "va": "top"}
            _say(ax, 0.03, 0.97 - 0.055 * i, f"mu = {mu:g}", colour, **place)
        ax.set_xticks(range(len(sigmas)), [f"{s:g}" for s in sigmas])
        ax.grid(False, axis="x")
        ax.set(xlabel="sigma", ylabel="Monte Carlo − analytic KL (nats)")
        ax.set_title(
            f"Monte Carlo KL, {part['draws']:,} draws: {part['intervals_that_hold']} of "
            f"{part['points']} intervals of 95 % hold the analytic KL",
            loc="left",
        )
        return style.png(figure)


def estimators(record: Record) -> bytes:
    """Variance of sticking the landing over that of the total derivative."""
    part = record["estimators"]
    x, y = part["mu"], part["sigma"]
    in_mu = np.repeat(np.array(part["ratio_mu"])[:, None], len(x), 1)
    levels = np.array((-3.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0))
    with style.figure(2, sharey=True) as (figure, (left, right)):
        for ax, ratio, name in (
            (left, in_mu, "mu"),
            (right, np.array(part["ratio_sigma"]), "sigma"),
        ):
            log = np.log10(np.maximum(ratio, 1e-9))
            filled = ax.contourf(x, y, log, levels, cmap="PuOr_r", extend="both", vmin=-3, vmax=3)
            ax.axhline(part["equal_sigma"], color=BLACK)
            ax.grid(False)
            ax.plot(0.0, 1.0, "o", color=BLACK, markersize=5)
            ax.set(title=f"gradient in {name}", xlabel="mu", ylim=(0.05, 3.0))
        left.set_ylabel("sigma")
        left.set_yticks((0.5, part["equal_sigma"], 1.0, 1.5, 2.0, 2.5, 3.0))
        left.set_yticklabels(("0.5", "1/√2", "1", "1.5", "2", "2.5", "3"))
        _say(left, 0.0, 2.5, "sticking the landing\nvaries less", BLACK, ha="center", bbox=None)
        _say(left, 0.0, 0.35, "varies more", BLACK, ha="center", bbox=None)
        bar = figure.colorbar(filled, ax=[left, right], ticks=(-3, -2, -1, 0, 1, 2, 3))
        bar.ax.set_yticklabels(["1/1000", "1/100", "1/10", "1", "10", "100", "1000"])
        bar.set_label("variance: sticking the landing ÷ total derivative")
        return style.png(figure)


def published_code(record: Record) -> bytes:
    """The published code's KL and the speed at which it moves sigma, against the true ones."""
    part = record["published_code"]
    coded = style.colour("kl/as-published/separate")
    true = style.colour("kl/analytic/separate")
    with style.figure(2) as (figure, (left, right)):
        left.plot(part["sigma"], part["kl"], color=true)
        left.plot(part["sigma"], part["as_published"], color=coded)
        _say(left, 2.55, 2.35, "KL", true, ha="right")
        _say(left, 2.97, 0.52, "as published", coded, ha="right", bbox=None)
        left.set(title="KL at mu = 0", xlabel="sigma", ylabel="nats per latent dimension")
        left.set(xlim=(0.0, 3.0), ylim=(0.0, 3.0))
        for gap, other in zip(part["gap"], part["gap_as_published"], strict=True):
            right.semilogy(part["t"], gap, color=true)
            right.semilogy(part["t"], other, color=coded)
        _say(right, 3.1, 2e-4, f"KL: rate {part['rate']:g}", true, ha="right")
        rate = f"as published:\nrate {part['rate_as_published']:g}"
        _say(right, 7.9, 4e-4, rate, coded, ha="right")
        starts = " and ".join(f"{s:g}" for s in part["starts"])
        right.set(title=f"flow from sigma = {starts}", xlabel="time t (learning rate × steps)")
        right.set(ylabel="|sigma − 1|", xlim=(0.0, 8.0), ylim=(1e-6, 3.0))
        return style.png(figure)


def null(record: Record) -> bytes:
    """The KL of a fit to exactly standard normal draws."""
    part = record["null"]
    n, mean, sd = (np.array(part[name]) for name in ("n", "expected", "sd"))
    with style.figure() as (figure, (ax,)):
        ax.fill_between(n, mean - 1.96 * sd, mean + 1.96 * sd, color=SKY, alpha=0.5, linewidth=0)
        ax.loglog(n, mean, color=BLUE)
        ax.loglog(n, part["latents"] / n, ":", color=BLACK)
        for row in part["simulated"]:
            low, high = row["central_95"]
            error = [[row["mean"] - low], [high - row["mean"]]]
            ax.errorbar(row["n"], row["mean"], error, fmt="o", color=VERMILLION, capsize=4)
        _say(ax, 700, 0.6, "expected, with 95 % of single fits", BLUE)
        _say(ax, 20, 0.06, "simulated fits:\nmean and central 95 %", VERMILLION)
        _say(ax, 17, 3.2, "K/n", BLACK)
        ax.set(xlabel="number of draws n", ylabel="KL of the fit to N(0, I) (nats)")
        ticks = [row["n"] for row in part["simulated"]]
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_title(
            f"Diagonal Gaussian fitted to n draws of N(0, I), K = {part['latents']}", loc="left"
        )
        return style.png(figure)


FIGURES: dict[str, Callable[[Record], bytes]] = {
    "derivatives.png": derivatives,
    "kl-surface.png": surface,
    "gradient-flow.png": gradient_flow,
    "lyapunov.png": lyapunov,
    "spiral.png": spiral,
    "monte-carlo-kl.png": monte_carlo_kl,
    "estimator-variance.png": estimators,
    "published-code.png": published_code,
    "fit-null.png": null,
    "elbo-curvature.png": linear_figures.elbo_curvature,
    "linear-vae.png": linear_figures.linear,
    "rotation.png": linear_figures.rotation,
}
