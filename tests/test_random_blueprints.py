"""Whole models of random blueprints over every kind: sound numbers, no leaks, decoding, and costs that are the real ones.

Forty blueprints in the fast suite, 1,000 in the slow one. B batch, T tokens, V vocabulary
"""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counting import counted_flops, undropped, unseen_flops
from models import ids_of, logits, stirred, uncut
from morphogen.blueprint.schema import Blueprint
from morphogen.cost import costs
from morphogen.experiment import Train
from morphogen.network import Cache, LanguageModel, assemble, build
from morphogen.parts.base import REGISTRY
from morphogen.parts.readers import SlotReader
from morphogen.training.loop import Trainer
from strategies import VOCAB, blueprints

#: Tokens: more than one tile of attention and one chunk of every scan.
TOKENS = 72
#: Tokens for the FLOPs: as many choices as any number of places up to 6 divides.
COUNTED = 60
LEAK, AGREE, FLOPS = 1e-5, 1e-4, 0.05


def check(blueprint: Blueprint, seed: int) -> None:
    """All that the model of any blueprint must do."""
    rng = np.random.default_rng(seed)
    trains(blueprint, seed)
    leaks_nothing_and_decodes(blueprint, rng)
    costs_what_is_predicted(blueprint)


def trains(blueprint: Blueprint, seed: int) -> None:
    """Two steps of the training loop; every loss, gradient norm, parameter and logit is finite afterwards."""
    model = build(blueprint, seed=seed % 1000)
    ids_BT1 = ids_of(seed % 1000, tokens=TOKENS + 1).numpy()
    trainer = Trainer(model, Train(warmup=0, lr=3e-3), total_steps=2, tokens_per_step=2 * TOKENS, seed=0)
    trainer.run(lambda step: np.roll(ids_BT1, step, 1), 2)
    assert trainer.step == 2
    assert np.isfinite(trainer.trace.losses + trainer.trace.grad_norms).all()
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def leaks_nothing_and_decodes(blueprint: Blueprint, rng: np.random.Generator) -> None:
    """In fp32: no token of the future, no neighbour in the batch; prefixes and chunks give the logits of the whole."""
    state = stirred(uncut(blueprint), dtype=torch.float32)
    model, ids_BT = assemble(uncut(blueprint), state).eval(), ids_of(int(rng.integers(1000)), tokens=TOKENS)
    at = int(rng.integers(TOKENS))
    changed_BT = ids_BT.clone()
    changed_BT[0, at] = (changed_BT[0, at] + 1) % VOCAB
    cuts = sorted({int(cut) for cut in rng.integers(1, TOKENS, 3)})
    cuts = [*cuts, *(cut + 1 for cut in cuts if cut + 1 not in cuts and cut + 1 < TOKENS)]
    with torch.no_grad():
        whole_BTV, moved_BTV, cache = model(ids_BT), model(changed_BT), Cache()
        prefix_BTV = model(ids_BT[:, : cuts[0]])
        bounds = itertools.pairwise([0, *sorted(cuts), TOKENS])
        pieces_BTV = torch.cat([model.extend(ids_BT[:, a:b], cache) for a, b in bounds], 1)
    size = float(whole_BTV.abs().max())
    leak_BT = (moved_BTV - whole_BTV).abs().amax(-1)
    assert size > 0
    assert float(leak_BT[1].max()) <= LEAK
    assert float(leak_BT[0, :at].amax() if at else 0.0) <= LEAK
    assert float((prefix_BTV - whole_BTV[:, : cuts[0]]).abs().max()) <= AGREE * size
    assert float((pieces_BTV - whole_BTV).abs().max()) <= AGREE * size


def costs_what_is_predicted(blueprint: Blueprint) -> None:
    """Parameters and cache bytes exactly, FLOPs within 5 %."""
    model = build(blueprint)
    predicted = costs(blueprint, COUNTED)
    assert predicted["params"] == sum(parameter.numel() for parameter in model.parameters())
    even = undropped(blueprint)
    counted = counted_flops(build(even), ids_of(0, COUNTED, batch=1)) / COUNTED + unseen_flops(even, COUNTED)
    assert predicted["flops_per_token"] == pytest.approx(counted, rel=FLOPS)
    caches_what_is_predicted(blueprint, model)


def caches_what_is_predicted(blueprint: Blueprint, model: LanguageModel) -> None:
    """The bytes of a bf16 decoder's cache, less where the next token stands.

    What waits for the next slot of a memory is counted at its largest, and here is what it is.
    """
    cache, predicted = Cache(), costs(blueprint, TOKENS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for piece in ids_of(0, TOKENS, batch=1).split([TOKENS - 9, 1, 8], 1):
            model.eval().extend(piece, cache)
    waiting = 0.0
    for gene in blueprint.genes(TOKENS):
        if isinstance(gene.part, SlotReader):
            waiting += (gene.loop.steps(1.0) if gene.loop else 1) * 2.0 * (gene.part.slots.size - 1) * gene.ctx.dim
    real, tails = 0, 0
    for state in cache.values():
        tails += sum(x.numel() * x.element_size() for name, x in state.items() if name == "tail")
        real += sum(x.numel() * x.element_size() for name, x in state.items() if name not in ("tail", "seen"))
    assert tails <= waiting
    want = predicted["kv_bytes_per_token"] * TOKENS + predicted["state_bytes"] - waiting
    assert real == pytest.approx(want, rel=1e-9, abs=1e-6)
