"""Finds a mutant's old code by its syntax tree, and puts the new code there.

Comments, docstrings, line breaks and the kind of quotes don't count, so that a row of
mutants_table.py holds however its function is laid out. Code that isn't Python is compared as text.
"""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# What brackets can stand around. A slice and a starred value are expressions only by their class.
_UNBRACKETED = (ast.Slice, ast.Starred)


class Planting(ValueError):
    """A row can't be planted: its function or code isn't there, or is there more than once."""


class _Place(NamedTuple):
    """The place of code: `count` nodes of a field of `parent`, from `index` on.

    Without an index the field is one node.
    """

    parent: ast.AST
    field: str
    index: int | None
    count: int

    def nodes(self) -> list[ast.AST]:
        value = getattr(self.parent, self.field)
        return [value] if self.index is None else value[self.index : self.index + self.count]

    def put(self, nodes: list[ast.AST]) -> None:
        if self.index is None:
            (node,) = nodes
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index : self.index + self.count] = nodes


def planted(path: Path, function: str, old: str, new: str) -> str:
    """Returns the text of a file with `new` in place of `old`.

    Args:
        path: the file. One that doesn't end with .py and has no Python in its first line is text.
        function: qualified name of the function or class with `old`; "" for what stands in none.
        old: an expression, `a, b` for arguments, elements or a dict's values that follow each
            other, or statements; there exactly once.
        new: what stands there then, of the same form; "" for no statement.

    Raises:
        Planting: the function or `old` isn't there exactly once, or the result isn't Python.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py" and "python" not in text.partition("\n")[0]:
        if text.count(old) != 1:
            raise Planting(f"{path.name} has the text {text.count(old)} times, not once: {old}")
        return text.replace(old, new)
    where = f"{path.name}: {function or 'the module'}"
    tree = ast.parse(text)
    try:
        olds, news = _snippets(old, new)
    except SyntaxError:
        raise Planting(f"{path.name}: not Python: {old} or {new}") from None
    wanted = [dumped(node) for node in olds]
    found = [place for scope in _scopes(tree, function) for place in _places(scope, wanted)]
    if len(found) != 1:
        raise Planting(f"{where} has it {len(found)} times, not once: {old}")
    (place,) = found
    expected = _expected(tree, place, news)
    for candidate in _candidates(text, tree, place, new or "pass", news):
        try:
            if dumped(ast.parse(candidate)) == expected:
                return candidate
        except SyntaxError:
            continue
    raise Planting(f"{where}: this can't stand where the old code did: {new}")


def dumped(node: object) -> str:
    """Returns the tree as text, without places, docstrings and load or store contexts."""
    if isinstance(node, list):
        return f"[{', '.join(map(dumped, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for field, value in ast.iter_fields(node):
        if field in ("ctx", "kind"):
            continue
        is_documented = field == "body" and isinstance(node, (*_SCOPES, ast.Module))
        if is_documented and ast.get_docstring(node, clean=False) is not None:
            value = value[1:]
        fields.append(f"{field}={dumped(value)}")
    return f"{type(node).__name__}({', '.join(fields)})"


def _snippets(old: str, new: str) -> tuple[list[ast.AST], list[ast.AST]]:
    """Parses both as expressions if they are, else as statements."""
    try:
        if not new:
            raise SyntaxError("no expression")
        olds, news = _expression(old), _expression(new)
        if _is_bare_tuple(olds) and _is_bare_tuple(news):
            return olds.elts, news.elts
        return [olds], [news]
    except SyntaxError:
        return _statements(old), _statements(new) or [ast.Pass()]


def _expression(snippet: str) -> ast.AST:
    return ast.parse(f"({_dedented(snippet)}\n)", mode="eval").body


def _is_bare_tuple(node: ast.AST) -> bool:
    """Returns True for `a, b` without brackets: neighbours in a call, tuple, list or dict."""
    return isinstance(node, ast.Tuple) and node.col_offset == 0  # the bracket is _expression's


def _statements(snippet: str) -> list[ast.AST]:
    return ast.parse(_dedented(snippet)).body


def _dedented(snippet: str) -> str:
    return textwrap.dedent(snippet).strip()


def _scopes(tree: ast.Module, function: str) -> list[ast.AST]:
    scopes = [tree]
    for name in filter(None, function.split(".")):
        scopes = [node for scope in scopes for node in _inner_scopes(scope) if node.name == name]
    if not scopes:
        raise Planting(f"there is no {function}")
    return scopes


def _inner_scopes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _SCOPES):
            yield child
        else:
            yield from _inner_scopes(child)


def _places(node: ast.AST, wanted: list[str]) -> Iterator[_Place]:
    """Returns the places of the wanted nodes below a node.

    Below a module, functions and classes are left out.
    """
    in_module = isinstance(node, ast.Module)
    for field, value in ast.iter_fields(node):
        nodes = value if isinstance(value, list) else [value]
        for index in range(len(nodes) - len(wanted) + 1):
            candidates = nodes[index : index + len(wanted)]
            if all(map(_is_wanted, candidates, wanted)):
                yield _Place(node, field, index if isinstance(value, list) else None, len(wanted))
        for child in nodes:
            if isinstance(child, ast.AST) and not (in_module and isinstance(child, _SCOPES)):
                yield from _places(child, wanted)


def _is_wanted(node: ast.AST | None, wanted: str) -> bool:
    return wanted.startswith(type(node).__name__) and dumped(node) == wanted


def _expected(tree: ast.Module, place: _Place, news: list[ast.AST]) -> str:
    olds = place.nodes()
    place.put(news)
    expected = dumped(tree)
    place._replace(count=len(news)).put(olds)
    return expected


def _candidates(
    text: str, tree: ast.Module, place: _Place, new: str, news: list[ast.AST]
) -> Iterator[str]:
    """Returns texts with the new code in it; at least one of them has the expected tree."""
    olds = place.nodes()
    if isinstance(olds[0], ast.stmt):
        indented = textwrap.indent(_dedented(new), " " * olds[0].col_offset)
        yield _spliced(text, olds, indented.lstrip())
        return
    fstring = _fstring_around(tree, place)
    if fstring is None and len(news) == len(olds) > 1:  # a dict's keys stand between its values
        for node, by in reversed(list(zip(olds, news, strict=True))):
            text = _spliced(text, [node], ast.unparse(by))
        yield text
        return
    if fstring is None:
        code = _dedented(new)
        yield _spliced(text, olds, code.rstrip(","))
        if not isinstance(news[0], _UNBRACKETED):
            yield _spliced(text, olds, f"({code}\n)" if "\n" in code else f"({code})")
        return
    # Places inside an f-string are not to be relied on: it is written anew.
    place.put(news)
    written = ast.unparse(fstring)
    place._replace(count=len(news)).put(olds)
    yield _spliced(text, [fstring], written)
    yield _spliced(text, [fstring], f"({written})")


def _fstring_around(tree: ast.Module, place: _Place) -> ast.AST | None:
    for node in ast.walk(tree):  # the outermost first
        if not isinstance(node, ast.JoinedStr):
            continue
        if any(inner is place.parent for inner in ast.walk(node)):
            return node
    return None


def _spliced(text: str, olds: list[ast.AST], new: str) -> str:
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line.encode()) + 1)
    first, last = olds[0], olds[-1]
    decorators = getattr(first, "decorator_list", [])
    start_line = min([first.lineno, *(node.lineno for node in decorators)])
    start = starts[start_line - 1] + first.col_offset
    end = starts[last.end_lineno - 1] + last.end_col_offset
    raw = text.encode()
    return (raw[:start] + new.encode() + raw[end:]).decode()
