"""What was found among the pictures, for people (report.txt) and programs (report.json)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ...pixart_core.saving import replacing, save_json
from ...pixart_core.textfile import printable
from ..machine import in_units
from .sources import Source
from .survey import PROBLEMS, Finding

_FEW = 16
"""Pictures of a bucket that are few: they do not fill a batch of the usual size."""
_NAMED = 20
"""Pictures left out for one reason that report.txt names; report.json names all."""


@dataclass
class Report:
    """The result of looking at all pictures."""

    input: str
    pictures: int
    usable: int
    left_out: dict[str, list[tuple[str, str]]]
    """Problem -> name and why, of every picture left out."""
    unused: list[tuple[str, str]]
    """Name and why of every file of the folder that is not among the pictures."""
    buckets: dict[str, int]
    """"HEIGHTxWIDTH" in px -> pictures."""
    enlarged: int
    """Pictures smaller than their bucket."""
    wordings: int
    shards: int
    bytes: int
    """What the shards take, about."""
    free: int
    """Bytes on the disk of the output."""

    def text(self) -> str:
        """The report for people."""
        lines = [f"{self.pictures} pictures in {self.input}: {self.usable} can be used"]
        for problem, entries in self.left_out.items():
            lines.append(f"  left out, {PROBLEMS[problem]}: {len(entries)}")
            lines += _first(f"{name}: {why}" for name, why in entries)
        for why, names in self._unused().items():
            lines.append(f"  not looked at, {why}: {len(names)}")
            lines += _first(names)
        lines.append(f"{self.wordings} captions, {self.wordings / max(1, self.usable):.1f} a picture")
        if self.enlarged:
            lines.append(f"{self.enlarged} pictures are smaller than their bucket and will be enlarged")
        lines.append("buckets (height x width in px)")
        lines += [f"  {size:>9} {count:>9}" + ("  few" if count < _FEW else "") for size, count in self.buckets.items()]
        if any(count < _FEW for count in self.buckets.values()):
            lines.append(
                "  A batch takes pictures of one bucket: of a few it has fewer than batch_size, and counts for so much "
                "less. All are trained on; with multi_aspect=false batches would be full"
            )
        lines.append(f"{self.shards} shards, about {in_units(self.bytes)}; {in_units(self.free)} are free")
        return printable("\n".join(lines))

    def _unused(self) -> dict[str, list[str]]:
        """Why -> names."""
        out: dict[str, list[str]] = {}
        for name, why in self.unused:
            out.setdefault(why, []).append(name)
        return out

    def write(self, folder: Path) -> None:
        """Write report.txt and report.json."""
        save_json(asdict(self), folder / "report.json")
        with replacing(folder / "report.txt") as temporary:
            temporary.write_text(self.text() + "\n", "utf-8")


def _first(texts: Iterable[str]) -> list[str]:
    """Lines of as many as are named."""
    every = list(texts)
    more = [f"    … and {len(every) - _NAMED} more, see report.json"] if len(every) > _NAMED else []
    return [f"    {text}" for text in every[:_NAMED]] + more


def left_out(sources: list[Source], findings: list[Finding]) -> dict[str, list[tuple[str, str]]]:
    """Problem -> name and why of every picture that has it; in the order of PROBLEMS."""
    out: dict[str, list[tuple[str, str]]] = {problem: [] for problem in PROBLEMS}
    for source, finding in zip(sources, findings, strict=True):
        if finding.problem:
            out[finding.problem].append((source.name, finding.why))
    return {problem: entries for problem, entries in out.items() if entries}


def count_buckets(findings: list[Finding]) -> dict[str, int]:
    """Usable pictures of each size."""
    counts = Counter(finding.bucket for finding in findings if not finding.problem)
    return {f"{height}x{width}": count for (height, width), count in sorted(counts.items())}
