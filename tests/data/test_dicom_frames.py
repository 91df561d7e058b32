"""Enhanced multi-frame files, deflated files, Modality LUTs and padding: each against values worked out another way."""

import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, EnhancedMRImageStorage

from adl_monai.data.dicom import parse as dicom_parse
from adl_monai.data.dicom.read import read_dicom
from adl_monai.data.geometry import ras_to_lps
from adl_monai.data.io import read_volume, write_volume
from adl_monai.data.monai_io import VolumeReader
from adl_monai.errors import ScanFileError, SeriesGeometryError

from .conftest import build_dicom, build_enhanced, build_series

HEIGHTS = [5.0, 0.0, 10.0, 2.5, 7.5]


def real_file(name: str) -> Path:
    path = get_testdata_file(name)
    assert path is not None
    return Path(path)


def random_planes(count: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 3000, (6, 5)).astype(np.uint16) for _ in range(count)]


def test_frames_are_sorted_by_their_place(tmp_path: Path) -> None:
    planes = random_planes()
    slopes = [1.0, 0.5, 2.0, 0.25, 3.0]
    volume = read_dicom(build_enhanced(tmp_path / "e.dcm", planes, HEIGHTS, slopes=slopes))
    assert volume.array.shape == (5, 6, 5)
    assert np.isclose(volume.spacing[2], 2.5)
    order = np.argsort(HEIGHTS)[::-1]  # rows run along -x, so the normal points down
    for place, index in enumerate(order):
        assert np.array_equal(volume.array[..., place], planes[index].T.astype(np.float32) * slopes[index] - 1024)
        centre = ras_to_lps(volume.affine) @ [0, 0, place, 1]
        assert np.allclose(centre[:3], [-10, 20, HEIGHTS[index]])


def test_a_real_enhanced_file_agrees_with_itk() -> None:
    path = real_file("eCT_Supplemental.dcm")
    volume, image = read_dicom(path), sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)  # in the file's order: upwards, against the normal
    assert np.array_equal(volume.array, array.T[..., ::-1].astype(np.float32))
    last = [int(length) - 1 for length in image.GetSize()]
    ours = ras_to_lps(volume.affine) @ [*last[:2], 0, 1]
    assert np.allclose(ours[:2], image.TransformIndexToPhysicalPoint(last)[:2], atol=1e-3)
    assert np.isclose(ours[2], pydicom.dcmread(path).PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
                      .ImagePositionPatient[2])  # fmt: skip


KINDS = ["", "_RLE", "_big_endian", "_jpeg_2k_lossless", "_jpeg_ls_lossless"]


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_frames(tmp_path: Path, kind: str) -> None:
    """Ten real MR frames, each way of storing them, with places of ours (the real file has none)."""
    groups = pydicom.dcmread(build_enhanced(tmp_path / "e.dcm", random_planes(1) * 10, list(range(10, 0, -1))))
    dataset = pydicom.dcmread(real_file(f"emri_small{kind}.dcm"))
    dataset.SharedFunctionalGroupsSequence = groups.SharedFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = groups.PerFrameFunctionalGroupsSequence
    path = tmp_path / "frames.dcm"
    pydicom.dcmwrite(path, dataset)
    frames = pydicom.dcmread(real_file("emri_small.dcm")).pixel_array
    volume = read_dicom(path)
    assert np.array_equal(volume.array, frames.T.astype(np.float32) - 1024)
    write_volume(tmp_path / "out.dcm", volume.array, like=path, affine=volume.affine)
    derived = pydicom.dcmread(tmp_path / "out.dcm")
    assert np.array_equal(derived.pixel_array, frames)
    assert derived.SOPClassUID == EnhancedMRImageStorage


def test_deflated_frames(tmp_path: Path) -> None:
    path = build_enhanced(tmp_path / "e.dcm", random_planes(), HEIGHTS)
    plain, dataset = read_dicom(path), pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert np.array_equal(read_dicom(path).array, plain.array)


@pytest.mark.parametrize(
    "heights, elements, error, word",
    [
        ([0, 2.5, 7.5, 10], {}, SeriesGeometryError, r"slice missing: 5.000 mm .*frame \d\) and e\.dcm \(frame \d\)"),
        ([0, 2.5, 2.5, 5], {}, SeriesGeometryError, "differ but lie at one place"),
        ([0, 2.5, 5, 7.5], {"NumberOfFrames": 9}, ScanFileError, "NumberOfFrames is 9, but 4 frames"),
        ([0, 2.5, 5, 7.5], {"PixelData": b"\0" * 238}, ScanFileError, "238 bytes of 240"),
        ([0, 2.5, 5, 7.5], {"PerFrameFunctionalGroupsSequence": []}, ScanFileError, "where its frames lie"),
    ],
)
def test_bad_multi_frame_files(
    tmp_path: Path, heights: list[float], elements: dict, error: type[Exception], word: str
) -> None:
    path = build_enhanced(tmp_path / "e.dcm", random_planes(4), heights, **elements)
    with pytest.raises(error, match=word):
        read_dicom(path)


def test_a_deflated_real_file() -> None:
    volume = read_dicom(real_file("image_dfl.dcm"))
    assert np.array_equal(volume.array, pydicom.dcmread(real_file("image_dfl.dcm")).pixel_array.T)


