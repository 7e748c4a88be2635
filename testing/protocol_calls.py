"""Call a route of the server without HTTP: JSON in, JSON out, errors as the app would answer with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from stepscore.errors import StepscoreError
from stepscore.scheduling.scheduler import Scheduler
from stepscore.scorer import Scorer
from stepscore.server.routes import Context, Route


class ProtocolCalls:
    """A pair behind some routes."""

    def __init__(self, pair: Path, routes: Iterable[Route[Any]], *, convention: str = "card") -> None:
        self.scorer = Scorer.load(pair, convention=convention, beta=1.0)
        self.routes = {route.path: route for route in routes}
        manifest = self.scorer.pair.manifest
        encoder = self.scorer.pair.encoder()
        self.context = Context(
            name="pair",
            aliases=("Qwen/Qwen2.5-Math-PRM-7B",),
            beta=self.scorer.beta,
            convention=self.scorer.convention,
            fingerprint=self.scorer.pair.fingerprint,
            version="0",
            encoder=encoder,
            vocab_size=manifest.architecture.vocab_size,
            max_tokens=encoder.max_tokens,
        )
        self.scheduler = Scheduler(self.scorer)

    def __call__(self, path: str, body: object) -> Any:
        """Return the answer to a body; raise the first error of its items."""
        route = self.routes[path]
        read = msgspec.json.decode(msgspec.json.encode(body), type=route.body)
        requests = route.requests(read, self.context)
        outcomes = self.scheduler.submit(requests).done.result()
        for outcome in outcomes:
            if isinstance(outcome, StepscoreError):
                raise outcome
        return msgspec.json.decode(msgspec.json.encode(route.answer(read, outcomes, self.context)))

    def render(self, problem: str, response: str) -> str:
        """Return the pair's chat template around one user and one assistant message."""
        return self.context.encoder.template.render(problem, (response,))

    def prompt(self, problem: str) -> str:
        """Return the render up to the response."""
        template = self.context.encoder.template
        return template.prefix + problem + template.between

    def close(self) -> None:
        """Close the scorer."""
        self.scheduler.close()
