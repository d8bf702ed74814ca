"""Processes that train together: started once, given one task after the other, and never left behind.

Each is a rank of one process group. PyTorch is imported by a server that then divides into the ranks, where the
system can do that safely (Linux); elsewhere each rank imports it for itself.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from shared.errors import CannotRun

import torch
import torch.distributed as dist

ANSWER_TIMEOUT_S = 120.0  # for one task; the longest takes seconds on an idle machine
COLLECTIVE_TIMEOUT_S = 60.0  # for one wait of one rank for the others
FAREWELL_S = 5.0  # a rank that has not ended by then is killed
# Imported before the server divides. DDP, FSDP and each optimizer need the compiler's front end: 4 s for each rank.
PRELOADED = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict"]
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def choose_backend(device: torch.device) -> tuple[str, str]:
    """The backend for two ranks on this machine, and the reason: NCCL wants a GPU of its own for each rank."""
    if device.type != "cuda":
        return "gloo", f"{device.type} has no backend of its own" if device.type != "cpu" else "the backend for CPUs"
    count = torch.cuda.device_count()
    if count >= 2 and dist.is_nccl_available():
        return "nccl", f"{count} GPUs, one for each rank"
    return "gloo", "one GPU is here and NCCL wants one for each rank, so the ranks compute on the CPU"


def environment_of(rank: int, world_size: int) -> dict[str, str]:
    """What torchrun tells each process of a training on one node."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """An exception that a task raised, as text: the exception itself may not survive the pipe."""

    trace: str


class WorkerFailed(Exception):
    """A task raised, or a rank died; the text has the rank's own stack trace or last words."""


class Workers:
    """`world_size` ranks in one process group, which nothing but this machine's loopback takes part in.

    `run(task, *arguments)` calls `task` in all of them at once and returns what it returned, by rank. Tasks find the
    process group as torch.distributed's default one. They compute on `device_of(rank)`: a GPU each with NCCL.
    """

    def __init__(self, world_size: int, backend: str = "gloo", seed: int = 0) -> None:
        self.world_size, self.backend = world_size, backend
        self._folder = TemporaryDirectory(prefix="ranks-")
        self._connections: list[Connection] = []
        self.processes: list[Any] = []
        context = start_method()
        try:
            with environment(OMP_NUM_THREADS="1"):  # as torchrun does: n ranks with all cores each would fight for them
                for rank in range(world_size):
                    ours, theirs = context.Pipe()
                    arguments = (rank, world_size, backend, seed, self._folder.name, theirs)
                    process = context.Process(target=serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
                    process.start()
                    theirs.close()  # now only the rank holds it, so its end is seen at once
                    self._connections.append(ours)
                    self.processes.append(process)
            self._run(dist.get_rank, (), ANSWER_TIMEOUT_S)  # every rank is there
        except BaseException:
            self.close(patience_s=0.0)
            raise

    def run(self, task: Callable[..., Any], *arguments: object, timeout_s: float = ANSWER_TIMEOUT_S) -> list[Any]:
        """`task(*arguments)` in all ranks at once.

        Raises WorkerFailed, and CannotRun where no answer comes in time. All ranks are ended then: those that are well
        may be waiting for the one that is not.
        """
        try:
            return self._run(task, arguments, timeout_s)
        except BaseException:
            self.close(patience_s=0.0)
            raise

    def _run(self, task: Callable[..., Any], arguments: tuple[object, ...], timeout_s: float) -> list[Any]:
        if not self._connections:
            raise WorkerFailed("these ranks have ended")
        message = pickle.dumps((task, arguments))
        for rank, connection in enumerate(self._connections):
            try:
                connection.send_bytes(message)
            except ConnectionError:
                raise WorkerFailed(self._last_words(rank)) from None
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_s
        while len(answers) < self.world_size:
            waiting = {self._connections[rank]: rank for rank in range(self.world_size) if rank not in answers}
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CannotRun(
                    f"rank {min(waiting.values())} gave no answer within {timeout_s:.0f} s; "
                    "stop what else keeps the cores busy and run this again"
                )
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = waiting[connection]
                answers[rank] = self._answer(rank, connection)
        return [answers[rank] for rank in range(self.world_size)]

    def _answer(self, rank: int, connection: Connection) -> Any:
        try:
            answer = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise WorkerFailed(self._last_words(rank)) from None
        if isinstance(answer, Failure):
            raise WorkerFailed(f"rank {rank}: {answer.trace}")
        return answer

    def _last_words(self, rank: int) -> str:
        log = Path(self._folder.name, f"rank{rank}.log")
        said = log.read_text(errors="replace").strip()[-2000:] if log.exists() else ""
        return f"rank {rank} died: {said or 'it said nothing'}"

    def close(self, patience_s: float = FAREWELL_S) -> None:
        """Ends all ranks, by force where they are still busy after `patience_s`."""
        for connection in self._connections:
            connection.close()  # a rank that waits for its next task ends now
        end_all(self.processes, patience_s)
        self._connections, self.processes = [], []
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(FAREWELL_S if kind is None else 0.0)


def start_method() -> BaseContext:
    """A server that has imported PyTorch and divides into the ranks, where dividing is safe; else fresh processes.

    A plain fork of this process would copy locks that other threads of it hold.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def end_all(processes: list[Any], patience_s: float = FAREWELL_S) -> None:
    """Waits for all of them together for `patience_s`, then kills the rest."""
    deadline = time.monotonic() + patience_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
        process.close()


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables, and puts them back as they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def loopback() -> dict[str, str]:
    """Gloo would look up the name of this machine, which not every network answers; loopback is always there."""
    return {"GLOO_SOCKET_IFNAME": LOOPBACK[sys.platform]} if sys.platform in LOOPBACK else {}


# What follows runs in the ranks


def serve(rank: int, world_size: int, backend: str, seed: int, folder: str, connection: Connection) -> None:
    """One rank: joins the group, then answers task after task until the other end of the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lesson, which ends its ranks
    keep_output(Path(folder, f"rank{rank}.log"))
    join_group(rank, world_size, backend, folder)
    while True:
        try:
            task, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            break
        torch.manual_seed(seed)  # each task draws the same numbers, whatever ran before it
        try:
            answer = task(*arguments)
        except Exception:
            answer = Failure(traceback.format_exc())
        connection.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


def join_group(rank: int, world_size: int, backend: str, folder: str) -> None:
    """Sets what torchrun sets, and meets the other ranks by a file: no port has to be free for that."""
    os.environ |= environment_of(rank, world_size) | loopback()
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else None
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        store=dist.FileStore(str(Path(folder, "meeting")), world_size),  # a file:// address would stumble over a space
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        device_id=device,
    )


def keep_output(log: Path) -> None:
    """What libraries print goes to a file: the lesson's page, or its JSON, is for the lesson alone."""
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def device_of(rank: int) -> torch.device:
    return torch.device("cuda", rank) if dist.get_backend() == "nccl" else torch.device("cpu")
