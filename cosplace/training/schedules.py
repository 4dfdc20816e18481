"""What changes during a run: learning rate, margin, and the seed of each iteration.

The paper keeps learning rate and margin constant; the other schedules are extensions, off by default.
"""

import math

from cosplace.config.sections import TrainConfig

ITERATION_SEEDS = 0x9E3779B97F4A7C15  # spreads (seed, step) over 64 bits


def num_steps(config: TrainConfig) -> int:
    """Iterations of the whole run."""
    return config.training.epochs_num * config.training.iterations_per_epoch


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of the network at iteration `step` of the run."""
    rate = config.training.lr
    if step < config.extensions.warmup_iterations:
        rate *= (step + 1) / config.extensions.warmup_iterations
    if config.extensions.lr_schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / num_steps(config)))
    return rate


def margin(config: TrainConfig, step: int) -> float:
    """CosFace margin at iteration `step` of the run."""
    ramp = config.extensions.margin_ramp * num_steps(config)
    return config.training.margin * (min(1.0, step / ramp) if ramp else 1.0)


def iteration_seed(config: TrainConfig, step: int) -> int:
    """Seed of torch's generator at iteration `step`: only EfficientNet's stochastic depth draws from it."""
    return (config.running.seed + 1 + step * ITERATION_SEEDS) % 2**63
