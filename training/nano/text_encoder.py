"""Train the nano family's tokenizer and T5 encoder: transformers' T5EncoderModel, small, then frozen for good.

The encoder learns to fill in masked words of captions and to tell their attributes; both heads are thrown away.
The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...pixart_core.tokenizer import complete_tokenizer
from .learning import Learner, step_rng
from .worlds import WORLDS, World

MASKED_SHARE = 0.15
MAX_LENGTH = 64
"""Tokens of a caption; the longest of 4,000 have 30 in the first world and 49 in the second."""


def train_tokenizer(output: Path, vocabulary: int, captions: int, seed: int, world: World = WORLDS[1]):
    """A Unigram model with the ids of T5 (pad 0, end 1, unknown 2) and every printable ASCII character, so that no
    English prompt is unreadable. Saved for every version of transformers."""
    import sentencepiece

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "captions.txt")
        lines = [world.caption(world.pick(rng), rng) for _ in range(captions)]
        words = sorted({word.strip(",") for line in lines for word in line.split()})
        # A piece must occur in two different strings to become a candidate: so every word comes with two endings.
        text.write_text("\n".join(lines + [word + end for word in words for end in (",", ".")]), "utf-8")
        prefix = str(Path(folder, "spiece"))
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=prefix,
            model_type="unigram",
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            required_chars="".join(chr(code) for code in range(33, 127)),
            character_coverage=1.0,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        output.mkdir(parents=True, exist_ok=True)
        (output / "spiece.model").write_bytes(Path(prefix + ".model").read_bytes())
    return complete_tokenizer(output)


class Pretraining(nn.Module):
    """The encoder with the two heads that teach it."""

    def __init__(self, encoder, world: World):
        super().__init__()
        self.encoder, self.world = encoder, world
        width = encoder.config.d_model
        self.words = nn.Linear(width, encoder.config.vocab_size)
        self.attributes = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in world.values.items()})

    def forward(self, tokens: Tensor, mask: Tensor, scenes: list, mask_id: int) -> tuple[Tensor, Tensor]:
        """Loss, and the share of attributes told right. tokens, mask (B, L)."""
        hidden = (torch.rand(tokens.shape) < MASKED_SHARE) & mask.bool()
        states = self.encoder(tokens.masked_fill(hidden, mask_id), attention_mask=mask).last_hidden_state  # (B, L, C)
        loss = F.cross_entropy(self.words(states[hidden]), tokens[hidden])
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        right, said = [], [self.world.said(scene) for scene in scenes]
        for name, head in self.attributes.items():
            target = torch.tensor([self.world.values[name].index(each[name]) for each in said])
            loss = loss + F.cross_entropy(head(pooled), target)
            right.append((head(pooled).argmax(-1) == target).float().mean())
        return loss, torch.stack(right).mean()


def train(
    output: Path,
    steps: int,
    batch: int,
    learning_rate: float,
    width: int,
    layers: int,
    vocabulary: int,
    seed: int,
    world: int = 1,
):
    """Train and save `tokenizer/` and `text_encoder/` under `output`; prints a line every 200 steps."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    place = WORLDS[world]
    tokenizer = train_tokenizer(output / "tokenizer", vocabulary, 40_000, seed, place)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=width * 2,
        num_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
    )
    model = Pretraining(T5EncoderModel(config), place)
    learner = Learner(
        model, steps, learning_rate, weight_decay=0.01, beta2=0.999, clip=None, file=output / "text_encoder.pt"
    )
    while learner.step < steps:
        rng = step_rng(seed, learner.step)
        scenes = [place.pick(rng) for _ in range(batch)]
        encoded = tokenizer(
            [place.caption(scene, rng) for scene in scenes],
            padding=True,
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        loss, right = model(encoded.input_ids, encoded.attention_mask, scenes, tokenizer.unk_token_id)
        learner.update(loss)
        if learner.tells(200):
            print(
                f"step {learner.step} loss {loss.item():.4f} attributes right {100 * right.item():.1f} % "
                f"tokens {encoded.input_ids.shape[1]}",
                flush=True,
            )
            learner.save()
    model.encoder.save_pretrained(output / "text_encoder")


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano text_encoder`."""
    parser = argparse.ArgumentParser(prog="train.py nano text_encoder", description=__doc__)
    parser.add_argument("output", type=Path, help="pipeline folder that tokenizer/ and text_encoder/ go to")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", type=int, choices=WORLDS, default=1, help="whose captions are read")
    train(**vars(parser.parse_args(arguments)))
