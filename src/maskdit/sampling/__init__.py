"""Images from a checkpoint and seeds."""
