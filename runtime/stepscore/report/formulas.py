r"""LaTeX formulas as MathML trees, which the page's script builds element by element.

math-core (Rust) converts; it rejects broken LaTeX, which then stays as typed. It recurses, so the length of
a formula is limited: a deep one would exhaust the stack. The tree holds only the elements, attributes and
styles named here, so nothing in a record's text can become a link, an event handler or a request.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import cached_property
from xml.etree import ElementTree

from math_core import LatexError, LatexToMathML

MAX_CHARS = 3000
MAX_DEPTH = 60
MAX_NODES = 20_000
MAX_EXPANSIONS = 100
MAX_EM = 40.0

Tree = list["str | dict[str, str] | Tree"]
"""[tag, attributes, *children]; a child is a text or a tree."""

_ELEMENTS = re.compile(
    "math|mi|mn|mo|ms|mtext|mspace|mrow|mfrac|msqrt|mroot|mstyle|mpadded|mphantom|msub|msup|msubsup|munder|mover"
    "|munderover|mmultiscripts|mprescripts|none|menclose|mtable|mtr|mtd|b|i|em|strong"
)
_ATTRIBUTES = re.compile(
    "display|displaystyle|scriptlevel|mathvariant|form|fence|separator|stretchy|symmetric|largeop|accent"
    "|accentunder|movablelimits|lspace|rspace|minsize|maxsize|width|height|depth|voffset|linethickness|notation"
    "|columnalign|rowspacing|columnspacing|columnspan|style"
)
_STYLES = re.compile(
    r"(?:padding|border|margin)-(?:left|right|top|bottom)|text-align|justify-items|width|color"
    r"|font-weight|font-style"
)
_VALUE = re.compile(r"[\w#%. +-]{0,80}", re.ASCII)
_LENGTH = re.compile(r"([\d.]+)(em|ex|pt|px|cm|mm|in|rem)")
_EM = {"em": 1.0, "rem": 1.0, "ex": 0.5, "px": 1 / 15, "pt": 0.09, "mm": 0.25, "cm": 2.5, "in": 6.4}
_NOT_XML = re.compile(r"&(?!(?:lt|gt|amp|quot|apos|#\d+|#x[\da-fA-F]+);)\w+;")


class Formulas:
    """The distinct formulas of a page; `trees` are those that could be rendered, by their numbers."""

    def __init__(self) -> None:
        self.trees: list[Tree] = []
        self._numbers: dict[tuple[str, bool], int | None] = {}

    @cached_property
    def _converter(self) -> LatexToMathML:
        return LatexToMathML(fancy_error=False, max_expansions=MAX_EXPANSIONS)

    def number(self, latex: str, *, display: bool) -> int | None:
        r"""Return the number of a formula, given without delimiters; None where it stays as typed.

        >>> found = Formulas()
        >>> found.number(r"\frac{1}{2}", display=False), found.number(r"\frac{1}{", display=False)
        (0, None)
        >>> found.trees[0]
        ['math', {}, ['mfrac', {}, ['mn', {}, '1'], ['mn', {}, '2']]]
        """
        key = latex, display
        if key not in self._numbers:
            tree = self._tree(latex, display)
            self._numbers[key] = None if tree is None else len(self.trees)
            if tree is not None:
                self.trees.append(tree)
        return self._numbers[key]

    def _tree(self, latex: str, display: bool) -> Tree | None:
        if not latex.strip() or len(latex) > MAX_CHARS:
            return None
        try:
            text = self._converter.convert_with_local_state(latex, displaystyle=display)
            root = ElementTree.fromstring(_NOT_XML.sub(lambda match: html.unescape(match[0]), text))
            left = iter(range(MAX_NODES))
            return _reduced(root, MAX_DEPTH, left)
        except (LatexError, ElementTree.ParseError, _Left):
            return None


class _Left(Exception):
    """Something that the page does not show."""


def _reduced(node: ElementTree.Element, depth: int, left: Iterator[int]) -> Tree:
    if not _ELEMENTS.fullmatch(node.tag) or depth == 0 or next(left, None) is None:
        raise _Left
    tree: Tree = [node.tag, _attributes(node)]
    if node.text:
        tree.append(node.text)
    for child in node:
        if not (child.tag == "mrow" and "class" in child.attrib):  # math-core's hook for a struck-out line
            tree.append(_reduced(child, depth - 1, left))
        if child.tail:
            tree.append(child.tail)
    return tree


def _attributes(node: ElementTree.Element) -> dict[str, str]:
    found = {name: value for name, value in node.attrib.items() if _ATTRIBUTES.fullmatch(name)}
    values = [value for name, value in found.items() if name != "style"]
    for style in filter(None, found.get("style", "").split(";")):
        name, _, value = style.partition(":")
        values.append(value)
        if not _STYLES.fullmatch(name.strip()):
            raise _Left
    for value in values:
        if not _VALUE.fullmatch(value) or any(
            float(size) * _EM[unit] > MAX_EM for size, unit in _LENGTH.findall(value)
        ):
            raise _Left
    return found
