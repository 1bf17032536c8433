"""Nodes that several templates have alike."""

from __future__ import annotations

from .layout import NARROWEST, Column, Group, Node, note
from .weights import NANO, File, Weights

LOADERS, PROMPT, SAMPLER, DECODE, RESULT = 250, 260, 240, NARROWEST, 280
"""Widths of the columns."""
NARROW = 245
"""Width of six columns beside one another: with it their text can still be read as they open at 1366 x 768."""
NOTE = 130
"""How much wider than its column the note is: up to the minimap, which covers the lower right corner."""


def loader(kind: str, widget: str, chosen: str | File, height: int, **widgets) -> Node:
    """A loader with its file; one that has to be downloaded is offered by ComfyUI's dialog."""
    name, models = (chosen.name, (chosen.as_model(),)) if isinstance(chosen, File) else (chosen, ())
    return Node(f"PixArtDelta{kind}", height, {widget: name, **widgets}, models=models)


class Loaded:
    """The loaders of a template, below one another."""

    def __init__(self, weights: Weights, model: str | File, quantization: str = "none"):
        self.weights = weights
        self.files = [file for file in (model, weights.text_encoder, weights.vae) if isinstance(file, File)]
        self.model = loader("ModelLoader", "model_name", model, 194)
        self.clip = loader(
            "TextEncoderLoader", "text_encoder_name", weights.text_encoder, 178, quantization=quantization
        )
        self.vae = loader("VAELoader", "vae_name", weights.vae, 100)
        self.nodes = [self.model, self.vae, self.clip]

    def more(self, kind: str, widget: str, chosen: str | File, height: int) -> Node:
        """One more loader."""
        self.files += [chosen] if isinstance(chosen, File) else []
        node = loader(kind, widget, chosen, height)
        self.nodes.append(node)
        return node

    def column(self, *below: Group) -> Column:
        return Column(LOADERS, [Group("Load", "blue", self.nodes), *below])


def text(loaded: Loaded, prompt: str, **widgets) -> Node:
    """The prompt, with the model's own null caption if a widget asks for it."""
    links = {"clip": loaded.clip["CLIP"]}
    if widgets.get("unconditional") == "learned null caption":
        links["model"] = loaded.model["MODEL"]
    return Node("PixArtDeltaTextEncode", 330, {"prompt": prompt, **widgets}, links)


def size(weights: Weights, width: int = 0, height: int = 0, batch: int = 1) -> Node:
    """The size of the picture; the square of the weights as it stands."""
    values = {
        "width": width or weights.side,
        "height": height or weights.side,
        "bins": weights.bins,
        "batch_size": batch,
    }
    return Node("PixArtDeltaResolution", 238, values)


def asked(prompt: Node, shape: Node) -> Group:
    """The prompt and, below it, the size."""
    shape.down = 16  # in the classic canvas a badge stands above its title, where the prompt's last widget ends
    return Group("Prompt", "green", [prompt, shape])


def lcm(model, positive, latent, seed: int, **widgets) -> Node:
    """Our sampler, with room for its preview."""
    links = {"model": model, "positive": positive, "latent_image": latent}
    return Node("PixArtDeltaLCMSampler", 460, {"seed": seed, **widgets}, links)


def ksampler(model, positive, negative, latent, seed: int) -> Node:
    """The stock sampler as the base model takes it."""
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    values = {
        "seed": seed,
        "steps": 14,
        "cfg": 4.5,
        "sampler_name": "dpmpp_2m",
        "scheduler": "sgm_uniform",
        "denoise": 1.0,
    }
    return Node("KSampler", 512, values, links)


def decode(samples: Node, loaded: Loaded, **more) -> Node:
    return Node("VAEDecode", 56, {}, {"samples": samples["LATENT"], "vae": loaded.vae["VAE"]}, **more)


def save(decoded: Node, prefix: str, height: int = 330) -> Node:
    return Node("SaveImage", height, {"filename_prefix": f"pixart_delta/{prefix}"}, {"images": decoded["IMAGE"]})


def stacked(title: str, decoded: Node, shown: Node) -> Group:
    """Decoded and, below it, shown or saved: where there is no room for a column of each."""
    shown.down = 16  # for the link between both, which turns back there
    return Group(title, "cyan", [decoded, shown])


def result(decoded: Node, saved: Node, about: Node) -> list[Column]:
    """The last two columns: decoded, saved, and the note below both."""
    about.wide, about.down = NOTE, saved.height - decoded.height - 24
    return [
        Column(DECODE, [Group("Save", "cyan", [decoded]), Group("", "", [about])]),
        Column(RESULT, [Group("", "", [saved])], down=40),
    ]


_NANO = (
    "As shipped this runs the small *nano* model that comes with the extension: 256 px landscapes from prompts such as "
    "the one here (time of day; mountains in green, blue, red, grey or white; lake, meadow, desert or snow; up to two "
    "houses, three tents or boats, five trees or sheep, left or right of one another; clouds, a rainbow, northern "
    "lights, balloons; sun or moon left or right)."
)


def about(title: str, says: str, loaded: Loaded, height: int, real: str = "") -> Node:
    """The note of a template: what it does, then what to download, or where the same is with the released weights."""
    if loaded.weights is NANO:
        more = f"For real pictures open the template *{real}*, which offers the downloads." if real else ""
        return note(title, f"{says}\n\n{_NANO}\n\n{more}\n", height)
    files = "\n".join(file.line() for file in loaded.files)
    return note(
        title,
        f"{says}\n\n## Downloads\n\nComfyUI offers what is missing when this opens; or by hand:\n\n{files}\n\nThen "
        f"press "
        "**R**. Nobody could try these addresses, nor draw a picture with these weights, where this was made: if a "
        "file has "
        "moved, choose it in its loader under any name.\n",
        height,
    )
