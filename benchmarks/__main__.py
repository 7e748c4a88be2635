"""Run a benchmark: `python -m benchmarks NAME --quick`, as `make bench-...` does.

A library that is not installed is named with the extra that has it, not shown as a traceback.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

PEERS = frozenset({"gguf", "llama_cpp", "pynvml"})
"""What only the extra `peers` installs."""
REPORT = "reporting.report"


def missing(error: ModuleNotFoundError) -> str | None:
    """Return which library is not installed and how to install it; None where the error does not name it.

    >>> print(missing(ModuleNotFoundError(name="pynvml")))
    pynvml is not installed
    pip install 'stepscore[peers]', or `make peers`
    """
    library = (error.name or "").partition(".")[0]
    if not library:
        return None
    if library in PEERS:
        return f"{library} is not installed\npip install 'stepscore[peers]', or `make peers`"
    if library == "stepscore":
        return "stepscore is not installed\npip install --editable '.[cpu,export]', or `make setup`"
    from stepscore.extras import missing_extra  # noqa: PLC0415 - it may be what is missing

    named = missing_extra(error)
    if named is None:
        return f"{library} is not installed\n`make setup` installs all but the engines to compare with"
    return f"{named.message}\n{named.hint}"


def main(arguments: list[str]) -> int | str:
    """Run the benchmark of this name with the options that follow it; without one, list the names."""
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    if not arguments or arguments[0] not in {*names, REPORT}:
        return f"usage: python -m benchmarks NAME [OPTIONS]\nNAME is one of {', '.join([*names, REPORT])}"
    name = f"benchmarks.{arguments[0]}"
    sys.argv = [name, *arguments[1:]]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        text = missing(error)
        if text is None:
            raise
        return text
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
