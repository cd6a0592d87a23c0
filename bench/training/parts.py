"""The parts of a training step's time.

`python -m bench parts --out DIR` times a step of the altosaar VAE and each of its parts in turn,
and writes parts.json and parts.png. Each part runs alone, on tensors of the same shapes and dtypes;
all but the products are compiled. The rest is the step minus its parts: biases and activations,
conversions between dtypes, the calls from one kernel to the next. It can be negative, because a
part alone finds colder caches than within the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.command import Parser
from bench.timing.clock import Work, available_device, interleave
from bench.training.engines import ordinary_engine
from bench.training.products import products_of, replay
from vaez_fast.config import choose_precision
from vaez_fast.data import DataError, binarized, load
from vaez_fast.drawing import style
from vaez_fast.system.environment import environment, expect_no_gpu
from vaez_fast.system.files import OutputError, prepare_files, write_atomically, write_json
from vaez_fast.training.engine import Engine
from vaez_fast.training.graph import compile_graph, trace
from vaez_kernels import bernoulli_log_prob, rsample_kl

MODEL, BATCH_SIZE = "altosaar", 128
PARTS = ("products", "latent op", "likelihood", "optimiser", "gather", "launch")
REST = "rest"
COLOURS = {
    "products": style.BLUE,
    "latent op": style.GREEN,
    "likelihood": style.ORANGE,
    "optimiser": style.PURPLE,
    "gather": style.VERMILLION,
    "launch": style.BLACK,
    REST: style.GREY,
}


def parts_of(engine: Engine, precision: torch.dtype) -> dict[str, Work]:
    """Each part of a step of `engine`, on its own tensors."""
    device = engine.batches.images.device
    rows, state = engine.batches.batch_size, engine.state
    latent = engine.objective.vae.architecture.latent

    def compiled(function: Any, *tensors: Tensor) -> Work:
        run = compile_graph(trace(function, *tensors), *tensors, device=device)
        return lambda: run(*tensors)

    def latent_op(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
        z, kl = rsample_kl(mu, logvar, noise)
        return torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))

    def likelihood(logits: Tensor, pixels: Tensor) -> tuple[Tensor, ...]:
        logits = logits.detach().requires_grad_()
        log_prob = bernoulli_log_prob(logits.float()[None], pixels.float())
        return torch.autograd.grad(log_prob.sum(), logits)

    def optimizer(schedule: Tensor, *tensors: Tensor) -> None:
        count = len(engine.state.tensors())
        of_state = engine.state.over(list(tensors[:count]))
        engine.descend(of_state, tensors[count:], list(schedule[0, 1:].unbind()))

    def gather(images: Tensor, order: Tensor, noise: Tensor) -> Tensor:
        return engine.batches.rows(images, order, noise[1:]).to(precision)

    def launch(*tensors: Tensor) -> None:
        tensors[0].add_(1)

    batches = engine.batches
    mu, logvar = torch.randn(2, rows, latent, device=device).unbind()
    pixels = batches.images[:rows]
    logits = torch.randn(pixels.shape, device=device).to(precision)
    gradients = [torch.randn_like(w) * 1e-3 for w in state.weights]
    gradients = [g.to(precision) if g.dim() == 2 else g for g in gradients]
    copies = [t.clone() for t in state.tensors()]
    return {
        "products": replay(products_of(engine), device).run,
        "latent op": compiled(latent_op, mu, logvar, state.noise.clone()),
        "likelihood": compiled(likelihood, logits, pixels),
        "optimiser": compiled(optimizer, engine.schedule, *copies, *gradients),
        "gather": compiled(gather, batches.images, batches.order, state.noise.clone()),
        "launch": compiled(launch, *copies),
    }


def profile(images: Tensor, precision: torch.dtype, budget: float) -> dict[str, float]:
    """Median seconds of a step ("step"), of each part, and of the rest."""
    engine = ordinary_engine(MODEL, images, BATCH_SIZE, precision)
    works = {"step": engine.step} | parts_of(engine, precision)
    seconds = {
        name: median(times.of_the_device)
        for name, times in interleave(works, images.device, budget).items()
    }
    return seconds | {REST: seconds["step"] - sum(seconds[part] for part in PARTS)}


def table(profiles: dict[str, dict[str, float]]) -> str:
    """Milliseconds and shares, a column for each precision; Markdown."""
    lines = ["| part | " + " | ".join(profiles) + " |", "| --- |" + " ---: |" * len(profiles)]
    for part in (*PARTS, REST, "step"):
        cells = (
            f"{1e3 * seconds[part]:.2f} ms ({seconds[part] / seconds['step']:.0%})"
            for seconds in profiles.values()
        )
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(profiles: dict[str, dict[str, float]], title: str) -> bytes:
    """Stacked bars, one for each precision, as a PNG."""
    with style.figure(height=3.0) as (drawn, (ax,)):
        for name, seconds in profiles.items():
            left = 0.0
            for part in (*PARTS, REST):
                width = 1e3 * max(0.0, seconds[part])
                label = part if name == next(iter(profiles)) else None
                ax.barh(name, width, left=left, color=COLOURS[part], label=label)
                left += width
            step = 1e3 * seconds["step"]
            label = "the whole step" if name == next(iter(profiles)) else None
            ax.plot(
                step, name, "D", label=label, markerfacecolor="white", markeredgecolor=style.BLACK
            )
        ax.set_xlabel("milliseconds of a step")
        ax.grid(visible=False, axis="y")
        drawn.suptitle(title)
        drawn.legend(ncol=4, loc="outside lower center", frameon=False)
        return style.png(drawn)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the data or the output failed."""
    parser = Parser("parts", __doc__)
    parser.add_data_root("mnist-5k.npz")
    parser.add_out_folder()
    options = parser.parse_args(argv)
    expect_no_gpu()
    device = available_device()
    try:
        prepare_files(options.out, "parts.json", "parts.png")
        images = binarized(load("mnist-5k", options.data_root).to(device), "train", "static")
        precisions = [torch.float32]
        if choose_precision("auto", device) != torch.float32:
            precisions.append(torch.bfloat16)
        profiles = {
            str(precision).removeprefix("torch."): profile(images, precision, budget=6.0)
            for precision in precisions
        }
        machine = environment(device)
        content = {"model": MODEL, "batch_size": BATCH_SIZE, "seconds": profiles}
        write_json(options.out / "parts.json", content | {"environment": machine})
        title = f"A training step, {MODEL}, batch {BATCH_SIZE}, {machine['device']}"
        write_atomically(options.out / "parts.png", figure(profiles, title))
    except (DataError, OutputError) as error:
        return parser.failed(error)
    print(table(profiles))
    return 0
