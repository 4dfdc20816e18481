"""The exponential moving average of a network's weights: it changes less from batch to batch than the network.

Source: Polyak and Juditsky, 1992; for networks, Tarvainen and Valpola, "Mean teachers", NeurIPS 2017.
"""

import copy

import torch

from cosplace.models.network import GeoLocalizationNet


class WeightAverage:
    """The average of all weights and batch-norm statistics; `model` is a network with them, in evaluation mode.

    decay: weight of the average so far.  It starts smaller, so that the first weights do not stay in the average.
    """

    def __init__(self, model: GeoLocalizationNet, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: GeoLocalizationNet) -> None:
        """Include the present weights of the network."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (10 + self.num_updates))
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)
