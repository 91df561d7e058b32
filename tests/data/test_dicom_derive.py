"""What quantities need of a derived header: times, private factors, the history of compression; and texts as given."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.datadict import private_dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

from adl_monai.data.dicom.private import KEPT
from adl_monai.data.io import read_volume, write_volume
from tests.dicom_tools import findings, inconsistencies

from .conftest import build_dicom, build_enhanced

STORED = np.arange(30).reshape(6, 5).astype(np.int16)


def read(name: str) -> pydicom.FileDataset:
    path = get_testdata_file(name)
    assert path is not None
    return pydicom.dcmread(path)


def save(dataset: pydicom.Dataset, path: Path, implicit: bool = False) -> Path:
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=True)
    return path


def derived(source: Path, target: Path) -> pydicom.FileDataset:
    volume = read_volume(source)
    write_volume(target, volume.array, like=source, affine=volume.affine)
    return pydicom.dcmread(sorted(target.iterdir())[0] if target.is_dir() else target)


def emission_image(kind: UID = PositronEmissionTomographyImageStorage) -> pydicom.FileDataset:
    """A valid PET (or nearly valid NM) image, of a real CT image's pixels and general elements."""
    dataset = read("CT_small.dcm")
    dataset.remove_private_tags()
    for keyword in ("PixelPaddingValue", "DataSetTrailingPadding", "KVP", "DataCollectionDiameter", "RotationDirection",
                    "ExposureTime", "XRayTubeCurrent", "ConvolutionKernel", "GantryDetectorTilt"):  # fmt: skip
        if keyword in dataset:
            del dataset[keyword]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.Modality = "PT" if kind == PositronEmissionTomographyImageStorage else "NM"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SeriesDate = dataset.AcquisitionDate = "20200102"
    dataset.SeriesTime = dataset.AcquisitionTime = "100000"
    dataset.Units, dataset.DecayCorrection, dataset.CountsSource = "BQML", "START", "EMISSION"
    dataset.SeriesType, dataset.CorrectedImage = ["STATIC", "IMAGE"], ["ATTN", "DECY", "SCAT"]
    dataset.RandomsCorrectionMethod, dataset.CollimatorType, dataset.DecayFactor = "DLYD", "NONE", 1.01
    dataset.NumberOfSlices, dataset.ImageIndex, dataset.FrameReferenceTime = 3, 1, 60000
    dataset.ActualFrameDuration, dataset.RescaleIntercept, dataset.PatientWeight = 120000, 0, 70
    given = Dataset()
    given.RadiopharmaceuticalStartTime, given.RadionuclideTotalDose = "090000", "350000000"
    given.RadionuclideHalfLife, given.RadionuclidePositronFraction = "6586.2", "0.97"
    given.RadionuclideCodeSequence = []
    dataset.RadiopharmaceuticalInformationSequence = [given]
    for keyword in ("PatientOrientationCodeSequence", "PatientGantryRelationshipCodeSequence"):
        setattr(dataset, keyword, [])
    return dataset


def suv_factor(dataset: Dataset) -> float:
    """Body-weight SUV of 1 Bq/ml, decay counted from SeriesTime (PS3.3 C.8.9.4.1.5) within one day."""
    given = dataset.RadiopharmaceuticalInformationSequence[0]
    seconds = [
        int(time[:2]) * 3600 + int(time[2:4]) * 60 + int(time[4:6])
        for time in (given.RadiopharmaceuticalStartTime, dataset.SeriesTime)
    ]
    left = given.RadionuclideTotalDose * 2 ** (-(seconds[1] - seconds[0]) / given.RadionuclideHalfLife)
    return float(dataset.PatientWeight * 1000 / left)


