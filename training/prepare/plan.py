"""Which pictures go into which shard: a function of the sorted list of usable pictures, not of who makes the shard."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pixart_core.saving import save_json
from ...pixart_core.textfile import read_json
from ..data.shards import ShardInfo, hash_file
from .sources import Source
from .survey import Finding


@dataclass(frozen=True)
class PlannedShard:
    """A shard to make."""

    name: str
    bucket: tuple[int, int]
    """Height, width in px."""
    first: int
    """Number of its first picture within the bucket."""
    entries: list[tuple[Source, Finding]]

    def state(self, identity: dict[str, Any]) -> str:
        """Names everything that decides what is in it."""
        told = [identity, self.first, [(source.name, finding.content) for source, finding in self.entries]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def finished(self, folder: Path, state: str, thorough: bool) -> ShardInfo | None:
        """The shard, if it is there and was made from the same things.

        Args:
            thorough: read it all, to compare the checksum.
        """
        try:
            record = read_json(_record(folder, self.name))
            info = ShardInfo(**{**record["shard"], "bucket": tuple(record["shard"]["bucket"])})
            whole = record["state"] == state and (folder / self.name).stat().st_size == info.bytes
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return info if whole and (not thorough or hash_file(folder / self.name) == info.sha256) else None

    def finish(self, folder: Path, state: str, info: ShardInfo) -> None:
        """Note that it is made; `NAME.json` beside it."""
        save_json({"state": state, "shard": vars(info)}, _record(folder, self.name))


def plan_shards(sources: list[Source], findings: list[Finding], size: int) -> list[PlannedShard]:
    """Shards of up to `size` pictures of one bucket each, in the order of the buckets and of the pictures' names."""
    usable: dict[tuple[int, int], list[tuple[Source, Finding]]] = {}
    for source, finding in zip(sources, findings, strict=True):
        if not finding.problem:
            usable.setdefault(finding.bucket, []).append((source, finding))
    return [
        PlannedShard(f"{height}x{width}_{start // size:05d}.tar", (height, width), start, entries[start : start + size])
        for (height, width), entries in sorted(usable.items())
        for start in range(0, len(entries), size)
    ]


def remove_others(folder: Path, shards: list[PlannedShard]) -> None:
    """Remove shards of an earlier preparation that are no part of this one."""
    wanted = {shard.name for shard in shards}
    for file in folder.glob("*x*_[0-9][0-9][0-9][0-9][0-9].tar"):
        if file.name not in wanted:
            _record(folder, file.name).unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def _record(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
