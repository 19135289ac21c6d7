"""The flow table: for each primitive how axes flow through it, where zeros stay zero, and its parameters on other sizes.

A primitive without an entry pins all axes that enter it. One with an entry is three functions (``Entry``):
``axes(call)`` gives the axes of the results and ties those of the operands; ``zeros(call, zeros, notes)`` says along which
atoms the results are zero where the operands are, and notes what must be zero there and is not; ``params(call, kept)`` gives
the parameters of the equation on operands of which only some entries are kept.
"""

from __future__ import annotations

from jaxopt_nn.interpret.flow.along import ALONG
from jaxopt_nn.interpret.flow.elementwise import ELEMENTWISE
from jaxopt_nn.interpret.flow.entry import Entry
from jaxopt_nn.interpret.flow.layout import LAYOUT
from jaxopt_nn.interpret.flow.places import PLACES
from jaxopt_nn.interpret.flow.products import PRODUCTS

PRIMITIVES: dict[str, Entry] = {**ELEMENTWISE, **LAYOUT, **ALONG, **PRODUCTS, **PLACES}
