"""Templates that draw: from a prompt, from a picture, under control."""

from __future__ import annotations

from collections.abc import Iterator

from .layout import NARROWEST, Column, Group, Node, Template, note
from .pieces import (
    DECODE,
    NARROW,
    PROMPT,
    SAMPLER,
    Loaded,
    about,
    asked,
    decode,
    ksampler,
    lcm,
    result,
    save,
    size,
    stacked,
    text,
)
from .weights import NANO, RELEASED, Weights

COTTAGE, LIGHTHOUSE = "cottage.png", "lighthouse.png"
STYLE = "bundled/nano 256 (sepia)"
NULL = "learned null caption"
_THE_COTTAGE = "a red house to the left of two fir trees on deep snow below"


def templates() -> Iterator[Template]:
    both = (NANO, RELEASED)
    yield from (text_to_image(weights) for weights in both)
    yield from (low_vram(weights) for weights in both)
    yield from (base_model(weights) for weights in both)
    yield from (loras(weights) for weights in both)
    yield image_to_image()
    yield inpainting()
    yield draft_and_pick()


def named(number: int, title: str, weights: Weights = NANO) -> str:
    """The name of a template; the one with the released weights has the next number."""
    return f"PixArt {number + (weights is RELEASED):02} {title}{weights.suffix}"


def text_to_image(weights: Weights) -> Template:
    name = "Text to Image in 4 Steps"
    loaded = Loaded(weights, weights.student)
    prompt, shape = text(loaded, weights.prompts[0]), size(weights)
    sampler = lcm(loaded.model["MODEL"], prompt["positive"], shape["latent"], 12)
    decoded = decode(sampler, loaded)
    saved = save(decoded, "text_to_image")
    says = "Press **Run**. An LCM model has its guidance built in: no cfg, no negative prompt, 4 steps (2 are faster)."
    columns = [
        loaded.column(),
        Column(PROMPT, [asked(prompt, shape)]),
        Column(SAMPLER, [Group("Sample", "purple", [sampler])]),
        *result(decoded, saved, about(name, says, loaded, 280, named(1, name, RELEASED))),
    ]
    app = ([(prompt, "prompt"), (shape, "width"), (shape, "height"), (sampler, "steps"), (sampler, "seed")], [saved])
    return Template(named(1, name, weights), columns, app)


def low_vram(weights: Weights) -> Template:
    name = "Text to Image under 8 GB"
    loaded = Loaded(weights, weights.student, quantization="8-bit")
    prompt, shape = text(loaded, weights.prompts[1]), size(weights)
    sampler = lcm(loaded.model["MODEL"], prompt["positive"], shape["latent"], 7)
    decoded = Node("VAEDecodeTiled", 152, {}, {"samples": sampler["LATENT"], "vae": loaded.vae["VAE"]})
    saved = save(decoded, "text_to_image_8bit")
    says = (
        "The text encoder is by far the largest part (T5-XXL: 9.5 GB in 16 bits). In **8-bit** it is read weight by "
        "weight "
        "into about 5 GB and leaves the device before sampling; *VAE Decode (Tiled)* keeps the last step small."
    )
    columns = [
        loaded.column(),
        Column(PROMPT, [asked(prompt, shape)]),
        Column(SAMPLER, [Group("Sample", "purple", [sampler])]),
        *result(decoded, saved, about(name, says, loaded, 280, named(3, name, RELEASED))),
    ]
    return Template(named(3, name, weights), columns)


def base_model(weights: Weights) -> Template:
    name = "Base Model in 14 Steps"
    loaded = Loaded(weights, weights.base)
    prompt = text(loaded, weights.prompts[2], unconditional=NULL)
    shape = size(weights, *weights.wide)
    sampler = ksampler(loaded.model["MODEL"], prompt["positive"], prompt["negative"], shape["latent"], 5)
    decoded = decode(sampler, loaded)
    saved = save(decoded, "base_model")
    says = (
        "The model that the 4-step one was distilled from, with guidance. *KSampler* with **dpmpp_2m**, "
        "**sgm_uniform**, 14 "
        "steps and cfg 4.5 is the authors' DPM-Solver++. *learned null caption* is what they steer away from; files in "
        "diffusers' layout have none: choose *negative prompt* for them."
    )
    columns = [
        loaded.column(),
        Column(PROMPT, [asked(prompt, shape)]),
        Column(SAMPLER, [Group("Sample", "purple", [sampler])]),
        *result(decoded, saved, about(name, says, loaded, 280, named(5, name, RELEASED))),
    ]
    return Template(named(5, name, weights), columns)


