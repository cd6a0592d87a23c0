"""JAX beside ours, where it is installed: three ops, importance sampling and a training step.

JAX uses its own CUDA streams, which PyTorch's events cannot time. So both are timed by the wall
clock, from the call until its results are ready.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.jax.available import why_not
from bench.ops.bench_importance import CHECKED, ImportanceContest
from bench.timing.building import Maker, build
from bench.timing.busy import Watch
from bench.timing.clock import CLOCK, Work, interleave
from bench.timing.rivals import NO_BFLOAT16
from bench.timing.rows import Bench, Group, Rival
from bench.timing.sharing import NO_GPU, shared_group
from bench.training.baselines import TextbookVAE
from bench.training.bench_step import BATCH_SIZE, engine_of, steps
from bench.training.checks import TOLERANCE, check_loss
from vaez_fast.data import DataError, binarized, load
from vaez_fast.training.phases import STEPS_PER_REPLAY
from vaez_kernels import bernoulli_log_prob, importance, mixture_log_prob, rsample_kl
from vaez_kernels.backend import has_fast_bfloat16
from vaez_kernels.bernoulli import case as likelihood
from vaez_kernels.latent import case as latent
from vaez_kernels.mixture import case as mixture
from vaez_kernels.testing import Function, TimedCase

SMALL = ((1, 20), (128, 20))  # B, D
OPS = (
    *("latent, one row", "latent, small", "latent, a million", "latent"),
    *("likelihood", "mixture"),
)
OP_PROVIDERS = ("jax", "ours")
WHOLE = ("training step", "training step beside a busy process", "importance sampling")
WHOLE_PROVIDERS = ("jax", "jax bfloat16", "ours", "ours bfloat16")
TIMING = "wall clock, a call until its results are there"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = [(what, provider) for what in OPS for provider in OP_PROVIDERS]
    rows += [(what, provider) for what in WHOLE for provider in WHOLE_PROVIDERS]
    metafunc.parametrize(("what", "provider"), rows)


@pytest.mark.benchmark(timer=CLOCK)
def test_jax(benchmark: Any, bench: Bench, data_root: str, what: str, provider: str) -> None:
    if (reason := why_not(bench.device)) is not None:
        pytest.skip(reason)
    groups: dict[str, Callable[[], Group]] = {
        "latent, one row": partial(_latent, bench, SMALL[0]),
        "latent, small": partial(_latent, bench, SMALL[1]),
        "latent, a million": partial(_latent, bench, latent.TIMED.large[bench.device.type][0]),
        "latent": partial(_latent, bench, latent.TIMED.large[bench.device.type][-1]),
        "likelihood": partial(_likelihood, bench),
        "mixture": partial(_mixture, bench),
        "importance sampling": partial(_importance, bench),
        "training step": partial(_training_step, bench, data_root),
        "training step beside a busy process": partial(_shared_cores, bench, data_root),
    }
    group = bench.measured(("jax", what), groups[what], budget=0.0)
    bench.record(benchmark, group, provider)


def _jax() -> ModuleType:
    # imports jax, which need not be here
    from bench.jax import rivals as jax_rivals

    return jax_rivals


def _timed(title: str, makers: dict[str, Maker | str], bench: Bench, budget: float) -> Group:
    """A group that was timed by the wall clock, whatever the device."""
    built = build(makers, lambda name: name.startswith("jax"))
    works = {
        name: _waiting(rival.work, bench.device)
        for name, rival in built.rivals.items()
        if rival.work is not None and rival.check.passed
    }
    watch = Watch()
    seconds = budget / 3 if bench.quick else budget
    times = interleave(works, torch.device("cpu"), seconds, foreign_threads=True)
    load = watch.record(next(iter(times.values())).disturbed) if times else None
    # Without their works: they were timed here.
    rivals = {name: replace(rival, work=None) for name, rival in built.rivals.items()}
    per_call = {
        name: [second / rivals[name].calls for second in of_one.wall]
        for name, of_one in times.items()
    }
    return Group(
        title,
        rivals,
        built.unavailable,
        floor_bytes=None,
        broken=built.broken,
        timing=TIMING,
        seconds=per_call,
        load=load,
    )


def _waiting(work: Work, device: torch.device) -> Work:
    import jax

    def run() -> None:
        jax.block_until_ready(work())  # ours returns tensors, which it passes over
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _array(tensor: Tensor) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(tensor.detach().cpu().numpy())


def _tensors(arrays: Any) -> tuple[Tensor, ...]:
    import numpy as np

    return tuple(torch.from_numpy(np.array(array)) for array in arrays)


def _op(title: str, case: TimedCase, theirs: Work, ours: Function, bench: Bench) -> Group:
    def jax_rival() -> Rival:
        return Rival(theirs, case.check(_tensors(theirs()), ours=False))

    def our_rival() -> Rival:
        work = partial(case.run, ours, True)
        return Rival(work, case.check(work(), ours=True))

    makers: dict[str, Maker | str] = {"jax": jax_rival, "ours": our_rival}
    return _timed(f"{title}, forward+backward, float32, beside JAX", makers, bench, 1.0)


def _latent(bench: Bench, shape: tuple[int, ...]) -> Group:
    import jax

    case = latent.timed_case(shape, torch.float32, bench.device)
    given = [_array(x) for x in (case.mu, case.logvar)]
    upstream = [_array(case.grad_z[0]), _array(case.grad_kl)]
    theirs = partial(_jax().latent, *given, jax.random.key(0), *upstream)
    title = f"latent op, {shape[0]:,} × {shape[1]}"
    return _op(title, case, theirs, lambda m, v: rsample_kl(m, v, case.noise), bench)


def _likelihood(bench: Bench) -> Group:
    shape = likelihood.TIMED.large[bench.device.type][-1]
    case = likelihood.timed_case(shape, torch.float32, bench.device)
    theirs = partial(_jax().likelihood, *map(_array, (case.logits, case.x, case.grad)))
    title = f"likelihood op, {shape[0]} × {shape[1]:,} × {shape[2]}"
    return _op(title, case, theirs, bernoulli_log_prob, bench)


def _mixture(bench: Bench) -> Group:
    shape = mixture.TIMED.launch_bound[0]
    case = mixture.timed_case(shape, torch.float32, bench.device)
    given = map(_array, (case.z, case.mu, case.logvar, case.grad))
    title = "mixture op, " + " × ".join(f"{n:,}" for n in shape)
    return _op(title, case, partial(_jax().mixture, *given), mixture_log_prob, bench)


def _layers(perceptron: Any) -> list[tuple[Any, Any]]:
    linear = [layer for layer in perceptron if hasattr(layer, "weight")]
    return [(_array(layer.weight), _array(layer.bias)) for layer in linear]


def _importance(bench: Bench) -> Group:
    import jax
    import jax.numpy as jnp

    contest = ImportanceContest(bench)
    posterior = [_array(x) for x in (contest.mu, contest.logvar, contest.x)]
    decoder = _layers(contest.vae.decoder)
    at_once = max(1, importance.twin.LOGITS[bench.device.type] // 784 // contest.images)
    chunks = max(1, round(contest.samples / at_once))

    def theirs(dtype: str) -> Rival:
        product = getattr(jnp, dtype)
        eps = _array(contest.eps)
        of_first = [array[:CHECKED] for array in posterior]
        weights = _jax().log_weights(decoder, *of_first, eps, product)
        (found,) = _tensors([jax.nn.logsumexp(weights, 0) - jnp.log(len(weights))])
        keys = jax.random.split(jax.random.key(0), chunks)
        count = contest.samples // chunks
        run = _jax().importance_log_likelihood
        work = partial(run, decoder, *posterior, keys, count, product)
        return contest.rival(work, found, dtype)

    makers: dict[str, Maker | str] = {
        "jax": partial(theirs, "float32"),
        "jax bfloat16": partial(theirs, "bfloat16"),
        "ours": partial(contest.ours, "float32"),
        "ours bfloat16": partial(contest.ours, "bfloat16"),
    }
    title = f"importance sampling, altosaar, {contest.samples:,} samples of {contest.images} images"
    return _timed(f"{title}, beside JAX", _available(makers, bench.device), bench, 10.0)


def _training_step(bench: Bench, data_root: str) -> Group:
    makers = _steps(bench, data_root)
    title = f"training step, altosaar, batch {BATCH_SIZE}, beside JAX"
    return _timed(title, makers, bench, 6.0)


def _shared_cores(bench: Bench, data_root: str) -> Group:
    if bench.device.type != "cpu":
        pytest.skip(NO_GPU)
    built = build(_steps(bench, data_root), lambda name: name.startswith("jax"))
    for rival in built.rivals.values():
        assert rival.work is not None
        rival.work = _waiting(rival.work, bench.device)
    title = f"training step beside a busy process, altosaar, batch {BATCH_SIZE}, beside JAX"
    return shared_group(title, built, "ours", bench.quick)


def _steps(bench: Bench, data_root: str) -> dict[str, Maker | str]:
    import jax
    import jax.numpy as jnp

    try:
        dataset = load("mnist-5k", data_root)
    except DataError as error:
        pytest.skip(str(error))
    images = binarized(dataset.to(bench.device), "train", "static")
    count = 1 if bench.device.type == "cpu" else STEPS_PER_REPLAY  # as many as ours are

    def theirs(dtype: torch.dtype) -> Rival:
        product = getattr(jnp, str(dtype).removeprefix("torch."))
        vae = TextbookVAE("altosaar")
        weights = _layers(vae.encoder), _layers(vae.decoder)

        def loss(x: Tensor) -> tuple[Tensor, Tensor]:
            negative_elbo = _jax().negative_elbo(*weights, _array(x), jax.random.key(0), product)
            value, z = _tensors(negative_elbo)
            return value, z

        check = check_loss(loss, vae, images[:BATCH_SIZE].float().cpu(), "analytic elbo")
        error = check.error * TOLERANCE[torch.float32] / TOLERANCE[dtype]
        pixels = _array(images)
        order = jax.random.permutation(jax.random.key(1), len(pixels))
        state = [_jax().start(*weights)]

        def work() -> Any:
            state[0] = _jax().train(state[0], pixels, order, BATCH_SIZE, count, product)
            return state[0]

        return Rival(work, replace(check, error=error), calls=count)

    makers: dict[str, Maker | str] = {
        "jax": partial(theirs, torch.float32),
        "jax bfloat16": partial(theirs, torch.bfloat16),
        "ours": partial(_our_steps, images, torch.float32),
        "ours bfloat16": partial(_our_steps, images, torch.bfloat16),
    }
    return _available(makers, bench.device)


def _our_steps(images: Tensor, dtype: torch.dtype) -> Rival:
    return steps(engine_of("altosaar", "elbo", images, dtype), "altosaar", "elbo")


def _available(makers: dict[str, Maker | str], device: torch.device) -> dict[str, Maker | str]:
    if has_fast_bfloat16(device):
        return makers
    return makers | {name: NO_BFLOAT16 for name in makers if name.endswith("bfloat16")}
