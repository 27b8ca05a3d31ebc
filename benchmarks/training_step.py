"""Whole training steps (forward, loss, backward, clipping, AdamW) against transformers' Llama and GPT-2, one thread.

Models of the same width, depth and vocabulary, built here from their configurations; batches of random ids. Each peer
is met in fp32 and in bf16, both with fused AdamW as morphogen has it, and as shipped on a CPU (fp32, AdamW's default
loop) by morphogen's bf16. Contestants take turns, times are medians of CPU seconds, as others may share the machine;
above 1 means that morphogen is the faster.

    python benchmarks/training_step.py [--quick] [--lengths 256 512]

B sequences, T tokens (T1 is T + 1), V vocabulary
"""

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from morphogen.blueprint.schema import Blueprint
from morphogen.experiment import Train
from morphogen.network import build
from morphogen.training.allocator import memory_kept
from morphogen.training.trainer import Trainer

DIM, LAYERS, HEADS, VOCAB = 256, 6, 8, 4096
LLAMA_HIDDEN, GPT2_HIDDEN = 688, 1024
LR, CLIP = 1e-3, 1.0
Step = Callable[[], object]


def random_ids(batch: int, length: int, step: int) -> NDArray[np.int64]:
    """Random token ids of shape (B, T1)."""
    return np.random.default_rng(step).integers(VOCAB, size=(batch, length + 1))


def llama_like() -> Blueprint:
    """RMSNorm, RoPE, SwiGLU, tied head: the same operations as `peer_llama`."""
    block = {
        "attn": {"kind": "MHA", "heads": HEADS, "head_dim": DIM // HEADS},
        "ffn": {"kind": "dense", "hidden": LLAMA_HIDDEN, "activation": "swiglu"},
    }
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": VOCAB}, "blocks": [block] * LAYERS})


def gpt2_like() -> Blueprint:
    """LayerNorm and GELU; RoPE stands for GPT-2's learned positions."""
    block = {
        "attn": {"kind": "MHA", "heads": HEADS, "head_dim": DIM // HEADS},
        "ffn": {"kind": "dense", "hidden": GPT2_HIDDEN, "activation": "gelu"},
    }
    return Blueprint.model_validate(
        {"emb": {"dim": DIM, "vocab": VOCAB}, "norm": "layernorm", "blocks": [block] * LAYERS}
    )


def peer_llama(length: int) -> nn.Module:
    """transformers' Llama with its SDPA attention."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=DIM,
            intermediate_size=LLAMA_HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=length,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )


def peer_gpt2(length: int) -> nn.Module:
    """transformers' GPT-2 with its SDPA attention, without dropout."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB,
            n_embd=DIM,
            n_inner=GPT2_HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=length,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )


def our_step(blueprint: Blueprint, batch: int, length: int, *, bf16: bool) -> Step:
    """One step of morphogen's own `Trainer`, its reading back of losses and guards included."""
    train = Train(lr=LR, clip=CLIP, warmup=0, bf16=bf16, no_improve_patience=10**6)
    trainer = Trainer(build(blueprint), train, total_steps=10**6, tokens_per_step=batch * length, seed=0)
    return lambda: trainer.run(lambda step: random_ids(batch, length, step), trainer.step + 1)


def peer_step(model: nn.Module, batch: int, length: int, *, bf16: bool, fused: bool) -> Step:
    """The same loop written plainly around a peer."""
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, fused=fused or None)
    steps = itertools.count()

    def step() -> None:
        ids = torch.from_numpy(random_ids(batch, length, next(steps)))
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            logits_BTV = model(input_ids=ids[:, :-1]).logits
            loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def medians(contestants: dict[str, Step], rounds: int, uncounted: int = 2) -> dict[str, float]:
    """CPU seconds of each, the median over rounds in which all take turns; the first rounds are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + uncounted):
        for name, step in contestants.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times[uncounted:]) for name, times in seconds.items()}


def main() -> None:
    """Print one table per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and only the first length")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rounds, lengths = (3, arguments.lengths[:1]) if arguments.quick else (12, arguments.lengths)
    for length in lengths:
        batch = arguments.batch
        contestants: dict[str, Step] = {}
        for kind, blueprint, peer in (("Llama", llama_like(), peer_llama), ("GPT-2", gpt2_like(), peer_gpt2)):
            for bf16 in (False, True):
                name = "bf16" if bf16 else "fp32"
                contestants[f"ours {kind} {name}"] = our_step(blueprint, batch, length, bf16=bf16)
                contestants[f"{kind} {name}"] = peer_step(peer(length), batch, length, bf16=bf16, fused=True)
            contestants[f"{kind} as shipped"] = peer_step(peer(length), batch, length, bf16=False, fused=False)
        with memory_kept():
            taken = medians(contestants, rounds)
        title = f"training step, d={DIM}, {LAYERS} layers, T={length}, batch {batch}, vocabulary {VOCAB}"
        table = Table(title=title)
        for column in ("peer", "its tokens/s", "morphogen's tokens/s", "morphogen ÷ peer"):
            table.add_column(column, justify="right")
        for kind in ("Llama", "GPT-2"):
            for theirs, ours in (("fp32", "fp32"), ("bf16", "bf16"), ("as shipped", "bf16")):
                peer_s, our_s = taken[f"{kind} {theirs}"], taken[f"ours {kind} {ours}"]
                tokens = batch * length
                row = (f"{tokens / peer_s:,.0f}", f"{tokens / our_s:,.0f} ({ours})", f"{peer_s / our_s:.2f}")
                table.add_row(f"HF {kind}, {theirs}", *row)
        Console().print(table)


if __name__ == "__main__":
    main()
