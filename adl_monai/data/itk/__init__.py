"""The ITK door: MetaImage and NRRD, through SimpleITK."""
