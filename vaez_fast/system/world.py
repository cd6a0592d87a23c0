"""The processes that share a run: those that torchrun started, or this one alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .errors import ConfigError, UserError, first_line, shown
from .stopping import Signals, Stopped

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# torch.distributed is imported only where there are ranks: some builds of PyTorch lack it.

# How long to wait for a rank that hangs; a rank that died closes its connections at once. Between
# two collectives ranks compile, which takes a minute and a half with cold caches on a busy core.
SECONDS = 600.0
LONG_SECONDS = 7 * 24 * 3600.0  # if a rank that finished its share waits for the others
MOST_SECONDS = 30 * 24 * 3600
VARIABLE = "VAEZ_RANK_PATIENCE"

STORE_SECONDS = 5.0  # for a reply of the store
WAIT_SECONDS, POLL_SECONDS = 1.0, 0.05

_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class World:
    """The ranks of a run. In training, each computes its share of the rows of every batch."""

    rank: int = 0
    size: int = 1
    store: Store | None = None
    _claimed: set[str] = field(default_factory=set)  # where this rank was the first

    def share(self, count: int) -> range:
        """This rank's rows of `count`: contiguous, in rank order; sizes differ by at most 1."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the ranks; may be traced into a compiled graph.

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
        """Concatenates the shares (…, len(share)) of all ranks, in order: (…, count)."""
        if self.size == 1:
            return rows
        everyone = rows.new_zeros(*rows.shape[:-1], count)
        everyone[..., self.share(count).start : self.share(count).stop] = rows
        return self.sum(everyone).clone()  # the clone waits for the sum

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set; all ranks must call. On the host, so no GPU waits."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([float(flag)])).item())

    def wait(self) -> None:
        """Return when every rank has called this."""
        self.any(False)

    def first_then_others(self, load: Callable[[], _Loaded]) -> _Loaded:
        """`load()` on the first rank, then on the others, which find what the first downloaded."""
        if self.rank > 0:
            self.wait()
        loaded = load()
        if self.rank == 0:
            self.wait()
        return loaded

    def first_to_speak(self) -> bool:
        """Whether this rank is the first to report how the run ended."""
        if self.store is None or "speak" in self._claimed:
            return True
        # In a thread, because the rank with the store may hang, or another wait may use the store.
        first: list[bool] = []
        asking = threading.Thread(target=_ask_for_words, args=(self.store, first), daemon=True)
        asking.start()
        asking.join(STORE_SECONDS)
        if first == [False]:
            return False
        self._claimed.add("speak")  # also without a reply: better two reports than none
        return True


ALONE = World()
_world = ALONE  # the world that this process has joined


def _ask_for_words(store: Store, first: list[bool]) -> None:
    with suppress(RuntimeError):  # the store died, too
        first.append(store.add("vaez_fast/speak", 1) == 1)


def may_speak() -> bool:
    """Whether this process should report a failure; if not, another rank has reported it.

    Ranks that have not joined yet agree through torchrun's store. Without a store, each reports.
    """
    global _world
    if _world.store is None and _has_agent():
        _listen_no_more()
        with suppress(Exception):
            _reach(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), time.monotonic())
            store, rank, size = next(_rendezvous(timedelta(seconds=STORE_SECONDS)))
            _world = World(rank, size, store)
    return _world.first_to_speak()


class RankError(UserError, RuntimeError):
    """Another rank is gone, or does not answer."""


def is_rank_failure(error: BaseException) -> bool:
    """Whether `error` says that another rank is gone; gloo raises plain RuntimeErrors."""
    import torch.distributed as dist

    if type(error) is RuntimeError:
        return "gloo" in str(error).lower()
    return dist.is_available() and isinstance(error, dist.DistError)


def loss_of(error: BaseException) -> str:
    """What happened to the other rank, according to an error that `is_rank_failure` accepts."""
    if "timed out" in str(error).lower() or "timeout" in str(error).lower():
        return f"another rank did not answer in time ({VARIABLE})"
    return "another rank is gone"


def patience(otherwise: float = SECONDS) -> timedelta:
    """How long a rank waits for another: the environment variable's value, or `otherwise`.

    Raises:
        ConfigError: the variable is not a positive number of seconds.
    """
    try:
        seconds = float(os.environ.get(VARIABLE) or otherwise)
        if not 0 < seconds <= MOST_SECONDS:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{VARIABLE} must be a number of seconds, above 0 and at most {MOST_SECONDS}, "
            f"got {shown(os.environ[VARIABLE])}"
        ) from None
    return timedelta(seconds=seconds)


def started_by_torchrun() -> bool:
    """Whether this process is one of several ranks."""
    return _number("WORLD_SIZE", "1") > 1


