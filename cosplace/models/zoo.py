"""Models as records: what was released, what is known of it, and what comes through torch.hub.

CosPlace: Berton et al., CVPR 2022, https://github.com/gmberton/CosPlace, release v1.0 (30 models).  EigenPlaces:
Berton et al., ICCV 2023, https://github.com/gmberton/EigenPlaces, release v1.0 (13 models); it has the architecture of
CosPlace and was trained on SF-XL otherwise.  No digests are published: the first download's is recorded.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cosplace.config.knobs import BACKBONES, canonical_backbone, nearest_names
from cosplace.errors import ConfigError

RELEASES_VARIABLE = "COSPLACE_RELEASES"  # an address or a folder that holds the released files, instead of GitHub
BASES: Mapping[str, str] = MappingProxyType(
    {
        "cosplace": "https://github.com/gmberton/CosPlace/releases/download/v1.0",
        "eigenplaces": "https://github.com/gmberton/EigenPlaces/releases/download/v1.0",
    }
)
TITLES: Mapping[str, str] = MappingProxyType({"cosplace": "CosPlace", "eigenplaces": "EigenPlaces"})
PAPERS: Mapping[str, str] = MappingProxyType(
    {
        "cosplace": "Berton et al., CVPR 2022, arXiv 2204.02287",
        "eigenplaces": "Berton et al., ICCV 2023, arXiv 2308.10832",
    }
)
LICENCES: Mapping[str, str] = MappingProxyType(
    {
        "cosplace": "the repository's; the weights carry none of their own: see https://github.com/gmberton/CosPlace",
        "eigenplaces": "MIT (the repository's); the weights carry none of their own",
    }
)
INPUT_SIZE = 512  # pixels, both sides of the training crops
RESIZE = "none: photos of any size, as they are; recalls were taken so"

_POWERS = (32, 64, 128, 256, 512, 1024, 2048)
RELEASED: Mapping[str, Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "cosplace": MappingProxyType(
            {
                "VGG16": _POWERS[1:5],
                "ResNet18": _POWERS[:5],
                "ResNet50": _POWERS,
                "ResNet101": _POWERS,
                "ResNet152": _POWERS,
            }
        ),
        "eigenplaces": MappingProxyType(
            {"VGG16": (512,), "ResNet18": (256, 512), "ResNet50": _POWERS[2:], "ResNet101": _POWERS[2:]}
        ),
    }
)
"""Method -> backbone -> descriptor dimensions."""
NEVER_RELEASED = "cosplace_vgg16_32"
"""The one model in the CosPlace paper's table of which there are no weights; it can be trained."""

