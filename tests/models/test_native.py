"""Networks of other projects: the descriptors of a second implementation in numpy, and photos that are too small."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from cosplace.errors import ConfigError, InputSizeError
from cosplace.models.aggregations import AGGREGATIONS, build_aggregation
from cosplace.models.boq import BagOfQueries
from cosplace.models.layouts import network_from_release, ours
from cosplace.models.native import NativeNetwork, SizePolicy
from cosplace.models.optimal_transport import OptimalTransport, Projected, transport
from cosplace.models.pooling_heads import ConvAP, MixVPR, NetVLAD
from cosplace.models.resampling import bicubic_weights, resample
from cosplace.models.vision_transformer import TransformerSettings, VisionTransformer, dinov2_settings
from tests.models import numpy_networks as oracle
from tests.models.released_layouts import random_weights, released

SIZES = [(126, 126), (140, 196), (210, 112)]
"""Height and width: square, wide, tall; none is the size of the stored positions."""
GRID = 10
TOLERANCE = 1e-5


def as_numpy(weights: dict[str, torch.Tensor]) -> oracle.Weights:
    return {key: value.double().numpy() for key, value in weights.items()}


def random_image(height: int, width: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def network_of(name: str) -> tuple[NativeNetwork, oracle.Weights]:
    """A small network of a released layout, and its weights with our keys."""
    weights = random_weights(released(name, dim=128, depth=5, grid=GRID, small=True))
    network = network_from_release(weights)
    assert network is not None
    return network, as_numpy(ours(weights))


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("megaloc", oracle.megaloc),
        ("salad", oracle.salad),
        ("boq_dinov2", oracle.bag_of_queries),
        ("image", oracle.image_tokens),
    ],
)
def test_transformers_agree_with_numpy(name: str, head, size: tuple[int, int]) -> None:
    network, weights = network_of(name)
    image, backbone = random_image(*size), oracle.part(weights, "backbone.")
    learned = backbone["learned_tokens"][0] if name == "image" else None
    features, token = oracle.vision_transformer(
        image[0].double().numpy(), backbone, final_norm=name != "boq_dinov2", learned=learned, learned_block=1
    )
    expected = head(features, token, oracle.part(weights, "aggregator."))
    with torch.inference_mode():
        found = network(image)[0].numpy()
    assert np.abs(found - expected).max() < TOLERANCE
    assert found.shape == (network.fc_output_dim,)


@pytest.mark.parametrize("size", SIZES)
def test_patches_and_token_of_the_transformer_agree_with_numpy(size: tuple[int, int]) -> None:
    network, weights = network_of("megaloc")
    image = random_image(*size)
    features, token = oracle.vision_transformer(image[0].double().numpy(), oracle.part(weights, "backbone."))
    with torch.inference_mode():
        found, found_token = network.backbone(image)
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), features, atol=TOLERANCE * np.abs(features).max())
    np.testing.assert_allclose(found_token[0].numpy(), token, atol=TOLERANCE * np.abs(token).max())


@pytest.mark.parametrize("size", [(9, 9), (7, 13), (12, 6)])
@pytest.mark.parametrize(
    ("build", "head"),
    [
        (lambda: BagOfQueries(24, dim=64, num_queries=5, rows=3), oracle.bag_of_queries),
        (lambda: ConvAP(24, dim=6), oracle.conv_ap),
        (lambda: NetVLAD(24, num_clusters=4), oracle.netvlad),
        (lambda: OptimalTransport(24, num_clusters=7, cluster_dim=5, token_dim=6, hidden=16), oracle.salad),
        (
            lambda: Projected(OptimalTransport(24, num_clusters=7, cluster_dim=5, token_dim=6, hidden=16), 9),
            oracle.megaloc,
        ),
    ],
)
def test_aggregations_agree_with_numpy(build, head, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    aggregation = build().eval()
    features, token = torch.randn(2, 24, *size), torch.randn(2, 24)
    weights = as_numpy(dict(aggregation.state_dict()))
    with torch.inference_mode():
        found = aggregation(features, token).numpy()
    for row in range(2):
        expected = head(features[row].permute(1, 2, 0).double().numpy(), token[row].double().numpy(), weights)
        assert np.abs(found[row] - expected).max() < TOLERANCE


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_mixvpr_agrees_with_numpy_and_takes_one_grid(grid: tuple[int, int]) -> None:
    torch.manual_seed(1)
    mixvpr = MixVPR(24, grid=grid, channels_out=6, rows=2).eval()
    features = torch.randn(1, 24, *grid)
    expected = oracle.mixvpr(features[0].permute(1, 2, 0).double().numpy(), None, as_numpy(dict(mixvpr.state_dict())))
    with torch.inference_mode():
        assert np.abs(mixvpr(features)[0].numpy() - expected).max() < TOLERANCE
        larger = functional.interpolate(features, scale_factor=2)
        resized = functional.interpolate(larger, grid, mode="bilinear", antialias=True)
        torch.testing.assert_close(mixvpr(larger), mixvpr(resized))


def test_shares_are_those_of_the_marginals() -> None:
    scores = 3 * torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(0))
    shares = transport(scores, torch.tensor(0.5), iterations=200)
    torch.testing.assert_close(shares.sum(2), torch.ones(2, 4))  # each cluster receives one feature in total
    assert (shares.sum(1) < 1).all()
    far = transport(1e4 * scores, torch.tensor(0.5))  # log space: scores that overflow as powers
    assert torch.isfinite(far).all()


# --- resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(23, 23), (16, 30), (40, 20)])
def test_resampling_is_that_of_torch(size: tuple[int, int]) -> None:
    maps = torch.randn(1, 2, 37, 37, generator=torch.Generator().manual_seed(0))

    def by_matrices(**options) -> torch.Tensor:
        rows, columns = (bicubic_weights(side, 37, maps, **options) for side in size)
        return rows @ maps @ columns.T

    scale = tuple((side + 0.1) / 37 for side in size)
    dinov2 = functional.interpolate(maps, scale_factor=scale, mode="bicubic", antialias=False)
    torch.testing.assert_close(by_matrices(offset=0.1, antialias=False), dinov2, atol=3e-5, rtol=0)
    smooth = functional.interpolate(maps, size, mode="bicubic", antialias=True)
    torch.testing.assert_close(by_matrices(offset=0.0, antialias=True), smooth, atol=1e-5, rtol=0)
    bilinear = functional.interpolate(maps, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(resample(maps, *size), bilinear, atol=1e-5, rtol=0)


def test_the_grid_of_the_stored_positions_is_not_resampled() -> None:
    transformer = VisionTransformer(TransformerSettings(dim=64, depth=1, grid=5))
    stored = transformer.pos_embed[0, 1:].T.unflatten(1, (5, 5))
    torch.testing.assert_close(transformer.positions(5, 5), stored, atol=1e-7, rtol=0)
    assert not torch.allclose(transformer.positions(5, 6)[:, :, :5], stored, atol=1e-3)


def test_models_with_registers_resample_as_dinov2_does() -> None:
    assert (dinov2_settings("small").dim, dinov2_settings("large").depth, dinov2_settings("base").offset) == (
        384,
        24,
        0.1,
    )
    registers = dinov2_settings("base", registers=True)
    assert (registers.num_registers, registers.offset, registers.antialias) == (4, 0.0, True)
    with pytest.raises(ConfigError, match=r"no DINOv2 'giant'. Use small, base, large"):
        dinov2_settings("giant")


# --- sizes of photos --------------------------------------------------------------------------------------------------


def test_sides_become_the_nearest_multiple() -> None:
    policy = SizePolicy(side_multiple=14)
    for side in range(1, 400):
        assert policy.size_for(side, 28) == (round(side / 14) * 14, 28)
    assert SizePolicy(side_multiple=3).size_for(4, 5) == (3, 6)
    assert SizePolicy(fixed_size=(320, 240)).size_for(7, 9) == (320, 240)


def test_any_size_gives_the_descriptor_of_the_resized_photo() -> None:
    network, _ = network_of("salad")
    image = random_image(149, 160)
    resized = functional.interpolate(image, (154, 154), mode="bilinear", antialias=True)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), network(resized), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["megaloc", "salad"])
def test_photos_with_too_few_patches_are_refused(name: str) -> None:
    network, _ = network_of(name)
    with torch.inference_mode():
        for size in ((112, 112), (119, 119), (14, 900), (3, 5000), (1, 1)):
            with pytest.raises(InputSizeError, match=r"too small for .* needs at least 65") as error:
                network(random_image(*size))
            assert "\n" not in str(error.value)
        for size in ((120, 120), (112, 126), (14, 910)):
            assert torch.isfinite(network(random_image(*size))).all()
    with pytest.raises(InputSizeError, match=r"8 x 8 = 64 patches, but the model needs more than 64"):
        OptimalTransport(4)(torch.zeros(1, 4, 8, 8))


def test_photos_without_a_patch_are_refused() -> None:
    network, _ = network_of("image")
    with torch.inference_mode(), pytest.raises(InputSizeError, match=r"too small for ImAge"):
        network(random_image(7, 300))
    with pytest.raises(InputSizeError, match=r"20 x 28 pixels .* not multiples of 14"):
        network.backbone(random_image(28, 20))


# --- inference and training -------------------------------------------------------------------------------------------


def test_the_queries_are_kept_until_their_weights_change() -> None:
    torch.manual_seed(0)
    boq = BagOfQueries(8, dim=64, num_queries=3, rows=2).eval()
    features = torch.randn(1, 8, 5, 4)
    with torch.inference_mode():
        before = boq(features)
        assert torch.equal(boq(features), before)
    expected = boq(features)  # with gradients, nothing is kept
    torch.testing.assert_close(before, expected.detach())
    with torch.no_grad():
        boq.boqs[0].queries.mul_(-2)  # ty: ignore[not-callable]
    with torch.inference_mode():
        after = boq(features)
    torch.testing.assert_close(after, boq(features).detach())
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("name", ["megaloc", "boq_dinov2", "image"])
def test_all_weights_that_matter_get_gradients(name: str) -> None:
    network, _ = network_of(name)
    with torch.inference_mode():
        network(random_image(126, 140))  # what it keeps must not be tensors of inference mode
    network.train()
    network(random_image(126, 140)).sum().backward()
    without = [key for key, value in network.named_parameters() if value.grad is None]
    assert without == (["backbone.norm.weight", "backbone.norm.bias"] if name == "boq_dinov2" else [])


# --- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_aggregation_has_one_interface(name: str) -> None:
    torch.manual_seed(0)
    token = torch.randn(2, 8, 24) if name == "tokens" else torch.randn(2, 24)
    own = build_aggregation(name, 24).eval()
    assert own(torch.randn(2, 24, 9, 9), token).shape == (2, own.out_dim)
    small = build_aggregation(name, 24, 32).eval()
    found = small(torch.randn(2, 24, 9, 8), token)
    assert found.shape == (2, small.out_dim) == (2, 32)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_unknown_aggregations_and_dimensions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Unknown aggregation 'max'. Use gem, salad"):
        build_aggregation("max", 8)
    with pytest.raises(ConfigError, match=r"multiple of 4 dimensions, got 30"):
        build_aggregation("mixvpr", 8, 30)
    with pytest.raises(ConfigError, match=r"at least 1, got 0"):
        build_aggregation("gem", 8, 0)
    with pytest.raises(ConfigError, match=r"'tokens' needs a transformer"):
        build_aggregation("tokens", 8)(torch.zeros(1, 8, 2, 2))
