"""Models of others through torch.hub: their code is run, so only with trust; then they behave as ours do.

"hub:owner/repo:entry(args)" is an entry point of a repository on GitHub ("owner/repo:branch" for a branch or tag),
"hub:/path/to/repo:entry(args)" of a clone.  Arguments are literals of Python and are never evaluated.
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

PREFIX = "hub:"
EXAMPLE = "hub:gmberton/MegaLoc:get_trained_model()"
MAX_SPEC_CHARACTERS = 2000
PROBE_SIZE = 224  # pixels; a multiple of 14, 16 and 32
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- what is asked for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HubEntry:
    """An entry point of a repository, and its arguments."""

    source: str  # "owner/repo", "owner/repo:ref", or the path of a clone
    is_local: bool
    entry: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any]

    @property
    def where(self) -> str:
        """Where its code comes from, for messages."""
        return self.source if self.is_local else f"https://github.com/{self.source.partition(':')[0]}"


def is_hub(model: str | Path) -> bool:
    """Whether `model` names an entry point of torch.hub."""
    return isinstance(model, str) and model.startswith(PREFIX)


def parse_hub(spec: str) -> HubEntry:
    """Read "hub:owner/repo:entry(args)".  Raises ConfigError when it is not of this form, or args are not literals."""
    shown = spec if len(spec) <= 100 else f"{spec[:100]}..."
    form = f"'{shown}' is not of the form hub:owner/repo:entry(args), for example {EXAMPLE}"
    if len(spec) > MAX_SPEC_CHARACTERS:
        raise ConfigError(f"{form}: it is longer than {MAX_SPEC_CHARACTERS} characters.")
    found = re.fullmatch(r"(.+?):([A-Za-z_]\w*)(\(.*\))?", spec.removeprefix(PREFIX), re.DOTALL)
    if not found:
        raise ConfigError(f"{form}.")
    source, entry, arguments = found[1], found[2], found[3] or "()"
    is_local = source.startswith(("/", ".", "~")) or "\\" in source or bool(re.match(r"[A-Za-z]:", source))
    if not is_local and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w./-]+)?", source):
        raise ConfigError(f"{form}: '{source}' is neither owner/repo nor the path of a clone (begin it with / or ./).")
    args, kwargs = _literals(arguments, form)
    if is_local:
        source = str(Path(source).expanduser().absolute())
    return HubEntry(source=source, is_local=is_local, entry=entry, args=args, kwargs=kwargs)


def _literals(arguments: str, form: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The values in "(1, 'a', key=True)"; nothing is evaluated."""
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
            f"{form}: its arguments must be literals, as (512), (backbone='resnet50') or (pretrained=True)."
        ) from error
    return args, kwargs


def check_trust(entry: HubEntry, trust_remote_code: bool) -> None:
    """Raise ConfigError, saying what would happen, unless the user trusts the code."""
    if not trust_remote_code:
        place = "that folder" if entry.is_local else "that repository"
        raise ConfigError(
            f"This model would run code from {entry.where} on this machine, with your rights: if you trust {place}, "
            f"add --trust_remote_code (in Python trust_remote_code=True)."
        )


# --- a model of others, with our manners -----------------------------------------------------------------------------


