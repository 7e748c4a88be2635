"""What memory depends on (the largest batch and window of a run), and the estimate that follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stepscore.batching.batch import Batch
from stepscore.batching.planner import MAX_PADDING
from stepscore.memory.settings import Settings


@dataclass(frozen=True, slots=True)
class PeakLoad:
    """The largest sizes that a run holds at once."""

    rows: int
    """Packed tokens of a batch."""
    scores: int
    """Attention scores of a batch per head: B * S * S."""
    window_rows: int
    """Packed tokens of all batches of a window."""
    score_steps: tuple[int, ...] = ()
    """Attention scores, per head, of each batch that has more than all before it, in their order."""
    vocabulary: int = 1500
    """Distinct token ids looked up in the embedding."""
    window_scored: int = 0
    """Scored tokens of all batches of a window, given ones included."""
    given: int = 0
    """Packed tokens of a batch that are given, not computed."""
    positions: int = 0
    """Positions of a batch's padded view, B * S: the tokens that a traced graph computes."""

    @classmethod
    def usual(cls, settings: Settings) -> PeakLoad:
        """Assume full batches of 512-token sequences, no common prefixes, and half of each view padding."""
        rows = settings.max_batch_tokens
        window_rows = max(settings.window_tokens, rows)
        scores = rows * min(rows, 512)
        return cls(
            rows,
            scores,
            window_rows,
            (scores,),
            window_scored=window_rows,
            given=MAX_PADDING * rows if settings.prefix_cache else 0,
            positions=2 * rows,
        )

    @classmethod
    def of(cls, windows: Iterable[Sequence[Batch]]) -> PeakLoad:
        """Return the maximum of each size over the windows of a run."""
        rows = scores = window_rows = window_scored = given = positions = 0
        looked_up: set[int] = set()
        steps: list[int] = []
        for window in windows:
            for batch in window:
                sequences, length = batch.pad_index.shape
                positions = max(positions, sequences * length)
                rows = max(rows, len(batch.input_ids))
                given = max(given, batch.num_given)
                if sequences * length * length > scores:
                    scores = sequences * length * length
                    steps.append(scores)
                looked_up.update(batch.input_ids.tolist())
            window_rows = max(window_rows, sum(len(batch.input_ids) for batch in window))
            window_scored = max(window_scored, sum(batch.num_scored for batch in window))
        return cls(rows, scores, window_rows, tuple(steps), len(looked_up), window_scored, given, positions)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Estimated peak memory in bytes: of the process on the CPU, of the GPU on CUDA."""

    process: int
    """Python, ONNX Runtime and the tokenizer; on CUDA its context and libraries."""
    weights: int
    """Weights in memory, prepacked or dequantized copies included."""
    batch: int
    """Activations of one batch, in a layer or in the head."""
    window: int
    """Hidden states of a window's batches that wait for the next layer."""
    kept: int = 0
    """Prefixes of earlier calls: their limit. 0 on CUDA, where they are in host memory."""

    @property
    def total(self) -> int:
        """Return the sum: the peak."""
        return self.process + self.weights + self.batch + self.window + self.kept
