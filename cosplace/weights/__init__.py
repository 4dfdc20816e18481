"""Files of weights: fetched once, checked, and read without ever running code.

Downloads go to `cache_folder()`; they go on where they stopped, are checked, and only then get their name.
"""

from cosplace.weights.fetching import (
    cache_folder,
    digest_record,
    download,
    file_sha256,
    part_of,
    recorded_digest,
)
from cosplace.weights.imagenet import available_imagenet_weights, imagenet_file, imagenet_url
from cosplace.weights.tensors import read_card, read_state_dict, tensors_sha256, write_weights

__all__ = [
    "available_imagenet_weights",
    "cache_folder",
    "digest_record",
    "download",
    "file_sha256",
    "imagenet_file",
    "imagenet_url",
    "part_of",
    "read_card",
    "read_state_dict",
    "recorded_digest",
    "tensors_sha256",
    "write_weights",
]
