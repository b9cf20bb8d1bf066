"""This process among those that train together; one process needs no process group."""

import os
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed

if TYPE_CHECKING:
    from caspi.config import Train

Thing = TypeVar("Thing")


def process_rank() -> int:
    """From the launcher's environment, so that it is known before the process group exists."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    return process_rank() == 0


def check_processes(config: "Train") -> None:
    """
    Raises:
        ValueError: another number of processes is running than the recipe asks for, or sharding cannot do it.
    """
    if config.data_parallel == "fsdp2" and config.lora_rank:
        raise ValueError("train.data_parallel fsdp2 does not shard adapters: leave out lora_rank, or train with ddp")
    if config.data_parallel == "fsdp2" and num_processes() == 1:
        raise ValueError("train.data_parallel fsdp2 shares a model among processes, but there is one: leave it out")
    if config.num_processes not in (0, num_processes()):
        raise ValueError(
            f"train.num_processes is {config.num_processes}, but torchrun started {num_processes()}: leave it out, or "
            "start caspi train without torchrun"
        )


def join_processes() -> None:
    """Meet the other processes of the launcher, before anything has to be agreed on."""
    if num_processes() > 1 and not distributed.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if on_gpu else "gloo")


def wait_for_main_process(timeout_seconds: float) -> None:
    """A barrier with a time-out of its own, for work of the main process that takes longer than a step may."""
    if num_processes() > 1:
        group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        distributed.barrier(group=group)
        distributed.destroy_process_group(group)


def barrier() -> None:
    if num_processes() > 1:
        distributed.barrier()


def all_gather_objects(thing: Thing) -> list[Thing]:
    """The thing of every process, in the order of ranks."""
    if num_processes() == 1:
        return [thing]
    gathered: list[Thing | None] = [None] * num_processes()
    distributed.all_gather_object(gathered, thing)
    return gathered  # type: ignore[return-value]  # every place is filled


def sum_over_processes(values: list[int], device: torch.device) -> list[int]:
    if num_processes() == 1:
        return values
    tensor = torch.tensor(values, device=device)
    distributed.all_reduce(tensor)
    return [int(value) for value in tensor]


def max_over_processes(value: int, device: torch.device) -> int:
    if num_processes() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return int(tensor)


def leave_signals_to_parent(_worker_id: int) -> None:
    """In a loader worker: Ctrl+C and SIGTERM reach the whole group, but it is needed until the checkpoint is saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
