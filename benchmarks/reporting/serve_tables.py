"""The server under load, as tables."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.reporting.table import Result, Results, Table, machine_name, of_kind, percent


def serve(results: Results) -> list[Table]:
    """Return the steady load of every pair, then what else was done to its server."""
    found = of_kind(results, "serve_")
    if not found:
        return []
    headings = [
        *("pair", "calls", "p50", "p99", "tokens/s", "offline, before and after", "of offline"),
        *("largest difference", "memory"),
    ]
    steady = Table(
        f"{found[0]['clients']} clients, one sample a call, {found[0]['steady']['seconds']:.0f} s; "
        f"{found[0]['text']}; {machine_name(found[0])}",
        headings,
        [_steady(result) for result in found],
        note="The difference is that of a reward from the offline one, in standard deviations of all. "
        "Memory: its peak in the first and in the second half.",
    )
    return [steady, *(_parts(result) for result in found if result["parts"])]


def _steady(result: Result) -> list[str]:
    row = result["steady"]
    memory = row["memory_mb"]
    return [
        result["pair"],
        f"{row['calls']:,}: {_statuses(row['statuses'])}",
        f"{row['p50_seconds']:.2f} s",
        f"{row['p99_seconds']:.2f} s",
        f"{row['tokens_per_second']:,.0f}",
        ", ".join(f"{speed:,.0f}" for speed in result["offline_tokens_per_second"]),
        percent(result["share_of_offline"], 0),
        f"{row['largest_difference_in_deviations']:.1e}",
        f"{memory['first_half']:,}, {memory['second_half']:,} MB",
    ]


def _parts(result: Result) -> Table:
    rows = []
    for part in result["parts"]:
        statuses = part.get("statuses") or part.get("statuses_after") or {str(part.get("status")): 1}
        known = {"part", "statuses", "statuses_after", "status"}
        rest = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in part.items() if name not in known
        )
        rows.append([part["part"], _statuses(statuses), rest])
    return Table(f"Pair {result['pair']}: what else was done to its server", ["part", "answers", ""], rows)


def _statuses(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} x {status}" for status, count in sorted(counts.items()))
