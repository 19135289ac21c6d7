"""How many multiply-accumulates of a program stay with some of its units."""

from __future__ import annotations

import math

from jaxopt_nn.interpret.flow import extent
from jaxopt_nn.interpret.flow.dims import Axis
from jaxopt_nn.interpret.flow.entry import Call, Kept
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.products import conv_axes, dot_axes


class Macs:
    """The multiply-accumulates of a flow's program, by what stays of its atoms; as ``inspect`` counts them."""

    def __init__(self, flow: Flow):
        sites = {key: site.macs for key, site in flow.program.sites.items() if site.macs}
        self._fixed = sum(macs for key, macs in sites.items() if key not in flow.calls)
        self._sites = [(macs, _axes(flow.calls[key])) for key, macs in sites.items() if key in flow.calls]

    def __call__(self, kept: Kept) -> int:
        """With the ``kept`` entries of some atoms and all of the others."""
        length = lambda axis: 1 if axis is None else axis.size
        return self._fixed + sum(
            macs * math.prod(extent.size(a, kept) for a in axes) // math.prod(map(length, axes)) for macs, axes in self._sites
        )


def _axes(call: Call) -> list[Axis]:
    """The axes whose product is a site's number of multiply-accumulates, up to a constant (a convolution's window)."""
    if call.name == "dot_general":
        contracted, batch, left, right = dot_axes(call)
        return [*(a for a, _ in contracted), *(a for a, _ in batch), *left, *right]
    return [*call.outs[0], conv_axes(call).inputs]
