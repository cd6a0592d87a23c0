"""A run that is stopped anywhere and resumed ends bit for bit like one that never stopped.

Steps are uncompiled here; test_kills.py stops and resumes compiled ones.
"""

from __future__ import annotations

import errno
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.digits import first
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, load
from vaez_fast.system.files import OutputError
from vaez_fast.system.stopping import Signals, Stopped
from vaez_fast.training import checkpoint as checkpoints
from vaez_fast.training.checkpoint import Keeping
from vaez_fast.training.loop import Run, TrainingError
from vaez_fast.training.train import Result, train

pytestmark = pytest.mark.usefixtures("uncompiled_steps")

# 10 batches of 20 an epoch; two and a half epochs.
CONFIG = TrainConfig(
    model="lyeoni", epochs=None, steps=25, batch_size=20, lr=3e-3, seed=3, test_samples=4
)
REGIMES = {
    "joint": CONFIG,
    "dynamic": replace(CONFIG, binarize="dynamic", precision="float32"),
    "separate": replace(CONFIG, objective="kl", decoder="separate", kl="sticking-the-landing"),
    "simultaneous": replace(CONFIG, objective="kl", decoder="simultaneous"),
    "iwae": replace(CONFIG, objective="iwae", kl="total-derivative", num_samples=3),
    "vamp": replace(CONFIG, kl="total-derivative", prior="vamp", kl_warmup=0.5),
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    full = load("mnist-5k")
    return Dataset(
        "mnist-200", first(full.train, 200), first(full.validation, 50), first(full.test, 50)
    )


class SignalAfter(Signals):
    """Reports SIGTERM once `steps` steps have begun."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @property
    def received(self) -> int:
        self._left -= 1
        return signal.SIGTERM if self._left < 0 else 0

    @received.setter
    def received(self, number: int) -> None:
        assert number == 0


def numbers(result: Result) -> tuple[Any, ...]:
    """Everything that must not depend on interruptions: all but the times."""
    curve = [{k: v for k, v in point.items() if k != "seconds"} for point in result.curve]
    return result.test, result.best_step, result.steps, curve


def assert_same(one: Result, other: Result) -> None:
    assert numbers(one) == numbers(other)
    for p, q in zip(one.vae.parameters(), other.vae.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    regime: str, dataset: Dataset, tmp_path: Path
) -> None:
    config = REGIMES[regime]
    undisturbed = train(config, dataset)
    resumed, stops = None, 0
    # These stop in the middle of an epoch, at its end, in the last step and in the second phase.
    for after in (3, 7, 10, 4, 13, 20, 1000):
        keeping = Keeping(tmp_path, resumed=resumed, signals=SignalAfter(after))
        try:
            result = train(config, dataset, keeping=keeping)
            break
        except Stopped:
            stops += 1
        resumed = checkpoints.read(tmp_path / checkpoints.NAME)
    assert stops >= 3
    assert_same(result, undisturbed)


def test_checkpoints_on_the_way_change_nothing(dataset: Dataset, tmp_path: Path) -> None:
    assert_same(
        train(CONFIG, dataset, keeping=Keeping(tmp_path, seconds=0)), train(CONFIG, dataset)
    )


def test_a_run_that_was_whole_but_not_yet_evaluated_is_evaluated(
    dataset: Dataset, tmp_path: Path
) -> None:
    whole = train(CONFIG, dataset, keeping=Keeping(tmp_path))
    resumed = checkpoints.read(tmp_path / checkpoints.NAME)
    assert_same(train(CONFIG, dataset, keeping=Keeping(tmp_path, resumed=resumed)), whole)


def stopped_at(
    step: int, config: TrainConfig, dataset: Dataset, folder: Path
) -> checkpoints.Checkpoint:
    with pytest.raises(Stopped):
        train(config, dataset, keeping=Keeping(folder, signals=SignalAfter(step)))
    return checkpoints.read(folder / checkpoints.NAME)


def test_a_checkpoint_knows_its_settings_its_machine_and_its_place_in_the_noise(
    dataset: Dataset, tmp_path: Path
) -> None:
    kept = stopped_at(7, CONFIG, dataset, tmp_path)
    assert kept.config["seed"] == CONFIG.seed
    assert kept.config["precision"] in ("float32", "bfloat16")  # what "auto" chose
    assert kept.environment["torch"] == torch.__version__
    assert kept.training is not None
    assert kept.training["done"] == 7
    assert kept.training["engines"][0][0]["noise"].tolist()[1] == 7


def test_other_images_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    kept = stopped_at(3, CONFIG, dataset, tmp_path)
    swapped = Dataset(dataset.name, dataset.train, dataset.test, dataset.validation)
    with pytest.raises(OutputError, match="images of mnist-200 are not those"):
        train(CONFIG, swapped, keeping=Keeping(tmp_path, resumed=kept))


@pytest.mark.parametrize("other", [{"model": "burda"}, {"steps": 2}, {"decoder": "randn"}])
def test_the_checkpoint_of_another_run_is_refused(
    other: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    kept = stopped_at(3, CONFIG, dataset, tmp_path)
    with pytest.raises(OutputError, match="damaged, or another run's"):
        train(replace(CONFIG, **other), dataset, keeping=Keeping(tmp_path, resumed=kept))


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(
    dataset: Dataset, tmp_path: Path
) -> None:
    broken = replace(CONFIG, lr=1e20)  # after its first step the weights are infinite
    stopped_at(1, CONFIG, dataset, tmp_path)
    before = (tmp_path / checkpoints.NAME).read_bytes()
    resumed = checkpoints.read(tmp_path / checkpoints.NAME)
    keeping = Keeping(tmp_path, seconds=0, resumed=resumed)
    with pytest.raises(TrainingError) as raised:
        train(broken, dataset, keeping=keeping)
    message = str(raised.value)
    assert "elbo/analytic/joint is not finite at step 3" in message
    assert f"the last good checkpoint is {tmp_path / checkpoints.NAME}, after step 1" in message
    assert f"go on with --resume {tmp_path}" in message
    assert (tmp_path / checkpoints.NAME).read_bytes() == before


@pytest.mark.parametrize("look", [2, 3, 4])  # look 1 compiles
def test_a_run_whose_other_rank_died_at_a_look_still_takes_that_look(
    look: int, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, take = [0], Run.validate

    def lose_a_rank(run: Run) -> tuple[float, float]:
        looks[0] += 1
        if looks[0] == look:
            raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
        return take(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "validate", lose_a_rank)
        with pytest.raises(TrainingError, match="another rank is gone after step"):
            train(CONFIG, dataset, keeping=Keeping(tmp_path))
    resumed = checkpoints.read(tmp_path / checkpoints.NAME)
    assert_same(
        train(CONFIG, dataset, keeping=Keeping(tmp_path, resumed=resumed)), train(CONFIG, dataset)
    )


def test_what_is_observed_before_the_first_step_is_not_observed_again(
    dataset: Dataset, tmp_path: Path
) -> None:
    kept = stopped_at(3, CONFIG, dataset, tmp_path)
    seen: list[int] = []
    train(
        CONFIG,
        dataset,
        observe=lambda _, step, __: seen.append(step),
        observe_at=[0, 2, 5, 25],
        keeping=Keeping(tmp_path, resumed=kept),
    )
    assert seen == [5, 25]


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before_and_says_so(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = stopped_at(3, CONFIG, dataset, tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError) as raised:
        train(CONFIG, dataset, keeping=Keeping(tmp_path, seconds=0, resumed=kept))
    assert "No space left on device; the last good checkpoint is" in str(raised.value)
    assert "after step 3" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.NAME]


def test_a_bound_of_minus_infinity_survives_the_file(tmp_path: Path) -> None:
    training = {"best_bound": -math.inf, "done": 0}
    checkpoints.write(tmp_path / "c.pt", checkpoints.Checkpoint({}, {}, 0, {}, training))
    assert checkpoints.read(tmp_path / "c.pt").training == training
