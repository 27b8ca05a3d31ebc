"""One training from its first step to its last, with checkpoints that it goes on from bit for bit: `morphogen train`.

What trains and grows is `Growing`, as in a trial; here is what a training of hours needs around it.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from morphogen.candidate import GrowthEvent, StopReason, Tokens
from morphogen.data.mixture import Mixture, Trained, unique_tokens
from morphogen.data.prepare import PreparedData
from morphogen.errors import DivergedError, InputError, RunError
from morphogen.experiment import Train
from morphogen.growth import log
from morphogen.growth.morphogenesis import experts_of
from morphogen.inherit.borrowed import donors_of, donors_told
from morphogen.inherit.checkpoint import BEGUN_AS, GREW_BY, save_checkpoint
from morphogen.inherit.excerpts import CARRIED, excerpts
from morphogen.inherit.provenance import Provenance
from morphogen.inherit.splice import StateDict
from morphogen.metrics.perplexity import evaluate
from morphogen.network import assemble
from morphogen.store.files import canonical_json
from morphogen.training import snapshots
from morphogen.training.anchored import NOTHING_KEPT, Anchoring, Remembered
from morphogen.training.device import out_of_memory
from morphogen.training.distributed import ALONE, Ranks
from morphogen.training.ending import Ending
from morphogen.training.growing import Behind, Growing
from morphogen.training.interrupts import Interrupt, heard
from morphogen.training.journal import Journal
from morphogen.training.news import Evaluated, Grew, Noted, Observer, Stepped
from morphogen.training.saved import Saved
from morphogen.training.schedule import Schedule
from morphogen.training.snapshots import Snapshot
from morphogen.training.terms import Origin, Outcome, Wanted, drawn_seed
from morphogen.training.trace import StepInfo
from morphogen.training.trainer import Trainer

#: The finished model, in a training's folder.
MODEL = "model.safetensors"
#: An interrupt is heard after about so long, or after one step.
HEARD_SECONDS, MOST_STEPS = 1.0, 100
#: About so many times in a training the usage of experts is noted.
USAGE_SAMPLES = 100
#: Guards that nothing trips: a training that is asked for so many steps takes them.
UNGUARDED = {"entropy_threshold": 0.0, "instability_threshold": 1e300, "no_improve_patience": 2**62}


class LongRun:
    """A training in a folder that is its own."""

    def __init__(
        self,
        folder: Path,
        origin: Origin,
        prepared: PreparedData,
        wanted: Wanted,
        start: StateDict | Snapshot,
        observer: Observer,
        device: str,
        ranks: Ranks = ALONE,
    ) -> None:
        """start: the weights that it begins with, or the checkpoint that it goes on from. ranks: the processes that
        carry it out together; the first of them writes and tells."""
        self.ranks = ranks
        self.folder, self.origin, self.prepared, self.wanted, self.observer = folder, origin, prepared, wanted, observer
        self.mixture = Mixture(prepared, self._seed("data"))
        blueprint, state = (start.blueprint, start.state) if isinstance(start, Snapshot) else (origin.blueprint, start)
        self.taken = (
            donors_told(start.path, start.metadata)
            if isinstance(start, Snapshot)
            else donors_of(blueprint, state, origin.donors)
        )
        per_step = prepared.tokens_per_step
        self.first_step = origin.begun.lineage // per_step
        trainer = Trainer(
            assemble(blueprint, state).to(device),
            self._train(),
            total_steps=wanted.steps,
            tokens_per_step=per_step,
            seed=self._seed("dropout"),
            earlier_steps=self.first_step,
            ranks=ranks,
        )
        self.saved_at = -1
        self.last: StepInfo | None = None
        self.stop: StopReason | None = None
        self.growing = Growing(
            trainer,
            held_BT1=self.mixture.held(),
            seed=self._seed("growth"),
            behind=Behind(self.first_step, origin.begun.lineage, origin.memory),
            anchoring=self._anchored(trainer, begins=not isinstance(start, Snapshot)),
            on_event=self._grew,
        )
        noted = None
        if isinstance(start, Snapshot):
            with snapshots.understood(start.path):
                self._restore(start)
                noted = start.saved.part("journal").plain
        self._beside = ExitStack()
        kept_in = folder if ranks.first else Path(self._beside.enter_context(TemporaryDirectory()))
        self.journal = Journal(kept_in, trainer.step, noted, tensorboard=wanted.tensorboard and ranks.first)
        self._size = self._measured_size()

    def _anchored(self, trainer: Trainer, *, begins: bool) -> Anchoring | None:
        """What keeps it from forgetting, told of what lies behind the weights where it begins with those of others."""
        anchoring = Anchoring.of(
            self.origin.experiment.train.anchoring, trainer, self.prepared, self._seed("anchoring")
        )
        if anchoring is not None and begins and self.origin.begun.lineage:
            said = anchoring.begin(self._remembered(), new={})
            for line in (said, NOTHING_KEPT if anchoring.unfilled else ""):
                if line:
                    self.observer(Noted(line))
        return anchoring

    def _remembered(self) -> Remembered | None:
        """What the training whose weights this one begins with kept of its text to rehearse from; None where it kept
        nothing, or of another tokenizer's."""
        weights = Path(self.origin.experiment.train.init_checkpoint or "")
        for path in (weights, *(path for _, path in snapshots.found(weights.parent))):
            with suppress(InputError):
                kept_by = snapshots.read(path)
                digest = Provenance.from_metadata(kept_by.metadata, path).tokenizer
                match kept_by.saved.plain:
                    case {"growing": {"anchoring": {"source": "data", "seen": int()}}}:
                        if digest == self.prepared.tokenizer_digest:
                            return Remembered(kept_by.saved.part("growing").part("anchoring"))
        return None

    def _seed(self, purpose: str) -> int:
        return drawn_seed(self.origin.experiment, purpose)

    def _train(self) -> Train:
        train = self.origin.experiment.train
        return train if self.wanted.early_stop else train.model_copy(update=UNGUARDED)

    def _restore(self, snapshot: Snapshot) -> None:
        trainer, steps = self.trainer, self.wanted.steps
        trainer.restore(snapshot.saved, snapshot.averages)
        self.saved_at = snapshot.step
        if trainer.schedule.steps != steps:  # other --steps; the warm-up stays where it was
            asked = Schedule.of(self._train(), steps, begun=True)
            trainer.schedule = replace(asked, warmup=min(trainer.warmup, steps))
        self.growing.restore(snapshot.saved.part("growing"))
        last = snapshot.saved.part("last").plain["step"]
        self.last = None if last is None else StepInfo(**last)
        ending = Ending.told(snapshot.metadata, snapshot.path)
        if ending is not None and self.wanted.early_stop and ending.holds(trainer.train):
            self.stop = ending.stop

    @property
    def trainer(self) -> Trainer:
        """What trains it."""
        return self.growing.trainer

    @property
    def step(self) -> int:
        """Of the optimizer, so far."""
        return self.trainer.step

    def run(self) -> Outcome:
        """Trains to the end, or until it is asked to end; then there is a checkpoint of the step that it came to.

        Raises:
            DivergedError: Loss or gradient are no numbers any more; the checkpoints are of before.
            RunError: A file cannot be written, or memory is not enough.
        """
        with self._beside, closing(self.journal), heard() as interrupt:
            for rule in self.wanted.grow:
                self.growing.ask(rule)
            try:
                self._loop(interrupt)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                raise RunError(
                    f"out of memory on {self.trainer.device} at step {self.step}; lower data.batch_size and raise "
                    f"train.accumulate, or set limits to growth. {self._where_to_go_on()}"
                ) from None
            if not self._asked(interrupt):
                if not self.journal.evals or self.journal.evals[-1][0] != self.step:
                    self._evaluate()
                    self._save()
                self._write_model()
            return self._outcome(interrupted=self._asked(interrupt))

    def _asked(self, interrupt: Interrupt) -> bool:
        """Whether one of the processes was asked to end."""
        return self.ranks.any(interrupt.asked, self.trainer.device)

    def _loop(self, interrupt: Interrupt) -> None:
        wanted, pace = self.wanted, 1
        while self.step < wanted.steps and self.stop is None and not self._asked(interrupt):
            begun_at, before = time.monotonic(), self.step
            usage_every = max(1, wanted.steps // USAGE_SAMPLES)
            stops = (self._next(every) for every in (wanted.checkpoint_every, wanted.eval_every, usage_every))
            until = min(self.step + pace, *stops)
            self.stop = self.growing.run(self._batch, min(until, wanted.steps), self._stepped)
            if self.stop is StopReason.NOT_FINITE:
                trace = self.trainer.trace
                raise DivergedError(
                    f"training diverged at step {self.step}: loss {trace.losses[-1]}, gradient norm "
                    f"{trace.grad_norms[-1]}. {self._where_to_go_on()}"
                )
            seconds = (time.monotonic() - begun_at) / max(1, self.step - before)
            pace = int(min(max(HEARD_SECONDS / max(seconds, 1e-9), 1), MOST_STEPS))
            pace = self.ranks.as_the_first(pace, self.trainer.device)
            if self.step % usage_every == 0:
                self._note_usage()
            if wanted.eval_every and self.step % wanted.eval_every == 0:
                self._evaluate()
            if self.step % wanted.checkpoint_every == 0:
                self._save()
        if self.saved_at != self.step:
            self._save()

    def _next(self, every: int) -> int:
        """The next step that is a multiple of `every`."""
        return (self.step // every + 1) * every if every else self.wanted.steps

    def _batch(self, step: int) -> Any:
        return self.mixture.batch(self.first_step + step)

    def _where_to_go_on(self) -> str:
        kept = snapshots.found(self.folder)
        return f"The last checkpoint is of step {kept[0][0]}" if kept else "There is no checkpoint yet"

    # -- what it tells

    def _stepped(self, step: StepInfo) -> None:
        self.last = step
        self.journal.step(step, self._lr(step), self._size)
        self.observer(Stepped(step, self._size[0], self.journal.rows[-1].event if self.journal.rows else ""))

    def _lr(self, step: StepInfo) -> float:
        train = self.origin.experiment.train
        lr = train.lr if train.optimizer.lr is None else train.optimizer.lr
        assert isinstance(lr, float)
        return lr * step.lr_scale

    def _grew(self, event: GrowthEvent) -> None:
        """Told by `Growing` right after it went on as another model."""
        segments, last = self.growing.segments, self.last
        moment = log.Moment(
            time=datetime.now().isoformat(" ", "seconds"),
            step=self.step,
            tokens=self.step * self.prepared.tokens_per_step,
            loss=None if last is None else last.loss,
            balance=None if last is None else last.balance,
            lr=None if last is None else self._lr(last),
        )
        before = self.growing.blueprint if event.taken_back else segments[-2].blueprint
        rows = log.rows_of(event, moment, before, self.growing.blueprint)
        self._size = self._measured_size()
        self.journal.grew(rows)
        for row in rows:
            self.observer(Grew(row))

    def _note_usage(self) -> None:
        """How much every expert is used, where rules of growth watch over it."""
        books = self.growing.controller.experts
        for layer, block in enumerate(self.growing.blueprint.blocks):
            if block.id in books.books:
                self.journal.usage(self.step, layer, block.id, books.usage(block.id))

    def _measured_size(self) -> tuple[int, int, int, int]:
        """Parameters, layers, channels, experts in all."""
        blueprint = self.growing.blueprint
        params = sum(parameter.numel() for parameter in self.trainer.model.parameters())
        return params, len(blueprint.blocks), blueprint.emb.dim, sum(experts_of(blueprint).values())

    def _evaluate(self) -> None:
        experiment = self.origin.experiment
        with self.trainer.measurable() as model:
            found = evaluate(model, self.mixture, experiment.data.eval_tokens, bf16=experiment.train.in_bf16)
        bpb = float(found["bpb"])
        self.journal.evaluated(self.step, self.step * self.prepared.tokens_per_step, bpb)
        self.observer(Evaluated(self.step, bpb))

    # -- what it leaves

    def _save(self) -> None:
        """A checkpoint of now; every line of the tables is on disk before."""
        last = None if self.last is None else asdict(replace(self.last, seconds=0.0))
        plain = {"journal": self.journal.state(), "last": {"step": last}}
        parts = Saved.joined({"growing": self.growing.state(), **{name: Saved({}, of) for name, of in plain.items()}})
        trainer = self.trainer.state()
        saved = Saved({**trainer.tensors, **parts.tensors}, {**trainer.plain, **parts.plain})
        state, averages = self.ranks.state_of(self.trainer.model), self.trainer.averages
        self.saved_at = self.step
        if self.ranks.first:
            blueprint, told = self.growing.blueprint, self._metadata()
            path = snapshots.path_at(self.folder, self.step)
            snapshots.write(path, self.origin.id, self.step, blueprint, state, averages, saved, told)
            snapshots.tidy(self.folder, self.wanted.keep)

    def _write_model(self) -> None:
        """The finished model, as a candidate's checkpoint is, and beside it what it needs of other models."""
        state, averages = self.ranks.state_of(self.trainer.model), self.trainer.averages
        if self.ranks.first:
            blueprint, metadata = self.growing.blueprint, dict(self._metadata())
            if carried := excerpts([blueprint], self.folder):
                metadata[CARRIED] = canonical_json(carried)
            save_checkpoint(self.folder / MODEL, state, blueprint, metadata, averages)

    def _metadata(self) -> Mapping[str, str]:
        """As a candidate's checkpoint has it, and what this training began with and grew by."""
        own, begun = self.step * self.prepared.tokens_per_step, self.origin.begun
        tokens = Tokens(own=own, lineage=begun.lineage + own, unique=self._unique() + begun.unique)
        prepared = self.prepared
        behind = Provenance(
            prepared.tokenizer_digest,
            prepared.tokenizer,
            prepared.vocabulary(),
            tokens,
            begun,
            self.growing.memory(),
            self.taken,
        )
        events = [event.model_dump(mode="json") for event in self.growing.events]
        return {
            "candidate": self.origin.experiment.model.name,
            "steps": str(self.step),
            BEGUN_AS: canonical_json(self.origin.blueprint.to_json()),
            GREW_BY: canonical_json(events),
            "tokenizer_json": self.origin.tokenizer_json,
            **behind.to_metadata(),
            **({} if self.stop is None else Ending.of(self.stop, self.trainer.train).to_metadata()),
        }

    def _unique(self) -> int:
        run = Trained(self._seed("data"), self.step, 0, self.first_step)
        return unique_tokens(self.prepared, [run])

    def _outcome(self, *, interrupted: bool) -> Outcome:
        return Outcome(
            self.step,
            self.step * self.prepared.tokens_per_step,
            self.journal.evals[-1][2] if self.journal.evals else None,
            self.growing.blueprint,
            self.stop,
            interrupted,
            len(self.growing.events),
        )
