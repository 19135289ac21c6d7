"""A picture of where the bytes of a file are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxopt_nn.reporting import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_sizes(axes: Axes, parts: Sequence[tuple[str, int, str]]) -> Axes:
    """Where the bytes of a file are: a bar for each of its parts, the largest first, with its share.

    Args:
      parts: of each its name, its bytes, and what it is in a few words.
    """
    ranked = sorted(parts, key=lambda part: -part[1])
    known, total = ranked[:plots.BARS], max(sum(size for _, size, _ in parts), 1)
    sizes = [size for _, size, _ in known]
    axes.barh(range(len(known)), sizes, height=0.72, color=plots.BLUE)
    for place, (_, size, what) in enumerate(known):
        text = f"{size:,}, {size / total:.1%}" + (f"  {what}" if what else "")
        axes.text(size + 0.012 * max(sizes), place, text, va="center", fontsize=7.5)
    axes.set_yticks(range(len(known)), plots.shortened([name for name, _, _ in known], 42))
    axes.set_ylim(len(known) - 0.4, -0.6)
    axes.set_xlim(0, 1.6 * max(*sizes, 1))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("bytes in the file")
    axes.set_title(plots.left_out(len(known), len(parts), "parts: the largest") or f"{total:,} bytes")
    return axes
