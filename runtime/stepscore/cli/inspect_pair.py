"""The commands `stepscore inspect` and `stepscore verify`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepscore.cli.json_mode import print_result
from stepscore.cli.load_options import json_option
from stepscore.enums import Format
from stepscore.visible import one_line

if TYPE_CHECKING:
    from stepscore.artifact.manifest import Manifest
    from stepscore.artifact.pair import Pair
    from stepscore.cli.results import PairFacts


@click.command()
@click.argument("pair", type=click.Path(path_type=Path))
@json_option
def inspect(pair: Path, as_json: bool) -> None:
    """Show a PAIR's manifest and memory use.

    \b
    Example:
      stepscore inspect PAIR --json | jq .manifest.policy
    """
    from stepscore.artifact.pair import Pair
    from stepscore.cli.tables import console, print_facts

    opened = Pair.open(pair)
    if as_json:
        from stepscore.cli.memory_facts import residency_needs
        from stepscore.cli.results import InspectResult

        manifest = opened.manifest
        result = InspectResult(pair=pair_facts(opened), memory=residency_needs(manifest), manifest=manifest)
        print_result(result)
    else:
        print_facts(console(sys.stdout), _facts(opened))


@click.command()
@click.argument("pair", type=click.Path(path_type=Path))
@json_option
def verify(pair: Path, as_json: bool) -> None:
    """Check every file of a PAIR by size and hash.

    \b
    Example:
      stepscore verify PAIR && echo intact
    """
    from stepscore.artifact.pair import Pair

    opened = Pair.open(pair)
    opened.verify()
    if as_json:
        from stepscore.cli.results import VerifyResult

        print_result(VerifyResult(pair=pair_facts(opened)))
        return
    intact = f"{len(opened.manifest.files)} files, {_megabytes(opened.num_bytes())}, all intact"
    click.echo(f"{one_line(str(pair), 300)}: {intact}")


def pair_facts(pair: Pair) -> PairFacts:
    """Return what results say of a pair on disk."""
    from stepscore.cli.results import PairFacts

    return PairFacts(
        path=str(pair.path),
        fingerprint=pair.fingerprint,
        num_files=len(pair.manifest.files),
        num_bytes=pair.num_bytes(),
    )


def _facts(pair: Pair) -> Iterator[tuple[str, str]]:
    from stepscore.cli.memory_facts import memory_facts

    manifest = pair.manifest
    shape = manifest.architecture
    yield "pair", str(pair.path)
    yield "fingerprint", pair.fingerprint
    for name, source in (("policy", manifest.policy), ("reference", manifest.reference)):
        yield name, source.name if source.revision is None else f"{source.name}@{source.revision}"
    yield (
        "architecture",
        f"{shape.num_hidden_layers} layers, hidden size {shape.hidden_size}, vocabulary "
        f"{shape.vocab_size:,}, at most {shape.max_position_embeddings:,} tokens",
    )
    yield "format", manifest.format
    if manifest.format is Format.ONNX:
        yield "exporter", manifest.exporter
    yield "precision", _precision(manifest)
    yield "coding", _coding(manifest)
    yield "distance", f"|policy - reference| is {100 * manifest.distance.overall:.2f} % of |reference|"
    if manifest.prefix_tokens:
        yield "prefix", f"{manifest.prefix_tokens} tokens stored with their keys and values"
    yield "beta", f"{manifest.beta:g}"
    yield from memory_facts(manifest)
    yield "size", f"{_megabytes(pair.num_bytes())} in {len(manifest.files)} files"
    if manifest.selftest is not None:
        test = manifest.selftest
        error = f"{test.logprob_error:.2g} nats RMS"
        yield "self-test", f"log-prob error {error} over {test.num_tokens} tokens, on {test.provider}"
    if manifest.fidelity is not None:
        yield "fidelity", str(manifest.fidelity)
    yield "written by", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def _precision(manifest: Manifest) -> str:
    in_blocks = {"nf4", "fp4"} if manifest.format == "bitsandbytes" else {"int8", "int4"}
    if manifest.difference is not None and manifest.difference.activations == "int8":
        in_blocks = set()  # one scale per row
    blocks = f", blocks of {manifest.block_size}" if manifest.precision in in_blocks else ""
    return f"{manifest.precision}{blocks}, for {manifest.target or 'cpu and cuda'}"


def _coding(manifest: Manifest) -> str:
    if manifest.difference is None:
        return manifest.coding
    stored = manifest.difference
    if stored.unchanged is not None and stored.bits is not None:
        return (
            f"lossless difference: {100 * stored.unchanged:.1f} % of the weights unchanged, "
            f"{stored.bits:.2f} bits for a weight of the policy"
        )
    how = f", {stored.products}" if stored.products is not None else ""
    calibrated = f", calibrated on {stored.calibration}" if stored.calibration is not None else ""
    rotated = ", rotated" if stored.rotated else ""
    return f"difference at {stored.precision}, {stored.activations} activations{how}{rotated}{calibrated}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
