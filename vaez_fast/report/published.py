"""Today's latents: how far the z of published VAEs are from N(0, I), from their configurations.

Of all laws with mean m and variance s², the Gaussian has the largest entropy, and so the least KL
to N(0, 1). Moments alone therefore give a lower bound, in nats per element of z:

    KL(q ‖ N(0, 1)) ≥ ½(m² + s² − 1 − ln s²).

The bound adds up over the elements of a latent. N(0, I) has independent elements, so dependence
between those of z only adds to KL(q(z) ‖ N(0, I)). Moments of a whole channel bound the mean of its
elements' KLs, because the KL is convex in q.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..drawing.page import Table

FILE = Path(__file__).with_name("published_latents.toml")
NOTE = (
    "The z of today's VAEs, from the moments that their configurations publish. The KL is that of "
    "a Gaussian with these moments, ½(m² + s² − 1 − ln s²) for each element: a lower bound, since "
    "no law of the same mean and variance is closer to N(0, 1). Ranges are over channels. Where "
    "only a scaling factor is published, s is taken as 1/factor, because z times the factor should "
    "have variance 1, and m as the shift factor, or 0. Authors may choose a factor in another way: "
    "CogVideoX publishes 1.15 with one model and 0.7 with another."
)


@dataclass(frozen=True)
class Published:
    """The moments of one VAE's z."""

    name: str
    means: tuple[float, ...]  # one a channel, or one for all
    sds: tuple[float, ...]
    latent: tuple[int, ...]  # shape: channels, then frames if it is a video, height, width
    size: str  # of the image or video
    source: str  # of the moments: a file of the repository
    size_source: str

    @property
    def kl_per_element(self) -> float:
        """Lower bound in nats, mean over the channels."""
        kls = [gaussian_kl(m, s) for m, s in zip(self.means, self.sds, strict=True)]
        return sum(kls) / len(kls)

    @property
    def kl(self) -> float:
        """Lower bound in nats of a whole latent's KL(q(z) ‖ N(0, I))."""
        return self.kl_per_element * math.prod(self.latent)


def gaussian_kl(mean: float, sd: float) -> float:
    """KL(N(mean, sd²) ‖ N(0, 1)) in nats (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean * mean + sd * sd - 1.0) - math.log(sd)


def published(file: Path = FILE) -> list[Published]:
    """The entries of a file like published_latents.toml, in its order.

    Raises:
        ValueError: an entry lacks a field, or has an impossible value; the message names the model.
    """
    return [_entry(row) for row in tomllib.loads(file.read_text(encoding="utf-8"))["model"]]


def _entry(row: Mapping[str, Any]) -> Published:
    name = row.get("name", "a model without a name")
    for key in ("name", "latent", "size", "source", "size_source"):
        if not row.get(key):
            raise ValueError(f"{name}: {key} is needed")
    latent = tuple(row["latent"])
    if not all(isinstance(n, int) and n > 0 for n in latent):
        raise ValueError(f"{name}: latent must be positive integers, got {list(latent)}")
    if ("scaling_factor" in row) == ("latents_std" in row):
        raise ValueError(f"{name}: either scaling_factor or latents_std is needed")
    if "scaling_factor" in row:
        if not row["scaling_factor"] > 0:
            raise ValueError(f"{name}: scaling_factor must be above 0")
        means, sds = (row.get("shift_factor", 0.0),), (1.0 / row["scaling_factor"],)
    else:
        means, sds = tuple(row.get("latents_mean", ())), tuple(row["latents_std"])
        if not len(means) == len(sds) == latent[0]:
            raise ValueError(
                f"{name}: latents_mean and latents_std need {latent[0]} values, "
                f"got {len(means)} and {len(sds)}"
            )
    if not all(map(math.isfinite, (*means, *sds))) or min(sds) <= 0:
        raise ValueError(f"{name}: moments must be finite, and standard deviations above 0")
    return Published(name, means, sds, latent, row["size"], row["source"], row["size_source"])


def published_table() -> Table:
    """A row for each VAE of published_latents.toml."""
    head = (
        *("model", "latent", "mean", "standard deviation", "KL per element, nats"),
        *("KL per latent, nats", "source, in huggingface/diffusers"),
    )
    rows = [
        (
            vae.name,
            f"{' × '.join(map(str, vae.latent))}, from {vae.size}",
            _range(vae.means),
            _range(vae.sds),
            f"≥ {_down(vae.kl_per_element):,g}",
            f"≥ {_down(vae.kl):,g}",
            vae.source,
        )
        for vae in published()
    ]
    return Table(head, rows)


def _down(bound: float) -> float:
    # To three significant digits, and not above the bound.
    place = math.floor(math.log10(bound)) - 2
    return (
        math.floor(bound / 10.0**place) * 10.0**place
        if place > 0
        else (math.floor(bound * 10.0**-place) / 10.0**-place)
    )


def _range(values: tuple[float, ...]) -> str:
    shown = [f"{value:.3g}".replace("-", "−") for value in (min(values), max(values))]
    return shown[0] if len(values) == 1 else " to ".join(shown)
