"""The memory that a training step takes, measured."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensor storages that are alive, operation by operation.

    held: tensors that exist before and stay. `peak` is the largest sum seen, that of the storages held included. What
    an operation allocates and frees within itself is not seen.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        for tensor in held:
            self._add(tensor)
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then count what it returned."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, tensor: Tensor) -> None:
        if tensor.layout == torch.sparse_csr:
            for dense in (tensor.crow_indices(), tensor.col_indices(), tensor.values()):
                self._add_storage(dense.untyped_storage())
        else:
            self._add_storage(tensor.untyped_storage())

    def _add_storage(self, storage: UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_: weakref.ref[UntypedStorage]) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size


class PeakMemory:
    """The most bytes of tensors alive at once during a training step.

    CUDA: the allocator's own count. Elsewhere: `LiveBytes` over one step, which is the same quantity, costs a few
    milliseconds once, and repeats exactly. (The growth of the process's resident memory is neither: freed blocks of
    the candidate before stay resident, so that a worker's second candidate would look smaller than its first.)
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    @contextmanager
    def measure(self, held: Iterable[Tensor]) -> Iterator[None]:
        """Measure what runs inside. held: weights and optimizer state that exist before."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(self.device))
        else:
            with LiveBytes(held) as live:
                yield
            self.bytes = max(self.bytes, live.peak)