DATASETS = ("pitts30k", "pitts250k", "tokyo247", "msls_val", "st_lucia", "sf_xl_v1", "sf_xl_v2")
_TABLE = "EigenPlaces paper (ICCV 2023), tables 3 and 4, from a transcription; msls_val is that of 740 queries"
_ABLATION = "EigenPlaces paper (ICCV 2023), ablation, from a transcription; msls_val is that of 740 queries"
_EVALUATION = "README of github.com/gmberton/VPR-methods-evaluation"
_ISSUE = "the author in issue 13 of github.com/gmberton/CosPlace; its msls_val may be another set of queries"
_NONE = "none as a number: the papers draw them"
_GAP = None
# R@1 in percent, in the order of DATASETS.
_RECALLS: Mapping[str, tuple[str, tuple[float | None, ...]]] = MappingProxyType(
    {
        "cosplace_vgg16_512": (_TABLE, (88.4, 89.7, 81.9, 82.6, 95.3, 65.9, 83.1)),
        "cosplace_resnet18_512": (_EVALUATION, (_GAP, _GAP, _GAP, _GAP, 98.8, _GAP, _GAP)),
        "cosplace_resnet50_128": (_TABLE, (89.0, 89.6, 81.0, 85.5, 98.7, 69.1, 86.5)),
        "cosplace_resnet50_512": (_TABLE, (90.2, 91.7, 89.5, 86.9, 99.1, 76.7, 89.0)),
        "cosplace_resnet50_2048": (_TABLE, (90.9, 92.3, 87.3, 87.4, 99.6, 76.4, 88.8)),
        "cosplace_resnet101_2048": (_ISSUE, (90.4, 91.8, 88.6, 86.6, _GAP, _GAP, _GAP)),
        "eigenplaces_vgg16_512": (_TABLE, (89.7, 91.2, 82.2, 84.2, 95.4, 69.4, 86.3)),
        "eigenplaces_resnet18_512": (_ABLATION, (90.5, _GAP, 82.2, 86.2, 99.0, _GAP, _GAP)),
        "eigenplaces_resnet50_128": (_TABLE, (89.6, 90.2, 79.4, 83.4, 98.8, 72.4, 86.6)),
        "eigenplaces_resnet50_512": (_TABLE, (91.9, 93.5, 89.8, 89.5, 99.5, 82.6, 90.6)),
        "eigenplaces_resnet50_2048": (_TABLE, (92.5, 94.1, 93.0, 89.1, 99.6, 84.1, 90.8)),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooModel:
    """A released model that this package builds and fills itself."""

    name: str
    method: str  # "cosplace" or "eigenplaces"
    backbone: str
    fc_output_dim: int
    url: str  # where it was released; `released_url` heeds a mirror
    sha256: str | None  # published digest
    input_size: int  # pixels, sides of the training images
    resize: str  # what to do with photos of another size
    licence: str
    recalls: Mapping[str, float]  # R@1 in percent by dataset; only what is published as a number
    recalls_source: str
    paper: str

    @property
    def file_name(self) -> str:
        """Name of the released file."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model of others that torch.hub fetches together with its code, and what to know before using it."""

    name: str
    spec: str  # what `--model` takes
    fc_output_dim: int
    side_multiple: int = 1  # height and width must be multiples of this
    input_size: int | None = None  # pixels of the shorter side it does best at, where its authors say
    one_by_one: bool = False  # whether a descriptor depends on the other photos of its batch
    mean: tuple[float, float, float] | None = None  # normalisation where it is not ImageNet's
    std: tuple[float, float, float] | None = None
    note: str = ""  # other traps, and what they need


def _models() -> Iterator[ZooModel]:
    for method, backbones in RELEASED.items():
        for backbone, dims in backbones.items():
            for dim in dims:
                name = f"{method}_{backbone.lower()}_{dim}"
                source, recalls = _RECALLS.get(name, (_NONE, ()))
                yield ZooModel(
                    name=name,
                    method=method,
                    backbone=backbone,
                    fc_output_dim=dim,
                    url=f"{BASES[method]}/{backbone}_{dim}_{method}.pth",
                    sha256=None,
                    input_size=INPUT_SIZE,
                    resize=RESIZE,
                    licence=LICENCES[method],
                    recalls={data: value for data, value in zip(DATASETS, recalls, strict=False) if value is not None},
                    recalls_source=source,
                    paper=PAPERS[method],
                )


MODELS: Mapping[str, ZooModel] = MappingProxyType({model.name: model for model in _models()})
"""Name -> released model; names are method_backbone_dimension."""

_HUB_MODELS = (
    HubModel(
        name="megaloc",
        spec="hub:gmberton/MegaLoc:get_trained_model()",
        fc_output_dim=8448,
        side_multiple=14,
        input_size=322,
        note="may need the packages safetensors and huggingface_hub",
    ),
    HubModel(
        name="salad",
        spec="hub:serizba/salad:dinov2_salad()",
        fc_output_dim=8448,
        side_multiple=14,
        input_size=322,
        note="its repository needs pytorch_lightning",
    ),
    HubModel(
        name="boq_resnet50",
        spec="hub:amaralibey/bag-of-queries:get_trained_boq(backbone_name='resnet50', output_dim=16384)",
        fc_output_dim=16384,
        input_size=384,
        note="returns (descriptors, attentions)",
    ),
    HubModel(
        name="boq_dinov2",
        spec="hub:amaralibey/bag-of-queries:get_trained_boq(backbone_name='dinov2', output_dim=12288)",
        fc_output_dim=12288,
        side_multiple=14,
        input_size=322,
        note="returns (descriptors, attentions)",
    ),
    HubModel(
        name="anyloc_urban",
        spec="hub:AnyLoc/DINO:get_vlad_model(backbone='DINOv2', domain='urban', device='cpu')",
        fc_output_dim=49152,
        side_multiple=14,
        note="ViT-G: a billion parameters; say device='cuda' for a GPU; needs einops, fast_pytorch_kmeans",
    ),
    HubModel(
        name="cricavpr",
        spec="hub:Lu-Feng/CricaVPR:trained_model()",
        fc_output_dim=10752,
        side_multiple=14,
        one_by_one=True,
        note="DataParallel; a descriptor depends on its batch, so photos go one by one",
    ),
    HubModel(
        name="edtformer",
        spec="hub:Tong-Jin01/EDTformer:EDTformer()",
        fc_output_dim=4096,
        side_multiple=14,
        input_size=322,
        note="DataParallel; in older copies of its repository the entry is called trained_model",
    ),
    HubModel(
        name="sfrs",
        spec="hub:yxgeee/OpenIBL:vgg16_netvlad(pretrained=True)",
        fc_output_dim=4096,
        mean=(0.48501960784313836, 0.4579568627450961, 0.4076039215686255),
        std=(1 / 255, 1 / 255, 1 / 255),
        note="photos are normalised its own way, which is done here",
    ),
)
HUB_MODELS: Mapping[str, HubModel] = MappingProxyType({model.name: model for model in _HUB_MODELS})
"""Name -> model through torch.hub: code of others, run only with --trust_remote_code."""


# --- finding ---------------------------------------------------------------------------------------------------------


def released(backbone: str, fc_output_dim: int, method: str = "cosplace") -> ZooModel:
    """Find a released model by its parts.  Raises ConfigError, listing what exists, when there is none."""
    if method.lower() not in RELEASED:
        raise ConfigError(f"Unknown method '{method}': choose from {', '.join(RELEASED)}.")
    method = method.lower()
    title, backbone = TITLES[method], canonical_backbone(backbone)
    if backbone not in RELEASED[method]:
        raise ConfigError(f"No {title} model was released for {backbone}: choose from {', '.join(RELEASED[method])}.")
    name = f"{method}_{backbone.lower()}_{fc_output_dim}"
    if name not in MODELS:
        dims = ", ".join(map(str, RELEASED[method][backbone]))
        trained = f", or train it (`cosplace train --backbone {backbone} --fc_output_dim {fc_output_dim}`)"
        raise ConfigError(
            f"No {title} {backbone} was released with {fc_output_dim} dimensions: choose from {dims}"
            f"{trained if name == NEVER_RELEASED else ''}."
        )
    return MODELS[name]


def find_model(name: str) -> ZooModel | HubModel:
    """Find a model by its name, in any case, with or without separators.

    Raises ConfigError when there is none: with the dimensions that exist, or else the nearest names.
    """
    by_plain = {_plain(known): model for known, model in {**MODELS, **HUB_MODELS}.items()}
    if _plain(name) in by_plain:
        return by_plain[_plain(name)]
    for method in RELEASED:
        # The longest backbone first: ResNet18_Small begins with ResNet18.
        for backbone in sorted(BACKBONES, key=len, reverse=True):
            found = re.fullmatch(rf"{method}{_plain(backbone)}(\d*)", _plain(name))
            if found and found[1]:
                return released(backbone, int(found[1][:9]), method)
            if found:
                released(backbone, max(RELEASED[method].get(backbone, (1,))), method)  # raises for the others
                dims = ", ".join(map(str, RELEASED[method][backbone]))
                raise ConfigError(
                    f"'{name}' lacks its dimension: choose from {dims}, as in {_example(method, backbone)}."
                )
    name = name if len(name) <= 60 else f"{name[:60]}..."
    offered = nearest_names(name, [*MODELS, *HUB_MODELS])
    raise ConfigError(
        f"Unknown model '{name}': "
        + (f"did you mean {' or '.join(offered)}?  " if offered else "")
        + "`cosplace zoo list` lists all; else give the path of a file of weights, or hub:owner/repo:entry(args)."
    )


def released_url(model: ZooModel, base: str | None = None) -> str:
    """Address of a released model's file: at `base`, at the mirror $COSPLACE_RELEASES, or where it was released.

    A mirror is an address or a folder that holds the files by their names.
    """
    base = base or os.environ.get(RELEASES_VARIABLE) or ""
    if not base:
        return model.url
    if "://" not in base:
        base = Path(base).expanduser().absolute().as_uri()
    return f"{base.rstrip('/')}/{model.file_name}"


def _example(method: str, backbone: str) -> str:
    return f"{method}_{backbone.lower()}_{max(RELEASED[method][backbone])}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
