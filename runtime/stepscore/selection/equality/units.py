"""Units of quantities: a product of powers of base units. A word that is not in the table is its own base."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

# name -> (base unit, factor); a plural s is removed first where the name is not here
_UNITS: dict[str, tuple[str, Fraction]] = {}


def _define(base: str, **factors: str) -> None:
    for names, factor in factors.items():
        _UNITS.update({name: (base, Fraction(factor)) for name in names.split("_")})


_define("m", m_meter_metre="1", km_kilometer_kilometre="1000", cm_centimeter_centimetre="1/100")
_define("m", mm_millimeter_millimetre="1/1000", dm_decimeter="1/10", micrometer_um="1/1000000")
_define("ft", ft_foot_feet="1", inch_inches="1/12", yd_yard="3", mi_mile="5280")
_define("g", g_gram="1", kg_kilogram="1000", mg_milligram="1/1000")
_define("lb", lb_lbs_pound="1", oz_ounce="1/16")
_define("s", s_sec_second="1", min_mins_minute="60", h_hr_hrs_hour="3600", day="86400", week="604800")
_define("year", year_yr_yrs="1", month="1/12")
_define("liter", l_liter_litre="1", ml_milliliter_millilitre="1/1000", gallon="1", gal="1")
_UNITS["gallon"] = _UNITS["gal"] = ("gallon", Fraction(1))
_define("$", dollar_usd_buck="1", cent="1/100")
_UNITS["$"], _UNITS["¢"] = ("$", Fraction(1)), ("$", Fraction(1, 100))
_define("€", euro_eur="1")
_define("degree", degree_deg="1")
_define("percent", percent_pct_percentage="1")
_UNITS.update({"€": ("€", Fraction(1)), "£": ("£", Fraction(1)), "¥": ("¥", Fraction(1))})
_UNITS.update({r"^\circ": ("degree", Fraction(1)), "%": ("percent", Fraction(1))})

CURRENCIES = "$€£¥¢"
_RATES = {"mph": "mile/hour", "kmh": "km/hour", "kph": "km/hour", "kmph": "km/hour"}
_TOKEN = re.compile(
    r"\^\\circ|[A-Za-z]+|(?P<power>\^\s*\{?\s*(?P<exponent>-?\d)\s*\}?)|(?P<over>/)|[%$€£¥¢]|[\s.\\-]"
)
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_LAST_POWER_WORDS = {"squared": 2, "cubed": 3}


@dataclass(frozen=True, slots=True)
class Unit:
    """A product of powers of base units, and the factor of one unit in them."""

    factor: Fraction
    powers: tuple[tuple[str, int], ...]


NONE = Unit(Fraction(1), ())
PERCENT = Unit(Fraction(1), (("percent", 1),))


def is_known(word: str) -> bool:
    """Return whether a word is a unit of the table."""
    return _entry(word) is not None or word.lower() in _RATES


def read_unit(text: str) -> Unit | None:
    r"""Return the unit that a text names, None if it is not one.

    >>> read_unit("km/h") == read_unit("kilometers per hour")
    True
    """
    words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    words = re.sub(r"(?<![A-Za-z])([A-Za-z])\.\s*([A-Za-z])\.?(?![A-Za-z])", r"\1\2", words)  # p.m.
    for short, long in _RATES.items():
        words = re.sub(rf"(?<![A-Za-z]){short}(?![A-Za-z])", long, words)
    factor, powers = Fraction(1), Counter[str]()
    sign, next_power, last = 1, 1, ""
    at = 0
    while at < len(words):
        found = _TOKEN.match(words, at)
        if not found:
            return None
        at = found.end()
        token = found[0].strip()
        lower = token.lower()
        if not token or token in {".", "-", "\\"}:
            continue
        if found["over"] or lower == "per":
            sign = -1
        elif found["power"] or lower in _LAST_POWER_WORDS:
            if not last:
                return None
            extra = (int(found["exponent"]) if found["power"] else _LAST_POWER_WORDS[lower]) - 1
            base, size = _entry(last) or (_own(last), Fraction(1))
            powers[base] += sign * extra
            factor *= size ** (sign * extra)
        elif lower in _POWER_WORDS and at < len(words):
            next_power = _POWER_WORDS[lower]
        else:
            base, size = _entry(token) or (_own(token), Fraction(1))
            powers[base] += sign * next_power
            factor *= size ** (sign * next_power)
            last, next_power = token, 1
    return Unit(factor, tuple(sorted((base, power) for base, power in powers.items() if power)))


def _entry(word: str) -> tuple[str, Fraction] | None:
    for name in (word, word.lower(), word.lower().removesuffix("s"), word.lower().removesuffix("es")):
        if name in _UNITS:
            return _UNITS[name]
    return None


def _own(word: str) -> str:
    lower = word.lower()
    return lower.removesuffix("s") if len(lower) > 3 and not lower.endswith("ss") else lower
