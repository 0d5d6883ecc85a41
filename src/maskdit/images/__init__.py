"""What lies outside to pixels: downloads, ImageNet, folders, archives, drawings; each image is read where it lies."""
