"""What the speedrun measures and prints: its clock, its referee and its verdict, on known values.

Training is a stub that takes known seconds and reaches a known likelihood.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.speedrun import ablation
from bench.speedrun import run as speedrun
from bench.speedrun.recipe import Recipe, Trained
from bench.speedrun.record import Run, record, table
from bench.speedrun.run import Referee
from vaez_fast.data import Dataset, Split, binarized, epoch_order
from vaez_fast.measures.evaluate import Evaluator, Metrics
from vaez_fast.model import VAE, Linear
from vaez_kernels import noise_key

CPU = torch.device("cpu")
TARGET = -97.10  # from the README of the repository that we race
MACHINE = {"device": "a CPU", "threads": 2, "torch": "2.11"}
RECIPE = Recipe(steps=7, batch_size=20)
# The 97.5 % quantile of Student's t with 2 degrees of freedom, from any table.
T_QUANTILE = 4.302652730


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """60 / 40 / 40 images of noise with the mean darkness of digits."""

    def split(count: int, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        grey = 255 * torch.rand((count, 784), generator=generator) ** 6
        return Split(grey.to(torch.uint8), torch.zeros(count, dtype=torch.int64))

    return Dataset("mnist", split(60, 1), split(40, 2), split(40, 3))


@pytest.fixture(scope="module")
def images(dataset: Dataset) -> Tensor:
    return binarized(dataset, "train", "static")


class FakeTime:
    """A stand-in for the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(speedrun, "time", fake)
    return fake


def metrics(log_px: float) -> Metrics:
    return Metrics(log_px - 4.0, 20.0, 80.0, log_px, 0.5, 128)


