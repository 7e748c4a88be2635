"""The picture in the README: the bundled pair's report on the test problems, as chromium shows it.

    make report-picture         writes docs/report.png, and leaves the page in out/report

Nothing is prepared for it: problems.jsonl is scored, the threshold is the one chosen on threshold.jsonl.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from testing.browser import Browser, find

from stepscore.evaluation.first_error import choose_threshold

EXAMPLES = Path(__file__).parent
ROOT = EXAMPLES.parent
OUTPUT = ROOT / "out" / "report"
PICTURE = ROOT / "docs" / "report.png"
WIDTH, HEIGHT = 1060, 900


def main() -> None:
    """Export, score, report, take the picture."""
    program = find()
    if program is None:
        sys.exit("chromium is not installed: run `make browser`")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    pair = OUTPUT / "pair"
    beta = json.loads((EXAMPLES / "training.json").read_text())["recipes"]["policy"]["beta"]
    models = (f"--{name}={EXAMPLES / 'pair' / name}" for name in ("policy", "reference"))
    _stepscore("export", *models, "--output", str(pair), "--beta", str(beta), "--force")
    _, *records = map(json.loads, _scored(pair, "threshold").read_text().splitlines())  # behind the header
    rewards, labels = ([record[name] for record in records] for name in ("step_rewards", "label"))
    threshold = round(choose_threshold(rewards, labels), 4)
    page = OUTPUT / "report.html"
    _stepscore("report", str(_scored(pair, "problems")), "-o", str(page), f"--threshold={threshold}")
    with Browser(program) as browser:
        browser.size(WIDTH, HEIGHT)
        browser.open(f"{page.as_uri()}#sort=step")
        PICTURE.parent.mkdir(exist_ok=True)
        browser.picture(PICTURE)
    print(PICTURE)


def _scored(pair: Path, name: str) -> Path:
    output = OUTPUT / f"{name}.scored.jsonl"
    output.unlink(missing_ok=True)
    _stepscore("score", str(pair), str(EXAMPLES / f"{name}.jsonl"), "--tokens", "-o", str(output))
    return output


def _stepscore(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-c", "from stepscore.cli.main import main; main()", *arguments], check=True
    )


if __name__ == "__main__":
    main()
