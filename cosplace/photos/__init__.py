"""Photos as files: names, lists, decoding, resizing, batches of photos.

paths           paths as text, to store and to print
formats         which formats are opened, detected by content
parquet_files   tables in Parquet files, read within limits
tables          a dataset as one GeoParquet table
image_list      ImageList: the sorted photos below a folder
name_bytes      the bytes of '@' file names: fields and numbers
names           '@' file names: position, zone, heading, time
headings        which headings are known: not if all are 0
xmp             properties of an XMP packet
sidecars        XMP sidecars: add an estimated position, remove it again
orientation     how a photo is stored: upright, turned or mirrored
blocks          EXIF blocks and XMP packets in files
headers         size, EXIF block and XMP packet, before the pixels are decoded
modes           any mode of a Pillow image to RGB
opening         decode one photo, safely
thumbnails      small JPEGs of photos
resizing        resize to a shorter side
crops           crops of one size from photos of any size
duplicates      near-duplicates: photos that were resized, encoded again, or taken a moment later
normalization   ImageNet mean and standard deviation
exif            position, heading and time in EXIF blocks and XMP packets
metadata        where and when a photo was taken, from its name or its EXIF block
labels          '@' texts of photos whose position is in a table or in EXIF
table_lists     the photos of a table, or of a part of it
scanning        list the photos of a folder
panoramas       perspective crops of equirectangular panoramas: the geometry
camera          altitude, pitch, roll, field of view, model and projection in EXIF blocks and XMP packets
compiled_panoramas  the same crops, compiled by numba
viewpoints      whether a photo is one of a set of photos, by position, heading and time
batch_memory    photos decoded into memory that earlier batches used
loading         batches prepared ahead by threads or processes
"""
