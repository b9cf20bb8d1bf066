"""Exact counts of what a step does: operations, waits of the host for the device, FLOPs, bytes kept for backward."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

SYNCING = frozenset({"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim"})
"""Operations after which the host must know a value that is on the device."""
VIEWS = frozenset(
    {
        *("view", "_unsafe_view", "t", "transpose", "expand", "unsqueeze", "squeeze", "slice", "select", "permute"),
        *("device", "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "unfold", "lift_fresh"),
    }
)
"""Operations that launch nothing."""


class OperationCounter(TorchDispatchMode):
    """Counts what reaches the device. `num_syncs` also counts `Tensor.tolist`, which copies without an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.num_list_calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__.split(".")[0]
        if name not in VIEWS:
            self.operations[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def num_operations(self) -> int:
        return sum(self.operations.values())

    @property
    def num_syncs(self) -> int:
        return self.num_list_calls + sum(self.operations[name] for name in SYNCING)


@contextmanager
def counted() -> Iterator[OperationCounter]:
    counter = OperationCounter()
    to_list = torch.Tensor.tolist

    def counting_to_list(tensor: torch.Tensor) -> Any:
        counter.num_list_calls += 1
        return to_list(tensor)

    torch.Tensor.tolist = counting_to_list  # type: ignore[method-assign, assignment]
    try:
        with counter:
            yield counter
    finally:
        torch.Tensor.tolist = to_list  # type: ignore[method-assign]


def product_flops_of(step: Callable[[], object]) -> int:
    """FLOPs of matrix products and convolutions, without attention: its kernel for packed sequences takes lengths as
    data, which tensors without contents do not have."""
    with FlopCounterMode(display=False) as counter:
        step()
    return sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if "attn" not in str(name))


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Bytes that autograd keeps inside the block, each storage once; weights and buffers, which exist anyway, not."""
    ours = storages([*model.parameters(), *model.buffers()])
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in ours:
            kept[storage._cdata] = (storage.nbytes(), storage)  # the storage stays alive, so its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(size for size, _ in kept.values())


def storages(tensors: Iterable[torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors}
