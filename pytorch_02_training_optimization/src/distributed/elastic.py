"""Starting trainings: torchrun on one node and on several, and what it does when a worker dies."""

import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pytorch_02_training_optimization.src.distributed import elastic_worker, node_worker
from pytorch_02_training_optimization.src.distributed.workers import (
    ANSWER_TIMEOUT_S,
    Workers,
    end_all,
    environment,
    join_group,
    keep_output,
    loopback,
    start_method,
)
from shared.errors import CannotRun
from shared.lesson import Lesson
from shared.units import percent

import torch.distributed as dist
from torch.distributed.run import get_args_parser, parse_min_max_nnodes

HAS_SIGKILL = os.name == "posix"

# Commands

COMMANDS = {
    "one machine": "torchrun --standalone --nproc-per-node=8 train.py",
    "the first of two": "torchrun --nnodes=2 --node-rank=0 --nproc-per-node=8 "
    "--master-addr=10.0.0.1 --master-port=29500 train.py",
    "the second": "torchrun --nnodes=2 --node-rank=1 --nproc-per-node=8 "
    "--master-addr=10.0.0.1 --master-port=29500 train.py",
    "two to four, coming and going": "torchrun --nnodes=2:4 --nproc-per-node=8 --max-restarts=3 --rdzv-id=job7 "
    "--rdzv-backend=c10d --rdzv-endpoint=10.0.0.1:29500 train.py",
}
FLAGS = {
    "--standalone": "everything on this machine, on a free port; nothing to agree on",
    "--nproc-per-node": "processes on this machine, one for each GPU",
    "--nnodes": "machines; 2:4 is the fewest and the most to go on with",
    "--node-rank": "which machine this is; the only thing that differs between the two commands",
    "--master-addr, --master-port": "where rank 0 listens: an address that all machines reach, an open port",
    "--rdzv-backend, --rdzv-endpoint": "the meeting point that hands out ranks by itself: the same command everywhere",
    "--rdzv-id": "the name of the job; others with another name may use the same meeting point",
    "--max-restarts": "how often all workers are started again when one dies (default 0)",
}


def parse(command: str) -> Any:
    """What torchrun itself reads in a command."""
    return get_args_parser().parse_args(shlex.split(command)[1:])


def global_rank(node_rank: int, local_rank: int, local_world_size: int) -> int:
    """The rank of a process among all, where every node has as many."""
    return node_rank * local_world_size + local_rank


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free port that the system gives to nobody else meanwhile; a store that listens on it by number may."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def torchrun(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A torchrun that ends with the block; it stops its workers when it is told to end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--local-addr=127.0.0.1", *arguments]
    with environment(OMP_NUM_THREADS="1", **loopback()):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.communicate(timeout=40)  # torchrun gives its workers 30 s before it kills them
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def outcome_of(process: "subprocess.Popen[str]") -> str:
    """What a torchrun has printed, once it is over. Raises CannotRun where it fails or does not end."""
    try:
        text, _ = process.communicate(timeout=ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"torchrun was not done after {ANSWER_TIMEOUT_S:.0f} s; try --quick, which runs none") from None
    if process.returncode:
        raise CannotRun(f"torchrun ended with {process.returncode}: {text[-500:]}; try --quick, which runs none")
    return text


def run_two_nodes(per_node: int) -> list[dict[str, int]]:
    """Two torchruns that take this machine for two; what they told each worker, by rank."""
    with TemporaryDirectory(prefix="nodes-") as folder, reserved_port() as port, ExitStack() as running:
        options = "--nnodes=2", f"--nproc-per-node={per_node}", "--master-addr=127.0.0.1", f"--master-port={port}"
        both = [
            running.enter_context(torchrun(*options, f"--node-rank={node}", str(node_worker.__file__), folder))
            for node in range(2)
        ]
        for process in both:
            outcome_of(process)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2 * per_node)]


