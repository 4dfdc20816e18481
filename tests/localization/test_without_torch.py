"""A photo is located without torch and Lance, which take seconds to import, if the engine of the model needs none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.engines.encoder import load_model
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.localization.localizer import Localizer
from tests.synthetic_dataset import landscape

SIZE, NUM_PHOTOS = 96, 6
HEAVY = (
    "torch", "torchvision", "lancedb", "numba", "onnx", "scipy", "sklearn", "matplotlib", "tensorboard", "s3fs",
    "boto3", "obstore", "ray", "timm", "cv2", "fastapi", "tqdm", "multiprocessing.pool",
)  # fmt: skip
COMMAND = """
import json, sys
from cosplace.cli import main
code = main(sys.argv[2:])
print(json.dumps([code, [name for name in sys.argv[1].split() if name in sys.modules]]))
"""


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(NUM_PHOTOS)]
    for number, path in enumerate(paths):
        Image.fromarray(landscape(number)).save(path)
    return paths


def write_index(address: Path, photos: list[Path], descriptors: np.ndarray, spec: ModelSpec) -> None:
    with create_index(address, spec) as index:
        new = [
            NewPhoto(path=str(path), key=path.name, latitude=37.7, longitude=20 + n) for n, path in enumerate(photos)
        ]
        index.add(new, descriptors)


def test_help_imports_no_numpy() -> None:
    code = (
        "import sys; from cosplace.cli import main\n"
        "for words in (['--help'], ['locate', '--help'], ['index', 'build', '--help']): main(words)\n"
        "print([name for name in ('numpy', 'torch', 'PIL', 'pyproj') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_an_exported_engine_locates_as_torch_does(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first command exports the network and compares the engines; the second one needs no torch."""
    import torch

    from cosplace.models.network import GeoLocalizationNet

    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    torch.save(GeoLocalizationNet("ResNet18", 64).state_dict(), tmp_path / "model.pth")
    model = load_model(tmp_path / "model.pth", image_size=SIZE, device="cpu")
    spec = ModelSpec(model=model.name, checksum=model.checksum, dimension=64, image_size=SIZE)
    write_index(tmp_path / "index", photos, model.encode(photos), spec)
    command = ["locate", str(photos[2]), "--index", str(tmp_path / "index"), "--engine", "onnx", "--json"]
    outputs = []
    for _ in range(2):
        words = [sys.executable, "-c", COMMAND, " ".join(HEAVY), *command]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        *answer, last = done.stdout.splitlines()
        outputs.append("\n".join(answer))
        code, heavy = json.loads(last)
        assert code == 0
    assert heavy == []
    assert outputs[0] == outputs[1]
    assert Localizer(tmp_path / "index").locate(photos[2]).neighbours[0].path in outputs[0]
