"""An HTML page of results, predictions and failures; the same pictures as files.

contents     what a report is made of: rows, metrics, groups, an evaluation
charts       curves as SVG that follows the page's light or dark colours
curves       the recall, loss, validation and distance curves of a report
maps         the classes of each group, and where queries were found, drawn into small PNGs
photos       which queries are shown, their thumbnails, pictures saved as files
style        the page's colours and layout
page         the sections, one after another, in one file without outside requests
"""

from cosplace.report.contents import RecallRow, Report
from cosplace.report.page import report_html, write_report
from cosplace.report.photos import save_predictions

__all__ = ["RecallRow", "Report", "report_html", "save_predictions", "write_report"]
