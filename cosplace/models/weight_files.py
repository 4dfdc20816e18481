"""State dicts in files: `.safetensors`, and `.pth` as torch.save writes it.  Code inside a file is never run."""

import hashlib
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from cosplace.errors import CheckpointError
from cosplace.storage import write_atomically

PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # what DataParallel and torch.compile put before each key
WRAPPERS = ("state_dict", "model_state_dict", "model")  # where other trainers keep the weights among other things
MAX_HEADER_BYTES = 100_000_000  # of safetensors: the limit of its own library
CARD = "__metadata__"  # safetensors' own name for it
ZIP_START, LENGTH = b"PK\x03\x04", struct.Struct("<Q")


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a state dict to the CPU, without the prefixes that DataParallel and torch.compile add.

    What kind of file it is, is told from its content.  A state dict that lies under "state_dict", "model_state_dict"
    or "model" is taken out.  Raises CheckpointError when the file is missing, empty, truncated, holds code or holds
    anything but tensors by name.
    """
    path = Path(path)
    size = _size(path)
    content = _read_safetensors(path, size) if _is_safetensors(path, size) else _read_torch(path, size)
    return _as_state_dict(content, path)


def read_card(path: Path | str) -> dict[str, str]:
    """Read what a `.safetensors` file says of itself, as text by name; nothing for other files.

    Raises CheckpointError when the file is missing, or truncated within the card.
    """
    path = Path(path)
    size = _size(path)
    return dict(_read_header(path, size).get(CARD, {})) if _is_safetensors(path, size) else {}


def write_weights(path: Path | str, state_dict: Mapping[str, Tensor], card: Mapping[str, str] | None = None) -> None:
    """Write a state dict in one step: `.safetensors` by its suffix, else as torch.save does.

    card: text by name, kept in `.safetensors`; other files have no place for it.  The same tensors and card give the
    same bytes.  Raises StorageError when the disk refuses.
    """
    path = Path(path)
    # Copies: tensors that share memory, or lie in it in another order, are beyond safetensors.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state_dict.items()}
    if path.suffix.lower() != ".safetensors":
        write_atomically(path, lambda file: torch.save(tensors, file))
        return
    from safetensors.torch import save

    content = save(tensors)
    (length,) = LENGTH.unpack_from(content)
    header = json.loads(content[LENGTH.size : LENGTH.size + length])
    # The library writes a card in random order, so it is put in here.
    whole = ({CARD: dict(sorted(card.items()))} if card else {}) | header
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH.size)  # tensors start at a multiple of 8 bytes

    def write(file: BinaryIO) -> None:
        file.write(LENGTH.pack(len(text)) + text)
        file.write(memoryview(content)[LENGTH.size + length :])

    write_atomically(path, write)


def tensors_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever the kind of file and the order in it."""
    digest = hashlib.sha256()
    for key, value in sorted(state_dict.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- safetensors -----------------------------------------------------------------------------------------------------


def _is_safetensors(path: Path, size: int) -> bool:
    """Whether a file begins as safetensors do (a length, then an object of JSON), or only claims to by its suffix."""
    with path.open("rb") as file:
        start = file.read(LENGTH.size + 1)
    if start[:4] == ZIP_START:
        return False
    if start[LENGTH.size :] == b"{" and LENGTH.unpack_from(start)[0] <= MAX_HEADER_BYTES:
        return True
    return path.suffix.lower() == ".safetensors" and not start.startswith(b"\x80")  # 0x80 starts a pickle


def _read_header(path: Path, size: int) -> dict[str, Any]:
    """Read the names, types and places of a safetensors file's tensors, and its card."""
    broken = CheckpointError(f"{path} ({size} bytes) is truncated or no safetensors file: fetch it again.")
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        if len(start) < LENGTH.size:
            raise broken
        (length,) = LENGTH.unpack(start)
        if length > min(MAX_HEADER_BYTES, size - LENGTH.size):
            raise broken
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise broken from error
    card = header.get(CARD, {}) if isinstance(header, dict) else None
    if not isinstance(card, dict) or not all(isinstance(value, str) for value in card.values()):
        raise broken
    return header


def _read_safetensors(path: Path, size: int) -> dict[str, Tensor]:
    _read_header(path, size)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:  # torch.hub asks for nothing but torch and torchvision
        raise CheckpointError(f"{path} needs the package safetensors: pip install safetensors.") from error
    try:
        # Copies: a mapped file that is written over would change or stop the network that uses it.
        return {key: value.clone() for key, value in load_file(path).items()}
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} ({size} bytes) is truncated or no safetensors file: fetch it again.") from error


# --- torch.save ------------------------------------------------------------------------------------------------------


def _read_torch(path: Path, size: int) -> object:
    try:
        _refuse_compressed(path)
        # An open file, as torch itself would judge a path by its suffix.  Warnings are about old formats, which read
        # all the same.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, or no weights at all, and was not opened (code in it could run): "
            f"give a plain state dict, as best_model.pth is."
        ) from error
    # Damaged files fail in the readers of zip, tar and pickle with as many kinds of errors as there are bytes.
    except Exception as error:
        raise CheckpointError(f"{path} ({size} bytes) is truncated or no file of weights: fetch it again.") from error


def _refuse_compressed(path: Path) -> None:
    """Torch stores tensors as they are; a small file that unpacks to a huge one was made to do harm."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path} is a compressed archive, not what torch.save writes: unpack it first.")


def _size(path: Path) -> int:
    """Bytes of a file that can be read and holds something."""
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file of weights {path}: check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: of a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"Cannot read weights from {path} ({reason}): give a readable file.") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty: copy or fetch it again.")
    return size


def _as_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    content = _unwrapped(content)
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
        state_dict[PREFIXES.sub("", key)] = value
    return state_dict


def _unwrapped(content: object) -> object:
    """Take the state dict out of what other trainers save around it."""
    if not isinstance(content, Mapping):
        return content
    for name in WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and inner and all(isinstance(value, Tensor) for value in inner.values()):
            return inner
    return content


def model_checksum(model: nn.Module) -> str:
    """SHA-256 of a model's structure and of every weight and buffer, wherever it is."""
    digest = hashlib.sha256(repr(model).encode())
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
