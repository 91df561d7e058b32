"""The MONAI bundles that ship with the package: values, no code."""
