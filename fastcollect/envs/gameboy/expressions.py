"""Arithmetic over the console's memory, from text to a function; nothing else can be said in it."""

import ast
from collections.abc import Callable, Sequence
from typing import Any

LOWEST, HIGHEST = 0x8000, 0xFFFF
Evaluate = Callable[[Sequence[int], Sequence[int]], float]
"""From the watched bytes now and before the step to the expression's value."""

_ALLOWED = (
    "allowed: numbers, mem[ADDRESS], delta(ADDRESS), + - * / // %, comparisons, and, or, not, min, max, abs"
)
_ADDRESSES = f"allowed: whole numbers from {LOWEST:#06x} to {HIGHEST:#06x}"
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_SIGNS = (ast.USub, ast.UAdd, ast.Not)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_FUNCTIONS = {"min": min, "max": max, "abs": abs}
_LONGEST = 500
_LARGEST = 1e15


class ExpressionError(ValueError):
    """An expression that cannot be; the text says which part of it and what is allowed."""


def compile_expression(source: Any, positions: dict[int, int]) -> Evaluate:
    """A function of an expression's text (see ``gameboy.make``), or of a number.

    positions: from each address to its place among the watched bytes; addresses met here are added.
    Raises ExpressionError.
    """
    text = repr(source) if isinstance(source, int | float) and not isinstance(source, bool) else source
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise ExpressionError(
            f"is {str(source)[:60]!r}; allowed: an expression of up to {_LONGEST} characters"
        )
    text = text.strip()
    try:
        written = ast.unparse(_Writer(text, positions).whole(ast.parse(text, mode="eval").body))
        # Only what _Writer wrote is compiled: numbers, operators, these names, and bytes by their place.
        return eval(f"lambda now, before: {written}", {"__builtins__": {}, **_FUNCTIONS})
    except ExpressionError:
        raise
    except SyntaxError as error:
        raise ExpressionError(f"is {text!r}: column {error.offset}: {error.msg}; {_ALLOWED}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"is {text[:60]!r}: {error}; {_ALLOWED}") from None


class _Writer:
    """Writes a new tree with nothing in it that was not asked for by kind."""

    def __init__(self, text: str, positions: dict[int, int]) -> None:
        self._text = text
        self._positions = positions

    def whole(self, node: ast.expr) -> ast.expr:
        return self._write(node, "now") if _whole(node) is None else self._delta(node)

    def _write(self, node: ast.expr, when: str) -> ast.expr:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if value <= _LARGEST:
                    return ast.Constant(value)
                raise self._error(node, "too large a number", f"allowed: up to {_LARGEST:g}")
            case ast.BinOp() if isinstance(node.op, _OPERATORS):
                return ast.BinOp(self._write(node.left, when), node.op, self._write(node.right, when))
            case ast.UnaryOp() if isinstance(node.op, _SIGNS):
                return ast.UnaryOp(node.op, self._write(node.operand, when))
            case ast.BoolOp():
                return ast.BoolOp(node.op, [self._write(value, when) for value in node.values])
            case ast.Compare() if all(isinstance(op, _COMPARISONS) for op in node.ops):
                others = [self._write(other, when) for other in node.comparators]
                return ast.Compare(self._write(node.left, when), node.ops, others)
            case ast.Subscript(value=ast.Name(id="mem")):
                return self._byte(node.slice, when)
            case ast.Call(func=ast.Name(id=name), keywords=[]):
                return self._call(node, name, when)
        raise self._error(node, f"{type(node).__name__} is not known")

    def _call(self, node: ast.Call, name: str, when: str) -> ast.expr:
        count = len(node.args)
        if name == "delta" and count == 1:
            if any(isinstance(part, ast.Name) and part.id == "delta" for part in ast.walk(node.args[0])):
                raise self._error(node, "delta within delta")
            return self._delta(node.args[0])
        if (name == "abs" and count == 1) or (name in ("min", "max") and count > 1):
            arguments = [self._write(argument, when) for argument in node.args]
            return ast.Call(ast.Name(name, ast.Load()), arguments, [])
        known = name in ("delta", *_FUNCTIONS)
        raise self._error(node, f"{name} of {count} values" if known else f"{name!r} is not known")

    def _delta(self, node: ast.expr) -> ast.expr:
        write = self._write if _whole(node) is None else self._byte
        return ast.BinOp(write(node, "now"), ast.Sub(), write(node, "before"))

    def _byte(self, node: ast.expr, when: str) -> ast.expr:
        address = _whole(node)
        if address is None or not LOWEST <= address <= HIGHEST:
            raise self._error(node, "no address", _ADDRESSES)
        place = self._positions.setdefault(address, len(self._positions))
        return ast.Subscript(ast.Name(when, ast.Load()), ast.Constant(place), ast.Load())

    def _error(self, node: ast.expr, reason: str, allowed: str = _ALLOWED) -> ExpressionError:
        part = ast.get_source_segment(self._text, node) or self._text
        place = f"column {node.col_offset + 1}, {part!r}: {reason}"
        return ExpressionError(f"is {self._text!r}: {place}; {allowed}")


def _whole(node: ast.expr) -> int | None:
    """The number that a node is, if it is a lone integer."""
    value = getattr(node, "value", None)
    return value if type(value) is int else None
