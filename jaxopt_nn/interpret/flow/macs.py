"""How many multiply-accumulates of a program stay with some of its units."""

from __future__ import annotations

import math

from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axis
from jaxopt_nn.interpret.flow.entry import Call
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.products import conv_axes, dot_axes
from jaxopt_nn.interpret.flow.shrunk import Remains


class Macs:
    """The multiply-accumulates of a flow's program, by what stays of its atoms; as ``inspect`` counts them."""

    def __init__(self, flow: Flow):
        sites = {key: site.macs for key, site in flow.program.sites.items() if site.macs}
        loops = lambda key: [axis for loop, axis in flow.loops.items() if key[: len(loop)] == loop]
        self._sites = [
            (key, macs, [*loops(key), *(_axes(flow.calls[key]) if key in flow.calls else ())]) for key, macs in sites.items()
        ]

    def __call__(self, remains: Remains) -> int:
        """With what remains."""
        length = lambda axis: 1 if axis is None else axis.size
        dead = remains.left.dead
        return sum(
            macs * math.prod(dims.size(a, remains.kept) for a in axes) // math.prod(map(length, axes))
            for key, macs, axes in self._sites
            if not any(key[:n] in dead for n in range(1, len(key) + 1))
        )


def _axes(call: Call) -> list[Axis]:
    """The axes whose product is a site's number of multiply-accumulates, up to a constant (a convolution's window)."""
    if call.name == "dot_general":
        contracted, batch, left, right = dot_axes(call)
        return [*(a for a, _ in contracted), *(a for a, _ in batch), *left, *right]
    return [*call.outs[0], conv_axes(call).inputs]
