"""Fast training of diffusion models with masked transformers, from images to the paper's tables."""
