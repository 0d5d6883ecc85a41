"""The report: a web page in one file that needs no network."""
