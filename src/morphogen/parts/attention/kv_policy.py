"""What a decoder keeps of past keys and values: the `kv_policy` of the kinds of attention that have a cache."""

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import PositiveInt, model_validator

from morphogen.ops.patterns import Pattern, Quant, remembered
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.operator import operator, pick
from morphogen.parts.contract.part import Context, Cost, Part

#: Windows of new policies, and the smallest that halving leads to, in tokens.
WINDOWS = (64, 128, 256, 512, 1024, 2048, 4096)
LEAST_WINDOW = 8


class KVPolicy(Frozen):
    """What a decoder caches. Training and teacher-forced evaluation see all tokens whatever it says."""

    kind: Literal["full", "window", "latent"] = "full"
    """What is kept: `full`, all that a later token may see; `window`, the last of those (an approximation made at
    decoding only, unless the sparsity sees no further); `latent`, MLA's latent in place of keys and values
    (2405.04434)."""
    window: PositiveInt | None = None
    """Tokens kept, the one being decoded included; for kind window, which needs it, and null otherwise."""
    quant: Quant = "none"
    """`int8` keeps one byte an entry and a scale per head and token: a rounding at decoding only."""

    @model_validator(mode="after")
    def _window_where_used(self) -> Self:
        if self.kind == "window" and self.window is None:
            raise ValueError("kv_policy window needs a size: {kind: window, window: 256}")
        if self.kind != "window" and self.window is not None:
            raise ValueError(f"window is {self.window}, but kv_policy {self.kind} has none")
        return self

    def cost(self, pattern: Pattern, seq_len: int, vectors: int, width: int) -> Cost:
        """The cache after `seq_len` tokens, of `vectors` vectors of `width` entries a token (and a scale with int8).

        A cache that some tokens have left by then no longer grows with every token, and counts by its size per
        sequence; only what `local_global` keeps for good grows on.
        """
        kept = remembered(pattern, seq_len, self.window)
        token_bytes = vectors * (2.0 * width if self.quant == "none" else width + 2.0)
        tokens = sum(len(run) for run in kept)
        if tokens == seq_len:
            return Cost(kv_bytes=token_bytes)
        growing = 1 / pattern.global_stride if pattern.kind == "local_global" and self.window is None else 0.0
        return Cost(kv_bytes=token_bytes * growing, state_bytes=token_bytes * (tokens - growing * seq_len))


class Cached(Part):
    """A kind of attention that caches keys and values."""

    #: Whether it can cache a latent instead.
    latent_cache: ClassVar[bool] = False
    kv_policy: KVPolicy = KVPolicy()
    """What a decoder caches; training sees all tokens whatever it says."""

    @property
    def horizon(self) -> int | None:
        """How many tokens before its own a query may see; None without a limit."""
        return None

    def within(self, ctx: Context) -> Self | None:
        """A window of the cache that holds all there is to see is none."""
        seen = ctx.seq_len if self.horizon is None else min(ctx.seq_len, self.horizon + 1)
        policy = self.kv_policy
        if policy.window is None or policy.window < seen:
            return super().within(ctx)
        whole = KVPolicy(kind="latent" if self.latent_cache else "full", quant=policy.quant)
        return self.model_copy(update={"kv_policy": whole})

    @model_validator(mode="after")
    def _latent_only_where_there_is_one(self) -> Self:
        if self.kv_policy.kind == "latent" and not self.latent_cache:
            raise ValueError(f"kv_policy latent: {self.label} has no latent to cache, expected full or window")
        return self


@operator(Cached, preserves=True)
def toggle_kv_policy(part: Cached, ctx: Context, rng: np.random.Generator) -> Cached | None:
    """Another kind of KV cache, or its quantisation switched; decoding changes, the trained function does not."""
    old = part.kv_policy
    possible = ("full", "window", "latent") if part.latent_cache else ("full", "window")
    others = [
        KVPolicy(kind=kind, window=pick(rng, WINDOWS) if kind == "window" else None, quant=old.quant)
        for kind in possible
        if kind != old.kind
    ]
    switched = old.evolve(quant="none" if old.quant == "int8" else "int8")
    return part.evolve(kv_policy=pick(rng, [*others, switched]))


@operator(Cached, preserves=True)
def tune_kv_policy(part: Cached, ctx: Context, rng: np.random.Generator) -> Cached | None:
    """Half or twice the window of the KV cache; decoding changes, the trained function does not."""
    window = part.kv_policy.window
    if window is None:
        return None
    sizes = [size for size in (window // 2, window * 2) if LEAST_WINDOW <= size <= WINDOWS[-1]]
    return part.evolve(kv_policy={**dict(part.kv_policy), "window": pick(rng, sizes)})
