"""How many examples Hypothesis tries: few while somebody waits, many in CI."""

from __future__ import annotations

import os

from hypothesis import settings

CI_EXAMPLES, DEV_EXAMPLES = 100, 20


def load_profile() -> None:
    """Load the profile that HYPOTHESIS_PROFILE names, `dev` or `ci`; no test passes or fails by the clock."""
    settings.register_profile("ci", deadline=None, max_examples=CI_EXAMPLES)
    settings.register_profile("dev", deadline=None, max_examples=DEV_EXAMPLES)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def examples(count: int) -> settings:
    """Try `count` examples in CI, and in proportion elsewhere."""
    return settings(max_examples=-(-count * settings.default.max_examples // CI_EXAMPLES))
