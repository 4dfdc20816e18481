"""Photos for the stages that open them, the decoding of one, and its augmentation.

Made photos are smoothed noise of many sizes with straight edges, so that their files are as large as those of street
photos (some 85 KB at 512 pixels).  Plain: Pillow and ToTensor; torchvision's functional
transforms, image by image, as the field writes them.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.records import Options, Side, Stage, Work
from cosplace.errors import DatasetError

if TYPE_CHECKING:
    import torch

SIDE = 512
QUALITY = 90
NUM_EDGES = 60
AMPLITUDE = 100.0
DIFFERENT_PHOTOS, QUICK_PHOTOS = 64, 8  # more are copies: a decoder remembers nothing
WARM_PHOTOS = 16
MOST_ERROR = 1e-5  # of augmented images, in normalised units


# --- the photos ------------------------------------------------------------------------------------------------------


def make_photo(seed: int, side: int = SIDE) -> bytes:
    """A JPEG file with the statistics of a photo."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    photo = np.full((side, side, 3), 110.0, np.float32)
    for _ in range(NUM_EDGES):  # rectangles: houses, windows, cars
        (left, top), (width, height) = rng.uniform(-0.1, 1, 2) * side, rng.uniform(0.02, 0.4, 2) * side
        rows, columns = (slice(max(0, int(at)), max(0, int(at + long))) for at, long in ((top, height), (left, width)))
        photo[rows, columns] = rng.uniform(20, 230, 3)
    size = 4
    while size <= side:  # the finer, the fainter; colors are smoother than light
        colored = size <= side // 8
        noise = rng.normal(0, AMPLITUDE / size**0.5, (size, size, 3 if colored else 1)).astype(np.float32)
        layers = [Image.fromarray(layer).resize((side, side), Image.Resampling.BILINEAR) for layer in noise.T]
        photo += np.stack([np.asarray(layer) for layer in layers], axis=2)
        size *= 2
    return _encoded(Image.fromarray(photo.clip(0, 255).astype(np.uint8)))


def write_photos(folder: Path, count: int, options: Options, names: list[str] | None = None) -> list[Path]:
    """Photos of 512 x 512 pixels under `names`: made ones, or those of options.photos, shrunk and cropped."""
    names = [f"{i:05d}.jpg" for i in range(count)] if names is None else names
    folder.mkdir(parents=True, exist_ok=True)
    count = min(count, QUICK_PHOTOS if options.quick else DIFFERENT_PHOTOS)
    given = None if options.photos is None else _given_photos(options.photos, count)
    different = given or [make_photo(seed) for seed in range(count)]
    paths = [folder / name for name in names]
    for i, path in enumerate(paths):
        path.write_bytes(different[i % len(different)])
    return paths


