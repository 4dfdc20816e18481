"""What older versions of torch cannot export."""

import pytest
import torch

needs_new_torch = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11),
    reason="older versions of torch cannot export this network for photos of any size",
)
