"""Experts that split and go while a model trains, against a fixed number of them; and choosers of those that go.

First table: the same small model with 2 experts, with 4, and with 2 that split up to 4 and go by rules, on the bytes of
the running Python's library: held-out loss in nats per byte, how evenly experts are used at the end (entropy of usage
over ln N), splits and prunes. Every prune on record is checked to be of an expert below its threshold.

Second table: of a trained mixture of 8 experts half go, by each chooser and by chance; held-out loss right after, and
after some steps more.

    python benchmarks/morphogenesis.py [--quick]
"""

import argparse
import copy
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import texts
from morphogen.blueprint.growth import GrowthRule, PruneExperts
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import ExpertUsageTrigger
from morphogen.candidate import GrowthEvent
from morphogen.experiment import Train
from morphogen.growth import blending, recasting
from morphogen.growth.actions import act
from morphogen.growth.morphogenesis import Experts, entropy, mixtures
from morphogen.growth.surgery import operate
from morphogen.network import LanguageModel, assemble, build
from morphogen.training.growing import Growing
from morphogen.training.trainer import Trainer

DIM, LAYERS, HIDDEN, LAST = 32, 2, 32, 20
LENGTH = 64
BATCH_TOKENS = texts.BATCH * LENGTH
batch, held_out = partial(texts.batch, LENGTH), partial(texts.held_out, LENGTH)
USAGE = {"trigger": "expert_usage", "window": 20, "interval": 20, "min_age": 30}
RULES: list[dict[str, Any]] = [
    {
        "when": {**USAGE, "split_above": 1.2, "prune_below": 0.5},
        "do": {"action": "split_experts", "max_experts": 4},
    },
    {
        "when": {**USAGE, "split_above": 1.2, "prune_below": 0.5, "probation": 10},
        "do": {"action": "prune_experts"},
    },
]
#: Everybody is below this threshold, so that as many go as may.
ANYBODY = ExpertUsageTrigger(split_above=1e6, prune_below=1e5, interval=1)
CHANCES = 3


def blueprint(experts: int, k: int, balance: float, rules: list[dict[str, Any]] | None = None) -> Blueprint:
    """Attention and a mixture in every block."""
    ffn = {"kind": "moe", "hidden": HIDDEN, "n_experts": experts, "k": k, "balance": balance}
    block = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 16}, "ffn": ffn}
    model = {"emb": {"dim": DIM, "vocab": 256}, "blocks": [block] * LAYERS, "growth": rules or []}
    return Blueprint.model_validate(model)


def corpus() -> NDArray[np.int64]:
    """The bytes of this Python's own library, the head of every tenth file."""
    files = sorted(Path(statistics.__file__).parent.glob("*.py"))[::10]
    return np.frombuffer(b"".join(file.read_bytes()[:40_000] for file in files), dtype=np.uint8).astype(np.int64)


def trained(model: LanguageModel, text: NDArray[np.int64], steps: int, seed: int) -> tuple[Growing, Experts]:
    """Trained for so many steps, by its rules; and books of its experts over the last of them."""
    trainer = Trainer(model, Train(), total_steps=steps, tokens_per_step=BATCH_TOKENS, seed=seed)
    growing = Growing(trainer, held_BT1=batch(text, 1, -1), seed=seed)
    growing.run(lambda step: batch(text, seed, step), steps - LAST)
    books = Experts.of(growing.blueprint, [])
    for step in range(steps - LAST, steps):
        with trainer.model.recording() as record, torch.no_grad():
            trainer.model(torch.from_numpy(batch(text, seed, step)[:, :-1]))
        before = growing.blueprint
        books.observe(blending.loads(trainer.model, record), step + 1)
        growing.run(lambda step: batch(text, seed, step), step + 1)
        if growing.blueprint != before:
            books = Experts.of(growing.blueprint, [])
    return growing, books


def evenness(books: Experts) -> float:
    """Entropy of usage over ln N, the mean over layers."""
    usages = [books.usage(block) for block in books.books]
    return statistics.fmean(entropy(usage) / math.log(len(usage)) for usage in usages)


