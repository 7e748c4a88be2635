"""What a backend is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExportEstimate:
    """Sizes in bytes, time in seconds; `weight_bytes` by the folder of the unit."""

    parameters: int
    source_bytes: int
    weight_bytes: dict[str, int]
    memory_bytes: int
    seconds: float

    @property
    def disk_bytes(self) -> int:
        """Space that must be free where the pair goes; graphs and tokenizer are a few MB."""
        return sum(self.weight_bytes.values())
