"""A program, started by test_signals.py, that runs ranks which wait for others.

Every rank is a fork of this process with its own environment variables, so PyTorch is imported
once. All cases run at the same time. `python -m tests.system.waiting_ranks` prints, by case and
rank, the exit status, our lines on stderr, and the seconds from the signal (or the start) to the
end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

import vaez_fast.runs.trained  # noqa: F401
from vaez_fast.cli.main import main
from vaez_fast.system import stopping, world
from vaez_fast.system.messages import say
from vaez_fast.system.stopping import Signals, Stopped

SILENT: list[socket.socket] = []  # servers that never answer


def free_port() -> int:
    with closing(socket.socket()) as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])


def silent_port() -> int:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(8)
    SILENT.append(server)
    return int(server.getsockname()[1])


class Rank:
    """A fork; `said` is known once it has ended."""

    def __init__(self, run: Callable[[], int], **variables: object) -> None:
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._ending: threading.Thread | None = None
        self._status, self._seconds = 0, 0.0
        self._began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update({name: str(value) for name, value in variables.items()})
            for stream in (1, 2):  # so that a rank that is left over holds no pipe of ours open
                os.dup2(self._file.fileno(), stream)
            status = 99
            try:
                status = run()
            finally:
                os._exit(status)

    def signal(self, number: int) -> None:
        self._began = time.monotonic()
        os.kill(self.pid, number)
        # In a thread, so that its end is noticed while this process waits for another rank.
        self._ending = threading.Thread(target=self._wait, daemon=True)
        self._ending.start()

    def _wait(self, longest: float = 30.0) -> None:
        deadline = time.monotonic() + longest
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                found = os.waitpid(self.pid, 0)
                break
            time.sleep(0.02)
        self._status = os.waitstatus_to_exitcode(found[1])
        self._seconds = time.monotonic() - self._began

    def wait_for(self, word: str) -> None:
        while word not in Path(self._file.name).read_text():
            time.sleep(0.02)

    def end(self) -> dict[str, Any]:
        if self._ending is None:
            self._wait()
        else:
            self._ending.join()
        said = Path(self._file.name).read_text()
        ours = [line for line in said.splitlines() if line.startswith("vaez-fast")]
        return {"status": self._status, "said": ours, "seconds": self._seconds}


def evaluating() -> int:
    return main(["evaluate", "nowhere"])


def mistyped() -> int:
    return main(["train", "--lr", "fast"])


def hanging(held: bool) -> Callable[[], int]:
    """Two ranks of which the second hangs; the first one waits, within a step if `held`."""

    def run() -> int:
        stopping.DEAF_SECONDS_HELD = 4.0
        stopping.PATIENT_SECONDS = 1.0
        try:
            with Signals() as signals, world.joined(signals, lambda s: say("x", str(s))) as ranks:
                ranks.wait()
                print("joined", file=sys.stderr, flush=True)
                if ranks.rank == 1:
                    os.kill(os.getpid(), signal.SIGSTOP)
                if held:
                    signals.hold()
                ranks.wait()
        except Stopped as stopped:
            say("x", f"in Python, {stopped}")
            return stopped.exit_status
        except world.RankError as error:
            say("x", f"error: {error}")
            return 1
        return 0

    return run


def pair(run: Callable[[], int], **variables: object) -> tuple[Rank, Rank]:
    port = free_port()
    common = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **variables}
    return Rank(run, RANK=0, **common), Rank(run, RANK=1, **common)


def agent(port: int) -> Rank:
    """A process that holds the store, as torchrun does for its ranks."""

    def run() -> int:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", port, 2, True, wait_for_workers=False
        )
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)
        return int(store is None)

    return Rank(run)


def every_case() -> dict[str, Any]:
    local: dict[str, Any] = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    brief = {"VAEZ_RANK_PATIENCE": 1}
    ports = [free_port() for _ in range(5)]
    ended = {
        "nobody comes": Rank(evaluating, RANK=0, MASTER_PORT=ports[0], **local, **brief),
        "no first rank": Rank(evaluating, RANK=1, MASTER_PORT=ports[1], **local, **brief),
    }
    waiting = {
        "first waits, SIGINT": (Rank(evaluating, RANK=0, MASTER_PORT=ports[2], **local), 2),
        "first waits, SIGTERM": (Rank(evaluating, RANK=0, MASTER_PORT=ports[3], **local), 15),
        "second waits, SIGINT": (Rank(evaluating, RANK=1, MASTER_PORT=ports[4], **local), 2),
        "in C++, SIGTERM": (Rank(evaluating, RANK=1, MASTER_PORT=silent_port(), **local), 15),
        "in C++, SIGINT": (Rank(evaluating, RANK=1, MASTER_PORT=silent_port(), **local), 2),
    }
    pairs = {
        "hang": pair(hanging(held=False), VAEZ_RANK_PATIENCE=600),
        "hang in a step, twice": pair(hanging(held=True), VAEZ_RANK_PATIENCE=600),
        "hang in a step": pair(hanging(held=True), VAEZ_RANK_PATIENCE=600),
        "hang, patience": pair(hanging(held=False), VAEZ_RANK_PATIENCE=5),
    }
    found = {}
    for first, _ in pairs.values():
        first.wait_for("joined")
    time.sleep(1.5)  # by then all of them wait
    for rank, number in waiting.values():
        rank.signal(number)
    for first, _ in list(pairs.values())[:3]:
        first.signal(signal.SIGTERM)
    time.sleep(1.5)
    again = pairs["hang in a step, twice"][0]
    with suppress(ProcessLookupError):  # if it ended too early, the test will fail
        os.kill(again.pid, signal.SIGINT)
    for name, (rank, _) in waiting.items():
        found[name] = rank.end()
    for name, rank in ended.items():
        found[name] = rank.end()
    for name, (first, second) in pairs.items():
        found[name] = first.end()
        os.kill(second.pid, signal.SIGKILL)
        second.end()
    return found | torchruns()


def torchruns() -> dict[str, Any]:
    """Ranks as torchrun starts them, all with a mistyped flag: with its store and without."""
    port = free_port()
    store = agent(port)
    store.wait_for("ready")
    launched = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = [Rank(mistyped, RANK=rank, MASTER_PORT=port, **launched) for rank in (0, 1)]
    lost = Rank(mistyped, RANK=1, MASTER_PORT=free_port(), **launched)
    found = {f"mistyped, rank {i}": rank.end() for i, rank in enumerate(ranks)}
    found["mistyped, no store"] = lost.end()
    os.kill(store.pid, signal.SIGKILL)
    store.end()
    return found


if __name__ == "__main__":
    print(json.dumps(every_case()))
