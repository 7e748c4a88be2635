"""The file beside an output: its seal, and the fingerprint of an output of before headers.

An output needs neither to be read or continued. A seal shows an edit of a number that agrees with itself.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from stepscore.errors import HeaderInvalid, OutputExists, OutputUnwritable
from stepscore.fileio import read_regular, write_atomically
from stepscore.jobs.provenance import Provenance

LINES, DIGEST = "lines", "sha256"
"""Names of the seal beside an output: the number of lines that a run left, and their digest."""


def fingerprint_path(output: Path) -> Path:
    """Return the path of an output's seal, in the same folder."""
    return output.with_name(output.name + ".fingerprint.json")


def read_fingerprint(output: Path) -> dict[str, str]:
    """Return the fingerprint beside an output that has no header; raise OutputExists where it has none."""
    fingerprint = _read_beside(output)
    if fingerprint is None or "pair" not in fingerprint:
        raise not_written(output)
    return fingerprint


def beside(output: Path) -> Provenance | None:
    """Return the provenance of an output of before headers, None where no fingerprint is beside it."""
    fingerprint = _read_beside(output)
    if fingerprint is None or "pair" not in fingerprint:
        return None
    beta = _number(fingerprint.get("beta"))
    try:
        return msgspec.convert(
            {"pair": fingerprint["pair"], "beta": beta, "convention": fingerprint.get("convention")},
            Provenance,
        )
    except msgspec.ValidationError:
        raise HeaderInvalid(
            f"the fingerprint of the scored file gives the beta {fingerprint.get('beta', '')[:80]!r}, "
            f"expected a positive number, and the convention {fingerprint.get('convention', '')[:80]!r}",
            hint=f"score the file again, or delete {fingerprint_path(output).name}",
        ) from None


def _number(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _read_beside(output: Path) -> dict[str, str] | None:
    place = fingerprint_path(output)
    try:
        return msgspec.json.decode(read_regular(place), type=dict[str, str])
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise OutputUnwritable(
            f"cannot read {place}: {error.strerror}", hint="remove it, or give another output"
        ) from None
    except (ValueError, RecursionError):
        return None


def not_written(output: Path) -> OutputExists:
    """Return the error of a file that no job wrote."""
    return OutputExists(
        f"{output} was not written by stepscore: it has no header, and {fingerprint_path(output).name} is "
        "missing or invalid",
        hint="give another output, or delete it",
    )


def seal_identity(provenance: Provenance) -> dict[str, str]:
    """Return what names the seal of an output: a file that was moved here has another date."""
    return {"date": str(provenance.date)}


def write_seal(path: Path, identity: dict[str, str], num_lines: int, digest: str) -> None:
    """Write the seal of an output beside it, where that is possible."""
    fields = {**identity, LINES: str(num_lines), DIGEST: digest}
    text = msgspec.json.format(msgspec.json.encode(fields), indent=2)
    place = fingerprint_path(path)
    if os.path.lexists(place) and not os.path.isfile(place):  # a FIFO would be waited for
        return
    with suppress(OutputUnwritable):
        write_atomically(place, [text, b"\n"])


def read_seal(path: Path, identity: dict[str, str]) -> tuple[str, str] | None:
    """Return number of lines and digest of the seal beside an output; None where it is another output's."""
    found = _read_beside(path)
    if found is None or not found.items() >= identity.items() or not {LINES, DIGEST} <= found.keys():
        return None
    return found[LINES], found[DIGEST]
