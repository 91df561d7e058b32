import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from adl_monai.data.dicom.read import read_dicom
from adl_monai.data.geometry import lps_to_ras, ras_to_lps
from adl_monai.errors import AdlError, ScanFileError, SeriesGeometryError, UsageError

from .conftest import build_dicom, build_series

SERIES = Path(str(get_testdata_file("CT_small.dcm"))).parent / "dicomdirtests"
EVEN = [0.0, 2.5, 5.0, 7.5, 10.0]


def real_file(name: str) -> Path:
    path = get_testdata_file(name)
    assert path is not None
    return Path(path)


def itk_series(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def assert_same_as_itk(folder: Path) -> None:
    volume, image = read_dicom(folder), itk_series(folder)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image).T.astype(np.float32))
    for index in ((0, 0, 0), tuple(length - 1 for length in volume.array.shape), (1, 2, 1)):
        ours = ras_to_lps(volume.affine) @ [*index, 1]
        assert np.allclose(ours[:3], image.TransformIndexToPhysicalPoint([int(i) for i in index]), atol=1e-4)


def test_a_real_series_agrees_with_itk() -> None:
    assert_same_as_itk(SERIES / "98892001" / "CT5N")
    volume = read_dicom(SERIES / "98892001" / "CT5N")
    assert volume.array.shape == (16, 16, 5)
    assert np.allclose(volume.spacing, (0.488281, 0.488281, 2.5))
    assert volume.format == "dicom"


def test_an_oblique_shuffled_series_agrees_with_itk(tmp_path: Path) -> None:
    orientation = np.array([0.8, 0.6, 0.0, -0.36, 0.48, -0.8])
    normal = np.cross(orientation[:3], orientation[3:])
    rng = np.random.default_rng(0)
    for index, place in enumerate([3, 0, 4, 1, 2]):
        build_dicom(
            tmp_path / f"{index}.dcm",
            rng.integers(-900, 900, (7, 5)).astype(np.int16),
            ImageOrientationPatient=orientation.tolist(),
            ImagePositionPatient=np.round(np.array([-10, 20, 30]) + 1.75 * place * normal, 6).tolist(),
            InstanceNumber=5 - index,
            SOPInstanceUID=f"1.2.3.4.{index}",
        )
    assert_same_as_itk(tmp_path)
    assert read_dicom(tmp_path).array.shape == (5, 7, 5)


@pytest.mark.parametrize(
    "folder, word",
    [
        ("98892003/MR700", "ImageOrientationPatient"),  # seven radial planes
        ("98892001/CT2N", "ImageOrientationPatient"),  # two localizers
        ("77654033/CT2", "slice missing: 202.500 mm"),
    ],
)
def test_real_series_that_are_no_volume(folder: str, word: str) -> None:
    with pytest.raises(SeriesGeometryError, match=word):
        read_dicom(SERIES / folder)


def test_several_real_series_are_listed_and_can_be_chosen() -> None:
    folder = SERIES / "98892003" / "MR2"
    with pytest.raises(UsageError) as caught:
        read_dicom(folder)
    assert str(caught.value).count("SeriesNumber 2, MR, ") == 3
    assert "3 images" in str(caught.value)
    with pytest.raises(UsageError, match="3 series called '2'"):
        read_dicom(folder, "2")
    uid = str(pydicom.dcmread(folder / "15970").SeriesInstanceUID)
    assert uid in str(caught.value)
    assert read_dicom(folder, uid).array.shape == (16, 16)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
                                  "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_padded.dcm",
                                  "MR_small_jpeg_ls_lossless.dcm"])  # fmt: skip
def test_single_real_files(name: str) -> None:
    volume = read_dicom(real_file(name))
    dataset = pydicom.dcmread(real_file(name))
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    assert np.array_equal(volume.array, (dataset.pixel_array * slope + intercept).T.astype(np.float32))
    assert volume.array.ndim == 2
    assert np.allclose(ras_to_lps(volume.affine)[:3, 3], np.array(dataset.ImagePositionPatient, float))
    assert np.allclose(volume.spacing, np.array(dataset.PixelSpacing, float)[::-1])


def test_radiographs_keep_their_stored_values_and_lie_at_the_origin(caplog: pytest.LogCaptureFixture) -> None:
    path = SERIES / "77654033" / "CR1" / "6154"  # MONOCHROME1, no position
    volume = read_dicom(path)
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    assert np.array_equal(volume.array, expected.T.astype(np.float32))
    assert np.array_equal(volume.affine, lps_to_ras(np.diag([0.1, 0.1, 1, 1])))  # ImagerPixelSpacing
    assert "placed at the origin" in caplog.text


