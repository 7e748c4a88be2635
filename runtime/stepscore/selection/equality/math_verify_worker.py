"""Script of a separate process that parses answers with math-verify and compares them; library.py starts it.

It reads lines of JSON and answers each with one: `[seconds, "value", text]` with the real and imaginary part
of a number as decimal strings, or null; `[seconds, "equal", text, text]` with true or false. Its first line
is `ready`, or the reason why math-verify cannot be imported. Answers come from models, and computing one may
never end, in C code that no handler interrupts: a question that exceeds its processor time or the memory ends
this process.

math-verify parses. Numbers are evaluated to 40 digits, and expressions with variables compared by their
values at fixed points: its own comparison calls any two numbers equal that are near zero. It compares the
rest, inequalities, sets and matrices, in both orders, since it is not symmetric.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_MEMORY_BYTES = 1 << 30
DIGITS = 40
AGREE = Fraction(1, 10**25)
# Values of variables, in the order of their names; every name takes its own shift of these.
POINTS = tuple(
    tuple(Fraction(number, 1009) for number in numbers)
    for numbers in (
        (1733, 2741, 619, 3557),
        (4211, 467, 1861, 911),
        (-2503, 1399, -739, -3011),
        (523, -3191, -1627, 2281),
        (311, 173, 401, 97),
        (-137, 389, -283, 751),
    )
)


def main() -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # prints of libraries must not mix with replies
    logging.disable(logging.CRITICAL)  # math-verify warns that its time limit is disabled
    _limit_memory()
    try:
        _parsed("x + 1")  # loads everything before the first question
    except Exception as error:
        replies.write(f"{type(error).__name__}: {error}".replace("\n", " ") + "\n")
        return
    replies.write("ready\n")
    for line in sys.stdin:
        seconds, operation, *texts = json.loads(line)
        _limit_seconds(seconds)
        try:
            reply = _value(*texts) if operation == "value" else _equal(*texts)
        except MemoryError:
            os._exit(1)  # the caller sees an answer that cannot be computed
        except Exception:  # the parser raises anything on text that is not mathematics
            reply = None if operation == "value" else False
        _limit_seconds(0)
        replies.write(json.dumps(reply) + "\n")


def _limit_seconds(seconds: float) -> None:
    """End this process, in C code too, after so much processor time; 0 for no limit."""
    if hasattr(signal, "setitimer"):  # missing on Windows, where only the caller's time limit applies
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    try:
        import resource  # noqa: PLC0415 - missing on Windows, where only the time limit applies

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """Return the sympy object of a text, None where it is not understood as a whole."""
    import sympy  # noqa: PLC0415
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig  # noqa: PLC0415
    from math_verify import LatexExtractionConfig, parse  # noqa: PLC0415

    # No plain-text extraction: it takes any number out of text that is not understood. Units are read before.
    config = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last"
        ),
    )
    found = parse(f"\\boxed{{{text}}}", extraction_config=[config], parsing_timeout=None)
    if not found or isinstance(found[0], str):
        return None
    exact = found[0].replace(
        lambda part: isinstance(part, sympy.Float), lambda part: sympy.Rational(str(part))
    )
    names = {symbol.name: symbol for symbol in exact.free_symbols}
    return exact.subs(names["i"], sympy.I) if set(names) == {"i"} else exact


def _value(text: str) -> tuple[str, str] | None:
    import sympy  # noqa: PLC0415

    parsed = _parsed(text)
    if not isinstance(parsed, sympy.Expr) or parsed.is_infinite:
        return None
    if parsed.free_symbols:
        list(_values(parsed, parsed))  # never ending is then a matter of this answer, not of a pair
        return None
    return _decimals(parsed)


def _decimals(expression: Any) -> tuple[str, str] | None:
    """Return the parts of a number as decimal strings; an exact zero is "0"."""
    import sympy  # noqa: PLC0415

    try:
        number = sympy.N(expression.doit(), DIGITS, strict=True)
    except sympy.core.evalf.PrecisionExhausted:  # it cancels out, as in sqrt(2) sqrt(3) - sqrt(6)
        number = sympy.N(sympy.simplify(expression), DIGITS)
    parts = number.as_real_imag()
    if not all(part.is_Float or part.is_Rational for part in parts):
        return None
    real, imaginary = ("0" if part == 0 else str(sympy.Float(part, DIGITS)) for part in parts)
    return real, imaginary


def _equal(first: str, second: str) -> bool:
    import sympy  # noqa: PLC0415
    from math_verify import verify  # noqa: PLC0415

    one, other = _parsed(first), _parsed(second)
    if one is None or other is None:
        return False
    if isinstance(one, sympy.Eq) and isinstance(other, sympy.Eq):
        ratios = [left / right for left, right in _values(one.lhs - one.rhs, other.lhs - other.rhs)]
        if len(ratios) > 1 and all(_near(ratio, ratios[0]) for ratio in ratios):
            return True
    elif isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr):
        pairs = list(_values(one, other))
        if len(pairs) > 1:
            return all(_near(left, right) for left, right in pairs)
    return all(
        verify(gold, given, allow_set_relation_comp=True, timeout_seconds=None, float_rounding=30)
        for gold, given in ((one, other), (other, one))
    )


def _values(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Yield both values at every point where both are defined, and real unless an expression holds i."""
    import sympy  # noqa: PLC0415

    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    complex_ones = one.has(sympy.I) or other.has(sympy.I)
    for point in POINTS:
        values = {
            symbol: sympy.Rational(str(point[index % len(point)] + index // len(point)))
            for index, symbol in enumerate(symbols)
        }
        found = [sympy.N(part.subs(values).doit(), DIGITS) for part in (one, other)]
        if all(part.is_number and part.is_finite and (complex_ones or part.is_real) for part in found):
            yield found[0], found[1]


def _near(left: Any, right: Any) -> bool:
    size = max(abs(left), abs(right))
    return bool(abs(left - right) <= size * float(AGREE) or size < float(AGREE) ** 3)


if __name__ == "__main__":
    main()