class FakeReferee:
    """Takes 7 s for a split; log p(x) of the test split comes from a list, one value a look."""

    def __init__(self, clock: FakeTime, test: list[float], validation: float = -99.0) -> None:
        self.clock, self.test, self.validation = clock, iter(test), validation
        self.judged: list[tuple[str, VAE]] = []
        self.seconds = 0.0

    def judge(self, vae: VAE, split: str) -> Metrics:
        self.judged.append((split, vae))
        self.clock.now += 7.0
        self.seconds += 7.0
        return metrics(next(self.test) if split == "test" else self.validation)

    def take_seconds(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class TestReferee:
    @pytest.mark.parametrize(("split", "step"), [("validation", 0), ("test", 1)])
    def test_each_split_is_judged_with_its_own_pixels_and_noise(
        self, dataset: Dataset, split: str, step: int
    ) -> None:
        """The validation split has step 0 of the "evaluate" noise, the test split step 1."""
        vae = VAE("lyeoni", 3)
        with torch.no_grad():  # large enough that other noise changes log p(x) visibly
            last = vae.encoder[-1]
            assert isinstance(last, Linear)
            last.weight.mul_(20.0)
        noise = noise_key(0, "evaluate", step)
        wanted = Evaluator(binarized(dataset, split, "static"), 1.0, noise)(vae, 128)
        assert Referee(dataset).judge(vae, split) == wanted
        for other in (noise_key(0, "evaluate", 1 - step), noise_key(1, "evaluate", step)):
            another = Evaluator(binarized(dataset, split, "static"), 1.0, other)(vae, 128)
            assert another.log_px != wanted.log_px

    def test_its_seconds_are_those_of_all_it_judged_since_they_were_taken(
        self, dataset: Dataset, clock: FakeTime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def evaluated(self: Evaluator, _: VAE, samples: int) -> Metrics:
            assert samples == 128
            clock.now += float(len(self.pixels))  # 40 s
            return metrics(-100.0)

        monkeypatch.setattr(Evaluator, "__call__", evaluated)
        referee = Referee(dataset)
        for split in ("validation", "test"):
            referee.judge(VAE("lyeoni"), split)
            clock.now += 1000.0
        assert referee.take_seconds() == 80.0
        assert referee.take_seconds() == 0.0


class TestTraining:
    @pytest.fixture
    def done(self, clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
        """The log of stubs that take known seconds, in order."""
        log: list[tuple[str, Any]] = []

        class Engine:
            def __init__(self, objective: Any, batches: Any, *args: Any, **options: Any) -> None:
                clock.now += 100.0
                log.append(("compile", options))
                self.batches = batches

            def take_totals(self, steps: int) -> None:
                clock.now += 0.5  # waiting for the device's outstanding work
                log.append(("wait", steps))

            def write_to(self, _: VAE) -> None:
                clock.now += 50.0

        class Phase:
            def __init__(self, _: str, engines: list[Engine]) -> None:
                (self.engine,) = engines
                self.done = 0

            def advance(self, steps: int) -> int:
                self.done += steps
                clock.now += 3.0 * steps
                log.append(("steps", steps))
                log.append(("order", self.engine.batches.order.clone()))
                return steps

        def order(*args: Any) -> Tensor:
            clock.now += 0.25
            return epoch_order(*args)

        monkeypatch.setattr(speedrun, "Engine", Engine)
        monkeypatch.setattr(speedrun, "Phase", Phase)
        monkeypatch.setattr(speedrun, "epoch_order", order)
        return log

    def test_its_time_is_the_loop_alone_with_the_permutations_and_the_wait(
        self, done: list[tuple[str, Any]], images: Tensor
    ) -> None:
        trained = speedrun.train(RECIPE, images, 4, torch.float32)
        # 60 images in batches of 20: epochs of 3, 3 and 1 steps of 3 s; each order takes 0.25 s.
        assert [value for name, value in done if name == "steps"] == [3, 3, 1]
        assert trained.train_seconds == 3.0 * 7 + 0.25 * 3 + 0.5
        assert trained.compile_seconds == 100.25
        assert done[-1] == ("wait", 7)

    def test_each_epoch_has_the_order_of_its_seed_and_its_number(
        self, done: list[tuple[str, Any]], images: Tensor
    ) -> None:
        speedrun.train(RECIPE, images, 4, torch.float32)
        orders = [value for name, value in done if name == "order"]
        for epoch, order in enumerate(orders):
            assert torch.equal(order.flatten(), epoch_order(4, epoch, 60, CPU).flatten())
        assert done[0][1]["seed"] == 4

    def test_a_run_is_judged_at_its_end_on_both_splits(
        self, clock: FakeTime, images: Tensor
    ) -> None:
        vae = VAE("lyeoni")
        referee: Any = FakeReferee(clock, [-96.5], validation=-97.25)
        given: list[Any] = []

        def train_by(*arguments: Any) -> Trained:
            given.extend(arguments)
            return Trained(vae, 30.0, 5.0)

        run = speedrun.speedrun(RECIPE, images, referee, 6, torch.float32, train_by)
        assert given == [RECIPE, images, 6, torch.float32]
        assert run == Run(6, 7, 30.0, 5.0, 14.0, -97.25, metrics(-96.5).as_dict())
        assert referee.judged == [("validation", vae), ("test", vae)]


class TestTextbook:
    @pytest.fixture
    def steps(self, clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Steps of 0.01 s that each set a bias to the step's number, from 1 on; those numbers."""
        log: list[float] = []

        class Training:
            def __init__(self, vae: Any, images: Tensor, batch_size: int) -> None:
                assert batch_size == 128  # the article's
                self.bias = vae.encoder[0].bias

            def step(self) -> None:
                clock.now += 0.01
                with torch.no_grad():
                    self.bias.fill_(len(log) + 1.0)
                log.append(float(self.bias.detach()[0]))

        monkeypatch.setattr(speedrun, "TextbookTraining", Training)
        return log

    @pytest.mark.parametrize(
        ("curve", "looks"),
        [
            ([-99.0, -97.12, -97.101, -97.10, -96.0], 4),
            ([-97.14, -97.06, -96.0], 2),
            ([-97.0999], 1),
        ],
    )
    @pytest.mark.usefixtures("steps")
    def test_it_stops_at_the_first_look_at_the_target(
        self, curve: list[float], looks: int, clock: FakeTime, images: Tensor
    ) -> None:
        referee: Any = FakeReferee(clock, curve)
        run, reached = speedrun.textbook(images, referee, 120_000, lambda _: None)
        assert reached
        assert run.steps == 2_500 * looks
        # Its training time does not include the looks.
        assert run.train_seconds == pytest.approx(25.0 * looks)
        assert run.eval_seconds == 7.0 * (looks + 1)
        assert run.test == metrics(curve[looks - 1]).as_dict()
        assert run.validation_log_px == -99.0
        assert run.compile_seconds == 0.0
        assert [split for split, _ in referee.judged] == ["test"] * looks + ["validation"]

    def test_what_is_judged_are_the_weights_of_the_last_step(
        self, steps: list[float], clock: FakeTime, images: Tensor
    ) -> None:
        referee: Any = FakeReferee(clock, [-97.0])
        speedrun.textbook(images, referee, 120_000, lambda _: None)
        layer = referee.judged[0][1].encoder[0]
        assert isinstance(layer, Linear)
        assert float(layer.bias.detach()[0]) == steps[-1] == 2_500

    @pytest.mark.usefixtures("steps")
    def test_at_its_limit_it_gives_up(self, clock: FakeTime, images: Tensor) -> None:
        referee: Any = FakeReferee(clock, [-97.11] * 9)
        run, reached = speedrun.textbook(images, referee, 7_500, lambda _: None)
        assert not reached
        assert run.steps == 7_500


RUNS = [
    Run(0, 10, 4.0, 1.0, 2.0, -97.5, metrics(-96.9).as_dict()),
    Run(1, 10, 5.0, 1.5, 2.5, -97.7, metrics(-97.0).as_dict()),
    Run(2, 10, 9.0, 1.2, 2.2, -97.2, metrics(-96.5).as_dict()),
]
TEXTBOOK = Run(0, 50_000, 360.0, 0.0, 30.0, -98.0, metrics(-97.05).as_dict())


class TestRecord:
    def test_jax_stands_beside_ours_with_the_median_ratio_of_the_pairs(self) -> None:
        ours = [replace(TEXTBOOK, seed=seed, train_seconds=float(2 + seed)) for seed in range(3)]
        theirs = [replace(run, train_seconds=3.0 * run.train_seconds) for run in ours]
        theirs[2] = replace(theirs[2], train_seconds=5.0 * ours[2].train_seconds)
        content = record(RECIPE, ours, None, MACHINE, theirs)
        assert [run["train_seconds"] for run in content["jax"]] == [6.0, 9.0, 20.0]
        assert content["jax_over_ours"] == 3.0
        lines = table(content).splitlines()
        assert sum(line.startswith("| JAX, seed ") for line in lines) == 3
        assert "JAX takes 3.00 times as long (median of the pairs)." in lines

    def test_it_says_what_all_runs_say_together(self) -> None:
        content = record(RECIPE, RUNS, (TEXTBOOK, True), MACHINE)
        log_px, seconds = [-96.9, -97.0, -96.5], [4.0, 5.0, 9.0]
        assert content["target"] == TARGET
        assert content["data"] == "static MNIST, test split, 128 importance samples, nats an image"
        assert content["mean_log_px"] == pytest.approx(statistics.mean(log_px))
        assert content["mean_train_seconds"] == pytest.approx(6.0)
        for name, values in (("log_px", log_px), ("train_seconds", seconds)):
            half = T_QUANTILE * statistics.stdev(values) / math.sqrt(3)
            assert content[name]["mean"] == pytest.approx(statistics.mean(values))
            assert content[name]["half"] == pytest.approx(half)
            assert content[name]["count"] == 3
        # P(T > t) of Student's t with 2 degrees of freedom is (1 − t/√(2 + t²))/2.
        t = (statistics.mean(log_px) - TARGET) / (statistics.stdev(log_px) / math.sqrt(3))
        assert content["p_below_target"] == pytest.approx(0.5 * (1 - t / math.sqrt(2 + t * t)))
        assert content["textbook_over_ours"] == pytest.approx(360.0 / 6.0)
        assert content["textbook"]["reached"] is True
        assert [run["seed"] for run in content["runs"]] == [0, 1, 2]
        assert content["runs"][1]["test"]["log_px"] == -97.0
        assert content["recipe"]["steps"] == 7

    def test_one_run_has_no_interval(self) -> None:
        content = record(RECIPE, RUNS[:1], None, MACHINE)
        assert not {"log_px", "train_seconds", "p_below_target", "textbook"} & content.keys()

    def test_every_number_of_the_table_is_in_its_column(self) -> None:
        lines = table(record(RECIPE, RUNS, (TEXTBOOK, True), MACHINE)).splitlines()
        assert lines[0] == (
            "| recipe | steps | training | compiling | evaluating | validation | test log p(x) |"
        )
        assert lines[3] == "| ours, seed 1 | 10 | 5.00 s | 1.5 s | 2.5 s | -97.70 | -97.00 |"
        assert lines[5] == "| textbook | 50,000 | 360.00 s | 0.0 s | 30.0 s | -98.00 | -97.05 |"
        # Half-widths: 4.30 standard errors of 0.153 nats and of 1.528 s.
        assert lines[8] == (
            "Test log p(x) -96.80 ± 0.66 nats over 3 seeds (95 % t-interval), against a target of "
            "-97.10: one-sided p = 0.094. Training 6.0 ± 6.6 s."
        )
        assert lines[9] == "The textbook takes 60 times as long."


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> list[tuple[Recipe, int]]:
    """The recipe and the seed of each training of a command, in order; models keep their seed."""
    log: list[tuple[Recipe, int]] = []

    def train(recipe: Recipe, _: Tensor, seed: int, __: torch.dtype) -> Trained:
        log.append((recipe, seed))
        vae: Any = SimpleNamespace(seed=seed, recipe=recipe)
        return Trained(vae, 1.0 + seed, 0.5)

    class Judge:
        def __init__(self, _: Dataset) -> None:
            pass

        def judge(self, vae: Any, split: str) -> Metrics:
            return metrics({"validation": -97.0, "test": -90.0}[split] - vae.seed)

        def take_seconds(self) -> float:
            return 3.0

    for module in (speedrun, ablation):
        monkeypatch.setattr(module, "train", train)
        monkeypatch.setattr(module, "Referee", Judge)
        monkeypatch.setattr(module, "load", lambda *_: dataset)
    return log


class TestCommands:
    def test_the_speedrun_trains_from_each_seed_and_writes_all_runs(
        self, trainings: list[tuple[Recipe, int]], tmp_path: Path
    ) -> None:
        file = tmp_path / "record.json"
        options = ["--seeds", "3", "--steps", "9", "--textbook-steps", "0", "--device", "cpu"]
        assert speedrun.main([*options, "--out", str(file)]) == 0
        assert trainings == [(replace(speedrun.RECIPE, steps=9), seed) for seed in range(3)]
        content = json.loads(file.read_text())
        assert [run["train_seconds"] for run in content["runs"]] == [1.0, 2.0, 3.0]
        assert [run["test"]["log_px"] for run in content["runs"]] == [-90.0, -91.0, -92.0]
        assert [run["validation_log_px"] for run in content["runs"]] == [-97.0, -98.0, -99.0]
        assert "textbook" not in content

    def test_jax_is_refused_where_it_has_no_rows(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(speedrun, "why_not", lambda _: "jax is not installed")
        with pytest.raises(SystemExit, match=r"^2$"):
            speedrun.main(["--jax", "--device", "cpu"])
        assert capsys.readouterr().err.endswith("error: --jax: jax is not installed\n")

    def test_the_textbook_has_the_limit_that_was_said(
        self, trainings: list[tuple[Recipe, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limits: list[int] = []

        def textbook(_: Tensor, __: object, limit: int, say: object) -> tuple[Run, bool]:
            limits.append(limit)
            return TEXTBOOK, False

        monkeypatch.setattr(speedrun, "textbook", textbook)
        assert speedrun.main(["--seeds", "1", "--textbook-steps", "5000"]) == 0
        assert speedrun.main(["--seeds", "1"]) == 0
        assert limits == [5_000, 120_000]
        assert len(trainings) == 2

    def test_the_ablation_reads_the_validation_split_of_seeds_that_no_record_runs(
        self, trainings: list[tuple[Recipe, int]], tmp_path: Path
    ) -> None:
        file = tmp_path / "ablation.json"
        assert ablation.main(["--seeds", "2", "--out", str(file)]) == 0
        wanted = [
            (recipe, seed)
            for recipe in ablation.variants(speedrun.RECIPE).values()
            for seed in (100, 101)
        ]
        assert trainings == wanted
        found = json.loads(file.read_text())["validation_log_px"]
        assert list(found) == ["the recipe", *ablation.WITHOUT]
        assert all(values == [-197.0, -198.0] for values in found.values())


def test_an_ingredient_that_helps_is_worth_a_positive_number() -> None:
    """Paired differences of log p(x), the recipe minus the other: 1, 2, 3 give 2 ± 4.30·1/√3."""
    log_px = {"the recipe": [-97.0, -95.0, -96.0], "its warm-up": [-98.0, -97.0, -99.0]}
    *_, whole, less = ablation.table(log_px).splitlines()
    assert whole == "| the recipe | -96.0 ± 2.5 |  |"
    assert less == "| its warm-up | -98.0 ± 2.5 | +2.0 ± 2.5 |"


def test_each_variant_takes_away_what_its_name_says() -> None:
    lacking = {
        name: {
            field: value
            for field, value in vars(recipe).items()
            if value != getattr(speedrun.RECIPE, field)
        }
        for name, recipe in ablation.variants(speedrun.RECIPE).items()
    }
    assert lacking.pop("the recipe") == {}
    assert [sorted(changed) for changed in lacking.values()] == [
        *(["he"], ["centred"], ["kl_warmup"], ["kl"], ["logits_scale", "posterior_scale"]),
        *(["posterior_deviation"], ["optimizer"], ["lr"], ["warmup"]),
    ]
