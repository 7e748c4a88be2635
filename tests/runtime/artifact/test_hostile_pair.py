"""A manifest and a tokenizer of a stranger, hashed again: a pair opens, or an error says what is wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.hostile import rehash
from testing.pair_files import rewrite

from stepscore.artifact.manifest import MANIFEST, TOKENIZER
from stepscore.artifact.pair import Pair
from stepscore.enums import Convention
from stepscore.errors import ArtifactError, InvalidRecord, ManifestInvalid, ModelInvalid
from stepscore.prompt.tokenizer_faults import tokenizer_faults_as

Json = dict[str, Any]

# Manifest


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda m: m.update(beta=0.0), "gives the beta 0.0, expected a positive number"),
        (lambda m: m.update(beta=-1.0), "gives the beta -1.0"),
        (lambda m: m.update(block_size=0), "block_size"),
        (lambda m: m.update(coding="difference"), "does not fit its units and difference"),
        (lambda m: m["units"][1].update(folder="policy"), "lists the unit 'policy' twice"),
        (lambda m: m["architecture"].update(vocab_size=10**15), "and of the whole head"),
        (lambda m: m["architecture"].update(num_hidden_layers=10**9), "the graphs of all layers"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    pair_copy: Path, change: Callable[[Json], None], fault: str
) -> None:
    rewrite(pair_copy, change)
    with pytest.raises(ManifestInvalid, match=fault):
        Pair.open(pair_copy)


def test_any_value_anywhere_in_a_manifest_gives_a_pair_or_an_error(pair_copy: Path) -> None:
    text = (pair_copy / MANIFEST).read_bytes()
    manifest = json.loads(text)
    places = [(key,) for key in manifest if key != "checksum"]
    places += [(key, name) for key, value in manifest.items() if isinstance(value, dict) for name in value]
    values = (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
    )

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(places), values | st.text(st.characters(codec="utf-8"), max_size=5))
    def holds(place: tuple[str, ...], value: object) -> None:
        def change(found: Json) -> None:
            *outer, last = place
            for key in outer:
                found = found[key]
            found[last] = value

        (pair_copy / MANIFEST).write_bytes(text)
        rewrite(pair_copy, change)
        with contextlib.suppress(ArtifactError):
            opened = Pair.open(pair_copy)
            opened.verify()
            opened.prefix()
            opened.encoder()

    holds()


# Tokenizer


def tokenizer(pair: Path, change: Callable[[Json], object]) -> Pair:
    """Change tokenizer.json; what the change returns is written in its place."""
    path = pair / TOKENIZER
    found = json.loads(path.read_text(encoding="utf-8"))
    changed = change(found)
    path.write_bytes(changed if isinstance(changed, bytes) else json.dumps(found).encode())
    rehash(pair)
    return Pair.open(pair)


def normalizer(**settings: object) -> Callable[[Json], None]:
    return lambda found: found.update(normalizer=settings)


BROKEN: dict[str, tuple[Callable[[Json], object], str]] = {
    "empty": (lambda _: b"", "tokenizer.json cannot be used: EOF"),
    "no object": (lambda _: b"[]", "tokenizer.json cannot be used"),
    "not UTF-8": (lambda _: b"\xff", "tokenizer.json is not UTF-8 at byte 0"),
    "no model": (lambda found: found.pop("model") and None, "cannot be used: Model missing"),
    "merge of unknown": (
        lambda found: found["model"]["merges"].append(["zzq", "qqz"]),
        "cannot be used: Token `zzq`",
    ),
    "dropout": (lambda found: found["model"].update(dropout=0.5), "drops merges at random"),
    "panic while it is set up": (
        lambda found: found.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
        "cannot be used: chunk size must be non-zero",
    ),
    "another panic": (
        normalizer(type="Precompiled", precompiled_charsmap="AAAAAAAA"),
        "cannot be used: index out of bounds",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tokenizer_that_fails_is_named(pair_copy: Path, name: str) -> None:
    change, fault = BROKEN[name]
    with pytest.raises(ModelInvalid, match=fault):
        tokenizer(pair_copy, change).encoder()


def test_a_text_on_which_the_tokenizer_panics_is_an_error_of_its_record(pair_copy: Path) -> None:
    """The pattern backtracks for ever on one text only: Oniguruma gives up, and the library panics."""
    slow = {"Regex": r"(?:(x+x+)+y)|[^x]+|x"}
    pair = tokenizer(pair_copy, lambda found: found["pre_tokenizer"]["pretokenizers"][0].update(pattern=slow))
    encoder = pair.encoder()
    assert len(encoder.encode("p", ["a"], Convention.EXACT).token_ids) > 0
    with pytest.raises(InvalidRecord, match="the tokenizer fails on this text"):
        encoder.encode("p", ["x" * 60], Convention.EXACT)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_only_what_the_tokenizer_raises_is_named(error: type[BaseException]) -> None:
    with pytest.raises(error), tokenizer_faults_as(ModelInvalid, "it fails", "mend it"):
        raise error
