"""HTML pages of results, predictions and calibration.

contents           what a report shows
style              the stylesheet
charts             curves as SVG
curves             recall, loss, validation and distance curves
maps               maps of groups and of query results
thumbnails         thumbnails of queries and predictions
page               the sections of the report
calibration_page   the calibration of an index
results            results of a run as JSON, pictures and report
"""
