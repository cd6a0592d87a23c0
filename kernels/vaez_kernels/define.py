"""An op, declared once: its schema, fake, autograd, eager path and torch.func transforms.

The arguments of an `Op` are a NamedTuple of tensors followed by settings. An `Op` has two
directions. Each direction has a launch of Triton kernels and a PyTorch fallback, with the same
signature:

- forward(arguments) → the results, followed by the tensors that are kept for backward;
- backward(arguments, kept, grads, needs) → the gradient of each differentiable argument. `grads`
  are the gradients of the results, and `needs` says which gradients are wanted.

Both return a tuple. A tensor that is not wanted may be None or empty: the caller drops it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import cycle
from types import ModuleType
from typing import Any, cast, get_type_hints

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch._library import triton as library
from torch._library.custom_ops import CustomOpDef

from .backend import (
    goes_through_op,
    is_plain,
    is_recorded,
    no_second_derivative,
    same_backend,
    triton,
    uses_triton,
)

# None stands for a tensor that is not wanted.
Tensors = tuple[Any, ...]
OPTIONAL = Tensor | None


class Op:
    """A callable op of `torch.ops.vaez`; the module docstring describes its parts.

    Args:
        name: NAME_forward and NAME_backward are registered, or only NAME if there is no backward.
        kernel, twin: the modules of the Triton launches and of the PyTorch fallback, each with the
            functions `forward` and `backward`. `twin.Arguments` are tensors, the differentiable
            ones first, followed by settings.
        forward, backward: the Triton kernels that each direction launches.
        results: names of the tensors that the caller gets.
        kept: names of the additional tensors that forward returns for backward.
        differentiable: how many of the arguments have a gradient.
        unasked: arguments → the positions of the results that are not requested.
        opaque: arguments → empty tensors like those of forward. If given, compilers do not trace
            into the fallback. Used for fallbacks that loop over tiles.
    """

    def __init__(
        self,
        name: str,
        kernel: ModuleType,
        twin: ModuleType,
        *,
        forward: tuple[Any, ...],
        backward: tuple[Any, ...] = (),
        results: tuple[str, ...] = ("result",),
        kept: tuple[str, ...] = (),
        differentiable: int = 0,
        unasked: Callable[[Any], tuple[int, ...]] = lambda arguments: (),
        opaque: Callable[[Any], Tensors] | None = None,
    ) -> None:
        self.arguments: Callable[..., Any] = twin.Arguments
        hints = get_type_hints(twin.Arguments)
        self.tensors = sum(hint in (Tensor, OPTIONAL) for hint in hints.values())
        self.kernel, self.twin = kernel, twin
        self.results, self.differentiable, self.unasked = len(results), differentiable, unasked
        self.traced = _registered(
            f"{name}_forward" if differentiable else name,
            forward,
            lambda by_kernel, *args: self._module(by_kernel).forward(*args),
            self._forward_arguments,
            opaque,
            hints,
            len(results) + len(kept),
        )
        self.transformed = _transformed(self.traced, self._setup_context, self._func_backward)
        if not differentiable:
            return
        self.traced.register_autograd(self._traced_backward, setup_context=self._setup_context)
        names, of = list(hints), hints.items()
        self.traced_backward = _registered(
            f"{name}_backward",
            backward,
            lambda by_kernel, *args: self._module(by_kernel).backward(*args),
            self._backward_arguments,
            None if opaque is None else self._like_gradients,
            dict.fromkeys((f"grad_{result}" for result in results), OPTIONAL)
            | {name: hint for name, hint in of if hint in (Tensor, OPTIONAL)}
            | dict.fromkeys(kept, OPTIONAL)
            | {name: hint for name, hint in of if hint not in (Tensor, OPTIONAL)}
            | {f"need_{name}": bool for name in names[:differentiable]},
            differentiable,
        )
        self.traced_backward.register_autograd(no_second_derivative)
        self.transformed_backward = _transformed(
            self.traced_backward, lambda ctx, inputs, output: None, no_second_derivative
        )
        self.eager = _eager(self, name)

    def __call__(self, *args: Any) -> Any:
        """The results: a tensor, or a tuple of several. `args` are the NamedTuple's fields."""
        if is_plain(*args[: self.tensors]):
            if self.differentiable and is_recorded(*args[: self.tensors]):
                return self.eager.apply(*args)
            found = self._module(uses_triton(args[0])).forward(self.arguments(*args))
            return found[0] if self.results == 1 else found[: self.results]
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            _check_transforms()
            outputs = self.transformed.apply(*args)
        else:
            outputs = self.traced(*args)
        if isinstance(outputs, Tensor):
            return outputs
        return outputs[0] if self.results == 1 else outputs[: self.results]

    def _module(self, by_kernel: bool) -> ModuleType:
        return self.kernel if by_kernel else self.twin

    # From the flat arguments of a registered op to the arguments of a direction.

    def _forward_arguments(self, *args: Any) -> tuple[Any, ...]:
        return (self.arguments(*args),)

    def _backward_arguments(self, *args: Any) -> tuple[Any, ...]:
        grads, args = args[: self.results], args[self.results :]
        tensors, args = args[: self.tensors], args[self.tensors :]
        needs, args = args[-self.differentiable :], args[: -self.differentiable]
        settings = len(self.arguments._fields) - self.tensors  # type: ignore[attr-defined]
        kept = args[: len(args) - settings]
        return self.arguments(*tensors, *args[len(kept) :]), kept, grads, needs

    def _like_gradients(self, arguments: Any, kept: Any, grads: Any, needs: Any) -> Tensors:
        return tuple(
            tensor.new_empty(tensor.shape) if need else None
            for tensor, need in zip(arguments, needs, strict=False)
        )

    # Autograd of the registered op and of its torch.func version.

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        output = output if isinstance(output, tuple) else (output,)
        kept = output[self.results :]
        unasked = (output[i] for i in self.unasked(self.arguments(*inputs)))
        ctx.mark_non_differentiable(*((*kept, *unasked) if self.differentiable else output))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[: self.tensors], *kept)
        ctx.settings = inputs[self.tensors :]
        ctx.triton = uses_triton(inputs[0])

    def _traced_backward(self, ctx: Any, *grads: Tensor | None) -> Tensors:
        return self._through_op(ctx, grads[: self.results], self.traced_backward)

    def _func_backward(self, ctx: Any, *grads: Tensor | None) -> Tensors:
        return self._through_op(ctx, grads[: self.results], self.transformed_backward.apply)

    def _through_op(self, ctx: Any, grads: Tensors, op: Callable[..., Any]) -> Tensors:
        needs = ctx.needs_input_grad[: self.differentiable]
        if all(grad is None for grad in grads) or not any(needs):
            return (None,) * len(ctx.needs_input_grad)
        with same_backend(ctx.triton):
            found = op(*grads, *ctx.saved_tensors, *ctx.settings, *needs)
        found = found if isinstance(found, tuple) else (found,)
        return self.per_argument(ctx, found, needs)

    def per_argument(self, ctx: Any, found: Tensors, needs: tuple[bool, ...]) -> Tensors:
        """The tuple that autograd expects: a gradient or None for each argument."""
        wanted = [grad if need else None for grad, need in zip(found, needs, strict=True)]
        return (*wanted, *(None,) * (len(ctx.needs_input_grad) - self.differentiable))


