"""The TIFF door, through tifffile."""
