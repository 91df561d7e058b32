"""A DICOM node: series come in by C-STORE, wait in a spool on disk, are denoised and go on to a peer or a folder.

Folders and files in the spool are named by numbers and keyed hashes: no UID and nothing of a patient is in names or
messages.
"""
