"""Networks of timm as backbones: any of its architectures, with the features of a chosen stage.

timm (Wightman, "PyTorch Image Models") is imported only when such a backbone is built, and its weights are downloaded
only when they are asked for.

Legend: B batch, C channels, h x w positions.
"""

import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cosplace.config.names import TIMM, either, similar_names
from cosplace.errors import CheckpointError, ConfigError, DownloadError
from cosplace.models.architectures import BATCH_COUNTER, first_difference, tensor_shapes
from cosplace.models.downloads import file_sha256
from cosplace.models.native import SizePolicy
from cosplace.models.weight_files import read_state_dict
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD

DOWNLOAD = "timm"  # value of --imagenet_weights
WEIGHTS_FILES = "model.safetensors", "pytorch_model.bin"  # of repositories of timm
MISSING = "--backbone timm:NAME needs timm. Install with: pip install 'cosplace[timm]'."

USUAL_MULTIPLE = 32  # pixels: the stride of most convolutional networks
PROBE_SIZE = 230, 262  # pixels, of no usual multiple

ANY_SIZE = SizePolicy()

Colors = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmSettings:
    """What timm knows about a network and its photos.  Stored with models: versions of timm may differ."""

    name: str  # without the prefix
    stage: int  # of the features, counted from 0 as timm does
    mean: Colors = IMAGENET_MEAN  # normalization of the photos
    std: Colors = IMAGENET_STD
    policy: SizePolicy = ANY_SIZE


def timm_settings(backbone: str, stage: int | None = None) -> TimmSettings:
    """Settings of "timm:NAME", with the features of a stage; None is the last.

    Raises ConfigError without timm, for a name or a stage that does not exist.
    """
    name = backbone.removeprefix(TIMM)
    timm = _import_timm()
    _check_name(timm, name)
    with torch.device("meta"):
        model, is_dynamic = _create(timm, name)
    known = model.pretrained_cfg
    settings = TimmSettings(
        name=name,
        stage=_stage_number(model, name, stage),
        mean=tuple(known.get("mean", IMAGENET_MEAN)),
        std=tuple(known.get("std", IMAGENET_STD)),
    )
    patch, fixed = _patch_size(model), SizePolicy(fixed_size=tuple(known["input_size"][1:]))
    by_patch = [] if patch is None else [SizePolicy(side_multiple=patch)]
    if is_dynamic and by_patch:
        return replace(settings, policy=by_patch[0])
    if known.get("fixed_input_size"):
        return replace(settings, policy=fixed)
    # timm does not say which sizes the others accept.
    return _first_that_works(settings, [ANY_SIZE, SizePolicy(side_multiple=USUAL_MULTIPLE), *by_patch, fixed])


def _first_that_works(settings: TimmSettings, policies: list[SizePolicy]) -> TimmSettings:
    """The settings with the first of these policies with which the network computes features.

    It is tried without weights first, which is fast but which not every network supports.  Raises ConfigError if none
    works.
    """
    reason = ""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for device, candidates in (("meta", policies[:1]), ("cpu", policies)):
            with torch.device(device):
                backbone = TimmBackbone(settings).eval()
                for policy in candidates:
                    try:
                        backbone(torch.zeros(1, 3, *policy.size_for(*PROBE_SIZE)))
                        return replace(settings, policy=policy)
                    except Exception as error:  # networks raise types of their own for sizes that they do not accept
                        reason = (str(error).splitlines() or [""])[0][:200]
    raise ConfigError(
        f"{TIMM}{settings.name} does not give features of stage {settings.stage} ({reason}). Use another."
    )


