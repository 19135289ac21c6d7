"""The flow table: all that is known of a primitive, said once (``Entry``).

``axes``, ``zeros`` and ``params`` serve groups and shrinking. ``moves`` and ``joins``, of what only moves entries, are read by
the tags too (which leaves lie behind a value, and where), by the rows that weights of examples follow, and by compressed
tensors, which do the same steps on their codes. A primitive without an entry pins all axes that enter it.
"""

from __future__ import annotations

from jaxopt_nn.interpret.flow.along import ALONG
from jaxopt_nn.interpret.flow.elementwise import ELEMENTWISE
from jaxopt_nn.interpret.flow.entry import Entry
from jaxopt_nn.interpret.flow.layout import LAYOUT
from jaxopt_nn.interpret.flow.places import PLACES
from jaxopt_nn.interpret.flow.products import PRODUCTS

PRIMITIVES: dict[str, Entry] = {**ELEMENTWISE, **LAYOUT, **ALONG, **PRODUCTS, **PLACES}
