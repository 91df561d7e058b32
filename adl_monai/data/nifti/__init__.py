"""The NIfTI door: whole files, and files larger than the memory box by box."""
