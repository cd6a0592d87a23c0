"""The worth of each ingredient of the speedrun's recipe.

`python -m bench ablation --seeds 3 --data-root DIR --out FILE` trains by the recipe, and by the
recipe without one ingredient at a time. It evaluates on the validation split; the test split is not
used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.command import Parser
from bench.speedrun.recipe import Recipe
from bench.speedrun.run import RECIPE, Referee, train
from vaez_fast.config import choose_device, choose_precision
from vaez_fast.data import DataError, binarized, load
from vaez_fast.measures.intervals import Interval, interval, paired
from vaez_fast.system.environment import environment, expect_no_gpu
from vaez_fast.system.files import OutputError, prepare_file, write_atomically
from vaez_fast.training.optimizer import Adam

# softplus(0), the initial sigma of the ordinary model
ORDINARY_SIGMA = 0.6931

WITHOUT: dict[str, dict[str, Any]] = {
    "He's initial weights: PyTorch's": {"he": False},
    "centred images": {"centred": False},
    "the KL's warm-up": {"kl_warmup": 0.0},
    "sticking the landing: the analytic KL": {"kl": "analytic"},
    "small last layers: He's, too": {"posterior_scale": 1.0, "logits_scale": 1.0},
    "sigma 0.3 at the start: 0.69": {"posterior_deviation": ORDINARY_SIGMA},
    "Adam's betas 0.85, 0.99: 0.9, 0.999": {"optimizer": Adam()},
    "learning rate 6e-3: 2e-3": {"lr": 2e-3},
    "the learning rate's warm-up": {"warmup": 0.0},
}


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe, and the recipe without each ingredient."""
    return {"the recipe": recipe} | {
        name: replace(recipe, **change) for name, change in WITHOUT.items()
    }


def table(log_px: dict[str, list[float]]) -> str:
    """Markdown: validation log p(x) of each variant, and its loss, paired by seed."""
    lines = ["| without | validation log p(x) | worth |", "| --- | ---: | ---: |"]
    whole = log_px["the recipe"]
    for name, values in log_px.items():
        worth = "" if values is whole else _text(paired(whole, values), signed=True)
        lines.append(f"| {name} | {_text(interval(values))} | {worth} |")
    return "\n".join(lines)


def _text(value: Interval, signed: bool = False) -> str:
    sign = "+" if signed and value.mean > 0 else ""
    return sign + value.text()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the data or the output failed, 2 a wrong setting."""
    parser = Parser("ablation", __doc__)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs (default 3)")
    parser.add_data_root("torchvision's MNIST")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")
    options = parser.parse_args(argv)
    expect_no_gpu()
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {options.seeds}")
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    try:
        if options.out is not None:
            prepare_file(options.out)
        dataset = load("mnist", options.data_root).to(device)
        images = binarized(dataset, "train", "static")
        referee = Referee(dataset)
        log_px: dict[str, list[float]] = {}
        for name, recipe in variants(RECIPE).items():
            # Seeds that no record uses.
            models = (
                train(recipe, images, 100 + seed, precision).vae for seed in range(options.seeds)
            )
            log_px[name] = [referee.judge(vae, "validation").log_px for vae in models]
            print(f"{name}: {log_px[name]}", file=sys.stderr, flush=True)
        print(table(log_px))
        if options.out is not None:
            content = {"validation_log_px": log_px, "environment": environment(device)}
            write_atomically(options.out, (json.dumps(content, indent=1) + "\n").encode())
    except (DataError, OutputError) as error:
        return parser.failed(error)
    return 0
