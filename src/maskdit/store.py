"""Encoded images where they lie, in folders, tar and zip files or parquet tables: read one by one at random, never unpacked."""
