"""An SVG of ours as PNG, with letters that are the same on every machine."""

import re
import struct
import zlib
from importlib import resources

#: Pixels per unit of the SVG.
ZOOM = 2.0
#: By which a file is known as ours.
MADE_BY = b"Software\0a morphogen lineage"
#: Pixels beyond which a picture is drawn smaller: programs that show it hold four bytes for each.
MOST = 100_000_000


def png(svg: str) -> bytes:
    """The picture, `ZOOM` times as wide and high, or as large as `MOST` allows, in its light colours.

    Args:
        svg: Of ours, with a view box; its fonts are replaced by one that is brought along.
    """
    from resvg_py import svg_to_bytes

    box = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    fonts = resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf"
    drawn = svg_to_bytes(
        svg_string=svg,
        zoom=min(ZOOM, (MOST / (float(box[1]) * float(box[2]))) ** 0.5),
        skip_system_fonts=True,
        font_files=[str(fonts / name) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")],
        font_family="DejaVu Sans",
        sans_serif_family="DejaVu Sans",
    )
    text = struct.pack(">I", len(MADE_BY)) + b"tEXt" + MADE_BY + struct.pack(">I", zlib.crc32(b"tEXt" + MADE_BY))
    return drawn[:33] + text + drawn[33:]  # after the header, which is so long
