"""Who is routed where: a picture of routers' shares, block by block. `fusion.fused` calls it."""

from collections.abc import Sequence

from morphogen.report.pictures import DPI, png

#: A block's id, its layers, and what share of the gates each gets.
Row = tuple[str, Sequence[str], Sequence[float]]


def picture(rows: Sequence[Row]) -> bytes:
    """PNG: a line of cells for every block, a cell for every layer, darker the more it gets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(len(layers) for _, layers, _ in rows)
    figure = Figure(figsize=(2.0 + 1.3 * most, 1.2 + 0.55 * len(rows)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    cells = [[*shares, *[0.0] * (most - len(shares))] for _, _, shares in rows]
    image = axis.imshow(cells, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for y, (_, layers, shares) in enumerate(rows):
        for x, (layer, share) in enumerate(zip(layers, shares, strict=True)):
            colour = "white" if share > 0.6 else "black"
            axis.text(x, y, f"{layer}\n{share:.0%}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_yticks(range(len(rows)), [block for block, _, _ in rows])
    axis.set_xticks([])
    figure.colorbar(image, ax=axis, label="mean share of the gates")
    return png(figure)
