"""Ways to damage a file: of any bytes, and of what each format is made of. Every one is decided by a `Random`.

`mutate` changes one file of a folder in place and says what it did.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.fuzz.text_mutations import bytes_mutation, json_lines, json_text
from tests.fuzz.weight_mutations import safetensors_mutation, torch_mutation


def mutate(folder: Path, pattern: str, rng: Random, canary: Path) -> str:
    """Damage one file of a folder, or, seldom, two; says which and how."""
    files = sorted(file for file in folder.rglob(pattern) if file.is_file())
    what = _damage(folder, files, rng, canary)
    files = [file for file in files if file.is_file()]
    if files and rng.random() < 0.2:
        file = rng.choice(files)
        data, how = bytes_mutation(file.read_bytes(), rng)  # its structure may be gone already
        file.write_bytes(data)
        what += f"; {file.relative_to(folder)}: {how}"
    return what


def _damage(folder: Path, files: list[Path], rng: Random, canary: Path) -> str:
    file = rng.choice(files)
    chance, where = rng.random(), file.relative_to(folder)
    if chance < 0.02:
        file.unlink()
        return f"{where}: missing"
    if chance < 0.04:
        file.unlink()
        file.mkdir()
        return f"{where}: a folder"
    if chance < 0.06:
        file.write_bytes(rng.choice(files).read_bytes())
        return f"{where}: another file"
    if file.suffix == ".safetensors":
        return f"{where}: {safetensors_mutation(file, rng)}"
    if file.suffix in (".pth", ".bin"):
        return f"{where}: {torch_mutation(file, rng, canary)}"
    by_format = {".json": json_text, ".jsonl": json_lines}.get(file.suffix, bytes_mutation)
    data, what = (by_format if rng.random() < 0.8 else bytes_mutation)(file.read_bytes(), rng)
    file.write_bytes(data)
    return f"{where}: {what}"
