"""The moving average of what is trained (torch's `swa_utils`): less noise than the last steps have.

The last weights of a run swing about a point that ranks better than any of them; their exponential
moving average lies nearer to it, for a copy of the trained parameters and no other cost. It begins
with the weights of the first step, which a long average would keep for longer than a short run
lasts: its decay grows from 2/11 to the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from slmrank.train.sharding import gathered, like
from slmrank.train.state import put_values, trained_values


class MovingAverage:
    """Of a network's trained parameters, after every step; with decay None nothing is averaged,
    and the weights are the last ones."""

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        named = {name: one for name, one in network.named_parameters() if one.requires_grad}
        self._network, self._names = network, list(named)
        self._trained = nn.ParameterList(named.values())
        self._average = None
        if decay is not None:

            def average_of(mean: Tensor, own: Tensor, steps: Tensor | int) -> Tensor:
                count = float(steps)
                return torch.lerp(mean, own, 1 - min(decay, (1 + count) / (10 + count)))

            self._average = AveragedModel(self._trained, avg_fn=average_of)

    def update(self) -> None:
        """Take the parameters of a step in; the first ones are the average."""
        if self._average is not None:
            self._average.update_parameters(self._trained)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network with the average for its weights; afterwards its own again."""
        if self._average is None:
            yield
            return
        own = trained_values(self._network)
        self.put()
        yield
        put_values(self._network, own)

    def put(self) -> None:
        """Give the network the average: every process has to ask."""
        values = self.values()
        if values is not None:
            put_values(self._network, values)

    def values(self) -> dict[str, Tensor] | None:
        """The average by name and whole, to be kept: every process has to ask."""
        if self._average is None:
            return None
        held = zip(self._names, self._average.parameters(), strict=True)
        return {name: gathered(one.detach()).clone() for name, one in held}

    def go_on(self, values: Mapping[str, Tensor] | None, steps: int) -> None:
        """Take up what `values` gave after so many steps."""
        if self._average is None or values is None:
            return
        with torch.no_grad():
            for name, one in zip(self._names, self._average.parameters(), strict=True):
                one.copy_(like(values[name], one))
        self._average.n_averaged.fill_(steps)