def _given_photos(folder: Path, count: int) -> list[bytes]:
    from PIL import Image, ImageOps

    from cosplace.photos.scanning import scan_images

    images = scan_images(folder)
    files = []
    for index in np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64)).tolist():
        try:
            with Image.open(images.path(index)) as photo:
                fitted = ImageOps.fit(photo.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
        except OSError as error:
            raise DatasetError(f"{images.path(index)} cannot be opened ({error}): take it out of {folder}.") from error
        files.append(_encoded(fitted))
    return files


def _encoded(photo: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


# --- decoding --------------------------------------------------------------------------------------------------------


def open_plainly(path: Path) -> "torch.Tensor":
    """One photo as the field opens it: (3, H, W) float32 in [0, 1]."""
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    with Image.open(path) as photo:
        return to_tensor(photo.convert("RGB"))


def as_bytes(photo: "torch.Tensor") -> "torch.Tensor":
    """The pixels that a float image stands for, uint8."""
    return photo.mul(255).round().byte()


def _prepare_plain_decoding(paths: list[Path]) -> Work:
    return _opening(open_plainly, paths)


def _opening(open_one: Callable[[Path], Any], paths: list[Path]) -> Work:
    """Open photo after photo; some first, until the allocator has settled."""

    def work(some: list[Path] = paths) -> None:
        for path in some:
            open_one(path)

    work(paths[:WARM_PHOTOS])
    return work


def _reveal_plain_decoding(paths: list[Path], _: None) -> list[bytes]:
    return [as_bytes(open_plainly(path)).numpy().tobytes() for path in paths[:DIFFERENT_PHOTOS]]


def _prepare_decoding(paths: list[Path]) -> Work:
    from cosplace.photos.opening import open_image

    return _opening(open_image, paths)


def _reveal_decoding(paths: list[Path], _: None) -> list[bytes]:
    from cosplace.photos.opening import open_image

    return [open_image(path).numpy().tobytes() for path in paths[:DIFFERENT_PHOTOS]]


def _compare_pixels(plain: list[bytes], ours: list[bytes]) -> str | None:
    wrong = [i for i, (one, other) in enumerate(zip(plain, ours, strict=True)) if one != other]
    return f"{len(wrong)} of {len(plain)} photos have other pixels, the first: number {wrong[0]}" if wrong else None


# --- augmentation ----------------------------------------------------------------------------------------------------


def _make_batch(folder: Path, size: int, options: Options) -> Path:
    """Photos (B, 3, 512, 512) uint8, and what was drawn for each, (B, 12)."""
    from cosplace.training.augmentation import NUMBERS_PER_DRAW, Augmentation, draw

    paths = write_photos(folder / "photos", size, options)
    numbers = np.random.default_rng(0).random((len(paths), NUMBERS_PER_DRAW))
    draws = draw(numbers, np.full((len(paths), 2), SIDE), Augmentation(image_size=SIDE))
    np.save(folder / "photos.npy", np.stack([as_bytes(open_plainly(path)).numpy() for path in paths]))
    np.save(folder / "draws.npy", draws)
    return folder


def _load_batch(folder: Path) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    return torch.from_numpy(np.load(folder / "photos.npy")), torch.from_numpy(np.load(folder / "draws.npy"))


def _prepare_plain_augmentation(folder: Path) -> Work:
    import torch

    photos, draws = _load_batch(folder)
    floats = photos.float().div(255)  # ToTensor's part, see decoding

    def work() -> torch.Tensor:
        return torch.stack([augment_plainly(photo, drawn) for photo, drawn in zip(floats, draws.tolist(), strict=True)])

    augment_plainly(floats[0], draws[0].tolist())
    return work


def augment_plainly(photo: "torch.Tensor", drawn: Sequence[float], side: int = SIDE) -> "torch.Tensor":
    """Color jitter, resized crop and normalisation of one photo (3, H, W) float in [0, 1]: (3, side, side)."""
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


def _warm_augmentation() -> None:
    """Compile what is compiled at the first call, once for all children."""
    import torch

    from cosplace.device import one_thread
    from cosplace.training.augmentation import NUMBERS_PER_DRAW, Augmentation, augment, draw

    settings = Augmentation(image_size=32)
    drawn = torch.from_numpy(draw(np.zeros((1, NUMBERS_PER_DRAW)), np.array([[32, 32]]), settings))
    with one_thread():
        augment(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), drawn, settings)


def _reveal_plain_augmentation(folder: Path, images: "torch.Tensor") -> tuple[np.ndarray, float]:
    """The images that float64 arithmetic gives, as float32, and how far float32 arithmetic is from them."""
    photos, draws = _load_batch(folder)
    exact = [augment_plainly(photo.double() / 255, drawn) for photo, drawn in zip(photos, draws.tolist(), strict=True)]
    error = max(float((image - right).abs().max()) for image, right in zip(images, exact, strict=True))
    return np.stack([image.float().numpy() for image in exact]), error


def _reveal_augmentation(_: Path, images: "torch.Tensor") -> np.ndarray:
    return images.numpy()


def _compare_augmented(plain: tuple[np.ndarray, float], ours: np.ndarray) -> str | None:
    # Strong jitter of nearly gray pixels is ill-conditioned: there plain's own rounding may exceed the bound.
    exact, rounding = plain
    error, most = float(np.abs(exact - ours).max()), max(MOST_ERROR, 1.5 * rounding)
    return None if error < most else f"pixels differ by up to {error:.2g} in normalised units, more than {most:.2g}"


STAGES = (
    Stage(
        name="decode",
        title="opening JPEG photos, 512 pixels, identical pixels",
        unit="photos",
        make_inputs=lambda folder, size, options: write_photos(folder / "photos", size, options),
        plain=Side(prepare=_prepare_plain_decoding, reveal=_reveal_plain_decoding),
        ours=Side(prepare=_prepare_decoding, reveal=_reveal_decoding),
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
        plain=Side(prepare=_prepare_plain_augmentation, reveal=_reveal_plain_augmentation),
        ours=Side(prepare=_prepare_augmentation, reveal=_reveal_augmentation),
        compare=_compare_augmented,
        full_size=32,
        quick_size=8,
        targets={"cpu_ratio": 8.0},
        growth_sizes=(8, 16, 32),
        imports=("torch", "torchvision", "cosplace.training.augmentation"),
        warm=_warm_augmentation,
    ),
)
