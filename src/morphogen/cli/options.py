"""Command-line options that change an experiment. What they say is what the run's experiment.yaml then holds."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ByteSize, TypeAdapter, ValidationError

from morphogen.blueprint.mistakes import what
from morphogen.errors import InputError, unknown
from morphogen.execution import Execution, Limits
from morphogen.execution.base import MOST_WORKERS
from morphogen.experiment import Experiment
from morphogen.parts.contract.registry import TAG

EXECUTORS: tuple[Literal["local", "ray"], ...] = ("local", "ray")
#: The whole of a size; ByteSize itself reads no further than the first unit.
_SIZE = re.compile(r"[0-9]{0,20}\.?[0-9]{1,20}\s*[a-z]*", re.IGNORECASE)
_BYTES = TypeAdapter(ByteSize)

#: The longest time limit of a candidate: twenty days, about what the system can be asked to wait for.
LONGEST_SECONDS = 20 * 86400.0


def with_options(
    experiment: Experiment,
    *,
    generations: int | None = None,
    steps: int | None = None,
    eval_batches: int | None = None,
    parent_selection: str | None = None,
    mutation_steps: int | None = None,
    mutation_weights: Mapping[str, float] | None = None,
    score_weights: Mapping[str, float] | None = None,
) -> Experiment:
    """The experiment with the options given; InputError where one does not fit.

    steps: training steps per candidate, shared out over rungs 1 and 2 as their budgets are in the file; refused where
    the file asks for successive halving, which has other budgets. eval_batches:
    batches per shard of held-out text. score_weights: for the parent selection that is given, here or in the file, and
    else for `weighted`, which they then choose.
    """
    evolution: dict[str, Any] = {}
    data: dict[str, Any] = {}
    train: dict[str, Any] = {}
    if generations is not None:
        evolution["generations"] = generations
    if parent_selection is not None:
        evolution["parent_selection"] = parent_selection
    if mutation_steps is not None:
        evolution["mutation_steps"] = mutation_steps
    if mutation_weights:
        evolution["mutation_weights"] = {**experiment.evolution.mutation_weights, **mutation_weights}
    if score_weights:
        if "parent_selection" not in experiment.evolution.model_fields_set:
            evolution.setdefault("parent_selection", "weighted")
        evolution["weights"] = {**experiment.evolution.weights, **score_weights}
    if steps is not None:
        if steps < 1:
            raise InputError(f"--steps: got {steps}, expected at least 1")
        if experiment.evolution.rungs == "asha":
            raise InputError(
                "--steps: sets the budgets of rungs 1 and 2, but with evolution.rungs 'asha' they are min_tokens to "
                "max_tokens; change those in the file"
            )
        first, second = rung_steps(experiment, steps)
        tokens_per_step = experiment.tokens_per_step
        evolution |= {"rung1_tokens": first * tokens_per_step, "rung2_tokens": second * tokens_per_step}
        train["max_tokens"] = max(experiment.train.max_tokens, steps * tokens_per_step)
    if eval_batches is not None:
        if eval_batches < 1:
            raise InputError(f"--eval-batches: got {eval_batches}, expected at least 1")
        data["eval_tokens"] = eval_batches * experiment.data.seq_len * experiment.data.batch_size
    sections = {"evolution": evolution, "data": data, "train": train}
    plain = experiment.model_dump(mode="json")
    try:
        return Experiment.model_validate({**plain, **{name: {**plain[name], **new} for name, new in sections.items()}})
    except ValidationError as error:
        raise InputError(_flag_message(error)) from None


def rung_steps(experiment: Experiment, steps: int) -> tuple[int, int]:
    """`steps` shared out over rungs 1 and 2 as their budgets are; a rung that is on keeps at least one step."""
    first, second = experiment.evolution.rung1_tokens, experiment.evolution.rung2_tokens
    share = round(steps * first / (first + second))
    if first and second and steps > 1:
        share = min(max(share, 1), steps - 1)
    return share, steps - share


def named_weights(flag: str, pairs: Iterable[str]) -> dict[str, float]:
    """`NAME=W` pairs as numbers; InputError for anything else."""
    weights: dict[str, float] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        try:
            weights[name.strip()] = float(text)
        except ValueError:
            separator = ""
        if not separator or not name.strip():
            raise InputError(f"{flag}: got {pair!r}, expected NAME=WEIGHT, as in widen_ffn=2.5")
    return weights


def execution_of(
    *,
    executor: str = "local",
    workers: int | None = None,
    timeout: float | None = None,
    memory_limit: str | None = None,
    address: str | None = None,
    gpus_per_candidate: float | None = 0.0,
    shared: str | None = None,
    checkpoint_tokens: int | None = None,
) -> Execution:
    """How candidates are carried out, as options say it; InputError where one has no meaning."""
    kind = next((name for name in EXECUTORS if name == executor), None)
    if kind is None:
        raise InputError(unknown("--executor", executor, EXECUTORS))
    share = ("--gpus-per-candidate", gpus_per_candidate != 0.0)
    for flag, given in (("--address", address), share, ("--shared", shared)):
        if given and kind != "ray":
            raise InputError(f"{flag}: only --executor ray has a use for it, got --executor {kind}")
    for flag, number in (
        ("--workers", workers),
        ("--timeout", timeout),
        ("--checkpoint-tokens", checkpoint_tokens),
    ):
        if number is not None and not number > 0:
            raise InputError(f"{flag}: got {number:g}, expected more than 0")
    if workers is not None and workers > MOST_WORKERS:
        raise InputError(f"--workers: got {workers}, expected at most {MOST_WORKERS}")
    if checkpoint_tokens is not None and checkpoint_tokens >= 2**63:
        raise InputError(f"--checkpoint-tokens: got {checkpoint_tokens}, expected less than 2**63")
    if timeout is not None and timeout > LONGEST_SECONDS:
        raise InputError(f"--timeout: got {timeout:g}, expected at most {LONGEST_SECONDS:g} seconds; without it none")
    if gpus_per_candidate is not None and not 0.0 <= gpus_per_candidate <= 1.0:
        raise InputError(
            f"--gpus-per-candidate: got {gpus_per_candidate:g}, expected from 0 to 1, such as 0.25, or auto"
        )
    limits = Limits(timeout, None if memory_limit is None else size_bytes("--memory-limit", memory_limit))
    return Execution(kind, workers, limits, address, gpus_per_candidate, shared, checkpoint_tokens or 0)


def share_of_gpu(text: str) -> float | None:
    """A number as a share of a GPU; None for `auto`."""
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--gpus-per-candidate: got {text!r}, expected from 0 to 1, such as 0.25, or auto") from None


def size_bytes(flag: str, text: str) -> int:
    """`512MiB`, `512Mi`, `2GB`, `1.5g`, or a number of bytes; InputError for anything else."""
    size = text.strip()
    size += "B" if size.lower().endswith("i") else ""
    try:
        number = _BYTES.validate_python(size) if _SIZE.fullmatch(size) else 0
    except ValidationError:
        number = 0
    if not 1 <= number < 2**63:
        raise InputError(f"{flag}: got {text!r}, expected a size such as 512MiB, 2GB, or a number of bytes")
    return int(number)


def _flag_message(error: ValidationError) -> str:
    """One line per option whose value the experiment does not take."""
    lines = []
    for detail in error.errors(include_url=False):
        place = ".".join(str(step) for step in detail["loc"] if not str(step).startswith(TAG))
        lines.append(f"{place}: {what(Experiment, detail, detail['loc'])}")
    return "\n".join(dict.fromkeys(lines))


#: A number with a letter for thousands, millions, milliards or billions, billions of millions.
_COUNT = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?(?:e\+?[0-9]{1,2})?)\s*([kmbgt]?)", re.IGNORECASE)
_TIMES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def count_of(flag: str, text: str) -> int:
    """A count such as `400M`, `1.5B` or `4e8`. InputError for anything else."""
    found = _COUNT.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{flag}: got {text!r}, expected a number, such as 400M, 1.5B or 4e8")
    return round(float(found[1]) * _TIMES[found[2].lower()])
