"""Images to latents and back: the autoencoder, and posterior moments in memory-mapped shards."""
