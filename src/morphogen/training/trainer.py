"""The training loop: steps of one model, which may change between two of them. A trial drives it.

B sequences, T1 tokens of a sequence: one more than there are targets.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morphogen.candidate import StopReason
from morphogen.errors import InputError
from morphogen.experiment import Train
from morphogen.inherit.descent import Moments
from morphogen.network import LanguageModel
from morphogen.parts.contract.branch import Record
from morphogen.training.averaging import Averaging
from morphogen.training.compiling import forward_of
from morphogen.training.distributed import ALONE, Ranks
from morphogen.training.guards import CHECK_EVERY, Guards
from morphogen.training.losses import Forward, Loss, entropy, text_loss, token_ids, usual_loss
from morphogen.training.memory import PeakMemory
from morphogen.training.optimizers import Updater, make_updater
from morphogen.training.precision import settled
from morphogen.training.saved import Saved
from morphogen.training.schedule import Schedule
from morphogen.training.trace import Progress, StepInfo, Trace

#: Steps over which what a growth brings warms up. Its second moments begin at zero, so that its first steps are as long
#: as the rate allows in whatever direction, while the other weights are where they can be disturbed.
YOUTH = 50
#: On an accelerator, losses are read back only every so many steps, so that the host runs ahead.
READ_EVERY = 10
#: The first step at which the optimizer's state is already there, so that its memory is typical.
MEMORY_STEP = 1

Batches = Callable[[int], NDArray[np.int64]]


class Trainer:
    """Trains one model over one schedule, in one or several calls of `run`. Between two steps it may `change`.

    total_steps: of all calls together; the schedule spans them. seed: of dropout and of recurrences'
    noise. Step k does the same whatever the calls were, because these derive from (seed, k) and its batch from k.
    moments: optimizer state to go on from; then only what is new warms up. loss: what a step descends on; None is
    the `usual_loss`. The losses told and guarded are those of the text, whatever it is. earlier_steps: behind the
    weights that it begins with, which decides how far back their average reaches. ranks: the processes that train the
    model together, of which this is one. micro_batches: in so many parts each batch goes through the model, one after
    the other; their gradients add up to the batch's, but for rounding, dropout, and what experts are balanced by.
    on_record: shown what the branches recorded of each step.
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
        loss: Loss | None = None,
        earlier_steps: int = 0,
        ranks: Ranks = ALONE,
        micro_batches: int = 1,
    ) -> None:
        self.ranks, self.micro_batches = ranks, micro_batches
        self.train = train = settled(train, model.emb.weight.device)
        self.total_steps = total_steps
        self.tokens_per_step = tokens_per_step
        self.seed = seed
        self.earlier_steps = earlier_steps
        self.device = model.emb.weight.device
        if train.in_bf16 and self.device.type == "mps":
            raise InputError("train.bf16: not available on device 'mps', expected false")
        self.loss = usual_loss(train) if loss is None else loss
        self.warmup = Schedule.of(train, total_steps).warmup
        # a cosine begins anew for every candidate, but not its warm-up, which is for moments
        self.schedule = Schedule.of(train, total_steps, begun=moments is not None)
        self.guards = Guards(train, self.warmup)
        self.memory = PeakMemory(self.device)
        self.beside: list[Tensor] = []  # what others keep beside the model, counted in its memory
        self.trace = Trace()
        self.step = 0
        self.model, self.updater = self._taken(model, moments, self.warmup)
        self.on_record: Callable[[Record], None] | None = None
        self._figures: tuple[str, ...] = ()
        self._fetches = self.device.type == "cuda"
        self._read_every = 1 if self.device.type == "cpu" else READ_EVERY

    def change(
        self,
        model: LanguageModel,
        moments: Moments,
        *,
        warmup: int | None = None,
        multiplier: float = 1.0,
        schedule: Schedule | None = None,
    ) -> None:
        """Goes on with another model from the next step on: one grown out of the present one.

        moments: what the present updater had `carried`, brought to the new model's parameters. warmup: steps over which
        what is new in it warms up on its own; None: `YOUTH`, or as many as its own warm-up where that is longer.
        multiplier: of its rate, for good. schedule: of all steps from the first on; None goes on with the present one.
        The average of the weights begins anew.
        """
        warmup = max(YOUTH, self.warmup) if warmup is None else warmup
        self.model, self.updater = self._taken(model, moments, warmup, multiplier, self.updater)
        if schedule is not None:
            self.schedule = schedule

    @contextlib.contextmanager
    def measurable(self) -> Iterator[LanguageModel]:
        """The model with the weights that are to be measured: averaged ones at a constant rate, else its own."""
        with contextlib.nullcontext() if self._averaging is None else self._averaging.in_place():
            yield self.model

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """In which forward passes of training are made."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.train.in_bf16 else contextlib.nullcontext()

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averaged weights by name; empty where the weights themselves are measured."""
        if self._averaging is None:
            return {}
        with self._averaging.in_place():
            trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
            return {name: self.ranks.whole(p.detach()).clone() for name, p in trained}

    def state(self) -> Saved:
        """All that it needs to go on from here bit for bit, but for the weights and their averages."""
        trace = {"losses": self.trace.losses, "grad_norms": self.trace.grad_norms}
        history = {name: torch.tensor(values, dtype=torch.float64) for name, values in trace.items()}
        figures = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.trace.figures.items()}
        plain = {
            "step": self.step,
            "warmup": self.warmup,
            "schedule": asdict(self.schedule),
            "guards": self.guards.state(),
            "averaging": None if self._averaging is None else self._averaging.state(),
            "memory_bytes": self.memory.bytes,
        }
        updater = self.updater.state()
        updater = Saved({name: self.ranks.whole(x) for name, x in updater.tensors.items()}, updater.plain)
        parts = {"updater": updater, "trace": Saved(history, {}), "figures": Saved(figures, {})}
        return Saved.joined({**parts, "trainer": Saved({}, plain)})

    def restore(self, saved: Saved, averages: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` gave, with a model of the weights that there were then, and their averages."""
        plain, trace, figures = saved.part("trainer").plain, saved.part("trace").tensors, saved.part("figures").tensors
        self.step, self.warmup, self.schedule = plain["step"], plain["warmup"], Schedule(**plain["schedule"])
        self.updater.restore(saved.part("updater"), self.ranks.cut_like)
        self.guards.restore(plain["guards"])
        self.memory.bytes = plain["memory_bytes"]
        self.trace = Trace(
            losses=trace["losses"].tolist(),
            grad_norms=trace["grad_norms"].tolist(),
            figures={name: values.tolist() for name, values in figures.items()},
        )
        if self._averaging is not None:
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            parameters = self.updater.parameters
            found = [self.ranks.cut_like(p, averages[names[p]]) for p in parameters]
            self._averaging.restore(plain["averaging"], found)

    def _taken(
        self,
        model: LanguageModel,
        moments: Moments | None,
        warmup: int,
        multiplier: float = 1.0,
        earlier: Updater | None = None,
    ) -> tuple[LanguageModel, Updater]:
        """The model made ready, and an optimizer of its own, which has the moments."""
        model.recompute = self.train.grad_ckpt
        model.train()
        model = self.ranks.sharded(model)
        self._forward = forward_of(model, self.train.compile)
        updater = make_updater(model, self.train)
        if moments is not None:
            updater.adopt(moments, warmup, multiplier=multiplier, earlier=earlier)
        averaged = self.train.schedule == "constant"
        self._averaging = Averaging(updater.parameters, self.earlier_steps + self.step) if averaged else None
        # memory is measured where the recurrences take all their steps
        risen = max((math.ceil(loop.ramp * self.total_steps) for loop in model.blueprint.recurrences), default=0)
        self._memory_step = min(max(self.step + MEMORY_STEP, risen), self.total_steps - 1)
        return model, updater

    def run(self, batches: Batches, until_step: int, progress: Progress | None = None) -> StopReason | None:
        """Train on `batches(step)`, of shape (B, T1), up to `until_step`; why a guard stopped it earlier, or None.

        A negative id −1 − i is token i, which is read but not scored as a target.

        On an accelerator guards are heard at every `READ_EVERY`-th step and at the last; the steps until then count.
        """
        cuda = [self.device] if self.device.type == "cuda" else []
        unread: list[Tensor] = []
        ahead: Tensor | None = None
        started = time.perf_counter()
        self.model.train()
        with torch.random.fork_rng(devices=cuda):
            while self.step < until_step:
                self._draw_anew()
                self.model.set_progress(self.step / self.total_steps)
                unread.append(self._step(self._on_device(batches(self.step)) if ahead is None else ahead))
                self.step += 1
                # while the device computes, the next batch is made and sent
                ahead = self._on_device(batches(self.step)) if self._fetches and self.step < until_step else None
                if self.step % self._read_every == 0 or self.step == until_step:
                    rows = torch.stack(unread).tolist()
                    now = time.perf_counter()
                    stop = self._read(rows, (now - started) / len(rows), progress)
                    if stop is not None:
                        return stop
                    unread, started = [], now
        return None

    def _draw_anew(self, *place: int) -> None:
        """Seeds the generators that are drawn from. `torch.manual_seed` would seed those of every kind of device, and
        where one was never used keep the seed for later, with a whole traceback, at every step."""
        seed = _mix(self.seed, self.step, *place)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)
        if self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def _on_device(self, ids_BT1: NDArray[np.int64]) -> Tensor:
        on_host = torch.from_numpy(ids_BT1)
        if self.device.type == "cuda":
            on_host = on_host.pin_memory()
        return on_host.to(self.device, non_blocking=True)

    def _step(self, ids_BT1: Tensor) -> Tensor:
        """One update: (loss, gradient norm, entropy or NaN, balance, figures in order of name), still on the device."""
        if self.step == self._memory_step:
            averages = [] if self._averaging is None else self._averaging.averages
            state = [*self.model.buffers(), *self.beside, *self.updater.state_tensors(), *averages]
            with self.memory.measure(self.ranks.held([*self.model.parameters(), *state])):
                return self._update(ids_BT1)
        return self._update(ids_BT1)

    def _update(self, ids_BT1: Tensor) -> Tensor:
        parts = ids_BT1.chunk(self.train.accumulate)
        own = self.ranks.own(len(parts))
        counted = len(ids_BT1) / self.ranks.size  # gradients become the mean over processes
        passed = []
        with self.model.recording() as record:
            for place in own:
                if place:  # every batch has noise of its own, whoever passes it
                    self._draw_anew(place)
                passed.append(self._backward(parts[place], len(parts[place]) / counted, record))
        nats_B = self.ranks.joined(torch.cat([nats_B for nats_B, _, _ in passed]))
        told = torch.stack([torch.stack([one[place] for one in passed]).mean() for place in (1, 2)])
        means = record.means()
        sampled, balance, *figures = self.ranks.mean(torch.stack([*told, *means.values()])).unbind()
        self.ranks.tallied(record)
        if self.on_record is not None:
            self.on_record(record)
        self.updater.hold_gradients()
        norm = self.ranks.clip(self.updater.parameters, self.train.clip)
        frozen = self.updater.frozen
        self.updater.step(self.schedule.scale(self.step))
        if not frozen:
            record.give_back()
        if self._averaging is not None:
            self._averaging.update()
        self._figures = tuple(means)
        return torch.stack([text_loss(nats_B, ids_BT1[:, 1:]), norm, sampled, balance, *figures])

    def _backward(self, ids_BT1: Tensor, share: float, record: Record) -> tuple[Tensor, Tensor, Tensor]:
        """As `_passed`, in as many parts as the batch is to go through the model in."""
        parts = ids_BT1.chunk(self.micro_batches)
        if len(parts) == 1:
            return self._passed(ids_BT1, share, record)
        shares = [len(part_BT1) / len(ids_BT1) for part_BT1 in parts]
        passed = [self._passed(part, share * own, record) for part, own in zip(parts, shares, strict=True)]
        sampled, balance = (sum(one[k] * own for one, own in zip(passed, shares, strict=True)) for k in (1, 2))
        assert isinstance(sampled, Tensor)
        assert isinstance(balance, Tensor)
        return torch.cat([nats_B for nats_B, _, _ in passed]), sampled, balance

    def _passed(self, ids_BT1: Tensor, share: float, record: Record) -> tuple[Tensor, Tensor, Tensor]:
        """Adds the gradients of a batch that is this share of its step; the losses of its sequences in nats, the
        entropy or NaN, and what load balancing added to the loss."""
        with self.precision():
            logits_BTV = self._forward(token_ids(ids_BT1)[:, :-1])
            forward = Forward.of(ids_BT1, logits_BTV, record)
        loss, nats_B = self.loss(forward), forward.nats_B.detach()
        sampled = entropy(logits_BTV) if (self.step + 1) % CHECK_EVERY == 0 else nats_B.new_full((), math.nan)
        balance = [added.detach() for added in record.losses.get("balance", ())]
        record.losses.clear()  # each batch's own
        del forward, logits_BTV  # the backward pass frees them early
        (loss * share).backward()  # type: ignore[no-untyped-call]
        return nats_B, sampled, torch.stack(balance).sum() if balance else nats_B.new_zeros(())

    def _read(self, rows: list[list[float]], seconds: float, progress: Progress | None) -> StopReason | None:
        """Hand the steps just finished to the trace, the guards and whoever watches."""
        stop: StopReason | None = None
        for k, (loss, norm, sampled, balance, *figures) in enumerate(rows):
            step = self.step - len(rows) + k
            in_nats = None if math.isnan(sampled) else sampled
            self.trace.losses.append(loss)
            self.trace.grad_norms.append(norm)
            self.trace.seconds.append(seconds)
            for name, value in zip(self._figures, figures, strict=True):
                self.trace.figures.setdefault(name, []).append(value)
            stop = stop or self.guards.observe(loss, norm, in_nats)
            if progress is not None:
                scale, tokens = self.schedule.scale(step), (step + 1) * self.tokens_per_step
                told = StepInfo(step + 1, self.total_steps, loss, norm, scale, tokens, seconds, in_nats, balance)
                progress(told)
        return stop


def _mix(seed: int, *place: int) -> int:
    """A seed for one step, or for one batch of it, unlike its neighbours'."""
    return int(np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)[0] >> np.uint64(1))
