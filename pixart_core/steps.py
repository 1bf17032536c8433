"""The networks of one sampling, called step after step: what its prompt and its size fix is computed once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .controlnet import ControlNetTransformer
from .graphs import Graphs
from .layers import Conditions
from .model import PixArt


@dataclass(frozen=True)
class Control:
    """A ControlNet's part in a sampling."""

    network: ControlNetTransformer
    hint: Tensor
    """(B, in_channels, h, w): latent of the edge map."""
    strength: float
    active: Sequence[bool]
    """Which steps it acts in."""


class Steps:
    """What `sampling.guided` calls as predictor: once for each step of one sampling, in their order.

    Args:
        transformer: the model.
        timesteps: of the steps, first to last.
        control: None = none.
        graphs: replays what was captured of an earlier call; None = every kernel is launched.
    """

    def __init__(
        self,
        transformer: PixArt,
        timesteps: Sequence[int],
        control: Control | None = None,
        graphs: Graphs | None = None,
    ):
        self.transformer, self.timesteps, self.control, self.graphs = transformer, timesteps, control, graphs
        self._done = 0
        self._conditions: list[Conditions] = []
        self._keys_values: tuple[Tensor, ...] = ()
        self._states: dict[int, Hashable | None] = {}

    def __call__(self, noisy: Tensor, timestep: Tensor, caption: Tensor, caption_mask: Tensor | None) -> Tensor:
        """noisy (B, in_channels, h, w), timestep (B,), of the step that is due -> as `PixArt.forward`."""
        if not self._conditions:
            self._conditions = self.transformer.embed_steps(noisy, self.timesteps, caption, caption_mask)
        cond, step = self._conditions[self._done], self._done
        self._done += 1
        control = self.control if self.control is not None and self.control.active[step] else None
        hint: Tensor | None = None
        keys_values: tuple[Tensor, ...] = ()
        if control is not None:
            hint = control.hint.repeat(len(noisy) // len(control.hint), 1, 1, 1)
            self._keys_values = self._keys_values or control.network.keys_values(cond.caption)
            keys_values = self._keys_values

        # All that changes from call to call comes as an argument, because a graph replays on copies of these.
        def predict(
            noisy: Tensor,
            timestep: Tensor,
            time: Tensor,
            modulation: Tensor,
            caption: Tensor,
            projected: Tensor,
            mask: Tensor | None,
            hint: Tensor | None,
            *keys: Any,
        ) -> Tensor:
            own, others = keys[: len(self.transformer.blocks)], keys[len(self.transformer.blocks) :]
            now = replace(cond, time=time, modulation=modulation, caption=projected, mask=mask, keys_values=own)
            residuals = None
            if control is not None:
                residuals = control.network(
                    self.transformer, noisy, timestep, caption, hint, conditions=now, keys_values=others
                )
                residuals = [None if each is None else control.strength * each for each in residuals]
            return self.transformer(noisy, timestep, caption, control=residuals, conditions=now)

        values = (noisy, timestep, cond.time, cond.modulation, caption, cond.caption, cond.mask, hint)
        inputs: tuple[Any, ...] = (*values, *(cond.keys_values or ()), *keys_values)
        if self.graphs is None:
            return predict(*inputs)
        if control is None:
            return self.graphs("step", predict, inputs, self._state(self.graphs, self.transformer))
        state = self._state(self.graphs, self.transformer, control.network)
        return self.graphs("controlled step", predict, inputs, state, control.strength)

    def _state(self, graphs: Graphs, *networks: nn.Module) -> Hashable | None:
        """The state of the transformer, or of both networks: it does not change within a sampling."""
        if len(networks) not in self._states:
            self._states[len(networks)] = graphs.state(networks)
        return self._states[len(networks)]
