"""The processes that share a run, as torchrun starts them; alone, this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

# A rank that died closes its connections at once; this is for one that hangs. Between two meetings
# ranks compile, which takes a minute and a half from cold caches on a busy core.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """Ranks that hold the same weights, each computing its share of every batch's rows."""

    rank: int = 0
    size: int = 1
    store: Store | None = None

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
        everyone = dist.group.WORLD
        assert everyone is not None
        return collectives.all_reduce(tensor, "sum", everyone)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """All ranks' shares of `count` columns, (…, len(share)) each, in order: (…, count)."""
        if self.size == 1:
            return rows
        everyone = rows.new_zeros(*rows.shape[:-1], count)
        everyone[..., self.share(count).start : self.share(count).stop] = rows
        return collectives.wait_tensor(self.sum(everyone))

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Whether the flag of any rank is set; every rank must ask."""
        return bool(self.sum(torch.tensor([float(flag)], device=device)).item())

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            dist.barrier()

    def first_to(self, what: str) -> bool:
        """Whether this rank is the first to claim `what`; for when ranks can no longer agree."""
        if self.store is None:
            return True
        try:
            return self.store.add(f"vaez_fast/{what}", 1) == 1
        except RuntimeError:  # the store died, too: better twice than never
            return True


ALONE = World()


class RankError(RuntimeError):
    """Another rank is gone."""


def is_rank_failure(error: BaseException) -> bool:
    """Whether `error` says that another rank is gone: gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


def started_by_torchrun() -> bool:
    """Whether this process is one of several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(device: torch.device) -> torch.device:
    """The device of this rank: of the GPUs of a machine, each of its ranks has one."""
    if device.type == "cuda" and device.index is None and started_by_torchrun():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


@contextmanager
def joined(device: torch.device, patience: timedelta = PATIENCE) -> Iterator[World]:
    """The world of a process that torchrun started: gloo on CPUs, nccl on GPUs.

    Of the errors of all ranks one is raised; the other ranks exit silently, with status 1.

    Args:
        device: this rank's.
        patience: how long a rank waits for another that is alive.

    Raises:
        RankError: another rank is gone, or cannot be reached.
    """
    if not started_by_torchrun():
        yield ALONE
        return
    store, rank, size = next(rendezvous("env://", timeout=patience))
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The prefix keeps our counters apart from the group's own keys.
    group_store = PrefixStore("group", store)
    dist.init_process_group(
        backend, store=group_store, rank=rank, world_size=size, timeout=patience
    )
    world = World(rank, size, store)
    try:
        yield world
    except Exception as error:
        if not world.first_to("say what went wrong"):
            raise SystemExit(1) from None
        if is_rank_failure(error):
            raise RankError("another rank is gone") from None
        raise
    finally:
        dist.destroy_process_group()
