"""What an experiment's file alone tells that cannot be, is missing or is not read. Called by `checks`.

No network, no tokenizer is trained, no weight is read.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ByteSize

from morphogen import plugins
from morphogen.blueprint.mistakes import Loc
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import moment_count, parameter_count
from morphogen.cost import Step, costs
from morphogen.data.corpora import fingerprint
from morphogen.errors import InputError, nearest
from morphogen.estimates import composed
from morphogen.experiment import BPE, Data, Experiment, Proposer, Shard
from morphogen.growth.largest import Largest, largest
from morphogen.growth.rules import growth_remarks, late, unasked
from morphogen.knobs import Remark, knobs
from morphogen.parts.foreign.foreign import Foreign
from morphogen.search.rungs import promotion, rejection, stages
from morphogen.sections.values import changed
from morphogen.store.ordinary import open_ordinary

#: Bytes to train one candidate with that no machine has.
TOO_MANY_BYTES = 2**42
#: Of a weight, and of each of its moments.
NUMBER_BYTES = 4
#: Tokens of `bytes`: 256 and end of text.
BYTE_TOKENS = 257
#: The length of a safetensors header, in bytes, stands in the first eight; none of ours is longer.
LENGTH_BYTES, LONGEST_HEADER = 8, 2**26


def nominal_vocab(data: Data) -> int | None:
    """Tokens of the vocabulary as far as the file and the disk tell, None where they don't, as for a tokenizer of the
    hub. A BPE may come out smaller where the text is short."""
    if isinstance(data.tokenizer, BPE):
        return data.tokenizer.vocab
    if data.tokenizer == "bytes":
        return BYTE_TOKENS
    name = data.tokenizer
    if name in plugins.names(plugins.TOKENIZERS):
        from morphogen.data.tokenizers import named

        return named(name).vocab_size
    file = os.path.join(name, "tokenizer.json") if os.path.isdir(name) else name
    return _tokens_of(Path(file)) if os.path.isfile(file) else None


def _tokens_of(file: Path) -> int | None:
    """How many tokens a tokenizer.json holds, end of text among them. None where that cannot be told."""
    try:
        told = json.loads(file.read_bytes())
        vocab = told["model"]["vocab"]
        ids = [*vocab.values()] if isinstance(vocab, dict) else [*range(len(vocab))]
        return max([*ids, *(added["id"] for added in told["added_tokens"])], default=-1) + 1
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def nominal(experiment: Experiment) -> tuple[Blueprint, bool]:
    """The blueprint with its vocabulary filled in, and whether that is its real size: of a tokenizer of the hub only
    the least is known. InputError where the file gives one that is too small."""
    vocab = nominal_vocab(experiment.data)
    known = vocab is not None or experiment.model.emb.vocab is not None
    return experiment.model.with_vocab(1 if vocab is None else vocab), known


def foreseen(experiment: Experiment, model: Blueprint, *, whole: bool = True) -> Iterator[Remark]:
    """All that can be known of a located experiment, the worst first. model: its blueprint, the vocabulary filled in;
    whole: whether to that size, or to less."""
    yield from knobs(experiment)
    if wrong := list(_donors(experiment)):
        yield from wrong
        yield from _missing(experiment)
        return  # nothing can be counted of layers that are not there
    yield from growth_remarks(model, experiment.data.seq_len, begun=experiment.train.init_checkpoint is not None)
    yield from _missing(experiment)
    yield from _budgets(experiment)
    step = Step.of(experiment.train, experiment.data.batch_size)
    found = costs(model, experiment.data.seq_len, step)
    yield from _sizes(found, parameter_count(model) + moment_count(model, experiment.train.optimizer.name))
    evolution = experiment.evolution
    found |= composed(found, evolution.composite_metrics)
    told = whole and found.keys() >= evolution.rung0_thresholds.keys()
    if told and (said := rejection(found, evolution, gated=evolution.structural_gates == "reject")):
        field = "rung0_thresholds" if evolution.rung0_thresholds else "structural_gates"
        yield Remark(("evolution", field), f"the root is rejected by rung 0: {said}", True)
    elif told and model.growth:
        yield from _of_growth(experiment, model, found["train_memory_bytes"])


def late_growth(experiment: Experiment) -> Iterator[Remark]:
    """Growth rules that wait for more steps or tokens than the longest lineage of a search can have; refused where the
    file says how to search, as it is not for `morphogen train` alone then. And those that nobody asks for there."""
    train, searched = experiment.train, len(changed(experiment.evolution)) > 0
    if searched:  # `morphogen train` may take the same file, and ask
        yield from (remark._replace(refused=False) for remark in unasked(experiment.model))
    if train.init_checkpoint is not None:  # behind which nobody knows what lies
        return
    most = lineage_tokens(experiment)
    for remark in late(experiment.model, most // experiment.tokens_per_step, most):
        yield remark._replace(refused=remark.refused and searched)


def lineage_tokens(experiment: Experiment) -> int:
    """Training tokens of the longest lineage that a search can have."""
    evolution = experiment.evolution
    extra = promotion(evolution).budget_tokens if evolution.promotion_prob > 0.0 else 0
    own = min(experiment.train.max_tokens, sum(stage.budget_tokens for stage in stages(evolution)) + extra)
    trainings = evolution.generations + 1 if evolution.weight_inheritance == "parent" else 1
    return trainings * own + evolution.anneal_tokens + experiment.data.healing_tokens


def grown(experiment: Experiment, model: Blueprint) -> Largest:
    """What a search's longest lineage may grow into. model: the experiment's, its vocabulary filled in."""
    per_step = experiment.tokens_per_step
    return largest(model, experiment.data.seq_len, per_step, lineage_tokens(experiment) // per_step)


def _of_growth(experiment: Experiment, model: Blueprint, needed: float) -> Iterator[Remark]:
    """What rules of growth may lead to that the start does not tell: `needed` is what that needs to train."""
    end, evolution = grown(experiment, model), experiment.evolution
    found = costs(end.blueprint, experiment.data.seq_len, Step.of(experiment.train, experiment.data.batch_size))
    here = _memory_here()
    if needed <= here < found["train_memory_bytes"]:
        said = f"may make of this model one of {found['params']:,.0f} parameters, which needs about"
        more = f"{said} {_size(found['train_memory_bytes'])} to train; this machine has {_size(here)} of memory"
        yield Remark(("model", "growth"), f"{more} (limits bound it, such as max_params)")
    if said := rejection(found | composed(found, evolution.composite_metrics), evolution, gated=False):
        where = ("evolution", "rung0_thresholds")
        yield Remark(where, f"hold for what a candidate begins with; by growth it may come to more: {said}")


# ---------------------------------------------------------------------------------------------- what is not there


def _donors(experiment: Experiment) -> Iterator[Remark]:
    """Layers of other models, and models to take them from, that are not there or cannot be run."""
    for i, block in enumerate(experiment.model.blocks):
        for j, extra in enumerate(block.extras):
            for k, expert in enumerate(extra.experts if isinstance(extra, Foreign) else ()):
                loc: Loc = ("model", "blocks", i, "extras", j, "experts", k)
                if said := _no_donor(expert.model):
                    yield Remark((*loc, "model"), said, True)
                elif said := _no_layer(expert.model, expert.layer, experiment.data.seq_len):
                    yield Remark((*loc, "layer"), said, True)
    for i, donor in enumerate(experiment.evolution.donors):
        if said := _no_donor(donor) or _no_layers(donor, experiment.data.seq_len):
            yield Remark(("evolution", "donors", i), said, True)


def _no_donor(model: str) -> str:
    """Why a model cannot be opened; empty where it can."""
    from morphogen.parts.foreign.donors.opened import donor_of  # brings transformers, of which no other file has need

    try:
        donor_of(model)
    except InputError as error:
        path = Path(model)
        beside = [each.name for each in path.parent.glob("*/")] if path.is_absolute() and not path.exists() else []
        close = nearest(path.name, beside)
        return f"{error}{f'; did you mean {str(path.with_name(close))!r}?' if close else ''}"
    return ""


def _no_layers(model: str, seq_len: int) -> str:
    """Why layers of a model cannot be run on so many tokens, one of every kind being asked; empty where they can."""
    from morphogen.parts.foreign.donors.opened import donor_of

    return next((said for layer in donor_of(model).different() if (said := _no_layer(model, layer, seq_len))), "")


def _no_layer(model: str, layer: int, seq_len: int) -> str:
    """Why a layer of a model cannot be had, or not run on so many tokens; empty where it can."""
    from morphogen.parts.foreign.donors.opened import cost_of, donor_of

    try:
        if layer >= (layers := donor_of(model).n_layers):
            return f"got {layer}, but {model} has {layers} layers, expected 0 to {layers - 1}"
        donor_of(model).check(layer)
        cost_of(model, layer, seq_len)
    except InputError as error:
        return str(error)
    return ""


def _missing(experiment: Experiment) -> Iterator[Remark]:
    data, train, evolution = experiment.data, experiment.train, experiment.evolution
    for role in ("shards", "eval_shards", "healing_shards"):
        for i, shard in enumerate(dict(data)[role]):
            if said := _no_text(shard):
                yield Remark(("data", role, i, "source"), said, True)
    if isinstance(data.tokenizer, str) and os.path.isabs(data.tokenizer) and (said := _absent(data.tokenizer)):
        yield Remark(("data", "tokenizer"), f"{data.tokenizer}: {said}", True)
    if train.init_checkpoint is not None and (said := _no_checkpoint(Path(train.init_checkpoint))):
        yield Remark(("train", "init_checkpoint"), said, True)
    elif train.init_checkpoint is None and evolution.weight_inheritance == "init":
        said = "is 'init', but train.init_checkpoint is not set"
        yield Remark(("evolution", "weight_inheritance"), said, True)
    if isinstance(evolution.templates, str) and (said := _absent(evolution.templates)):
        yield Remark(("evolution", "templates"), f"{evolution.templates}: {said}", True)
    if evolution.proposer is not None:
        yield from _of_proposer(evolution.proposer)


def _of_proposer(proposer: Proposer) -> Iterator[Remark]:
    loc, program = ("evolution", "proposer", "command"), proposer.command[0]
    if not plugins.code_allowed():
        said = "names a program, which no file may run unasked; where you trust it, allow it with --allow-code or"
        yield Remark(loc, f"{said} {plugins.VARIABLE}=1", True)
    elif shutil.which(program) is None:
        yield Remark(loc, f"{program}: no such program, or it may not be run", True)


def _absent(path: str) -> str:
    """Why a file or folder cannot be found; empty where it is there."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return "no such file or folder"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _no_text(shard: Shard) -> str:
    """Why a local source has no text, or a package's cannot be had; empty where it has some, or is neither."""
    if not shard.is_local and shard.corpus is None:
        return ""
    try:
        fingerprint(shard)
        path = Path(shard.source)
        return f"{path}: the file is empty" if path.is_file() and path.stat().st_size == 0 else ""
    except InputError as error:
        return str(error)


