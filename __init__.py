"""PixArt-δ for ComfyUI. Importing this costs nothing: the nodes are loaded when ComfyUI asks for them."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """ComfyUI's V3 entry point."""
    from .nodes import PixArtDeltaExtension

    return PixArtDeltaExtension()
