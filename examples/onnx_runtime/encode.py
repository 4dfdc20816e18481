"""Compute and compare descriptors with an exported model; needs only onnxruntime, numpy and Pillow.

cosplace export MODEL --to model.onnx --image_size 512      # once, where cosplace is installed
python encode.py model.onnx first.jpg second.jpg            # similarity of two photos
python encode.py model.onnx photo.jpg photos/ --nearest 5   # the most similar photos of a folder
python encode.py model.onnx photos/ --to photos.npy         # descriptors (N, D) float32, sorted by file name
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow knows more, some of which start other programs
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}  # pixels and orientation


class Model:
    """An exported model: photos in, unit descriptors out.  The metadata of the file describes the input."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.metadata = self.session.get_modelmeta().custom_metadata_map

    def encode(self, path: Path) -> np.ndarray:
        """Compute the descriptor (D,) float32 of one photo."""
        try:
            pixels = self.pixels(path)[None]  # (1, H, W, 3) uint8
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            sys.exit(f"{path} cannot be opened: {error}")
        if self.metadata["input_type"] == "float32":
            pixels = pixels.astype(np.float32) / 255
        if self.metadata["normalisation"] != "inside":
            mean, std = (np.array(self.metadata[key].split(), np.float32) for key in ("mean", "std"))
            pixels = (pixels - mean) / std
        if self.metadata["input_layout"] == "NCHW":
            pixels = pixels.transpose(0, 3, 1, 2)  # (1, 3, H, W)
        name = self.session.get_inputs()[0].name
        return self.session.run(None, {name: np.ascontiguousarray(pixels)})[0][0]

    def pixels(self, path: Path) -> np.ndarray:
        """Open a photo (H, W, 3) uint8, rotated as its EXIF says and resized to the image size of the model."""
        with Image.open(io.BytesIO(without_png_metadata(path.read_bytes())), formats=FORMATS) as file:
            photo = ImageOps.exif_transpose(file)
            if photo.mode.startswith("I"):  # 16 bits: Pillow would cut values off at 255
                photo = Image.fromarray(np.round(np.clip(np.asarray(photo), 0, 65535) / 257).astype(np.uint8))
            photo = photo.convert("RGB")
        if self.metadata.get("static_shape"):  # batch, height, width; this program has batches of one
            _, height, width = map(int, self.metadata["static_shape"].split())
            photo = photo.resize((width, height), Image.Resampling.BILINEAR)
        elif self.metadata["image_size"] and self.metadata["resize"] != "inside":
            size, (width, height) = int(self.metadata["image_size"]), photo.size
            short = min(width, height)
            photo = photo.resize((size * width // short, size * height // short), Image.Resampling.BILINEAR)
        return np.asarray(photo)


def without_png_metadata(content: bytes) -> bytes:
    """Remove the texts and profiles of a PNG file: Pillow opens none whose metadata is large or damaged."""
    if not content.startswith(PNG_START):
        return content
    kept, start = [PNG_START], len(PNG_START)
    while start + 12 <= len(content):  # length, type, data and checksum
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] in PNG_CHUNKS:
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def find_photos(path: Path) -> list[Path]:
    """The photo itself, or the photos of a folder, sorted."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    return [path]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file of `cosplace export`")
    parser.add_argument("photos", nargs="+", type=Path, help="a photo, then photos or folders to compare it with")
    parser.add_argument("--nearest", type=int, default=5, help="number of photos to print (default: 5)")
    parser.add_argument("--to", type=Path, help="write the descriptors of all photos to a .npy file")
    arguments = parser.parse_args()
    model = Model(arguments.model)
    first, *others = (find_photos(path) for path in arguments.photos)
    if arguments.to:
        paths = [path for paths in (first, *others) for path in paths]
        np.save(arguments.to, np.stack([model.encode(path) for path in paths]))
        print(f"{arguments.to}: {len(paths)} descriptors")
        return 0
    if len(first) != 1 or not any(others):
        parser.error("give one photo, then photos or folders to compare it with, or use --to FILE")
    query = model.encode(first[0])
    paths = [path for paths in others for path in paths]
    # Descriptors have length 1, so their dot product is the cosine similarity: 1 for the same view.
    similarities = np.stack([model.encode(path) for path in paths]) @ query  # (N,)
    for row in np.argsort(-similarities)[: arguments.nearest]:
        print(f"{similarities[row]:.4f}  {paths[row]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
