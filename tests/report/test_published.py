"""The latents of published VAEs: the file, its checks, and the bound against torch and scipy."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from vaez_fast.report.published import FILE, Published, gaussian_kl, published, published_table

RAW = tomllib.loads(FILE.read_text(encoding="utf-8"))


def kl(mean: float, sd: float) -> float:
    q, p = (
        Normal(torch.tensor(m, dtype=torch.float64), torch.tensor(s, dtype=torch.float64))
        for m, s in ((mean, sd), (0.0, 1.0))
    )
    return float(kl_divergence(q, p))


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.3, 0.65), (-2.0, 5.5), (1.5, 0.01)])
def test_the_formula_is_the_kl_of_two_gaussians(mean: float, sd: float) -> None:
    assert gaussian_kl(mean, sd) == pytest.approx(kl(mean, sd), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    "law", [stats.laplace(), stats.uniform(-1.0, 3.0), stats.gamma(2.0), stats.t(5, 0.4, 0.3)]
)
def test_no_law_of_the_same_moments_is_closer(law: stats.rv_continuous) -> None:
    # −H(q) − E_q log N(z; 0, 1), whose expectation needs the two moments alone
    mean, variance = law.stats()
    cross = 0.5 * (math.log(2.0 * math.pi) + variance + mean**2)
    assert cross - law.entropy() > gaussian_kl(float(mean), math.sqrt(variance)) + 0.01


def test_moments_of_pooled_elements_bound_the_mean_of_their_kls() -> None:
    means, sds = np.array((-1.0, 0.0, 2.0, 0.5)), np.array((0.3, 1.0, 0.7, 2.0))
    pooled = math.sqrt((sds**2 + means**2).mean() - means.mean() ** 2)
    each = [gaussian_kl(m, s) for m, s in zip(means, sds, strict=True)]
    assert gaussian_kl(means.mean(), pooled) < np.mean(each)


def test_every_entry_has_its_sources_and_a_shape() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", RAW["commit"])
    assert RAW["repository"] == "https://github.com/huggingface/diffusers"
    entries = published()
    assert len(entries) == len({vae.name for vae in entries}) >= 12
    for vae in entries:
        for source in (vae.source, *vae.size_source.split(" and ")):
            assert re.fullmatch(r"(src|scripts|docs)/[\w/.-]+\.(py|md)", source)
        numbers = [int(n) for n in re.findall(r"\d+", vae.size)]
        height, width = numbers[-2:]
        # Every one of these VAEs divides both sides by 8, 16 or 32.
        assert height / vae.latent[-2] == width / vae.latent[-1]
        assert height / vae.latent[-2] in (8, 16, 32)
        assert len(vae.latent) == 4 or len(numbers) == 2


def test_the_numbers_of_every_row_follow_from_the_file() -> None:
    rows = published_table().rows
    assert len(rows) == len(RAW["model"])
    for row, raw in zip(rows, RAW["model"], strict=True):
        if "scaling_factor" in raw:
            moments = [(raw.get("shift_factor", 0.0), 1.0 / raw["scaling_factor"])]
        else:
            moments = list(zip(raw["latents_mean"], raw["latents_std"], strict=True))
        bound = np.mean([kl(m, s) for m, s in moments])
        assert row[0] == raw["name"]
        assert row[-1] == raw["source"]
        # Three digits, rounded down: what is said to be at least so much is.
        for cell, exact in ((row[4], bound), (row[5], bound * math.prod(raw["latent"]))):
            shown_bound = float(cell.removeprefix("≥ ").replace(",", ""))
            assert 0.99 * exact < shown_bound <= exact * (1 + 1e-12)
        for cell, values in zip(row[2:4], zip(*moments, strict=True), strict=True):
            shown = [float(x.replace("−", "-")) for x in cell.split(" to ")]
            assert shown == pytest.approx([min(values), max(values)][-len(shown) :], rel=5e-3)


def test_known_rows() -> None:
    by_name = {vae.name: vae for vae in published()}
    one = by_name["Stable Diffusion 1.x"]
    # s = 5.49: ½(s² − 1) − ln s
    assert one.kl_per_element == pytest.approx(0.5 * (30.140 - 1.0) - 1.70293, rel=1e-4)
    assert one.kl == pytest.approx(16_384 * one.kl_per_element)
    assert by_name["Stable Diffusion 3"].means == (0.0609,)
    assert len(by_name["Wan 2.2 (TI2V-5B)"].sds) == 48
    assert min(vae.kl_per_element for vae in by_name.values()) > 0.01


GOOD = """
[[model]]
name = "one"
scaling_factor = 0.5
latent = [2, 8, 8]
size = "64 × 64 pixels"
source = "a.py"
size_source = "b.py"
"""


def read(folder: Path, text: str) -> list[Published]:
    (folder / "file.toml").write_text(text, encoding="utf-8")
    return published(folder / "file.toml")


def test_a_scaling_factor_gives_its_inverse(tmp_path: Path) -> None:
    (vae,) = read(tmp_path, GOOD)
    assert (vae.means, vae.sds, vae.latent) == ((0.0,), (2.0,), (2, 8, 8))
    channels = "latents_mean = [0.5, 1.0]\nlatents_std = [1.0, 2.0]"
    (vae,) = read(tmp_path, GOOD.replace("scaling_factor = 0.5", channels))
    assert (vae.means, vae.sds) == ((0.5, 1.0), (1.0, 2.0))
    assert vae.kl_per_element == pytest.approx(0.5 * (kl(0.5, 1.0) + kl(1.0, 2.0)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "a.py"\n', "", "one: source is needed"),
        ("[2, 8, 8]", "[2, 8, 0]", "one: latent must be positive integers, got .2, 8, 0."),
        ("scaling_factor = 0.5\n", "", "either scaling_factor or latents_std is needed"),
        ("scaling_factor = 0.5", "scaling_factor = -0.5", "scaling_factor must be above 0"),
        ("scaling_factor = 0.5", "latents_std = [1.0, 2.0]", "need 2 values, got 0 and 2"),
        (
            "scaling_factor = 0.5",
            "latents_mean = [0.0, 0.0]\nlatents_std = [1.0, 0.0]",
            "standard deviations above 0",
        ),
        ("scaling_factor = 0.5", "scaling_factor = 0.5\nshift_factor = nan", "must be finite"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_the_file_lies_inside_the_package_that_is_shipped() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert any(FILE.is_relative_to(root / package) for package in packages)
    # hatchling leaves out what git ignores
    ignored = (root / ".gitignore").read_text().split()
    assert not any(FILE.match(pattern.strip("/")) for pattern in ignored)
