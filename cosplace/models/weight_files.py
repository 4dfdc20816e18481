"""State dicts in files: `.safetensors`, and `.pth` as written by torch.save.  Code inside a file is never run."""

import hashlib
import json
import pickle
import re
import stat
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

KEY_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # DataParallel and torch.compile add these to each key
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")  # under which other trainers save the state dict
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file: the limit of its own library
CARD = "__metadata__"  # key of the card in the header of a safetensors file
MAX_REPETITION = 4  # bytes of all tensors per byte of the file; tensors may share memory
ZIP_SIGNATURE, PICKLE_SIGNATURE, LENGTH = b"PK\x03\x04", b"\x80", struct.Struct("<Q")


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a state dict to the CPU, without the key prefixes of DataParallel and torch.compile.

    The format is recognized by the content.  A state dict under the key "state_dict", "model_state_dict" or "model" is
    unwrapped.  Raises CheckpointError when the file is missing, empty or truncated, contains code, contains anything
    but named tensors of finite real numbers, or declares larger tensors than it stores.
    """
    path = Path(path)
    size = _file_size(path)
    content = _read_safetensors(path, size) if _is_safetensors(path) else _read_torch(path, size)
    state_dict = _as_state_dict(content, path)
    _check_tensors(state_dict, path, size)
    return state_dict


def read_card(path: Path | str) -> dict[str, str]:
    """Read the model card of a `.safetensors` file, text by name; empty for other files.

    Raises CheckpointError when the file is missing, or truncated within the card.
    """
    path = Path(path)
    size = _file_size(path)
    return dict(_read_header(path, size).get(CARD, {})) if _is_safetensors(path) else {}


def write_weights(path: Path | str, state_dict: Mapping[str, Tensor], card: Mapping[str, str] | None = None) -> None:
    """Write a state dict atomically: as `.safetensors` if `path` has that suffix, else with torch.save.

    card: model card, text by name; only `.safetensors` files can store it.  The same tensors and card always give the
    same bytes.  Raises StorageError when the file cannot be written.
    """
    path = Path(path)
    # Copies: safetensors cannot store tensors that share memory or have another memory layout.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state_dict.items()}
    if path.suffix.lower() != ".safetensors":
        write_atomically(path, lambda file: torch.save(tensors, file))
        return
    from safetensors.torch import save

    content = save(tensors)
    (length,) = LENGTH.unpack_from(content)
    header = json.loads(content[LENGTH.size : LENGTH.size + length])
    # The library writes the card in random order, so it is added here.
    header = ({CARD: dict(sorted(card.items()))} if card else {}) | header
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH.size)  # tensors start at a multiple of 8 bytes

    def write(file: BinaryIO) -> None:
        file.write(LENGTH.pack(len(text)) + text)
        file.write(memoryview(content)[LENGTH.size + length :])

    write_atomically(path, write)


# --- checksums -------------------------------------------------------------------------------------------------------


def tensors_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, independent of the file format and of the order of the tensors."""
    digest = hashlib.sha256()
    for key, value in sorted(state_dict.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_raw_bytes(value))
    return digest.hexdigest()


def model_checksum(model: nn.Module) -> str:
    """SHA-256 of a model's structure, parameters and buffers, independent of its device and of torch's version."""
    digest = hashlib.sha256(_structure(repr(model)).encode())
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_raw_bytes(value))
    return digest.hexdigest()


def _structure(text: str) -> str:
    """The text of a model, as torch 2.15 prints it: earlier versions do not print whether normalization has a bias."""
    text = re.sub(r"\baffine=(\w+), track_running_stats=", r"affine=\1, bias=\1, track_running_stats=", text)
    return re.sub(r"(\w*(?:GroupNorm|LayerNorm)\w*\(.*\w*affine=(\w+))\)$", r"\1, bias=\2)", text, flags=re.MULTILINE)


def _raw_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


# --- safetensors -----------------------------------------------------------------------------------------------------


def _is_safetensors(path: Path) -> bool:
    """Whether a file starts like safetensors (a length, then a JSON object), or is named so and not from torch.save."""
    with path.open("rb") as file:
        start = file.read(LENGTH.size + 1)
    if start.startswith(ZIP_SIGNATURE):
        return False
    if start[LENGTH.size :] == b"{" and LENGTH.unpack_from(start)[0] <= MAX_HEADER_BYTES:
        return True
    return path.suffix.lower() == ".safetensors" and not start.startswith(PICKLE_SIGNATURE)


def _read_header(path: Path, size: int) -> dict[str, Any]:
    """Names, types and offsets of the tensors in a safetensors file, and its card."""
    damaged = _damaged_safetensors(path, size)
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        if len(start) < LENGTH.size:
            raise damaged
        (length,) = LENGTH.unpack(start)
        if length > min(MAX_HEADER_BYTES, size - LENGTH.size):
            raise damaged
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    card = header.get(CARD, {}) if isinstance(header, dict) else None
    if not isinstance(card, dict) or not all(isinstance(value, str) for value in card.values()):
        raise damaged
    return header


