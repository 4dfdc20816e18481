"""A growing, searchable index of photos with their positions, on LanceDB.

records        plain data: the model of an index, its settings, photos, neighbors
filters        restrict a search to an area or a span of time
store          two Lance tables in a folder or on object storage
approximate    the approximate search index
keys           which photos an index has
snapshot       the photos of one moment, and the search among them
photo_index    open, search, add, remove, compact
photo_pixels   the pixels of an indexed photo
building       add photos: describe and store them
"""
