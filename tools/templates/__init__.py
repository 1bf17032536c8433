"""The bundled workflows, said once: what is in them (the other files here) and where it stands (layout.py)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from .layout import Template


def bundled() -> Iterator[Template]:
    """Every template that is made here."""
    from . import control, live, pictures, trainings

    return itertools.chain(pictures.templates(), control.templates(), live.templates(), trainings.templates())
