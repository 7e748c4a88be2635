"""Says whether two answers are equal: `python -m stepscore.selection.math_verify_worker`.

One line in, `["gold", "given"]` as JSON; one line out, `true` or `false`. The first line out is `ready`, or
says why math-verify cannot be loaded. Answers come from models: parsing one may take for ever, in C code that
no signal interrupts, so whoever asks keeps the time and ends this process (see answers.py).
"""

from __future__ import annotations

import json
import logging
import os
import sys


def main() -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no reply
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limit is off
    try:
        from math_verify import parse, verify  # noqa: PLC0415
    except Exception as error:
        replies.write(f"{type(error).__name__}: {error}".replace("\n", " ") + "\n")
        return
    replies.write("ready\n")
    for line in sys.stdin:
        try:
            gold, given = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in json.loads(line))
            equal = verify(gold, given, timeout_seconds=None)
        except Exception:  # whatever a parser does with text that is no mathematics
            equal = False
        replies.write(f"{json.dumps(bool(equal))}\n")


if __name__ == "__main__":
    main()
