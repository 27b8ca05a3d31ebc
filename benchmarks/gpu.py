"""What a GPU gives: numerics, each kind against its counterpart, whole steps, candidates per hour, gaps of the host.

One script without a network, made for at most 8 minutes on one data-centre GPU. Prints a table and writes JSON. A part
that fails is told, and the others go on. With `--dry` everything runs at toy size on a CPU, to see that it works.

    python benchmarks/gpu.py [--dry] [--device cuda] [--out runs/gpu.json] [--only numerics ...]

Times are medians of steps in which all take turns; a ratio above 1 means that morphogen is the faster.

B sequences, T tokens (T1 is T + 1), V vocabulary
"""

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Job, Report, Status
from morphogen.cli.explain import nominal_vocab
from morphogen.cost import TRAIN_FACTOR, costs
from morphogen.execution.pool import Pool, devices_of
from morphogen.experiment import Train
from morphogen.network import build
from morphogen.ops.paths import paths
from morphogen.reading import read_experiment
from morphogen.search.rungs import stages
from morphogen.training.device import choose_device
from morphogen.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
PHI = ROOT / "configs" / "live_phi_tiny.yaml"
#: Relative errors that are allowed of logits and gradients, by precision.
BOUNDS = {"fp32": 1e-3, "bf16": 6e-2}
#: Waits of the host for the device, as the profiler calls them.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
#: Of them a step may have so many: losses are read back every ten steps.
MOST_WAITS = 0.5
Row = dict[str, Any]
Step = Callable[[], object]


@dataclass(frozen=True)
class Scale:
    """How large everything is. seconds: of one measurement, warm-up apart."""

    dim: int
    head: int
    layers: int
    vocab: int
    tokens: int
    batch: int
    hidden: int
    seconds: float
    least: int
    square: int
    dtypes: tuple[str, ...]


WHOLE = Scale(768, 64, 12, 32768, 1024, 8, 2048, 4.0, 10, 8192, ("fp32", "bf16"))
KIND = Scale(512, 64, 4, 4096, 1024, 8, 1408, 1.0, 5, 8192, ("bf16",))
TOY = Scale(32, 16, 1, 64, 32, 2, 64, 0.0, 1, 128, ("fp32",))

ATTN = {"kind": "MHA", "heads": 2, "head_dim": 16}
FFN = {"kind": "dense", "hidden": 64}
#: Branches whose numerics are looked at, by name.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "MHA": {"attn": ATTN},
    "GQA, ALiBi, softcap": {
        "attn": {**ATTN, "kind": "GQA", "kv_groups": 2, "rope": "none", "alibi": True, "softcap": 20.0}
    },
    **{
        f"sparsity {name}": {"attn": {**ATTN, "sparsity": name, **more}}
        for name, more in {
            "sliding": {"sliding_window": 24},
            "block": {"block_size": 16, "block_stride": 2},
            "local_global": {"sliding_window": 16, "global_stride": 8},
            "dilated": {"dilation": 3},
            "local_block": {"sliding_window": 16, "block_size": 16, "block_stride": 2},
        }.items()
    },
    "MLA": {"attn": {"kind": "MLA", "heads": 2, "head_dim": 16, "kv_latent_dim": 24, "rope_head_dim": 16}},
    **{
        f"LINEAR {decay}": {"attn": {"kind": "LINEAR", "heads": 2, "head_dim": 16, "decay": decay}}
        for decay in ("none", "retention", "gated", "delta")
    },
    "mamba2": {"ssm": {"kind": "mamba2", "d_state": 16, "head_dim": 16}},
    "mamba": {"ssm": {"kind": "mamba", "d_state": 8}},
    "moe": {"ffn": {"kind": "moe", "hidden": 32, "n_experts": 4, "k": 2}},
    "retro": {"extras": [{"kind": "retro", "heads": 2, "head_dim": 16}], "ffn": FFN},
    "assoc_memory": {"extras": [{"kind": "assoc_memory", "heads": 2, "head_dim": 16}], "ffn": FFN},
    "short_conv": {"extras": [{"kind": "short_conv"}], "ffn": FFN},
}


