"""Trained CosPlace and EigenPlaces models through `torch.hub`, from GitHub or from a clone."""

from torch import nn

dependencies = ["torch", "torchvision"]


def get_trained_model(backbone: str = "ResNet50", fc_output_dim: int = 2048, method: str = "cosplace") -> nn.Module:
    """Return a released model in evaluation mode: normalized images (B, 3, H, W) -> unit descriptors (B, D).

    method: "cosplace" or "eigenplaces".  CosPlace models exist for VGG16 (64 to 512 dimensions), ResNet18 (32 to 512),
    ResNet50, ResNet101 and ResNet152 (32 to 2048); EigenPlaces models for VGG16 (512), ResNet18 (256, 512), ResNet50
    and ResNet101 (128 to 2048); all in powers of two.  The weights are downloaded once, then read from the cache.

    >>> model = torch.hub.load("gmberton/cosplace", "get_trained_model", backbone="ResNet50", fc_output_dim=2048)
    """
    # Imported late: torch.hub also reads this file to list its entry points.
    from cosplace.models.opening import open_model
    from cosplace.models.zoo import released

    return open_model(released(backbone, fc_output_dim, method).name)
