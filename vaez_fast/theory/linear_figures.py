"""The figures of the linear VAE, each drawn from its part of the theory's record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import style
from ..drawing.style import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
BELOW, ABOVE = (-4.0, -2.0, -1.0, -0.5, -0.25, -0.1), (0.0, 0.2, 0.4, 0.6, 0.75)  # nats
CIRCLE = np.linspace(0.0, 2.0 * np.pi, 200)


def linear(record: Record) -> bytes:
    """Posteriors of several x and the aggregate: Gaussian data, and data in two clusters."""
    part, broken = record["linear"], record["clusters"]
    with style.figure(2, height=3.8) as (figure, (left, right)):
        left.plot(*np.array(part["shown"]["z"]).T, ".", color=GREY, markersize=2, alpha=0.35)
        factor = 2.0 * np.diag(part["posterior_sd"][:2])
        for mean in part["shown"]["mean"]:
            _ellipse(left, np.array(mean), factor, color=BLUE, linewidth=1.2)
        _ellipse(left, np.zeros(2), 2.0 * np.eye(2), color=VERMILLION, linewidth=2.4)
        _label(left, 0.03, 0.98, f"q(z|x) of {len(part['shown']['mean'])} x, 2 sd", BLUE)
        _label(left, 0.03, 0.90, "q(z) = N(0, I), 2 sd", VERMILLION)
        left.set(xlabel="z₁", ylabel="z₂", xlim=(-3.4, 3.4), ylim=(-3.0, 3.8), aspect="equal")
        left.set_title(f"Gaussian data, rate {part['rate']:.2f}", loc="left")

        right.fill_between(broken["z"], broken["density"], color=SKY, alpha=0.4, linewidth=0)
        right.plot(broken["z"], broken["standard"], "--", color=BLACK)
        right.plot(broken["z"], broken["density"], color=VERMILLION)
        right.set(xlabel="z", ylabel="density", xlim=(-3.5, 3.5), ylim=(0.0, 0.9))
        right.set_box_aspect(1.0)
        _label(right, 0.03, 0.98, f"q(z), KL = {broken['kl']:.2f} nats", VERMILLION)
        _label(right, 0.03, 0.90, "N(0, 1), the same mean and sd", BLACK)
        right.set_title(f"data in two clusters, rate {broken['rate']:.2f}", loc="left")
        return style.png(figure)


def _ellipse(ax: Axes, centre: Any, factor: Any, **how: Any) -> None:
    """The image of the unit circle under `factor`."""
    x, y = centre[:, None] + factor @ np.stack((np.cos(CIRCLE), np.sin(CIRCLE)))
    ax.plot(x, y, **how)


def _label(ax: Axes, x: float, y: float, text: str, colour: str, **more: Any) -> None:
    box = {"color": "white", "alpha": 0.85, "pad": 1.0}
    ax.text(x, y, text, color=colour, va="top", transform=ax.transAxes, bbox=box, zorder=5, **more)


def elbo_curvature(record: Record) -> bytes:
    """The mean ELBO of the smallest linear VAE on both sides of the noise."""
    part = record["curvature"]
    with style.figure(2, sharey=True) as (figure, axes):
        for ax, case in zip(axes, part["cases"], strict=True):
            z = np.array(case["elbo"])
            ax.grid(False)
            ax.contour(part["w"], part["v"], z, BELOW, colors="#B8B8B8", linewidths=1.0)
            ax.contour(part["w"], part["v"], z, (0.0,), colors=GREY, linewidths=2.0)
            if z.max() > ABOVE[1]:
                levels = (*(level for level in ABOVE if level < z.max()), z.max())
                ax.contourf(part["w"], part["v"], z, levels, cmap="Blues", alpha=0.8)
                w, v, _ = case["optimum"]
                ax.plot((w, -w), (v, -v), "*", color=BLACK, markersize=13)
                best = f"★ optimum: ELBO higher by {case['elbo_at_optimum']:.2f}"
                _label(ax, 0.98, 0.08, best, BLACK, ha="right")
            ax.plot(0.0, 0.0, "o", color=VERMILLION, markersize=9)
            values = ", ".join(f"{x:.2g}" for x in case["hessian_eigenvalues"]).replace("-", "−")
            at = f"q(z|x) = N(0, 1): {case['kind']}\ncurvatures {values}"
            _label(ax, 0.03, 0.97, at, VERMILLION)
            sign = ">" if case["eigenvalue"] > part["noise"] else "<"
            title = f"data's variance {case['eigenvalue']:g} {sign} noise {part['noise']:g}"
            ax.set_title(title, loc="left")
            ax.set_xlabel("decoder weight w")
        axes[0].set_ylabel("encoder weight v")
        return style.png(figure)


def rotation(record: Record) -> bytes:
    """Turned Gaussians of one KL, and what a diagonal q loses of a turned decoder's ELBO."""
    part = record["rotation"]
    with style.figure(2, height=3.8) as (figure, (left, right)):
        mean, factor = np.array((1.6, 0.0)), np.diag((0.8, 0.3))
        for degrees in (35.0, 75.0, 140.0, 240.0, 0.0):
            c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            turn = np.array(((c, -s), (s, c)))
            _ellipse(left, turn @ mean, turn @ factor, color=SKY if degrees else BLUE)
        _ellipse(left, np.zeros(2), np.eye(2), color=BLACK, linestyle="--", linewidth=1.2)
        _label(left, 0.62, 0.38, "N(mu, Λ)", BLUE)
        _label(left, 0.03, 0.93, "N(Q mu, QΛQᵀ)", "#2C7FB0")
        _label(left, 0.38, 0.53, "N(0, I)", BLACK)
        left.set(xlabel="z₁", ylabel="z₂", xlim=(-2.7, 2.7), ylim=(-2.7, 2.7), aspect="equal")
        left.set_title("one KL to N(0, I) for all", loc="left")
        lost = np.array(part["elbo_lost"])
        right.plot(part["angle"], np.zeros_like(lost), color=GREEN)
        right.plot(part["angle"], -lost, color=ORANGE)
        _label(right, 0.5, 0.94, "q(z|x) with full covariance", GREEN, ha="center")
        _label(right, 0.5, 0.62, "diagonal q(z|x)", "#B27B00", ha="center")
        right.set(xlabel="the decoder's angle (degrees)", ylabel="change of the ELBO (nats)")
        right.set_xticks((0, 15, 30, 45, 60, 75, 90))
        right.set_ylim(-1.15 * part["largest_loss"], 0.25 * part["largest_loss"])
        right.set_box_aspect(1.0)
        right.set_title("the ELBO of a turned decoder", loc="left")
        return style.png(figure)
