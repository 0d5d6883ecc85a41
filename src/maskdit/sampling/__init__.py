"""A checkpoint and seeds to images."""
