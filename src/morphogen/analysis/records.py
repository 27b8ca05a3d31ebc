"""The records that verification and fidelity write, and read again. No torch here."""

from typing import Any, ClassVar, Literal, NamedTuple

from morphogen.candidate import Change, Record
from morphogen.figures import Direction
from morphogen.store.documents import Document

Role = Literal["root", "finalist", "baseline"]
Predictor = Literal["short", "recorded", "params"]
Scope = Literal["all", "equal size"]
#: What a training began with: the candidate's weights, or fresh ones.
Start = Literal["inherited", "scratch"]
#: The split that trials are measured on.
Split = Literal["eval", "test"]


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval; a number that cannot be had is None."""

    value: float | None
    low: float | None
    high: float | None


class Paired(Record):
    """A design against the root, seed by seed: trainings of one seed share text, order, and first weights.

    pairs: seeds of which both have a value. difference: mean over them. low, high: its t interval over seeds. p: that
    there is none, two-sided; p_holm: corrected for all comparisons of the file. text_error: the standard error of the
    difference over the documents of the measured text, which the seeds have in common and the interval does not hold.
    """

    pairs: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    text_error: float | None


class Verified(Record):
    """One design, trained from scratch on so many `tokens`, once per seed. train: its settings, of which guards
    and `max_tokens` had no say.

    values: the metric by seed, without trainings that failed. low, high: the mean's t interval. difference: the mean
    less the root's. p: Welch's, two-sided, that there is none; p_holm: corrected for all comparisons of the file. None
    where there are too few values. paired: the same seed by seed; None for the root.
    """

    id: str
    role: Role
    tokens: int = 0
    blueprint: dict[str, Any]
    train: dict[str, Any]
    params: float
    flops_per_token: float
    values: tuple[float, ...]
    failures: tuple[str, ...]
    mean: float | None
    low: float | None
    high: float | None
    difference: float | None
    p: float | None
    p_holm: float | None
    paired: Paired | None = None


class Verification(Document):
    """The file. tokens: every training had so many times these (`times`). split: of
    the documents measured on. searched: candidates that the run trained, random: those the random baseline chose from
    (0: it is the best of another run)."""

    title: ClassVar[str] = "verification"
    metric: str
    direction: Direction
    split: Split
    tokens: int
    times: tuple[int, ...] = (1,)
    seeds: tuple[int, ...]
    level: float
    searched: int
    random: int
    candidates: tuple[Verified, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per blueprint and number of tokens; difference and interval are of the pairs, which
        are fewer than the trainings where one of them failed."""
        return [
            {
                "tokens": one.tokens,
                "trained": f"{len(one.values)}/{len(self.seeds)}",
                "id": one.id,
                "role": one.role,
                "flops_per_token": one.flops_per_token,
                "mean": one.mean,
                "difference": one.paired and one.paired.difference,
                "low": one.paired and one.paired.low,
                "high": one.paired and one.paired.high,
                "paired p_holm": one.paired and one.paired.p_holm,
                "Welch p_holm": one.p_holm,
            }
            for one in self.candidates
        ]


class Ranked(Record):
    """One candidate: its parameters, its band of equal size, the metric as the run recorded it, and the means over
    seeds after the short and the long training."""

    id: str
    params: float
    band: int
    recorded: float
    short: float
    long: float


class Predicted(Record):
    """How well a predictor ranks candidates as the long training does. pairs: those compared. Every figure stands with
    its interval: tau, accuracy (share of pairs in the right order), regret (in the metric's unit)."""

    predictor: Predictor
    scope: Scope
    pairs: int
    tau: Interval
    accuracy: Interval
    regret: Interval


class Fidelity(Document):
    """The file. short_tokens, long_tokens: the budgets. top_k: of the regret. failures: reasons of candidates that
    were left out, by id."""

    title: ClassVar[str] = "fidelity"
    metric: str
    direction: Direction
    short_tokens: int
    long_tokens: int
    seeds: tuple[int, ...]
    top_k: int
    resamples: int
    level: float
    band: float
    candidates: tuple[Ranked, ...]
    failures: dict[str, str]
    predictors: tuple[Predicted, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per predictor and scope."""
        return [
            {"predictor": one.predictor, "among": one.scope, "pairs": one.pairs}
            | {
                column: value
                for name, (middle, low, high) in (
                    ("tau", one.tau),
                    ("accuracy", one.accuracy),
                    (f"top-{self.top_k} regret", one.regret),
                )
                for column, value in ((name, middle), (f"{name} low", low), (f"{name} high", high))
            }
            for one in self.predictors
        ]


class Ablated(Record):
    """One candidate less one of its parts, or one edit, beside the candidate trained the same way.

    start: what both began with; None where the ablation does not apply at all. applied: whether it was trained; else
    `reason` says why not. values, usual: the metric by seed, without and with, of seeds of which both have one.
    difference: mean of values − usual, low, high: its interval over seeds and texts. p: that there is none, two-sided,
    over seeds; p_holm: corrected for all ablations of the file. shown: whether the ablated one is better or worse, or
    no difference is shown. others: mean differences of all else that is measured. `..._before`: of the candidate.
    """

    id: str
    ablation: str
    start: Start | None = None
    applied: bool
    reason: str = ""
    changes: tuple[Change, ...] = ()
    values: tuple[float, ...] = ()
    usual: tuple[float, ...] = ()
    failures: tuple[str, ...] = ()
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    shown: Literal["better", "worse", "no"] = "no"
    others: dict[str, float] = {}
    params: float | None = None
    params_before: float | None = None
    flops_per_token: float | None = None
    flops_per_token_before: float | None = None


class Ablations(Document):
    """The file. folder: the name of the run's. tokens: of every training. split: of the documents measured on."""

    title: ClassVar[str] = "ablation report"
    folder: str = ""
    metric: str
    direction: Direction
    split: Split
    tokens: int
    seeds: tuple[int, ...]
    level: float
    ablations: tuple[Ablated, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per ablation that was trained, the candidate's own mean beside it; costs as a share of
        the candidate's."""
        return [
            {
                "id": one.id,
                "ablation": one.ablation,
                "start": one.start,
                "trained": f"{len(one.values)}/{len(self.seeds)}",
                "usual": _mean(one.usual),
                "ablated": _mean(one.values),
                "difference": one.difference,
                "low": one.low,
                "high": one.high,
                "p_holm": one.p_holm,
                "shown": one.shown,
                "params": _share(one.params, one.params_before),
                "flops_per_token": _share(one.flops_per_token, one.flops_per_token_before),
            }
            for one in self.ablations
            if one.applied
        ]

    def left_out(self) -> list[str]:
        """What was not trained, and why."""
        return [
            f"{one.id}: {one.ablation}{f', {one.start},' if one.start else ''} does not apply: {one.reason}"
            for one in self.ablations
            if not one.applied
        ]


def _share(now: float | None, before: float | None) -> float | None:
    return None if now is None or not before else now / before


def _mean(values: tuple[float, ...]) -> float | None:
    return sum(values) / len(values) if values else None
