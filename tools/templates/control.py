"""Templates in which the edges of a picture, or any other map of it, say where things are."""

from __future__ import annotations

from collections.abc import Iterator

from .layout import Column, Group, Node, Template
from .pictures import COTTAGE, LIGHTHOUSE, NULL, example, named
from .pieces import Loaded, about, decode, ksampler, lcm, result, save, size, text
from .weights import NANO, RELEASED, Weights


def templates() -> Iterator[Template]:
    yield from (edges(weights) for weights in (NANO, RELEASED))
    yield from (edges_of_base(weights) for weights in (NANO, RELEASED))
    yield any_hint()


class Controlled:
    """What the templates with a ControlNet have alike: everything but sampler and note."""

    def __init__(
        self, weights: Weights, model, picture: str, prompt: str, shape: tuple[int, int] = (0, 0), **text_widgets
    ):
        self.weights, self.loaded = weights, Loaded(weights, model)
        self.control = self.loaded.more("ControlNetLoader", "control_net_name", weights.control, 148)
        self.picture = self._picture(picture)
        self.prompt = text(self.loaded, prompt, **text_widgets)
        self.size = size(weights, *shape)
        self.hint = self._hint()
        links = {
            "positive": self.prompt["positive"],
            "negative": self.prompt["negative"],
            "control_net": self.control["CONTROL_NET"],
            "image": self.hint,
            "vae": self.loaded.vae["VAE"],
        }
        self.applied = Node("PixArtDeltaApplyControlNet", 252, {}, links)
        self.seen = Node("PreviewImage", 268, {}, {"images": self.hint}, title="What it follows")

    def _picture(self, name: str) -> Node:
        if self.weights is NANO:
            return example(name)
        return Node("LoadImage", 238, {"image": "example.png"})

    def _hint(self) -> tuple[Node, str]:
        """The edges of the picture, at the size that the new one has."""
        chosen = self.weights.hed
        links = {"image": self.picture["IMAGE"]}
        name, models = (chosen, ()) if self.weights is NANO else (chosen.name, (chosen.as_model(),))
        self.loaded.files += [] if self.weights is NANO else [chosen]
        side = 0 if self.weights is NANO else self.weights.side
        return Node("PixArtDeltaHEDPreprocessor", 220, {"hed_name": name, "resolution": side}, links, models=models)[
            "edges"
        ]

    def template(
        self, number: int, name: str, sampler: Node, says: str, real: str = "", prefix: str = "control"
    ) -> Template:
        decoded = decode(sampler, self.loaded)
        saved = save(decoded, prefix)
        apart = [] if self.loaded.model is self.control else [self.control]
        loaders = [node for node in self.loaded.nodes if node not in apart]
        # Load Image grows with its picture, out of any frame.
        framed = Group("Picture", "red", [self.picture]) if self.weights is NANO else Group("", "", [self.picture])
        columns = [
            Column(245, [Group("Load", "blue", loaders), framed]),
            Column(250, [Group("Prompt", "green", [self.prompt]), Group("Hint", "red", [*apart, self.hint[0]])]),
            Column(235, [Group("Control", "yellow", [self.applied, self.seen]), Group("Size", "green", [self.size])]),
            Column(235, [Group("Sample", "purple", [sampler])]),
            *result(decoded, saved, about(name, says, self.loaded, 330, real)),
        ]
        app = [(self.prompt, "prompt"), (self.applied, "strength"), (sampler, "seed")]
        return Template(named(number, name, self.weights), columns, (app, [saved]))


_STRENGTH = (
    "**strength** 1 is as trained, 0 is off; an **end_percent** of 0.5 leaves the second half of the steps free."
)
_OWN = "For your own picture put **Load Image** in the place of *Example Picture*."


def edges(weights: Weights) -> Template:
    name = "ControlNet with Edges in 4 Steps"
    parts = Controlled(weights, weights.student, COTTAGE, weights.prompts[3])
    sampler = lcm(parts.loaded.model["MODEL"], parts.applied["positive"], parts.size["latent"], 3)
    says = f"The new picture has the edges of the given one and the colours of the prompt. {_STRENGTH}"
    says += f" {_OWN}" if weights is NANO else ""
    return parts.template(14, name, sampler, says, named(14, name, RELEASED), "hed_controlnet")


def edges_of_base(weights: Weights) -> Template:
    name = "ControlNet on the Base Model"
    shape = weights.wide if weights is NANO else (0, 0)
    prompt = "a lighthouse to the left of two boats on a lake below red mountains at sunset, the sun on the left"
    parts = Controlled(weights, weights.base, LIGHTHOUSE, prompt, shape, unconditional=NULL)
    if weights is RELEASED:  # the file of the control holds its base, too
        base = parts.loaded.model
        parts.loaded.files.remove(weights.base)
        parts.loaded.nodes.remove(base)
        parts.loaded.model = parts.control
        parts.prompt.links["model"] = parts.control["MODEL"]
    model = parts.loaded.model["MODEL"]
    sampler = ksampler(model, parts.applied["positive"], parts.applied["negative"], parts.size["latent"], 5)
    says = f"The base model with guidance, as in the authors' demo: slower, and nearer to the prompt. {_STRENGTH}"
    says += f" {_OWN}" if weights is NANO else " The file of the ControlNet holds the base model, too."
    return parts.template(16, name, sampler, says, named(16, name, RELEASED), "hed_controlnet_base")


class AnyHint(Controlled):
    """Edges from ComfyUI's own Canny instead."""

    def _hint(self):
        values = {"low_threshold": 0.05, "high_threshold": 0.15}
        return Node("Canny", 96, values, {"image": self.picture["IMAGE"]})["IMAGE"]


def any_hint() -> Template:
    name = "ControlNet with Any Hint"
    parts = AnyHint(
        NANO,
        NANO.student,
        LIGHTHOUSE,
        "a lighthouse to the left of two boats on a lake below white mountains at night, the moon on the left",
        NANO.wide,
    )
    sampler = lcm(parts.loaded.model["MODEL"], parts.applied["positive"], parts.size["latent"], 8)
    says = (
        "What the picture follows may come from anywhere. Here from ComfyUI's own *Canny*, in its place from a depth, "
        "pose "
        "or scribble node of another pack, or from **Load Image** as it is. The ControlNet must know that kind of "
        "map: the "
        "bundled and the released one know soft edges, so that thin lines hold less well; the training templates make "
        "one of "
        "your own."
    )
    return parts.template(18, name, sampler, says, prefix="any_hint")
