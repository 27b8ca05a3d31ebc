"""What the steps of recurrences are worth: held-out perplexity with other numbers of steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from morphogen.errors import DivergedError
from morphogen.estimates import derived
from morphogen.figures import Figure
from morphogen.metrics.measuring import Subject, measures
from morphogen.metrics.perplexity import Score, shard_metrics

if TYPE_CHECKING:
    from morphogen.network import LanguageModel

Scores = Mapping[str, Sequence[Score]]


def recurrence_metrics(
    model: "LanguageModel", scores: Scores, weights: Mapping[str, float], measure: Callable[[], Scores]
) -> dict[str, float]:
    """`ppl_<shard>_rec_<n>` and their mean `ppl_rec_<n>`, for n = 1 and every n in `test_recurrences`: all recurrences
    take n steps. And `recurrence_gain`, how much smaller the best n makes the perplexity than one step does:

        1 − min over n of ppl_rec_n / ppl_rec_1

    which is 0 where one step is best or there is no recurrence. scores: of the model as it is. weights: of the shards.
    measure: the same on the same text, again. A number of steps whose loss is not finite has no figure, and no gain
    where that number is one.
    """
    loops = model.blueprint.recurrences
    metrics: dict[str, float] = {}
    means: dict[str, float] = {}
    for steps in sorted({1, *(n for loop in loops for n in loop.test_recurrences)} if loops else ()):
        as_it_is = all(loop.steps(1.0) == steps for loop in loops)
        model.eval_steps = steps
        try:
            found = shard_metrics(scores if as_it_is else measure(), weights)
        except DivergedError:
            continue
        finally:
            model.eval_steps = None
        means[str(steps)] = found["ppl"]
        metrics |= {f"{name}_rec_{steps}": value for name, value in found.items() if not name.startswith("bpb")}
    if not loops:
        return {"recurrence_gain": 0.0}
    return {**metrics, "recurrence_gain": derived(_gain, means)} if "1" in means else metrics


def _gain(ppl: Mapping[str, float]) -> float:
    return 1.0 - min(ppl.values()) / ppl["1"]


@measures(
    Figure(
        "recurrence_gain",
        unit="share",
        better="max",
        sort="metric",
        summary="How much smaller the best number of steps makes the perplexity than one step does; 0 without a "
        "recurrence.",
    ),
    Figure(
        "ppl_rec_<n>",
        unit="perplexity",
        better="min",
        sort="metric",
        needs=("recurrence",),
        summary="`ppl` when every recurrence takes n steps, for 1 and every n in `test_recurrences`.",
    ),
    Figure(
        "ppl_<shard>_rec_<n>",
        unit="perplexity",
        better="min",
        sort="metric",
        needs=("recurrence",),
        summary="The same of one measured shard.",
    ),
)
def recurrence(subject: Subject) -> dict[str, float]:
    """With every number of steps that the model's recurrences are to be measured with."""
    return recurrence_metrics(subject.model, subject.scores, subject.prepared.eval_weights, subject.score)
