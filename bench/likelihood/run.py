"""log p(x) of trained models from 5,000 importance samples: `python -m bench likelihood RUN`.

RUN is a folder that `vaez-fast train` wrote. For each model this measures log p(x) of the whole
test split against the number of samples k, the time, and the shift by bfloat16 products (on a GPU
also by TF32), on 1,000 images with 1,000 samples each. For the first model it also measures the
density of its aggregate posterior: log q(z) of one draw for each test image under the posteriors of
all training images. DIR gets results.json, README.md and k-curve.png.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.command import Parser
from bench.timing.clock import interleave, peak_memory
from vaez_fast.config import ConfigError, choose_device
from vaez_fast.data import DataError, Dataset, Pixels, load
from vaez_fast.drawing import style
from vaez_fast.drawing.page import Block, Figure, Heading, Table, Text, markdown
from vaez_fast.measures.evaluate import IMAGES_AT_ONCE, Evaluator
from vaez_fast.model import VAE
from vaez_fast.runs.folder import load_run
from vaez_fast.streams import AGGREGATE_DENSITY, EVALUATION
from vaez_fast.system.environment import environment, expect_no_gpu
from vaez_fast.system.files import OutputError, prepare_files, write_atomically, write_json
from vaez_kernels import mixture_log_prob, reference, rsample
from vaez_kernels.backend import has_fast_bfloat16
from vaez_kernels.mixture.case import chunked_log_prob as textbook_mixture

SCHEMA = 1
SAMPLES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
# Images and samples for the comparison of precisions; float32 takes twice as long on a CPU.
BIAS_IMAGES, BIAS_SAMPLES = 1_000, 1_000
# Draws that are evaluated by textbook code, and in float64.
TEXTBOOK_DRAWS, CHECKED_DRAWS = 50, 50

Record = dict[str, Any]


def mean_of(values: Tensor) -> Record:
    """The mean of (N,), and its standard error."""
    error = float(values.std()) / math.sqrt(len(values))
    return {"mean": float(values.mean()), "standard_error": error}


def threads(machine: Record) -> str:
    """ "one thread", "2 threads"."""
    count = machine["threads"]
    return "one thread" if count == 1 else f"{count} threads"


def measure(vae: VAE, run: Record, dataset: Dataset) -> Record:
    """log p(x) against k on all test images, and the shift of low precision from float32."""
    config = run["config"]
    images = Pixels(dataset, config["binarize"], config["seed"])
    pixels, scale = images.test, images.scale
    noise = EVALUATION["test"].key(config["seed"], device=pixels.device)

    def log_px(images: int, counts: Sequence[int], precision: str) -> Tensor:
        return Evaluator(pixels[:images], scale, noise, precision).log_px_curve(vae, counts)

    fast = has_fast_bfloat16(pixels.device)
    precisions = (["tf32"] if pixels.is_cuda else []) + (["bfloat16"] if fast else [])
    exact = log_px(BIAS_IMAGES, (BIAS_SAMPLES,), "float32")[0]
    bias = {}
    for precision in precisions:
        moved = log_px(BIAS_IMAGES, (BIAS_SAMPLES,), precision)[0] - exact
        bias[precision] = mean_of(moved) | {"largest": float(moved.abs().max())}
    # Compile before timing; a GPU compiles for the sizes that are timed.
    log_px(IMAGES_AT_ONCE if pixels.is_cuda else 8, SAMPLES, "auto")
    _wait(pixels)
    clock = time.perf_counter()
    curve = log_px(len(pixels), SAMPLES, "auto")
    _wait(pixels)
    seconds = time.perf_counter() - clock
    return {
        "model": config["model"],
        "arm": run["arm"],
        "data": f"{config['data']} ({config['binarize']})",
        "images": len(pixels),
        "seconds": seconds,
        "precision": "bfloat16" if fast else "float32",
        "bias": bias,
        "k_curve": [{"k": k, **mean_of(values)} for k, values in zip(SAMPLES, curve, strict=True)],
    }


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


@torch.no_grad()
def measure_mixture(vae: VAE, config: Record, dataset: Dataset) -> Record:
    """log q(z) of M draws under N posteriors: time, memory, error; the time of textbook code."""
    images = Pixels(dataset, config["binarize"], config["seed"])
    train, test = images.x("train"), images.x("test")
    mu, logvar = (t.contiguous() for t in vae.encode(train))
    noise = AGGREGATE_DENSITY.key(config["seed"], device=mu.device)
    z = rsample(*vae.encode(test), noise)[0]
    mixture_log_prob(z[:TEXTBOOK_DRAWS], mu, logvar)  # compiles
    _wait(z)
    clock = time.perf_counter()
    log_q = mixture_log_prob(z, mu, logvar)
    _wait(log_q)
    seconds = time.perf_counter() - clock
    few, several = z[:TEXTBOOK_DRAWS], z[: 10 * TEXTBOOK_DRAWS]
    times = interleave(
        {
            "textbook": lambda: textbook_mixture(few, mu, logvar),
            "ours": lambda: mixture_log_prob(several, mu, logvar),
        },
        mu.device,
        budget=30.0,
        fewest=5,
    )
    each = {
        "textbook": median(times["textbook"].of_the_device) / len(few),
        "ours": median(times["ours"].of_the_device) / len(several),
    }
    truth = reference.mixture_log_prob(z[:CHECKED_DRAWS].cpu(), mu.cpu(), logvar.cpu())
    error = (log_q[:CHECKED_DRAWS].cpu().double() - truth).abs()
    return {
        "M": len(z),
        "N": len(mu),
        "D": mu.shape[1],
        "seconds": seconds,
        "seconds_a_draw": each,
        "peak_memory_bytes": peak_memory(lambda: mixture_log_prob(z, mu, logvar), mu.device),
        "error_over_bound": float((error / (1e-4 + 3e-7 * truth.abs())).max()),
        "largest_error": float(error.max()),
        "log_q": mean_of(log_q.double().cpu()),
    }


def page(results: Record) -> list[Block]:
    """The blocks of README.md."""
    machine, models = results["environment"], results["models"]
    blocks: list[Block] = [
        Heading(1, "Likelihood from 5,000 samples an image"),
        Text(
            f"{threads(machine)} of {machine['device']}, torch {machine['torch']}, "
            f"{results['date']}. Test split, nats per image; ± is the standard error over images."
        ),
        Table(
            (
                "model",
                "trained on",
                "log p(x), 5,000 samples",
                "gain over 100 samples",
                "images",
                "time",
            ),
            [
                (
                    m["model"],
                    f"{m['data']}, {m['arm']}",
                    f"{m['k_curve'][-1]['mean']:.2f} ± {m['k_curve'][-1]['standard_error']:.2f}",
                    f"{m['k_curve'][-1]['mean'] - _at(m, 100):+.2f}",
                    f"{m['images']:,}",
                    f"{m['seconds']:.0f} s in {m['precision']}",
                )
                for m in models
            ],
        ),
        Figure("k-curve.png", "log p(x) against the importance samples k"),
        Text("python -m bench likelihood RUN … --data-root DIR --out DIR", code=True),
        Heading(2, "The effect of low precision"),
        Text(
            f"log p(x) of the first {BIAS_IMAGES:,} test images minus that in float32, from the "
            f"same {BIAS_SAMPLES:,} samples. A reported log p(x) is off by the mean."
        ),
        Table(
            ("model", "precision", "mean", "largest of an image"),
            [
                (
                    m["model"],
                    precision,
                    f"{b['mean']:+.4f} ± {b['standard_error']:.4f}",
                    f"{b['largest']:.3f}",
                )
                for m in models
                for precision, b in m["bias"].items()
            ],
        ),
    ]
    q = results["mixture"]
    ratio = q["seconds_a_draw"]["textbook"] / q["seconds_a_draw"]["ours"]
    blocks += [
        Heading(2, "Density of the aggregate posterior"),
        Text(
            f"log q(z) of {q['M']:,} draws, one a test image, under the posteriors of {q['N']:,} "
            f"training images, D = {q['D']}: {q['seconds']:.1f} s, "
            f"{q['peak_memory_bytes'] / 2**20:.0f} MiB, {ratio:.1f} times as fast as the chunked "
            f"textbook (a draw in {1e3 * q['seconds_a_draw']['ours']:.2f} ms against "
            f"{1e3 * q['seconds_a_draw']['textbook']:.2f}, in turn). Largest error of "
            f"{CHECKED_DRAWS} draws against float64 {q['largest_error']:.1e} nats, "
            f"{q['error_over_bound']:.2f} of 1e-4 + 3e-7·|log q|; mean log q "
            f"{q['log_q']['mean']:.2f} ± {q['log_q']['standard_error']:.2f} nats."
        ),
    ]
    return blocks


def _at(model: Record, k: int) -> float:
    return float(next(point["mean"] for point in model["k_curve"] if point["k"] == k))


def k_curves(models: Sequence[Record]) -> bytes:
    """Every model's curve minus its last value, so that distant models share an axis; a PNG."""
    with style.figure() as (figure, (ax,)):
        colours = (style.BLUE, style.VERMILLION, style.GREEN, style.BLACK)
        for model, colour in zip(models, itertools.cycle(colours), strict=False):
            curve = model["k_curve"]
            k = [point["k"] for point in curve]
            end = curve[-1]["mean"]
            label = f"{model['model']}, {model['arm']}: {end:.2f} at k = {k[-1]:,}"
            ax.plot(k, [point["mean"] - end for point in curve], "o-", color=colour, label=label)
        ax.set_xscale("log")
        ax.set_xlabel("importance samples k")
        ax.set_ylabel(f"log p(x) minus that of k = {SAMPLES[-1]:,}, nats")
        ax.set_title("How much of log p(x) so many samples find")
        ax.legend(fontsize=9, frameon=False)
        return style.png(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a run, the data or the output failed, 2 a wrong setting."""
    parser = Parser("likelihood", __doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a training run"
    )
    parser.add_data_root("the runs' data")
    parser.add_argument("--device", default="auto", help="auto|cpu|cuda|cuda:N (default auto)")
    parser.add_out_folder()
    options = parser.parse_args(argv)
    expect_no_gpu()
    try:
        device = choose_device(options.device)
        prepare_files(options.out, "results.json", "k-curve.png", "README.md")
        runs = [load_run(folder) for folder in options.runs]
        results: Record = {
            "schema": SCHEMA,
            "date": time.strftime("%Y-%m-%d"),
            "environment": environment(device),
            "models": [],
        }
        for i, (vae, run) in enumerate(runs):
            dataset = load(run["config"]["data"], options.data_root).to(device)
            vae.to(device)
            results["models"].append(measure(vae, run, dataset))
            if i == 0:
                results["mixture"] = measure_mixture(vae, run["config"], dataset)
        write_json(options.out / "results.json", results)
        write_atomically(options.out / "k-curve.png", k_curves(results["models"]))
        text = markdown(page(results))
        write_atomically(options.out / "README.md", text.encode())
        print(text)
    except ConfigError as error:
        parser.error(str(error))
    except (DataError, OutputError) as error:
        return parser.failed(error)
    return 0
