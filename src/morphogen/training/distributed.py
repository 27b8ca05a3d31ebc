"""Several processes that train one model: who they are, what is shared out, and what is brought together.

Parameters, gradients and moments are cut among them (FSDP2, `fully_shard`), block by block. A step's batches are the
same whatever the number of processes (`train.accumulate` of them), and each process passes its share of them, so that
losses agree to rounding. A process that trains alone goes through the same lines, and nothing happens in them: torch's
modules for several are imported where there are several, since that takes a second.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.utils import clip_grad_norm_

from morphogen.errors import InputError
from morphogen.experiment import Experiment, Train
from morphogen.network import LanguageModel
from morphogen.parts.contract.branch import Record
from morphogen.training.device import choose_device

#: A process that waits so long for the others takes them for lost.
PATIENCE = timedelta(minutes=10)


class Ranks(NamedTuple):
    """The processes of a training: which of them this one is, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def own(self, batches: int) -> range:
        """The batches of a step that this process passes."""
        each = batches // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def sharded(self, model: LanguageModel) -> LanguageModel:
        """The model with its parameters cut among the processes; a block's come together while it runs.

        Blocks of a recurrence, which run more than once in a pass, stay together from the first to the last.
        """
        if self.size == 1:
            return model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = model.emb.weight.device
        mesh = init_device_mesh(device.type, (self.size,))
        scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}  # which nobody can cut
        looped = {place for loop in model.blueprint.recurrences for place in range(loop.start, loop.end)}
        for place, block in enumerate(model.blocks):
            if place not in looped:
                fully_shard(block, mesh=mesh, ignored_params=scalars)
        fully_shard(model, mesh=mesh, ignored_params=scalars)
        return model

    def joined(self, values: Tensor) -> Tensor:
        """What the processes have, one after the other along the first axis; the same length everywhere."""
        if self.size == 1:
            return values
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values.contiguous())
        return torch.cat(found)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        if self.size == 1:
            return values
        return self.joined(values[None]).mean(0)

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Brings together the gradients of what is not cut, and scales all down to a norm of `most`; gives the norm of
        the whole model that they had."""
        if self.size == 1:
            return clip_grad_norm_(parameters, most)
        from torch.distributed.tensor import DTensor

        with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
        cut = [p.grad.to_local() for p in with_gradient if isinstance(p.grad, DTensor)]
        uncut = [p.grad for p in with_gradient if p.grad is not None and not isinstance(p.grad, DTensor)]
        for gradient in uncut:
            gradient.copy_(self.mean(gradient))
        squares = torch.stack([part.pow(2).sum() for part in cut]).sum()
        dist.all_reduce(squares)
        norm = torch.sqrt(squares + sum(gradient.pow(2).sum() for gradient in uncut))
        scale = (most / (norm + 1e-6)).clamp(max=1.0)
        for part in (*cut, *uncut):
            part.mul_(scale)
        return norm

    def tallied(self, record: Record) -> None:
        """Sums up over the processes what branches counted."""
        if self.size > 1:
            for branch, counts in record.tallies.items():
                total = counts.clone()
                dist.all_reduce(total)
                record.tallies[branch] = total

    def any(self, is_so: bool, device: torch.device) -> bool:
        """Whether it is so in one of the processes."""
        if self.size == 1:
            return is_so
        told = torch.tensor([float(is_so)], device=device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())

    def as_the_first(self, number: int, device: torch.device) -> int:
        """The first process's number."""
        if self.size == 1:
            return number
        told = torch.tensor([number], device=device)
        dist.broadcast(told, src=0)
        return int(told.item())

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor, of which this process may hold a part. Every process has to ask for it; where it is cut, the
        first alone gets it, in the CPU's memory, so that no device has to hold more than one such tensor at a time."""
        if self.size == 1:
            return tensor
        from torch.distributed.tensor import DTensor

        if not isinstance(tensor, DTensor):
            return tensor
        gathered = tensor.full_tensor()
        return gathered.cpu() if self.first else tensor.to_local()

    def state_of(self, model: nn.Module) -> dict[str, Tensor]:
        """A state dict of whole tensors, as `whole` gives them."""
        return {name: self.whole(tensor) for name, tensor in model.state_dict().items()}

    def held(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """What this process holds of them."""
        if self.size == 1:
            return list(tensors)
        from torch.distributed.tensor import DTensor

        return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]

    def cut_like(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        """A whole tensor on the parameter's device, cut as the parameter is; one of another shape stays whole."""
        tensor = tensor.to(parameter.device)
        if self.size == 1:
            return tensor
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
            return tensor
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


ALONE = Ranks()


@contextmanager
def joined_up(device: torch.device) -> Iterator[Ranks]:
    """This process as one of those that torchrun started; they speak by NCCL on CUDA, by Gloo elsewhere."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    # the launcher keeps one store for all attempts, in which the addresses of processes that died still stand
    own_store = PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=own_store, rank=rank, world_size=size, timeout=PATIENCE
    )
    try:
        yield Ranks(rank, size)
    finally:
        dist.destroy_process_group()


def own_device(kind: str) -> torch.device:
    """The device of a process that torchrun started: of several of one kind the one with its number."""
    return torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else kind)


def check_shared(experiment: Experiment, device: str, nproc: int) -> None:
    """InputError for what several processes cannot do together."""
    train, model, kind = experiment.train, experiment.model, choose_device(device).type
    parts_of = [(block.id, part.label) for block in model.blocks for _, _, part in block.parts()]
    foreign = [id for id, label in parts_of if label == "foreign"]
    wrong = {
        f"a step has {train.accumulate} batches (train.accumulate), expected a multiple of {nproc}; "
        f"with --accumulate {nproc} each process takes one": train.accumulate % nproc != 0,
        "model.growth has rules, and a model that grows is trained by one process": bool(model.growth),
        f"block {foreign[0] if foreign else ''} has layers of another model, which one process trains": bool(foreign),
        "train.anchoring keeps a model beside the one that is trained, which one process does": (
            train.anchoring != Train().anchoring
        ),
        "train.optimizer.name is muon, which needs whole matrices; expected adamw or lion": (
            train.optimizer.name == "muon"
        ),
        f"train.compile is {train.compile}, which one process alone does": train.compile != "none",
        "--device mps has one device": kind == "mps",
        f"this machine has {torch.cuda.device_count()} CUDA devices": (
            kind == "cuda" and torch.cuda.device_count() < nproc
        ),
        f"--device {device} is one device; expected cuda": kind == "cuda" and ":" in device,
    }
    for why, is_so in wrong.items():
        if is_so:
            raise InputError(f"--nproc: got {nproc}, but {why}")
