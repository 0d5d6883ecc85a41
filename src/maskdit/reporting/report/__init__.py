"""The report: a page that needs no network. Imports the rest of reporting, which does not import it."""
