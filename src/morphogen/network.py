"""Blueprint to LanguageModel. B batch, T tokens, D model dim, V vocabulary."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from morphogen.arguments import expected, whole
from morphogen.blueprint.schema import EXPERIMENTS, Block, Blueprint, Gene
from morphogen.blueprint.tensors import specs
from morphogen.errors import CandidateError, DivergedError, InputError
from morphogen.ops.ambient import as_usual
from morphogen.ops.sampling import check_sampling, sampled
from morphogen.parts.contract.branch import Branch, Modulation, Record, State
from morphogen.parts.contract.filling import filled
from morphogen.parts.contract.initial import draw, stream
from morphogen.parts.contract.layers import Layer, Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.contract.tensors import Spec
from morphogen.parts.recurrence.recurrence_layer import Loop

#: What a model remembers of the sequences it is decoding: branch -> its state. Branches are named as in a state dict,
#: those of a looped block once for every step: `blocks.1@2.attn` is the third step's.
Cache = dict[str, State]


class Residual(Layer):
    """One block: its branches in order, each added to the stream after the block's modifiers acted on its output."""

    def __init__(self, block: Block, ctx: Context) -> None:
        super().__init__()
        self.parallel = block.parallel
        self.extras = nn.ModuleList()
        self.order: list[tuple[str, str, Branch]] = []
        self.modifiers: list[Modulation] = []
        for slot, path, part in block.parts():
            module = part.build(ctx)
            if slot == "extra":
                self.extras.append(module)
            else:
                self.add_module(slot, module)
            if isinstance(module, Modulation):
                self.modifiers.append(module)
            else:
                assert isinstance(module, Branch)
                self.order.append((slot, path, module))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self._run(x_BTD, lambda path, branch, source_BTD: branch(source_BTD))

    def extend(self, x_BTD: Tensor, cache: Cache, prefix: str) -> Tensor:
        """`forward` for tokens that follow those `cache` remembers under `prefix`; updates it in place."""
        return self._run(
            x_BTD, lambda path, branch, source_BTD: branch.extend(source_BTD, cache.setdefault(f"{prefix}.{path}", {}))
        )

    def _run(self, x_BTD: Tensor, call: Callable[[str, Branch, Tensor], Tensor]) -> Tensor:
        block_input_BTD = x_BTD
        seen = [modifier.look(block_input_BTD) for modifier in self.modifiers]
        for slot, path, branch in self.order:
            source_BTD = block_input_BTD if self.parallel else x_BTD
            y_BTD = call(path, branch, source_BTD)
            for modifier, what in zip(self.modifiers, seen, strict=True):
                y_BTD = modifier.modulate(slot, y_BTD, what)
            x_BTD = x_BTD + y_BTD
        return x_BTD


#: What runs one block: (position, step of its recurrence, x_BTD) to x_BTD.
Runner = Callable[[int, int, Tensor], Tensor]


