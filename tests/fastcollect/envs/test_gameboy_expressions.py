"""Expressions over a console's memory against Python's own arithmetic, and all that they refuse."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcollect.envs.gameboy.expressions import ExpressionError, compile_expression

NOW, BEFORE = {0xC000: 7, 0xC001: 250, 0xFFFE: 0}, {0xC000: 9, 0xC001: 3, 0xFFFE: 0}


def evaluate(text):
    positions = {}
    function = compile_expression(text, positions)
    return function([NOW[address] for address in positions], [BEFORE[address] for address in positions])


def by_python(text):
    names = {"mem": NOW, "delta": lambda address: NOW[address] - BEFORE[address]}
    return eval(text, {**names, "min": min, "max": max, "abs": abs})


@pytest.mark.parametrize(
    "text",
    [
        "mem[0xC000]",
        "delta(0xC001)",
        "delta(0xC001) - 0.1 * (mem[0xFFFE] == 0)",
        "mem[0xC000] > 3 and mem[0xC001] < 4 or not mem[0xFFFE]",
        "3 < mem[0xC000] <= 7 != 8",
        "-mem[0xC000] // 2 + mem[0xC001] % 4 / 8",
        "max(mem[0xC000], delta(0xC001), 1e3) - min(-2, +abs(delta(0xC000)))",
        "  1.5  ",
    ],
)
def test_expressions_equal_pythons_own_arithmetic(text):
    assert evaluate(text) == by_python(text)


def _join(parts):
    return st.tuples(parts, st.sampled_from(["+", "-", "*", "==", "<", ">=", "and", "or"]), parts).map(
        lambda three: f"({three[0]} {three[1]} {three[2]})"
    )


TEXTS = st.recursive(
    st.sampled_from(["mem[49152]", "delta(0xC001)", "mem[0xFFFE]", "2.5", "(3)"]),
    lambda parts: st.one_of(
        _join(parts),
        parts.map(lambda part: f"-{part}"),
        parts.map(lambda part: f"(not {part})"),
        st.tuples(parts, parts).map(lambda two: f"max({two[0]}, {two[1]})"),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(TEXTS.filter(lambda text: text != "(3)" and len(text) <= 500))
def test_drawn_expressions_equal_pythons_own_arithmetic(text):
    assert evaluate(text) == by_python(text)


def test_what_python_has_no_name_for():
    assert evaluate(0xC001) == evaluate("0xC001") == evaluate("49153") == 247
    assert evaluate("delta(mem[0xC000] + 256 * mem[0xC001])") == 7 - 9 + 256 * 247
    assert evaluate(2.5) == 2.5
    positions = {}
    compile_expression("mem[0xC001] + mem[0xC000] + delta(0xC001)", positions)
    assert positions == {0xC001: 0, 0xC000: 1}


@pytest.mark.parametrize(
    ("text", "place", "allowed"),
    [
        ("", "column 0", "numbers, mem[ADDRESS]"),
        ("mem[0xC000", "column", "numbers"),
        ("1 + foo", "column 5, 'foo': Name is not known", "numbers"),
        ("mem", "'mem'", "mem[ADDRESS]"),
        ("mem[mem[0xC000]]", "column 5, 'mem[0xC000]': no address", "0x8000 to 0xffff"),
        ("mem[0x10000]", "column 5, '0x10000': no address", "0x8000 to 0xffff"),
        ("mem[-1]", "'-1': no address", "0x8000 to 0xffff"),
        ("mem[0xC000:0xC002]", "no address", "0x8000 to 0xffff"),
        ("mem[49152.0]", "no address", "0x8000 to 0xffff"),
        ("mem[True]", "no address", "0x8000 to 0xffff"),
        ("delta(0x7FFF)", "'0x7FFF': no address", "0x8000 to 0xffff"),
        ("1", "'1': no address", "0x8000 to 0xffff"),
        ("delta(delta(0xC000))", "delta within delta", "numbers"),
        ("delta()", "delta of 0 values", "numbers"),
        ("abs(1, 2)", "abs of 2 values", "abs"),
        ("min(1)", "min of 1 values", "min"),
        ("max(1, *mem)", "'*mem': Starred", "max"),
        ("max(1, 2, key=abs)", "Call is not known", "max"),
        ("open('x')", "'open' is not known", "numbers"),
        ("__import__('os').system('true')", "Call is not known", "numbers"),
        ("mem.__class__", "Attribute is not known", "numbers"),
        ("(lambda: 1)()", "Call is not known", "numbers"),
        ("[1 for x in mem]", "ListComp is not known", "numbers"),
        ("2 ** 9", "'2 ** 9': BinOp is not known", "+ - * / // %"),
        ("1 << 9", "BinOp is not known", "+ - * / // %"),
        ("~1", "UnaryOp is not known", "not"),
        ("1 in mem", "Compare is not known", "comparisons"),
        ("'a' * 3", "'a'", "numbers"),
        ("True + 1", "'True'", "numbers"),
        ("1j + 1", "'1j'", "numbers"),
        ("1e999 * 2", "too large a number", "up to 1e+15"),
        ("1 if mem[0xC000] else 2", "IfExp is not known", "numbers"),
        ("x := 1", "column 3", "numbers"),
        ("1; 2", "column 2", "numbers"),
        ("1 \0", "null", "numbers"),
        ("(" * 240 + "1.0" + ")" * 240, "nested", "numbers"),
        ("-" * 498 + "x", "", "numbers"),
        ("1+" * 300 + "1", "", "up to 500 characters"),
        (None, "None", "up to 500 characters"),
        (True, "True", "up to 500 characters"),
        ([1], "[1]", "up to 500 characters"),
        (float("nan"), "'nan'", "numbers"),
    ],
)
def test_a_wrong_expression_names_its_place_and_what_is_allowed(text, place, allowed):
    with pytest.raises(ExpressionError) as error:
        compile_expression(text, {})
    assert place in str(error.value)
    assert "allowed: " in str(error.value)
    assert allowed in str(error.value)
