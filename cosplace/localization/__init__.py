"""Where a photo was taken: neighbours in an index become coordinates with a calibrated confidence.

    localizer = Localizer("indexes/city", precision=0.95)
    location = localizer.locate("photo.jpg")

The map of the folder, each file importing only files above it:

    plane        meters on the ground, anywhere on Earth
    fusion       one position from the neighbours that agree
    features     what a list of neighbours says about its answer
    confidence   from features to a probability: fitting, judging, thresholds
    answers      the record of an answer, as text, JSON, GeoJSON and CSV
    sequences    frames in time order: the way that a camera could have taken
    localizer    photos in, locations out
    changes      photos as strangers would have taken them, frames that show no place
    pages        what a calibration says, as a page with its two curves
    calibrating  an index learns from its own photos how far its answers can be trusted
    tracks       EXIF positions and times, the frames of a sequence, GPX
    closer       a second look at doubtful answers, with local features
"""

from cosplace.localization.answers import Answer, Evidence, Location, Unreadable, as_json
from cosplace.localization.calibrating import calibrate
from cosplace.localization.confidence import Calibration
from cosplace.localization.localizer import Localizer, read_calibration

__all__ = [
    "Answer",
    "Calibration",
    "Evidence",
    "Localizer",
    "Location",
    "Unreadable",
    "as_json",
    "calibrate",
    "read_calibration",
]
