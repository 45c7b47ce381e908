"""The report: figures, charts, tables and the page."""
