"""Weights of other projects for tests: the keys and shapes of their released files, and random weights of any size."""

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def dinov2_shapes(dim: int = 768, depth: int = 12, grid: int = 37, registers: int = 0, mask: bool = True) -> Shapes:
    """DINOv2's own names: facebookresearch/dinov2, a transformer with patches of 14 pixels."""
    shapes: Shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, grid * grid + 1, dim),
        "patch_embed.proj.weight": (dim, 3, 14, 14),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    if mask:
        shapes["mask_token"] = (1, dim)
    if registers:
        shapes["register_tokens"] = (1, registers, dim)
    for block in range(depth):
        shapes |= {
            f"blocks.{block}.norm1.weight": (dim,),
            f"blocks.{block}.norm1.bias": (dim,),
            f"blocks.{block}.attn.qkv.weight": (3 * dim, dim),
            f"blocks.{block}.attn.qkv.bias": (3 * dim,),
            f"blocks.{block}.attn.proj.weight": (dim, dim),
            f"blocks.{block}.attn.proj.bias": (dim,),
            f"blocks.{block}.ls1.gamma": (dim,),
            f"blocks.{block}.norm2.weight": (dim,),
            f"blocks.{block}.norm2.bias": (dim,),
            f"blocks.{block}.mlp.fc1.weight": (4 * dim, dim),
            f"blocks.{block}.mlp.fc1.bias": (4 * dim,),
            f"blocks.{block}.mlp.fc2.weight": (dim, 4 * dim),
            f"blocks.{block}.mlp.fc2.bias": (dim,),
            f"blocks.{block}.ls2.gamma": (dim,),
        }
    return shapes


def resnet_shapes(blocks: tuple[int, ...] = (3, 4, 6)) -> Shapes:
    """torchvision's names of a ResNet with bottlenecks: conv1, bn1 and the stages."""

    def norm(name: str, width: int) -> Shapes:
        return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")} | {
            f"{name}.num_batches_tracked": ()
        }

    shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            shapes |= {
                f"{name}.conv1.weight": (width, channels, 1, 1),
                **norm(f"{name}.bn1", width),
                f"{name}.conv2.weight": (width, width, 3, 3),
                **norm(f"{name}.bn2", width),
                f"{name}.conv3.weight": (4 * width, width, 1, 1),
                **norm(f"{name}.bn3", 4 * width),
            }
            if block == 0:
                shapes |= {
                    f"{name}.downsample.0.weight": (4 * width, channels, 1, 1),
                    **norm(f"{name}.downsample.1", 4 * width),
                }
            channels = 4 * width
    return shapes


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + key: shape for key, shape in shapes.items()}


def salad_shapes(dim: int = 768, cluster_dim: int = 128, hidden: int = 512, clusters: int = 64) -> Shapes:
    return {
        "dust_bin": (),
        "token_features.0.weight": (hidden, dim),
        "token_features.0.bias": (hidden,),
        "token_features.2.weight": (256, hidden),
        "token_features.2.bias": (256,),
        "cluster_features.0.weight": (hidden, dim, 1, 1),
        "cluster_features.0.bias": (hidden,),
        "cluster_features.3.weight": (cluster_dim, hidden, 1, 1),
        "cluster_features.3.bias": (cluster_dim,),
        "score.0.weight": (hidden, dim, 1, 1),
        "score.0.bias": (hidden,),
        "score.3.weight": (clusters, hidden, 1, 1),
        "score.3.bias": (clusters,),
    }


def megaloc_shapes(dim: int = 768, out: int = 8448, cluster_dim: int = 256, hidden: int = 512) -> Shapes:
    return under("agg.", salad_shapes(dim, cluster_dim, hidden)) | {
        "linear.weight": (out, 256 + 64 * cluster_dim),
        "linear.bias": (out,),
    }


def boq_shapes(channels: int, dim: int, rows: int = 32, queries: int = 64) -> Shapes:
    shapes: Shapes = {
        "proj_c.weight": (dim, channels, 3, 3),
        "proj_c.bias": (dim,),
        "norm_input.weight": (dim,),
        "norm_input.bias": (dim,),
        "fc.weight": (rows, 2 * queries),
        "fc.bias": (rows,),
    }
    for block in range(2):
        name = f"boqs.{block}"
        shapes[f"{name}.queries"] = (1, queries, dim)
        for attention in ("encoder.self_attn", "self_attn", "cross_attn"):
            shapes |= {
                f"{name}.{attention}.in_proj_weight": (3 * dim, dim),
                f"{name}.{attention}.in_proj_bias": (3 * dim,),
                f"{name}.{attention}.out_proj.weight": (dim, dim),
                f"{name}.{attention}.out_proj.bias": (dim,),
            }
        for norm in ("encoder.norm1", "encoder.norm2", "norm_q", "norm_out"):
            shapes |= {f"{name}.{norm}.weight": (dim,), f"{name}.{norm}.bias": (dim,)}
        shapes |= {
            f"{name}.encoder.linear1.weight": (4 * dim, dim),
            f"{name}.encoder.linear1.bias": (4 * dim,),
            f"{name}.encoder.linear2.weight": (dim, 4 * dim),
            f"{name}.encoder.linear2.bias": (dim,),
        }
    return shapes


