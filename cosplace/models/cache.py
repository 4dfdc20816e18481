"""What is in the cache, and whether it is what it should be."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.errors import CheckpointError
from cosplace.models.downloads import file_sha256, part_of, recorded_digest, weights_folder
from cosplace.models.network import infer_architecture
from cosplace.models.weight_files import read_state_dict
from cosplace.models.zoo import MODELS, ZooModel

DIGEST_SOURCES = ("published", "recorded", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """One released model's file in the cache."""

    name: str
    path: Path
    size_bytes: int
    sha256: str
    digest_source: str  # what it was checked against: "published", "recorded" (at the first download) or "none"
    problem: str = ""  # what is wrong, and what to do; "" when nothing is

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problem


def verify(folder: Path | None = None) -> list[CachedFile]:
    """Check the released models' files in `folder` (default: the cache): digest, readable, right architecture."""
    folder = weights_folder() if folder is None else folder
    found = ((model, folder / model.file_name) for model in MODELS.values())
    return [_check(model, path) for model, path in found if path.is_file()]


def begun(folder: Path | None = None) -> list[tuple[ZooModel, int]]:
    """Downloads that were stopped, with the bytes that have arrived: the next download goes on from there."""
    folder = weights_folder() if folder is None else folder
    parts = ((model, part_of(folder / model.file_name)) for model in MODELS.values())
    return [(model, part.stat().st_size) for model, part in parts if part.is_file()]


def _check(model: ZooModel, path: Path) -> CachedFile:
    recorded = recorded_digest(path)
    expected = model.sha256 or recorded
    digest = file_sha256(path)
    cure = f"`cosplace zoo download {model.name}` fetches it anew"
    if expected and not digest.startswith(expected):
        problem = f"sha256 {digest[:16]}... instead of {expected[:16]}...: {cure}"
    else:
        problem = _misfit(model, path)
        if problem:
            problem += f": remove it, then {cure}"
    return CachedFile(
        name=model.name,
        path=path,
        size_bytes=path.stat().st_size,
        sha256=digest,
        digest_source=DIGEST_SOURCES[0 if model.sha256 else 1 if recorded else 2],
        problem=problem,
    )


def _misfit(model: ZooModel, path: Path) -> str:
    """What keeps a file from being `model`; "" when nothing does."""
    try:
        backbone, dim = infer_architecture(read_state_dict(path))
    except CheckpointError as error:
        return str(error).partition(": ")[0]
    if (backbone, dim) != (model.backbone, model.fc_output_dim):
        return f"it holds {backbone} with {dim} dimensions"
    return ""
