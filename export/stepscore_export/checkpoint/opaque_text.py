"""Text that a chat template may write, but not look at.

A template that runs on two such texts, problem and answer, takes the same way for every problem and answer:
it cannot know them. So what it writes around them holds for all. It may strip white space off the ends of
one, which is noted with the place where it is written. Whether a text is empty is answered with no; whether
it contains a tag such as `</think>` as well, and the tag is noted: the runtime rejects texts that contain it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, NoReturn

import jinja2
import jinja2.nativetypes
import jinja2.nodes
import jinja2.sandbox

from stepscore.prompt.template import Strip


@dataclass(frozen=True, slots=True)
class Unknown:
    """A text of a message, and the tags that it is taken not to contain."""

    number: int
    absent: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Written:
    """An unknown text as it is written: without what is stripped off its ends."""

    text: Unknown
    left: Strip = Strip.NOTHING
    right: Strip = Strip.NOTHING


Parts = tuple[str | Written, ...]
"""What a template writes: known and unknown texts."""

_TAG = re.compile(r"</?[^<>\s/]+>")
_STRIPPED = {None: Strip.WHITE_SPACE, "\n": Strip.LINE_FEEDS}
_KINDS = tuple(Strip)  # each contains those before it, so that the larger of two is both

# Tests that have one answer for all texts.
_TRUE_TESTS = frozenset({"defined", "string", "sequence", "iterable"})
_FALSE_TESTS = frozenset(
    {"undefined", "none", "mapping", "number", "integer", "float", "boolean", "true", "false", "callable"}
)
_OPERATIONS = {
    "compares": ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
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
    """Known and unknown texts one after the other; all that is not defined here raises LookedAt."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Parts) -> None:
        self._parts = tuple(part for part in parts if part != "")

    def __add__(self, other: object) -> OpaqueText:
        return OpaqueText((*self._parts, *_joined(other)))

    def __radd__(self, other: object) -> OpaqueText:
        return OpaqueText((*_joined(other), *self._parts))

    def __bool__(self) -> bool:
        return True

    def strip(self, chars: object = None) -> OpaqueText:
        """Strip both ends."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: object = None) -> OpaqueText:
        """Strip the left end."""
        kind, text = _kind(chars), self._alone("strips")
        return OpaqueText((replace(text, left=max(text.left, kind, key=_KINDS.index)),))

    def rstrip(self, chars: object = None) -> OpaqueText:
        """Strip the right end."""
        kind, text = _kind(chars), self._alone("strips")
        return OpaqueText((replace(text, right=max(text.right, kind, key=_KINDS.index)),))

    def startswith(self, tag: object) -> bool:
        """Answer no, for a text that does not contain the tag."""
        return self._contains(tag, "uses `.startswith` of")

    def endswith(self, tag: object) -> bool:
        """Answer no, for a text that does not contain the tag."""
        return self._contains(tag, "uses `.endswith` of")

    def split(self, tag: object = None) -> list[OpaqueText]:
        """Return the text as a whole, for one that does not contain the tag."""
        self._contains(tag, "uses `.split` of")
        return [self]

    def __contains__(self, tag: object) -> bool:
        return self._contains(tag, "looks with `in` into")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise LookedAt(f"uses `.{name}` of the text of a message")

    def _contains(self, tag: object, what: str) -> bool:
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            raise LookedAt(f"{what} the text of a message")
        absent = self._alone(what).text.absent
        if tag not in absent:
            absent.append(tag)
        return False

    def _alone(self, what: str) -> Written:
        """Return the unknown text where there is nothing else; a joined one may have more at its ends."""
        match self._parts:
            case (Written() as text,):
                return text
        raise LookedAt(f"{what} more than the text of a message")


def _kind(chars: object) -> Strip:
    if isinstance(chars, str | None) and chars in _STRIPPED:
        return _STRIPPED[chars]
    raise LookedAt(f"strips {chars!r} off the text of a message")


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
        if opaque and name == "trim":
            return opaque[0].strip(*args[1:], **kwargs)
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
