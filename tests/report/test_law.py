"""The report's first section shows every number of the law of z in the right place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from tests.study import fake_study
from vaez_fast.drawing import style
from vaez_fast.drawing.page import Table, Text
from vaez_fast.report import article, law
from vaez_fast.study.config import StudyConfig
from vaez_fast.study.verdicts import verdicts

Results = dict[str, Any]
ANALYTIC = "elbo/analytic/joint"


@pytest.fixture(scope="module")
def results() -> Results:
    return fake_study.results()


def of(results: Results, arm: str, *names: str) -> np.ndarray:
    found = []
    for run in results["runs"]:
        if run["arm"] == arm:
            place: Any = run["latents"]["law"]
            for name in names:
                place = place[name]
            found.append(float(place))
    return np.array(found)


def mean_and_half(cell: str) -> tuple[float, float]:
    mean, half = cell.split(" (")[0].split(" ± ")
    return float(mean), float(half)


def half(values: np.ndarray) -> float:
    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def rows(table: Table) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


def close(cell: str, values: np.ndarray) -> bool:
    # Two digits of the half width: both numbers are within a twentieth of it.
    mean, width = mean_and_half(cell)
    return abs(mean - values.mean()) <= 0.05 * half(values) + 1e-12 and width == pytest.approx(
        half(values), rel=0.05
    )


def test_every_arm_has_its_bounds(results: Results) -> None:
    found = rows(law.bounds(results))
    assert list(found) == [arm.arm for arm in fake_study.CONFIG.arms()]
    for arm, cells in found.items():
        informative = [
            len(run["latents"]["law"]["informative"])
            for run in results["runs"]
            if run["arm"] == arm
        ]
        assert float(cells[0]) == pytest.approx(np.mean(informative), abs=0.05)
        for cell, names in zip(
            cells[1:],
            (
                ("lower", "diagonal", "value"),
                ("lower", "full-covariance", "value"),
                ("kl_lower", "value"),
                ("kl_upper", "value"),
                ("leave_one_out", "value"),
                ("squared_norm", "shell"),
            ),
            strict=True,
        ):
            assert close(cell, of(results, arm, *names)), (arm, names)
        for cell in cells[3:6]:
            assert cell.endswith(" (0.02)")  # the standard error over images


def test_the_error_over_images_is_the_mean_over_seeds(results: Results) -> None:
    changed = copy.deepcopy(results)
    runs = [run for run in changed["runs"] if run["arm"] == ANALYTIC]
    for run, error in zip(runs, (0.1, 0.2, 0.6), strict=True):
        run["latents"]["law"]["kl_lower"]["standard_error"] = error
    assert rows(law.bounds(changed))[ANALYTIC][3].endswith(" (0.3)")


def test_each_threshold_has_its_latents_and_bounds(results: Results) -> None:
    found = rows(law.thresholds(results))
    assert list(found) == ["0.01", "0.1", "0.5"]
    for i, cells in enumerate(found.values()):
        assert float(cells[0]) == 20 - 10 * i
        places = [
            run["latents"]["law"]["thresholds"][i]
            for run in results["runs"]
            if run["arm"] == ANALYTIC
        ]
        for cell, name in zip(cells[1:], ("full-covariance", "mixture-50"), strict=True):
            assert close(cell, np.array([place["lower"][name]["value"] for place in places]))


def test_a_density_that_some_seed_lacks_has_no_mean(results: Results) -> None:
    changed = copy.deepcopy(results)
    last = [run for run in changed["runs"] if run["arm"] == ANALYTIC][-1]
    del last["latents"]["law"]["thresholds"][2]["lower"]["mixture-50"]
    found = rows(law.thresholds(changed))
    assert found["0.5"][2] == "–"
    assert found["0.1"] == rows(law.thresholds(results))["0.1"]


def test_rejections_are_counted_over_seeds_and_latents(results: Results) -> None:
    found = rows(law.tests(results))
    # Two latents and three seeds for the first; the fake study rejects its second latent, and its
    # third test has one false alarm.
    assert found == {
        "kolmogorov-smirnov": ("0.5 to 1.75", "3 of 6", "0 of 6"),
        "mardia-kurtosis": ("2.5 to 2.75", "3 of 3", "1 of 3"),
        "energy-distance": ("3.5 to 3.75", "3 of 3", "0 of 3"),
    }


def test_the_gain_is_told_with_both_errors(results: Results) -> None:
    # wobble is 0, 0.1 and 0.2: a mean of 0.1, and Student's 4.303 times 0.1 / √3.
    said = law.gain(results)
    assert "log p(x) rises by 1.50 ± 0.25 nats (standard error over images 0.03" in said
    assert "128 importance samples of 2,000 test images" in said
    assert "the ELBO of these images by 1.70 ± 0.25" in said


@pytest.mark.parametrize(
    ("verdict", "shell", "said", "where"),
    [
        ("refuted", 0.5, f"The z of {ANALYTIC} are not standard normal", "on a shell"),
        (
            "confirmed", 1.0,
            f"No density that was tried tells the z of {ANALYTIC} from N(0, I) by 0.1 nat",
            "with no clear shell",
        ),
        (
            "unclear", 1.6,
            f"These seeds do not settle whether the z of {ANALYTIC} are standard normal",
            "with heavy tails",
        ),
    ],
)  # fmt: skip
def test_the_answer_depends_on_the_verdict_and_on_the_shell(
    verdict: str, shell: float, said: str, where: str, results: Results
) -> None:
    changed = copy.deepcopy(results)
    for run in changed["runs"]:
        if run["arm"] == ANALYTIC:
            run["latents"]["law"]["kl_lower"]["value"] = 1.6 + 0.001 * run["seed"]
            run["latents"]["law"]["squared_norm"]["shell"] = shell + 0.001 * (run["seed"] - 1)
    answer = law.answer(changed, verdict)
    assert answer.startswith(f"{said}: KL(q(z) ‖ N(0, I)) is between 1.6010 ± 0.0025 and 9.001")
    assert f"latents lie {where}" in answer
    assert "The 11.0 informative latents" in answer


def test_the_report_opens_with_the_verdict_of_its_table(results: Results) -> None:
    for verdict, said in (("refuted", "are not standard"), ("unclear", "do not settle whether")):
        found = [
            replace(v, verdict=verdict) if v.name == "normal" else v
            for v in verdicts(results, fake_study.THEORY)
        ]
        texts = [b.text for b in article.blocks(results, found) if isinstance(b, Text)]
        assert said in texts[1]


def test_the_bars_are_the_parts_of_the_bound_and_of_the_gap(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []

    def png(figure: Any) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(style, "png", png)
    draw: Callable[[Results], bytes] = law.what_each_closes
    draw(results)
    above, below = figures[0].axes
    diagonal, full, best = (
        of(results, ANALYTIC, *names).mean()
        for names in (
            ("lower", "diagonal", "value"),
            ("lower", "full-covariance", "value"),
            ("kl_lower", "value"),
        )
    )
    assert [bar.get_width() for bar in above.patches] == pytest.approx(
        [diagonal, full - diagonal, best - full]
    )
    distances = [
        np.mean([r["images"][name]["frechet"] for r in results["runs"] if r["arm"] == ANALYTIC])
        for name in (
            "standard-normal",
            "diagonal",
            "full-covariance",
            "mixture",
            "held-out-posterior",
        )
    ]
    assert [bar.get_width() for bar in below.patches] == pytest.approx(
        (-np.diff(distances[:4])).tolist()
    )
    assert [bar.get_x() for bar in below.patches] == pytest.approx(
        [0.0, *np.cumsum(-np.diff(distances[:4]))[:2]]
    )
    (line,) = below.get_lines()
    assert line.get_xdata()[0] == pytest.approx(distances[0] - distances[4])


def test_the_arms_that_are_shown_are_in_every_study() -> None:
    arms = {arm.arm for arm in StudyConfig(fake_study.CONFIG.base, 2).arms()}
    assert set(law.PANELS) == set(law.SAID) <= arms
