"""Default values that functions and flags share."""

RECALL_VALUES = (1, 5, 10, 20)  # the N of Recall@N
REPORT_MATCHES = 20  # queries whose matching points the report can draw; about 3 s on two cores
ALL_MATCHES = 1_000_000  # more queries than a page has matches for
RADIUS_M = 25.0  # a prediction is correct within this distance of its query
# To fit a reduction: 40 photos per dimension of 512.  With more, recalls change by less than their noise.
MAX_FITTED_PHOTOS = 20_000
THUMBNAIL_SIZE = 192  # pixels of the longer side
MAX_IMAGE_SIZE = 4096  # pixels of the shorter side of photos of an index; one photo takes 2 GB in a network then
EXACT_ROWS = 50_000  # up to this number of photos, a search compares all of them
NUM_MATCHES = 20  # matches that an answer reports
MIN_CONFIDENCE = 0.5  # an answer that is more often wrong than correct is reported as unknown
SPLIT_PARENTS = ("", "images", "processed", "small")  # where a dataset has train/, val/ and test/
MAX_SPEED_MPS = 20.0  # of a camera in a sequence; 72 km/h
