"""The graphs that a CUDA machine would run, captured without one.

Triton's driver is replaced by a stub that reports an H100, and the ops take their kernel branch on
CPU tensors. The tests inspect the graphs of forward and backward, and never run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule, Node

from tests.kernels.bernoulli.pixels import pixels
from tests.kernels.every_op import CASES
from tests.kernels.helpers import MODES, call, latents
from tests.kernels.linear_bernoulli import last_layer
from tests.kernels.mixture.mixtures import mixture
from vaez_kernels import (
    bernoulli_log_prob,
    define,
    interpreting,
    linear_bernoulli,
    linear_bernoulli_log_prob,
    mixture_log_prob,
    noise_key,
    normal,
    uniform,
)
from vaez_kernels.backend import triton
from vaez_kernels.cases import OPS
from vaez_kernels.testing import Arguments, Case

pytestmark = [
    pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels to launch"),
    pytest.mark.skipif(interpreting(), reason="interpreted kernels cannot be captured"),
]

LAUNCH = torch.ops.higher_order.triton_kernel_wrapper_functional
KEY = noise_key(1, "train")
each_mode = pytest.mark.parametrize("mode", list(MODES))


class _Driver:
    """The part of a GPU driver that capturing a launch needs: the compiler's target."""

    launcher_cls = None
    binary_ext = "cubin"

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    def is_active(self) -> bool:
        return True


class _CapturedError(Exception):
    """Ends the run at the first kernel launch."""


Capture = Callable[..., list[GraphModule]]


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    """capture(function, *args) → the graphs, forward first; a graph break is an error.

    The same graphs must also work for the arguments `then`.
    """

    def captured(function: Any, *args: Any, then: tuple[Any, ...] = ()) -> list[GraphModule]:
        graphs: list[GraphModule] = []

        def keep(graph: GraphModule, _: Any) -> Any:
            graphs.append(graph)

            def refuse(*_: Any) -> Any:
                raise _CapturedError

            return refuse

        backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, inference_compiler=keep)
        compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
        with pytest.raises(_CapturedError):
            compiled(*args)
        if then:
            count = len(graphs)
            with pytest.raises(_CapturedError):
                compiled(*then)
            assert len(graphs) == count
        return graphs

    refuse_bools_beside_sizes(monkeypatch)
    monkeypatch.setattr(define, "uses_triton", lambda _: True)
    torch._dynamo.reset()
    # Without a driver, the analysis of a kernel's writes fails, and every argument is cloned.
    monkeypatch.setattr(triton.runtime.driver, "_active", _Driver())
    yield captured
    torch._dynamo.reset()


