"""Photos from anywhere become a dataset: a table of positions, headings and times, beside the photos.

records           what a source yields: photos, and files that are left out with a reason
positions         how tables and tracks give positions to photos
packages          packages that only some sources need
tracks            positions and headings of a moving camera at any time
track_files       GPX files and NMEA logs
clock             offset between the clock of a camera and a track
track_positions   tracks give positions to photos by time
video_tracks      tracks inside videos
videos            frames of videos
photo_references  photos that a JSON file names
mapillary_json    descriptions of mapillary_tools, read and written
stac              STAC items of Panoramax
exif_photos       folders of photos with EXIF, XMP or '@' names
heic              HEIC, the format of iPhones, to JPEG
reading           one photo: checksum, size, EXIF; HEIC becomes JPEG
imported_datasets  datasets with a table photos.parquet
row_names         which row of a table belongs to which photo
table_files       CSV, JSON, Parquet, GeoJSON and GeoPackage as columns of raw values
columns           which column is what, and its values as numbers and times
coordinate_systems  positions in coordinate systems and UTM zones as degrees
position_columns  one table of positions: its columns as values of records
position_tables   tables give positions to photos by name
similarity        similarities estimated from positions
poses             poses of cameras, and where on Earth they are
pose_positions    reconstructions give positions and headings to photos by name
colmap            models and pose priors of COLMAP
opensfm           reconstructions of OpenSfM
nerfstudio        poses of Nerfstudio
layout_parts      photos of one split of a dataset of the field
matlab_structs    dbStruct files of Pittsburgh and Tokyo 24/7
layout_gsv_cities  GSV-Cities as it is downloaded
layout_msls       Mapillary Street-level Sequences as it is downloaded
layout_pittsburgh_tokyo  Pitts30k, Pitts250k and Tokyo 24/7 as they are downloaded
layout_numbered   Nordland and AmsterTime, whose places have numbers instead of positions
layout_st_lucia   St Lucia as it is downloaded
layout_prepared   datasets that are divided into folders already
dataset_layouts   the field's datasets: import, and evaluation where they are
table_export      a dataset as '@' names, GeoJSON, or a description for mapillary_tools
sources           the kinds of sources, and which of them a path is
report            import_report.csv, and the summary of an import
dataset_table     the table of a dataset while photos are added
panoramas         which images are panoramas, and where their center looks
cropping          perspective crops of panoramas become a dataset
placement         where each photo goes in a dataset, and putting it there
import_run        the import itself: read, annotate, copy or link, write the table
"""