def test_a_pet_series_is_valid_and_keeps_its_suv(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        dataset = emission_image()
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ImagePositionPatient, dataset.ImageIndex = [0, 0, 2.5 * index], index + 1
        dataset.InstanceNumber, dataset.RescaleSlope = index + 1, 0.5 + 0.25 * index
        save(dataset, tmp_path / "in" / f"{index}.dcm")
    made = derived(tmp_path / "in", tmp_path / "out")
    assert list(made.ImageType) == ["DERIVED", "PRIMARY"]
    assert (made.SeriesDate, made.SeriesTime) == ("20200102", "100000")
    assert made.ContentDate == made.InstanceCreationDate != made.SeriesDate
    assert suv_factor(made) == suv_factor(emission_image())
    before = set().union(*map(findings, (tmp_path / "in").iterdir()))
    assert not [line for line in before if "ImageType" in line]
    assert not set().union(*map(findings, (tmp_path / "out").iterdir())) - before
    assert inconsistencies([*(tmp_path / "out").iterdir(), *(tmp_path / "in").iterdir()]) == ""


@pytest.mark.parametrize("given", [["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"], ["ORIGINAL"], None])
def test_nm_images_are_primary(tmp_path: Path, given: list[str] | None) -> None:
    dataset = emission_image(NuclearMedicineImageStorage)
    dataset.ImageType = given
    made = derived(save(dataset, tmp_path / "a.dcm"), tmp_path / "b.dcm")
    assert list(made.ImageType) == ["DERIVED", "PRIMARY", *(given or [])[2:]]


def test_a_series_without_a_time_gets_none(tmp_path: Path) -> None:
    made = derived(build_dicom(tmp_path / "a.dcm", STORED), tmp_path / "b.dcm")
    assert "SeriesDate" not in made
    assert "SeriesTime" not in made


VALUES: dict[str, Any] = {"DS": "0.5", "IS": "1000", "FD": [0.6, 0.8, 0.0], "FL": 0.0625, "CS": "DIRECTIONAL",
                          "DT": "20200102100000.00"}  # fmt: skip


def add_private(dataset: Dataset) -> None:
    """All that is kept, amid what is not: in the same blocks, in others, and blocks of one number for other vendors."""
    dataset.private_block(0x0019, "SIEMENS CSA HEADER", create=True).add_new(0x0C, "LO", "SECRET")
    dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"SECRET")
    dataset.private_block(0x2001, "GEMS_PARM_01", create=True).add_new(0x39, "LO", "SECRET")
    dataset.add_new((0x7053, 0x2000), "LO", "SECRET")  # in no block
    for (group, creator), elements in KEPT.items():
        block = dataset.private_block(group, creator, create=True)
        block.add_new(0x01, "LO", "SECRET")
        for element in elements:
            vr = private_dictionary_VR(block.get_tag(element), creator)
            if vr != "SQ":
                block.add_new(element, vr, VALUES[vr])


@pytest.mark.parametrize("implicit", [False, True])
def test_private_elements_that_quantities_need_are_kept_and_no_others(tmp_path: Path, implicit: bool) -> None:
    dataset = read("MR_small.dcm")
    dataset.remove_private_tags()
    add_private(dataset)
    frame = Dataset()  # what Philips says of a frame
    add_private(frame)
    frame.InstanceCreationDate = "20200102"
    dataset.private_block(0x2005, "Philips MR Imaging DD 005").add_new(0x0F, "SQ", [copy.deepcopy(frame)])
    item = Dataset()
    add_private(item)
    item.Manufacturer = "Scanner"
    dataset.ContributingEquipmentSequence = [item]
    source = save(dataset, tmp_path / "a.dcm", implicit)
    made = derived(source, tmp_path / "b.dcm")
    inner = made.private_block(0x2005, "Philips MR Imaging DD 005")[0x0F].value[0]
    for place, was in ((made, dataset), (inner, frame), (made.ContributingEquipmentSequence[0], item)):
        expected = set()
        for (group, creator), elements in KEPT.items():
            block, before = place.private_block(group, creator), was.private_block(group, creator)
            expected |= {pydicom.tag.Tag(group, block.block_start >> 8)}
            for element in elements:
                if element not in before:
                    continue
                expected |= {block.get_tag(element)}
                assert block[element].VR == before[element].VR
                if before[element].VR != "SQ":
                    assert block[element].value == before[element].value
        assert {element.tag for element in place if element.tag.is_private} == expected
    assert "InstanceCreationDate" not in inner, "public elements of a private item are the source's"
    assert b"SECRET" not in (tmp_path / "b.dcm").read_bytes()
    assert not findings(tmp_path / "b.dcm") - findings(source)


