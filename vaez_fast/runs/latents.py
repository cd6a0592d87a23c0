"""The files of `vaez-fast latents`: the law of a run's z in numbers, and what z looks like."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import ConfigError
from ..data import Dataset, Pixels
from ..drawing import images as image_rows
from ..drawing import latents as pictures
from ..measures.codes import Codes, encode
from ..measures.law import LawOfZ, measure_law
from ..measures.law_summary import Summary, summary_of
from ..measures.normality import NormalityTest, normality_tests, testable
from ..system.environment import environment
from ..system.errors import first_line
from ..system.files import OutputError, write_atomically
from .trained import Trained
from .walks import REACH, interpolations, reconstructions, traversals

KIND, SCHEMA = "vaez-fast latents", 1
DRAWINGS = {
    "latents.png": pictures.panel,
    "marginals.png": pictures.marginals,
    "quantiles.png": pictures.quantiles,
    "shell.png": pictures.squared_norms,
    "pairs.png": pictures.pairs,
}
WALKS = ("reconstructions.png", "interpolations.png", "traversals.png")
# The record is written last: where it is, all the others are.
FILES = ("latents.npz", *DRAWINGS, *WALKS, "latents.json")
STEPS = 11  # of an interpolation and a traversal


@dataclass(frozen=True, eq=False)
class Measured:
    """The law of a run's z, and what it was measured on."""

    codes: Codes
    law: LawOfZ
    tests: dict[str, NormalityTest]
    summary: Summary

    @property
    def rejected(self) -> int:
        """The number of tests that reject N(0, I)."""
        return sum(test.rejected for test in self.tests.values())

    @property
    def false_alarms(self) -> int:
        """The number of tests that reject exact normals."""
        return sum(test.false_alarm for test in self.tests.values())


def measure(run: Trained, images: Dataset) -> Measured:
    """Encode all images of a run, fit densities to its z, and test them.

    All tests are of the z of the test images. Where these are few, not all measured latents are
    tested but one for ten images, those of the largest KL.

    Raises:
        OutputError: the weights of the run are damaged.
        ConfigError: scipy or scikit-learn is not installed, or the model has one latent.
    """
    if run.vae.architecture.latent < 2:
        raise ConfigError(f"{run.folder}: latents needs a model of at least two latents")
    seed = run.config.seed
    codes = encode(run.vae, Pixels(images, run.config.binarize, seed), seed)
    if not all(bool(part.isfinite().all()) for split in _splits(codes) for part in split):
        raise OutputError(f"{run.folder}: some z are not finite: its weights are damaged")
    try:
        law = measure_law(codes, seed)
        tests = normality_tests(codes.test.z, seed, testable(codes))
    except ImportError as error:
        raise ConfigError(f"latents needs scipy and scikit-learn ({error})") from None
    except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        # too few codes, or a covariance that is singular
        raise OutputError(
            f"{run.folder}: the law of its z cannot be measured ({first_line(error)})"
        ) from None
    return Measured(codes, law, tests, summary_of(codes, images.test.labels, seed))


def _splits(codes: Codes) -> tuple[Any, ...]:
    return codes.train, codes.validation, codes.test


def record(run: Trained, found: Measured, config: dict[str, Any]) -> dict[str, Any]:
    """The content of latents.json; `config` has the settings of the command."""
    names = ("data", "binarize", "model", "seed")
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "config": config,
        "environment": environment(run.config.device),
        "run": str(run.folder),
        "arm": run.config.arm,
        **{name: getattr(run.config, name) for name in names},
        **found.law.as_dict(),
        "tests": {name: vars(test) for name, test in found.tests.items()},
    }


def write(
    folder: Path, run: Trained, images: Dataset, found: Measured, content: dict[str, Any]
) -> list[Path]:
    """Write all files, latents.json with the `record` last.

    Raises:
        OutputError: a file could not be written.
    """
    for name, made in _files(run, images, found):
        write_atomically(folder / name, made)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "latents.json", text.encode())
    return [folder / name for name in FILES]


def _files(run: Trained, images: Dataset, found: Measured) -> Iterator[tuple[str, bytes]]:
    buffer = io.BytesIO()
    contents: dict[str, Any] = {**arrays(found.codes, images)}
    np.savez(buffer, **contents)
    yield "latents.npz", buffer.getvalue()
    title = f"{run.config.model}, {run.config.data}, {run.config.arm}"
    for name, draw in DRAWINGS.items():
        yield name, draw(found.summary, title)
    for name, walk in zip(WALKS, _walks(run, images, found, title), strict=True):
        yield name, walk


def arrays(codes: Codes, images: Dataset) -> dict[str, np.ndarray]:
    """The content of latents.npz: of the training and the test images in the data set's order,
    `…_mu`, `…_logvar` and `…_z` (N, D) float32 and `…_labels` (N,) int64."""
    found = {}
    for name in ("train", "test"):
        for part, values in getattr(codes, name)._asdict().items():
            found[f"{name}_{part}"] = values.cpu().numpy()
        found[f"{name}_labels"] = getattr(images, name).labels.long().cpu().numpy()
    return found


def _walks(run: Trained, images: Dataset, found: Measured, title: str) -> Iterator[bytes]:
    x = Pixels(images, run.config.binarize, run.config.seed).x("test")
    classes = images.test.labels.unique().tolist()
    of_class = [(images.test.labels == label).nonzero().flatten()[:2] for label in classes]
    first, second = x[[int(at[0]) for at in of_class]], x[[int(at[-1]) for at in of_class]]
    both = torch.cat([reconstructions(run.vae, part) for part in (first, second)])
    yield image_rows.rows(
        both.numpy(), f"{title}\ntest images, and the means of p(x|z) at z = mu below",
        ["x", "p(x|mu)"] * 2,
    )  # fmt: skip

    between = interpolations(run.vae, first[:-1:2], second[1::2], STEPS)
    yield image_rows.rows(
        between.numpy(), f"{title}\nbetween the codes of two test images, linear in mu",
        [f"{a} → {b}" for a, b in zip(classes[:-1:2], classes[1::2], strict=True)],
        [f"{part:.1f}" for part in np.linspace(0.0, 1.0, STEPS)],
    )  # fmt: skip

    latents = torch.from_numpy(found.summary["latents"])
    paths = traversals(run.vae, found.codes.test.mu[0], latents, STEPS)
    yield image_rows.rows(
        paths.numpy(), f"{title}\none latent changed, the others at a test image's mu",
        [f"z{latent}, {kl:.1f} nats" for latent, kl in _shown(found.summary)],
        [f"{value:.1f}".replace("-", "−") for value in np.linspace(-REACH, REACH, STEPS)],
    )  # fmt: skip


def _shown(summary: Summary) -> list[tuple[int, float]]:
    return list(zip(summary["latents"].tolist(), summary["kl"].tolist(), strict=True))
