"""Records of released models, whose networks this package builds, and of models that torch.hub can load.

CosPlace: Berton et al., CVPR 2022, https://github.com/gmberton/CosPlace, release v1.0 (30 models).  EigenPlaces:
Berton et al., ICCV 2023, https://github.com/gmberton/EigenPlaces, release v1.0 (13 models), with the architecture of
CosPlace but another training method.  MegaLoc, SALAD, BoQ and ImAge have other networks (see `layouts`).  No checksums
are published: the one of the first download is recorded.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cosplace.config.names import BACKBONES, canonical_backbone, either, similar_names
from cosplace.errors import ConfigError

RELEASES_VARIABLE = "COSPLACE_RELEASES"  # URL or folder with the released files, used instead of GitHub
RELEASE_URLS: Mapping[str, str] = MappingProxyType(
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
        "cosplace": "that of the repository, https://github.com/gmberton/CosPlace; the weights have none of their own",
        "eigenplaces": "MIT, that of the repository; the weights have none of their own",
    }
)
INPUT_SIZE = 512  # pixels, both sides of the training crops
RESIZE = "none: photos of any size; the recalls were measured without resizing"

_DIMS = (32, 64, 128, 256, 512, 1024, 2048)
RELEASED: Mapping[str, Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "cosplace": MappingProxyType(
            {
                "VGG16": _DIMS[1:5],
                "ResNet18": _DIMS[:5],
                "ResNet50": _DIMS,
                "ResNet101": _DIMS,
                "ResNet152": _DIMS,
            }
        ),
        "eigenplaces": MappingProxyType(
            {"VGG16": (512,), "ResNet18": (256, 512), "ResNet50": _DIMS[2:], "ResNet101": _DIMS[2:]}
        ),
    }
)
"""Method -> backbone -> descriptor dimensions."""
NEVER_RELEASED = "cosplace_vgg16_32"
"""The only model in the table of the CosPlace paper without released weights; it can be trained."""

DATASETS = ("pitts30k", "pitts250k", "tokyo247", "msls_val", "st_lucia", "sf_xl_v1", "sf_xl_v2")
_TABLE = "EigenPlaces paper (ICCV 2023), tables 3 and 4, from a transcription; msls_val with 740 queries"
_ABLATION = "EigenPlaces paper (ICCV 2023), ablation, from a transcription; msls_val with 740 queries"
_EVALUATION = "README of github.com/gmberton/VPR-methods-evaluation"
_ISSUE = "the author in issue 13 of github.com/gmberton/CosPlace; its msls_val may have other queries"
_NOT_PUBLISHED = "not published as numbers, only as plots"
_GAP = None  # not published
# Source, then R@1 in percent in the order of DATASETS.
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
    """A released model whose architecture this package builds itself."""

    name: str
    method: str  # "cosplace" or "eigenplaces"
    backbone: str
    fc_output_dim: int
    url: str  # where it was released; `released_url` also considers a mirror
    sha256: str | None  # published checksum
    input_size: int  # pixels, both sides of the training crops
    resize: str  # how to resize photos
    licence: str
    recalls: Mapping[str, float]  # dataset -> R@1 in percent, where published as a number
    recalls_source: str
    paper: str
    num_parameters: int

    @property
    def file_name(self) -> str:
        """Name of the released file."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeModel(ZooModel):
    """A released model of another project, whose network is built by `layouts`."""

    side_multiple: int  # sides of photos are resized to the nearest multiple
    smallest_side: int  # pixels of a square photo
    restricted: str = ""  # license that must be accepted before the first download; "" if none


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model of another project that torch.hub downloads together with its code, and how to use it."""

    name: str
    spec: str  # hub:owner/repo:entry(args)
    fc_output_dim: int
    side_multiple: int = 1  # height and width must be multiples of this
    input_size: int | None = None  # pixels of the shorter side, where the authors recommend one
    one_by_one: bool = False  # one photo per batch, because a descriptor depends on the other photos in its batch
    mean: tuple[float, float, float] | None = None  # normalization, if not ImageNet's
    std: tuple[float, float, float] | None = None
    note: str = ""  # requirements and other remarks


_BACKBONES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "VGG16": (14_714_688, 512),
        "ResNet18": (11_176_512, 512),
        "ResNet50": (23_508_032, 2048),
        "ResNet101": (42_500_160, 2048),
        "ResNet152": (58_143_808, 2048),
    }
)
"""Backbone -> its parameters and its channels."""


def _models() -> Iterator[ZooModel]:
    for method, backbones in RELEASED.items():
        for backbone, dims in backbones.items():
            for dim in dims:
                name = f"{method}_{backbone.lower()}_{dim}"
                num_parameters, channels = _BACKBONES[backbone]
                source, recalls = _RECALLS.get(name, (_NOT_PUBLISHED, ()))
                yield ZooModel(
                    name=name,
                    method=method,
                    backbone=backbone,
                    fc_output_dim=dim,
                    url=f"{RELEASE_URLS[method]}/{backbone}_{dim}_{method}.pth",
                    sha256=None,
                    input_size=INPUT_SIZE,
                    resize=RESIZE,
                    licence=LICENCES[method],
                    recalls={data: value for data, value in zip(DATASETS, recalls, strict=False) if value is not None},
                    recalls_source=source,
                    paper=PAPERS[method],
                    num_parameters=num_parameters + 1 + dim * (channels + 1),  # GeM's power, the linear layer
                )


MODELS: Mapping[str, ZooModel] = MappingProxyType({model.name: model for model in _models()})
"""Name -> released model.  Names are method_backbone_dimension."""

_MIT = "MIT, that of the repository; the weights have none of their own"
_MEGALOC = "MegaLoc paper (CVPRW 2025), from a transcription; not its msls_val, which has other queries"
_SALAD = (
    "MegaLoc paper (CVPRW 2025) and SALAD paper (CVPR 2024), from transcriptions; README for msls_val (740 queries)"
)
_BOQ = "README of github.com/amaralibey/Bag-of-Queries; msls_val with 740 queries"
_IMAGE = "README of github.com/Lu-Feng/ImAge; its msls_val is left out, its queries are not stated"
_PATCHES = "sides to the nearest multiple of 14"
_BOQ_RELEASE = "https://github.com/amaralibey/Bag-of-Queries/releases/download/v1.0"
_IMAGE_RELEASE = "https://github.com/Lu-Feng/ImAge/releases/download/v1.0.0"
_NATIVE_MODELS = (
    NativeModel(
        name="megaloc",
        method="MegaLoc",
        backbone="DINOv2-B/14",
        fc_output_dim=8448,
        url="https://github.com/gmberton/MegaLoc/releases/download/v1.0/megaloc.torch",
        sha256=None,
        input_size=322,
        resize=_PATCHES,
        licence="MIT, that of the repository and of the weights",
        recalls={"pitts30k": 94.1, "pitts250k": 96.4, "tokyo247": 96.5, "sf_xl_v1": 95.3},
        recalls_source=_MEGALOC,
        paper="Berton and Masone, CVPRW 2025, arXiv 2502.17237",
        side_multiple=14,
        smallest_side=120,
        num_parameters=228_639_553,
    ),
    NativeModel(
        name="salad",
        method="SALAD",
        backbone="DINOv2-B/14",
        fc_output_dim=8448,
        url="https://github.com/serizba/salad/releases/download/v1.0.0/dino_salad.ckpt",
        sha256=None,
        input_size=322,
        resize=_PATCHES,
        licence="GPL-3.0, that of the repository; the weights have none of their own",
        recalls={
            "pitts30k": 92.3,
            "pitts250k": 95.1,
            "tokyo247": 94.6,
            "msls_val": 92.2,
            "sf_xl_v1": 88.6,
            "sf_xl_v2": 94.8,
        },
        recalls_source=_SALAD,
        paper="Izquierdo and Civera, CVPR 2024, arXiv 2311.15937",
        side_multiple=14,
        smallest_side=120,
        num_parameters=87_990_721,
        restricted="GPL-3.0",
    ),
    NativeModel(
        name="boq_resnet50",
        method="BoQ",
        backbone="ResNet50 to layer3",
        fc_output_dim=16384,
        url=f"{_BOQ_RELEASE}/resnet50_16384.pth",
        sha256=None,
        input_size=384,
        resize="none: photos of any size",
        licence=_MIT,
        recalls={"pitts30k": 92.4, "pitts250k": 95.0, "msls_val": 91.2, "st_lucia": 100.0},
        recalls_source=_BOQ,
        paper="Ali-bey et al., CVPR 2024, arXiv 2405.07364",
        side_multiple=1,
        smallest_side=1,
        num_parameters=23_844_448,
    ),
    NativeModel(
        name="boq_dinov2",
        method="BoQ",
        backbone="DINOv2-B/14",
        fc_output_dim=12288,
        url=f"{_BOQ_RELEASE}/dinov2_12288.pth",
        sha256=None,
        input_size=322,
        resize=_PATCHES,
        licence=_MIT,
        recalls={"pitts30k": 93.7, "pitts250k": 96.6, "msls_val": 93.8, "st_lucia": 99.9},
        recalls_source=_BOQ,
        paper="Ali-bey et al., CVPR 2024, arXiv 2405.07364",
        side_multiple=14,
        smallest_side=8,
        num_parameters=95_205_792,
    ),
    NativeModel(
        name="image_gsv",
        method="ImAge",
        backbone="DINOv2-B/14-reg4",
        fc_output_dim=6144,
        url=f"{_IMAGE_RELEASE}/ImAge_GSV.pth",
        sha256=None,
        input_size=322,
        resize=_PATCHES,
        licence=_MIT,
        recalls={"pitts30k": 94.0},
        recalls_source=_IMAGE,
        paper="Lu et al., NeurIPS 2025",
        side_multiple=14,
        smallest_side=8,
        num_parameters=86_588_928,
    ),
    NativeModel(
        name="image_merged",
        method="ImAge",
        backbone="DINOv2-B/14-reg4",
        fc_output_dim=6144,
        url=f"{_IMAGE_RELEASE}/ImAge_Merged.pth",
        sha256=None,
        input_size=322,
        resize=_PATCHES,
        licence=_MIT,
        recalls={"pitts30k": 94.1},
        recalls_source=_IMAGE,
        paper="Lu et al., NeurIPS 2025",
        side_multiple=14,
        smallest_side=8,
        num_parameters=86_588_928,
    ),
)
NATIVE_MODELS: Mapping[str, NativeModel] = MappingProxyType({model.name: model for model in _NATIVE_MODELS})
"""Name -> released model of another project, whose network this package builds itself."""

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
        note="ViT-G with a billion parameters; use device='cuda' on a GPU; needs einops, fast_pytorch_kmeans",
    ),
    HubModel(
        name="cricavpr",
        spec="hub:Lu-Feng/CricaVPR:trained_model()",
        fc_output_dim=10752,
        side_multiple=14,
        one_by_one=True,
        note="a DataParallel network; a descriptor depends on its batch, so photos are encoded one by one",
    ),
    HubModel(
        name="edtformer",
        spec="hub:Tong-Jin01/EDTformer:EDTformer()",
        fc_output_dim=4096,
        side_multiple=14,
        input_size=322,
        note="a DataParallel network; in older versions of the repository the entry point is trained_model",
    ),
    HubModel(
        name="sfrs",
        spec="hub:yxgeee/OpenIBL:vgg16_netvlad(pretrained=True)",
        fc_output_dim=4096,
        mean=(0.48501960784313836, 0.4579568627450961, 0.4076039215686255),
        std=(1 / 255, 1 / 255, 1 / 255),
        note="has its own normalization, which is applied here",
    ),
)
HUB_MODELS: Mapping[str, HubModel] = MappingProxyType({model.name: model for model in _HUB_MODELS})
"""Name -> model from torch.hub, whose code runs only with --trust_remote_code.  A name that is also in NATIVE_MODELS
opens our own network; the spec `hub:...` still opens that of torch.hub."""


# --- lookup ----------------------------------------------------------------------------------------------------------


def released(backbone: str, fc_output_dim: int, method: str = "cosplace") -> ZooModel:
    """Released model with a backbone and dimension.  Raises ConfigError, with those that exist, if there is none."""
    if method.lower() not in RELEASED:
        raise ConfigError(f"Unknown method '{method}'. Choose from {', '.join(RELEASED)}.")
    method = method.lower()
    title, backbone = TITLES[method], canonical_backbone(backbone)
    if backbone not in RELEASED[method]:
        raise ConfigError(f"No {title} model was released for {backbone}. Choose from {', '.join(RELEASED[method])}.")
    name = f"{method}_{backbone.lower()}_{fc_output_dim}"
    if name not in MODELS:
        dims = ", ".join(map(str, RELEASED[method][backbone]))
        or_train = f", or train it: `cosplace train --backbone {backbone} --fc_output_dim {fc_output_dim}`"
        raise ConfigError(
            f"No {title} {backbone} was released with {fc_output_dim} dimensions. Choose from {dims}"
            f"{or_train if name == NEVER_RELEASED else ''}."
        )
    return MODELS[name]


def find_model(name: str) -> ZooModel | HubModel:
    """Model with a name, in any case, with or without separators.

    Raises ConfigError for an unknown name, with the dimensions that exist or the closest names.
    """
    known_models: dict[str, ZooModel | HubModel] = {**MODELS, **HUB_MODELS, **NATIVE_MODELS}
    by_plain = {_plain(known): model for known, model in known_models.items()}
    if _plain(name) in by_plain:
        return by_plain[_plain(name)]
    for method in RELEASED:
        # The longest backbone first: ResNet18_Small begins with ResNet18.
        for backbone in sorted(BACKBONES, key=len, reverse=True):
            parts = re.fullmatch(rf"{method}{_plain(backbone)}(\d*)", _plain(name))
            if parts and parts[1]:
                return released(backbone, int(parts[1][:9]), method)
            if parts:
                dims = RELEASED[method].get(backbone, (1,))
                released(backbone, max(dims), method)  # raises when no dimension was released
                raise ConfigError(
                    f"'{name}' has no dimension. Choose from {', '.join(map(str, dims))}, for example "
                    f"{method}_{backbone.lower()}_{max(dims)}."
                )
    name = name if len(name) <= 60 else f"{name[:60]}..."
    closest = similar_names(name, list(known_models))
    hint = f"Did you mean {either(closest)}? " if closest else ""
    raise ConfigError(
        f"Unknown model '{name}'. {hint}Use a name from `cosplace zoo list`, the path of a weights file, or "
        f"hub:owner/repo:entry(args)."
    )


def released_url(model: ZooModel, base: str | None = None) -> str:
    """URL of a released model's file: at `base`, at the mirror $COSPLACE_RELEASES, or where it was released.

    A mirror is a URL or a folder that has the files under their own names.
    """
    base = base or os.environ.get(RELEASES_VARIABLE) or ""
    if not base:
        return model.url
    if "://" not in base:
        base = Path(base).expanduser().absolute().as_uri()
    return f"{base.rstrip('/')}/{model.file_name}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
