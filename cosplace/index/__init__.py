"""A searchable, growing index of photos with their coordinates.

    with open_index("my-city") as index:
        found = index.search(describer.describe("photo.jpg"), k=20)

The map of the folder, each file importing only files above it:

    records     plain data: the model of an index, its settings, photos, neighbours
    where       which photos may be found: near a point, in a box, in a span of time
    store       two Lance tables in a folder or on object storage; the one writer
    ledger      which photos are there, by their keys
    scanning    products of one query with many rows, compiled
    inverted    lists that millions are searched by, with their measured recall
    snapshot    the photos of one moment, and the search among them
    photo_index an index: opened, searched, added to, cleaned up
    facts       where and when a photo was taken, by its name or its EXIF block; thumbnails
    adding      photos described and stored, gone on with after a stop
"""

from cosplace.index.adding import Growth, add_photos, build_index, find_ids, find_photos
from cosplace.index.facts import Facts, facts_of_exif, make_thumbnail, photo_key, read_facts
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import Added, Columns, ModelSpec, Neighbours, NewPhoto, Photo, Settings
from cosplace.index.where import Where

__all__ = [
    "Added",
    "Columns",
    "Facts",
    "Growth",
    "ModelSpec",
    "Neighbours",
    "NewPhoto",
    "Photo",
    "PhotoIndex",
    "Settings",
    "Where",
    "add_photos",
    "build_index",
    "create_index",
    "facts_of_exif",
    "find_ids",
    "find_photos",
    "make_thumbnail",
    "open_index",
    "photo_key",
    "read_facts",
]
