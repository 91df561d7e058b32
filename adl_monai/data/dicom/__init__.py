"""The DICOM door: series and enhanced objects in, derived series out, strictly, with pydicom."""