def loras(weights: Weights) -> Template:
    name = "LCM-LoRA and a Style LoRA" if weights is NANO else "LCM-LoRA on the Base Model"
    loaded = Loaded(weights, weights.base)
    fast = loaded.more("LoraLoader", "lora_name", weights.lora, 116)
    room = 280 if weights is NANO else 350  # for one file more to download than the others have
    loaded.nodes.remove(fast)
    fast.links["model"] = loaded.model["MODEL"]
    fast.title = "LCM-LoRA"
    style = Node(
        "PixArtDeltaLoraLoader",
        116,
        {"lora_name": STYLE, "strength": 0.8},
        {"model": fast["MODEL"]},
        title="Style LoRA",
    )
    last = style if weights is NANO else fast
    prompt, shape = text(loaded, weights.prompts[1]), size(weights)
    sampler = lcm(last["MODEL"], prompt["positive"], shape["latent"], 3)
    decoded = decode(sampler, loaded)
    saved = save(decoded, "loras")
    says = "The LCM-LoRA makes a base model draw in 4 steps, without guidance."
    if weights is NANO:
        says += (
            " Any LoRA of the base goes behind it: here one for the brown of old photographs (strength 0: without). "
            "Train your own with *PixArt-δ Fine-Tune* and a LoRA rank."
        )
    else:
        says += " Other LoRAs of the base go behind it, in one more *PixArt-δ LoRA Loader*."
    if weights is NANO:
        middle = [
            Column(250, [Group("LoRA", "yellow", [fast]), Group("Prompt", "green", [prompt])]),
            Column(230, [Group("Style", "yellow", [style]), Group("Size", "green", [shape])]),
        ]
    else:
        middle = [Column(PROMPT, [Group("LoRA", "yellow", [fast]), asked(prompt, shape)])]
    columns = [
        loaded.column(),
        *middle,
        Column(235, [Group("Sample", "purple", [sampler])]),
        *result(decoded, saved, about(name, says, loaded, room, named(7, "LCM-LoRA on the Base Model", RELEASED))),
    ]
    return Template(named(7, name, weights), columns)


def example(picture: str) -> Node:
    return Node("PixArtDeltaExamplePicture", 88, {"picture": picture})


_OWN = "For your own picture put **Load Image** in the place of *Example Picture* (sides of a multiple of 8)."


def image_to_image() -> Template:
    name = "Image to Image"
    loaded = Loaded(NANO, NANO.student)
    picture = example(COTTAGE)
    prompt = text(loaded, f"{_THE_COTTAGE} blue mountains at sunset, the sun on the right, clouds above")
    latent = Node("VAEEncode", 56, {}, {"pixels": picture["IMAGE"], "vae": loaded.vae["VAE"]})
    sampler = lcm(loaded.model["MODEL"], prompt["positive"], latent["LATENT"], 4, denoise=0.75)
    decoded = decode(sampler, loaded)
    saved = save(decoded, "image_to_image")
    says = (
        "The picture is the start instead of noise. **denoise** says how much of it is given up: 0.5 keeps the shapes "
        "and "
        f"changes the colours, 1 forgets it. {_OWN}"
    )
    columns = [
        loaded.column(Group("Picture", "red", [picture])),
        Column(PROMPT, [Group("Prompt", "green", [prompt]), Group("Start", "red", [latent])]),
        Column(SAMPLER, [Group("Sample", "purple", [sampler])]),
        *result(decoded, saved, about(name, says, loaded, 300)),
    ]
    return Template(named(11, name), columns, ([(prompt, "prompt"), (sampler, "denoise"), (sampler, "seed")], [saved]))


