"""Acquires images: downloads, ImageNet, folders, archives, rendered drawings. Images are read without unpacking."""
