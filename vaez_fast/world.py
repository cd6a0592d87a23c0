"""The processes that share a run, as torchrun starts them; alone, this one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .config import ConfigError
from .errors import first_line

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# torch.distributed is imported where ranks are: there are builds of PyTorch without it.

# A rank that died closes its connections at once; this is for one that hangs. Between two meetings
# ranks compile, which takes a minute and a half from cold caches on a busy core.
PATIENCE = timedelta(minutes=10)

_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class World:
    """Ranks that hold the same weights, each computing its share of every batch's rows."""

    rank: int = 0
    size: int = 1
    store: Store | None = None
    _claimed: set[str] = field(default_factory=set)  # what this rank was the first to do

    def share(self, count: int) -> range:
        """This rank's rows of `count`: contiguous, in the order of ranks, sizes differ by one."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of a tensor of one shape; may be traced into a compiled graph.

        Raises:
            RuntimeError: a rank is gone.
        """
        if self.size == 1:
            return tensor
        import torch.distributed as dist
        from torch.distributed import _functional_collectives as collectives

        everyone = dist.group.WORLD
        assert everyone is not None
        return collectives.all_reduce(tensor, "sum", everyone)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """All ranks' shares of `count` columns, (…, len(share)) each, in order: (…, count)."""
        if self.size == 1:
            return rows
        everyone = rows.new_zeros(*rows.shape[:-1], count)
        everyone[..., self.share(count).start : self.share(count).stop] = rows
        return self.sum(everyone).clone()  # the clone waits for the sum

    def any(self, flag: bool) -> bool:
        """Whether the flag of any rank is set; every rank must ask. On the host: no GPU waits."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([float(flag)])).item())

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.any(False)

    def first_then_others(self, load: Callable[[], _Loaded]) -> _Loaded:
        """`load()` on the first rank and then on the others, who find what it downloaded."""
        if self.rank > 0:
            self.wait()
        loaded = load()
        if self.rank == 0:
            self.wait()
        return loaded

    def first_to_speak(self) -> bool:
        """Whether this rank is the first to have something to say about the end of the run."""
        if self.store is None or "speak" in self._claimed:
            return True
        try:
            first = self.store.add("vaez_fast/speak", 1) == 1
        except RuntimeError:  # the store died, too: better twice than never
            return True
        if first:
            self._claimed.add("speak")
        return first


ALONE = World()


class RankError(RuntimeError):
    """Another rank is gone."""


def is_rank_failure(error: BaseException) -> bool:
    """Whether `error` says that another rank is gone: gloo raises plain RuntimeErrors."""
    import torch.distributed as dist

    if type(error) is RuntimeError:
        return "gloo" in str(error).lower()
    return dist.is_available() and isinstance(error, dist.DistError)


def started_by_torchrun() -> bool:
    """Whether this process is one of several ranks."""
    return _number("WORLD_SIZE", "1") > 1


def _number(name: str, default: str) -> int:
    if not (value := os.environ.get(name, default)).isdecimal():
        raise RankError(f"{name} must be a number, as torchrun sets it, got {value!r}")
    return int(value)


def own_device(device: torch.device) -> torch.device:
    """The device of this rank: of the GPUs of a machine, each of its ranks has one.

    Raises:
        ConfigError: one GPU was named, and there are several ranks.
    """
    if device.type != "cuda" or not started_by_torchrun():
        return device
    if device.index is not None:
        raise ConfigError(f"device must be auto, cpu or cuda under torchrun, got '{device}'")
    return torch.device("cuda", _number("LOCAL_RANK", "0"))


def _listen_no_more() -> None:
    # torchrun ends all ranks when one has failed, and must not cut short what that one says.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def joined(patience: timedelta = PATIENCE) -> Iterator[World]:
    """The world of a process that torchrun started: gloo for CPU tensors, NCCL for CUDA's.

    Of the errors of all ranks one is raised; the other ranks exit silently, with status 1.

    Args:
        patience: how long a rank waits for another that is alive.

    Raises:
        RankError: another rank is gone, or cannot be reached, or torchrun's variables are not set.
    """
    if not started_by_torchrun():
        yield ALONE
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", timeout=patience))
    except (ValueError, dist.DistError) as error:
        raise RankError(f"WORLD_SIZE says several ranks, and {first_line(error)}") from None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # The prefix keeps our counter apart from the group's own keys.
    group_store = PrefixStore("group", store)
    dist.init_process_group(
        backend, store=group_store, rank=rank, world_size=size, timeout=patience
    )
    world = World(rank, size, store)
    try:
        yield world
    except Exception as error:
        _listen_no_more()
        if not world.first_to_speak():
            raise SystemExit(1) from None
        if is_rank_failure(error):
            raise RankError("another rank is gone") from None
        raise
    finally:
        dist.destroy_process_group()
