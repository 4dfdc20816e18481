"""What can go wrong, in words a user can act on.

Every error that a user can cause is a CosPlaceError with a one-line message: what is wrong, the value, what to do
next.  The command line prints that line and exits with code 2; anything else is our bug and keeps its traceback.
"""


class CosPlaceError(Exception):
    """Base of all errors that a user can act on."""


class ConfigError(CosPlaceError):
    """A flag or an argument has a value that cannot work, or contradicts another one."""


class DatasetError(CosPlaceError):
    """A folder of photos is missing, empty, misnamed or too small for what is asked of it."""


class ImageError(CosPlaceError):
    """One photo cannot be opened: truncated, empty, too large or no picture at all."""


class PhotoFormatError(ImageError):
    """A file is no picture of a format that is decoded here."""


class PhotoSizeError(ImageError):
    """A picture claims more pixels than are allowed; it was not decoded."""


class CheckpointError(CosPlaceError):
    """A file of weights, a checkpoint or a cache is truncated, foreign or of another architecture."""


class DownloadError(CosPlaceError):
    """Weights could not be fetched."""


class DeviceError(CosPlaceError):
    """The device asked for is not there, or has not enough memory."""


class LoadingError(DeviceError):
    """A process that loads photos was killed, or has no shared memory left."""


class StorageError(CosPlaceError):
    """A result could not be written: disk full, read-only or no permission."""


class PhotoIndexError(CosPlaceError):
    """A photo index is missing, damaged, in use by another writer, or was made with another model."""
