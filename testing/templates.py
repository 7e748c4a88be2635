"""Chat templates that many exports of a test run share, rendered once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stepscore.prompt.template import Template
from stepscore_export.checkpoint import chat_template
from stepscore_export.checkpoint.tokenizer import ChatTemplate


@contextmanager
def rendered_once() -> Iterator[None]:
    """Let exports of this process render each chat template once: two processes take as long as the rest.

    A template that is rejected is rendered each time.
    """
    render = chat_template.literals
    known: dict[str, Template] = {}

    def literals(template: ChatTemplate, **options: Any) -> Template:
        key = repr((template, options))
        if key not in known:
            known[key] = render(template, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template, "literals", literals)
        yield
