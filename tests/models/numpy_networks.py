"""Networks of other projects in plain numpy, float64, from the formulas of their papers: the oracle of parity tests.

Weights are dicts with the keys of the released files, without the prefix of the part.  One photo at a time.
"""

import math

import numpy as np

Weights = dict[str, np.ndarray]


def part(weights: Weights, prefix: str) -> Weights:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def unit(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=axis, keepdims=True), 1e-12)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    x = np.exp(x - x.max(axis, keepdims=True))
    return x / x.sum(axis, keepdims=True)


def layer_norm(x: np.ndarray, w: Weights, eps: float) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * w["weight"] + w["bias"]


def linear(x: np.ndarray, w: Weights) -> np.ndarray:
    matrix = w["weight"].reshape(len(w["weight"]), -1)  # of a 1 x 1 convolution too
    return x @ matrix.T + w["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, heads: int) -> np.ndarray:
    """Scaled dot-product attention of (q, D), (n, D), (n, D), head by head."""
    width = queries.shape[1] // heads
    outputs = []
    for head in range(heads):
        s = slice(head * width, (head + 1) * width)
        shares = softmax(queries[:, s] @ keys[:, s].T / math.sqrt(width))
        outputs.append(shares @ values[:, s])
    return np.concatenate(outputs, 1)


# --- DINOv2 -----------------------------------------------------------------------------------------------------------


def cubic(x: float, a: float) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def bicubic_line(values: np.ndarray, size: int, scale: float) -> np.ndarray:
    """Bicubic resampling of (S, ...) to (size, ...) with a = -0.75, half-pixel centers, repeated borders."""
    rows = []
    for i in range(size):
        x = (i + 0.5) / scale - 0.5
        first = math.floor(x)
        taps = range(first - 1, first + 3)
        rows.append(sum(cubic(x - t, -0.75) * values[min(max(t, 0), len(values) - 1)] for t in taps))
    return np.stack(rows)


def positions(stored: np.ndarray, height: int, width: int) -> np.ndarray:
    """Positions (height width, D) from those of a square grid, as DINOv2's models without registers compute them."""
    side = math.isqrt(len(stored))
    grid = stored.reshape(side, side, -1)
    if (height, width) != (side, side):
        grid = bicubic_line(grid, height, (height + 0.1) / side)
        grid = bicubic_line(grid.swapaxes(0, 1), width, (width + 0.1) / side).swapaxes(0, 1)
    return grid.reshape(height * width, -1)


def vision_transformer(
    image: np.ndarray, w: Weights, *, final_norm: bool = True, learned: np.ndarray | None = None, learned_block: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Patches (h, w, D) and class token (D,), or the learned tokens (T, D), of an image (3, H, W)."""
    _, height, width = image.shape
    h, w_ = height // 14, width // 14
    pixels = image.reshape(3, h, 14, w_, 14).transpose(1, 3, 0, 2, 4).reshape(h * w_, -1)
    patches = linear(pixels, part(w, "patch_embed.proj."))
    dim = patches.shape[1]
    patches = patches + positions(w["pos_embed"][0, 1:], h, w_)
    tokens = [w["cls_token"][0] + w["pos_embed"][0, :1]]
    if "register_tokens" in w:
        tokens.append(w["register_tokens"][0])
    num_first = sum(map(len, tokens))
    x = np.concatenate([*tokens, patches])
    depth = len({key.split(".")[1] for key in w if key.startswith("blocks.")})
    for number in range(depth):
        if learned is not None and number == learned_block:
            x = np.concatenate([learned, x])
        b = part(w, f"blocks.{number}.")
        y = layer_norm(x, part(b, "norm1."), 1e-6)
        q, k, v = np.split(linear(y, part(b, "attn.qkv.")), 3, axis=1)
        x = x + b["ls1.gamma"] * linear(attend(q, k, v, max(1, dim // 64)), part(b, "attn.proj."))
        y = layer_norm(x, part(b, "norm2."), 1e-6)
        x = x + b["ls2.gamma"] * linear(gelu(linear(y, part(b, "mlp.fc1."))), part(b, "mlp.fc2."))
    if final_norm:
        x = layer_norm(x, part(w, "norm."), 1e-6)
    num_learned = 0 if learned is None else len(learned)
    features = x[num_learned + num_first :].reshape(h, w_, dim)
    return features, x[:num_learned] if num_learned else x[0]


# --- aggregations -----------------------------------------------------------------------------------------------------


def sinkhorn(scores: np.ndarray, dust_bin: float, iterations: int = 3) -> np.ndarray:
    """Shares (M, n) from scores (M, n): rows and columns are scaled in turn to the marginals 1 / (M + n)."""
    m, n = scores.shape
    plan = np.exp(np.vstack([scores, np.full((1, n), dust_bin)]))
    rows = np.full(m + 1, 1 / (m + n))
    rows[m] = (n - m) / (m + n)
    columns = np.full(n, 1 / (m + n))
    for _ in range(iterations):
        plan = plan * (rows / plan.sum(1))[:, None]
        plan = plan * (columns / plan.sum(0))
    return (plan * (m + n))[:m]


def salad(features: np.ndarray, token: np.ndarray, w: Weights) -> np.ndarray:
    """Descriptor of features (h, w, D) and a token (D,)."""
    f = features.reshape(-1, features.shape[-1])

    def two_layers(x: np.ndarray, name: str, second: int) -> np.ndarray:
        return linear(np.maximum(linear(x, part(w, f"{name}.0.")), 0), part(w, f"{name}.{second}."))

    shares = sinkhorn(two_layers(f, "score", 3).T, float(w["dust_bin"]))
    values = two_layers(f, "cluster_features", 3)  # (n, L)
    clusters = unit(np.einsum("nl,mn->lm", values, shares), axis=0)
    own = unit(two_layers(token[None], "token_features", 2)[0])
    return unit(np.concatenate([own, clusters.reshape(-1)]))


def megaloc(features: np.ndarray, token: np.ndarray, w: Weights) -> np.ndarray:
    return unit(linear(salad(features, token, part(w, "agg."))[None], part(w, "linear."))[0])


def attention(queries: np.ndarray, values: np.ndarray, w: Weights) -> np.ndarray:
    """torch's multi-head attention with 64 dimensions per head."""
    dim = queries.shape[1]
    matrices, biases = np.split(w["in_proj_weight"], 3), np.split(w["in_proj_bias"], 3)
    q, k, v = (x @ matrix.T + bias for x, matrix, bias in zip((queries, values, values), matrices, biases, strict=True))
    return linear(attend(q, k, v, max(1, dim // 64)), part(w, "out_proj."))


def convolve_3x3(features: np.ndarray, w: Weights) -> np.ndarray:
    """Convolution of (h, w, C) with zeros around it."""
    h, width, _ = features.shape
    padded = np.pad(features, ((1, 1), (1, 1), (0, 0)))
    total = np.zeros((h, width, len(w["bias"]))) + w["bias"]
    for dy in range(3):
        for dx in range(3):
            total = total + padded[dy : dy + h, dx : dx + width] @ w["weight"][:, :, dy, dx].T
    return total


def bag_of_queries(features: np.ndarray, token: object, w: Weights) -> np.ndarray:
    x = convolve_3x3(features, part(w, "proj_c."))
    x = layer_norm(x.reshape(-1, x.shape[-1]), part(w, "norm_input."), 1e-5)
    found = []
    for number in range(2):
        b = part(w, f"boqs.{number}.")
        e = part(b, "encoder.")
        x = layer_norm(x + attention(x, x, part(e, "self_attn.")), part(e, "norm1."), 1e-5)
        hidden = np.maximum(linear(x, part(e, "linear1.")), 0)
        x = layer_norm(x + linear(hidden, part(e, "linear2.")), part(e, "norm2."), 1e-5)
        q = b["queries"][0]
        q = layer_norm(q + attention(q, q, part(b, "self_attn.")), part(b, "norm_q."), 1e-5)
        found.append(layer_norm(attention(q, x, part(b, "cross_attn.")), part(b, "norm_out."), 1e-5))
    return unit(linear(np.concatenate(found).T, part(w, "fc.")).reshape(-1))


def image_tokens(features: object, tokens: np.ndarray, w: Weights) -> np.ndarray:
    return unit(tokens.reshape(-1))


def mixvpr(features: np.ndarray, token: object, w: Weights) -> np.ndarray:
    x = features.reshape(-1, features.shape[-1]).T  # (C, n)
    for number in range(len({key.split(".")[1] for key in w if key.startswith("mix.")})):
        b = part(w, f"mix.{number}.mix.")
        y = np.maximum(linear(layer_norm(x, part(b, "0."), 1e-5), part(b, "1.")), 0)
        x = x + linear(y, part(b, "3."))
    return unit(linear(linear(x.T, part(w, "channel_proj.")).T, part(w, "row_proj.")).reshape(-1))


def conv_ap(features: np.ndarray, token: object, w: Weights) -> np.ndarray:
    x = linear(features, part(w, "channel_pool."))
    h, width, _ = x.shape
    cells = [
        [x[i * h // 2 : -(-(i + 1) * h // 2), j * width // 2 : -(-(j + 1) * width // 2)].mean((0, 1)) for j in range(2)]
        for i in range(2)
    ]
    return unit(np.array(cells).transpose(2, 0, 1).reshape(-1))


def netvlad(features: np.ndarray, token: object, w: Weights) -> np.ndarray:
    x = unit(features.reshape(-1, features.shape[-1]))
    matrix, centroids = w["conv.weight"].reshape(len(w["conv.weight"]), -1), w["centroids"]
    shares = softmax(x @ matrix.T)  # (n, K)
    clusters = [(shares[:, k, None] * (x - centroids[k])).sum(0) for k in range(len(centroids))]
    return unit(unit(np.array(clusters)).reshape(-1))
