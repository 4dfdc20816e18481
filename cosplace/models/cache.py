"""Check the released models in the cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosplace.errors import CheckpointError
from cosplace.models.downloads import file_sha256, partial_path, recorded_sha256, weights_folder
from cosplace.models.layouts import network_from_release
from cosplace.models.network import infer_architecture
from cosplace.models.weight_files import read_state_dict
from cosplace.models.zoo import MODELS, NATIVE_MODELS, ZooModel


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """The file of a released model in the cache."""

    name: str
    path: Path
    size_bytes: int
    sha256: str
    digest_source: str  # of the expected checksum: "published", "recorded" (at the first download) or "none"
    problem: str = ""  # what is wrong and what to do; "" if nothing is wrong

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong with the file."""
        return not self.problem


def _models() -> Iterator[ZooModel]:
    yield from MODELS.values()
    yield from NATIVE_MODELS.values()


def verify_cache(folder: Path | None = None) -> list[CachedFile]:
    """Check checksum, format and architecture of the released models in `folder` (default: the cache)."""
    folder = weights_folder() if folder is None else folder
    paths = ((model, folder / model.file_name) for model in _models())
    return [_check_file(model, path) for model, path in paths if path.is_file()]


def partial_downloads(folder: Path | None = None) -> list[tuple[ZooModel, int]]:
    """Models whose download was interrupted, each with the number of bytes in its partial file."""
    folder = weights_folder() if folder is None else folder
    paths = ((model, partial_path(folder / model.file_name)) for model in _models())
    return [(model, path.stat().st_size) for model, path in paths if path.is_file()]


def _check_file(model: ZooModel, path: Path) -> CachedFile:
    recorded = recorded_sha256(path)
    expected = model.sha256 or recorded
    sha256 = file_sha256(path)
    download = f"`cosplace zoo download {model.name}`"
    if expected and not sha256.startswith(expected):
        problem = f"sha256 {sha256[:16]}... instead of {expected[:16]}...: run {download}"
    else:
        problem = _content_problem(model, path)
        if problem:
            problem += f": remove it, then run {download}"
    return CachedFile(
        name=model.name,
        path=path,
        size_bytes=path.stat().st_size,
        sha256=sha256,
        digest_source="published" if model.sha256 else "recorded" if recorded else "none",
        problem=problem,
    )


def _content_problem(model: ZooModel, path: Path) -> str:
    """Why a file cannot be opened as `model`; "" if it can."""
    try:
        state_dict = read_state_dict(path)
        native = network_from_release(state_dict)
        if native is not None:
            backbone, dim = native.backbone_name, native.fc_output_dim
        else:
            backbone, dim = infer_architecture(state_dict)
    except CheckpointError as error:
        return str(error).partition(". ")[0]
    if (backbone, dim) != (model.backbone, model.fc_output_dim):
        return f"it holds {backbone} with {dim} dimensions"
    return ""
