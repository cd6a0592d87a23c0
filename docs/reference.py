"""Renders the API reference from the docstrings: python docs/reference.py DIR."""

from __future__ import annotations

import sys
from pathlib import Path

# What a program of one's own imports; the README of this folder says what is in each.
MODULES = (
    "vaez_fast.ops",
    "vaez_fast.latents.gaussian",
    "vaez_fast.latents.noise",
    "vaez_fast.latents.with_diffusers",
    "vaez_kernels.noise",
    "vaez_kernels.reference",
    "vaez_fast.data",
    "vaez_fast.sources",
    "vaez_fast.trainer",
    "vaez_fast.streams",
    "vaez_fast.model",
    "vaez_fast.likelihoods",
    "vaez_fast.likelihoods.negative_binomial",
    "vaez_fast.objective",
    "vaez_fast.config",
    "vaez_fast.training.train",
    "vaez_fast.measures.evaluate",
    "vaez_fast.runs.folder",
    "vaez_fast.measures.densities",
    "vaez_fast.measures.mixtures",
    "vaez_fast.measures.flow_density",
    "vaez_fast.measures.law",
    "vaez_fast.measures.quadrature",
    "vaez_fast.measures.replaced_prior",
    "vaez_fast.measures.samplers",
    "vaez_fast.measures.aggregate",
    "vaez_fast.measures.normality",
    "vaez_fast.measures.intervals",
    "vaez_fast.measures.annealed",
    "vaez_fast.measures.image_metrics",
    "vaez_fast.measures.law_summary",
    "vaez_fast.drawing.latents",
    "vaez_fast.runs.walks",
    "vaez_fast.measures.features",
    "vaez_fast.measures.neighbours",
    "vaez_fast.measures.kernel",
)


def render(folder: Path) -> None:
    """Write index.html, which opens from a file, and a page for each of `MODULES`."""
    import pdoc.render

    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/reference.py DIR")
    render(Path(sys.argv[1]))
    print(f"wrote {sys.argv[1]}/index.html")