def checked(events: list[GrowthEvent]) -> tuple[int, int]:
    """How many experts split and went; every one that went is below its threshold."""
    counts = {"split_experts": 0, "prune_experts": 0}
    for event in events:
        counts[event.action] += sum(len(chosen) for chosen in event.experts.values())
        if event.action == "prune_experts":
            assert event.threshold is not None
            assert all(used < event.threshold for usage in event.usage.values() for used in usage), event
    return counts["split_experts"], counts["prune_experts"]


def by_rules(text: NDArray[np.int64], steps: int, seeds: tuple[int, ...]) -> None:
    """The first table."""
    print(f"{'':<22}{'held-out loss':>18}{'evenness':>10}{'experts at the end':>20}{'splits':>8}{'prunes':>8}")
    for name, experts, rules in (("2 experts", 2, None), ("4 experts", 4, None), ("2 to 4 by rules", 2, RULES)):
        losses, evens, ends, events = [], [], [], list[GrowthEvent]()
        for seed in seeds:
            growing, books = trained(build(blueprint(experts, 1, 0.003, rules), seed), text, steps, seed)
            losses.append(held_out(growing.trainer.model, text))
            evens.append(evenness(books))
            ends.append([moe.n_experts for moe in mixtures(growing.blueprint).values()])
            events += growing.events
        splits, prunes = checked(events)
        shown = " ".join("+".join(map(str, end)) for end in ends)
        print(
            f"{name:<22}{_shown(losses):>18}{statistics.fmean(evens):>10.2f}{shown:>20}{splits:>8}{prunes:>8}",
            flush=True,
        )


def without_half(growing: Growing, books: Experts, chooser: str, seed: int, steps: int) -> LanguageModel:
    """The model after half of each mixture's experts went."""
    model, before = growing.trainer.model, growing.blueprint
    situation = recasting.Situation(model, books, steps, growing.held_BT1[:, :-1])
    rng = np.random.default_rng(seed)
    by = "usage" if chooser == "chance" else chooser
    action = PruneExperts.model_validate({"chooser": by, "min_experts": 4})
    if chooser == "chance":
        chosen = {block: tuple(rng.permutation(8)[:4].tolist()) for block in mixtures(before)}
    else:
        chosen = books.to_prune(ANYBODY, action, before, steps, situation.written)
    made = recasting.recast(action, chosen, situation, {"": situation.state()})
    grown = act(before, action, rng, chosen)
    assert grown is not None
    return assemble(grown.blueprint, copy.deepcopy(operate(grown, before, made[""], {}, seed).state))


def by_choosers(text: NDArray[np.int64], steps: int, seeds: tuple[int, ...]) -> None:
    """The second table."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        growing, _ = trained(build(blueprint(8, 2, 0.0), seed), text, steps, seed)
        books = Experts.of(growing.blueprint, [_rule()])
        for step in range(LAST):
            with growing.trainer.model.recording() as record, torch.no_grad():
                growing.trainer.model(torch.from_numpy(batch(text, seed, step)[:, :-1]))
            books.observe(blending.loads(growing.trainer.model, record), step + 1)
        whole = copy.deepcopy(growing.trainer.model)
        before = held_out(whole, text)
        found.setdefault("all 8 stay", []).append(
            (before, held_out(trained(whole, text, LAST, seed + 50)[0].trainer.model, text))
        )
        for chooser in ("usage", "gate_norm", "merge", *["chance"] * CHANCES):
            model = without_half(growing, books, chooser, seed * 100 + len(found.get("chance", [])), steps)
            after = held_out(model, text)
            later, _ = trained(model, text, LAST, seed + 50)
            found.setdefault(chooser, []).append((after, held_out(later.trainer.model, text)))
    print(f"{'':<22}{'right after':>18}{f'{LAST} steps later':>18}")
    for chooser, figures in found.items():
        after, later = ([figure[i] for figure in figures] for i in (0, 1))
        print(f"{chooser:<22}{_shown(after):>18}{_shown(later):>18}", flush=True)


def _rule() -> GrowthRule:
    return GrowthRule(when=ANYBODY, do=PruneExperts())


def _shown(values: list[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Experts that split and go.")
    parser.add_argument("--quick", action="store_true", help="one seed")
    seeds = (0,) if parser.parse_args().quick else (0, 1, 2)
    torch.set_num_threads(1)
    text = corpus()
    by_rules(text, 200, seeds)
    print()
    by_choosers(text, 120, seeds)


if __name__ == "__main__":
    main()
