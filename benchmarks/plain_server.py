"""The same service as usually written with FastAPI: one photo per forward pass, computed by all cores.

    python -m benchmarks.plain_server INPUTS PORT

INPUTS: a file of torch with the state dict of a ResNet-18 (`network`), the image size (`image_size`), and descriptors
(R, D) and ids of the photos of an index.  Photos are decoded with Pillow and resized with torchvision; descriptors are
computed by the network in plain PyTorch, and compared with all photos by one matrix product.
"""

import io
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from torchvision.transforms.functional import resize as resize_photo

from benchmarks.plain_network import PlainNetwork, normalize_photos

K = 20


class PlainLocalizer:
    """Photos in, the most similar photos of an index out."""

    def __init__(self, path: str) -> None:
        inputs = torch.load(path, weights_only=True)
        self.descriptors, self.ids = inputs["descriptors"].numpy(), inputs["ids"].tolist()  # (R, D), R
        self.image_size = inputs["image_size"]
        self.network = PlainNetwork(self.descriptors.shape[1])
        self.network.load_state_dict(inputs["network"])
        self.network.eval()

    def open(self, raw: bytes) -> torch.Tensor:
        """Decode and resize one photo: (3, H, W) uint8."""
        photo = pil_to_tensor(Image.open(io.BytesIO(raw)).convert("RGB"))
        return resize_photo(photo, [self.image_size], antialias=True)

    def locate(self, photos: torch.Tensor) -> list[dict[str, Any]]:
        """Find the photos that are most similar to each of (B, 3, H, W) uint8."""
        with torch.no_grad():
            found = self.network(normalize_photos(photos)).numpy() @ self.descriptors.T  # (B, R)
        ranks = np.argsort(-found, axis=1)[:, :K]
        return [
            {"matches": [{"id": self.ids[place], "similarity": float(row[place])} for place in best]}
            for row, best in zip(found, ranks, strict=True)
        ]


def serve_with_fastapi(path: str, port: int) -> None:
    """Serve with FastAPI until stopped."""
    import uvicorn
    from fastapi import FastAPI, UploadFile

    localizer, app = PlainLocalizer(path), FastAPI()

    @app.post("/locate")
    async def locate(files: UploadFile) -> dict[str, Any]:
        return localizer.locate(localizer.open(await files.read())[None])[0]

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    serve_with_fastapi(sys.argv[1], int(sys.argv[2]))
