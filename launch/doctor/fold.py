"""Many hosts in few words."""

import re
from collections.abc import Sequence

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)*(?<!,)")
"""A whole number, a decimal one or an address."""


def counted(number: int, noun: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def fold_names(names: Sequence[str]) -> str:
    """`n1, n2, n3, login` as `n[1-3], login`, the way SLURM writes hosts."""
    groups: dict[tuple[str, int, str], list[int]] = {}
    plain = []
    for name in names:
        found = re.fullmatch(r"(.*?)(\d+)(\.[^\d].*|)", name)
        if found:
            prefix, digits, rest = found.groups()
            groups.setdefault((prefix, len(digits) if digits[0] == "0" else 0, rest), []).append(int(digits))
        else:
            plain.append(name)
    folded = [
        f"{prefix}{_bracketed(fold_numbers(numbers, width))}{rest}" for (prefix, width, rest), numbers in groups.items()
    ]
    return ", ".join(folded + plain)


def fold_numbers(numbers: Sequence[int], width: int = 0) -> str:
    """[1, 2, 3, 7] as `1-3,7`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]:0{width}d}" + (f"-{run[-1]:0{width}d}" if len(run) > 1 else "") for run in runs)


def _bracketed(numbers: str) -> str:
    return numbers if numbers.isdecimal() else f"[{numbers}]"


def merge(texts: Sequence[str]) -> str | None:
    """One text for several that differ in numbers only: `22.1 GB free`, `20 GB free` → `20–22.1 GB free`."""
    if len({NUMBER.sub("#", text) for text in texts}) > 1:
        return None
    columns = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    spans = iter([_span(column) for column in columns])
    return NUMBER.sub(lambda _: next(spans), texts[0])


def _span(column: Sequence[str]) -> str:
    ordered = sorted(set(column), key=_size)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]}–{ordered[-1]}"


def _size(text: str) -> tuple[float, ...]:
    plain = text.replace(",", "")
    return (float(plain),) if plain.count(".") < 2 else tuple(map(float, plain.split(".")))
