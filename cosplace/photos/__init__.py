"""Photos as files: names, lists, decoding, resizing, batches of photos.

image_list      ImageList: the sorted photos below a folder
names           '@' file names: position, zone, heading, time
scanning        list the photos of a folder
opening         decode one photo, safely
resizing        resize to a shorter side
normalization   ImageNet mean and standard deviation
metadata        where and when a photo was taken, from its name or its EXIF block
batch_memory    photos decoded into memory that earlier batches used
loading         batches prepared ahead by threads or processes
"""
