"""A growing, searchable index of photos with their positions, on LanceDB.

checksums       checksums of photos: changed bytes are detected when they are read
file_checksums  checksums of files
manifests       where the files of a table are
checked_files   the files of an index while it is open
roots           the folders that the paths of photos are relative to
records         plain data: the model of an index, its settings, photos, neighbors
filters         restrict a search to an area or a span of time
record_checks   whether a record has values that a writer stores
lance           the tables of an address, and the errors of Lance
identity        what tells an index from another one at its address
conditional_writes  whether an object store keeps two writers apart
writer_lease    one writer at a time on object storage
trials          try parts of an index from elsewhere in a process of its own
writer_lock     one writer at a time
photo_table     the columns of the table of photos
reader_copy     a copy of a small index in one file, opened without Lance
disk            the space that an index takes and needs
tables          two Lance tables in a folder or on object storage; the records
store           the photos in these tables
view_table      what a calibration has encoded, until it ends
search_index    the approximate search index inside the table of photos
root_folders    where the roots are now, and paths as stored
approximate     build the approximate search index, tuned by its measured recall
search_trial    try its search index
table_trial     try its tables
keys            which photos an index has
snapshot        the photos of one moment, and the search among them
photo_reader    read and search an index
photo_index     open an index; add, remove, compact
verification    find and remove damaged parts
photo_pixels    the pixels of an indexed photo
parts           which part of each dataset is indexed
sources         which photos of a folder to index
indexing        one run that adds photos: which are new, moved or changed
building        add photos: describe and store them
cluster_search  build the approximate search index on a cluster
cluster_building  describe and store photos on a cluster
syncing         synchronize an index with a folder
"""