def _eager(op: Op, name: str) -> Any:
    """An autograd.Function for eager calls.

    It skips the dispatcher, which would add 40 µs, a third of a call at 128×20.
    """
    arguments, tensors, results = op.arguments, op.tensors, op.results
    kernel, twin, differentiable = op.kernel, op.twin, op.differentiable

    def forward(ctx: Any, *args: Any) -> Any:
        ctx.triton = uses_triton(args[0])  # for backward, even outside the `use_backend` block
        ctx.settings = args[tensors:]
        ctx.set_materialize_grads(False)
        outputs = (kernel if ctx.triton else twin).forward(arguments(*args))
        ctx.save_for_backward(*args[:tensors], *outputs[results:])
        return outputs[0] if results == 1 else outputs[:results]

    def backward(ctx: Any, *grads: Tensor | None) -> Tensors:
        if goes_through_op(*grads):
            return op._traced_backward(ctx, *grads)
        needs, saved = ctx.needs_input_grad[:differentiable], ctx.saved_tensors
        if grads[0] is None and all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        given = arguments(*saved[:tensors], *ctx.settings)
        module = kernel if ctx.triton else twin
        found = module.backward(given, saved[tensors:], grads, needs)
        return op.per_argument(ctx, found, needs)

    return _function(f"{name}_op", forward=forward, backward=backward, jvp=_no_forward_mode)