def _number(name: str, default: str) -> int:
    if not (value := os.environ.get(name, default)).isdecimal():
        raise RankError(f"{name} must be a number, as torchrun sets it, got {value!r}")
    return int(value)


def own_device(device: torch.device) -> torch.device:
    """The device of this rank: each rank of a machine has its own GPU.

    Raises:
        ConfigError: a single GPU was named, and there are several ranks.
    """
    if device.type != "cuda" or not started_by_torchrun():
        return device
    if device.index is not None:
        raise ConfigError(f"device must be auto, cpu or cuda under torchrun, got '{device}'")
    return torch.device("cuda", _number("LOCAL_RANK", "0"))


def _listen_no_more() -> None:
    # torchrun stops all ranks when one has failed; the failed rank must finish its message first.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def joined(
    signals: Signals | None = None,
    last_words: Callable[[Stopped], None] | None = None,
    otherwise: float = SECONDS,
) -> Iterator[World]:
    """The world of a process that torchrun started: gloo for CPU tensors, NCCL for CUDA tensors.

    If ranks fail, only one of them raises its error; the others exit silently with status 1.

    Args:
        signals: signals that end the process even while it waits for other ranks.
        last_words: reports that a signal stopped the process while it waited.
        otherwise: seconds to wait for another rank after joining, if the environment variable is
            not set.

    Raises:
        RankError: another rank is gone, does not join or does not answer, or torchrun's variables
            are not set.
        ConfigError: the environment variable is not a number of seconds.
    """
    global _world
    if not started_by_torchrun():
        yield ALONE
        return
    import torch.distributed as dist

    # Imported before the group exists, because its functions take the group of that moment as a
    # default. They would keep a group alive after its end, with gloo's threads; one of these that
    # drops its last tensor while Python ends aborts the process (seen under load, torch 2.14.1).
    import torch.distributed.nn.functional
    from torch.distributed.distributed_c10d import PrefixStore

    longest = patience(otherwise)

    def end(stopped: Stopped) -> None:
        if _world.first_to_speak() and last_words is not None:
            last_words(stopped)
        os._exit(stopped.exit_status)

    with signals.heard_in_waits(end) if signals is not None else nullcontext():
        try:
            store, rank, size = _meet(patience())
        except (ValueError, dist.DistError) as error:
            raise RankError(f"WORLD_SIZE says several ranks, and {first_line(error)}") from None
        store.set_timeout(longest)
        world = _world = World(rank, size, store)
        try:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            # The prefix separates the group's keys from our counters.
            group_store = PrefixStore("group", store)
            dist.init_process_group(
                backend, store=group_store, rank=rank, world_size=size, timeout=longest
            )
            yield world
        except Exception as error:
            _listen_no_more()
            if not world.first_to_speak():
                raise SystemExit(1) from None
            if is_rank_failure(error):
                raise RankError(loss_of(error)) from None
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _meet(patience: timedelta) -> tuple[Store, int, int]:
    """The store of all ranks, this process's rank and the number of ranks, once all have joined.

    It waits in Python, where signals are handled; PyTorch would wait in C++.
    """
    import torch.distributed as dist

    deadline = time.monotonic() + patience.total_seconds()
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    size = _number("WORLD_SIZE", "1")
    if os.environ.get("RANK") == "0" and host and port and not _has_agent():
        number = _number("MASTER_PORT", "0")
        store: Store = dist.TCPStore(  # type: ignore[attr-defined]
            host, number, size, True, patience, wait_for_workers=False, multi_tenant=True
        )
        rank = 0
    else:
        if host and port:
            _reach(host, _number("MASTER_PORT", "0"), deadline)
        store, rank, size = next(_rendezvous(patience))
    count = store.add("vaez_fast/here", 1)
    while count < size:
        if time.monotonic() > deadline:
            raise RankError(
                f"only {count} of {size} ranks came within {patience.total_seconds():g} s "
                f"({VARIABLE} says how many seconds to wait for them)"
            )
        time.sleep(POLL_SECONDS)
        count = store.add("vaez_fast/here", 0)
    return store, rank, size


def _reach(host: str, port: int, deadline: float) -> None:
    # PyTorch would retry too, but print a page of C++ for every failed attempt.
    while True:
        try:
            socket.create_connection((host, port), WAIT_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RankError(
                    f"the first rank cannot be reached at {host}, port {port}: {error} "
                    f"({VARIABLE} says how many seconds to wait for it)"
                ) from None
        time.sleep(POLL_SECONDS)


def _rendezvous(timeout: timedelta) -> Iterator[tuple[Store, int, int]]:
    from torch.distributed.rendezvous import rendezvous

    return rendezvous("env://", timeout=timeout)


def _has_agent() -> bool:
    # The store is then in torchrun's own process and not in a rank.
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
