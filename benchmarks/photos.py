"""Decoding and augmenting photos, and generated photos for all stages.

Generated photos consist of rectangles and of noise at many scales, so that their files are as large as those of street
photos (about 85 KB at 512 pixels).  The plain side uses Pillow and ToTensor, and torchvision's functional transforms
image by image.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.stage import Options, Side, Stage, Work
from cosplace.errors import DatasetError

if TYPE_CHECKING:
    import torch

SIDE = 512
QUALITY = 90
NUM_EDGES = 60
AMPLITUDE = 100.0
DISTINCT_PHOTOS, QUICK_PHOTOS = 64, 8  # further photos are copies: decoders do not cache
WARM_PHOTOS = 16
MAX_ERROR = 1e-5  # of augmented images, in normalized units


# --- the photos ------------------------------------------------------------------------------------------------------


def generate_photo(seed: int, side: int = SIDE) -> bytes:
    """Generate a JPEG file with the statistics of a photo."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    photo = np.full((side, side, 3), 110.0, np.float32)
    for _ in range(NUM_EDGES):  # rectangles, such as buildings, windows and cars
        (left, top), (width, height) = rng.uniform(-0.1, 1, 2) * side, rng.uniform(0.02, 0.4, 2) * side
        rows, columns = (
            slice(max(0, int(start)), max(0, int(start + length))) for start, length in ((top, height), (left, width))
        )
        photo[rows, columns] = rng.uniform(20, 230, 3)
    size = 4
    while size <= side:  # fine noise is fainter; colors are smoother than brightness
        colored = size <= side // 8
        noise = rng.normal(0, AMPLITUDE / size**0.5, (size, size, 3 if colored else 1)).astype(np.float32)
        layers = [Image.fromarray(layer).resize((side, side), Image.Resampling.BILINEAR) for layer in noise.T]
        photo += np.stack([np.asarray(layer) for layer in layers], axis=2)
        size *= 2
    return _encoded(Image.fromarray(photo.clip(0, 255).astype(np.uint8)))


def write_photos(folder: Path, count: int, options: Options, names: list[str] | None = None) -> list[Path]:
    """Write photos of 512 x 512 pixels as `names`: generated ones, or those of options.photos, resized and cropped."""
    names = [f"{i:05d}.jpg" for i in range(count)] if names is None else names
    folder.mkdir(parents=True, exist_ok=True)
    count = min(count, QUICK_PHOTOS if options.quick else DISTINCT_PHOTOS)
    own = None if options.photos is None else _own_photos(options.photos, count)
    distinct = own or [generate_photo(seed) for seed in range(count)]
    paths = [folder / name for name in names]
    for i, path in enumerate(paths):
        path.write_bytes(distinct[i % len(distinct)])
    return paths


