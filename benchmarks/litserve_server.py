"""The same service with LitServe, which collects photos of several requests into batches.

    python -m benchmarks.litserve_server INPUTS PORT

INPUTS: as of `benchmarks.plain_server`.  Needs `pip install litserve`.
"""

import sys
from typing import Any

import torch
from fastapi import Request

from benchmarks.plain_server import PlainLocalizer

try:
    from litserve import LitAPI, LitServer  # ty: ignore[unresolved-import]
except ImportError:
    raise SystemExit("LitServe is not installed. Install it with: pip install litserve") from None

MAX_BATCH = 16
BATCH_TIMEOUT_S = 0.01  # to wait for more photos


class LocateAPI(LitAPI):
    """One worker with the network; LitServe creates it in a process of its own."""

    def setup(self, device: Any) -> None:
        """Load the network."""
        self.localizer = PlainLocalizer(sys.argv[1])

    def decode_request(self, request: Request) -> torch.Tensor:
        """Open the photo of one request: (3, H, W) uint8."""
        return self.localizer.open(request["files"].file.read())  # ty: ignore[not-subscriptable]

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Make a batch of photos of one size."""
        return torch.stack(inputs)

    def predict(self, photos: torch.Tensor) -> list[dict[str, Any]]:
        """Locate a batch."""
        return self.localizer.locate(photos)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Divide the answers among the requests."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return an answer as it is."""
        return output


if __name__ == "__main__":
    api = LocateAPI(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/locate")
    server = LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