def cast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """In which a forward pass is made."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def settle(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(contestants: Mapping[str, Step], device: torch.device, scale: Scale) -> dict[str, float]:
    """Seconds of a step of each, in turns, after a warm-up in which kernels are compiled and tried."""
    for step in contestants.values():
        for _ in range(3):  # of the second one the Trainer measures the memory
            step()
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    began = time.perf_counter()
    while len(next(iter(taken.values()))) < scale.least or time.perf_counter() - began < scale.seconds:
        for name, step in contestants.items():
            settle(device)
            start = time.perf_counter()
            step()
            settle(device)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


# ------------------------------------------------------------------------------------------------------------- numerics


def numerics(device: torch.device, scale: Scale, dry: bool) -> Iterator[Row]:
    """Every kind on the device against fp64 on the CPU: logits and gradients; and whether the future is seen."""
    ids_BT = torch.from_numpy(np.random.default_rng(0).integers(64, size=(2, 33 if dry else 130)))
    for name, block in KINDS.items():
        blueprint = Blueprint.model_validate({"emb": {"dim": 32, "vocab": 64}, "blocks": [block]})
        exact = build(blueprint, seed=0).double()
        want, wanted = _passed(exact, ids_BT)
        for precision in ("fp32",) if dry else ("fp32", "bf16"):
            model = build(blueprint, seed=0).to(device)
            with cast(device, precision):
                got, grads = _passed(model, ids_BT.to(device))
                moved_BT = ids_BT.to(device).clone()
                moved_BT[:, -1] = (moved_BT[:, -1] + 1) % 64
                with torch.no_grad():
                    leak = (model(moved_BT)[:, :-1] - got[:, :-1]).float().abs().max()
            off = max(_relative(want, got), *(_relative(wanted[n], grads[n]) for n in wanted))
            sound = off <= BOUNDS[precision] and float(leak) <= 1e-5
            yield {"what": name, "precision": precision, "error": off, "leak": float(leak), "sound": sound}


def _passed(model: nn.Module, ids_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of all that has one, under a fixed loss."""
    model.train()
    logits_BTV = model(ids_BT)
    F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).to(torch.promote_types(logits_BTV.dtype, torch.float32)),
                    ids_BT[:, 1:].flatten()).backward()  # fmt: skip
    return logits_BTV.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _relative(want: Tensor, got: Tensor) -> float:
    off = (got.detach().cpu().double() - want).square().mean().sqrt()
    return float(off / want.square().mean().sqrt().clamp(min=1e-9))


# ----------------------------------------------------------------------------------------------------- steps and peers


def our_step(blueprint: Blueprint, scale: Scale, device: torch.device, **train: Any) -> Step:
    """One step of morphogen's own `Trainer`."""
    settings = Train(lr=1e-4, warmup=0, no_improve_patience=10**6, instability_threshold=1e9, **train)
    model, per_step = build(blueprint, seed=0).to(device), scale.batch * scale.tokens
    trainer = Trainer(model, settings, total_steps=10**6, tokens_per_step=per_step, seed=0)
    batches = _batches(scale)
    return lambda: trainer.run(batches, trainer.step + 1)


def _batches(scale: Scale) -> Callable[[int], Any]:
    drawn = [np.random.default_rng(i).integers(scale.vocab, size=(scale.batch, scale.tokens + 1)) for i in range(4)]
    return lambda step: drawn[step % len(drawn)]