def _own_photos(folder: Path, count: int) -> list[bytes]:
    from PIL import Image, ImageOps

    from cosplace.photos.scanning import scan_images

    images = scan_images(folder)
    files = []
    for index in np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64)).tolist():
        try:
            with Image.open(images.path(index)) as photo:
                fitted = ImageOps.fit(photo.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
        except OSError as error:
            raise DatasetError(f"Cannot open {images.path(index)} ({error}). Remove it from {folder}.") from error
        files.append(_encoded(fitted))
    return files


def _encoded(photo: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


# --- decoding --------------------------------------------------------------------------------------------------------


def open_with_pillow(path: Path) -> "torch.Tensor":
    """Open a photo with Pillow and ToTensor: (3, H, W) float32 in [0, 1]."""
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    with Image.open(path) as photo:
        return to_tensor(photo.convert("RGB"))


def as_bytes(photo: "torch.Tensor") -> "torch.Tensor":
    """Convert a float image in [0, 1] to uint8."""
    return photo.mul(255).round().byte()


def _prepare_plain_decoding(paths: list[Path]) -> Work:
    return _open_all(open_with_pillow, paths)


def _open_all(open_one: Callable[[Path], Any], paths: list[Path]) -> Work:
    """Work that opens photo after photo.  Opens some now, to warm up the allocator."""

    def work(chosen: list[Path] = paths) -> None:
        for path in chosen:
            open_one(path)

    work(paths[:WARM_PHOTOS])
    return work


def _plain_pixels(paths: list[Path], _: None) -> list[bytes]:
    return [as_bytes(open_with_pillow(path)).numpy().tobytes() for path in paths[:DISTINCT_PHOTOS]]


def _prepare_decoding(paths: list[Path]) -> Work:
    from cosplace.photos.opening import open_image

    return _open_all(open_image, paths)


def _our_pixels(paths: list[Path], _: None) -> list[bytes]:
    from cosplace.photos.opening import open_image

    return [open_image(path).numpy().tobytes() for path in paths[:DISTINCT_PHOTOS]]


def _compare_pixels(plain: list[bytes], ours: list[bytes]) -> str | None:
    wrong = [i for i, (one, other) in enumerate(zip(plain, ours, strict=True)) if one != other]
    return (
        f"{len(wrong)} of {len(plain)} photos have different pixels, the first is number {wrong[0]}" if wrong else None
    )


# --- augmentation ----------------------------------------------------------------------------------------------------


def _make_batch(folder: Path, size: int, options: Options) -> Path:
    """Photos (B, 3, 512, 512) uint8, and the random draws of each, (B, 12)."""
    from cosplace.training.augmentation import NUMBERS_PER_DRAW, Augmentation, draw

    paths = write_photos(folder / "photos", size, options)
    numbers = np.random.default_rng(0).random((len(paths), NUMBERS_PER_DRAW))
    draws = draw(numbers, np.full((len(paths), 2), SIDE), Augmentation(image_size=SIDE))
    np.save(folder / "photos.npy", np.stack([as_bytes(open_with_pillow(path)).numpy() for path in paths]))
    np.save(folder / "draws.npy", draws)
    return folder


def _load_batch(folder: Path) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    return torch.from_numpy(np.load(folder / "photos.npy")), torch.from_numpy(np.load(folder / "draws.npy"))


def _prepare_plain_augmentation(folder: Path) -> Work:
    import torch

    photos, draws = _load_batch(folder)
    floats = photos.float().div(255)  # the work of ToTensor is part of decoding

    def work() -> torch.Tensor:
        return torch.stack(
            [augment_with_torchvision(photo, drawn) for photo, drawn in zip(floats, draws.tolist(), strict=True)]
        )

    augment_with_torchvision(floats[0], draws[0].tolist())
    return work


def augment_with_torchvision(photo: "torch.Tensor", drawn: Sequence[float], side: int = SIDE) -> "torch.Tensor":
    """Color jitter, resized crop and normalization of one photo (3, H, W) float in [0, 1]: (3, side, side)."""
    from torchvision.transforms import functional as transforms

    from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD
    from cosplace.training.augmentation import CROP, ORDER

    adjust = (
        transforms.adjust_brightness, transforms.adjust_contrast, transforms.adjust_saturation, transforms.adjust_hue,
    )  # fmt: skip
    for operation in map(int, drawn[ORDER]):
        photo = adjust[operation](photo, drawn[operation])
    top, left, height, width = map(int, drawn[CROP])
    photo = transforms.resized_crop(photo, top, left, height, width, [side, side], antialias=True)
    return transforms.normalize(photo, list(IMAGENET_MEAN), list(IMAGENET_STD))


def _prepare_augmentation(folder: Path) -> Work:
    from cosplace.training.augmentation import Augmentation, augment

    photos, draws = _load_batch(folder)
    settings = Augmentation(image_size=SIDE)
    augment(photos[:1], draws[:1], settings)
    return lambda: augment(photos, draws, settings)


def _warm_up_augmentation() -> None:
    """Compile the augmentation, once for all child processes."""
    import torch

    from cosplace.device import one_thread
    from cosplace.training.augmentation import NUMBERS_PER_DRAW, Augmentation, augment, draw

    settings = Augmentation(image_size=32)
    drawn = torch.from_numpy(draw(np.zeros((1, NUMBERS_PER_DRAW)), np.array([[32, 32]]), settings))
    with one_thread():
        augment(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), drawn, settings)


def _exact_images(folder: Path, images: "torch.Tensor") -> tuple[np.ndarray, float]:
    """The images computed in float64, as float32, and the largest error of float32."""
    photos, draws = _load_batch(folder)
    exact = [
        augment_with_torchvision(photo.double() / 255, drawn)
        for photo, drawn in zip(photos, draws.tolist(), strict=True)
    ]
    error = max(float((image - right).abs().max()) for image, right in zip(images, exact, strict=True))
    return np.stack([image.float().numpy() for image in exact]), error


def _our_images(_: Path, images: "torch.Tensor") -> np.ndarray:
    return images.numpy()


def _compare_augmented(plain: tuple[np.ndarray, float], ours: np.ndarray) -> str | None:
    # Strong jitter of nearly gray pixels is ill-conditioned: the rounding of the plain side may exceed the bound.
    exact, rounding = plain
    error, maximum = float(np.abs(exact - ours).max()), max(MAX_ERROR, 1.5 * rounding)
    return None if error < maximum else f"normalized pixels differ by up to {error:.2g}, more than {maximum:.2g}"


STAGES = (
    Stage(
        name="decode",
        title="decoding JPEG photos, 512 pixels, identical pixels",
        unit="photos",
        make_inputs=lambda folder, size, options: write_photos(folder / "photos", size, options),
        plain=Side(prepare=_prepare_plain_decoding, output=_plain_pixels),
        ours=Side(prepare=_prepare_decoding, output=_our_pixels),
        compare=_compare_pixels,
        full_size=256,
        quick_size=96,
        targets={"cpu_ratio": 2.4},
        growth_sizes=(64, 128, 256),
        imports=("torch", "torchvision", "PIL.Image", "cosplace.photos.opening"),
    ),
    Stage(
        name="augment",
        title="color jitter and resized crop, 512 pixels, equal draws",
        unit="photos",
        make_inputs=_make_batch,
        plain=Side(prepare=_prepare_plain_augmentation, output=_exact_images),
        ours=Side(prepare=_prepare_augmentation, output=_our_images),
        compare=_compare_augmented,
        full_size=32,
        quick_size=8,
        targets={"cpu_ratio": 8.0},
        growth_sizes=(8, 16, 32),
        imports=("torch", "torchvision", "cosplace.training.augmentation"),
        warm_up=_warm_up_augmentation,
    ),
)