def inpainting() -> Template:
    name = "Inpainting"
    loaded = Loaded(NANO, NANO.student)
    picture = example(COTTAGE)
    white = Node("SolidMask", 118, {"value": 1.0, "width": NANO.side, "height": NANO.side}, title="All of the picture")
    prompt = text(loaded, f"{_THE_COTTAGE} white mountains at night, the moon on the right, clouds above")
    latent = Node("VAEEncode", 56, {}, {"pixels": picture["IMAGE"], "vae": loaded.vae["VAE"]})
    mask = Node("FeatherMask", 148, {"left": NANO.side // 2}, {"mask": white["MASK"]}, title="Less of it on the left")
    links = {"samples": latent["LATENT"], "mask": mask["MASK"]}
    masked = Node("SetLatentNoiseMask", 56, {}, links)
    sampler = lcm(loaded.model["MODEL"], prompt["positive"], masked["LATENT"], 2)
    decoded = decode(sampler, loaded)
    saved = save(decoded, "inpainting")
    says = (
        "Paints a part of a picture anew: here more and more of it from left to right. For your own picture put **Load "
        "Image** in the place of *Example Picture*, paint over the part (right-click, *Open in MaskEditor*), and "
        "connect "
        "its MASK to *Set Latent Noise Mask*."
    )
    columns = [
        loaded.column(Group("Picture", "red", [picture, white])),
        Column(250, [Group("Prompt", "green", [prompt]), Group("Part", "red", [latent, mask])]),
        Column(DECODE, [Group("Masked", "red", [masked])], down=380),
        Column(SAMPLER, [Group("Sample", "purple", [sampler])]),
        *result(decoded, saved, about(name, says, loaded, 300)),
    ]
    return Template(named(12, name), columns)


def draft_and_pick() -> Template:
    name = "Draft and Pick"
    loaded = Loaded(NANO, NANO.student)
    seed = Node("PrimitiveInt", 86, {"value": 21}, title="Seed of both", labels={"value": "seed"})
    prompt, shape = text(loaded, NANO.prompts[0]), size(NANO, batch=16)
    draft = lcm(loaded.model["MODEL"], prompt["positive"], shape["latent"], 21, steps=2)
    pick = Node("LatentFromBatch", 92, {"batch_index": 2}, {"samples": draft["LATENT"]}, title="Pick (from 0)")
    pick.labels["batch_index"] = "pick (from 0)"
    # From the draft and not from its noise: of that, four steps make another picture (docs/measured.md).
    drawn = lcm(loaded.model["MODEL"], prompt["positive"], pick["LATENT"], 21, steps=4, denoise=0.5)
    for sampler in (draft, drawn):
        sampler.links["seed"] = seed["INT"]
    drafts, decoded = (decode(node, loaded) for node in (draft, drawn))
    sheet = Node("PreviewImage", 380, {}, {"images": drafts["IMAGE"]}, title="16 drafts")
    saved = save(decoded, "draft_and_pick", 380)
    says = (
        "Sixteen drafts in **two** steps each; the one you pick is drawn on in **four** steps. Run, look, write the "
        "number of a draft into *Pick* (they count from 0, row by row; *length* 2 takes the next one, too), run again: "
        "the drafts come from memory. *denoise* 0.5 keeps the draft's composition, more changes it. A new seed gives "
        "sixteen others."
    )
    remark = note(name, says, 330, down=225)  # below what passes from column to column
    columns = [
        Column(NARROW, [Group("Load", "blue", loaded.nodes), Group("Size", "green", [shape])]),
        Column(NARROW, [Group("Prompt", "green", [prompt, seed])]),
        Column(NARROW, [Group("Draft", "purple", [draft])]),
        Column(NARROWEST, [Group("Sheet", "cyan", [drafts]), Group("Pick", "yellow", [pick]), Group("", "", [remark])]),
        Column(265, [Group("", "", [sheet]), Group("Sample", "purple", [drawn])]),
        Column(NARROW, [stacked("Save", decoded, saved)]),
    ]
    app = ([(prompt, "prompt"), (seed, "value"), (pick, "batch_index")], [sheet, saved])
    return Template(named(13, name), columns, app)
