"""Models of other projects through torch.hub, with the interface of ours.  Opening one runs its code.

"hub:owner/repo:entry(args)" is an entry point of a repository on GitHub ("owner/repo:ref" for a branch or tag),
"hub:/path/to/repo:entry(args)" one of a local clone.  Arguments are Python literals, which are parsed, not evaluated.
"""

import ast
import contextlib
import re
import sys
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.errors import CheckpointError, ConfigError, CosPlaceError, DownloadError
from cosplace.models.zoo import HUB_MODELS, HubModel
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD

HUB_PREFIX = "hub:"
EXAMPLE = "hub:gmberton/MegaLoc:get_trained_model()"
MAX_SPEC_CHARACTERS = 2000
PROBE_SIZE = 224  # pixels; a multiple of 14, 16 and 32


# --- specs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HubEntry:
    """An entry point of a repository, and its arguments."""

    source: str  # "owner/repo", "owner/repo:ref", or the path of a clone
    is_local: bool
    entry: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any]

    @property
    def location(self) -> str:
        """Path or URL of the repository."""
        return self.source if self.is_local else f"https://github.com/{self.source.partition(':')[0]}"


def is_hub(model: str | Path) -> bool:
    """Whether `model` is the spec of a torch.hub entry point."""
    return isinstance(model, str) and model.startswith(HUB_PREFIX)


def parse_hub(spec: str) -> HubEntry:
    """Parse "hub:owner/repo:entry(args)".  Raises ConfigError for another form, or arguments that are not literals."""
    shown = spec if len(spec) <= 100 else f"{spec[:100]}..."
    problem = f"'{shown}' is not of the form hub:owner/repo:entry(args), for example {EXAMPLE}"
    if len(spec) > MAX_SPEC_CHARACTERS:
        raise ConfigError(f"{problem}: it is longer than {MAX_SPEC_CHARACTERS} characters.")
    parts = re.fullmatch(r"(.+?):([A-Za-z_]\w*)(\(.*\))?", spec.removeprefix(HUB_PREFIX), re.DOTALL)
    if not parts:
        raise ConfigError(f"{problem}.")
    source, entry, arguments = parts[1], parts[2], parts[3] or "()"
    is_local = source.startswith(("/", ".", "~")) or "\\" in source or bool(re.match(r"[A-Za-z]:", source))
    if not is_local and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w./-]+)?", source):
        raise ConfigError(f"{problem}: '{source}' must be owner/repo, or the path of a clone that starts with / or ./.")
    args, kwargs = _parse_literals(arguments, problem)
    if is_local:
        source = str(Path(source).expanduser().absolute())
    return HubEntry(source=source, is_local=is_local, entry=entry, args=args, kwargs=kwargs)


def _parse_literals(arguments: str, problem: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments in text such as "(1, 'a', key=True)"; nothing is evaluated."""
    try:
        call = ast.parse(f"entry{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        args = tuple(ast.literal_eval(value) for value in call.args)
        pairs = [(keyword.arg, ast.literal_eval(keyword.value)) for keyword in call.keywords]
        kwargs = {name: value for name, value in pairs if name is not None}
        if len(kwargs) != len(pairs):  # **{...}
            raise ValueError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"{problem}: its arguments must be Python literals, such as (512), (backbone='resnet50') or "
            f"(pretrained=True)."
        ) from error
    return args, kwargs


def _check_trust(entry: HubEntry, trust_remote_code: bool) -> None:
    if not trust_remote_code:
        origin = "that folder" if entry.is_local else "that repository"
        raise ConfigError(
            f"This model would run code from {entry.location} on this machine, with your permissions. If you trust "
            f"{origin}, add --trust_remote_code (in Python trust_remote_code=True)."
        )


# --- networks --------------------------------------------------------------------------------------------------------


class HubNetwork(nn.Module):
    """ImageNet-normalized images (B, 3, H, W) of any size -> unit descriptors (B, fc_output_dim) float32.

    Adapts a network of another project: sides are resized to the nearest multiple that it accepts, images get its
    normalization, DataParallel is removed, the descriptors are taken from a tuple, list or dict and scaled to length 1.

    Attributes: record (what is known about the network), fc_output_dim.  Raises CheckpointError when the network does
    not return descriptors.
    """

    def __init__(self, network: nn.Module, record: HubModel) -> None:
        super().__init__()
        while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        if record.side_multiple == 1:
            record = replace(record, side_multiple=_patch_size(network))
        self.network, self.record = network.requires_grad_(False), record
        # From ImageNet's normalization to that of the network:
        mean, std = (torch.tensor(values) for values in (record.mean or IMAGENET_MEAN, record.std or IMAGENET_STD))
        self._scale: Tensor
        self._shift: Tensor
        scale, shift = torch.tensor(IMAGENET_STD) / std, (torch.tensor(IMAGENET_MEAN) - mean) / std
        self.register_buffer("_scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_shift", shift.view(1, 3, 1, 1), persistent=False)
        self.eval()
        with torch.no_grad():
            self.fc_output_dim = self(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE)).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, fc_output_dim) of images (B, 3, H, W)."""
        images = self._resize(images)
        if self.record.mean is not None:
            images = images * self._scale + self._shift
        parts = images.split(1) if self.record.one_by_one else (images,)
        descriptors = torch.cat([self._encode(part) for part in parts])
        return F.normalize(descriptors.to(images.device).float(), dim=1)

    def _resize(self, images: Tensor) -> Tensor:
        multiple = self.record.side_multiple
        sides = tuple(images.shape[-2:])
        accepted = tuple(max(1, round(side / multiple)) * multiple for side in sides)
        if accepted == sides:
            return images
        return F.interpolate(images, accepted, mode="bilinear", antialias=True, align_corners=False)

    def _encode(self, images: Tensor) -> Tensor:
        """Run the network and return the descriptors (B, D) in its output."""
        output = self.network(images)
        if isinstance(output, Mapping):
            output = tuple(output.values())
        candidates = output if isinstance(output, tuple | list) else (output,)
        for candidate in candidates:
            if (
                isinstance(candidate, Tensor)
                and candidate.is_floating_point()
                and candidate.ndim == 2
                and len(candidate) == len(images)
            ):
                return candidate
        shapes = [list(c.shape) if isinstance(c, Tensor) else type(c).__name__ for c in candidates]
        raise CheckpointError(
            f"{self.record.name} returns {shapes} for {len(images)} photos, which contains no descriptors (B, D). "
            f"Choose an entry point that returns descriptors."
        )


def _patch_size(network: nn.Module) -> int:
    """Side of the patches of a vision transformer, in pixels; 1 for other networks."""
    sizes = [getattr(module, "patch_size", 1) for module in network.modules()]
    sizes = [max(size) if isinstance(size, tuple | list) and size else size for size in sizes]
    return max((size for size in sizes if isinstance(size, int) and size > 0), default=1)


def network_from_hub(spec: str, *, trust_remote_code: bool = False) -> HubNetwork:
    """Download a repository, call its entry point, and adapt the network that it returns; in evaluation mode.

    Raises ConfigError without trust or for an entry point that does not exist, DownloadError when GitHub cannot be
    reached, CheckpointError when the entry point returns no network that computes descriptors.
    """
    entry = parse_hub(spec)
    _check_trust(entry, trust_remote_code)
    network = _call_entry(entry, spec)
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"{spec} returns {type(network).__name__}, not a network. Choose another entry point.")
    try:
        return HubNetwork(network, _find_record(entry, spec))
    except CheckpointError:
        raise
    except Exception as error:  # code of another project can raise anything
        raise CheckpointError(
            f"{spec} fails on an image of {PROBE_SIZE} x {PROBE_SIZE} pixels ({_describe(error)}). Choose another "
            f"entry point."
        ) from error


