"""The doctor's findings for people and for programs: equal lines of several hosts are one."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from launch.doctor.check import Check, Status
from launch.doctor.fold import counted, fold_names, merge

Finding = tuple[str, Check]
"""Host, or an empty string for the whole job, and what was found."""
WIDTH = 120


class Line(NamedTuple):
    check: Check
    hosts: list[str]
    """Where it holds; empty for the whole job."""


def fold(findings: Sequence[Finding]) -> list[Line]:
    """Equal findings of several hosts in one line, and fine ones that differ in numbers alone."""
    equal: dict[Check, list[str]] = {}
    for host, check in findings:
        equal.setdefault(check, []).extend([host] if host else [])
    lines: list[Line] = []
    fine: dict[tuple[str, Status], list[Line]] = {}
    for check, hosts in equal.items():
        line = Line(check, hosts)
        if check.status in ("ok", "skip") and hosts:
            fine.setdefault((check.name, check.status), []).append(line)
        else:
            lines.append(line)
    for group in fine.values():
        text = merge([line.check.found for line in group])
        together = Line(group[0].check._replace(found=text or ""), [host for line in group for host in line.hosts])
        lines += [together] if text is not None else group
    order = {name: place for place, name in enumerate(dict.fromkeys(check.name for _, check in findings))}
    return sorted(lines, key=lambda line: order[line.check.name])


def text(findings: Sequence[Finding], hosts: Sequence[str], ranks: int, seconds: float) -> str:
    """All findings in order, with their hosts unless they hold on all; then the names of those that need somebody."""
    lines = fold(findings)
    width = max(len(line.check.name) for line in lines)
    body = [shown(line, width, len(hosts)) for line in lines]
    count = {status: sum(line.check.status == status for line in lines) for status in ("ok", "warn", "fail", "skip")}
    summary = f"{counted(len(hosts), 'host')}, {counted(ranks, 'rank')}, {seconds:.1f} s: " + ", ".join(
        f"{number} {status}" for status, number in count.items() if number
    )
    names = [_where(line, len(hosts)) for status in ("fail", "warn") for line in lines if line.check.status == status]
    if names:
        summary += "\n" + _wrapped(f"look at: {', '.join(dict.fromkeys(names))}", "", "  ")
    return "\n".join([*body, "", summary])


def shown(line: Line, width: int, hosts: int) -> str:
    check = line.check
    where = f" (on {_hosts(line.hosts)})" if 0 < len(set(line.hosts)) < hosts else ""
    lead = f"{check.status:<5}{check.name:<{width}}  "
    indent = " " * len(lead)
    body = _wrapped(check.found + where, lead, indent)
    if not check.fix:
        return body
    return body + "\n" + _wrapped(f"fix: {check.fix}", indent, indent + "     ")


def _wrapped(text: str, first: str, rest: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _hosts(names: Sequence[str]) -> str:
    return fold_names(list(dict.fromkeys(names)))


def _where(line: Line, hosts: int) -> str:
    on = f" on {_hosts(line.hosts)}" if 0 < len(set(line.hosts)) < hosts else ""
    return f"{line.check.status} {line.check.name}{on}"


def as_json(
    findings: Sequence[Finding], hosts: Sequence[str], ranks: int, seconds: float, measured: Any
) -> dict[str, Any]:
    """One entry for each folded line, with the hosts it holds on; `measured` is each rank's all-reduce as it was told."""
    checks = [{**line.check._asdict(), "hosts": line.hosts} for line in fold(findings)]
    return {
        "ok": not any(check.status == "fail" for _, check in findings),
        "hosts": list(hosts),
        "ranks": ranks,
        "seconds": round(seconds, 2),
        "checks": checks,
        "measured": measured,
    }