def _transformed(
    op: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Any:
    """The registered op for torch.func: vmap calls it once per slice."""

    def forward(*args: Any) -> Any:
        return op(*args)

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ValueError("vaez_kernels: vmap needs at least one slice, got a dimension of 0")
        slices = [
            transformed.apply(
                *(
                    x if dim is None else x.select(dim, i)
                    for x, dim in zip(args, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(slices[0], Tensor):
            return torch.stack(slices), 0
        stacked = tuple(torch.stack(results) for results in zip(*slices, strict=True))
        return stacked, (0,) * len(stacked)

    transformed: Any = _function(
        "transformed_op",
        forward=forward,
        setup_context=setup_context,
        backward=backward,
        vmap=vmap,
        jvp=_no_forward_mode,
    )
    return transformed


def _function(name: str, **members: Callable[..., Any]) -> Any:
    static = {key: staticmethod(value) for key, value in members.items()}
    return type(name, (torch.autograd.Function,), static)


def _check_transforms() -> None:
    keys = [level.key() for level in retrieve_all_functorch_interpreters()]
    if TransformType.Functionalize in keys:
        raise RuntimeError("vaez_kernels: torch.func.functionalize cannot go through the ops")


def _no_forward_mode(*_: Any) -> None:
    raise RuntimeError(
        "vaez_kernels: the ops have no forward-mode derivative (jvp, jacfwd); use torch.func.vjp "
        "or jacrev, or the formulas of vaez_kernels.reference"
    )


def _registered(
    name: str,
    kernels: tuple[Any, ...],
    run: Callable[..., Tensors],
    unpacked: Callable[..., tuple[Any, ...]],
    opaque: Callable[..., Tensors] | None,
    hints: dict[str, Any],
    outputs: int,
) -> CustomOpDef:
    """`torch.ops.vaez.NAME`, which launches these kernels.

    `run(by_kernel, *unpacked(*args))` runs one direction; `unpacked` groups the flat arguments.
    """

    signature = inspect.Signature(
        [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hint)
            for key, hint in hints.items()
        ],
        return_annotation=tuple[(Tensor,) * outputs] if outputs > 1 else Tensor,  # type: ignore[misc]
    )

    def registrable(run: Callable[..., Tensors]) -> Callable[..., Any]:
        def body(*args: Any) -> Any:
            given = unpacked(*args)
            # An op can only return tensors, so an empty tensor replaces one that is not wanted. An
            # empty gradient has the dtype of its argument.
            dtypes = _dtypes(given[0][:outputs]) if len(given) > 1 else [torch.float32]
            found = tuple(
                given[0][0].new_empty((0,), dtype=dtype) if tensor is None else tensor
                for dtype, tensor in zip(cycle(dtypes), run(*given), strict=False)
            )
            return found if outputs > 1 else found[0]

        body.__signature__ = signature  # type: ignore[attr-defined]
        return body

    launch, twin = registrable(partial(run, True)), registrable(partial(run, False))
    if opaque is not None:
        # Defined by schema, because the wrapper of custom_op costs as much as 16,384 normals.
        schema = torch.library.infer_schema(twin, mutates_args=())
        tags = (torch.Tag.pt2_compliant_tag,)
        torch.library.define(f"vaez::{name}_twin", schema, tags=tags)
        torch.library.impl(f"vaez::{name}_twin", "default")(twin)
        torch.library.register_fake(f"vaez::{name}_twin")(registrable(opaque))
        twin = getattr(torch.ops.vaez, f"{name}_twin")

    on = next(i for i, hint in enumerate(hints.values()) if hint is Tensor)

    def either(*args: Any) -> Any:
        return launch(*args) if uses_triton(args[on]) else twin(*args)

    either.__signature__ = signature  # type: ignore[attr-defined]
    return _triton_op(f"vaez::{name}", either, kernels)


def _dtypes(tensors: Tensors) -> list[torch.dtype]:
    return [torch.float32 if x is None else x.dtype for x in tensors]


def _triton_op(name: str, function: Callable[..., Any], kernels: tuple[Any, ...]) -> CustomOpDef:
    """`torch.library.triton_op`, told which kernels the function launches.

    PyTorch caches compiled code on disk, keyed by the sources of an op's kernels. By default it
    searches the source of the function for them and imports inductor to do so, which took 2.8 of
    the 3.2 s of processor time of `import vaez_kernels`. Without triton it would also warn for each
    op.
    """
    # Interpreted kernels, and the plain functions that `jit` returns without triton, are never
    # compiled.
    compiled: list[object] = [
        kernel for kernel in kernels if triton and isinstance(kernel, triton.runtime.JITFunction)
    ]
    search = library.get_inner_triton_kernels

    def found(fn: Callable[..., Any]) -> list[object]:
        # Another thread may be registering another op.
        return compiled if fn is function else search(fn)

    library.get_inner_triton_kernels = found
    try:
        return cast(CustomOpDef, torch.library.triton_op(name, function, mutates_args=()))
    finally:
        library.get_inner_triton_kernels = search
