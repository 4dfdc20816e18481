"""Files of weights: released ones by name, fetched once, checked, and read without ever running code.

The released CosPlace models are those of https://github.com/gmberton/CosPlace, release v1.0; ImageNet weights are
torchvision's.  Downloads go to `cache_folder()`, are written beside and renamed, and go on where a connection broke.
"""

import hashlib
import http.client
import logging
import os
import pickle
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from cosplace.config import BACKBONES, canonical_backbone
from cosplace.errors import CheckpointError, ConfigError, DownloadError
from cosplace.storage import write_atomically

_DIMS = (32, 64, 128, 256, 512, 1024, 2048)
RELEASED: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "VGG16": _DIMS[1:5],
        "ResNet18": _DIMS[:5],
        "ResNet50": _DIMS,
        "ResNet101": _DIMS,
        "ResNet152": _DIMS,
    }
)
"""Backbone -> descriptor dimensions of the released CosPlace models."""

RELEASED_BASE = "https://github.com/gmberton/CosPlace/releases/download/v1.0"
TIMEOUT_S = 30.0
ATTEMPTS = 4  # connections per download; only broken ones are tried again, refused ones are not
CHUNK_BYTES = 1 << 20
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # what DataParallel and torch.compile put before each key

log = logging.getLogger(__name__)


# --- names and addresses ---------------------------------------------------------------------------------------------


def available_imagenet_weights(backbone: str) -> tuple[str, ...]:
    """Which of "v1" and "v2" (torchvision's IMAGENET1K_V1 and IMAGENET1K_V2) exist for a backbone.

    >>> available_imagenet_weights("ResNet50")
    ('v1', 'v2')
    """
    return tuple(_imagenet_urls(canonical_backbone(backbone)))


def imagenet_url(backbone: str, version: str, base: str | None = None) -> str:
    """Address of torchvision's ImageNet weights; `base` replaces https://download.pytorch.org/models.

    Raises ConfigError, naming what exists, when a backbone has no such version.
    """
    backbone = canonical_backbone(backbone)
    urls = _imagenet_urls(backbone)
    if version not in urls:
        offered = [*urls, "none", "the path of a state dict"]
        raise ConfigError(
            f"There are no ImageNet weights '{version}' for {backbone}: use --imagenet_weights {' or '.join(offered)}."
        )
    url = urls[version]
    return url if base is None else f"{base.rstrip('/')}/{url.rsplit('/', 1)[1]}"


def released_url(backbone: str, dim: int, base: str = RELEASED_BASE) -> str:
    """Address of a released CosPlace model.  Raises ConfigError, listing what exists, when there is none."""
    backbone = canonical_backbone(backbone)
    if backbone not in RELEASED:
        raise ConfigError(f"No CosPlace model was released for {backbone}: choose from {', '.join(RELEASED)}.")
    if dim not in RELEASED[backbone]:
        dims = ", ".join(map(str, RELEASED[backbone]))
        raise ConfigError(f"No CosPlace {backbone} was released with {dim} dimensions: choose from {dims}.")
    return f"{base.rstrip('/')}/{backbone}_{dim}_cosplace.pth"


def _imagenet_urls(backbone: str) -> dict[str, str]:
    assert backbone in BACKBONES, backbone
    if backbone == "ResNet18_Small":
        return {}
    versions = {"v1": "IMAGENET1K_V1", "v2": "IMAGENET1K_V2"}
    records = {record.name: record.url for record in get_model_weights(backbone.lower())}
    return {version: records[name] for version, name in versions.items() if name in records}


# --- fetching --------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloads are kept: $COSPLACE_HOME/weights, else the folder that torch.hub uses for checkpoints."""
    home = os.environ.get("COSPLACE_HOME")
    return Path(home).expanduser() / "weights" if home else Path(torch.hub.get_dir()) / "checkpoints"


def imagenet_file(backbone: str, version: str, folder: Path | None = None, base: str | None = None) -> Path:
    """Return the file of torchvision's ImageNet weights, fetched unless it is there.

    Raises ConfigError when it does not exist anywhere and DownloadError when it cannot be fetched.
    """
    return download(imagenet_url(backbone, version, base), folder, or_else="or pass --imagenet_weights none or PATH")


def released_file(backbone: str, dim: int, folder: Path | None = None, base: str = RELEASED_BASE) -> Path:
    """Return the file of a released CosPlace model, fetched unless it is there; raises as `imagenet_file` does."""
    return download(released_url(backbone, dim, base), folder)


