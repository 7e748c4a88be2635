"""Measure `stepscore serve` under load, on the loopback interface.

    make bench-serve                                    the bundled pair, 6 minutes
    make bench-serve FLAGS="--pair PAIR --name NAME"    another pair; a large one with --steady-only
    make bench-serve FLAGS=--quick                      a few seconds of each part

Calls hold one sample each, in the order of math_best_of_8, or of the bundled samples where the shared data
is not here. Rewards are compared with those of `Scorer.score`, which also gives the offline speed, before and
after the load. Every part is bounded in count and time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.support.forms import DEFAULT, FORMS
from benchmarks.support.options import add_child, benchmark_parser
from benchmarks.support.results import logged, measured_in_child, write_result
from benchmarks.support.served import HOST, Served, body_of, killed_clients, posted, served
from benchmarks.support.workloads import BEST_OF_8, records, text_of

from stepscore.artifact.pair import Pair
from stepscore.enums import Convention, Provider
from stepscore.errors import InputError
from stepscore.results import Result
from stepscore.scorer import Scorer
from stepscore_export.pipeline.export import export_pair

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIENTS = 64
OVERLOAD = 10
LARGE_BODY = 1_000_000
IDLE = 1000
SLOW = 32


def main() -> None:
    """Measure; write results/serve_NAME.json."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--pair", type=Path, help="pair to serve (default: the bundled one, exported here)")
    parser.add_argument("--name", default="bundled", help="name of the pair in the result")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the steady load")
    parser.add_argument("--samples", type=int, default=2000, help="most samples to post")
    parser.add_argument("--steady-only", action="store_true", help="leave out overload and all after it")
    add_child(parser)
    options = parser.parse_args()
    if options.child:
        pair, count, seconds = options.child
        print(json.dumps(offline(Path(pair), int(count), float(seconds))))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        pair = options.pair or bundled(Path(folder))
        seconds = 3.0 if options.quick else options.seconds
        result = measured(pair, options.samples, seconds, steady_only=options.steady_only)
    facts = {
        "quick": options.quick,
        "pair": options.name,
        "text": f"{text_of(BEST_OF_8)}, in its order",
        "clients": CLIENTS,
    }
    name = f"serve_{options.name}"
    print(write_result(name, {**facts, **result}, quick=options.quick))


def bundled(folder: Path) -> Path:
    """Export the bundled pair in its default form."""
    pair = EXAMPLES / "pair"
    return export_pair(
        pair / "policy", pair / "reference", folder / "pair", FORMS[Provider.CPU][DEFAULT]
    ).path


def fitting(pair: Path, count: int, most: int) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the first samples, at most `most`, that the models have positions for, and their tokens."""
    encoder = Pair.open(pair).encoder()
    fits, tokens = [], []
    for each in itertools.islice(records(BEST_OF_8), count):
        with contextlib.suppress(InputError):
            prompt = encoder.encode(each["problem"], each["steps"], Convention.CARD)
            fits.append(each)
            tokens.append(len(prompt.token_ids))
        if len(fits) == most:
            break
    return fits, tokens


def offline(pair: Path, count: int, seconds: float) -> dict[str, Any]:
    """Score samples from the first on for a time, offline; return rewards and tokens per second.

    At least two samples a client are scored: with fewer, clients would post the same one at the same time.
    """
    texts, _ = fitting(pair, count, count)
    rewards, tokens = [], 0
    with Scorer.load(pair) as scorer:
        scorer.score(texts[:1])
        begun = time.monotonic()
        for _, outcome in scorer.stream(enumerate(texts)):
            assert isinstance(outcome, Result)
            rewards.append(outcome.outcome_reward)
            tokens += outcome.num_tokens
            if time.monotonic() - begun > seconds and len(rewards) >= 2 * CLIENTS:
                break
        wall = time.monotonic() - begun
    return {"rewards": rewards, "tokens_per_second": round(tokens / wall, 1)}


def measured(pair: Path, count: int, seconds: float, *, steady_only: bool) -> dict[str, Any]:
    """Run every part against servers of the pair, or the first alone."""
    before = measured_in_child("benchmarks.serve", pair, count, seconds)
    texts, tokens = fitting(pair, count, len(before["rewards"]))
    bodies = [body_of(each) for each in texts]
    with served(pair) as server:
        steady = logged(_steady(server, bodies, before["rewards"], tokens, seconds))
        parts = (
            []
            if steady_only
            else [
                logged(_overload(server, bodies, seconds / 3)),
                logged(_killed(server, bodies)),
                logged(_large(server, texts)),
                logged(_slow_readers(server, texts, seconds / 6)),
                logged(_idle(server, bodies)),
            ]
        )
        memory = server.memory_mb()
    if not steady_only:
        with served(pair) as server:
            parts.append(logged(_terminated(server, bodies, seconds / 6)))
    after = measured_in_child("benchmarks.serve", pair, count, seconds)
    speeds = [each["tokens_per_second"] for each in (before, after)]
    share = steady["tokens_per_second"] / (sum(speeds) / 2)
    return {
        "samples": len(texts),
        "offline_tokens_per_second": speeds,
        "share_of_offline": round(share, 3),
        "steady": steady,
        "parts": parts,
        "memory_mb_at_the_end": round(memory),
    }


def _steady(
    server: Served, bodies: Sequence[bytes], expected: Sequence[float], tokens: Sequence[int], seconds: float
) -> dict[str, Any]:
    """Post with CLIENTS clients; compare every reward with the offline one."""
    load = posted(server, bodies, clients=CLIENTS, seconds=seconds)
    differences = [abs(reward - expected[at]) for at, reward in load.rewards]
    scale = float(np.std(expected))
    half = len(load.memory_mb) // 2
    return {
        "part": "steady",
        "calls": sum(load.statuses.values()),
        "statuses": dict(load.statuses),
        "seconds": round(load.wall, 1),
        "tokens_per_second": round(sum(tokens[at] for at, _ in load.rewards) / load.wall, 1),
        "p50_seconds": load.percentile(0.5),
        "p99_seconds": load.percentile(0.99),
        "largest_difference": max(differences),
        "largest_difference_in_deviations": max(differences) / scale,
        "memory_mb": {
            "first_half": round(max(load.memory_mb[: half or 1])),
            "second_half": round(max(load.memory_mb[half:])),
        },
        "shared_tokens": round(server.metric("stepscore_shared_token_ratio"), 3),
    }


def _overload(server: Served, bodies: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Post with ten times the clients, which hardly pause when they are refused."""
    load = posted(server, bodies, clients=OVERLOAD * CLIENTS, seconds=seconds, pause=0.2)
    return {
        "part": f"overload, {OVERLOAD * CLIENTS} clients",
        "statuses": dict(load.statuses),
        "p99_seconds": load.percentile(0.99),
        "memory_mb": round(max(load.memory_mb)),
    }