class HubNetwork(nn.Module):
    """ImageNet-normalised photos (B, 3, H, W) of any size -> unit descriptors (B, fc_output_dim) float32.

    Around a model of others: sides are resized to the nearest multiple that it takes, the descriptors are taken out of
    a tuple or list, DataParallel is taken off, the shape is checked, rows are scaled to length 1.

    Attributes: traps (a HubModel), fc_output_dim.  Raises CheckpointError when the model gives no descriptors.
    """

    def __init__(self, network: nn.Module, traps: HubModel) -> None:
        super().__init__()
        while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        if traps.side_multiple == 1:
            traps = replace(traps, side_multiple=_patch_size(network))
        self.network, self.traps = network.requires_grad_(False), traps
        self._scale: Tensor
        self._shift: Tensor
        self.register_buffer("_scale", _scale(traps), persistent=False)  # (1, 3, 1, 1)
        self.register_buffer("_shift", _shift(traps), persistent=False)  # (1, 3, 1, 1)
        self.eval()
        self.fc_output_dim = self._probe()

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, fc_output_dim) of images (B, 3, H, W)."""
        images = self._resized(images)
        if self.traps.mean is not None:
            images = images * self._scale + self._shift
        parts = images.split(1) if self.traps.one_by_one else (images,)
        found = [self._described(part) for part in parts]
        return F.normalize(torch.cat(found).to(images.device).float(), dim=1)

    def _resized(self, images: Tensor) -> Tensor:
        multiple = self.traps.side_multiple
        sides = images.shape[-2:]
        wanted = tuple(max(1, round(side / multiple)) * multiple for side in sides)
        if wanted == tuple(sides):
            return images
        return F.interpolate(images, wanted, mode="bilinear", antialias=True, align_corners=False)

    def _described(self, images: Tensor) -> Tensor:
        """Run the model and take the descriptors out of what it gives."""
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
            f"{self.traps.name} gives {shapes} for {len(images)} photos, none of it a descriptor for each: choose an "
            f"entry that returns descriptors."
        )

    @torch.no_grad()
    def _probe(self) -> int:
        """The dimension of the descriptors, found by describing a grey square."""
        return self(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE)).shape[1]


def _patch_size(network: nn.Module) -> int:
    """The side of the patches that a vision transformer cuts photos into; 1 for other networks."""
    sizes = [getattr(module, "patch_size", 1) for module in network.modules()]
    sizes = [max(size) if isinstance(size, tuple | list) and size else size for size in sizes]
    return max((size for size in sizes if isinstance(size, int) and size > 0), default=1)


def _scale(traps: HubModel) -> Tensor:
    """With `_shift`: from ImageNet's normalisation to the model's own."""
    return (torch.tensor(IMAGENET_STD) / torch.tensor(traps.std or IMAGENET_STD)).view(1, 3, 1, 1)


def _shift(traps: HubModel) -> Tensor:
    mean, std = traps.mean or IMAGENET_MEAN, traps.std or IMAGENET_STD
    return ((torch.tensor(IMAGENET_MEAN) - torch.tensor(mean)) / torch.tensor(std)).view(1, 3, 1, 1)


# --- opening ---------------------------------------------------------------------------------------------------------


def open_hub(spec: str, *, trust_remote_code: bool = False) -> HubNetwork:
    """Fetch a repository, run its entry point, and give its model our manners, in evaluation mode.

    Raises ConfigError without trust or for an entry that is not there, DownloadError when GitHub cannot be reached,
    CheckpointError when what comes is no model that describes photos.
    """
    entry = parse_hub(spec)
    check_trust(entry, trust_remote_code)
    network = _load(entry, spec)
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"{spec} gives a {type(network).__name__}, no network: choose another entry point.")
    try:
        return HubNetwork(network, _traps(entry, spec))
    except CheckpointError:
        raise
    except Exception as error:  # of code that is not ours
        raise CheckpointError(
            f"{spec} cannot describe a photo of {PROBE_SIZE} x {PROBE_SIZE} pixels ({_first_line(error)}): choose "
            f"another entry point."
        ) from error


def _traps(entry: HubEntry, spec: str) -> HubModel:
    """What is known of this entry point; of others nothing."""
    for known in HUB_MODELS.values():
        asked = parse_hub(known.spec)
        same = (asked.source.lower(), asked.entry) == (entry.source.partition(":")[0].lower(), entry.entry)
        # BoQ's models share one entry: the backbone tells which of them it is.
        if same and _main_argument(asked) in (_main_argument(entry), None):
            return replace(known, name=spec, spec=spec)
    return HubModel(name=spec, spec=spec, fc_output_dim=0)


def _main_argument(entry: HubEntry) -> Any:
    return entry.kwargs.get("backbone_name", entry.args[0] if entry.args else None)


def _load(entry: HubEntry, spec: str) -> Any:
    source = "local" if entry.is_local else "github"
    if entry.is_local and not (Path(entry.source) / "hubconf.py").is_file():
        raise ConfigError(f"There is no hubconf.py in {entry.source}: give the path of a clone that has one.")
    try:
        # What others print must not mix with results.
        with contextlib.redirect_stdout(sys.stderr):
            return torch.hub.load(
                entry.source, entry.entry, *entry.args, source=source, trust_repo=True, verbose=False, **entry.kwargs
            )
    except Exception as error:  # of the network, of torch.hub and of code that is not ours
        raise _in_our_words(error, entry, spec) from error


def _in_our_words(error: Exception, entry: HubEntry, spec: str) -> CosPlaceError:
    """What went wrong while a repository was fetched or its entry point run, and what to do."""
    network = error if isinstance(error, urllib.error.URLError) else error.__cause__  # torch.hub wraps some
    if isinstance(network, urllib.error.HTTPError):
        network.close()  # it holds the connection
        return DownloadError(
            f"Cannot fetch {spec} (the server answered {network.code} {network.reason}): check {entry.where}."
        )
    if isinstance(network, urllib.error.URLError | TimeoutError | ConnectionError):
        return DownloadError(
            f"Cannot fetch {spec} ({_first_line(network)}): connect to the network, or clone {entry.where} and give "
            f"hub:/path/to/clone:{entry.entry}(...)."
        )
    if isinstance(error, ModuleNotFoundError):
        return ConfigError(f"{spec} needs the package {error.name}: pip install it, then try again.")
    missing = re.search(r"Missing dependencies: (.+)", str(error))
    if missing:
        return ConfigError(f"{spec} needs the packages {missing[1]}: pip install them, then try again.")
    if f"Cannot find callable {entry.entry}" in str(error):
        return ConfigError(f"{spec} has no entry '{entry.entry}': see its hubconf.py.")
    return ConfigError(f"{spec} failed ({_first_line(error)}): see its hubconf.py for what it takes.")


def _first_line(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(error).__name__}: {' '.join(str(reason).split())[:200]}"