def _no_checkpoint(path: Path) -> str:
    """Why a file is no checkpoint, as far as its header tells."""
    if said := _absent(str(path)):
        return f"{path}: {said.replace('file or folder', 'checkpoint')}"
    try:
        with open_ordinary(path) as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if LENGTH_BYTES + length + max(ends, default=0) != path.stat().st_size:
            return f"{path}: not a readable checkpoint: it is cut short"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path}: not a readable checkpoint"
    if "format" not in header.get("__metadata__", {}):
        return f"{path}: format is None; it was not written by morphogen"
    return ""


# ------------------------------------------------------------------------------------------- what cannot be trained


def _budgets(experiment: Experiment) -> Iterator[Remark]:
    data, evolution, most = experiment.data, experiment.evolution, experiment.train.max_tokens
    step, batches = experiment.tokens_per_step, experiment.train.accumulate
    several = f" x accumulate {batches}" if batches > 1 else ""
    one = f"one step of {step:,} tokens (seq_len {data.seq_len} x batch_size {data.batch_size}{several})"
    planned = {stage.rung: stage.budget_tokens for stage in stages(evolution)}
    whole = sum(planned.values())
    if evolution.rungs == "asha":
        yield from _halving(planned, most, step, one)
    elif whole < step:
        said = f"with rung2_tokens that is {whole:,} in all, less than {one}"
        yield Remark(("evolution", "rung1_tokens"), said, True)
    else:
        for rung, budget in planned.items():
            if budget < step:
                yield Remark(("evolution", f"rung{rung}_tokens"), f"is {budget:,}, less than {one}: it is no rung then")
    if evolution.promotion_prob > 0.0 and (extra := promotion(evolution).budget_tokens) < step:
        said = f"by both multipliers the last rung's budget becomes {extra:,} tokens, less than {one}"
        yield Remark(("evolution", "promotion_prob"), said, True)
    if 0 < evolution.anneal_tokens < step:
        yield Remark(("evolution", "anneal_tokens"), f"is {evolution.anneal_tokens:,}, less than {one}", True)
    yield from _beyond_priors(experiment, min(whole, most))
    if most < step:
        yield Remark(("train", "max_tokens"), f"is {most:,}, less than {one}", True)
    elif most < whole:
        said = f"is {most:,}, which cuts the rungs short: they have {whole:,} tokens in all"
        yield Remark(("train", "max_tokens"), said)


