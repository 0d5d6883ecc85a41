"""The report: a page that needs no network. The rest of reporting does not import it."""
