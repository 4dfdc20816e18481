"""What the card of a trained model says about its training: which photos it has seen, and how it matches others.

    training_photos      digest of the training photos, see `photos.viewpoints`
    held_out_photos      digest of photos that were held out of the training, so that they can calibrate an index
    validation_matches   similarities and relative positions of the matches of validation queries

An index that contains training photos needs both: a training photo is recognized more easily than any new photo.
Legend: Q queries, K matches.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import CheckpointError, CosPlaceError
from cosplace.models.weight_files import read_card, read_state_dict, tensors_sha256
from cosplace.photos.viewpoints import ViewpointDigest, decompress, digest_from_text, digest_text
from cosplace.shapes import fits, is_finite, is_flag, is_image_size_or_none, is_text

TRAINING_PHOTOS, HELD_OUT_PHOTOS, VALIDATION_MATCHES = "training_photos", "held_out_photos", "validation_matches"
USUAL_SIZE = "usual_size"  # shorter side, in pixels, of validation photos that keep their size
MAX_QUERIES, MAX_MATCHES = 500, 50
MAX_POLICY = 50  # characters
MIN_UNSEEN = 100  # photos of an index, other than training photos, that suffice for its calibration
DESCRIBED = {  # see `views.how_described`
    **dict.fromkeys(("image_size?", "query_size?", f"{USUAL_SIZE}?"), is_image_size_or_none),
    "query_policy?": lambda value: is_text(value) and len(value) <= MAX_POLICY,
    "scales?": [is_finite],
    "flip?": is_flag,
}
SIMILARITY, OFFSET = np.dtype("<f2"), np.dtype("<f4")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationMatches:
    """The best matches of validation queries that have a positive; neither query nor match was trained on."""

    similarities: np.ndarray  # (Q, K) float32, cosine, best first
    east_m: np.ndarray  # (Q, K) float32, from the query to the match
    north_m: np.ndarray  # (Q, K) float32
    # Size and views of the photos, as of `how_described`, and USUAL_SIZE; None in cards of earlier versions
    described: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.similarities)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCard:
    """What a model's card says about its training."""

    photos: ViewpointDigest
    matches: ValidationMatches | None  # None if there are none, or if the model was reduced since
    held_out: ViewpointDigest | None = None  # None if there are none


def card_entries(card: TrainingCard) -> dict[str, str]:
    """The entries of a model card."""
    entries = {TRAINING_PHOTOS: digest_text(card.photos)}
    if card.held_out is not None:
        entries[HELD_OUT_PHOTOS] = digest_text(card.held_out)
    if card.matches is not None:
        entries[VALIDATION_MATCHES] = _matches_text(card.matches)
    return entries


def training_entries(model: str | Path) -> dict[str, str]:
    """The entries about training in the card of a weights file; empty without them, and for models that are not files.

    A .pth file has no card: that of the .safetensors file next to it is used if it has the same tensors.
    Raises what `read_card` raises for a damaged file.
    """
    path = Path(model)
    if not path.is_file():
        return {}
    card = read_card(path)
    beside = path.with_suffix(".safetensors")
    if TRAINING_PHOTOS not in card and beside != path and beside.is_file():
        card = read_card(beside)
        if TRAINING_PHOTOS in card and card.get("tensors_sha256") != tensors_sha256(read_state_dict(path)):
            return {}
    return {key: card[key] for key in (TRAINING_PHOTOS, HELD_OUT_PHOTOS, VALIDATION_MATCHES) if key in card}


def read_training_card(model: str | Path) -> TrainingCard | None:
    """What is known about the training of a model; None if nothing is.  Raises CheckpointError for a damaged card."""
    try:
        entries = training_entries(model)
        if TRAINING_PHOTOS not in entries:
            return None
        text = entries.get(VALIDATION_MATCHES)
        matches = None if text is None else _matches_from_text(text)
        held_out = digest_from_text(entries[HELD_OUT_PHOTOS]) if HELD_OUT_PHOTOS in entries else None
        return TrainingCard(photos=digest_from_text(entries[TRAINING_PHOTOS]), matches=matches, held_out=held_out)
    except CosPlaceError as error:
        raise CheckpointError(f"{model}: {error} Copy the model again.") from error


def _matches_text(matches: ValidationMatches) -> str:
    arrays = (
        matches.similarities.astype(SIMILARITY),
        np.round(matches.east_m, 1).astype(OFFSET),
        np.round(matches.north_m, 1).astype(OFFSET),
    )
    content = zlib.compress(b"".join(array.tobytes() for array in arrays), 6)
    shape = dict(zip(("queries", "matches"), matches.similarities.shape, strict=True))
    described = {} if matches.described is None else {"described": dict(matches.described)}
    return json.dumps(shape | described | {"data": base64.b85encode(content).decode()})


def _matches_from_text(text: str) -> ValidationMatches:
    try:
        record: Mapping = json.loads(text)
        shape = int(record["queries"]), int(record["matches"])
        if not (0 < shape[0] <= MAX_QUERIES and 0 < shape[1] <= MAX_MATCHES):
            raise ValueError(f"shape {shape}")
        num_values = shape[0] * shape[1]
        raw = decompress(base64.b85decode(record["data"]), num_values * (SIMILARITY.itemsize + 2 * OFFSET.itemsize))
        similarities = np.frombuffer(raw, SIMILARITY, num_values).astype(np.float32)
        offsets = np.frombuffer(raw, OFFSET, 2 * num_values, SIMILARITY.itemsize * num_values).astype(np.float32)
        if not (np.isfinite(offsets).all() and (np.abs(similarities) <= 1.01).all()):
            raise ValueError("numbers out of range")
        described = record.get("described")
        if described is not None and not fits(described, DESCRIBED):
            raise ValueError("it has unknown views of its photos")
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, zlib.error
    ) as error:  # fmt: skip
        raise CheckpointError(f"The validation matches in the model card are damaged ({error}).") from error
    east_m, north_m = offsets.reshape(2, *shape)
    return ValidationMatches(
        similarities=similarities.reshape(shape), east_m=east_m, north_m=north_m, described=described
    )
