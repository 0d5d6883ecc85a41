"""Results for readers: tables, curves, crossings, verdicts on claims, pictures and the report."""
