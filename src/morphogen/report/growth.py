"""How a training went, as a picture: loss with what it grew by, its size, its layers, its experts and their use.

Read from the tables in the training's folder alone.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from morphogen.errors import RunError
from morphogen.report.pictures import DPI, png

T = TypeVar("T")
#: A picture has at most about so many points of a curve: more do not show.
POINTS = 2000
#: Columns of the table of steps that are drawn.
DRAWN = ("step", "loss", "params", "layers", "experts")


class Told(NamedTuple):
    """The tables of a training. steps: column -> values. evals: (step, bits per byte). growth: one mapping a line.
    usage: (layer, expert) -> [(step, usage)]."""

    steps: dict[str, list[float]]
    evals: list[tuple[float, float]]
    growth: list[dict[str, str]]
    usage: dict[tuple[int, int], list[tuple[float, float]]]


def read(folder: Path) -> Told:
    """The tables in a training's folder. RunError where one is missing or is no table of a training's."""
    steps = _columns(folder / "steps.csv")
    evals = table(folder / "evals.csv", lambda row: (float(row["step"]), float(row["bpb"])))
    usage: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for place, point in table(folder / "usage.csv", _use):
        usage.setdefault(place, []).append(point)
    growth = table(folder / "growth.csv", _event)
    return Told(steps, evals, growth, usage)


def _use(row: Mapping[str, str]) -> tuple[tuple[int, int], tuple[float, float]]:
    """(layer, expert), (step, usage)."""
    return (int(row["layer"]), int(row["expert"])), (float(row["step"]), float(row["usage"]))


def _event(row: Mapping[str, str]) -> dict[str, str]:
    float(row["step"])
    return {name: row[name] for name in ("step", "action", "before", "after")}


def table(path: Path, read: Callable[[Mapping[str, str]], T]) -> list[T]:
    """What `read` makes of every row. RunError for a row that lacks a cell or has one too many, and for one that it
    cannot read."""
    found: list[T] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if "step" not in (rows.fieldnames or ()):
                raise KeyError("step")
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError("expected one cell for each column")
                found.append(read(row))
    except (OSError, csv.Error, UnicodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    except KeyError as error:
        raise RunError(f"{path}: cannot be read: it has no column {error}") from None
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}:{rows.line_num}: cannot be read: {error}") from None
    return found


def _columns(path: Path) -> dict[str, list[float]]:
    """At most about `POINTS` of the rows, evenly."""
    rows = table(path, lambda row: {name: float(row[name]) for name in DRAWN})
    every = max(1, len(rows) // POINTS)
    chosen = [row for place, row in enumerate(rows) if place % every == 0 or place == len(rows) - 1]
    return {name: [row[name] for row in chosen] for name in (rows[0] if rows else ())}


def picture(folder: Path) -> bytes:
    """The picture of a training, as PNG. RunError as `read`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    told = read(folder)
    if not told.steps:
        raise RunError(f"{folder / 'steps.csv'}: holds no step, so that there is nothing to draw")
    panels = [_loss, _size, _layers, *([_usage] if told.usage else [])]
    figure = Figure(figsize=(10.0, 2.6 * len(panels)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for draw, axis in zip(panels, axes, strict=True):
        draw(axis, told)
        for step, _ in _events(told):
            axis.axvline(step, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        axis.grid(alpha=0.25)
    axes[-1].set_xlabel("optimizer steps")
    return png(figure)


def _events(told: Told) -> list[tuple[float, str]]:
    """(step, what happened) of every step that it grew at."""
    found: dict[float, list[str]] = {}
    for row in told.growth:
        text = f"{row['action']} {row['before']}→{row['after']}"
        found.setdefault(float(row["step"]), []).append(text)
    return [(step, texts[0] if len(texts) == 1 else f"{texts[0]} +{len(texts) - 1}") for step, texts in found.items()]


def _loss(axis: Any, told: Told) -> None:
    steps, losses = told.steps["step"], told.steps["loss"]
    axis.plot(steps, losses, color="C0", alpha=0.3, linewidth=0.8)
    axis.plot(steps, _smooth(losses), color="C0", label="training loss (nats a token)")
    axis.set_ylabel("loss")
    if told.evals:
        other = axis.twinx()
        other.plot(*zip(*told.evals, strict=True), color="C3", marker="o", markersize=3, label="held-out bits per byte")
        other.set_ylabel("bits per byte", color="C3")
    for step, text in _events(told)[:40]:
        axis.annotate(
            text, (step, 1.0), xycoords=("data", "axes fraction"), rotation=90, fontsize=6, va="top", ha="right"
        )
    axis.legend(loc="upper right", fontsize=7)


def _smooth(values: Sequence[float]) -> list[float]:
    """Means of a window that reaches back over a twentieth of the curve."""
    width, total, found = max(1, len(values) // 20), 0.0, list[float]()
    for place, value in enumerate(values):
        total += value
        if place >= width:
            total -= values[place - width]
        found.append(total / min(place + 1, width))
    return found


def _size(axis: Any, told: Told) -> None:
    axis.step(told.steps["step"], told.steps["params"], where="post", color="C1")
    axis.set_ylabel("parameters")
    axis.set_ylim(bottom=0)


def _layers(axis: Any, told: Told) -> None:
    for name, colour in (("layers", "C2"), ("experts", "C4")):
        axis.step(told.steps["step"], told.steps[name], where="post", color=colour, label=f"{name} in all")
    axis.set_ylabel("layers, experts")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left", fontsize=7)


def _usage(axis: Any, told: Told) -> None:
    for (layer, expert), points in sorted(told.usage.items()):
        axis.plot(*zip(*points, strict=True), linewidth=1.0, color=f"C{layer % 10}", alpha=1.0 - 0.08 * min(expert, 9))
    axis.set_ylabel("usage of experts")
    axis.set_ylim(0.0, 1.0)