def test_the_size_of_a_radiograph_s_pixels_is_that_in_the_patient(tmp_path: Path) -> None:
    """PixelSpacing, where it is given beside that at the detector; between rows first."""
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    path = build_dicom(tmp_path / "dx.dcm", np.eye(6, 5, dtype=np.uint16), ImagerPixelSpacing=[1.5, 1.0], **nowhere)
    assert read_dicom(path).spacing == (0.5, 0.75)


@pytest.mark.parametrize(
    "name, word",
    [
        ("JPEG-lossy.dcm", "JPEG Extended"),
        ("MR_truncated.dcm", "8130 bytes of 8192"),
        ("examples_rgb_color.dcm", "RGB"),
        ("examples_palette.dcm", "PALETTE COLOR"),
        ("examples_ybr_color.dcm", "multi-frame"),
        ("rtdose.dcm", "RT Dose Storage"),
        ("liver_1frame.dcm", "Segmentation Storage"),
        ("badVR.dcm", "RT Dose Storage"),
        ("test-SR.dcm", "not a DICOM image"),
        ("rtplan.dcm", "not a DICOM image"),
        ("README.txt", "not a DICOM image"),
    ],
)
def test_real_files_that_are_refused(name: str, word: str) -> None:
    with pytest.raises(ScanFileError, match=word) as caught:
        read_dicom(real_file(name))
    assert "\n" not in str(caught.value)


def test_files_without_a_part_10_header(tmp_path: Path) -> None:
    path = build_dicom(tmp_path / "scan.dcm", np.arange(30, dtype=np.int16).reshape(6, 5))
    whole = read_dicom(path)
    dataset = pydicom.dcmread(path)
    pydicom.dcmwrite(tmp_path / "bare.dcm", pydicom.Dataset(dataset), implicit_vr=True, little_endian=True)
    assert (tmp_path / "bare.dcm").read_bytes()[128:132] != b"DICM"
    bare = read_dicom(tmp_path / "bare.dcm")
    assert np.array_equal(bare.array, whole.array)
    assert np.array_equal(bare.affine, whole.affine)


