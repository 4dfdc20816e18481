"""Errors that a user can act on.

Each is a CosPlaceError with a one-line message: what is wrong, the value, what to do next.  The command line prints
that line and exits with code 2; any other exception is a bug and keeps its traceback.
"""


class CosPlaceError(Exception):
    """Base class of all errors that a user can act on."""


class ConfigError(CosPlaceError):
    """A flag or an argument has an invalid value, or contradicts another one."""


class DatasetError(CosPlaceError):
    """A folder of photos is missing, empty or too small, or its photos have other names than expected."""


class ImageError(CosPlaceError):
    """A photo cannot be read: truncated, empty, too large or not an image."""


class PhotoFormatError(ImageError):
    """A file is not an image of a supported format."""


class PhotoSizeError(ImageError):
    """An image has more pixels than allowed; it was not decoded."""


class CheckpointError(CosPlaceError):
    """A weights file, a checkpoint or a cache is truncated, of another program or of another architecture."""


class DownloadError(CosPlaceError):
    """Weights could not be downloaded."""


class DeviceError(CosPlaceError):
    """A device is not available, or has too little memory."""


class LoadingError(DeviceError):
    """A process that loads photos was killed, or has no shared memory left."""


class StorageError(CosPlaceError):
    """A result could not be written: the disk is full or read-only, or permission is missing."""


class PhotoIndexError(CosPlaceError):
    """A photo index is missing, damaged, in use by another writer, or built with another model."""
