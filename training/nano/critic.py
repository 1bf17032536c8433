"""A small critic, trained beside an autoencoder: it tells drawn patches from decoded ones, so that these get crisp.

A PatchGAN (Isola et al., arXiv:1611.07004) with hinge losses, weighed against the reconstruction by the gradients of
the decoder's last layer (Esser et al., arXiv:2012.09841, eq. 7).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST = 1.0
"""Limit of the weight: at the beginning the critic's gradient is nearly nothing."""


class Critic(nn.Module):
    """Pictures (B, 3, H, W) in −1 … 1 -> how drawn each patch of about 22 px looks, (B, 1, h, w)."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)


class Judge:
    """A critic with its optimizer.

    Args:
        device: where pictures are.
        share: of the critic's gradient in the decoder's last layer, against the reconstruction's.
        learning_rate: of the critic.
    """

    def __init__(self, device: torch.device, share: float, learning_rate: float = 4e-4):
        self.critic, self.share = Critic().to(device), share
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), lr=learning_rate, betas=(0.5, 0.99))

    def learn(self, decoded: Tensor, drawn: Tensor) -> None:
        """A step of the critic on pictures (B, 3, H, W) of both kinds, cut off from what made them."""
        loss = F.relu(1 - self.critic(drawn)).mean() + F.relu(1 + self.critic(decoded)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def loss(self, decoded: Tensor, reconstruction: Tensor, last: Tensor) -> Tensor:
        """What the decoder has to add to the loss `reconstruction`; `last` is the weight of its last layer."""
        self.critic.requires_grad_(False)
        fooled = -self.critic(decoded).mean()
        self.critic.requires_grad_(True)
        ours, theirs = (
            torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (reconstruction, fooled)
        )
        return self.share * (ours / (theirs + 1e-6)).clamp(max=_LARGEST).detach() * fooled

    def state_dict(self) -> dict:
        """What a stopped training goes on from."""
        return {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
