"""Photos as files: their '@' names, the scan of a folder, opening one photo.

A list of names is one block of bytes with offsets into it: 41 million photos are an array, not 41 million Python
objects.  The map of the folder, each file importing only files above it:

    names      the fields of '@' names, many at a time
    lists      the photos below a folder, scanned or listed
    opening    one photo: a file to pixels
    stacking   a batch of photos, each decoded where it stays
"""

from cosplace.images.lists import LISTED_FILES_CHECKED, ImageList, image_list, scan_images
from cosplace.images.names import FIELDS, format_image_name, parse_fields
from cosplace.images.opening import MAX_PIXELS, open_image, open_photo_bytes
from cosplace.images.stacking import PhotoStacks, SpareMemory

__all__ = [
    "FIELDS",
    "LISTED_FILES_CHECKED",
    "MAX_PIXELS",
    "ImageList",
    "PhotoStacks",
    "SpareMemory",
    "format_image_name",
    "image_list",
    "open_image",
    "open_photo_bytes",
    "parse_fields",
    "scan_images",
]
