"""Reading HLO text: on programs written by hand, whose buffers are known."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jaxopt_nn.cost import hlo

LOOP = """
HloModule jit_apply, is_scheduled=true, entry_computation_layout={(s8[4,64,32]{2,1,0})->f32[8,32]{1,0}}

FileNames
1 "model.py"

%dequantized (param_0: s8[4,64,32], param_1: s32[]) -> bf16[64,32] {
  %param_0 = s8[4,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %slice = s8[1,64,32]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,64,32}
  %inside = bf16[1,64,32]{2,1,0} convert(%slice)
  ROOT %bitcast = bf16[64,32]{1,0} bitcast(%inside)
}

%dot_of_codes (param_0.1: f32[8,64], param_1.1: s8[4,64,32], param_2: s32[]) -> f32[8,32] {
  %param_0.1 = f32[8,64]{1,0} parameter(0)
  %param_1.1 = s8[4,64,32]{2,1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %slice.1 = s8[1,64,32]{2,1,0} dynamic-slice(%param_1.1, %param_2, %zero.1, %zero.1), dynamic_slice_sizes={1,64,32}
  %bitcast.1 = s8[64,32]{1,0} bitcast(%slice.1)
  %fused_copy = f32[64,32]{1,0} convert(%bitcast.1)
  ROOT %dot = f32[8,32]{1,0} dot(%param_0.1, %fused_copy), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (carry: (s32[], f32[8,64], s8[4,64,32], s8[4,64,32])) -> (s32[], f32[8,64], s8[4,64,32], s8[4,64,32]) {
  %carry = (s32[], f32[8,64]{1,0}, s8[4,64,32]{2,1,0}, /*index=3*/s8[4,64,32]{2,1,0}) parameter(0)
  %step = s32[] get-tuple-element(%carry), index=0
  %x = f32[8,64]{1,0} get-tuple-element(%carry), index=1
  %up = s8[4,64,32]{2,1,0} get-tuple-element(%carry), index=2
  %down = s8[4,64,32]{2,1,0} get-tuple-element(%carry), index=3
  %one = s32[] constant(1)
  %next = s32[] add(%step, %one)
  %copy_of_up = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} fusion(%up, %step), kind=kLoop, calls=%dequantized, metadata={op_name="jit(apply)/while/body/convert" stack_frame_id=2}, backend_config={"estimated_cycles":"100"}
  %h = f32[8,32]{1,0} dot(%x, %copy_of_up), lhs_contracting_dims={1}, rhs_contracting_dims={0}, backend_config={"window_config":{"estimated_cycles":"30"}}
  %y = f32[8,32]{1,0} fusion(%x, %down, %step), kind=kOutput, calls=%dot_of_codes
  %z = f32[8,64]{1,0} concatenate(%h, %y), dimensions={1}
  ROOT %out = (s32[], f32[8,64]{1,0}, s8[4,64,32]{2,1,0}, s8[4,64,32]{2,1,0}) tuple(%next, %z, %up, %down)
}

%condition (carry.1: (s32[], f32[8,64], s8[4,64,32], s8[4,64,32])) -> pred[] {
  %carry.1 = (s32[], f32[8,64]{1,0}, s8[4,64,32]{2,1,0}, s8[4,64,32]{2,1,0}) parameter(0)
  %step.1 = s32[] get-tuple-element(%carry.1), index=0
  %four = s32[] constant(4)
  ROOT %less = pred[] compare(%step.1, %four), direction=LT
}

ENTRY %main.1 (up.1: s8[4,64,32], down.1: s8[4,64,32], x.1: f32[8,64]) -> f32[8,64] {
  %up.1 = s8[4,64,32]{2,1,0} parameter(0), metadata={op_name="variables['up']"}
  %down.1 = s8[4,64,32]{2,1,0} parameter(1)
  %x.1 = f32[8,64]{1,0} parameter(2)
  %start = s32[] constant(0)
  %prefetch = (s8[4,64,32]{2,1,0:S(1)}, s8[4,64,32]{2,1,0}, u32[]{:S(2)}) copy-start(%down.1)
  %prefetched = s8[4,64,32]{2,1,0:S(1)} copy-done(%prefetch)
  %init = (s32[], f32[8,64]{1,0}, s8[4,64,32]{2,1,0}, s8[4,64,32]{2,1,0:S(1)}) tuple(%start, %x.1, %up.1, %prefetched)
  %loop = (s32[], f32[8,64]{1,0}, s8[4,64,32]{2,1,0}, s8[4,64,32]{2,1,0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %wide = f32[4,64,32]{2,1,0} convert(%down.1), backend_config={"estimated_cycles":7}
  ROOT %result = f32[8,64]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def names(found):
    return [w.name for w in found]


def test_writes_outside_fusions_are_found_and_the_inside_is_not():
    found = hlo.written(hlo.parse(LOOP), {0, 1})
    assert names(found) == ["copy_of_up", "prefetched", "wide"]
    copy, prefetched, wide = found
    assert (copy.array, copy.opcode, copy.sources) == (hlo.Array("bf16", (64, 32), 1), "fusion", (0,))
    assert copy.op_name == "jit(apply)/while/body/convert"
    assert prefetched.array == hlo.Array("s8", (4, 64, 32), 1)
    assert (wide.array.space, wide.sources) == (0, (1,))


def test_what_depends_on_anything_else_is_an_activation():
    module = hlo.parse(LOOP)
    assert names(hlo.written(module, {0})) == ["copy_of_up"]
    assert names(hlo.written(module, {1})) == ["prefetched", "wide"]
    assert names(hlo.written(module, set())) == []
    assert {"h", "y", "z"} <= set(names(hlo.written(module, {0, 1, 2})))


def test_cycles_of_a_loop_count_each_trip():
    assert hlo.estimated_cycles(hlo.parse(LOOP)) == 4 * (100 + 30) + 7
    assert hlo.costs(hlo.parse(LOOP)) == {"copy_of_up": 400, "h": 120, "wide": 7}


def test_turns_that_the_compiler_does_not_tell_are_read_off_the_condition():
    """TPU programs carry no known_trip_count; a condition of another form counts one turn."""
    untold = LOOP.replace(', backend_config={"known_trip_count":{"n":"4"}}', "")
    assert untold != LOOP
    assert hlo.estimated_cycles(hlo.parse(untold)) == 4 * (100 + 30) + 7
    assert hlo.estimated_cycles(hlo.parse(untold.replace("direction=LT", "direction=NE"))) == 100 + 30 + 7


def test_of_branches_the_costliest_counts():
    branch = (
        "%{0} (p: f32[2]) -> f32[2] {{\n  %p = f32[2] parameter(0)\n  ROOT %work_{0} = f32[2] negate(%p), {1}\n}}\n"
    )
    branches = "".join(
        branch.format(name, f'backend_config={{"estimated_cycles":"{n}"}}') for name, n in (("few", 3), ("many", 50))
    )
    main = (
        "ENTRY %main (i: s32[], x: f32[2]) -> f32[2] {\n  %i = s32[] parameter(0)\n  %x = f32[2] parameter(1)\n"
        "  ROOT %c = f32[2] conditional(%i, %x, %x), branch_computations={%many, %few}\n}\n"
    )
    module = hlo.parse(branches + main)
    assert hlo.costs(module) == {"work_many": 50}
    assert hlo.estimated_cycles(module) == 50


def test_no_estimates_are_none_and_not_zero():
    assert hlo.estimated_cycles(hlo.parse("ENTRY main {\n  ROOT x = f32[2] parameter(0)\n}\n")) is None


SHORT = """
HloModule short

first {
  p = (s4[16,8], f32[8]) parameter(0)
  codes = s4[16,8] get-tuple-element(p), index=0
  ROOT made = f32[16,8] convert(codes)
}

second {
  q = (s4[16,8], f32[8]) parameter(0)
  scale = f32[8] get-tuple-element(q), index=1
  ROOT spread = f32[16,8] broadcast(scale), dimensions={1}
}

sum {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT s = f32[] add(a, b)
}

called {
  c = f32[16,8] parameter(0)
  ROOT twice = f32[16,8] add(c, c)
}

ENTRY main {
  codes.1 = s4[16,8] parameter(0)
  scale.1 = f32[8] parameter(1)
  which = s32[] parameter(2)
  zeros = f32[2,2] constant({ {0, 0}, {0, 0} })
  both = (s4[16,8], f32[8]) tuple(s4[16,8] codes.1, f32[8] scale.1)
  held = (s4[16,8], f32[8]) opt-barrier(both)
  either = f32[16,8] conditional(s32[] which, both, held), branch_computations={first, second}
  row = f32[8] reduce(f32[16,8] either, zeros), dimensions={0}, to_apply=sum
  doubled = f32[16,8] call(either), to_apply=called
  started = ((f32[16,8]), f32[16,8], u32[]) slice-start(doubled), slice={[0:16], [0:8]}
  done = f32[16,8] slice-done(started)
  ROOT all = (f32[16,8], f32[8]) custom-call(done, row), custom_call_target="braces { in ( text"
}
"""


def test_short_form_branches_calls_and_tuples():
    module = hlo.parse(SHORT)
    found = hlo.written(module, {0, 1, 2})
    assert names(found) == ["made", "spread", "twice", "row", "done", "all", "all"]
    sources = {w.name: w.sources for w in found}
    assert (sources["made"], sources["spread"], sources["row"]) == ((0,), (1,), (0, 1))
    assert [w.array.shape for w in found[-2:]] == [(16, 8), (8,)]


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("module @jit_f { func.func @main() }")
    with pytest.raises(ValueError, match=r"unreadable HLO instruction %x"):
        hlo.parse("ENTRY main {\n  x = f32[2]\n}\n")


arrays = st.builds(
    hlo.Array,
    st.sampled_from(["f32", "bf16", "s4", "u8", "pred", "f8e4m3fn"]),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.integers(0, 2),
)
types = st.recursive(arrays, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


def text(type_):
    if isinstance(type_, tuple):
        return "(" + ", ".join(map(text, type_)) + ")"
    layout = ",".join(map(str, reversed(range(len(type_.shape)))))
    space = f"S({type_.space})" if type_.space else ""
    return f"{type_.dtype}[{','.join(map(str, type_.shape))}]{{{layout}:T(8,128)(2,1){space}}}"


@given(types)
def test_every_type_is_read_back(type_):
    program = f"ENTRY %e () -> x {{\n  ROOT %x = {text(type_)} after-all()\n}}\n"
    (instruction,) = hlo.parse(program).computations["e"]
    assert instruction.type == type_


def test_memories():
    assert [hlo.Array("f32", (), space).on_chip for space in (0, 1, 3, 5)] == [False, True, True, False]


def test_bits_of_an_entry():
    widths = {"f32": 32, "bf16": 16, "s4": 4, "u2": 2, "pred": 8, "f8e4m3fn": 8}
    assert {dtype: hlo.Array(dtype, ()).bits for dtype in widths} == widths