def _halving(planned: Mapping[int, int], most: int, step: int, one: str) -> Iterator[Remark]:
    """A rung of asha with less than a step: each is a training of its own, so that nobody would get beyond it. most:
    tokens of one candidate; one: how a step is called."""
    trained = 0
    for rung, budget in planned.items():
        if budget < step:
            name = "min_tokens" if rung == 1 else "max_tokens"
            said = f"is {sum(planned.values()):,}, which leaves rung {rung} {budget:,}"
            yield Remark(("evolution", name), f"{f'is {budget:,}' if rung == 1 else said}, less than {one}", True)
            return
        if trained and most - trained < step:
            said = f"is {most:,}, which leaves rung {rung} {most - trained:,}, less than {one}"
            yield Remark(("train", "max_tokens"), said, True)
            return
        trained += min(budget, most - trained) // step * step


def _beyond_priors(experiment: Experiment, tokens: int) -> Iterator[Remark]:
    """A budget of more tokens than the prior thinks the root is worth."""
    each = experiment.priors.tokens_per_param
    if each is not None and tokens > (ordinary := each * parameter_count(experiment.model.nominal)):
        said = f"is {each:g}, {ordinary:,.0f} tokens for the root, but candidates are trained on up to {tokens:,}"
        yield Remark(("priors", "tokens_per_param"), said)


def _sizes(found: Mapping[str, float], kept: int) -> Iterator[Remark]:
    """kept: numbers of weights and moments."""
    needed, weights = found["train_memory_bytes"], NUMBER_BYTES * kept
    rest = f"{_size(weights)} of weights and moments, {_size(needed - weights)} of activations or gradients"
    said = f"one candidate needs about {_size(needed)} to train ({rest})"
    loc = ("data", "batch_size") if needed > 10 * weights else ("model",)
    if needed > TOO_MANY_BYTES:
        yield Remark(loc, f"{said}, which no machine has", True)
    elif needed > (here := _memory_here()):
        yield Remark(loc, f"{said}; this machine has {_size(here)} of memory")


def _memory_here() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(count: float) -> str:
    """Bytes as a person reads them."""
    return ByteSize(count).human_readable(separator=" ")
