"""Trained CosPlace and EigenPlaces models through `torch.hub`, from GitHub or from a clone."""

from torch import nn

dependencies = ["torch", "torchvision"]


def get_trained_model(backbone: str = "ResNet50", fc_output_dim: int = 2048, method: str = "cosplace") -> nn.Module:
    """Return a released model in evaluation mode: photos (B, 3, H, W), normalised -> unit (B, D).

    method: "cosplace" or "eigenplaces".  CosPlace models exist for VGG16 (64 to 512 dimensions), ResNet18 (32 to 512),
    ResNet50, ResNet101 and ResNet152 (32 to 2048), EigenPlaces models for VGG16 (512), ResNet18 (256, 512), ResNet50
    and ResNet101 (128 to 2048), in powers of two.  The weights are fetched once, then read from the cache.

    >>> model = torch.hub.load("gmberton/cosplace", "get_trained_model", backbone="ResNet50", fc_output_dim=2048)
    """
    # Imported late because torch.hub reads this file for its list of entry points before anything is asked for.
    from cosplace.models.opening import released_network

    return released_network(backbone, fc_output_dim, method)