def _killed(server: Served, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Kill clients that wait for 64 answers, then ask for one."""
    killed_clients(server, bodies, processes=8, each=8)
    begun = time.monotonic()
    load = posted(server, bodies, clients=1, seconds=0.1)
    while server.metric("stepscore_num_requests_waiting") and time.monotonic() < begun + 60:
        time.sleep(0.05)
    return {
        "part": "64 waiting calls of 8 processes, killed with SIGKILL",
        "statuses_after": dict(load.statuses),
        "seconds_until_nothing_waits": round(time.monotonic() - begun, 2),
        "requests_waiting": server.metric("stepscore_num_requests_waiting"),
    }


def _large(server: Served, texts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Post one body of about 1 MB, and one over the limit of the server."""
    records, size = [], 0
    for each in itertools.cycle(texts):
        records.append(each)
        size += len(body_of(each))
        if size > LARGE_BODY:
            break
    large = body_of(*records)
    connection = server.connection()
    begun = time.monotonic()
    connection.request("POST", "/v1/score", large, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    seconds = time.monotonic() - begun
    answered = json.loads(text).get("results", [])
    return {
        "part": "a body of 1 MB",
        "bytes": len(large),
        "items": len(records),
        "status": answer.status,
        "answered": len(answered),
        "seconds": round(seconds, 2),
        "over_the_limit": _status_of_a_body(server, 64 * LARGE_BODY),
    }


def _status_of_a_body(server: Served, size: int) -> str:
    connection = server.connection()
    with contextlib.suppress(OSError):  # the server may close the connection while it is sent
        connection.request("POST", "/v1/score", b" " * size, {"Content-Type": "application/json"})
    try:
        return str(connection.getresponse().status)
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()


def _slow_readers(server: Served, texts: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Load with clients beside connections that ask for every token and hardly read."""
    body = body_of(*texts[:8], wanted=["tokens"])
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    slow = [socket.create_connection((HOST, server.port)) for _ in range(SLOW)]
    for each in slow:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        each.sendall(head + body)
    for each in slow:
        each.recv(1)  # its answer is computed
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.1):
            for each in slow:
                each.recv(16)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    load = posted(server, [body_of(each) for each in texts], clients=8, seconds=seconds)
    done.set()
    for each in slow:
        each.close()
    return {
        "part": f"8 clients beside {SLOW} that read 160 bytes a second",
        "statuses": dict(load.statuses),
        "p99_seconds": load.percentile(0.99),
    }


def _idle(server: Served, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Ask for an answer beside idle connections."""
    idle = [socket.create_connection((HOST, server.port)) for _ in range(IDLE)]
    load = posted(server, bodies, clients=1, seconds=1.0)
    for each in idle:
        each.close()
    return {
        "part": f"1 client beside {IDLE} idle connections",
        "statuses": dict(load.statuses),
        "p99_seconds": load.percentile(0.99),
    }


def _terminated(server: Served, bodies: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Send SIGTERM under load; every call that was accepted is answered with 200."""
    stop = threading.Event()
    found: list[Any] = []

    def load() -> None:
        found.append(posted(server, bodies, clients=CLIENTS, seconds=60 + seconds, stop=stop, pause=0.05))

    under_load = threading.Thread(target=load)
    under_load.start()
    time.sleep(max(seconds, 2.0))
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(120)
    ended = time.monotonic() - begun
    stop.set()
    under_load.join()
    return {
        "part": f"SIGTERM under the load of {CLIENTS} clients",
        "exit_code": code,
        "seconds_to_end": round(ended, 2),
        "statuses": dict(found[0].statuses),
    }


if __name__ == "__main__":
    main()
