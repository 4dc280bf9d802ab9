"""What a module does when it is imported, beside defining names: read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator

_DOING = (ast.For, ast.While, ast.With, ast.Delete, ast.AugAssign, ast.Raise, ast.Assert)
_DECIDED_ELSEWHERE = ("TYPE_CHECKING", "__name__")  # for types alone; for the program alone


def import_effects(source: str) -> list[str]:
    """Return the statements of a module's top level that call, loop, or change what others have."""
    return [ast.unparse(statement) for statement in _top_level(ast.parse(source).body) if _has_effect(statement)]


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If):
            if not any(word in ast.unparse(statement.test) for word in _DECIDED_ELSEWHERE):
                yield from _top_level([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Try):
            handled = [inner for handler in statement.handlers for inner in handler.body]
            yield from _top_level([*statement.body, *handled, *statement.orelse, *statement.finalbody])
        else:
            yield statement


def _has_effect(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)  # a docstring
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return isinstance(statement, _DOING) or any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