def peer_step(model: nn.Module, scale: Scale, device: torch.device, precision: str) -> Step:
    """The same written plainly around a model of transformers, with fused AdamW."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches, steps = _batches(scale), itertools.count()

    def step() -> None:
        ids = torch.from_numpy(batches(next(steps))).to(device)
        with cast(device, precision):
            logits_BTV = model(input_ids=ids[:, :-1]).logits
        F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def blueprint_of(block: Mapping[str, Any], scale: Scale) -> Blueprint:
    """So many of one block."""
    emb = {"dim": scale.dim, "vocab": scale.vocab}
    return Blueprint.model_validate({"emb": emb, "blocks": [block] * scale.layers})


def llama(scale: Scale) -> nn.Module:
    """transformers' Llama; its SDPA takes torch's flash kernel where that can."""
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_common(scale)))


def _common(scale: Scale) -> dict[str, Any]:
    return {
        "vocab_size": scale.vocab,
        "hidden_size": scale.dim,
        "intermediate_size": scale.hidden,
        "num_hidden_layers": scale.layers,
        "num_attention_heads": scale.dim // scale.head,
        "num_key_value_heads": scale.dim // scale.head,
        "max_position_embeddings": scale.tokens,
        "tie_word_embeddings": True,
        "attn_implementation": "sdpa",
        "use_cache": False,
    }


def mixtral(scale: Scale) -> nn.Module:
    """transformers' Mixtral: 8 experts, two of them for each token."""
    more = {"num_local_experts": 8, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**_common(scale) | more))


def mamba2(scale: Scale) -> nn.Module:
    """transformers' Mamba-2, which takes mamba-ssm's kernels where those are."""
    return transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            vocab_size=scale.vocab, hidden_size=scale.dim, num_hidden_layers=scale.layers, state_size=64,
            head_dim=scale.head, num_heads=2 * scale.dim // scale.head, n_groups=1, chunk_size=min(256, scale.tokens),
            tie_word_embeddings=True, use_cache=False,
        )
    )  # fmt: skip


def mamba(scale: Scale) -> nn.Module:
    """transformers' Mamba, likewise."""
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=scale.vocab, hidden_size=scale.dim, num_hidden_layers=scale.layers, state_size=16,
            tie_word_embeddings=True, use_cache=False,
        )
    )  # fmt: skip