def test_a_private_element_that_cannot_be_parsed_is_dropped(tmp_path: Path) -> None:
    dataset = read("MR_small.dcm")
    dataset.remove_private_tags()
    dataset.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "UN", b"\0" * 6)  # no float32
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "1000")
    source = save(dataset, tmp_path / "a.dcm")
    made = derived(source, tmp_path / "b.dcm")
    assert [element.tag for element in made if element.tag.is_private] == [0x00190010, 0x0019100C]


def test_frames_keep_them_too(tmp_path: Path) -> None:
    source = build_enhanced(tmp_path / "e.dcm", [STORED.astype(np.uint16)] * 2, [0, 2.5])
    dataset = pydicom.dcmread(source)
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        groups.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", 1000.0 * index)
        groups.private_block(0x2001, "Philips Imaging DD 001").add_new(0x05, "FL", 1.0)
    dataset.save_as(source)
    made = derived(source, tmp_path / "out.dcm")
    for index, groups in enumerate(made.PerFrameFunctionalGroupsSequence):
        block = groups.private_block(0x2001, "Philips Imaging DD 001")
        assert block[0x03].value == 1000.0 * index
        assert 0x05 not in block


@pytest.mark.parametrize("name, method", [("JPEGLSNearLossless_16.dcm", "ISO_14495_1"), ("693_J2KI.dcm", "ISO_15444_1"),
                                          ("MR_small_jp2klossless.dcm", None), ("MR_small_RLE.dcm", None)])  # fmt: skip
def test_lossy_compression_is_not_forgotten(tmp_path: Path, name: str, method: str | None) -> None:
    dataset = read(name)
    for keyword in ("LossyImageCompression", "LossyImageCompressionMethod", "LossyImageCompressionRatio"):
        if keyword in dataset:
            del dataset[keyword]
    dataset.save_as(tmp_path / "a.dcm")
    made = derived(tmp_path / "a.dcm", tmp_path / "b.dcm")
    assert made.get("LossyImageCompression") == (None if method is None else "01")
    assert made.get("LossyImageCompressionMethod") == method
    assert "LossyImageCompressionRatio" not in made


@pytest.mark.parametrize("implicit", [False, True])
def test_texts_that_are_not_in_their_character_set_keep_their_bytes(tmp_path: Path, implicit: bool) -> None:
    dataset = read("MR_small.dcm")
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^Ö"
    dataset.SeriesDescription, dataset.DerivationDescription, dataset.InstitutionName = "Schädel", "früh", "Köln\\ß"
    source = save(dataset, tmp_path / "a.dcm", implicit)
    source.write_bytes(source.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 192"))  # which is UTF-8
    made = derived(source, tmp_path / "b.dcm")
    for keyword, expected in (("PatientName", "Müller^Ö"), ("SeriesDescription", "Schädel [denoised]"),
                              ("InstitutionName", "Köln\\ß")):  # fmt: skip
        assert made.get_item(keyword).value.strip() == expected.encode("latin-1"), keyword
    assert made.get_item("DerivationDescription").value.startswith("früh; Denoised with".encode("latin-1"))


def test_a_description_of_two_values_stays_one_text(tmp_path: Path) -> None:
    source = build_dicom(tmp_path / "a.dcm", STORED, SeriesDescription=["T1", "axial"])
    assert derived(source, tmp_path / "b.dcm").get_item("SeriesDescription").value.strip() == b"T1\\axial [denoised]"
