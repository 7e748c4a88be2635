"""The pictures in the README and in docs/report.md: reports of the bundled pair, as chromium shows them.

    make report-picture         writes docs/report*.png, and leaves the pages in out/report

Nothing is prepared for them: the solutions are scored, the threshold is the one chosen on threshold.jsonl.
The pictures of real text need the shared data; without it they stay as they are, and that is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from testing.browser import Browser, find
from testing.shared_data import SHARED_DATA

from stepscore.evaluation.first_error import choose_threshold

EXAMPLES = Path(__file__).parent
ROOT = EXAMPLES.parent
OUTPUT = ROOT / "out" / "report"
DOCS = ROOT / "docs"
DESKTOP, PHONE = (1060, 900), (390, 844)
REAL = "math_best_of_8"
PROBLEM = "math-17"
SOLUTION = "math-1-2"
WANTED = ("math-1-", "math-17-")


def main() -> None:
    """Export, score, report, take the pictures."""
    program = find()
    if program is None:
        sys.exit("chromium is not installed: run `make browser`")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    pair = OUTPUT / "pair"
    beta = json.loads((EXAMPLES / "training.json").read_text())["recipes"]["policy"]["beta"]
    models = (f"--{name}={EXAMPLES / 'pair' / name}" for name in ("policy", "reference"))
    _stepscore("export", *models, "--output", str(pair), "--beta", str(beta), "--force")
    _, *records = map(json.loads, _scored(pair, EXAMPLES / "threshold.jsonl").read_text().splitlines())
    rewards, labels = ([record[name] for record in records] for name in ("step_rewards", "label"))
    threshold = round(choose_threshold(rewards, labels), 4)
    page = _report(_scored(pair, EXAMPLES / "problems.jsonl"), f"--threshold={threshold}")
    with Browser(program) as browser:
        _picture(browser, page, {"sort": "step"}, DESKTOP, "report.png")
        if SHARED_DATA is None:
            sys.exit("the pictures of real text are left as they are: no shared data")
        lines = (SHARED_DATA / f"{REAL}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        source = OUTPUT / f"{REAL}.jsonl"
        source.write_text("".join(line for line in lines if json.loads(line)["id"].startswith(WANTED)))
        page = _report(_scored(pair, source))
        problem = {"view": "problems", "q": PROBLEM}
        _picture(browser, page, problem, (1060, 1330), "report-problem.png")
        _picture(browser, page, {"id": SOLUTION}, (1060, 760), "report-solution.png")
        _picture(browser, page, {"view": "solutions", "q": SOLUTION}, PHONE, "report-phone.png")


def _picture(browser: Browser, page: Path, state: dict[str, str], size: tuple[int, int], name: str) -> None:
    browser.size(*size)
    browser.open(f"{page.as_uri()}#{urlencode(state)}")
    if size == PHONE:
        browser.run("document.querySelector('#bar').scrollIntoView()")
    browser.run("document.activeElement.blur()")
    browser.picture(DOCS / name)
    print(DOCS / name)


def _report(scored: Path, *options: str) -> Path:
    page = scored.with_suffix(".html")
    _stepscore("report", str(scored), "-o", str(page), *options)
    return page


def _scored(pair: Path, source: Path) -> Path:
    """Return the scored solutions; records that are too long for the pair have errors."""
    output = OUTPUT / f"{source.stem}.scored.jsonl"
    output.unlink(missing_ok=True)
    _stepscore("score", str(pair), str(source), "--tokens", "-o", str(output), allowed=(0, 1))
    return output


def _stepscore(*arguments: str, allowed: tuple[int, ...] = (0,)) -> None:
    code = "from stepscore.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    if done.returncode not in allowed:
        sys.exit(f"stepscore {' '.join(arguments)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
