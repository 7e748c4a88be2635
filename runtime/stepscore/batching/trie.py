"""Prefix trie of token sequences, walked depth first."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LeafPath:
    """A path from the trie's root to a leaf: one sequence of the padded view.

    `members` are the sequences that are prefixes of the path, the longest, of `length` tokens, last. Its
    first `shared` tokens are a common prefix with the path before it.
    """

    members: Sequence[int]
    length: int
    shared: int


@dataclass(slots=True)
class _Node:
    """A node where sequences end or branch, at `depth` tokens; `first` is the first sequence through it."""

    depth: int
    first: int = sys.maxsize
    ending: list[int] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)


def leaf_paths(sequences: Sequence[Int64], chosen: Sequence[int], *, share: bool) -> Iterator[LeafPath]:
    """Yield the leaf paths of the chosen sequences' trie, depth first; without `share`, one per sequence."""
    if not share:
        yield from (LeafPath([index], len(sequences[index]), 0) for index in chosen)
        return
    # A node, the length its first path shares with the path before, and that path's members so far.
    waiting: list[tuple[_Node, int, list[int]]] = [(_trie(sequences, chosen), 0, [])] if chosen else []
    while waiting:
        node, shared, members = waiting.pop()
        members += node.ending
        if not node.children:
            yield LeafPath(members, node.depth, shared)
            continue
        heir, *others = sorted(node.children, key=lambda child: child.first)
        waiting += ((child, node.depth, []) for child in reversed(others))
        waiting.append((heir, shared, members))


def _trie(sequences: Sequence[Int64], chosen: Iterable[int]) -> _Node:
    """Return the root; sequences are added in lexicographic order, each branching off the one before."""
    keys = {index: sequences[index].astype(">i8").tobytes() for index in chosen}  # bytes sort as tokens
    path = [_Node(0)]
    before = np.empty(0, np.int64)
    for index in sorted(keys, key=keys.__getitem__):
        sequence = sequences[index]
        _close(path, _common_length(before, sequence))
        if path[-1].depth < len(sequence):
            path.append(_Node(len(sequence)))
        path[-1].ending.append(index)
        path[-1].first = min(path[-1].first, index)
        before = sequence
    _close(path, 0)
    return path[0]


def _close(path: list[_Node], depth: int) -> None:
    """Attach the nodes deeper than `depth` to their parents; the path then ends with a node at `depth`."""
    while path[-1].depth > depth:
        node = path.pop()
        if path[-1].depth < depth:
            path.append(_Node(depth))
        path[-1].children.append(node)
        path[-1].first = min(path[-1].first, node.first)


def _common_length(one: Int64, other: Int64) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if different.size else length
