"""The processes that work on one job together, started by torchrun: one leads, the others follow.

The first process runs the verb: it alone reads arguments, writes files and speaks. The others wait for what it leads
them into (`leading`, `led`), which so far is training, and wait again. What all must know alike, the first one says
(`agreed`). Without torchrun there is one process, and nothing here communicates.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from chinchilla_lm.errors import InputError

T = TypeVar("T")
END = "end"


class Agreed(InputError):
    """Bad input of which all processes know alike, so that the first alone has to say it."""


# Longest that one process waits for another within a step of training, before the job ends; for the next thing to do.
STEP_TIMEOUT, WAIT_TIMEOUT = timedelta(minutes=10), timedelta(days=30)


@dataclass(slots=True)
class Processes:
    """rank: of this process; count: of all; waiting: the group in which they wait for long. engaged: whether the others
    are at work with the first, and not waiting for it to lead them."""

    rank: int = 0
    count: int = 1
    waiting: Any = None
    engaged: bool = False
    store: Any = None

    @property
    def first(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    def agreed(self, value: T) -> T:
        """What the first process says, wherever it is said: the others wait for it, however long."""
        if self.count == 1:
            return value
        told = [value if self.first else None]
        dist.broadcast_object_list(told, src=0, group=self.waiting)
        return told[0]  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """What each process says, by rank."""
        if self.count == 1:
            return [value]
        told: list[Any] = [None] * self.count
        dist.all_gather_object(told, value, group=self.waiting)
        return told

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def copied(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors what they are on the first process, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    @contextmanager
    def leading(self, what: str, facts: Mapping[str, str], **how: Any) -> Iterator[None]:
        """Have the others, which wait in `led`, come along for what is done in the block. facts: see `ready`.

        An error leaves them in the middle of it, where they learn that this process is gone.
        """
        if self.count > 1:
            assert self.first, "the first process leads"
            self.agreed((what, how))
            self.ready(**facts)
            self.engaged = True
        yield
        self.engaged = False

    def leave(self) -> None:
        """The first process ends the verb for a reason of its own, which the others then see to be no failure."""
        if self.count > 1:
            self.store.set(END, END)

    def left(self) -> bool:
        """Whether it did. False too where the store went with it."""
        try:
            return bool(self.store.check([END]))
        except RuntimeError:
            return False

    def dismiss(self) -> None:
        """Let the others end, if they wait."""
        if self.count > 1 and not self.engaged:
            self.agreed((END, {}))

    def led(self) -> tuple[str, dict[str, Any]]:
        """What the first process leads into next, or END."""
        return self.agreed((END, {}))

    def ready(self, problem: str = "", **facts: str) -> None:
        """All are about to go on together. Raises Agreed on every process where one has a problem that keeps it from
        it, or found something else than the first, such as another model by its hash."""
        if self.count == 1:
            return
        told = self.gathered((socket.gethostname(), problem, facts))
        for rank, (host, problem, theirs) in enumerate(told):
            if problem:
                raise Agreed(problem if rank == 0 else f"process {rank} on {host}: {problem}")
            for name, value in theirs.items():
                if value != told[0][2][name]:
                    raise Agreed(
                        f"process {rank} on {host} has another {name} than process 0: {value}, not "
                        f"{told[0][2][name]}; give all processes the same files and arguments"
                    )


ALONE = Processes()
_here = ALONE


def processes() -> Processes:
    """Those that work together here; one, outside of `joined`."""
    return _here


def _on_this_host() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def sharing_cores() -> Iterator[None]:
    """While the processes of a host work at the same time, each has its share of the threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // _on_this_host()) if processes().count > 1 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone, or has not answered in time."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def asked_for() -> int:
    """How many processes torchrun has started, by its environment; 1 without it. Raises InputError for nonsense."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"WORLD_SIZE {text!r} is not a number of processes; start with chinchilla launch")
    return int(text)


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun has started, connected until the end of the block. Raises InputError where they
    cannot be: an environment that is not torchrun's, a port that is taken, a process that does not come."""
    global _here
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError(f"WORLD_SIZE is set and {missing[0]} is not; start with chinchilla launch")
    backend, local = "gloo", int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise InputError(
                f"{_on_this_host()} processes on this host are more than its {torch.cuda.device_count()} GPUs; "
                "start one for each GPU"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, count = next(iter(dist.rendezvous("env://", timeout=STEP_TIMEOUT)))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # torchrun's store outlives the processes that it starts again, and has the addresses of those that are
            # gone. (Hosts count restarts each for itself; for several, see commands/launch.py.)
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(backend, timeout=STEP_TIMEOUT, store=store, rank=rank, world_size=count)
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(f"the processes cannot meet at {where} ({error}); start with chinchilla launch") from error
    try:
        group = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
        _here = Processes(rank, count, group, store=store)
        yield _here
    finally:
        _here = ALONE
        dist.destroy_process_group()