def _read_safetensors(path: Path, size: int) -> dict[str, Tensor]:
    _read_header(path, size)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:  # torch.hub installs only torch and torchvision
        raise CheckpointError(f"{path} needs the package safetensors: pip install safetensors.") from error
    try:
        # Copies: tensors mapped to the file would change, or crash the process, when the file is overwritten.
        return {key: value.clone() for key, value in load_file(path).items()}
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _damaged_safetensors(path, size) from error


def _damaged_safetensors(path: Path, size: int) -> CheckpointError:
    return CheckpointError(f"{path} ({size} bytes) is truncated or not a safetensors file. Copy or download it again.")


# --- torch.save ------------------------------------------------------------------------------------------------------


def _read_torch(path: Path, size: int) -> object:
    try:
        _refuse_compressed(path)
        # An open file, because torch would choose the format of a path by its suffix.  The warnings are about old
        # formats, which can still be read.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            if not file.read(len(ZIP_SIGNATURE)).startswith((ZIP_SIGNATURE, PICKLE_SIGNATURE)):
                raise CheckpointError(
                    f"{path} is not a weights file, neither of torch.save nor safetensors. Use a weights file, such as "
                    f"best_model.pth."
                ) from error
        raise CheckpointError(
            f"{path} contains more than tensors and was not opened, because code in it could run. Use a plain state "
            f"dict, such as best_model.pth."
        ) from error
    # On damaged files, the readers of zip, tar and pickle can raise nearly any error.
    except Exception as error:
        raise CheckpointError(
            f"{path} ({size} bytes) is truncated or not a weights file. Copy or download it again."
        ) from error


def _refuse_compressed(path: Path) -> None:
    """Refuse zip bombs: torch.save never compresses, but a small compressed file could fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path} is a compressed archive, not a file of torch.save. Unpack it first.")


# --- both formats ----------------------------------------------------------------------------------------------------


def _file_size(path: Path) -> int:
    """Size in bytes of a file that exists, can be read and is not empty."""
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise CheckpointError(f"{path} is not a regular file. Use a weights file.")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no weights file {path}. Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"Cannot read weights from {path} ({reason}). Use a readable file.") from error
    size = status.st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty. Copy or download it again.")
    return size


def _as_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    content = _unwrap(content)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} contains a {type(content).__name__} without tensors. Use a plain state dict, such as "
            f"best_model.pth."
        )
    state_dict: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is not a plain state dict ('{key}' is {type(value).__name__}, not a named tensor). Use a "
                f"weights file only, such as best_model.pth."
            )
        state_dict[KEY_PREFIXES.sub("", key)] = value
    return state_dict


def _check_tensors(state_dict: Mapping[str, Tensor], path: Path, size: int) -> None:
    """Raise CheckpointError for tensors that are not weights.  size: of the file, in bytes."""
    # A few bytes can declare a tensor of any shape that repeats them.
    declared = sum(value.numel() * value.element_size() for value in state_dict.values())
    if declared > MAX_REPETITION * size:
        largest = max(state_dict, key=lambda key: state_dict[key].numel())
        raise CheckpointError(
            f"{path} has {size} bytes but declares tensors of {declared} bytes ('{largest}' has shape "
            f"{tuple(state_dict[largest].shape)}). Use another weights file."
        )
    for key, value in state_dict.items():
        is_no_number = value.is_quantized or value.is_complex()
        is_no_number |= value.dtype == torch.bool and key.endswith((".weight", ".bias"))  # others may be masks
        if value.layout != torch.strided or is_no_number or value.is_meta:
            kind = "without values" if value.is_meta else f"of type {value.dtype}, {value.layout}"
            raise CheckpointError(
                f"{path}: '{key}' is a tensor {kind}. Use weights of dense real numbers, such as float32."
            )
        if value.is_floating_point() and not _is_finite(value):
            raise CheckpointError(
                f"{path}: '{key}' has values that are not finite, so training diverged or the file is damaged. Use an "
                f"earlier model or another copy."
            )


def _is_finite(values: Tensor) -> bool:
    """Whether all of some floating-point numbers are finite."""
    # A sum with a number that is not finite is not finite either.  It takes a fifth of the time, but may overflow.
    if values.itemsize >= 4 and bool(torch.isfinite(values.sum())):
        return True
    return bool(torch.isfinite(values.float() if values.itemsize == 1 else values).all())  # 8 bits: few operators


def _unwrap(content: object) -> object:
    """State dict inside the dict that other trainers save; `content` itself if it is not such a dict."""
    if not isinstance(content, Mapping):
        return content
    for key in WRAPPER_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and inner and all(isinstance(value, Tensor) for value in inner.values()):
            return inner
    return content
