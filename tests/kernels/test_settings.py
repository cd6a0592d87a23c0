"""Settings of a process, thread or block in which an op is called must not affect compiled code."""

from __future__ import annotations

import contextvars
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.process import environment
from tests.kernels.helpers import ERROR, flat, latents
from vaez_fast.training.graph import compile_graph, trace
from vaez_kernels import bernoulli as likelihood
from vaez_kernels import (
    bernoulli_log_prob,
    compiler,
    kl_standard_normal,
    noise,
    noise_key,
    normal,
    reference,
    rsample,
    rsample_kl,
    use_backend,
)
from vaez_kernels.backend import is_plain, uses_triton
from vaez_kernels.latent import formulas

KEY = noise_key(3, "train")
needs_compiler = pytest.mark.skipif(not compiler.has_cpu_compiler(), reason="no C++ compiler")


def run(
    program: str, timeout: float = 400, /, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env=environment() | variables,
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


# Each op is called first under one setting, then without any, then under all others.
FIRST_CALLS = """
import contextlib, torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from vaez_kernels import *

class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        return f(*args, **(kwargs or {}))

class WatchFunctions(TorchFunctionMode):
    def __torch_function__(self, f, types, args=(), kwargs=None):
        return f(*args, **(kwargs or {}))

@contextlib.contextmanager
def setting(set, value, before):
    set(value)
    try:
        yield
    finally:
        set(before)

SETTINGS = {
    "dispatch mode": Watch,
    "flop counter": lambda: FlopCounterMode(display=False),
    "function mode": WatchFunctions,
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "autocast": lambda: torch.autocast("cpu"),
    "inference": torch.inference_mode,
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "no gradients": torch.no_grad,
}
torch.manual_seed(0)
key = noise_key(3, "train")
mu, logvar, upstream = torch.randn(3, 96, 20)
logits, x = torch.randn(2, 9, 100), torch.rand(9, 100)
hidden, weight, bias = torch.randn(4, 64, 32), torch.randn(784, 32) / 5, torch.randn(784)
pixels = (torch.rand(96, 784) < 0.5).to(torch.uint8)
z, means, spreads = torch.randn(64, 32), torch.randn(300, 32), torch.randn(300, 32)
layers = torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 784)
decoder = torch.nn.Sequential(*layers).requires_grad_(False)
OPS = {
    "function mode": lambda: normal(key, 2, 30, 20),
    "default dtype": lambda: uniform(key, 2, 30, 20),
    "default device": lambda: rsample(mu, logvar, key),
    "autocast": lambda: kl_standard_normal(mu, logvar),
    "deterministic": lambda: kl_standard_normal_mc(mu, logvar, key, 2),
    "inference": lambda: bernoulli_log_prob(logits, x),
    "flop counter": lambda: linear_bernoulli_log_prob(hidden, weight, bias, pixels[:64]),
    "no gradients": lambda: mixture_log_prob(z, means, spreads),
    "dispatch mode": lambda: importance_log_likelihood(decoder, mu, logvar, pixels, key, 32),
}
firsts = {}
for name, op in OPS.items():
    with SETTINGS[name]():
        firsts[name] = op()
for name, op in OPS.items():
    plain = op()
    assert plain.dtype == torch.float32
    others = [("first", firsts[name])]
    for where, block in SETTINGS.items():
        with block():
            others.append((where, op()))
    for where, other in others:
        assert (other.dtype, other.device) == (plain.dtype, plain.device), (name, where)
        # Eager code runs if a mode observes the call, and rounds differently from compiled code.
        torch.testing.assert_close(other, plain, rtol=3e-6, atol=3e-6, msg=f"{name}, {where}")

# A tracer sees the ops, though they have run plainly before: nothing becomes a constant.
traced = make_fx(lambda mu: rsample_kl(mu, logvar, key)[1])(mu)
torch.testing.assert_close(traced(2 * mu), rsample_kl(2 * mu, logvar, key)[1])
leaf = mu.clone().requires_grad_()
kl = kl_standard_normal(leaf, logvar)
traced = make_fx(lambda g: torch.autograd.grad(kl, leaf, g, retain_graph=True)[0])(torch.ones(96))
torch.testing.assert_close(traced(torch.full((96,), 2.0)), 2 * mu)
"""


@needs_compiler
def test_first_and_later_calls_give_the_same_numbers_under_any_setting() -> None:
    done = run(FIRST_CALLS)
    assert done.returncode == 0, done.stderr[-3000:]


FIRST_CALLS_AT_ONCE = """
import threading, torch
from vaez_kernels import *
from vaez_kernels import compiler, noise
key = noise_key(3, "train")
mu, logvar = torch.full((2, 96, 20), 0.5)
z, means = torch.zeros(64, 32), torch.zeros(300, 32)
builds = []
build = noise.twin.compiled_quads.build
noise.twin.compiled_quads.build = lambda *args: builds.append(args) or build(*args)
OPS = [
    lambda: normal(key, 2, 30, 20),
    lambda: normal(key, 2, 30, 20),
    lambda: kl_standard_normal(mu, logvar),
    lambda: mixture_log_prob(z, means, means),
]
out, start = [None] * 4, threading.Barrier(4)
def call(i):
    start.wait()
    out[i] = OPS[i]()
threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
assert all(torch.equal(one, op()) for one, op in zip(out, OPS, strict=True)), out
assert builds == [(True,)], builds
assert not compiler.failures
"""


@needs_compiler
def test_threads_may_make_the_first_calls_at_once() -> None:
    done = run(FIRST_CALLS_AT_ONCE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Exception in thread" not in done.stderr


# Machines on which nothing can be compiled.

BROKEN = """
import json, torch, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always", RuntimeWarning)
    from vaez_kernels import *
    from vaez_kernels.compiler import failures
    from vaez_fast.training.graph import compile_graph, trace
    from vaez_fast.cli.machine import compiler
    key = noise_key(3, "train")
    u = uniform(key, 1, 96, 20)[0]
    numbers = [u, kl_standard_normal(u, u), mixture_log_prob(u, u[:20], u[:20]).repeat(9)]
    numbers += [mixture_log_prob(u.repeat(4, 1), u, u)]
    numbers += [linear_bernoulli_log_prob(u[None], u[:80].repeat(9, 1), u.new_zeros(720),
                (u.repeat(1, 36) < 0.5).to(torch.uint8))]
    def update(a, b):
        b.mul_(a.exp().sum())
    a, b = torch.ones(3), torch.ones(3)
    compile_graph(trace(update, a, b), a, b, device=a.device)(a, b)
said = [str(w.message) for w in said if "vaez_fast" in str(w.message)]
values = [float(x.double().sum()) for x in numbers] + b.tolist()
print(json.dumps({"said": said, "values": values, "failures": failures, "env": compiler()}))
"""


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def in_broken(**variables: str) -> dict[str, Any]:
    done = run(BROKEN, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def without_compiler() -> dict[str, Any]:
    return in_broken(CXX="/nonexistent")


def test_a_compiler_that_is_missing_is_named_in_one_warning(
    without_compiler: dict[str, Any],
) -> None:
    (said,) = without_compiler["said"]
    assert "a C++ compiler" in said
    assert "eager" in said


def assert_eager(found: dict[str, Any], eager: dict[str, Any]) -> None:
    assert found["values"] == eager["values"]
    (said,) = found["said"]
    assert "eager" in said
    assert list(found["failures"]) == ["cpu"]
    assert found["failures"]["cpu"] in said
    assert found["env"]["on"] is False
    assert found["failures"]["cpu"] in found["env"]["why"]


@needs_compiler
def test_a_compiler_that_builds_nothing_leaves_the_ops_eager(
    tmp_path: Path, without_compiler: dict[str, Any]
) -> None:
    found = in_broken(CXX="/bin/true", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert_eager(found, without_compiler)


@needs_compiler
def test_code_that_may_not_be_executed_leaves_the_ops_eager(
    noexec: Path, without_compiler: dict[str, Any]
) -> None:
    assert_eager(in_broken(TORCHINDUCTOR_CACHE_DIR=str(noexec)), without_compiler)


@needs_compiler
def test_a_cache_that_is_a_file_is_replaced_by_a_temporary_directory(
    tmp_path: Path, without_compiler: dict[str, Any]
) -> None:
    file = tmp_path / "cache"
    file.touch()
    found = in_broken(TORCHINDUCTOR_CACHE_DIR=str(file), TMPDIR=str(tmp_path))
    assert found["values"] == pytest.approx(without_compiler["values"], rel=1e-6)
    (said,) = found["said"]
    assert str(file) in said
    assert not found["failures"]
    assert [path.name for path in tmp_path.glob("vaez_fast_*")] == []


@needs_compiler
def test_after_a_build_failed_nothing_more_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[str] = []

    def fail(*_: Any, **__: Any) -> None:
        builds.append("one")
        raise OSError("no space left")

    monkeypatch.setattr(torch._inductor, "standalone_compile", fail)
    monkeypatch.setattr(compiler, "failures", {})
    monkeypatch.setattr(noise.twin.compiled_quads, "kept", {})
    monkeypatch.setattr(compiler.compiled, "kept", {})
    mu, logvar = (x.detach() for x in latents(129, 20))
    a, b = torch.ones(3), torch.ones(3)
    graph = trace(lambda a, b: b.mul_(a), a, b)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.warns(RuntimeWarning, match="no space left.*eager") as said:
            drawn = normal(KEY, 2, 3, 5)
        kl = kl_standard_normal(mu, logvar)
        step = compile_graph(graph, a, b, device=a.device)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(said) == len(builds) == 1
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(kl, reference.kl_standard_normal(mu, logvar).float())
    step(2 * a, b)
    assert b.tolist() == [2.0, 2.0, 2.0]


@needs_compiler
def test_a_graph_whose_build_is_the_first_to_fail_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(torch._inductor, "standalone_compile", fail)
    monkeypatch.setattr(compiler, "failures", {})
    a, b = torch.ones(3), torch.ones(3)
    graph = trace(lambda a, b: b.mul_(a), a, b)
    with pytest.warns(RuntimeWarning, match="no space left.*eager"):
        step = compile_graph(graph, a, b, device=a.device)
    step(2 * a, b)
    assert b.tolist() == [2.0, 2.0, 2.0]


@needs_compiler
def test_all_but_float64_and_empty_batches_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def eagerly(function: Any, *_: Any) -> None:
        asked.append(function)

    monkeypatch.setattr(compiler, "compiled", eagerly)
    for mu in (torch.zeros(1, 1), torch.zeros(0, 4), torch.zeros(2, 4, dtype=torch.float64)):
        kl_standard_normal(mu, mu)
        bernoulli_log_prob(mu[None], mu)
    # One element costs 40 µs eagerly, and 20 compiled.
    assert asked == [formulas.forward_formula, likelihood.twin.forward_formula]


@needs_compiler
def test_rows_of_two_arguments_may_be_differently_far_apart() -> None:
    wide, wider = torch.rand(129, 50), torch.rand(129, 70)
    mu, logvar = wide[:, :20], wider[:, 3:23]
    wanted = reference.kl_standard_normal(mu, logvar).float()
    torch.testing.assert_close(kl_standard_normal(mu, logvar), wanted)


def test_a_graph_is_traced_with_gradients_on() -> None:
    def update(a: Tensor, b: Tensor) -> None:
        leaf = a.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((leaf * leaf).sum(), leaf)
        b.copy_(gradient)

    a, b = torch.ones(3), torch.zeros(3)
    with torch.no_grad(), torch.device("meta"):
        step = compile_graph(trace(update, a, b), a, b, device=a.device)
    step(3 * a, b)
    assert b.tolist() == [6.0, 6.0, 6.0]


# Modes that observe a call.


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_an_op_and_its_backward() -> None:
    mu, logvar = latents(129, 20)
    _, kl = rsample_kl(mu, logvar, KEY)
    with Watch() as watch:
        rsample_kl(mu, logvar, KEY)
        kl.sum().backward()
    assert "vaez::latent_forward" in watch.seen
    assert "vaez::latent_backward" in watch.seen


def test_a_flop_counter_counts_around_the_ops() -> None:
    mu, logvar = latents(129, 20)
    with FlopCounterMode(display=False) as counter:
        z = rsample(mu @ torch.eye(20), logvar, KEY)
    assert counter.get_total_flops() == 2 * 129 * 20 * 20
    wanted = reference.rsample(mu @ torch.eye(20), logvar, normal(KEY, 1, 129, 20))
    torch.testing.assert_close(z, wanted.float(), rtol=ERROR, atol=10 * ERROR)


def test_calls_that_nobody_watches_pass_the_dispatcher_by() -> None:
    assert is_plain(torch.zeros(2))
    with Watch():
        assert not is_plain(torch.zeros(2))
    torch.func.vmap(lambda x: [x, is_plain(x) and pytest.fail("a transform was not seen")][0])(
        torch.zeros(2)
    )


# Compilations.


def test_a_build_inside_another_compilation_is_put_off() -> None:
    from torch._dynamo.convert_frame import compile_lock

    once = compiler.compiled_once(lambda key: lambda: key)
    with compile_lock:
        assert once("a") is None
    code = once("a")
    assert code is not None
    assert code() == "a"


def test_threads_that_want_the_same_code_wait_for_one_build() -> None:
    builds: list[str] = []
    entered = threading.Event()

    def build(key: str) -> Any:
        builds.append(key)
        entered.wait(0.2)
        return lambda: key

    once = compiler.compiled_once(build)
    threads = [threading.Thread(target=once, args=("a",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == ["a"]


def test_the_oldest_code_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MOST_KEPT", 2)
    builds: list[str] = []
    once = compiler.compiled_once(lambda key: builds.append(key) or (lambda: key))  # type: ignore[func-returns-value]
    for key in ("a", "b", "c", "b", "a"):
        once(key)
    assert builds == ["a", "b", "c", "a"]


def test_an_error_in_a_build_reaches_the_caller_and_is_not_kept() -> None:
    def build(key: str) -> Any:
        raise ArithmeticError(key)

    once = compiler.compiled_once(build)
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="a"):
            once("a")


def test_isolated_work_is_free_of_settings_but_for_context_variables() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(1)

    def work() -> tuple[Any, ...]:
        made = torch.zeros(2, requires_grad=True) * 2
        return (
            made.device.type,
            made.requires_grad,
            torch.is_autocast_enabled("cpu"),
            variable.get(),
        )

    with torch.device("meta"), torch.no_grad(), torch.autocast("cpu"), Watch() as watch:
        assert compiler.isolated(work) == ("cpu", True, False, 1)
    assert watch.seen == []


# The backend.


def test_a_block_holds_for_its_own_thread() -> None:
    x, inside, leave = torch.zeros(2), threading.Event(), threading.Event()

    def other() -> None:
        with use_backend("torch"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with use_backend("triton"):
        thread.start()
        inside.wait(10)
        with pytest.raises(RuntimeError, match="forced"):
            uses_triton(x)
        leave.set()
        thread.join()
        with pytest.raises(RuntimeError, match="forced"):
            uses_triton(x)
    assert not uses_triton(x)


@pytest.mark.parametrize("path", ["eager", "op"])
def test_backward_runs_on_the_backend_of_its_forward(path: str) -> None:
    # Forcing triton for a CPU tensor would fail if backward did not stay on the fallback.
    def call(mu: Tensor, logvar: Tensor) -> Tensor:
        if path == "eager":
            return kl_standard_normal(mu, logvar)
        args = flat(mu, logvar, None, 1, False, "analytic", 0, 0)
        kl: Tensor = torch.ops.vaez.latent_forward(*args)[1]
        return kl

    mu, logvar = latents(7, 5)
    kl = call(mu, logvar)
    with use_backend("triton"):
        kl.sum().backward()
    assert mu.grad is not None
    torch.testing.assert_close(mu.grad, mu.detach())