def test_a_deflated_file_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_dicom(tmp_path / "a.dcm", np.zeros((300, 400), np.int16))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert path.stat().st_size < 2000
    monkeypatch.setattr(dicom_parse, "INFLATED_LIMIT", 2**17)
    with pytest.raises(ScanFileError, match="more than 0 MiB"):
        read_dicom(path)
    monkeypatch.undo()
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ScanFileError, match="cut short"):
        read_dicom(path)
    path.write_bytes(whole[:600] + b"\xff" * 30 + whole[630:])
    with pytest.raises(ScanFileError, match=r"damaged|cut short"):
        read_dicom(path)


def lut(first: int, values: list[int], bits: int = 16) -> list[pydicom.Dataset]:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS", [len(values), first, bits])
    item.ModalityLUTType = "OD"
    item.add_new("LUTData", "US", values)
    return [item]


def test_a_modality_lut_is_applied(tmp_path: Path) -> None:
    path = real_file("mlut_18.dcm")
    dataset = pydicom.dcmread(path)
    expected = pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset)
    assert np.array_equal(read_dicom(path).array, expected.T)
    # 16-bit signed, where the distance to the first entry does not fit 16 bits, and values beyond both ends
    stored = np.array([[-32768, -5, -4], [-3, -2, 32767]], np.int16)
    path = build_dicom(tmp_path / "a.dcm", stored, ModalityLUTSequence=lut(-4, [10, 2000, 65535]))
    assert read_dicom(path).array.T.tolist() == [[10, 10, 10], [2000, 65535, 65535]]


def test_numbers_of_a_modality_lut_that_do_not_fit_16_bits(tmp_path: Path) -> None:
    """PS3.3 C.11.1.1: 2^16 entries are written as 0, and a negative first one often as unsigned."""
    stored = np.array([[-5, -4], [-3, -2]], np.int16)
    unsigned = lut(-4, [10, 2000, 65535])
    unsigned[0].add_new("LUTDescriptor", "US", [3, 2**16 - 4, 16])
    assert read_dicom(build_dicom(tmp_path / "a.dcm", stored, ModalityLUTSequence=unsigned)).array.T.tolist() == [
        [10, 10], [2000, 65535],
    ]  # fmt: skip
    full = lut(0, [0])
    full[0].add_new("LUTDescriptor", "US", [0, 0, 16])
    full[0].add_new("LUTData", "OW", np.arange(2**16, dtype="<u2")[::-1].tobytes())
    stored = np.array([[0, 1], [2, 65535]], np.uint16)
    path = build_dicom(tmp_path / "b.dcm", stored, ModalityLUTSequence=full)
    assert read_dicom(path).array.T.tolist() == [[65535, 65534], [65533, 0]]


def test_a_bad_modality_lut_is_refused(tmp_path: Path) -> None:
    stored = np.zeros((6, 5), np.int16)
    short = lut(0, [1, 2, 3])
    short[0].LUTDescriptor = [4, 0, 16]
    for sequence, word in ((short, "3 values of 4"), (lut(0, [1, 2, 300], 8), "beyond 8"), (lut(0, [1], 3), "3 bits")):
        with pytest.raises(ScanFileError, match=word):
            read_dicom(build_dicom(tmp_path / "a.dcm", stored, ModalityLUTSequence=sequence))


@pytest.mark.parametrize(
    "elements, padded",
    [
        ({"PixelPaddingValue": -2000}, [[1, 0, 0], [0, 0, 1]]),
        ({"PixelPaddingValue": 63536}, [[1, 0, 0], [0, 0, 1]]),  # the same bits, under the wrong type
        ({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}, [[1, 1, 0], [0, 0, 1]]),
        ({"PixelPaddingValue": -1990, "PixelPaddingRangeLimit": -2000}, [[1, 1, 0], [0, 0, 1]]),
        ({"PixelPaddingValue": -1}, None),
        ({}, None),
    ],
)
def test_padding_is_known_and_kept_from_a_model(tmp_path: Path, elements: dict, padded: list | None) -> None:
    stored = np.array([[-2000, -1995, 5], [7, 900, -2000]], np.int16)
    path = tmp_path / "a.dcm"
    build_dicom(path, stored, **dict.fromkeys(elements, 0))
    dataset = pydicom.dcmread(path)
    for name, value in elements.items():
        dataset[name].VR = "US" if value > 0 else "SS"
        dataset[name].value = value
    dataset.save_as(path)
    volume = read_volume(path)
    assert np.array_equal(volume.array, stored.T.astype(np.float32) - 1024)
    image, _ = VolumeReader().get_data([str(path)])
    if padded is None:
        assert volume.padding is None
        assert image is volume.array or np.array_equal(image, volume.array)
        return
    mask = np.array(padded, bool).T
    assert volume.padding is not None
    assert np.array_equal(volume.padding, mask)
    assert np.array_equal(image[~mask], volume.array[~mask])
    assert set(image[mask]) == {volume.array[~mask].min()}


def test_burned_in_text_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_series(tmp_path, [0.0, 2.5, 5.0], BurnedInAnnotation="NO")
    read_dicom(tmp_path)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    build_dicom(tmp_path / "003.dcm", np.zeros((6, 5), np.int16), ImagePositionPatient=[-10.0, 20.0, 7.5],
                BurnedInAnnotation="YES")  # fmt: skip
    read_dicom(tmp_path)
    assert "BurnedInAnnotation is YES" in caplog.text


def test_a_radiograph_without_a_pixel_size_is_read() -> None:
    volume = read_dicom(real_file("RG1_UNCR.dcm"))  # PixelSpacing 0\0
    assert volume.array.shape == (1841, 1955)
    assert volume.spacing == (1, 1)
