"""Where the real data is, if it is anywhere."""

from __future__ import annotations

import os
from pathlib import Path


def _find() -> Path | None:
    named = os.environ.get("STEPSCORE_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


SHARED_DATA: Path | None = _find()
