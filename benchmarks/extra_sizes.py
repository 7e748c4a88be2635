"""Measure what stepscore and each of its extras take on disk, each in a clean environment.

    make bench-extras                        all extras but those that are built from source, 12 GB of disk
    make bench-extras FLAGS=--quick          stepscore alone and with [cpu]
    python -m benchmarks extra_sizes --only cpu export

pip installs the wheel of this checkout and the newest versions that fit, from a package index. Counted are
the blocks of the disk that site-packages takes, with compiled .pyc files and without pip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.support.options import benchmark_parser
from benchmarks.support.results import logged, write_result

ROOT = Path(__file__).resolve().parents[1]
ALONE = "none"
BUILT_FROM_SOURCE = frozenset({"peers"})
LARGEST = 4
"""Packages that a row names."""


def main() -> None:
    """Measure the extras; write results/extra_sizes.json."""
    names = [ALONE, *(name for name in extras() if name not in BUILT_FROM_SOURCE)]
    parser = benchmark_parser(__doc__)
    parser.add_argument("--only", nargs="*", choices=names, help="measure these extras")
    options = parser.parse_args()
    chosen = options.only or (names[:2] if options.quick else names)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        wheel = built_wheel(Path(folder))
        rows = [logged(measured(wheel, name, Path(folder) / "environment")) for name in chosen]
    print(write_result("extra_sizes", {"quick": options.quick, "rows": rows}, quick=options.quick))


def extras() -> Mapping[str, list[str]]:
    """Return the requirements of each extra."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named: Mapping[str, list[str]] = tomllib.loads(text)["project"]["optional-dependencies"]
    return named


def built_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), "."]
    subprocess.run(command, cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def measured(wheel: Path, extra: str, environment: Path) -> dict[str, Any]:
    """Install the wheel with an extra into a new environment; return its size and its largest packages."""
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    target = str(wheel) if extra == ALONE else f"{wheel}[{extra}]"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", target]
    subprocess.run(command, check=True)
    (folder,) = environment.glob("lib/python*/site-packages")
    sizes = {
        each.name: on_disk(Path(str(each.locate_file(file))) for file in each.files or ())
        for each in distributions(path=[str(folder)])
    }
    versions = {each.name: each.version for each in distributions(path=[str(folder)])}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
    row = {
        "extra": extra,
        "mb": round(on_disk(folder.rglob("*")) / 1e6),
        "packages": len(sizes),
        "largest": {f"{name} {versions[name]}": round(sizes[name] / 1e6) for name in largest},
    }
    shutil.rmtree(environment)
    return row


def on_disk(paths: Iterable[Path]) -> int:
    """Return the bytes of the disk's blocks that files take; links and folders are not counted."""
    return sum(os.lstat(path).st_blocks * 512 for path in paths if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    main()