@pytest.mark.parametrize("seed", range(3))
def test_slices_are_sorted_by_position_whatever_names_and_numbers_say(tmp_path: Path, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(5)
    build_series(tmp_path, [EVEN[index] for index in order])
    volume = read_dicom(tmp_path)
    for place, name in enumerate(np.argsort(order)):
        stored = pydicom.dcmread(tmp_path / f"{name:03d}.dcm").pixel_array
        assert np.array_equal(volume.array[..., place], stored.T.astype(np.float32) - 1024)
    assert np.allclose(volume.affine, lps_to_ras(np.array(
        [[0.5, 0, 0, -10], [0, 0.75, 0, 20], [0, 0, 2.5, 0], [0, 0, 0, 1]])))  # fmt: skip


@pytest.mark.parametrize(
    "heights, word",
    [
        ([0, 2.5, 7.5, 10], "slice missing: 5.000 mm .*001.dcm and 002.dcm"),
        ([0, 2.5, 12.5], "slice missing: 10.000 mm"),
        ([0, 2.5, 6.1, 8.6], "uneven slices: 3.600 mm"),
        ([0, 2.5, 5.1, 7.5], "uneven slices: 2.600 mm"),
        ([0, 2.5, 2.5, 5], "lie at one place"),
    ],
)
def test_irregular_heights(tmp_path: Path, heights: list[float], word: str) -> None:
    build_series(tmp_path, heights)
    with pytest.raises(SeriesGeometryError, match=word):
        read_dicom(tmp_path)


def test_rounded_positions_are_regular_enough(tmp_path: Path) -> None:
    heights = np.round(np.arange(12) * 0.625, 2)
    build_series(tmp_path, heights.tolist())
    assert np.isclose(read_dicom(tmp_path).spacing[2], 0.625, atol=1e-3)


def test_exact_copies_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = build_series(tmp_path, EVEN)
    whole = read_dicom(tmp_path)
    shutil.copy(paths[2], tmp_path / "copy.dcm")
    again = read_dicom(tmp_path)
    assert np.array_equal(again.array, whole.array)
    assert "1 exact copies" in caplog.text
    rescaled = pydicom.dcmread(paths[2])
    rescaled.RescaleIntercept = 0
    rescaled.save_as(tmp_path / "copy.dcm")
    with pytest.raises(SeriesGeometryError, match="differ but lie at one place"):
        read_dicom(tmp_path)


def shifted(index: int, step: list[float]) -> list[float]:
    return [-10 + index * step[0], 20 + index * step[1], index * step[2]]


def test_gantry_tilt_is_refused_with_its_angle(tmp_path: Path) -> None:
    for index, path in enumerate(build_series(tmp_path, EVEN)):
        edit(path, ImagePositionPatient=shifted(index, [0, 2.5 * np.tan(np.radians(15)), 2.5]))
    with pytest.raises(SeriesGeometryError, match=r"15\.0 degrees"):
        read_dicom(tmp_path)


def edit(path: Path, **elements: Any) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                setattr(dataset, keyword, value)
    dataset.save_as(path)


@pytest.mark.parametrize(
    "elements, word",
    [
        ({"PatientID": "OTHER-ID"}, "PatientID"),
        ({"FrameOfReferenceUID": "9.9"}, "FrameOfReferenceUID"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient is missing"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "not two perpendicular"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}, "not two perpendicular"),
        ({"ImageOrientationPatient": [0.6, 0.8, 0, -0.8, 0.6, 0]}, "differ in ImageOrientationPatient"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"PixelSpacing": [0, 0.5]}, "not two positive"),
        ({"PixelSpacing": [0.75, 0.6]}, "differ in PixelSpacing"),
        ({"Rows": 5, "PixelData": b"\0" * 50}, r"Rows and Columns \(\(6, 5\) and \(5, 5\)\)"),
    ],
)
def test_one_odd_slice_spoils_the_series(tmp_path: Path, elements: dict[str, Any], word: str) -> None:
    paths = build_series(tmp_path, EVEN)
    edit(paths[3], **elements)
    with pytest.raises(SeriesGeometryError, match=word) as caught:
        read_dicom(tmp_path)
    assert "SECRET" not in str(caught.value)
    assert "OTHER" not in str(caught.value)


@pytest.mark.parametrize(
    "elements, word",
    [
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"RescaleSlope": "1e300"}, "float32"),
        ({"SamplesPerPixel": 3}, "PhotometricInterpretation"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"NumberOfFrames": 2}, "multi-frame"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "Modality LUT"),
        ({"BitsStored": 12, "HighBit": 15}, "HighBit 15"),
        ({"BitsAllocated": 1}, "BitsAllocated 1"),
        ({"Rows": 0}, "Rows is 0"),
        ({"PixelData": b"\0" * 58}, "58 bytes of 60"),
        ({"PixelData": None}, "0 bytes of 60"),
    ],
)
def test_one_bad_file_spoils_the_series(tmp_path: Path, elements: dict[str, Any], word: str) -> None:
    paths = build_series(tmp_path, EVEN)
    edit(paths[3], **elements)
    with pytest.raises(ScanFileError, match=word) as caught:
        read_dicom(tmp_path)
    assert paths[3].name in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_truncated_file_of_a_series_is_never_skipped(tmp_path: Path) -> None:
    """Cut anywhere after the DICOM prefix: the last slice would vanish without leaving a gap."""
    path = build_series(tmp_path, EVEN)[-1]
    whole = path.read_bytes()
    refused = 0
    for length in range(400, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(AdlError):
            read_dicom(tmp_path)
        refused += 1
    assert refused > 50


@pytest.mark.parametrize("place", [0, -1])
def test_a_slice_whose_class_was_damaged_is_never_skipped(tmp_path: Path, place: int) -> None:
    """It says that it is a kind of object that has no image, and its Rows are lost; its file's header still tells."""
    path = build_series(tmp_path, EVEN)[place]
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.10"  # Standalone Modality LUT Storage
    del dataset.Rows, dataset.Columns, dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(ScanFileError, match=rf"{path.name}.*cut short"):
        read_dicom(tmp_path)


def test_per_slice_rescale_is_exact(tmp_path: Path) -> None:
    """ITK rounds such a series (PET) to int16."""
    slopes = [0.5, 1.25, 3.0, 0.01, 7.7]
    for index, path in enumerate(build_series(tmp_path, EVEN)):
        edit(path, RescaleSlope=slopes[index], RescaleIntercept=index)
    volume = read_dicom(tmp_path)
    for index, slope in enumerate(slopes):
        stored = pydicom.dcmread(tmp_path / f"{index:03d}.dcm").pixel_array.astype(float)
        assert np.array_equal(volume.array[..., index], (stored * slope + index).T.astype(np.float32))


@pytest.mark.parametrize("signed", [False, True])
def test_only_the_stored_bits_count(tmp_path: Path, signed: bool) -> None:
    values = np.array([[0, 1, 2047], [-2048 if signed else 4095, 7, -1 if signed else 2048]])
    raw = (values & 0x0FFF).astype(np.uint16) | 0xA000  # an old overlay in the upper four bits
    path = build_dicom(
        tmp_path / "scan.dcm", raw.astype(np.uint16), BitsStored=12, HighBit=11, PixelRepresentation=int(signed),
        RescaleSlope=None, RescaleIntercept=None,
    )  # fmt: skip
    assert np.array_equal(read_dicom(path).array, values.T)


def test_compressed_slices(tmp_path: Path) -> None:
    paths = build_series(tmp_path, EVEN)
    plain = read_dicom(tmp_path)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    assert np.array_equal(read_dicom(tmp_path).array, plain.array)
    dataset = pydicom.dcmread(paths[0])
    dataset.decompress()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(paths[0])
    assert np.array_equal(read_dicom(tmp_path).array, plain.array)
    dataset = pydicom.dcmread(paths[1])
    dataset.PixelData = encapsulate([b"\0" * 40 + b"\xff\xd9"])
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(paths[1])
    with pytest.raises(ScanFileError, match=r"001\.dcm.*JPEG-LS"):
        read_dicom(tmp_path)


def test_junk_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_series(tmp_path, EVEN)
    whole = read_dicom(tmp_path)
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text.dcm").write_text("this is a text file\n" * 30)
    (tmp_path / ".hidden.dcm").write_bytes(b"x" * 999)
    (tmp_path / "sub").mkdir()
    shutil.copy(real_file("test-SR.dcm"), tmp_path / "report.dcm")
    shutil.copy(real_file("rtplan.dcm"), tmp_path / "plan.dcm")
    with caplog.at_level(logging.INFO, "adl_monai"):
        assert np.array_equal(read_dicom(tmp_path).array, whole.array)
    assert "5 of 10 files are not DICOM images" in caplog.text


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(UsageError, match="no DICOM image among 1 files"):
        read_dicom(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        read_dicom(tmp_path / "none.dcm")


def test_two_series_in_one_folder(tmp_path: Path) -> None:
    build_series(tmp_path, EVEN)
    first = read_dicom(tmp_path)
    build_dicom(tmp_path / "colour.dcm", np.zeros((6, 5), np.uint8), SeriesInstanceUID="1.2.9", SeriesNumber=99,
                Modality="OT", PhotometricInterpretation="RGB")  # fmt: skip
    with pytest.raises(UsageError, match="several series") as caught:
        read_dicom(tmp_path)
    assert "SeriesNumber 7, CT, 6 x 5 pixels, 5 images, 1.2.3.4" in str(caught.value)
    assert "SeriesNumber 99, OT, 6 x 5 pixels, 1 images, 1.2.9" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    for choice in ("7", "1.2.3.4"):
        assert np.array_equal(read_dicom(tmp_path, choice).array, first.array)
    with pytest.raises(ScanFileError, match="RGB"):
        read_dicom(tmp_path, "99")
    with pytest.raises(UsageError, match="0 series called '8'"):
        read_dicom(tmp_path, "8")


def test_a_series_of_one_slice_is_2d(tmp_path: Path) -> None:
    path = build_series(tmp_path, [7.0])[0]
    volume = read_dicom(tmp_path)
    assert volume.array.shape == (5, 6)
    assert np.array_equal(volume.array, read_dicom(path).array)
    assert np.allclose(volume.affine[:3, 3], [10, -20, 7])
    assert np.allclose(volume.affine[2, 2], 2.5)  # SliceThickness
    overlapping = build_dicom(tmp_path / "other" / "a.dcm", np.eye(6, 5, dtype=np.uint16), SpacingBetweenSlices=-1.25)
    assert np.allclose(read_dicom(overlapping).affine[2, 2], 1.25)
    shutil.copy(path, tmp_path / "copy.dcm")
    assert read_dicom(tmp_path).array.shape == (5, 6)


def test_warnings_of_pydicom_that_quote_values_are_dropped(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    path = build_series(tmp_path, EVEN)[0]
    path.write_bytes(path.read_bytes().replace(b"1.2.3.5", b"SECRET7"))
    with pytest.raises(SeriesGeometryError, match="FrameOfReferenceUID"):
        read_dicom(tmp_path)
    assert not [warning for warning in recwarn if "SECRET" in str(warning.message)]
    assert "SECRET" not in caplog.text
