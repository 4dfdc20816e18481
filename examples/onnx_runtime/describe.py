"""Recognise places with an exported model: needs only onnxruntime, numpy and Pillow, no PyTorch, no cosplace.

cosplace export MODEL --to model.onnx --image_size 512      # once, where cosplace is installed
python describe.py model.onnx here.jpg there.jpg            # how alike two photos are
python describe.py model.onnx here.jpg photos/ --nearest 5  # the photos of a folder most like one
python describe.py model.onnx photos/ --to photos.npy       # descriptors (N, D) float32, in the order of names
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class Model:
    """An exported model: photos in, unit descriptors out.  How to feed it stands in the file itself."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.facts = self.session.get_modelmeta().custom_metadata_map

    def describe(self, path: Path) -> np.ndarray:
        """The descriptor (D,) float32 of one photo."""
        pixels = self.pixels(path)[None]  # (1, H, W, 3) uint8
        if self.facts["input_type"] == "float32":  # the file does not normalise by itself
            mean, std = (np.array(self.facts[key].split(), np.float32) for key in ("mean", "std"))
            pixels = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)  # (1, 3, H, W)
        return self.session.run(["descriptors"], {"images": np.ascontiguousarray(pixels)})[0][0]

    def pixels(self, path: Path) -> np.ndarray:
        """A photo (H, W, 3) uint8, upright, its shorter side as the model wants it."""
        with Image.open(path) as file:
            photo = ImageOps.exif_transpose(file).convert("RGB")
        if self.facts["image_size"]:
            size, (width, height) = int(self.facts["image_size"]), photo.size
            short = min(width, height)
            photo = photo.resize((size * width // short, size * height // short), Image.Resampling.BILINEAR)
        return np.asarray(photo)


def photos_of(place: Path) -> list[Path]:
    """One photo, or those below a folder, sorted."""
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [place]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file of `cosplace export`")
    parser.add_argument("photos", nargs="+", type=Path, help="a photo; then another photo or a folder to compare with")
    parser.add_argument("--nearest", type=int, default=5, help="how many photos to show (default: 5)")
    parser.add_argument("--to", type=Path, help="write the descriptors of all photos to this .npy file")
    arguments = parser.parse_args()
    model = Model(arguments.model)
    first, *others = (photos_of(place) for place in arguments.photos)
    if arguments.to:
        paths = [path for paths in (first, *others) for path in paths]
        np.save(arguments.to, np.stack([model.describe(path) for path in paths]))
        print(f"{arguments.to}: {len(paths)} descriptors")
        return 0
    if len(first) != 1 or not any(others):
        parser.error("give one photo, and then photos or folders to compare it with; or --to FILE")
    query = model.describe(first[0])
    paths = [path for paths in others for path in paths]
    # Descriptors have length 1, so a product is the cosine of the angle between them: 1 for the same view.
    similarities = np.stack([model.describe(path) for path in paths]) @ query  # (N,)
    for place in np.argsort(-similarities)[: arguments.nearest]:
        print(f"{similarities[place]:.4f}  {paths[place]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
