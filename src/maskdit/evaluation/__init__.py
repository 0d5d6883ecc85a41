"""Images to features to metrics: feature networks, references, FID and related metrics, reconstructions, calibration."""
