"""The training loop. B sequences, T targets of a sequence (T1 is T + 1 tokens), V vocabulary."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from morphogen.candidate import StopReason
from morphogen.errors import InputError, unknown
from morphogen.experiment import Train
from morphogen.inherit.descent import Moments
from morphogen.network import LanguageModel
from morphogen.ops.cross_entropy import cross_entropy
from morphogen.training.guards import CHECK_EVERY, Guards
from morphogen.training.memory import PeakMemory
from morphogen.training.optimizers import make_updater

#: The learning rate's end, as a share of its peak.
FINAL_SCALE = 0.1
#: Entropy is sampled at every so-many-th position.
ENTROPY_STRIDE = 8
#: On an accelerator, losses are read back only every so many steps, so that the host runs ahead.
READ_EVERY = 10
#: The first step at which the optimizer's state is already there, so that its memory is typical.
MEMORY_STEP = 1

Batches = Callable[[int], NDArray[np.int64]]


@dataclass(frozen=True)
class StepInfo:
    """One finished step. step: counted from 1, of `steps`. loss: nats per token of text. grad_norm: before
    clipping. tokens: trained on so far. seconds: that this step took. entropy: of the predictions, in nats, where it
    was sampled."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr_scale: float
    tokens: int
    seconds: float
    entropy: float | None


Progress = Callable[[StepInfo], None]


@dataclass
class Trace:
    """Step by step: loss (nats per token of text, without auxiliary losses), gradient norm before clipping, seconds,
    and the figures that branches report, by name."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)


def choose_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:N`, `mps`, or `auto` for the best there is. InputError for what this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise InputError(unknown("device", name, ["auto", "cpu", "cuda", "cuda:0", "mps"]))
    if kind == "cuda" and not int(index or 0) < torch.cuda.device_count():
        raise InputError(f"device: got {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: got 'mps', but this machine has none")
    return torch.device(name)


def warmup_steps(train: Train, total_steps: int) -> int:
    """`train.warmup`, but never more than half of a short run."""
    return min(train.warmup, total_steps // 2)


def lr_scale(step: int, total_steps: int, warmup: int) -> float:
    """Linear from 1/(warmup + 1) to 1, then half a cosine to `FINAL_SCALE` at the last step. Ref: arXiv 1608.03983."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, total_steps - 1 - warmup)
    return FINAL_SCALE + (1.0 - FINAL_SCALE) * 0.5 * (1.0 + math.cos(math.pi * share))


