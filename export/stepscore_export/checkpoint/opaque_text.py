"""Text that a chat template may write, but not look at.

A template that runs on two such texts, problem and answer, takes the same way for every problem and answer:
it cannot know them. So what it writes around them holds for all. Only whether a text is empty may be asked,
and is answered with no.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, NoReturn

import jinja2
import jinja2.nativetypes
import jinja2.nodes
import jinja2.sandbox

Parts = tuple[str | int, ...]
"""What a template writes: known text, and the number of each unknown one."""

# Tests that have one answer for all texts.
_TRUE_TESTS = frozenset({"defined", "string", "sequence", "iterable"})
_FALSE_TESTS = frozenset(
    {"undefined", "none", "mapping", "number", "integer", "float", "boolean", "true", "false", "callable"}
)
_OPERATIONS = {
    "compares": ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
    "looks with `in` into": ("__contains__",),
    "takes a part of": ("__getitem__",),
    "loops over": ("__iter__",),
    "measures the length of": ("__len__",),
    "formats": ("__str__", "__repr__", "__format__", "__mod__", "__rmod__"),
    "uses as a key": ("__hash__", "__index__"),
    "calculates with": ("__mul__", "__rmul__", "__int__", "__float__", "__neg__", "__pos__"),
}


class LookedAt(jinja2.TemplateRuntimeError):
    """A template does with a text what depends on it, or writes what is no text."""


class OpaqueText:
    """Known and unknown texts one after the other; `+` joins, everything else raises LookedAt."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def __add__(self, other: object) -> OpaqueText:
        return OpaqueText((*self._parts, *_joined(other)))

    def __radd__(self, other: object) -> OpaqueText:
        return OpaqueText((*_joined(other), *self._parts))

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise LookedAt(f"uses `.{name}` of the text of a message")


def _forbid(names: Iterable[str], what: str) -> None:
    def operation(*_: object) -> NoReturn:
        raise LookedAt(f"{what} the text of a message")

    for name in names:
        setattr(OpaqueText, name, operation)


for _what, _names in _OPERATIONS.items():
    _forbid(_names, _what)


class _CodeGenerator(jinja2.nativetypes.NativeCodeGenerator):
    """Leaves what is written, and what `~` joins, to `concat` instead of turning it into a string."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Any) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _concat(values: Iterable[object]) -> str | OpaqueText:
    parts = tuple(part for value in values for part in _written(value))
    if all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    return OpaqueText(parts)


class OpaqueEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Renders templates whose variables hold opaque text; `parts_of` runs one."""

    code_generator_class = _CodeGenerator
    concat = staticmethod(_concat)  # type: ignore[assignment]  # as NativeEnvironment does

    def guard(self) -> None:
        """Have filters and tests, which are all set by now, refuse opaque text."""
        filters, tests = dict[str, Any](self.filters), dict[str, Any](self.tests)
        self.filters = {name: _guarded_filter(name, function) for name, function in filters.items()}
        self.tests = {name: _guarded_test(name, function) for name, function in tests.items()}

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Refuse opaque text as a key, for which Jinja would try several ways."""
        if isinstance(argument, OpaqueText):
            raise LookedAt("uses as a key the text of a message")
        return super().getitem(obj, argument)

    def parts_of(self, template: str, **variables: Any) -> Parts:
        """Return what a template writes, as known text and the numbers of unknown texts."""
        if next(self.parse(template).find_all(jinja2.nodes.EvalContextModifier), None) is not None:
            raise LookedAt("escapes with `autoescape` the text of a message")
        written: object = self.from_string(template).render(**variables)
        return tuple(_joined(written))


def _joined(value: object) -> Parts:
    """Return the parts of what `+` joins to a text; a TypeError as for strings."""
    if isinstance(value, OpaqueText):
        return value._parts
    if isinstance(value, str):
        return (str(value),)
    raise TypeError(f"can only concatenate str (not {type(value).__name__!r}) to str")


def _written(value: object) -> Parts:
    """Return the parts of what is written: text, numbers, and lists and objects of these."""
    if isinstance(value, (OpaqueText, str)):
        return _joined(value)
    if isinstance(value, jinja2.Undefined) or _is_data(value):
        return (str(value),)
    raise LookedAt(f"writes an object of Python ({type(value).__name__})")


def _is_data(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, (*value, *value.values())))
    return value is None or isinstance(value, (str, int, float))


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps how Jinja calls it
    def guarded(*args: Any, **kwargs: Any) -> Any:
        opaque = [value for value in (*args, *kwargs.values()) if isinstance(value, OpaqueText)]
        if opaque and name == "string":
            return opaque[0]
        if opaque and name not in {"default", "d"}:
            raise LookedAt(f"applies the filter `{name}` to the text of a message")
        return function(*args, **kwargs)

    return guarded


def _guarded_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(value, OpaqueText) for value in (*args, *kwargs.values())):
            return function(*args, **kwargs)
        if name in _TRUE_TESTS | _FALSE_TESTS:
            return name in _TRUE_TESTS
        raise LookedAt(f"applies the test `{name}` to the text of a message")

    return guarded
