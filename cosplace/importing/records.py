"""What a source of photos yields: photos with all that is known of them, and files that are left out with a reason."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.photos.tables import PhotoRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPhoto:
    """A photo of a source, which may be copied or linked into a dataset.

    A source fills in only what it knows by itself.  Size, checksum and `source` of the record are added when the photo
    is read, and with `use_exif` also position, heading, time and camera where the record lacks them.
    """

    file: Path  # where the photo is now
    record: PhotoRecord  # its path is the one in the dataset, unless another photo has the same
    content: bytes | None = None  # the encoded photo if it is not a file, as a frame of a video; `file` is the video
    converted_from: Path | None = None  # the file of the source, if `file` is not it
    use_exif: bool = True  # whether the '@' name, EXIF and XMP of the photo may fill in what the record lacks

    @property
    def named_file(self) -> Path:
        """The file that tables and reports name."""
        return self.converted_from or self.file


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A file or a row of a source that is left out, or used with a doubt."""

    name: str  # the file, or the file and the row
    reason: str  # one line
    is_left_out: bool = True


Entry = FoundPhoto | Problem