def refuse_bools_beside_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise as torch 2.11 does, with any version: it cannot combine a traced size and a bool."""
    for name in ("add", "sub", "mul"):
        for method in (f"__{name}__", f"__r{name}__"):
            monkeypatch.setattr(torch.SymInt, method, _without_bools(method))


def _without_bools(method: str) -> Callable[[torch.SymInt, Any], Any]:
    given = getattr(torch.SymInt, method)

    def checked(size: torch.SymInt, other: Any) -> Any:
        if isinstance(other, bool):
            raise TypeError(f"{method} of a traced size and {other}")
        return given(size, other)

    return checked


def launches(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.target is LAUNCH]


def assert_writes_only(launch: Node, outputs: set[str]) -> None:
    """Check that the kernel only writes these outputs, into new memory without copies."""
    assert set(launch.kwargs["tensors_to_clone"]) == outputs  # type: ignore[arg-type]
    arguments: Any = launch.kwargs["kwargs"]
    for name in outputs:
        assert arguments[name].target is torch.ops.aten.new_empty.default or (
            arguments[name].target is torch.ops.aten.empty.memory_format
        )
        assert list(arguments[name].users) == [launch]


def assert_symbolic(
    launch: Node, width: str = "D", rows: str = "n_rows", columns: int = 20
) -> None:
    """Check that one graph works for all batch sizes: only the width is constant, not the rows."""
    arguments: Any = launch.kwargs["kwargs"]
    grid: Any = launch.kwargs["grid"]
    assert isinstance(arguments[rows], Node)
    assert isinstance(grid[0][0], Node)
    assert arguments[width] == columns


def assert_nothing_but(graph: GraphModule, *allowed: str) -> None:
    """Check that the graph only has launches, new memory and the allowed aten operators."""
    called = {
        node.target.overloadpacket.__name__
        for node in graph.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
    }
    assert called <= {"new_empty", "empty", "sym_size", "sym_stride", *allowed}


@pytest.mark.parametrize("op", [op for op in OPS if OPS[op].LEAVES])
def test_an_op_is_a_few_launches_at_any_batch_size(op: str, capture: Capture) -> None:
    """One launch forward and at most two backward, but for two ops whose programs share sums.

    A launch of its own adds such sums up. The mixture also lays out its operands before, and the
    last layer's gradients are two products and the sums for a bias.
    """
    module, case = OPS[op], CASES[op]
    samples, rows, *rest = case.shape

    def given(case: Case) -> Arguments:
        arguments = module.inputs(case)
        for name in module.LEAVES:
            arguments[name].requires_grad_(arguments[name].is_floating_point())
        return arguments

    small, large = given(case), given(replace(case, shape=(samples, 3 * rows, *rest)))
    names = [name for name, x in small.items() if isinstance(x, Tensor)]

    def function(*tensors: Tensor) -> list[Tensor]:
        return list(module.call(case, small | dict(zip(names, tensors, strict=True))).values())

    graphs = capture(function, *(small[n] for n in names), then=tuple(large[n] for n in names))
    shared = {"mixture_log_prob": [3, 3], "linear_bernoulli_log_prob": [2, 5]}
    found = [len(launches(graph)) for graph in graphs]
    assert found in ([shared[op.split("/")[0]]] if op.split("/")[0] in shared else ([1, 1], [1, 2]))
    for launch in (launch for graph in graphs for launch in launches(graph)):
        assert_writes_only(launch, set(launch.kwargs["tensors_to_clone"]))  # type: ignore[arg-type]


@each_mode
@pytest.mark.parametrize("layout", ["contiguous", "chunk"])
def test_each_op_is_one_launch_forward_and_one_backward(
    mode: str, layout: str, capture: Capture
) -> None:
    write_z, kl = MODES[mode]
    mu, logvar = latents(7, 20, layout=layout)
    forward, backward = capture(lambda m, v, key: call(mode, m, v, key, 3), mu, logvar, KEY)
    (launch,) = launches(forward)
    written = (("z_ptr", write_z), ("kl_ptr", kl != "none"))
    assert_writes_only(launch, {name for name, is_written in written if is_written})
    # Lengths are in units of four elements.
    assert_symbolic(launch, "n_positions", "n_lines", columns=5)
    assert_nothing_but(forward, "select")  # the KL of the only tile of a row
    (launch,) = launches(backward)
    assert_symbolic(launch, "n_positions", "n_lines", columns=5)
    assert_writes_only(launch, {"grad_mu_ptr", "grad_logvar_ptr"})
    assert_nothing_but(backward)


def test_backward_saves_nothing_the_size_of_z(capture: Capture) -> None:
    mode = "rsample_kl/total-derivative"
    _, backward = capture(lambda m, v, key: call(mode, m, v, key, 3), *latents(7, 20), KEY)
    inputs = [node.meta["val"] for node in backward.graph.nodes if node.op == "placeholder"]
    tensors = [tuple(x.shape) for x in inputs if isinstance(x, Tensor)]
    # mu, logvar and the key, and the gradients of z and of the KL.
    assert sorted(len(shape) for shape in tensors) == [1, 1, 2, 2, 3]


def test_many_samples_are_one_launch_and_a_sum_of_their_blocks(capture: Capture) -> None:
    mode = "rsample_kl/total-derivative"
    forward, backward = capture(lambda m, v, key: call(mode, m, v, key, 17), *latents(7, 20), KEY)
    assert len(launches(forward)) == len(launches(backward)) == 1
    assert_nothing_but(forward, "sum", "select")
    assert_nothing_but(backward)


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_draw_is_one_launch(draw: Any, capture: Capture) -> None:
    def function(key: Tensor, like: Tensor) -> Tensor:
        return draw(key, 2, like.shape[0], 20)

    (graph,) = capture(function, KEY, torch.empty(7))
    (launch,) = launches(graph)
    assert_writes_only(launch, {"out_ptr"})
    assert_symbolic(launch, "n_columns", columns=5)
    assert_nothing_but(graph)


@pytest.mark.parametrize("samples", [1, 3, 17])
@pytest.mark.parametrize("targets", [torch.uint8, torch.bool, torch.float32])
def test_the_likelihood_is_one_launch_forward_and_one_backward(
    targets: torch.dtype, samples: int, capture: Capture
) -> None:
    forward, backward = capture(bernoulli_log_prob, *pixels(samples, 7, 20, targets=targets))
    # The bytes of a bool are read directly: a view, not a copy.
    allowed = ["view"] if targets == torch.bool else []
    written = {"grad_logits_ptr"} | ({"grad_x_ptr"} if targets.is_floating_point else set())
    for graph, outputs in ((forward, {"out_ptr"}), (backward, written)):
        (launch,) = launches(graph)
        assert_writes_only(launch, outputs)
        assert_symbolic(launch, "P")
        assert_nothing_but(graph, *allowed)


def test_the_likelihood_saves_its_inputs_alone(capture: Capture) -> None:
    _, backward = capture(bernoulli_log_prob, *pixels(3, 7, 20))
    inputs = [node.meta["val"] for node in backward.graph.nodes if node.op == "placeholder"]
    # The gradient of the result, the logits and the targets.
    assert {(x.dim(), x.dtype) for x in inputs if isinstance(x, Tensor)} == {
        (2, torch.float32),
        (3, torch.float32),
        (2, torch.uint8),
    }
    assert sum(isinstance(x, Tensor) for x in inputs) == 3


@pytest.mark.parametrize("leave_out", [False, True])
def test_the_mixture_is_three_launches_forward_and_three_backward(
    leave_out: bool, capture: Capture
) -> None:
    case = mixture(7, 300, 20, leave_out=leave_out)
    forward, backward = capture(mixture_log_prob, *case)
    for graph in (forward, backward):  # the argument of the test has every other element
        assert_nothing_but(graph, *(["clone"] if leave_out else []))
    operands = {"z_out_ptr", "mu_out_ptr", "inverse_sigma_ptr", "log_normaliser_ptr", "highest_ptr"}
    in_rows = {"rows_of_z_ptr", "rows_of_mu_ptr", "precision_ptr"}
    written = (
        (operands, {"top_ptr", "total_ptr"}, {"log_q_ptr", "top_ptr", "total_ptr"}),
        (operands | in_rows, {"out_ptr", "weights_ptr"}, {"grad_z_ptr"}),
    )
    for graph, outputs in zip((forward, backward), written, strict=True):
        seen = launches(graph)
        for launch, names in zip(seen, outputs, strict=True):
            arguments: Any = launch.kwargs["kwargs"]
            assert_writes_only(launch, names)
            assert isinstance(launch.kwargs["grid"][0][0], Node)  # type: ignore[index]
            assert arguments["D"] == 20
            assert isinstance(arguments.get("tiles", arguments.get("splits")), Node)


def test_the_mixture_saves_its_inputs_and_two_numbers_a_draw(capture: Capture) -> None:
    _, backward = capture(mixture_log_prob, *mixture(7, 300, 20))
    inputs = [node.meta["val"] for node in backward.graph.nodes if node.op == "placeholder"]
    # The gradient of the result, z, mu and logvar, the largest score and the sum.
    assert sorted(x.dim() for x in inputs if isinstance(x, Tensor)) == [1, 1, 1, 2, 2, 2]


def _fused_layer(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return linear_bernoulli_log_prob(hidden, weight, bias, x, "bfloat16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [torch.uint8, torch.bool])
def test_the_last_layer_is_two_launches_forward_and_five_backward(
    targets: torch.dtype, dtype: torch.dtype, capture: Capture
) -> None:
    """At any number of rows, as long as their residuals are one chunk."""
    few, many = (last_layer.inputs((3, b, 19, 20), dtype, targets) for b in (33, 5000))
    forward, backward = capture(_fused_layer, *few, then=many)
    # The sum of the parts is a launch of its own, since their number is open.
    log_prob, of_parts = launches(forward)
    assert_writes_only(log_prob, {"out_ptr"})
    assert_symbolic(log_prob, "P", "n_images")
    assert_writes_only(of_parts, {"out_ptr"})
    assert_nothing_but(forward, "view")
    residual, of_bias, weight, of_weight, hidden = launches(backward)
    assert_writes_only(residual, {"residual_ptr", "grad_bias_ptr"})
    assert_symbolic(residual, "P", "n_images")
    for launch in (of_bias, weight, of_weight, hidden):
        assert_writes_only(launch, {"out_ptr"})
    grid: Any = weight.kwargs["grid"]
    assert isinstance(grid[0][0], Node)  # the parts of the sum over rows
    assert_nothing_but(backward, "view", "slice", "t", "transpose")


@pytest.mark.parametrize(("wanted", "count"), [("hidden", 2), ("weight", 3), ("bias", 2)])
def test_of_the_last_layer_only_the_wanted_gradients_are_launched(
    wanted: str, count: int, capture: Capture
) -> None:
    given = last_layer.inputs((3, 7, 19, 20))
    alone = (t if name == wanted else t.detach() for name, t in given._asdict().items())
    _, backward = capture(_fused_layer, *alone)
    assert len(launches(backward)) == count


def test_chunks_of_the_last_layer_are_not_copied(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph for each number of chunks, of which each writes to its part of the gradient."""
    monkeypatch.setattr(linear_bernoulli.kernel, "CHUNK", 1)  # 128 rows at least
    three, more = (last_layer.inputs((3, b, 19, 20)) for b in (100, 110))
    _, backward = capture(_fused_layer, *three, then=more)
    products = [launch for launch in launches(backward) if _is_product(launch)]
    assert len(products) == 2 * 3
    called = {n.target for n in backward.graph.nodes if isinstance(n.target, torch._ops.OpOverload)}
    assert not {op for op in called if "scatter" in op.name() or "copy" in op.name()}


def _is_product(launch: Node) -> bool:
    arguments: Any = launch.kwargs["kwargs"]
    return "b_ptr" in arguments


def test_a_targets_gradient_launches_no_kernel(capture: Capture) -> None:
    hidden, weight, bias, x = last_layer.inputs((3, 7, 19, 20), targets=torch.float32)
    _, backward = capture(_fused_layer, hidden.detach(), weight.detach(), bias.detach(), x)
    assert not launches(backward)


def test_the_last_layer_saves_its_inputs_alone(capture: Capture) -> None:
    _, backward = capture(_fused_layer, *last_layer.inputs((3, 7, 19, 20)))
    inputs = [node.meta["val"] for node in backward.graph.nodes if node.op == "placeholder"]
    # The gradient (S, B) of the result, hidden (S, B, H), weight (P, H), bias (P,) and x (B, P).
    saved = sorted((x.dim(), x.shape[-1] in (19, 20)) for x in inputs if isinstance(x, Tensor))
    assert saved == [(1, True), (2, False), (2, True), (2, True), (3, True)]
    # Only one saved tensor has three dimensions: hidden, so not S·B·P logits.
    assert sum(isinstance(x, Tensor) and x.dim() == 3 for x in inputs) == 1
