r"""Write answers in one spelling: Unicode, spaces, LaTeX commands that change no meaning."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

MAX_CHARACTERS = 2000

_UNICODE = {
    **dict.fromkeys("−–—‐‑‒―﹣－", "-"),
    **dict.fromkeys("\u200b\u2060\ufeff\u200e\u200f\u2061\u2062", ""),
    **dict.fromkeys("×✕", r"\times "),
    **dict.fromkeys("·⋅∙", r"\cdot "),
    **dict.fromkeys("’′", "'"),
    **dict.fromkeys("⁄∕", "/"),
    "÷": r"\div ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "√": r"\sqrt ",
    "±": r"\pm ",
    "…": r"\ldots ",
    "⋯": r"\ldots ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∅": r"\emptyset ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "λ": r"\lambda ",
    "ℝ": r"\mathbb{R}",
    "（": "(",
    "）": ")",
    "，": ", ",
}
_SUPERSCRIPTS, _SUBSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"

_COMMANDS = {  # every one is replaced as a whole word
    **dict.fromkeys(("left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "bigg", "Bigg"), ""),
    **dict.fromkeys(
        ("displaystyle", "textstyle", "limits", "boldsymbol", "rm", "bf", "it", "ensuremath"), ""
    ),
    **dict.fromkeys(("quad", "qquad", "thinspace", "enspace", "medspace", "space", "nobreakspace"), " "),
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac"),
    **dict.fromkeys(("dots", "cdots", "dotsc", "dotsb", "dotso"), r"\ldots"),
    **dict.fromkeys(("lbrace",), r"\{"),
    **dict.fromkeys(("rbrace",), r"\}"),
    **dict.fromkeys(("dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("varnothing",), r"\emptyset"),
    "leq": r"\le",
    "leqslant": r"\le",
    "geq": r"\ge",
    "geqslant": r"\ge",
    "neq": r"\ne",
    "lt": "<",
    "gt": ">",
    "pounds": "£",
    "euro": "€",
    "langle": "(",
    "rangle": ")",
    "degree": r"^\circ",
    "colon": ":",
    "infin": r"\infty",
    "infinity": r"\infty",
    "ast": "*",
}
_COMMAND = re.compile(rf"\\({'|'.join(sorted(_COMMANDS, key=len, reverse=True))})(?![A-Za-z])")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|operatorname|mbox|hbox|bm)\s*"
    r"\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_PLAIN_CONTENT = re.compile(
    r"[-+]?[0-9.,/ ]+|\(?[A-Za-z]\)?(?:\s*,\s*\(?[A-Z]\)?)*|\\?[$€£¥]|[-+]?\d[\d.,]*\s+[A-Za-z]{3,}"
)
_SEPARATOR_WORD = re.compile(
    r"(?:,\s*)?(?:\\text\{\s*(?:,\s*)?(?:and|or)\s*,?\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))"
)
_ONE_DIGIT_ARGUMENT = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|([0-9A-Za-z]))\s*(?:\{([^{}]*)\}|([0-9A-Za-z]))")


def plain(answer: str) -> str:
    r"""Return the answer in one spelling; a second call changes nothing.

    >>> [plain(text) for text in ("$-\\dfrac12\\,$", "10\\,000", "\\text{ A }.", "x \\leq 3")]
    ['-\\frac{1}{2}', '10000', 'A', 'x \\le 3']
    """
    text = answer
    for _ in range(8):
        before, text = text, _once(text)
        if text == before:
            break
    return text


def _once(text: str) -> str:
    text = re.sub(r"(?<!\\)\\$", "", _ascii(text).strip())  # a space at the end
    text = re.sub(r"(?<!\\)\\[,;:!> ]|~|\\[hv]space\*?\{[^{}]*\}", _space, text)
    text = _trimmed(text)
    text = _COMMAND.sub(lambda found: _spaced(_COMMANDS[found[1]], found, text), text)
    text = _TEXT.sub(_unwrapped, text)
    text = _SEPARATOR_WORD.sub(", ", text)
    text = text.replace(r"\%", "%").replace(r"\$", "$").replace(r"\#", "#")
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}|\{\}\s*\^\s*\\circ", r"^\\circ", text)
    text = re.sub(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d{3}(?!\d))", "", text)  # 10{,}000
    text = re.sub(
        r"(?<=\d)\{([.,:])\}(?=\d)", lambda found: {",": "."}.get(found[1], found[1]), text
    )  # 3{,}14
    text = re.sub(
        r"(?<![\d.,^_])(\d{1,3})((?: \d{3})+)(?![\d/])", lambda f: f[1] + f[2].replace(" ", ""), text
    )
    text = re.sub(r"\.\.\.+", r"\\ldots ", text)
    text = _ONE_DIGIT_ARGUMENT.sub(
        lambda f: rf"\frac{{{f[1] if f[1] is not None else f[2]}}}{{{f[3] if f[3] is not None else f[4]}}}",
        text,
    )
    text = re.sub(r"\\sqrt\s*(\d|[A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![A-Za-z\\])sqrt\s*(?=[({])", r"\\sqrt", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![A-Za-z\\])(pi|infty|infinity)(?![A-Za-z])", lambda f: "\\" + f[1], text)
    return re.sub(r"\s+", " ", text).strip()


def _ascii(text: str) -> str:
    """Replace Unicode characters by ASCII or LaTeX of the same meaning."""
    if text.isascii():
        return text
    text = re.sub(r"√\s*(\d+)", r"\\sqrt{\1}", text)
    text = re.sub(f"⁻?[{_SUPERSCRIPTS}]+", lambda f: f"^{{{_digits(f[0], _SUPERSCRIPTS)}}}", text)
    text = "".join(_UNICODE.get(char, char) for char in text)
    text = re.sub(f"[{_SUBSCRIPTS}]+", lambda f: f"_{{{_digits(f[0], _SUBSCRIPTS)}}}", text)
    text = "".join(_fraction(char) for char in text)
    return unicodedata.normalize("NFKC", text)


def _digits(text: str, alphabet: str) -> str:
    return "".join("-" if char == "⁻" else str(alphabet.index(char)) for char in text)


def _fraction(char: str) -> str:
    r"""Return ½ as \frac{1}{2}, so that 1½ does not become 11/2."""
    whole = unicodedata.normalize("NFKC", char)
    if "\u2044" not in whole or whole == char:
        return char
    above, _, below = whole.partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _space(found: re.Match[str]) -> str:
    return "" if found[0] == r"\!" else " "


def _spaced(command: str, found: re.Match[str], text: str) -> str:
    """Keep a command apart from a letter that follows it."""
    follows = text[found.end() : found.end() + 1]
    return command + " " if command[-1:].isalpha() and follows.isalpha() else command


def _unwrapped(found: re.Match[str]) -> str:
    content = re.sub(r"\s+", " ", found[1]).strip()
    if not content:
        return " "
    if _PLAIN_CONTENT.fullmatch(content):
        return content if found.start() == 0 else " " + content
    return rf" \text{{{content}}}"


def _trimmed(text: str) -> str:
    """Remove math delimiters, bold marks, a full stop and braces around the whole."""
    text = text.strip()
    text = text if text.endswith(("..", "\\.", "\\,", "\\;")) else text.rstrip(".,; ")
    if len(text) > 1 and text[0] == text[-1] == "$" and text[-2] != "\\":
        return text[1:-1].strip()
    if len(text) > 4 and text[:2] == text[-2:] == "**":
        return text[2:-2].strip()
    for left, right in (("{", "}"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(left) and text.endswith(right) and _encloses(text, left, right):
            return text[len(left) : -len(right)].strip()
    return text


def _encloses(text: str, left: str, right: str) -> bool:
    depth, at = 0, 0
    while at < len(text):
        if text.startswith(left, at):
            depth, at = depth + 1, at + len(left)
        elif text.startswith(right, at):
            depth, at = depth - 1, at + len(right)
            if not depth:
                return at == len(text)
        else:
            at += 2 if text[at] == "\\" else 1
    return False


def tokens(text: str) -> Iterator[tuple[int, str, int]]:
    """Yield index, token and depth after it; a token is a command, an escaped character or a character."""
    depth = 0
    for found in re.finditer(r"\\[A-Za-z]+|\\.|.", text, re.DOTALL):
        token = found[0]
        depth += (token in {"(", "[", "{", "\\{"}) - (token in {")", "]", "}", "\\}"})
        yield found.start(), token, depth