def download(
    url: str, folder: Path | None = None, sha256: str | None = None, progress: bool = True, or_else: str = ""
) -> Path:
    """Fetch a file into `folder` (default: `cache_folder()`) unless it is there, and return its path.

    sha256: hexadecimal digest or the start of it; by default what torchvision puts before the suffix of its file names
    (`resnet18-f37072fd.pth`), else any content is accepted.  A file that is there with another digest is fetched anew.
    Proxies are taken from the environment.  Raises DownloadError, which ends with `or_else`; nothing is left behind.
    """
    name = Path(unquote(urlsplit(url).path)).name
    path = (cache_folder() if folder is None else folder) / name
    if sha256 is None:
        found = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", name)
        sha256 = found[1] if found else ""
    if path.is_file():
        if not sha256 or _file_digest(path).startswith(sha256.lower()):
            return path
        log.warning("%s has another sha256 than %s...: fetching it anew", path, sha256)
    go_on = f"put the file at {path} by hand" + (f", {or_else}" if or_else else "")

    def fetch(file: BinaryIO) -> None:
        digest = _fetch(url, file, progress, go_on)
        if not digest.startswith(sha256.lower()):
            raise DownloadError(f"{url} has sha256 {digest[:16]}... instead of {sha256}...: retry, or {go_on}.")

    log.info("Fetching %s to %s", url, path)
    write_atomically(path, fetch)
    return path


def _fetch(url: str, file: BinaryIO, progress: bool, go_on: str) -> str:
    """Write what `url` holds into `file`, going on where a connection broke, and return its sha256."""
    digest, done, total, reason = hashlib.sha256(), 0, None, "it ended early"
    with _progress_bar(Path(url).name, progress) as bar:
        for _ in range(ATTEMPTS):
            with _connect(url, done, go_on) as response:
                if done and response.status != http.HTTPStatus.PARTIAL_CONTENT:  # this server sends whole files only
                    file.seek(0)
                    file.truncate()
                    digest, done = hashlib.sha256(), 0
                length = response.headers.get("Content-Length")
                total = None if length is None else done + int(length)
                broken = False
                for piece in _pieces(response):
                    if isinstance(piece, Exception):
                        reason, broken = _reason(piece), True
                        break
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    if bar is not None:
                        bar.total = total
                        bar.update(done - bar.n)
            if not broken and total in (None, done):
                return digest.hexdigest()
    raise DownloadError(
        f"{url} broke off {ATTEMPTS} times, at last after {done} of {total or 'unknown'} bytes ({reason}): {go_on}."
    )


def _connect(url: str, start: int, go_on: str) -> Any:
    """Open a response with the body of `url` from byte `start` on, if the server can."""
    headers = {"User-Agent": "cosplace"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise DownloadError(f"Cannot fetch {url} ({_reason(error)}): {go_on}.") from error


def _pieces(response: Any) -> Iterator[bytes | Exception]:
    """Read the body in pieces; what breaks it comes last, as a value: errors of the disk must not be taken for it."""
    while True:
        try:
            piece = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            yield error
            return
        if not piece:
            return
        yield piece


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split()) or type(error).__name__


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _progress_bar(name: str, wanted: bool) -> Any:
    """Show a bar on terminals; none where tqdm is missing, as torch.hub asks for nothing but torch and torchvision."""
    try:
        from tqdm import tqdm
    except ImportError:
        return nullcontext()
    # disable=None: no bar where stderr is no terminal.
    return tqdm(desc=name, unit="B", unit_scale=True, leave=False, disable=None) if wanted else nullcontext()


# --- reading ---------------------------------------------------------------------------------------------------------


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a state dict to the CPU, without the prefixes that DataParallel and torch.compile add.

    Code inside the file is never run.  Raises CheckpointError when the file is missing, empty, truncated, holds code
    or holds anything but tensors by name.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size == 0:
            raise CheckpointError(f"{path} is empty: copy or fetch it again.")
        with warnings.catch_warnings(action="ignore"):  # about old formats, which read all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file of weights {path}: check the path.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read weights from {path} ({error.strerror}): give a readable file.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, or no weights at all, and was not opened (code in it could run): "
            f"give a plain state dict, as best_model.pth is."
        ) from error
    # Damaged files fail in the readers of zip, tar and pickle with as many kinds of errors as there are bytes.
    except Exception as error:
        raise CheckpointError(f"{path} ({size} bytes) is truncated or no file of weights: fetch it again.") from error
    return _as_state_dict(content, path)


def _as_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} without tensors: give a plain state dict, as best_model.pth."
        )
    state_dict: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is no plain state dict ('{key}' is {type(value).__name__}, not a tensor): "
                f"give the weights alone, as best_model.pth holds them."
            )
        state_dict[WRAPPERS.sub("", key)] = value
    return state_dict
