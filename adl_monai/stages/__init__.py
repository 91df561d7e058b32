"""One file for each command of the command line; no arithmetic on images in them."""
