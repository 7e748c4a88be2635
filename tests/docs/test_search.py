"""What the pages on search and memory say of the prefix cache runs as it stands, on a tiny pair."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from testing.manifests import manifest

from stepscore.artifact.manifest import Architecture
from stepscore.cli.main import main
from stepscore.integrations.reward_model import RewardModel
from stepscore.memory.kept import bytes_per_kept_token
from stepscore.scorer import Scorer

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```(?:python)?\n(.*?)^```\n", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def folder(tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("PAIR", "eurus"):
        Path(name).symlink_to(tiny_pair)
    Path("solutions.jsonl").write_text('{"problem": "1 + 1?", "steps": ["2"]}\n')
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_a_search_with_a_cache_computes_what_is_new() -> None:
    (code,) = (block for block in blocks("search.md") if "prefix_cache" in block)
    names = {"RewardModel": RewardModel, "Scorer": Scorer}
    exec(code, names)
    prm = names["prm"]
    prm.score(["1 + 1?"], [["1 + 1 = 2.\n\n"]])
    before = prm.scorer.kept_prefixes
    prm.score(["1 + 1?"], [["1 + 1 = 2.\n\nSo 2."]])
    after = prm.scorer.kept_prefixes
    assert after.computed - before.computed < before.computed / 2
    assert after.given > before.given


@pytest.mark.usefixtures("folder")
def test_dry_run_says_what_a_kept_token_takes() -> None:
    (command,) = (block for block in blocks("memory.md") if "--prefix-cache" in block)
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert re.search(r"prefix cache +2\.00 GB: [\d,]+ tokens of [\d.]+ kB", done.output)


def test_sizes_of_a_token_are_those_of_the_page() -> None:
    text = (DOCS / "search.md").read_text(encoding="utf-8").replace("\n", " ")
    shapes = {
        "Qwen2.5-0.5B's shape": Architecture(896, 4864, 24, 14, 2, 64, 151_936, 32_768),
        "1.5B's": Architecture(1536, 8960, 28, 12, 2, 128, 151_936, 32_768),
        "7B's": Architecture(3584, 18_944, 28, 28, 4, 128, 152_064, 32_768),
    }
    for name, shape in shapes.items():
        (said,) = re.findall(rf"(\d+) kB at {name}", text)
        assert round(bytes_per_kept_token(manifest(shape), element_bytes=4) / 1e3) == int(said)
