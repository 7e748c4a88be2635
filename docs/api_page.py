"""docs/api.md: the public names of both packages, with signature and docstring, read from their sources."""

from __future__ import annotations

import ast
import enum
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

LINE = 100
HEAD = """# Python API

Generated from signatures and docstrings by `make docs`. Import these names from the package, not from its
modules: everything else is private ([stability](stability.md)).
"""


def page(modules: Iterable[ModuleType]) -> str:
    """Return the page: a section for each package, one below it for each name in its `__all__`."""
    sections = []
    for module in modules:
        sections.append(f"## {module.__name__}\n\n{_prose(inspect.getdoc(module))}\n")
        for name in getattr(module, "__all__", []):
            sections += _section(name, getattr(module, name))
    return "\n".join([HEAD, *sections])


def _section(name: str, value: Any) -> Iterator[str]:
    yield f"### {name}\n"
    if not inspect.isclass(value) and not inspect.isfunction(value):
        yield f"`{name} = {value!r}`\n"
        return
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    if isinstance(node, ast.FunctionDef):
        yield f"```python\n{signature(node)}\n```\n\n{_prose(inspect.getdoc(value))}\n"
    elif isinstance(node, ast.ClassDef):
        yield f"```python\n{_outline(node)}\n```\n\n{_prose(inspect.getdoc(value))}\n"
        yield from _members(node, is_enum=issubclass(value, enum.Enum))


def signature(node: ast.FunctionDef) -> str:
    """Return `def name(...) -> ...`, one argument a line where it is long.

    >>> print(signature(ast.parse("def f(x: int, *, y: str = 'a') -> None: pass").body[0]))
    def f(x: int, *, y: str = 'a') -> None
    """
    arguments = list(_split(node.args))
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    line = f"def {node.name}({', '.join(arguments)}){returns}"
    if len(line) <= LINE:
        return line
    return f"def {node.name}(\n{''.join(f'    {each},{chr(10)}' for each in arguments)}){returns}"


def _split(arguments: ast.arguments) -> Iterator[str]:
    """Yield the arguments one by one, as they are written."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    for argument, default in zip(positional, defaults, strict=True):
        yield _argument(argument, default)
    if arguments.vararg is not None:
        yield f"*{_argument(arguments.vararg, None)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")


def _outline(node: ast.ClassDef) -> str:
    """Return the head of a class with its bases, its public fields, and the signature of `__init__`."""
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    fields = [
        ast.unparse(each)
        for each in node.body
        if isinstance(each, ast.AnnAssign | ast.Assign) and not ast.unparse(each).startswith("_")
    ]
    methods = (each for each in node.body if isinstance(each, ast.FunctionDef))
    made = [signature(method) for method in methods if method.name == "__init__"]
    head = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    return "\n".join([head, textwrap.indent("\n".join([*fields, *made]) or "...", "    ")])


def _members(node: ast.ClassDef, *, is_enum: bool) -> Iterator[str]:
    """Yield what docstrings say of fields, then each public method with its signature."""
    described = []
    for before, after in zip(node.body, node.body[1:], strict=False):
        text = _literal(after)
        if isinstance(before, ast.AnnAssign | ast.Assign) and text is not None:
            target = before.target if isinstance(before, ast.AnnAssign) else before.targets[0]
            described.append(f"- `{ast.unparse(target)}`: {' '.join(text.split())}")
    if described:
        yield "\n".join(described) + "\n"
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and _is_public(method) and not is_enum:
            decorators = "".join(f"@{ast.unparse(each)}\n" for each in method.decorator_list)
            yield f"#### `{node.name}.{method.name}`\n"
            yield f"```python\n{decorators}{signature(method)}\n```\n\n{_prose(ast.get_docstring(method))}\n"


def _is_public(method: ast.FunctionDef) -> bool:
    """Return whether a method is documented; of an overloaded one, its implementation is."""
    overload = any(ast.unparse(each) == "overload" for each in method.decorator_list)
    return not overload and (not method.name.startswith("_") or method.name == "__call__")


def _literal(node: ast.stmt) -> str | None:
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return node.value.value
    return None


def _prose(docstring: str | None) -> str:
    """Return a docstring as Markdown: doctests in fences, a colon for `::`, no `<` that begins a tag.

    >>> print(_prose("Return `<a>-<b>`, or <c>::\\n\\n    x < y"))
    Return `<a>-<b>`, or &lt;c>:
    <BLANKLINE>
        x < y
    """
    return "\n\n".join(map(_paragraph, re.split(r"\n{2,}", docstring or "")))


def _paragraph(text: str) -> str:
    if text.startswith(">>>"):
        return f"```pycon\n{text}\n```"
    if text.startswith("    "):
        return text
    parts = re.split(r"(`[^`]*`)", text.removesuffix(":") if text.endswith("::") else text)
    return "".join(part if part.startswith("`") else re.sub(r"<(?=\w)", "&lt;", part) for part in parts)