def kinds(device: torch.device, scale: Scale, dry: bool) -> Iterator[Row]:
    """A step of a small model of each kind against one of transformers with the same widths."""
    heads = {"heads": scale.dim // scale.head, "head_dim": scale.head}
    attn, dense = {"kind": "MHA", **heads}, {"kind": "dense", "hidden": scale.hidden, "activation": "swiglu"}
    window = {"sparsity": "sliding", "sliding_window": scale.tokens // 8}
    linear = {"kind": "LINEAR", **heads}
    matches: dict[str, tuple[Mapping[str, Any], Callable[[Scale], nn.Module]]] = {
        "MHA": ({"attn": attn, "ffn": dense}, llama),
        "MHA, sliding": ({"attn": attn | window, "ffn": dense}, llama),
        "LINEAR gated": ({"attn": linear | {"decay": "gated"}, "ffn": dense}, llama),
        "LINEAR delta": ({"attn": linear | {"decay": "delta"}, "ffn": dense}, llama),
        "moe": ({"attn": attn, "ffn": {"kind": "moe", "hidden": scale.hidden, "n_experts": 8, "k": 2}}, mixtral),
        "mamba2": ({"ssm": {"kind": "mamba2", "d_state": 64, "head_dim": scale.head}}, mamba2),
        "mamba": ({"ssm": {"kind": "mamba", "d_state": 16}}, mamba),
    }  # fmt: skip
    for (name, (block, peer)), precision in itertools.product(matches.items(), scale.dtypes):
        ours = our_step(blueprint_of(block, scale), scale, device, bf16=precision == "bf16")
        taken = medians({"ours": ours, "peer": peer_step(peer(scale), scale, device, precision)}, device, scale)
        yield _against(f"{name} : {peer.__name__}", precision, taken)
        _free(device)


def kernels(device: torch.device, scale: Scale, dry: bool) -> Iterator[Row]:
    """The recurrences as ops on their path here, against flash-linear-attention's kernels called outright; the loss
    against torch's."""
    from morphogen.ops.cross_entropy import cross_entropy
    from morphogen.ops.linear_attention import gated_delta, linear_attention

    heads, length = scale.dim // scale.head, scale.tokens
    draw = torch.Generator().manual_seed(0)
    shape = (scale.batch, heads, length, scale.head)
    dtype = torch.float32 if dry else torch.bfloat16
    q, k, v = (F.normalize(torch.randn(shape, generator=draw), dim=-1).to(device, dtype) for _ in range(3))
    decay, beta = -torch.rand(shape[:3], generator=draw).to(device), torch.rand(shape[:3], generator=draw).to(device)
    for x in (q, k, v):
        x.requires_grad_()
    ops: dict[str, Step] = {
        "linear_attention": lambda: linear_attention(q[:, :, None], k, v, decay)[0].sum().backward(),
        "gated_delta": lambda: gated_delta(q[:, :, None], k, v, decay, beta)[0].sum().backward(),
    }
    fla = _fla(q, k, v, decay, beta) if device.type == "cuda" else {}
    for name, ours in ops.items():
        taken = medians({"ours": ours} | ({"peer": fla[name]} if name in fla else {}), device, scale)
        yield _against(f"{name} : fla", str(dtype).removeprefix("torch."), taken)
    logits = torch.randn(scale.batch * length, scale.vocab, generator=draw).to(device, dtype).requires_grad_()
    targets = torch.randint(scale.vocab, (len(logits),), generator=draw).to(device)
    losses: dict[str, Step] = {
        "ours": lambda: cross_entropy(logits, targets).sum().backward(),
        "peer": lambda: F.cross_entropy(logits.float(), targets, reduction="sum").backward(),
    }
    yield _against("cross_entropy : torch", str(dtype).removeprefix("torch."), medians(losses, device, scale))


def _fla(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> dict[str, Step]:
    """The library's own calls; none where it is not installed."""
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return {}
    by_token = [x.transpose(1, 2).contiguous().detach() for x in (q, k, v)]
    g, b = decay.transpose(1, 2).contiguous(), beta.transpose(1, 2).contiguous()
    for x in by_token:
        x.requires_grad_()
    return {
        "linear_attention": lambda: chunk_simple_gla(*by_token, g=g, scale=1.0)[0].sum().backward(),
        "gated_delta": lambda: chunk_gated_delta_rule(*by_token, g=g, beta=b, scale=1.0)[0].sum().backward(),
    }


def whole(device: torch.device, scale: Scale, dry: bool) -> Iterator[Row]:
    """A step at 100 M parameters against Llama, and its share of what a large product reaches on this device."""
    heads = {"heads": scale.dim // scale.head, "head_dim": scale.head}
    dense = {"kind": "dense", "hidden": scale.hidden, "activation": "swiglu"}
    blueprint = blueprint_of({"attn": {"kind": "MHA", **heads}, "ffn": dense}, scale)
    found = costs(blueprint, scale.tokens)
    modes = ("none",) if dry else ("none", "blocks")
    for precision in scale.dtypes:
        contestants = {
            mode: our_step(blueprint, scale, device, bf16=precision == "bf16", compile=mode)
            for mode in modes
        }  # fmt: skip
        taken = medians(contestants | {"peer": peer_step(llama(scale), scale, device, precision)}, device, scale)
        peak = _peak(device, scale, precision)
        for mode in modes:
            per_second = scale.batch * scale.tokens / taken[mode]
            both = {"ours": taken[mode], "peer": taken["peer"]}
            row = _against(f"whole step, compile {mode} : llama", precision, both)
            flops = TRAIN_FACTOR * found["flops_per_token"] * per_second
            yield row | {"params": found["params"], "tokens_per_second": per_second, "share_of_peak": flops / peak}
        _free(device)


def _peak(device: torch.device, scale: Scale, precision: str) -> float:
    """FLOP/s of a large product of square matrices, measured."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(scale.square, scale.square, device=device, dtype=dtype)
    return float(2 * scale.square**3 / medians({"product": lambda: a @ a}, device, scale)["product"])


def _against(name: str, precision: str, taken: Mapping[str, float]) -> Row:
    row: Row = {"what": name, "precision": precision, "ms": 1e3 * taken["ours"]}
    if "peer" not in taken:
        return row | {"peer_ms": None, "ratio": None}
    return row | {"peer_ms": 1e3 * taken["peer"], "ratio": taken["peer"] / taken["ours"]}


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------ candidates, and host's gaps


def candidates(device: torch.device, scale: Scale, dry: bool) -> Iterator[Row]:
    """Candidates of live_phi_tiny per hour, by training alone, with one and with four processes on one device."""
    evolution = read_experiment(PHI).evolution
    each = sum(stage.budget_tokens for stage in stages(evolution))
    for processes in (1,) if dry else (1, 4):
        command = [sys.executable, __file__, "--train", "1" if dry else "20", "--device", str(device)]
        command += ["--dry"] if dry else []
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        told = [process.communicate(timeout=150)[0] for process in running]
        if any(process.returncode for process in running):
            raise RuntimeError(f"{processes} at once: one of them ended with {[p.returncode for p in running]}")
        speed = sum(float(line.split()[-1]) for line in told)
        yield {"what": f"live_phi_tiny, {processes} at once", "tokens_per_second": speed,
               "candidates_per_hour": 3600 * speed / each}  # fmt: skip


def train_alone(device: torch.device, seconds: float, dry: bool) -> float:
    """Tokens a second of one candidate of live_phi_tiny."""
    experiment = read_experiment(PHI)
    data, blueprint = experiment.data, experiment.model.with_vocab(nominal_vocab(experiment.data))
    scale = Scale(0, 0, 0, nominal_vocab(data), data.seq_len, data.batch_size, 0, seconds, 5, 0, ())
    if dry:
        blueprint, scale = blueprint_of({"attn": ATTN, "ffn": FFN}, TOY), TOY
    train = {"grad_ckpt": experiment.train.grad_ckpt, "bf16": experiment.train.bf16 and not dry}
    taken = medians({"ours": our_step(blueprint, scale, device, **train)}, device, scale)
    return scale.batch * scale.tokens / taken["ours"]


def gaps(device: torch.device, scale: Scale, dry: bool) -> Iterator[Row]:
    """How often the host waits for the device in steps of training, and how long the device has nothing to do."""
    heads = {"heads": scale.dim // scale.head, "head_dim": scale.head}
    block = {"attn": {"kind": "MHA", **heads}, "ffn": {"kind": "dense", "hidden": scale.hidden}}
    model, steps = build(blueprint_of(block, scale), seed=0).to(device), 2 if dry else 20
    train = Train(lr=1e-4, warmup=0, bf16=not dry, instability_threshold=1e9, entropy_threshold=0.0)
    trainer = Trainer(model, train, total_steps=1000, tokens_per_step=1, seed=0)
    trainer.run(_batches(scale), steps)
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    settle(device)
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        trainer.run(_batches(scale), 2 * steps)
        settle(device)
    wall = time.perf_counter() - start
    events = profile.key_averages()
    waits = {event.key: event.count for event in events if event.key in WAITS}
    busy = sum(event.self_device_time_total for event in events) / 1e6
    idle = max(0.0, 1 - busy / wall) if device.type == "cuda" else None
    yield {"what": f"{steps} steps", "waits": waits, "waits_per_step": sum(waits.values()) / steps, "idle": idle}
    each = sum(count for name, count in waits.items() if name.startswith("cuda")) / steps
    if each > MOST_WAITS:
        raise RuntimeError(f"the host waits for the device {each:g} times a step, expected at most {MOST_WAITS:g}")


def seen(job: Job, progress: object, prepared: object) -> Report:
    """What a worker that is to train a candidate finds: how many CUDA devices, and whether its own computes."""
    works = float((torch.ones(64, 64, device=choose_device(job.device)) @ torch.ones(64, 64, device=job.device)).sum())
    found = {"devices": float(torch.cuda.device_count()), "works": float(works == 64.0**3)}
    return Report(id=job.candidate.id, status=Status.TRAINED, metrics=found)


def placement(device: torch.device, scale: Scale, dry: bool) -> Iterator[Row]:
    """Two workers for each of the machine's devices: a worker on CUDA has to see just the one that it is placed on."""
    name = device.type
    devices = devices_of(name)
    for each in devices if name == "cuda" else ():
        yield {"what": each.name, "pinned": each.pinned, "room_gib": each.room_bytes / 2**30}
    jobs = [
        Job(
            experiment={},
            candidate=Candidate(id=f"c-{k}", index=k, generation=0, blueprint={}),
            parents=(),
            ancestors=(),
            stages=(),
            seed=0,
            run_dir=".",
            device=name,
        )
        for k in range(2 * len(devices))
    ]
    with contextlib.closing(Pool(None, len(jobs), runner=seen)) as pool:
        for report in pool.map(jobs, lambda candidate, step: None):
            if report.metrics != {"devices": float(name == "cuda"), "works": 1.0}:
                raise RuntimeError(f"a worker finds {report.metrics}, {report.reason}")
            yield {"what": f"worker of {report.id}", "gpu": report.timed.get("gpu"), **report.metrics}


PARTS: Mapping[str, Callable[[torch.device, Scale, bool], Iterator[Row]]] = {
    "numerics": numerics, "whole": whole, "gaps": gaps, "placement": placement, "candidates": candidates,
    "kinds": kinds, "kernels": kernels,
}  # fmt: skip


def _until(end: float, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows as long as there is time; then one that says that there was none."""
    while time.perf_counter() < end:
        try:
            yield next(rows)
        except StopIteration:
            return
    yield {"what": "no time was left for what follows here"}


def measured(device: torch.device, dry: bool, only: list[str], most_seconds: float) -> dict[str, Any]:
    """Every part's rows, printed as they come, and how long each part took; what failed is among them.
    Nothing is begun after `most_seconds`."""
    began = time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    told: dict[str, Any] = {"device": name, "torch": torch.__version__, "dry": dry, "parts": {}, "seconds": {}}
    told["paths"] = paths(device)
    for op, way in told["paths"].items():
        print(f"{op:<18} {way}")
    for part, measure in PARTS.items():
        if only and part not in only:
            continue
        start, rows = time.perf_counter(), told["parts"].setdefault(part, [])
        print(f"== {part}", flush=True)
        try:
            scale = TOY if dry else WHOLE if part in ("whole", "gaps") else KIND
            for row in _until(began + most_seconds, measure(device, scale, dry)):
                rows.append(row)
                print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                                for key, value in row.items()), flush=True)  # fmt: skip
        except Exception as error:  # a part that fails here is told, and takes none of the others with it
            traceback.print_exc()
            rows.append({"what": part, "failed": f"{type(error).__name__}: {error}"})
        told["seconds"][part] = round(time.perf_counter() - start, 1)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="at toy size on a CPU; exits with 1 where a part fails")
    parser.add_argument("--device", default="", help="cuda unless --dry")
    parser.add_argument("--out", type=Path, help="where the JSON goes: runs/gpu.json, with --dry runs/gpu_dry.json")
    parser.add_argument("--only", nargs="+", default=[], choices=[*PARTS], help="some parts alone")
    parser.add_argument("--seconds", type=float, default=450.0, help="nothing is begun after so many")
    parser.add_argument("--train", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = choose_device(asked.device or ("cpu" if asked.dry else "cuda"))
    if asked.train is not None:
        print(train_alone(device, asked.train, asked.dry))
        return
    told = measured(device, asked.dry, asked.only, asked.seconds)
    out = asked.out or ROOT / "runs" / ("gpu_dry.json" if asked.dry else "gpu.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    rows = [row for part in told["parts"].values() for row in part]
    bad = [row["what"] for row in rows if "failed" in row or row.get("sound") is False]
    print(f"{sum(told['seconds'].values()):.1f} s; wrong: {', '.join(bad) or 'nothing'}; wrote {out}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