def mixvpr_shapes(side: int = 20, channels: int = 1024, out: int = 1024, rows: int = 4) -> Shapes:
    positions = side * side
    shapes: Shapes = {
        "channel_proj.weight": (out, channels),
        "channel_proj.bias": (out,),
        "row_proj.weight": (rows, positions),
        "row_proj.bias": (rows,),
    }
    for layer in range(4):
        shapes |= {
            f"mix.{layer}.mix.{part}.{kind}": (positions, positions) if kind == "weight" and part else (positions,)
            for part in (0, 1, 3)
            for kind in ("weight", "bias")
        }
    return shapes


def numbered(shapes: Shapes) -> Shapes:
    """ResNet's names as numbers of a sequence: conv1, bn1, relu, maxpool, layer1 and so on."""
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return {f"{names.index(key.partition('.')[0])}.{key.partition('.')[2]}": shape for key, shape in shapes.items()}


def released(name: str, *, dim: int = 768, depth: int = 12, grid: int = 37, small: bool = False) -> Shapes:
    """Keys and shapes of a released file.  dim, depth, grid: of the transformer; small: narrow heads for fast tests."""
    vit = dinov2_shapes(dim, depth, grid)
    hidden = 32 if small else 512
    match name:
        case "megaloc":  # model.safetensors since January 2026
            bare = {key: shape for key, shape in vit.items() if key != "mask_token"}
            head = megaloc_shapes(dim, 96, 8, hidden) if small else megaloc_shapes(dim)
            return under("backbone.", bare) | under("aggregator.", head)
        case "megaloc_v1":  # megaloc.torch
            head = megaloc_shapes(dim, 96, 8, hidden) if small else megaloc_shapes(dim)
            return under("backbone.model.", vit) | under("aggregator.", head)
        case "salad":
            head = salad_shapes(dim, 8 if small else 128, hidden)
            return under("backbone.model.", vit) | under("aggregator.", head)
        case "boq_dinov2":
            return under("backbone.dino.", vit) | under("aggregator.", boq_shapes(dim, 64 if small else 384))
        case "boq_resnet50":
            head = boq_shapes(1024, 64 if small else 512)
            return under("backbone.net.", numbered(resnet_shapes())) | under("aggregator.", head)
        case "image":
            registers = dinov2_shapes(dim, depth, grid, registers=4)
            return under("backbone.", registers) | {"learnable_aggregation_tokens": (1, 8, dim)}
        case "mixvpr":
            return under("backbone.model.", resnet_shapes()) | under("aggregator.", mixvpr_shapes(5 if small else 20))
        case "conv_ap":
            head = {"channel_pool.weight": (512, 2048, 1, 1), "channel_pool.bias": (512,)}
            return under("backbone.model.", resnet_shapes((3, 4, 6, 3))) | under("aggregator.", head)
        case "netvlad":  # PyTorch's VGG-16 without its last ReLU and pooling
            layers = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
            layers |= {14: (256, 256), 17: (256, 512)} | dict.fromkeys((19, 21, 24, 26, 28), (512, 512))
            encoder: Shapes = {f"{number}.weight": (out, into, 3, 3) for number, (into, out) in layers.items()}
            encoder |= {f"{number}.bias": (out,) for number, (_, out) in layers.items()}
            clusters = 8 if small else 64
            head = {"pool.conv.weight": (clusters, 512, 1, 1), "pool.centroids": (clusters, 512)}
            return under("encoder.", encoder) | head
    raise KeyError(name)


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep numbers of moderate size: matrices by their inputs, norms near 1, LayerScale 0.3."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(7)
            continue
        value = torch.randn(shape, generator=generator)
        if key.endswith("running_var"):
            value = 0.5 + value.abs()
        elif key.endswith("gamma"):
            value = 0.3 + 0.1 * value
        elif len(shape) == 1:
            value = 0.1 * value + (1.0 if "norm" in key and key.endswith("weight") else 0.0)
            if ".bn" in key or "downsample.1" in key:
                value = value + (1.0 if key.endswith("weight") else 0.0)
        elif len(shape) >= 2 and key.endswith(("weight", "in_proj_weight")):
            value = value * (2.0 / value[0].numel()) ** 0.5
        else:
            value = 0.5 * value
        weights[key] = value
    return weights
