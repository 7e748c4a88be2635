"""Find the data files of a folder that `datasets.Dataset.save_to_disk` wrote.

Its state.json names them in order. A DatasetDict is a folder of such folders, one per split. All columns are
read; a selection or an order of rows that older versions kept in a file of indices is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from stepscore.errors import InputUnreadable
from stepscore.fileio import read_regular

STATE, SPLITS = "state.json", "dataset_dict.json"
_INDICES = ("_indices_files", "_indices_data_files")


def data_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a data set in the order of its rows; raise InputUnreadable."""
    if (folder / SPLITS).is_file() and not (folder / STATE).is_file():
        splits = _json(folder / SPLITS).get("splits")
        names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        raise InputUnreadable(
            f"{folder} holds several splits: {', '.join(names) or 'none'}",
            hint=f"give one of them, such as {folder / (names[0] if names else 'train')}",
        )
    if not (folder / STATE).is_file():
        raise InputUnreadable(
            f"{folder} is a folder without {STATE}: not a data set that save_to_disk wrote",
            hint="give a file, or the folder that Dataset.save_to_disk was given",
        )
    state = _json(folder / STATE)
    if any(state.get(name) for name in _INDICES):
        raise InputUnreadable(
            f"{folder} keeps the choice of its rows in a file of indices, which is not read",
            hint="load it with `datasets` and save it again: datasets.load_from_disk(OLD).save_to_disk(NEW)",
        )
    files = [_data_file(folder, entry) for entry in _entries(state, folder)]
    if not files:
        raise InputUnreadable(f"{folder / STATE} names no data file", hint="save the data set again")
    return files


def _entries(state: Mapping[str, Any], folder: Path) -> list[Any]:
    entries = state.get("_data_files")
    if not isinstance(entries, list):
        raise InputUnreadable(
            f"{folder / STATE} has no list `_data_files`", hint="save the data set again with `datasets`"
        )
    return entries


def _data_file(folder: Path, entry: Any) -> Path:
    """Return the path of one data file: a regular file in the folder itself."""
    name = entry.get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise InputUnreadable(
            f"{folder / STATE} names a data file {name!r:.100}, expected the name of a file in that folder",
            hint="save the data set again with `datasets`",
        )
    if not (folder / name).is_file():
        raise InputUnreadable(f"{folder / name} is missing or no regular file", hint="copy the folder again")
    return folder / name


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(read_regular(path), type=dict[str, Any])
    except (OSError, ValueError, RecursionError) as error:
        raise InputUnreadable(f"cannot read {path}: {error}", hint="save the data set again") from None
