"""Command-line options that benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.support.shapes import ModelShape

from stepscore.engine.ort.provider_checks import run_tiny_model
from stepscore.enums import Provider
from stepscore.errors import StepscoreError


def benchmark_parser(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser with --quick and --scratch, described by the first line of a module's docstring."""
    parser = argparse.ArgumentParser(description=(docstring or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="run a tiny model, to see that it works")
    parser.add_argument(
        "--scratch", type=Path, help="folder of checkpoints and pairs (default: the temporary folder)"
    )
    return parser


def add_child(parser: argparse.ArgumentParser) -> None:
    """Add --child, by which a benchmark starts itself to measure one row."""
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)


def add_shape(parser: argparse.ArgumentParser, default: ModelShape, layers: int | None) -> None:
    """Add --shape and --layers."""
    parser.add_argument("--shape", type=ModelShape, choices=list(ModelShape), default=default)
    parser.add_argument("--layers", type=int, default=layers, help="use fewer layers than the shape has")


def chosen_shape(options: argparse.Namespace) -> ModelShape:
    """Return the shape to measure: --quick has its own."""
    shape: ModelShape = ModelShape.QUICK if options.quick else options.shape
    return shape


def add_provider(parser: argparse.ArgumentParser) -> None:
    """Add --provider: ONNX Runtime's execution provider, and the device of the peers."""
    choices = [Provider.CPU, Provider.CUDA]
    parser.add_argument("--provider", type=Provider, choices=choices, default=Provider.CPU)


def measured_provider(options: argparse.Namespace) -> Provider:
    """Return the provider; exit, before anything is made, if it does not run on this machine."""
    provider: Provider = options.provider
    try:
        run_tiny_model(provider)
    except StepscoreError as error:
        raise SystemExit(f"{error.message}\n{error.hint}") from None
    return provider
