"""`stepscore serve` as a process: what is accepted is answered, whatever signals and clients do."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from testing.server_process import Served, serving
from testing.solutions import SOLUTIONS
from testing.uninstalled import uninstall

from stepscore.cli.main import main
from stepscore.scorer import Scorer

ITEMS = [{"problem": each.problem, "steps": list(each.steps)} for each in SOLUTIONS]
LONG = [
    {"problem": f"{number}?", "steps": [f"Step {number} {k}." for k in range(4)]} for number in range(1000)
]
SLOW = ("--max-batch-tokens", "64")
CLIENT = """
import json, sys, urllib.request
body = open(sys.argv[2], "rb").read()
request = urllib.request.Request(sys.argv[1] + "/v1/score", body, {"content-type": "application/json"})
print(urllib.request.urlopen(request).status)
"""


def wait_until(served: Served, name: str, least: float = 1) -> None:
    while served.metric(name) < least:
        time.sleep(0.01)


@pytest.mark.slow
def test_every_accepted_call_is_answered_under_signals_and_killed_clients(
    tiny_pair: Path, tmp_path: Path
) -> None:
    with serving(tiny_pair, tmp_path, *SLOW, "--served-model-name", "prm") as served:
        assert f"serving {tiny_pair} as prm at http://127.0.0.1:" in served.started
        assert "no API key" in served.started
        rewards = [result["outcome_reward"] for result in served.score(ITEMS).json()["results"]]
        with Scorer.load(tiny_pair) as scorer:
            expected = [result.outcome_reward for result in scorer.score(SOLUTIONS)]
        assert rewards == pytest.approx(expected, abs=1e-7)
        _kill_a_client(served, tmp_path)
        _flood_with_connections(served)
        counts = _stop_under_load(served)
        assert counts[200] > 0
        assert set(counts) <= {200, 503}
        assert served.process.wait() == 0
        logged = Counter(line["status"] for line in served.calls()[1:])
        assert logged.pop(499) == 1  # the client that was killed
        assert logged == counts  # each answer that was sent has arrived


def _kill_a_client(served: Served, folder: Path) -> None:
    """Kill a client with a call that takes long: its requests are dropped, and others are answered."""
    body = folder / "body.json"
    body.write_bytes(httpx.Request("POST", "http://server", json={"items": LONG}).content)
    client = subprocess.Popen([sys.executable, "-P", "-c", CLIENT, served.address, str(body)])
    wait_until(served, "admitted_requests_total", least=len(ITEMS) + len(LONG))
    client.kill()
    client.wait()
    wait_until(served, 'request_failure_total{err="client_gone",route="/v1/score"}')
    wait_until(served, 'dropped_requests_total{reason="abandoned"}')


def _flood_with_connections(served: Served) -> None:
    """Open connections that send nothing, or half a request: others are answered."""
    host, port = served.address.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(50)]
    for connection in idle[::2]:
        connection.sendall(b"POST /v1/score HTTP/1.1\r\ncontent-length: 1000\r\n")
    assert served.get("/ready").status_code == 200
    for connection in idle:
        connection.close()


def _stop_under_load(served: Served) -> Counter[int]:
    """Send calls from several clients, and SIGTERM amid them; return how many had which status."""
    counts: Counter[int] = Counter()
    lock, begun = threading.Lock(), threading.Barrier(5)

    def ask() -> None:
        begun.wait()
        while True:
            try:
                status = served.score(LONG[:50]).status_code
            except httpx.TransportError:
                return  # the server has ended
            with lock:
                counts[status] += 1

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    begun.wait()
    while not counts[200]:
        time.sleep(0.01)
    served.process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join()
    return counts


@pytest.mark.slow
def test_what_is_not_finished_in_time_is_answered_with_an_error(tiny_pair: Path, tmp_path: Path) -> None:
    with serving(tiny_pair, tmp_path, *SLOW, "--drain-seconds", "0", STEPSCORE_API_KEY="k") as served:
        assert "API keys on" in served.started
        assert served.get("/metrics").status_code == 401
        answers: list[httpx.Response] = []
        header = {"authorization": "Bearer k"}
        client = threading.Thread(target=lambda: answers.append(served.score(LONG, headers=header)))
        client.start()
        while "stepscore_num_requests_running 0" in _metrics(served, header):
            time.sleep(0.01)
        served.process.send_signal(signal.SIGINT)
        client.join()
        answer = answers[0].json()  # the items of a call that are finished have results
        errors = [item["error"]["type"] for item in answer.get("results", [answer]) if "error" in item]
        assert set(errors) == {"scorer_closed"}
        assert served.process.wait() == 3


def _metrics(served: Served, header: dict[str, str]) -> str:
    return httpx.get(f"{served.address}/metrics", headers=header, timeout=60).text


@pytest.mark.slow
def test_the_second_signal_ends_at_once(tiny_pair: Path, tmp_path: Path) -> None:
    with serving(tiny_pair, tmp_path, *SLOW) as served:
        body: dict[str, Any] = {"items": LONG}
        client = threading.Thread(target=_fails, args=(f"{served.address}/v1/score", body))
        client.start()
        wait_until(served, "num_requests_running")
        served.process.send_signal(signal.SIGTERM)
        while served.get("/ready").status_code == 200:
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait() == 128 + signal.SIGTERM
        client.join()


def _fails(address: str, body: dict[str, Any]) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(address, json=body, timeout=60)


def test_an_address_in_use_is_an_error_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(main, ["serve", "no-such-pair", "--port", port])
    assert done.exit_code == 3
    assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in done.stderr


def test_an_open_address_without_a_key_is_warned_of(tmp_path: Path) -> None:
    arguments = ["serve", str(tmp_path / "none"), "--host", "0.0.0.0", "--port", "0"]
    open_to_all = CliRunner().invoke(main, arguments, env={"STEPSCORE_API_KEY": None})
    assert "is open to others without a key" in open_to_all.stderr
    guarded = CliRunner().invoke(main, arguments, env={"STEPSCORE_API_KEY": "k"})
    assert "is open to others" not in guarded.stderr
    assert guarded.exit_code == 3


def test_without_the_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "uvicorn", "stepscore.server")
    done = CliRunner().invoke(main, ["serve", "pair"])
    assert done.exit_code == 3
    assert "pip install 'stepscore[server]'" in done.stderr


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "1e10"])
def test_a_drain_without_an_end_is_refused(seconds: str) -> None:
    done = CliRunner().invoke(main, ["serve", "pair", "--drain-seconds", seconds])
    assert done.exit_code == 2
    assert "number of seconds from 0 to 86400" in done.stderr
