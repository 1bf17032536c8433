"""Everything of ours that touches ComfyUI's internals: its MODEL, CLIP, VAE and samplers around `pixart_core`.

The models are ComfyUI's own types under ComfyUI's own memory management, so that its samplers, LoRA loaders, hooks,
previews and offloading work on them. Nothing here changes ComfyUI: no registration, no patching of its modules.
"""
