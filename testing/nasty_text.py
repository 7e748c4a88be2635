"""Draw problems and steps from fragments that tokenizers treat in special ways."""

from __future__ import annotations

from hypothesis import strategies as st
from testing.byte_level import FRAGMENTS, SPECIAL

TEXT = st.lists(st.sampled_from([*FRAGMENTS, *SPECIAL]) | st.text(max_size=3), max_size=10).map("".join)
STEPS = st.lists(TEXT.filter(lambda text: bool(text.strip())), min_size=1, max_size=5)
