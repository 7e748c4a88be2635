"""Where a pair of real models is, if one is named: a folder with the checkpoints `policy` and `reference`."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "STEPSCORE_REAL_PAIR"


def _find() -> Path | None:
    named = os.environ.get(VARIABLE)
    return Path(named).resolve(strict=True) if named else None


REAL_PAIR: Path | None = _find()
