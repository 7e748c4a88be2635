"""Radix tree of token ids whose nodes hold the ids of kept rows. Knows no budget and no values."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from stepscore.batching.trie import Int64, common_length


@dataclass(slots=True, eq=False)
class Node:
    """A span of tokens behind its parent's, and the id of the row of each, int64 [k] both."""

    tokens: Int64
    rows: Int64
    parent: Node | None = None
    children: dict[int, Node] = field(default_factory=dict)
    """By their first token."""
    used: int = 0
    """Time of the last use, of this node or of one behind it."""
    pins: int = 0
    """How many hold on to it; a pinned node is not evicted, nor is one that has children."""


class KeptTrie:
    """Finds, adds and evicts rows; every node but the root has at least one token."""

    def __init__(self) -> None:
        self.root = Node(np.empty(0, np.int64), np.empty(0, np.int64))
        self._now = 0
        """Number of walks so far."""

    def walk(self, sequence: Int64) -> list[tuple[Node, int]]:
        """Return the nodes that a sequence passes, and how many tokens of each it has; notes their use."""
        self._now += 1
        node, depth = self.root, 0
        passed: list[tuple[Node, int]] = []
        while depth < len(sequence):
            child = node.children.get(int(sequence[depth]))
            if child is None:
                break
            child.used = self._now
            common = common_length(child.tokens, sequence[depth:])
            passed.append((child, common))
            depth += common
            if common < len(child.tokens):
                break
            node = child
        return passed

    def add(self, sequence: Int64, rows: Int64) -> None:
        """Add the rows of the last tokens of a sequence; those before must be there, and these must not."""
        passed = self.walk(sequence)
        parent, common = passed[-1] if passed else (self.root, 0)
        if sum(length for _, length in passed) != len(sequence) - len(rows):
            raise ValueError("rows are added where they are, or behind rows that are not there")
        if not len(rows):
            return
        if common < len(parent.tokens):
            parent = self._split(parent, common)
        tokens = sequence[-len(rows) :].copy()
        parent.children[int(tokens[0])] = Node(tokens, rows, parent, used=self._now)

    def _split(self, node: Node, length: int) -> Node:
        """Put the first tokens of a node into a new one before it, and return that; pins stay behind."""
        before = Node(node.tokens[:length], node.rows[:length], node.parent, used=node.used)
        assert node.parent is not None
        node.parent.children[int(before.tokens[0])] = before
        node.tokens, node.rows, node.parent = node.tokens[length:], node.rows[length:], before
        before.children[int(node.tokens[0])] = node
        return before

    def evict(self, num_rows: int) -> list[int]:
        """Remove up to so many rows, from the ends of the least recently used leaves; return their ids."""
        freed: list[int] = []
        leaves = [(node.used, id(node), node) for node in self.nodes() if _is_free(node)]
        heapq.heapify(leaves)
        while leaves and len(freed) < num_rows:
            _, _, node = heapq.heappop(leaves)
            left = max(0, len(node.rows) - (num_rows - len(freed)))
            freed += node.rows[left:].tolist()
            first = int(node.tokens[0])
            node.tokens, node.rows = node.tokens[:left], node.rows[:left]
            parent = node.parent
            if not left and parent is not None:
                del parent.children[first]
                if parent.parent is not None and _is_free(parent):
                    heapq.heappush(leaves, (parent.used, id(parent), parent))
        return freed

    def nodes(self) -> Iterator[Node]:
        """Yield every node but the root."""
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()


def rows_of(passed: Sequence[tuple[Node, int]]) -> Int64:
    """Return the ids of the rows that a walk passed, int64 [c]."""
    return np.concatenate([np.empty(0, np.int64), *(node.rows[:length] for node, length in passed)])


def _is_free(node: Node) -> bool:
    return not node.pins and not node.children