class Trainer:
    """Trains one model over one schedule, in one or several calls of `run`.

    total_steps: of all calls together; the schedule spans them. seed: of dropout and of recurrences'
    noise. Step k does the same whatever the calls were, because these derive from (seed, k) and its batch from k.
    moments: optimizer state to go on from; then only what is new warms up.
    """

    def __init__(
        self,
        model: LanguageModel,
        train: Train,
        *,
        total_steps: int,
        tokens_per_step: int,
        seed: int,
        moments: Moments | None = None,
    ) -> None:
        self.model = model
        self.train = train
        self.total_steps = total_steps
        self.tokens_per_step = tokens_per_step
        self.seed = seed
        self.device = model.emb.weight.device
        if train.bf16 and self.device.type == "mps":
            raise InputError("train.bf16: not available on device 'mps', expected false")
        model.recompute = train.grad_ckpt
        self.warmup = warmup_steps(train, total_steps)
        self.updater = make_updater(model, train)
        self.guards = Guards(train, self.warmup)
        if moments is not None:
            self.updater.adopt(moments, self.warmup)
            self.warmup = 0
        self.memory = PeakMemory(self.device)
        self.trace = Trace()
        self.step = 0
        self._parameters = self.updater.parameters
        # memory is measured where the recurrences take all their steps
        risen = max((math.ceil(loop.ramp * total_steps) for loop in model.blueprint.recurrences), default=0)
        self._memory_step = min(max(MEMORY_STEP, risen), total_steps - 1)
        self._figures: tuple[str, ...] = ()
        self._read_every = 1 if self.device.type == "cpu" else READ_EVERY

    def run(self, batches: Batches, until_step: int, progress: Progress | None = None) -> StopReason | None:
        """Train on `batches(step)`, of shape (B, T1), up to `until_step`; why a guard stopped it earlier, or None.

        A negative id −1 − i is token i, which is read but not scored as a target.

        On an accelerator a guard may be heard up to `READ_EVERY` − 1 steps late; those steps are counted like others.
        """
        cuda = [self.device] if self.device.type == "cuda" else []
        unread: list[Tensor] = []
        started = time.perf_counter()
        self.model.train()
        with torch.random.fork_rng(devices=cuda):
            while self.step < until_step:
                torch.manual_seed(_mix(self.seed, self.step))
                self.model.set_progress(self.step / self.total_steps)
                unread.append(self._step(self._on_device(batches(self.step))))
                self.step += 1
                if len(unread) == self._read_every or self.step == until_step:
                    rows = torch.stack(unread).tolist()
                    now = time.perf_counter()
                    stop = self._read(rows, (now - started) / len(rows), progress)
                    if stop is not None:
                        return stop
                    unread, started = [], now
        return None

    def _on_device(self, ids_BT1: NDArray[np.int64]) -> Tensor:
        on_host = torch.from_numpy(ids_BT1)
        if self.device.type == "cuda":
            on_host = on_host.pin_memory()
        return on_host.to(self.device, non_blocking=True)

    def _step(self, ids_BT1: Tensor) -> Tensor:
        """One update: (loss, gradient norm, entropy or NaN, figures in order of name), still on the device."""
        if self.step == self._memory_step:
            with self.memory.measure([*self.model.parameters(), *self.model.buffers(), *self.updater.state_tensors()]):
                return self._update(ids_BT1)
        return self._update(ids_BT1)

    def _update(self, ids_BT1: Tensor) -> Tensor:
        bf16 = torch.autocast(self.device.type, torch.bfloat16) if self.train.bf16 else contextlib.nullcontext()
        with bf16, self.model.recording() as record:
            logits_BTV = self.model(torch.where(ids_BT1 < 0, -1 - ids_BT1, ids_BT1)[:, :-1])
            nats_B = sequence_losses(logits_BTV, ids_BT1[:, 1:])
            loss = nats_B.mean()
        entropy = _entropy(logits_BTV) if (self.step + 1) % CHECK_EVERY == 0 else loss.new_full((), math.nan)
        del logits_BTV  # the backward pass frees it early
        auxiliary = record.loss(
            {"balance": self.train.router_lb_coeff, "router_entropy": -self.train.router_entropy_coeff}
        )
        (loss if auxiliary is None else loss + auxiliary).backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_(self._parameters, self.train.clip)
        self.updater.step(lr_scale(self.step, self.total_steps, self.warmup))
        record.settle()
        means = record.means()
        self._figures = tuple(means)
        return torch.stack([_text_loss(nats_B.detach(), ids_BT1[:, 1:]), norm, entropy, *means.values()])

    def _read(self, rows: list[list[float]], seconds: float, progress: Progress | None) -> StopReason | None:
        """Hand the steps just finished to the trace, the guards and whoever watches."""
        stop: StopReason | None = None
        for k, (loss, norm, sampled, *figures) in enumerate(rows):
            step = self.step - len(rows) + k
            entropy = None if math.isnan(sampled) else sampled
            self.trace.losses.append(loss)
            self.trace.grad_norms.append(norm)
            self.trace.seconds.append(seconds)
            for name, value in zip(self._figures, figures, strict=True):
                self.trace.figures.setdefault(name, []).append(value)
            stop = stop or self.guards.observe(loss, norm, entropy)
            if progress is not None:
                scale = lr_scale(step, self.total_steps, self.warmup)
                tokens = (step + 1) * self.tokens_per_step
                progress(StepInfo(step + 1, self.total_steps, loss, norm, scale, tokens, seconds, entropy))
        return stop


def sequence_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy of each sequence's targets, in nats, (B,); negative targets are not scored.

    Training descends on the mean over sequences, so that a probe, few of whose targets are scored, has its share.
    """
    nats_N = cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    return nats_N.view_as(targets_BT).sum(1) / (targets_BT >= 0).sum(1)


def _text_loss(nats_B: Tensor, targets_BT: Tensor) -> Tensor:
    """The mean loss of the sequences that are scored throughout; of all where there are none."""
    text_B = (targets_BT >= 0).all(1)
    text_B = text_B | ~text_B.any()
    return (nats_B * text_B).sum() / text_B.sum()


@torch.no_grad()
def _entropy(logits_BTV: Tensor) -> Tensor:
    """Mean entropy of the predicted distributions, in nats, at every `ENTROPY_STRIDE`-th position."""
    logp_BTV = torch.log_softmax(logits_BTV[:, ::ENTROPY_STRIDE].float(), -1)
    return -(logp_BTV.exp() * logp_BTV).sum(-1).mean()


def _mix(seed: int, step: int) -> int:
    """A seed for one step, unlike its neighbours'."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))
