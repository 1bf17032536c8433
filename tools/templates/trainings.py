"""Templates that train, and the one that uses what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from .layout import Column, Group, Node, Template, note
from .pictures import named
from .pieces import PROMPT, SAMPLER, decode, lcm, loader, result, save, size, text
from .weights import HUB, NANO, RELEASED

_QUICK = "seed=0\nwarmup_steps=5\nadam_beta2=0.99\nadam_epsilon=1e-8\nclip_norm=1.0\nlog_every=1"


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
    yield use_trained()


def training(number: int, name: str, kind: str, job: str, says: str, hints: bool = False, **own) -> Template:
    values = {
        "folder": "bundled/nano scenes",
        "models": "bundled/nano",
        "name": "nano scenes with edges" if hints else "nano scenes",
        "resolution": 128,
        "hints": NANO.hed if hints else "none",
    }
    dataset = Node("PixArtDeltaDataset", 610, values)
    settings = {
        "base": NANO.base,
        "name": job,
        "steps": 90,
        "batch_size": 8,
        "samples_with": "bundled/nano",
        "sample_every": 30,
        "precision": "fp32",
        "checkpoint_every": 30,
        "more_settings": _QUICK,
        **own,
    }
    train = Node(f"PixArtDelta{kind}", 610, settings, {"dataset": dataset["dataset"]})
    status = Node("PixArtDeltaTrainingStatus", 230, {}, {"job": train["job"]})
    pictures = Node("PreviewImage", 270, {}, {"images": dataset["pictures"]}, title="Pictures")
    loss = Node("PreviewImage", 330, {}, {"images": status["loss"]}, title="Loss")
    samples = Node("PreviewImage", 400, {}, {"images": status["samples"]}, title="Samples")
    columns = [
        Column(280, [Group("Dataset", "blue", [dataset])]),
        Column(290, [Group("Train", "purple", [pictures, train])]),
        Column(
            280, [Group("Watch", "yellow", [status]), Group("", "", [note(name, _training_note(says, hints), 560)])]
        ),
        Column(330, [Group("", "", [loss, samples])], down=40),
    ]
    return Template(named(number, name), columns)


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
    trained = Node("PixArtDeltaTrainedResult", 230, {})
    clip = loader("TextEncoderLoader", "text_encoder_name", NANO.text_encoder, 186)
    vae = loader("VAELoader", "vae_name", NANO.vae, 104)

    loaded = SimpleNamespace(model=trained, clip=clip, vae=vae)
    prompt, shape = text(loaded, NANO.prompts[0]), size(NANO, batch=4)
    sampler = lcm(trained["MODEL"], prompt["positive"], shape["latent"], 7)
    decoded = decode(sampler, loaded)
    saved = save(decoded, "trained")
    says = (
        "Train first (the templates 20 to 22), wait for its end or stop it in the panel, which saves, and press "
        "**Run**: the "
        "newest result is loaded.\n\n* **LCD**, **LCM-LoRA**: they draw in 4 steps, as here.\n* **Fine-tuned** models "
        "are base "
        "models: take the sampler of *PixArt 05*.\n* **ControlNet**: MODEL is its base; CONTROL_NET goes into *Apply "
        "ControlNet*, as in *PixArt 16*.\n\nFor results of the real model choose its text encoder and autoencoder, "
        "*bins* 1024 "
        "and the size, as in *PixArt 02*.\n"
    )
    remark = note(name, says, 300)
    columns = [
        Column(250, [Group("Load", "blue", [trained, vae, clip])]),
        Column(PROMPT, [Group("Prompt", "green", [prompt, shape])]),
        Column(SAMPLER, [Group("Sample", "purple", [sampler])]),
        *result(decoded, saved, remark),
    ]
    return Template(named(30, name), columns)
