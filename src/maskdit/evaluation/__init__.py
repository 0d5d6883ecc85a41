"""Images to features to metrics: feature networks, references, FID and its relatives, reconstructions, calibration."""
