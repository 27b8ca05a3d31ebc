"""A figure of a trained model: how far its averages reach back."""

from morphogen.figures import Figure
from morphogen.metrics.measuring import Subject, measures


@measures(
    Figure(
        "ema_memory",
        unit="tokens",
        better="none",
        sort="metric",
        summary="Over how many tokens a gated moving average reaches back: 1 / (1 - a), the median channel.",
        needs=("gated_ema",),
    )
)
def memory(subject: Subject) -> dict[str, float]:
    """Of all such branches of the model together; nothing where there is none."""
    import torch

    from gated_ema.layer import GatedEMABranch

    logits = [module.logit.detach() for module in subject.model.modules() if isinstance(module, GatedEMABranch)]
    return {"ema_memory": float((1.0 + torch.cat(logits).exp()).median())} if logits else {}
