"""Look up token embeddings on the host, ahead of the window that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact.graph_contract import INPUT_IDS, ROWS, stream_names
from stepscore.artifact.manifest import ModelName
from stepscore.batching.batch import Batch
from stepscore.engine.element_types import FLOAT
from stepscore.engine.ort.sessions import naming_faults

Rows = dict[ModelName, NDArray[Any]]
WINDOWS_AHEAD = 2
"""Windows whose rows are held: the one that runs, and the next."""


class Embedding:
    """The embeddings of one unit, rows [n, hidden_size] in the compute type; 16-bit floats as uint16."""

    def __init__(
        self, session: ort.InferenceSession, models: Sequence[ModelName], width: int, compute: int
    ) -> None:
        self._session = session
        self._models = models
        self._width, self._compute = width, compute
        self._ahead: deque[dict[int, tuple[Batch, Rows]]] = deque(maxlen=WINDOWS_AHEAD)

    def look_up(self, batches: Sequence[Batch]) -> None:
        """Look up the rows of a window, for `take`."""
        self._ahead.append({id(batch): (batch, self._rows(batch)) for batch in batches})

    def take(self, batch: Batch) -> Rows:
        """Return the rows of a batch by model: those looked up before, which are then gone, or new ones."""
        for window in tuple(self._ahead):
            if (known := window.pop(id(batch), None)) is not None:
                return known[1]
        return self._rows(batch)

    def _rows(self, batch: Batch) -> Rows:
        ids = batch.input_ids
        dtype = np.float32 if self._compute == FLOAT else np.uint16
        rows: Rows = {model: np.empty((len(ids), self._width), dtype) for model in self._models}
        with naming_faults("look up embeddings"):
            binding = self._session.io_binding()
            binding.bind_cpu_input(INPUT_IDS, ids)
            for name, array in zip(stream_names(ROWS, self._models), rows.values(), strict=True):
                shape = list(array.shape)
                binding.bind_output(name, "cpu", 0, self._compute, shape, array.ctypes.data)
            self._session.run_with_iobinding(binding)
        return rows
