"""Templates that train, and the one that uses what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from .layout import Column, Group, Node, Template, note
from .pictures import named
from .pieces import NARROW, PROMPT, SAMPLER, asked, decode, ksampler, lcm, loader, result, save, size, stacked, text
from .weights import HUB, RELEASED, SMALL

_TRAINING = 800
"""Height of a training node, with room for the longest text that it shows of its job."""
_QUICK = "seed=0\nwarmup_steps=5\nadam_beta2=0.99\nadam_epsilon=1e-8\nclip_norm=1.0\nlog_every=1"


_SCENES = (
    "a sailing boat on a calm lake, red mountains",
    "a small red house on a grassy field, blue mountains",
    "three trees on deep snow, grey mountains",
    "a desert, green hills",
)
_TIMES = (
    "by day, the sun on the left",
    "at daybreak, the sun on the right",
    "at sunset, the sun on the left",
    "at night, the moon on the right",
)
_PROMPTS = [f"{scene}, {time}" for scene in _SCENES for time in _TIMES]
"""What a base draws to be made fast."""


def templates() -> Iterator[Template]:
    yield training(
        20,
        "Train LCD",
        "TrainLCD",
        "nano LCD",
        "Distils a base model into one that draws in 4 steps.",
        learning_rate=0.0003,
        guidance=3.0,
    )
    yield training(
        21,
        "Train LCM-LoRA",
        "TrainLCMLora",
        "nano LCM-LoRA",
        "Distils a base model into a LoRA for 4 steps.",
        learning_rate=0.001,
        guidance=3.0,
        lora_rank=4,
    )
    yield training(
        22,
        "Train ControlNet",
        "TrainControlNet",
        "nano ControlNet",
        "Trains a ControlNet on the edges of pictures.",
        hints=True,
        learning_rate=0.0005,
        copy_blocks=1,
    )
    yield make_fast()
    yield teach()
    yield use_trained()
    yield watch_it_learn()


def training(number: int, name: str, kind: str, job: str, says: str, hints: bool = False, **own) -> Template:
    values = {"name": "nano scenes with edges" if hints else "nano scenes", "hints": SMALL.hed if hints else "none"}
    dataset = scenes(610, **values)
    settings = quick(name=job, steps=90, batch_size=8, **own)
    height = _TRAINING + 24 * ("lora_rank" in own)  # one input more
    train = Node(f"PixArtDelta{kind}", height, settings, {"dataset": dataset["dataset"]})
    pictures = Node("PreviewImage", 270, {}, {"images": dataset["pictures"]}, title="Pictures")
    status, loss, samples = watch(train)
    columns = [
        Column(280, [Group("Dataset", "blue", [dataset])]),
        Column(290, [Group("Train", "purple", [train])]),
        Column(290, [Group("Watch", "yellow", [status]), Group("", "", [pictures])]),
        Column(330, [Group("", "", [loss, samples])], down=40),
        Column(280, [Group("", "", [note(name, _training_note(says, hints), 560)])], down=40),
    ]
    return Template(named(number, name), columns)


def scenes(height: int, **values) -> Node:
    """The bundled pictures."""
    common = {"folder": "bundled/nano scenes", "models": "bundled/nano", "resolution": 128}
    return Node("PixArtDeltaDataset", height, common | values)


def quick(**own) -> dict:
    """Settings of a training that takes a minute or two."""
    common = {
        "base": SMALL.base,
        "samples_with": "bundled/nano",
        "sample_every": 30,
        "precision": "fp32",
        "checkpoint_every": 30,
        "more_settings": _QUICK,
    }
    return common | own


def watch(train: Node) -> tuple[Node, Node, Node]:
    """Its status, loss and samples."""
    status = Node("PixArtDeltaTrainingStatus", 256, {}, {"job": train["job"]})
    loss = Node("PreviewImage", 330, {}, {"images": status["loss"]}, title="Loss")
    samples = Node("PreviewImage", 340, {}, {"images": status["samples"]}, title="Samples")
    return status, loss, samples


def make_fast() -> Template:
    name = "Make Your Model Fast"
    values = {
        "base": SMALL.base,
        "prompts": "\n".join(_PROMPTS),
        "models": "bundled/nano",
        "name": "drawn by the base",
        "resolution": 128,
        "draws": 4,
        "more_settings": "max_tokens=40",
    }
    dataset = Node("PixArtDeltaPromptDataset", 640, values)
    own = {"name": "fast without pictures", "steps": 90, "batch_size": 8, "learning_rate": 0.001, "guidance": 3.0}
    train = Node(
        "PixArtDeltaTrainLCMLora",
        _TRAINING + 24,
        quick(lora_rank=4, **own),
        {"dataset": dataset["dataset"]},
        title="LCM-LoRA",
    )
    status, loss, samples = watch(train)
    says = (
        "A base model becomes a fast one without any pictures. It draws for the prompts itself, in 14 steps with "
        "guidance, and a LoRA learns to do the same in 4. Press **Run**: as shipped for a few minutes on the bundled "
        "*nano* model. The pictures are those that the model can draw already, in fewer steps: to teach it new ones, "
        "see *PixArt 24*. *lora*: a style that the fast model shall have, too. Draw with the result in *PixArt 30*.\n\n"
        "## On the real model\n\n*prompts*: some hundreds, of the kind that you draw. *models*, *resolution* 1024, "
        f"*base* [{RELEASED.base.name}]({HUB}/{RELEASED.base.repository}) or your own fine-tuned base, an empty "
        "*more_settings*. It draws 14 steps for each picture first: on a large card some seconds.\n"
    )
    columns = [
        Column(290, [Group("Prompts", "blue", [dataset])]),
        Column(290, [Group("Train", "purple", [train])]),
        Column(280, [Group("Watch", "yellow", [status]), Group("", "", [note(name, says, 560)])]),
        Column(330, [Group("", "", [loss, samples])], down=40),
    ]
    return Template(named(23, name), columns)


def teach() -> Template:
    name = "Teach It Your Pictures"
    dataset = scenes(560, name="your pictures")
    pictures = Node("PreviewImage", 220, {}, {"images": dataset["pictures"]}, title="Pictures")
    own = {"name": "taught", "steps": 200, "batch_size": 8, "learning_rate": 0.001, "lora_rank": 8}
    train = Node("PixArtDeltaFineTune", _TRAINING, quick(sample_every=50, **own), {"dataset": dataset["dataset"]})
    status = Node("PixArtDeltaTrainingStatus", 238, {}, {"job": train["job"]})
    samples = Node("PreviewImage", 188, {}, {"images": status["samples"]}, title="Samples")
    trained = Node("PixArtDeltaTrainedResult", 340, {}, {"job": train["job"]})
    clip = loader("TextEncoderLoader", "text_encoder_name", SMALL.text_encoder, 186)
    vae = loader("VAELoader", "vae_name", SMALL.vae, 104)
    loaded = SimpleNamespace(model=trained, clip=clip, vae=vae)
    prompt, shape = text(loaded, SMALL.prompts[1], unconditional="learned null caption"), size(SMALL)
    sampler = ksampler(trained["MODEL"], prompt["positive"], prompt["negative"], shape["latent"], 5)
    decoded = decode(sampler, loaded)
    saved = save(decoded, "taught", 300)
    says = (
        "Teaches a base model your own pictures. Put them, each with a caption in a text file of the same name, in a "
        "folder in *input*, press **R**, and choose it as *folder*. Twenty of one style, person or thing are enough. A "
        "*trigger* word before every caption (`trigger=…` in *more_settings* of the dataset) gives it a name to call "
        "it by.\n\nPress **Run**: *Fine-Tune* learns a LoRA in the background, as shipped for some minutes; *Samples* "
        "shows it learn. When it is done (or "
        "stopped in the panel, which saves), **Run** again: *Use Trained Result* draws your own prompt with it. Until "
        "then what is behind it waits. Its *strength* says how much. Then make it fast: *PixArt 23*, with this LoRA as "
        "*lora*.\n"
    )
    columns = [
        Column(NARROW, [Group("Your pictures", "blue", [dataset]), Group("", "", [note(name, says, 270)])]),
        Column(NARROW, [Group("Teach", "purple", [train])]),
        Column(NARROW, [Group("Watch", "yellow", [status]), Group("Use", "red", [trained, clip])]),
        Column(NARROW, [asked(prompt, shape), Group("", "", [pictures])]),
        Column(NARROW, [Group("Sample", "purple", [sampler, vae]), Group("", "", [samples])]),
        Column(NARROW, [stacked("Save", decoded, saved)], down=40),
    ]
    return Template(named(24, name), columns)


def _training_note(says: str, hints: bool) -> str:
    edges = (
        f"\n\nThe edges: `ControlNetHED.pth` of [{RELEASED.hed.repository}]({HUB}/{RELEASED.hed.repository})."
        if hints
        else ""
    )
    return (
        f"{says} Press **Run**: as shipped for a minute or two on the bundled *nano* model and 48 drawn landscapes, "
        f"enough to "
        "see everything work, too little to be good.\n\nIt is a process of its own: close the browser, make pictures, "
        "restart "
        "ComfyUI; it goes on. **The chart symbol in the sidebar** opens its panel: stop, pause, resume, samples. "
        "**Run** again "
        "refreshes what is shown here; nothing is started twice.\n\n## On the real model\n\nPictures, each with its "
        "caption in "
        "a text file of the same name, into a folder in *input*. Then *folder*, *models* and *resolution* 1024, *base* "
        f"[{RELEASED.base.name}]({HUB}/{RELEASED.base.repository}), and an empty *more_settings*. *models* is the "
        f"whole folder "
        f"[PixArt-XL-2-1024-MS]({HUB}/PixArt-alpha/PixArt-XL-2-1024-MS) in `models/pixart_delta/`. *estimate only* "
        f"says first "
        f"what it takes.{edges}\n"
    )


def use_trained() -> Template:
    name = "Use What You Trained"
    trained = Node("PixArtDeltaTrainedResult", 340, {})
    clip = loader("TextEncoderLoader", "text_encoder_name", SMALL.text_encoder, 186)
    vae = loader("VAELoader", "vae_name", SMALL.vae, 104)

    loaded = SimpleNamespace(model=trained, clip=clip, vae=vae)
    prompt, shape = text(loaded, SMALL.prompts[0]), size(SMALL, batch=4)
    sampler = lcm(trained["MODEL"], prompt["positive"], shape["latent"], 7)
    decoded = decode(sampler, loaded)
    saved = save(decoded, "trained")
    says = (
        "Train first (the templates 20 to 23), then press **Run**. The newest result is loaded: of a training that "
        "has ended, or that you stopped in the panel, which saves.\n\n"
        "* **LCD**, **LCM-LoRA**: they draw in 4 steps, as here.\n* **Fine-tuned** models "
        "are base "
        "models: take the sampler of *PixArt 05*.\n* **ControlNet**: MODEL is its base; CONTROL_NET goes into *Apply "
        "ControlNet*, as in *PixArt 16*.\n\nFor results of the real model choose its text encoder and autoencoder, "
        "*bins* 1024 "
        "and the size, as in *PixArt 02*.\n"
    )
    remark = note(name, says, 300)
    columns = [
        Column(250, [Group("Load", "blue", [trained, vae, clip])]),
        Column(PROMPT, [asked(prompt, shape)]),
        Column(SAMPLER, [Group("Sample", "purple", [sampler])]),
        *result(decoded, saved, remark),
    ]
    return Template(named(30, name), columns)


def watch_it_learn() -> Template:
    name = "Watch It Learn"
    dataset = scenes(660, name="nano scenes")
    settings = quick(name="watched", steps=90, batch_size=8, learning_rate=0.0003, guidance=3.0) | {"sample_every": 15}
    train = Node("PixArtDeltaTrainLCD", 900, settings, {"dataset": dataset["dataset"]})
    trained = Node("PixArtDeltaTrainedResult", 340, {"follow": True}, {"job": train["job"]})
    clip = loader("TextEncoderLoader", "text_encoder_name", SMALL.text_encoder, 186)
    vae = loader("VAELoader", "vae_name", SMALL.vae, 104)
    loaded = SimpleNamespace(model=trained, clip=clip, vae=vae)
    prompt, shape = text(loaded, SMALL.prompts[0]), size(SMALL, batch=4)
    sampler = lcm(trained["MODEL"], prompt["positive"], shape["latent"], 7)
    sampler.after = "fixed"
    decoded = decode(sampler, loaded)
    shown = Node("PreviewImage", 330, {}, {"images": decoded["IMAGE"]}, title="Your prompt, so far")
    says = (
        "Press **Run** once. A training begins, and after each of its grids (*sample_every* 15 steps) it saves, *Use "
        "Trained Result* loads that, and **your prompt is drawn again** from the same noise (the seed is *fixed*). "
        "Nothing more to press: change the prompt while it learns. *follow* off stops that. Until the first result "
        "what is behind *Use Trained Result* waits.\n\nIt follows a training of yours, too: take the training nodes "
        "out, and write its id into *job*, or leave that empty for the newest. Each result is a checkpoint: for "
        "the real model choose a large *sample_every*.\n"
    )
    columns = [
        Column(NARROW, [Group("Dataset", "blue", [dataset])]),
        Column(NARROW, [Group("Train", "purple", [train])]),
        Column(NARROW, [Group("Follow", "red", [trained, clip, vae])]),
        Column(NARROW, [asked(prompt, shape), Group("", "", [note(name, says, 212, wide=120)])]),
        Column(NARROW, [Group("Sample", "purple", [sampler])]),
        Column(NARROW, [stacked("Show", decoded, shown)]),
    ]
    return Template(named(31, name), columns)
