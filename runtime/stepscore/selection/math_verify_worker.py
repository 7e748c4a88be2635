"""Worker process that compares answers: `python -m stepscore.selection.math_verify_worker`.

It reads lines of JSON, `["gold", "given"]`, and answers each with `true` or `false`. Its first line is
`ready`, or the reason why math-verify cannot be imported. Answers come from models, and parsing one may never
end, in C code that no signal interrupts: so the caller keeps the time and kills this process (answers.py).
"""

from __future__ import annotations

import json
import logging
import os
import sys


def main() -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # prints of libraries must not mix with replies
    logging.disable(logging.CRITICAL)  # math-verify warns that its time limit is disabled
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
        except Exception:  # the parser raises anything on text that is not mathematics
            equal = False
        replies.write(f"{json.dumps(bool(equal))}\n")


if __name__ == "__main__":
    main()
