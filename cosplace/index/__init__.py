"""A growing, searchable index of photos with their positions, on LanceDB.

checksums       checksums of photos: changed bytes are detected when they are read
file_checksums  checksums of files
roots           the folders that the paths of photos are relative to
records         plain data: the model of an index, its settings, photos, neighbors
filters         restrict a search to an area or a span of time
lance           the tables of an address, and the errors of Lance
photo_table     the columns of the table of photos
store           two Lance tables in a folder or on object storage
writer_lock     one writer at a time
root_folders    where the roots are now, and paths as stored
approximate     the approximate search index
keys            which photos an index has
snapshot        the photos of one moment, and the search among them
photo_index     open, search, add, remove, compact
verification    find and remove damaged parts
photo_pixels    the pixels of an indexed photo
parts           which part of each dataset is indexed
sources         which photos of a folder to index
building        add photos: describe and store them
syncing         synchronize an index with a folder
"""