class TimmBackbone(nn.Module):
    """ImageNet-normalized images (B, 3, H, W) of sizes that the policy allows -> features (B, C, h, w) and a token.

    The token is the class token (B, C) of a transformer, None for other networks.  Layers after the chosen stage are
    removed.  All weights are random, drawn from torch's global generator.  Keys: model, then those of timm.

    Attributes: settings, out_channels (C), stages (names of the layers at which stages end).
    Raises ConfigError without timm and for names that it does not have.
    """

    def __init__(self, settings: TimmSettings) -> None:
        super().__init__()
        timm = _import_timm()
        _check_name(timm, settings.name)
        self.settings = settings
        self.model, _ = _create(timm, settings.name)
        if not 0 <= settings.stage < len(self.model.feature_info):
            raise ConfigError(f"timm {timm.__version__} has no stage {settings.stage} of {settings.name}.")
        if not hasattr(self.model, "forward_intermediates"):
            raise ConfigError(
                f"timm {timm.__version__} gives no features of the stages of {settings.name}. Install a newer "
                f"version of timm."
            )
        stages = [self.model.feature_info[number] for number in range(settings.stage + 1)]
        self.out_channels = int(stages[-1]["num_chs"])
        self.stages = tuple(str(stage["module"]) for stage in stages)
        forward: Any = self.model.forward_intermediates
        self.is_transformer = "return_prefix_tokens" in inspect.signature(forward).parameters
        self.has_class_token = self.is_transformer and getattr(self.model, "cls_token", None) is not None
        # The last norm belongs to the features of a transformer; elsewhere it belongs to the classifier.
        prune: Any = self.model.prune_intermediate_layers
        prune([settings.stage], prune_norm=not self.is_transformer, prune_head=True)
        if not any(stage.startswith("head") for stage in self.stages):
            self.model.head = nn.Identity()  # some versions leave its norm
        self.is_normalized = (settings.mean, settings.std) == (IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features (B, C, h, w), and the class token (B, C) or None."""
        if not self.is_normalized:
            images = self._normalized_for_timm(images)
        options: dict[str, Any] = {"return_prefix_tokens": True} if self.has_class_token else {}
        forward: Any = self.model.forward_intermediates
        (found,) = forward(
            images,
            indices=[self.settings.stage],
            norm=self.is_transformer,
            output_fmt="NCHW",
            intermediates_only=True,
            **options,
        )
        if not self.has_class_token:
            return found, None
        features, tokens = found  # (B, C, h, w), (B, T, C): the class token, then registers
        return features, tokens[:, 0]

    def _normalized_for_timm(self, images: Tensor) -> Tensor:
        """Replace ImageNet's mean and standard deviation by those of the network."""
        ours, theirs = (IMAGENET_MEAN, IMAGENET_STD), (self.settings.mean, self.settings.std)
        scale = [std / new for std, new in zip(ours[1], theirs[1], strict=True)]
        shift = [(mean - new) / std for mean, new, std in zip(ours[0], theirs[0], theirs[1], strict=True)]
        return images * images.new_tensor(scale).view(3, 1, 1) + images.new_tensor(shift).view(3, 1, 1)

    def __repr__(self) -> str:
        # Not the layers: versions of timm name them differently, and `model_checksum` covers this text.
        return f"TimmBackbone({self.settings.name}, stage={self.settings.stage}, {self.settings.policy})"


def load_timm_weights(backbone: TimmBackbone, weights: str | Path) -> None:
    """Load pretrained weights: "timm" downloads those of timm, a path is a local file of them.

    Raises DownloadError if they cannot be downloaded, ConfigError if there are none, CheckpointError for a file of
    another network.
    """
    timm, name = _import_timm(), backbone.settings.name
    if str(weights).lower() == DOWNLOAD:
        tensors, source = _download(timm, name), f"the weights of {name}"
    else:
        tensors, source = read_state_dict(Path(weights)), str(weights)
    expected = backbone.model.state_dict()
    with torch.device("meta"):
        whole = {*timm.create_model(name).state_dict(), *_create(timm, name)[0].state_dict()}
    # Layers after the chosen stage and the classifier are left out; anything else is of another network.
    kept = {key: value for key, value in tensors.items() if key in expected or key not in whole}
    difference = first_difference(tensor_shapes(expected), tensor_shapes(kept))
    if difference:
        raise CheckpointError(f"{source} does not fit {TIMM}{name}: {difference}. Use a file of this network of timm.")
    counters = {key: value for key, value in expected.items() if key.endswith(BATCH_COUNTER)}
    backbone.model.load_state_dict(counters | {key: value.float() for key, value in kept.items() if key in expected})


# --- timm ------------------------------------------------------------------------------------------------------------


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(MISSING) from error
    return timm


def _check_name(timm: ModuleType, name: str) -> None:
    """Raise ConfigError, with similar names, unless timm has the architecture and the tag of its weights.

    A file could name a network, so that names of other places than timm itself are refused too.
    """
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        tags = timm.list_pretrained(f"{architecture}.*")
        if not tag or name in tags:
            return
        similar = similar_names(name, tags, cutoff=0.0)
    else:
        similar = similar_names(architecture, timm.list_models(), cutoff=0.4)
    hint = f"Did you mean {either([TIMM + one for one in similar])}?" if similar else "See timm.list_models()."
    raise ConfigError(f"timm {timm.__version__} has no network '{name}'. {hint}")


def _create(timm: ModuleType, name: str) -> tuple[Any, bool]:
    """Network without classifier, and whether a transformer computes its positions for any size of photo."""
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # networks that have no such positions do not know the option
        return timm.create_model(name, pretrained=False, num_classes=0), False
    return model, bool(getattr(model, "dynamic_img_size", False))


def _patch_size(model: Any) -> int | None:
    """Side of the patches of a transformer in pixels; None for other networks and patches that are not square."""
    sides = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(sides, tuple):
        return int(sides[0]) if len(set(sides)) == 1 else None
    return None if sides is None else int(sides)


def _stage_number(model: Any, name: str, stage: int | None) -> int:
    """Number of a stage from 0.  Raises ConfigError, with the stages, for one that does not exist."""
    stages = [model.feature_info[number] for number in range(len(model.feature_info))]
    number = len(stages) - 1 if stage is None else stage
    if not -len(stages) <= number < len(stages):
        known = ", ".join(f"{i}: {one['num_chs']} channels, stride {one['reduction']}" for i, one in enumerate(stages))
        raise ConfigError(f"{TIMM}{name} has no stage {stage}. Use --features_stage with one of {known}.")
    return number % len(stages)


def _download(timm: ModuleType, name: str) -> Mapping[str, Tensor]:
    """The weights of a network, from the cache of Hugging Face or downloaded.  Raises DownloadError."""
    advice = f"Check the connection, or pass a file of {name} as --imagenet_weights PATH, or none for random weights."
    known = timm.models.get_pretrained_cfg(name)
    if not known.has_weights:
        raise ConfigError(f"timm has no weights for {name}. Use --imagenet_weights none, or the path of a file.")
    import_module("huggingface_hub")  # sets its level
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # otherwise it prints a line about each attempt
    try:
        weights = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # clients of several sites raise types of their own
        _refuse_damaged(known.hf_hub_id, name)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DownloadError(f"timm cannot download the weights of {name} ({reason}). {advice}") from error
    _refuse_damaged(known.hf_hub_id, name)
    return weights


def _refuse_damaged(repository: str | None, name: str) -> None:
    """Remove cached files of a repository that do not have their checksum, which the client does not compare.

    Raises DownloadError if there was one.
    """
    if not repository:
        return
    hub: Any = import_module("huggingface_hub")  # timm needs it
    found = [hub.try_to_load_from_cache(repository, file) for file in WEIGHTS_FILES]
    for path in [Path(one).resolve() for one in found if isinstance(one, str)]:
        # A large file has its SHA-256 as its name, unless the system has no links.
        if re.fullmatch("[0-9a-f]{64}", path.name) and (actual := file_sha256(path)) != path.name:
            path.unlink()
            raise DownloadError(
                f"The downloaded weights of {name} are damaged: their sha256 is {actual[:16]}..., not "
                f"{path.name[:16]}.... They were removed; run the same command again."
            )
