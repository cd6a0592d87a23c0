"""`vaez-fast train --model PACKAGE.MODULE:CLASS`: a user's model, on the entries of an .npz."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.models import counts
from tests.training.uncompiled import uncompiled
from vaez_fast.cli.main import main
from vaez_fast.sources import save_npz

# A class of the user's own, in a file in the current folder.
MODELS = (
    "from tests.trainer.models import Cells\n\ndef broken():\n    raise OSError('no weights')\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models_of_a_test.py").write_text(MODELS)
    save_npz(tmp_path / "cells.npz", counts(200))
    with uncompiled():
        yield tmp_path


def train(*options: str, model: str = "own_models_of_a_test:Cells") -> int:
    return main(
        [
            *("train", "--model", model, "--data", "cells.npz", "--epochs", "3"),
            *("--batch-size", "20", "--device", "cpu", "--precision", "float32"),
            *("--lr", "1e-2", "--test-samples", "8", *options),
        ]
    )


def test_a_model_of_ones_own_is_trained_and_evaluated_on_rows_that_it_has_not_seen(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--out", "run") == 0
    said = capsys.readouterr().out
    found = json.loads((folder / "run/metrics.json").read_text())["held_out"]
    assert (found["rows"], found["samples"]) == (20, 8)  # a tenth of 200
    assert f"{found['log_px']:.3f}" in said
    assert "weights.pt" in said
    curve = (folder / "run/curve.csv").read_text().splitlines()
    assert curve[0] == "step,elbo,rate,distortion"
    assert len(curve) == 4
    assert curve[-1].startswith("27,")  # nine batches of the 180 rows, three times
    from tests.trainer.models import Cells

    weights = torch.load(folder / "run/weights.pt", weights_only=True)
    Cells().load_state_dict(weights)
    # The same command again goes on from the end: there is nothing left to train.
    before = (folder / "run/metrics.json").read_text()
    assert train("--out", "run") == 0
    assert (folder / "run/metrics.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "model", "message"),
    [
        ((), "absent_package:Cells", "model: cannot import 'absent_package'"),
        ((), "own_models_of_a_test:Absent", "model: 'own_models_of_a_test' has no 'Absent'"),
        ((), "own_models_of_a_test:broken", "needs no arguments; calling it failed with OSError"),
        (("--data", "mnist"), "own_models_of_a_test:Cells", "data must be an .npz"),
        (("--data", "absent.npz"), "own_models_of_a_test:Cells", "absent.npz"),
        (("--posterior", "iaf"), "own_models_of_a_test:Cells", "leave out posterior"),
    ],
)
def test_a_wrong_option_gets_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    model: str,
    message: str,
) -> None:
    # As for our models: 2 for a wrong option, 1 for data that cannot be read.
    assert train("--out", "run", *options, model=model) == (1 if "absent.npz" in options else 2)
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (folder / "run/metrics.json").exists()
