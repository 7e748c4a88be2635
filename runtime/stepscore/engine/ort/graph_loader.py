"""Open the graphs of a unit over its weight file, with prefetch and release of layers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime as ort

from stepscore.artifact.graph_contract import EMBED, WEIGHTS, unsigned_file
from stepscore.artifact.manifest import Unit
from stepscore.engine.ort.sessions import Sessions
from stepscore.fileio import read_ahead
from stepscore.system import give_back_memory


class GraphLoader:
    """Opens the graphs over one weight file, one after the other or for good.

    With `unsigned` it opens the variants that read integer weights as unsigned numbers.
    """

    def __init__(
        self,
        folder: Path,
        unit: Unit,
        sessions: Sessions,
        *,
        prefetch_next_layer: bool,
        unsigned: bool,
    ) -> None:
        self._folder = folder
        self._unit = unit
        self._sessions = sessions
        self._prefetch_next_layer = prefetch_next_layer
        self._unsigned = unsigned
        self._kept: dict[str, ort.InferenceSession] = {}

    @property
    def device(self) -> str:
        """Return the device on which values stay between graphs."""
        return self._sessions.provider.value

    def keep(self, names: Iterable[str]) -> None:
        """Open these graphs and keep them open."""
        self._kept |= {name: self._open(name) for name in names}

    def get(self, name: str) -> ort.InferenceSession:
        """Return a session that is kept open, or open one."""
        return self._kept.get(name) or self._open(name)

    def in_turn(self, names: Sequence[str]) -> Generator[ort.InferenceSession, None, None]:
        """Yield the sessions one after the other; the caller releases one before it requests the next.

        Graphs that are not kept open are prefetched in a thread: two are in memory at a time.
        """
        if self._kept:
            for name in names:
                yield self._kept[name]
        elif self._prefetch_next_layer:
            yield from self._prefetched(names)
        else:
            for index, name in enumerate(names):
                for following in names[index + 1 : index + 2]:
                    self._read_ahead(following)
                yield self._open(name)
                give_back_memory()

    def _prefetched(self, names: Sequence[str]) -> Generator[ort.InferenceSession, None, None]:
        done: list[ort.InferenceSession] = []
        with ThreadPoolExecutor(1, thread_name_prefix="stepscore-open") as pool:
            opening = pool.submit(self._exchange, done, names[0])
            for following in names[1:]:
                session = opening.result()
                opening = pool.submit(self._exchange, done, following)
                yield session
                done = [session]
                del session
            yield opening.result()

    def _exchange(self, done: list[ort.InferenceSession], name: str) -> ort.InferenceSession:
        """Release the session before, then open a graph; releasing prepacked weights takes a while."""
        done.clear()
        give_back_memory()
        self._read_ahead(name)
        return self._open(name)

    def _read_ahead(self, name: str) -> None:
        """Ask the kernel to read the weights of a graph in the background."""
        extent = self._unit.extents[name]
        with (self._folder / WEIGHTS).open("rb") as weights:
            read_ahead(weights.fileno(), extent.offset, extent.size)

    def _open(self, name: str) -> ort.InferenceSession:
        file = unsigned_file(name) if self._unsigned and name != EMBED else name
        return self._sessions.open(self._folder / file)