class LanguageModel(nn.Module):
    """A decoder-only language model: token ids (B, T) to logits (B, T, V).

    recompute: keep no activations within blocks in training. eval_steps: outside training, how many steps every
    recurrence takes instead of its own `max_train_recurrence`. progress: what share of training is done, from 0 to 1.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.blueprint = blueprint
        self.recompute = False
        self.eval_steps: int | None = None
        self.progress = 1.0
        self.record: Record | None = None
        ctx = blueprint.context()
        self.emb = nn.Embedding(ctx.vocab, ctx.dim, _weight=torch.empty(ctx.vocab, ctx.dim))
        self.positions = None
        if (places := blueprint.emb.positions) is not None:
            self.positions = nn.Embedding(places, ctx.dim, _weight=torch.empty(places, ctx.dim))
        self.dropout = nn.Dropout(blueprint.emb.dropout)
        self.blocks = nn.ModuleList(Residual(block, ctx) for block in blueprint.blocks)
        self.recurrences = nn.ModuleList(part.build(ctx) for part in blueprint.recurrences)
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.head = None
        if not blueprint.head.tie_embeddings:
            self.head = Linear(ctx.dim, ctx.vocab, blueprint.head.bias)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Normalised final hidden states, (B, T, D)."""
        return self._through(self._embedded(ids_BT, 0), self._block)

    def set_progress(self, fraction: float) -> None:
        """What share of training is done, from 0 to 1: recurrences take more steps as it rises. 1 until it is set."""
        self.progress = fraction

    def _recomputed(self, block: Callable[[Tensor], Tensor], x_BTD: Tensor) -> Tensor:
        """The block, run again in the backward pass. What it reports then goes to a record that nobody reads."""
        contexts = (contextlib.nullcontext(), contextlib.nullcontext() if self.record is None else self.recording())
        y_BTD: Tensor = checkpoint(block, x_BTD, use_reentrant=False, context_fn=lambda: contexts)
        return y_BTD

    @contextlib.contextmanager
    def recording(self) -> Iterator[Record]:
        """A record that branches report to in the forward passes made in this context.

        >>> with model.recording() as record:
        ...     loss = loss_of(model(ids_BT))
        >>> auxiliary = record.loss({"balance": 1.0})
        """
        record, outer = Record(), self.record
        self._report_to(record)
        try:
            yield record
        finally:
            self._report_to(outer)

    def __getstate__(self) -> dict[str, Any]:
        """A copy records nothing: what is recorded belongs to a step of the original."""
        return {**self.__dict__, "record": None}

    def _report_to(self, record: Record | None) -> None:
        self.record = record
        for module in self.modules():
            if isinstance(module, Branch):
                module.record = record

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V); position t sees tokens 0..t."""
        return self._logits(self.hidden(ids_BT))

    def forward_by(self, ids_BT: Tensor, blocks: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """`forward` with something that does the same in the place of every block, such as compiled ones."""

        def run(position: int, step: int, x_BTD: Tensor) -> Tensor:
            return self._maybe_recomputed(blocks[position], x_BTD)

        return self._logits(self._through(self._embedded(ids_BT, 0), run))

    def extend(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        """Logits (B, T, V) of the next T ≥ 1 tokens of sequences that `cache` remembers; updates it in place.

        An empty `cache` starts new sequences. Chunks of any size give the logits that `forward` gives on the whole, but
        for what a part's `kv_policy` leaves out or rounds.
        """
        return self._logits(self._hidden_on(ids_BT, cache))

    @torch.no_grad()
    def generate(
        self,
        prompt_ids_BT: Tensor,
        tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        cache: Cache | None = None,
    ) -> Tensor:
        """The prompts, each followed by `tokens` sampled ones, (B, T + tokens).

        temperature: divides the logits; 0 takes the likeliest token. top_k: sample from that many likeliest only.
        seed: of the samples. cache: what the prompts follow; nothing when None. It ends one token short: what is
        sampled last is not yet in it. The model decodes in eval mode, and is left in the mode it was in.
        Raises InputError for an empty prompt or a number out of range, DivergedError where the model gives a number
        that is not finite.
        """
        check_sampling(prompt_ids_BT, tokens, temperature, top_k, seed)
        check_ids(prompt_ids_BT, self.emb.num_embeddings)
        noise, mode = torch.Generator(prompt_ids_BT.device).manual_seed(seed), self.training
        cache = {} if cache is None else cache
        ids_BT, new_BT = prompt_ids_BT, prompt_ids_BT
        self.eval()
        try:
            for _ in range(tokens):
                logits_BV = self._logits(self._hidden_on(new_BT, cache)[:, -1]).float()
                if not torch.isfinite(logits_BV).all():
                    raise DivergedError(_not_finite(self.state_dict()))
                new_BT = sampled(logits_BV, temperature, top_k, noise)
                ids_BT = torch.cat([ids_BT, new_BT], 1)
        finally:
            self.train(mode)
        return ids_BT

    def grow(
        self, action: Mapping[str, Any], *, seed: int = 0, experts: Mapping[str, Sequence[int]] | None = None
    ) -> "LanguageModel":
        """A grown copy, by an action as in a growth rule's `do`; this model stays as it is. See `morphogen.grow`."""
        import morphogen  # what grows models stands above this module; the package knows where

        return morphogen.grow(self, action, seed=seed, experts=experts)

    def grow_layers(
        self, layers: int = 1, *, where: str = "middle", how: str = "copy", seed: int = 0
    ) -> "LanguageModel":
        """A copy with so many blocks more, exact unless `how` is stack. where: middle, end or alternate; how: copy,
        fresh or stack."""
        return self.grow({"action": "deepen", "layers": layers, "where": where, "how": how}, seed=seed)

    def widen(
        self, target: str = "ffn", factor: float = 1.5, *, blocks: Sequence[str] = (), seed: int = 0
    ) -> "LanguageModel":
        """A copy with `factor` times the hidden units (ffn), heads, channels of a head (head_dim) or residual channels
        (dim), in all blocks or those of these ids; exact but for head_dim under RoPE."""
        return self.grow({"action": "widen", "target": target, "factor": factor, "blocks": blocks}, seed=seed)

    def to_moe(self, n_experts: int = 4, k: int = 2, *, blocks: Sequence[str] = (), seed: int = 0) -> "LanguageModel":
        """A copy with mixtures in the place of dense layers; exact but for layers with biases, which are lost."""
        return self.grow({"action": "to_moe", "n_experts": n_experts, "k": k, "blocks": blocks}, seed=seed)

    def split_expert(self, block: str, expert: int, *, seed: int = 0) -> "LanguageModel":
        """A copy in which an expert, by its number in the stack, has a twin that shares its tokens; exact."""
        return self.grow({"action": "split_experts"}, seed=seed, experts={block: (expert,)})

    def prune_expert(self, block: str, expert: int) -> "LanguageModel":
        """A copy without an expert."""
        return self.grow({"action": "prune_experts"}, experts={block: (expert,)})

    def merge_experts(self, block: str, first: int, second: int) -> "LanguageModel":
        """A copy in which the first of two experts is the mean of both, and the second is gone."""
        return self.grow({"action": "merge_experts"}, experts={block: (first, second)})

    def grow_vocabulary(self, tokens: int, *, seed: int = 0) -> "LanguageModel":
        """A copy that knows so many tokens; the logits of the old ones stay."""
        return self.grow({"action": "grow_vocabulary", "tokens": tokens}, seed=seed)

    def _hidden_on(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        def run(position: int, step: int, x_BTD: Tensor) -> Tensor:
            prefix = f"blocks.{position}@{step}" if step else f"blocks.{position}"
            return self._at(position).extend(x_BTD, cache, prefix)

        if self.positions is None:
            return self._through(self._embedded(ids_BT, 0), run)
        stem = cache.setdefault("emb", {})
        start = int(stem["seen"][0]) if stem else 0
        x_BTD = self._embedded(ids_BT, start)
        stem["seen"] = torch.full(ids_BT.shape[:1], start + ids_BT.shape[1], device=ids_BT.device)
        return self._through(x_BTD, run)

    def _embedded(self, ids_BT: Tensor, start: int) -> Tensor:
        """What the first block reads of tokens that stand at `start` and after. InputError where none can stand."""
        x_BTD: Tensor = self.emb(ids_BT)
        scale, end = self.blueprint.emb.scale, start + ids_BT.shape[1]
        if scale != 1.0:
            x_BTD = x_BTD * scale
        if self.positions is not None:
            if end > (places := self.positions.num_embeddings):
                raise InputError(f"got a sequence of {end} tokens, but the model has {places} learned positions")
            x_BTD = x_BTD + self.positions.weight[start:end]
        dropped: Tensor = self.dropout(x_BTD)
        return dropped

    def _at(self, position: int) -> Residual:
        block = self.blocks[position]
        assert isinstance(block, Residual)
        return block

    def _block(self, position: int, step: int, x_BTD: Tensor) -> Tensor:
        return self._maybe_recomputed(self._at(position), x_BTD)

    def _maybe_recomputed(self, block: Callable[[Tensor], Tensor], x_BTD: Tensor) -> Tensor:
        return self._recomputed(block, x_BTD) if self.recompute and self.training else block(x_BTD)

    def _through(self, x_BTD: Tensor, run: Runner) -> Tensor:
        """Normalised final hidden states: every block once and in order, those of a recurrence step after step."""
        done = 0
        for loop in self.recurrences:
            assert isinstance(loop, Loop)
            for position in range(done, loop.part.start):
                x_BTD = run(position, 0, x_BTD)
            prelude_BTD, x_BTD = x_BTD, loop.first(x_BTD)
            for step in range(self._steps(loop)):
                x_BTD = loop(x_BTD, prelude_BTD)
                for position in range(loop.part.start, loop.part.end):
                    x_BTD = run(position, step, x_BTD)
            done = loop.part.end
        for position in range(done, len(self.blocks)):
            x_BTD = run(position, 0, x_BTD)
        return self.norm(x_BTD)

    def _steps(self, loop: Loop) -> int:
        if self.training:
            return loop.part.steps(self.progress)
        return loop.part.max_train_recurrence if self.eval_steps is None else self.eval_steps

    def _logits(self, hidden_BTD: Tensor) -> Tensor:
        logits_BTV = F.linear(hidden_BTD, self.emb.weight) if self.head is None else self.head(hidden_BTD)
        cap = self.blueprint.head.softcap
        return logits_BTV if cap is None else cap * torch.tanh(logits_BTV / cap)


def cache_bytes(cache: Cache) -> int:
    """Bytes of all that a cache holds."""
    return sum(tensor.numel() * tensor.element_size() for state in cache.values() for tensor in state.values())


def check_ids(ids_BT: Tensor, vocab: int, place: str = "generate") -> None:
    """InputError for tokens that a model has not, named by the `place` where they were given."""
    least, most = (int(x) for x in ids_BT.aminmax()) if ids_BT.numel() else (0, 0)
    if least < 0 or most >= vocab:
        raise InputError(f"{place}: got tokens from {least} to {most}, expected 0 to {vocab - 1}")


def _not_finite(state: Mapping[str, Tensor]) -> str:
    """Why a model's logits are not finite: a weight that is not, where there is one."""
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            return f"the model's logits are not finite: its weights are not, the first of them in {name}"
    return "the model's logits are not finite, though its weights are"


def fresh(gene: Gene, name: str, spec: Spec, seed: int) -> Tensor:
    """A fresh fp32 tensor. Its stream derives from the seed and the gene, so that position and order do not matter."""
    return draw(spec.init, spec.shape, stream(seed, gene.key, name))


def initial_state(blueprint: Blueprint, seed: int) -> dict[str, Tensor]:
    """A whole fresh state dict."""
    return {full: fresh(gene, name, spec, seed) for full, (gene, name, spec) in specs(blueprint).items()}


def check_state(blueprint: Blueprint, state: Mapping[str, Tensor]) -> None:
    """InputError where the names or shapes of `state` are not those of the blueprint's weights."""
    wanted = {full: spec.shape for full, (_, _, spec) in specs(blueprint).items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wanted != found:
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        shapes = [f"{n}: {found[n]} for {wanted[n]}" for n in wanted if n in found and wanted[n] != found[n]]
        parts = (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
        text = "; ".join(f"{len(names)} {what} ({names[0]}, ...)" for what, names in parts if names)
        raise InputError(f"the weights are not those of blueprint {blueprint.name!r}: {text}")


def check_modules(blueprint: Blueprint, model: nn.Module) -> None:
    """CandidateError where modules have other tensors than their parts declare."""
    declared = {name: spec.shape for name, (_, _, spec) in specs(blueprint).items()}
    built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(declared.keys() | built.keys()):
        if declared.get(name) != built.get(name):
            said, made = (str(table.get(name, "nothing")) for table in (declared, built))
            raise CandidateError(f"{name}: {said} in the part's `tensors`, {made} in the module that its `build` makes")


def assemble(blueprint: Blueprint, state: Mapping[str, Tensor]) -> LanguageModel:
    """The model holding exactly the tensors of `state`, not copies. InputError where names or shapes differ.

    Parameters that a part declares as not trained get no gradient.
    """
    check_state(blueprint, state)
    with torch.device("meta"):
        model = LanguageModel(blueprint)
    trained = {name for name, (_, _, spec) in specs(blueprint).items() if spec.trained}
    if not filled(model, state, trained):
        check_modules(blueprint, model)
    return model


def build(blueprint: Blueprint, seed: int = 0, vocab: int | None = None) -> LanguageModel:
    """Makes a freshly initialised model.

    >>> model = build(blueprint, seed=0, vocab=256)
    >>> logits_BTV = model(ids_BT)

    Args:
        blueprint: The architecture.
        seed: Of the weights.
        vocab: Tokens of the vocabulary, where `emb.vocab` of the blueprint is null.

    Returns:
        The model: token ids of shape (batch, tokens) to logits of shape (batch, tokens, vocabulary). It lies on torch's
        default device in its default precision; the weights are drawn in fp32 on the CPU, the same everywhere.

    Raises:
        InputError: Neither says how large the vocabulary is, or an argument is not what it can be.
    """
    expected("blueprint", blueprint, Blueprint, EXPERIMENTS)
    seed, device, dtype = whole("seed", seed), torch.get_default_device(), torch.get_default_dtype()
    if vocab is not None:
        blueprint = blueprint.with_vocab(vocab)
    with as_usual():
        return assemble(blueprint, initial_state(blueprint, seed)).to(device, dtype)
