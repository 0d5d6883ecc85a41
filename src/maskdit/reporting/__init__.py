"""Records to what people read: tables, curves, crossings, verdicts on claims, pictures, the report."""
