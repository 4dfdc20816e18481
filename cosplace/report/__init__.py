"""HTML pages of results, predictions and calibration.

words               counts, distances and labels as text
data                what a report shows
colors              colors of maps and images
charts              charts as SVG
curves              recall, loss, validation and distance charts
maps                maps of groups and of query results
thumbnails          small copies of photos
prediction_images   predictions saved as images and as a table
render              pages from the templates of the folder templates/
page                the report of a run
validation_page     the check of a dataset
calibration_page    the calibration of an index
results             results.json, images and report of a run
"""
