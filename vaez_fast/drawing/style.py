"""The style of every figure of the project: sizes, fonts, and one colour for each arm.

Colours are those of Okabe & Ito 2008, which colour-blind readers can tell apart. Only functions
that draw import matplotlib.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, GREY = "#000000", "#767676"
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILLION, PURPLE, OLIVE, WINE = "#D55E00", "#CC79A7", "#8C7A00", "#882255"
TEAL = "#1A6B6B"

# By objective and KL; the article's own colours if it names one.
ARMS = {
    ("elbo", "total-derivative"): BLUE,
    ("elbo", "analytic"): SKY,
    ("elbo", "sticking-the-landing"): PURPLE,
    ("kl", "total-derivative"): GREEN,
    ("kl", "analytic"): VERMILLION,
    ("kl", "sticking-the-landing"): ORANGE,
    ("kl", "as-published"): GREY,
    ("iwae", "total-derivative"): OLIVE,
    ("iwae", "doubly-reparameterised"): WINE,
}
# By class, 0 to 9: Paul Tol's "muted" scheme (2021), with black in place of its pale grey.
CLASSES = (
    "#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE",
    "#882255", "#44AA99", "#999933", "#AA4499", "#000000",
)  # fmt: skip
# By the first setting of an arm's name that is neither β nor K.
RICHER = {
    "posterior=full-covariance": PURPLE,
    "posterior=iaf": WINE,
    "prior=mixture": OLIVE,
    "prior=vamp": ORANGE,
    "prior=flow": GREEN,
    "free-bits": VERMILLION,
    "kl-warmup": GREY,
    "optimizer=rmsprop": TEAL,
}
LINES = {"joint": "-", "separate": "-", "randn": "-", "simultaneous": "--"}

WIDTH, HEIGHT, DPI = 7.0, 4.2, 160  # inches; 1,120 pixels, shown at 832
RC: Any = {
    "font.size": 11.0,
    "axes.titlesize": 11.0,
    "axes.labelsize": 11.0,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
}


def colour(arm: str) -> str:
    """The colour of an arm, as #RRGGBB: objective/kl/decoder, or "randn".

    An arm with another β or K, .../beta=4/k=5, has a shade of the colour: darker above 1, lighter
    below. The number of latents changes nothing. An arm with another posterior, prior, training or
    optimizer, .../prior=vamp, has the colour of the first of these instead.

    Raises:
        ValueError: not the name of an arm.
    """
    objective, kl, decoder, settings = _parts(arm)
    if decoder == "randn":
        return BLACK
    if (objective, kl) not in ARMS:
        raise ValueError(f"no arm of the study is named {arm!r}")
    settings.pop("latent", None)
    beta, k = (max(float(settings.pop(name, 1.0)), 1e-9) for name in ("beta", "k"))
    base = ARMS[objective, kl]
    for name, value in list(settings.items())[:1]:
        base = RICHER[_in_richer(name, value)]
    return _shade(base, math.log2(beta) / 6.0 + math.log2(k) / 12.0)


def linestyle(arm: str) -> str:
    """The line of an arm: dashed if encoder and decoder are trained simultaneously, else solid.

    Raises:
        ValueError: not the name of an arm.
    """
    return LINES[_parts(arm)[2]]


def _parts(arm: str) -> tuple[str, str, str, dict[str, str]]:
    # → objective, kl, decoder, and the settings that follow them
    names = arm.split("/")
    if names[0] == "randn":
        names = ["", "", *names]
    settings = dict(setting.partition("=")[::2] for setting in names[3:])
    known = all(
        name in ("latent", "beta", "k") or _in_richer(name, v) for name, v in settings.items()
    )
    if len(names) < 3 or names[2] not in LINES or not known:
        raise ValueError(f"no arm of the study is named {arm!r}")
    return names[0], names[1], names[2], settings


def _in_richer(name: str, value: str) -> str:
    """The key of a setting in `RICHER`, or ""; a number's value does not matter."""
    return next((key for key in (name, f"{name}={value}") if key in RICHER), "")


def _shade(base: str, amount: float) -> str:
    """Towards black for a positive amount, towards white for a negative one; at most 0.7."""
    target, part = (0, min(amount, 0.7)) if amount > 0 else (255, min(-amount, 0.7))
    channels = (int(base[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + part * (target - c)):02X}" for c in channels)


@contextmanager
def figure(
    panels: int = 1,
    *,
    columns: int | None = None,
    width: float = WIDTH,
    height: float = HEIGHT,
    **subplots: Any,
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure and its panels, side by side or in rows of `columns`; the last may be shorter.

    Draw and take its `png` inside the `with`. It uses no display and no global state, so it works
    on any machine and in any thread.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the reports
        matplotlib.rcParams.update(RC)
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        columns = columns or panels
        axes = list(drawn.subplots(-(-panels // columns), columns, squeeze=False, **subplots).flat)
        for left_over in axes[panels:]:
            left_over.remove()
        yield drawn, axes[:panels]


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file, with the same bytes each time."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