def show_launch(lesson: Lesson) -> None:
    lesson.section(
        "torchrun on one machine and on several",
        "torchrun starts the processes of one machine and tells each its rank; it never reaches out to another machine. "
        "For several you run it on each, by hand, by Slurm or by Kubernetes, and they meet at an address. Your script "
        "stays the same:",
    )
    lesson.items(COMMANDS)
    lesson.table([{"option": name, "says": text} for name, text in FLAGS.items()])
    first, second = parse(COMMANDS["the first of two"]), parse(COMMANDS["the second"])
    differing = sorted(name for name, value in vars(first).items() if vars(second)[name] != value)
    lesson.check(
        "torchrun reads the two commands apart by one option", differing == ["node_rank"], ", ".join(differing)
    )
    coming = parse(COMMANDS["two to four, coming and going"])
    fewest, most = parse_min_max_nnodes(coming.nnodes)
    lesson.check("--nnodes=2:4 is read as a range", (fewest, most) == (2, 4), f"at least {fewest}, at most {most}")
    lesson.check("a restart has to be asked for", first.max_restarts == 0 and coming.max_restarts == 3,
                 f"--max-restarts is {first.max_restarts} by default")  # fmt: skip
    per_node = 8
    ranks = [[global_rank(node, local, per_node) for local in range(per_node)] for node in range(2)]
    lesson.table([{"node": node, "LOCAL_RANK": f"0 to {per_node - 1}", "RANK": f"{row[0]} to {row[-1]}",
                   "WORLD_SIZE": 2 * per_node} for node, row in enumerate(ranks)])  # fmt: skip
    if lesson.quick:
        lesson.note("A full run starts two torchruns here that take this machine for two, and reads what they say.")
        lesson.check("RANK = node x processes per node + LOCAL_RANK", [*ranks[0], *ranks[1]] == list(range(2 * per_node)),
                     f"0 to {2 * per_node - 1}, each once")  # fmt: skip
    else:
        told = run_two_nodes(per_node=2)
        right = [one["RANK"] == global_rank(one["GROUP_RANK"], one["LOCAL_RANK"], 2) for one in told]
        lesson.check("RANK = node x processes per node + LOCAL_RANK", all(right),
                     f"of {len(told)} workers of two torchruns on this machine")  # fmt: skip
    lesson.shows(
        f"the machines differ in --{differing[0].replace('_', '-')} and in nothing else, and {per_node} GPUs on each of "
        "two make ranks "
        f"0 to {2 * per_node - 1}. Take the GPU by LOCAL_RANK, deal out data by RANK, and save on RANK 0 only; what has "
        "to be there once on each machine, such as a data set, LOCAL_RANK 0 fetches. If the first "
        "all_reduce hangs, a firewall or the wrong network interface is the usual reason: NCCL_SOCKET_IFNAME, "
        "NCCL_DEBUG=INFO."
    )


# A worker that dies


Life = list[int]  # how each rank ended: 0 well, -9 by SIGKILL


