"""Names of primitives that work alike."""

#: Zero where one operand is.
ONE = frozenset("and mul".split())
#: Zero where all operands are.
EACH = frozenset(
    "abs add add_any asin asinh atan atanh bitcast_convert_type cbrt ceil complex conj convert_element_type copy copy_p erf "
    "erf_inv expm1 floor imag log1p max mesh_cast min neg or pcast population_count pvary real reduce_precision reshard round "
    "sharding_constraint sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
#: Zero where the first operand is.
LEFT = frozenset("shift_left shift_right_arithmetic shift_right_logical".split())
#: Not zero, and finite, at zero.
NEVER = frozenset(
    "acos atan2 bessel_i0e bessel_i1e cos cosh eq erfc exp exp2 ge gt is_finite le logistic lt ne nextafter not".split()
)
#: Not finite at zero.
POLES = frozenset("acosh digamma lgamma log rsqrt".split())
QUOTIENTS = frozenset("div rem".split())
POWERS = frozenset("integer_pow pow".split())
#: Entry j of the result depends on entry j of each operand alone.
ELEMENTWISE = ONE | EACH | LEFT | NEVER | POLES | QUOTIENTS | POWERS | {"clamp", "select_n"}
#: A leaf is still the leaf after them: but for rounding, where it lies, and how it is differentiated.
STAYS = frozenset(
    "copy copy_p mesh_cast pcast pvary reduce_precision reshard sharding_constraint stop_gradient".split()
)
REDUCTIONS = frozenset(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor".split()
)
