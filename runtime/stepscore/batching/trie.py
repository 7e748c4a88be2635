"""Sequences as a trie of prefixes, walked depth first."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the padded view: the sequences that lie on it, the one that fills it last.

    Its first `shared` tokens are those of the line before it.
    """

    members: Sequence[int]
    length: int
    shared: int


@dataclass(slots=True)
class _Node:
    """Where sequences end or part, `depth` tokens from the root; `first` is the first to come here."""

    depth: int
    first: int = sys.maxsize
    ending: list[int] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)


def depth_first_lines(sequences: Sequence[Int64], chosen: Sequence[int], *, share: bool) -> Iterator[Line]:
    """Walk the trie of the chosen sequences depth first; without `share`, each is a line by itself."""
    if not share:
        yield from (Line([index], len(sequences[index]), 0) for index in chosen)
        return
    # A node, what its first line shares with the line before, and the sequences of that line so far.
    waiting: list[tuple[_Node, int, list[int]]] = [(_trie(sequences, chosen), 0, [])] if chosen else []
    while waiting:
        node, shared, members = waiting.pop()
        members += node.ending
        if not node.children:
            yield Line(members, node.depth, shared)
            continue
        heir, *others = sorted(node.children, key=lambda child: child.first)
        waiting += ((child, node.depth, []) for child in reversed(others))
        waiting.append((heir, shared, members))


def _trie(sequences: Sequence[Int64], chosen: Iterable[int]) -> _Node:
    """Return the root; in lexicographic order each sequence leaves the path of the one before."""
    keys = {index: sequences[index].astype(">i8").tobytes() for index in chosen}  # bytes compare as tokens
    path = [_Node(0)]
    before = np.empty(0, np.int64)
    for index in sorted(keys, key=keys.__getitem__):
        sequence = sequences[index]
        _close(path, common_length(before, sequence))
        if path[-1].depth < len(sequence):
            path.append(_Node(len(sequence)))
        path[-1].ending.append(index)
        path[-1].first = min(path[-1].first, index)
        before = sequence
    _close(path, 0)
    return path[0]


def _close(path: list[_Node], depth: int) -> None:
    """Hand the nodes deeper than `depth` to their parents; the path then ends with a node at `depth`."""
    while path[-1].depth > depth:
        node = path.pop()
        if path[-1].depth < depth:
            path.append(_Node(depth))
        path[-1].children.append(node)
        path[-1].first = min(path[-1].first, node.first)


def common_length(one: Int64, other: Int64) -> int:
    """Return how many tokens two sequences have in common from their start."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if different.size else length