def live(rank: int, world_size: int, life: int, folder: str, steps: int, kill_at: int) -> None:
    """A rank of one life: every life needs a meeting of its own, since the last one's dead are still on its list."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_output(Path(folder, f"rank{rank}.log"))
    meeting = Path(folder, f"life{life}")
    meeting.mkdir(exist_ok=True)
    join_group(rank, world_size, "gloo", str(meeting))
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(life)
    elastic_worker.train(Path(folder), steps, kill_at)
    dist.destroy_process_group()


def run_elastically(world_size: int, max_restarts: int, folder: Path, steps: int, kill_at: int) -> list[Life]:
    """What torchrun's agent does: start all, watch, and when one dies, end all and start all again.

    A single worker cannot be replaced: the others wait in a collective for one that is dead. Raises CannotRun when the
    restarts are used up.
    """
    context, lives = start_method(), []
    for life in range(max_restarts + 1):
        arguments = (world_size, life, str(folder), steps, kill_at)
        processes: list[Any] = [
            context.Process(target=live, args=(rank, *arguments), daemon=True)  # type: ignore[attr-defined]
            for rank in range(world_size)
        ]
        try:
            with environment(OMP_NUM_THREADS="1"):
                for process in processes:
                    process.start()
            codes = exit_codes_of(processes)
        finally:
            end_all([process for process in processes if process.pid is not None], 0.0)
        lives.append(codes)
        if not any(codes):
            return lives
    raise CannotRun(f"the workers died {len(lives)} times ({lives[-1]}); run this again on a quieter machine")


def exit_codes_of(processes: Sequence[Any]) -> Life:
    """Watches until all have ended or one has died; those that are still alive then count as killed, as they will be."""
    while True:
        codes = [process.exitcode for process in processes]
        alive = [process.sentinel for process, code in zip(processes, codes, strict=True) if code is None]
        if any(codes) or not alive or not wait(alive, ANSWER_TIMEOUT_S):
            return [-signal.SIGKILL if code is None else code for code in codes]


def run_torchrun(folder: Path, steps: int, kill_at: int) -> str:
    """The same worker file under torchrun itself, on a free port; what it printed."""
    with torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1",
                  str(elastic_worker.__file__), str(folder), str(steps), str(kill_at)) as process:  # fmt: skip
        return outcome_of(process)


def result_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


def train_undisturbed(folder: str, steps: int) -> None:
    """In a rank: the same training, in which nobody is killed."""
    elastic_worker.train(Path(folder), steps, None)


def show_elastic(lesson: Lesson, on_cpu: Workers) -> None:
    steps, kill_at = 23, 13
    lesson.section(
        "A worker is killed, and the training goes on",
        "In a long run on many GPUs some process dies: memory, a GPU error, a machine taken back. The others then wait "
        "for it in a collective. torchrun's answer is blunt: end all, start all again, up to --max-restarts times. That "
        "only helps a script that begins from its last checkpoint. An agent of 25 lines does the same here, for a rank 1 "
        f"that kills itself at step {kill_at} of {steps} while rank 0 saves every {elastic_worker.SAVE_EVERY} steps:",
    )
    if not HAS_SIGKILL:
        lesson.skip("a worker that dies by SIGKILL and a training that resumes.", "Linux or macOS")
        return
    ways: dict[str, tuple[list[Life], dict[str, Any]]] = {}
    with TemporaryDirectory(prefix="elastic-") as parent:
        folders = {name: Path(parent, name) for name in ("undisturbed", "killed", "torchrun")}
        for folder in folders.values():
            folder.mkdir()
        on_cpu.run(train_undisturbed, str(folders["undisturbed"]), steps)
        ways["undisturbed"] = [], result_in(folders["undisturbed"])
        lives = run_elastically(2, 1, folders["killed"], steps, kill_at)
        ways["killed"] = lives, result_in(folders["killed"])
        if not lesson.quick:
            run_torchrun(folders["torchrun"], steps, kill_at)
            ways["torchrun"] = [], result_in(folders["torchrun"])
    lesson.table(
        [{"run": name, "starts": result["restarts"] + 1, "last start from step": result["began_at"],
          "final loss": f"{result['loss']:.9f}", "ends by rank": ", then ".join(str(life) for life in lives)
          or "–"} for name, (lives, result) in ways.items()]
    )  # fmt: skip
    killed, undisturbed = ways["killed"][1], ways["undisturbed"][1]
    lesson.check("rank 1 ended by SIGKILL, the second life well",
                 lives[0][1] == -signal.SIGKILL and lives[-1] == [0, 0],
                 f"exit codes {lives[0]}, then {lives[-1]}")  # fmt: skip
    last_save = kill_at // elastic_worker.SAVE_EVERY * elastic_worker.SAVE_EVERY
    lesson.check("it went on from the last checkpoint", killed["began_at"] == last_save,
                 f"step {killed['began_at']}; {kill_at - last_save} steps were done twice")  # fmt: skip
    lesson.check("its final loss is that of the undisturbed run", killed["loss"] == undisturbed["loss"],
                 f"{killed['loss']:.9f}, to the bit")  # fmt: skip
    lesson.text(
        "A life needs names of its own. torchrun keeps its store over a restart, and in it the addresses of the processes "
        "that are dead; a worker that is quicker than its partner finds those first (Connection refused, or no end). "
        "elastic_worker.py puts TORCHELASTIC_RESTART_COUNT before all names; on several machines, set "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which makes a new store for each life (PyTorch issues 135712, 167288)."
    )
    if lesson.quick:
        lesson.note("A full run also starts the same worker under torchrun --max-restarts 1, which takes some seconds.")
    else:
        by_torchrun = ways["torchrun"][1]
        lesson.check("torchrun --max-restarts 1 brings it to the same end",
                     (by_torchrun["loss"], by_torchrun["restarts"]) == (undisturbed["loss"], 1),
                     f"{by_torchrun['loss']:.9f} after {by_torchrun['restarts']} restart, "
                     f"port {by_torchrun['variables']['MASTER_PORT']}")  # fmt: skip
    lesson.shows(
        f"one kill cost {kill_at - last_save} steps and a start, and the result is the same to the bit, because all "
        "that the next step depends on was in the file: weights, momentum, and the step, from which the data follows. "
        "Save what shared/checkpoints.py asks for, by rank 0 alone, and try your own kill before the cluster does."
    )


# How often to save


def lost_share(interval_s: float, save_s: float, between_failures_s: float) -> float:
    """The share of time lost to saving and to doing work twice: a failure comes, on average, in mid-interval."""
    return save_s / interval_s + interval_s / 2 / between_failures_s


def best_interval_s(save_s: float, between_failures_s: float) -> float:
    """Where both losses are equal. (Young 1974, "A first order approximation to the optimum checkpoint interval".)"""
    return math.sqrt(2 * save_s * between_failures_s)


def show_interval(lesson: Lesson) -> None:
    # Llama 3 (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions in 54 days on 16,384 GPUs.
    between_s, save_s = 54 * 86_400 / 419, 30.0
    lesson.section(
        "How often to save",
        "Save rarely, and a failure costs much work; save often, and saving does. While it trained on 16,384 GPUs, "
        f"Llama 3 was interrupted 419 times in 54 days, once in {between_s / 3600:.1f} hours. If saving stops everything "
        f"for {save_s:.0f} s:",
    )
    minutes: Sequence[int] = (1, 5, 15, 60, 180)
    lesson.table(
        [{"saved every (min)": m, "lost to saving": percent(save_s / (60 * m)),
          "lost to doing it twice": percent(60 * m / 2 / between_s), "together": percent(lost_share(60 * m, save_s, between_s))}
         for m in minutes], best=min(range(len(minutes)), key=lambda i: lost_share(60 * minutes[i], save_s, between_s)),
    )  # fmt: skip
    best_s = best_interval_s(save_s, between_s)
    tried = min(range(10, 20_000, 10), key=lambda s: lost_share(s, save_s, between_s))
    lesson.check("the best interval is sqrt(2 x saving x time between failures)", abs(tried / best_s - 1) < 0.02,
                 f"{best_s:.0f} s; the best of 2000 tried is {tried} s")  # fmt: skip
    quicker = lost_share(best_interval_s(save_s / 10, between_s), save_s / 10, between_s)
    least = lost_share(best_s, save_s, between_s)
    lesson.check("there, both losses are equal", abs(2 * save_s / best_s / least - 1) < 1e-9,
                 f"{percent(save_s / best_s)} each")  # fmt: skip
    lesson.shows(
        f"every {best_s / 60:.0f} minutes, {percent(least)} of the time is lost, whatever else you do. Saving ten times "
        f"as fast brings it to {percent(quicker)}: that is why large runs copy the weights to main memory and write them "
        "while the next steps run."
    )