def _find_record(entry: HubEntry, spec: str) -> HubModel:
    """What is known about an entry point; an empty record for unknown ones."""
    for record in HUB_MODELS.values():
        known = parse_hub(record.spec)
        same = (known.source.lower(), known.entry) == (entry.source.partition(":")[0].lower(), entry.entry)
        # The two BoQ models share one entry point and differ in the backbone.
        if same and _backbone_argument(known) in (_backbone_argument(entry), None):
            return replace(record, name=spec, spec=spec)
    return HubModel(name=spec, spec=spec, fc_output_dim=0)


def _backbone_argument(entry: HubEntry) -> Any:
    return entry.kwargs.get("backbone_name", entry.args[0] if entry.args else None)


def _call_entry(entry: HubEntry, spec: str) -> Any:
    source = "local" if entry.is_local else "github"
    if entry.is_local and not (Path(entry.source) / "hubconf.py").is_file():
        raise ConfigError(f"There is no hubconf.py in {entry.source}. Use the path of a clone that has one.")
    try:
        # Text that other code prints must not mix with our results.
        with contextlib.redirect_stdout(sys.stderr):
            return torch.hub.load(
                entry.source, entry.entry, *entry.args, source=source, trust_repo=True, verbose=False, **entry.kwargs
            )
    except Exception as error:  # from the network, torch.hub or code of another project
        raise _as_our_error(error, entry, spec) from error


def _as_our_error(error: Exception, entry: HubEntry, spec: str) -> CosPlaceError:
    """Error in one line for anything that fails while a repository is downloaded or its entry point called."""
    cause = error if isinstance(error, urllib.error.URLError) else error.__cause__  # torch.hub wraps some
    if isinstance(cause, urllib.error.HTTPError):
        cause.close()  # it holds the connection
        return DownloadError(
            f"Cannot download {spec}: the server answered {cause.code} {cause.reason}. Check {entry.location}."
        )
    if isinstance(cause, urllib.error.URLError | TimeoutError | ConnectionError):
        return DownloadError(
            f"Cannot download {spec} ({_describe(cause)}). Connect to the network, or clone {entry.location} and use "
            f"hub:/path/to/clone:{entry.entry}(...)."
        )
    if isinstance(error, ModuleNotFoundError):
        return ConfigError(f"{spec} needs the package {error.name}. Install it with pip, then try again.")
    missing = re.search(r"Missing dependencies: (.+)", str(error))
    if missing:
        return ConfigError(f"{spec} needs the packages {missing[1]}. Install them with pip, then try again.")
    if f"Cannot find callable {entry.entry}" in str(error):
        return ConfigError(f"{spec} has no entry point '{entry.entry}'. Its hubconf.py lists them.")
    return ConfigError(f"{spec} failed ({_describe(error)}). Its hubconf.py lists the arguments.")


def _describe(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(error).__name__}: {' '.join(str(reason).split())[:200]}"
