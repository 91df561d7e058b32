"""Compressed pixels: no decoder's silence passes for an image."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from adl_monai.data.dicom.decoders import has_decoder
from adl_monai.data.dicom.read import read_dicom
from adl_monai.errors import ScanFileError

from .conftest import build_enhanced

JPEG_LS, JPEG_2000 = "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"
ENDING = [JPEG_LS, JPEG_2000, "JPGLosslessP14SV1_1s_1f_8b.dcm"]


def real_file(name: str) -> Path:
    path = get_testdata_file(name)
    assert path is not None
    return Path(path)


def changed(name: str, folder: Path, change: Callable[[bytes], bytes]) -> Path:
    """A copy of a real file whose one frame is changed."""
    dataset = pydicom.dcmread(real_file(name))
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([change(frame)])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(folder / name)
    return folder / name


def black(syntax: UID) -> Callable[..., bytearray]:
    """A decoder that makes an image of anything."""

    def decode(frame: bytes, runner: object) -> bytearray:
        return bytearray(runner.frame_length(unit="bytes"))  # type: ignore[attr-defined]

    return decode


@pytest.mark.parametrize("name, syntax", [(JPEG_LS, "JPEG-LS Lossless"), (JPEG_2000, "JPEG 2000")])
def test_a_missing_decoder_is_named_with_what_to_install(
    name: str, syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its plug-ins, pydicom reads neither."""
    none = SimpleNamespace(is_encapsulated=True, available_plugins=())
    monkeypatch.setattr("adl_monai.data.dicom.decoders.get_decoder", lambda uid: none)
    with pytest.raises(ScanFileError, match=rf"no decoder for {syntax}.* installed; .* \(pip install python-gdcm"):
        read_dicom(real_file(name))


def test_a_decoder_that_refuses_no_damage_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a damaged frame, gdcm 3.0.24 gave back what lay in memory."""
    expected = read_dicom(real_file(JPEG_2000)).array
    read_dicom(real_file(JPEG_LS))
    monkeypatch.setattr("pydicom.pixels.decoders.gdcm.GDCM_VERSION", (3, 0, 24))
    with pytest.raises(ScanFileError, match=r"JPEG-LS.*, gdcm 3\.0\.24, does not .* expected 3\.0\.25 .*--upgrade"):
        read_dicom(real_file(JPEG_LS))
    assert not has_decoder(JPEGLSLossless), "senders may offer another"
    monkeypatch.setitem(get_decoder(JPEG2000Lossless)._available, "gdcm", None)
    assert np.array_equal(read_dicom(real_file(JPEG_2000)).array, expected), "by pillow"


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize("share", [0.98, 0.5])
def test_a_frame_that_is_cut_short_is_no_matter_of_the_decoder(
    name: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a JPEG-LS frame's tenth, pylibjpeg-libjpeg 2.5.0 makes an image."""
    whole = read_dicom(real_file(name)).array
    path = changed(name, tmp_path, lambda frame: frame[: int(share * len(frame))])
    syntax = pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
    for plugin in get_decoder(syntax).available_plugins:
        monkeypatch.setitem(get_decoder(syntax)._available, plugin, black(syntax))
    assert not read_dicom(real_file(name)).array.any(), "all of them are replaced"
    with pytest.raises(ScanFileError, match=r"\.dcm: the compressed pixels \(JPEG.*cut short"):
        read_dicom(path)
    monkeypatch.undo()
    for padding in (b"", b"\0", b"\xff"):
        padded = changed(name, tmp_path, lambda frame, padding=padding: frame + padding)  # type: ignore[misc]
        assert np.array_equal(read_dicom(padded).array, whole)


@pytest.mark.parametrize("extended", [False, True])
def test_the_frame_that_is_cut_short_is_named(tmp_path: Path, extended: bool) -> None:
    groups = pydicom.dcmread(build_enhanced(tmp_path / "e.dcm", [np.ones((6, 5), np.uint16)] * 10, range(10, 0, -1)))
    dataset = pydicom.dcmread(real_file("emri_small_jpeg_ls_lossless.dcm"))
    dataset.SharedFunctionalGroupsSequence = groups.SharedFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = groups.PerFrameFunctionalGroupsSequence
    frames = list(generate_frames(dataset.PixelData, number_of_frames=10))
    expected = pydicom.dcmread(real_file("emri_small.dcm")).pixel_array.T.astype(np.float32) - 1024
    for cut in (False, True):
        if cut:
            frames[6] = frames[6][: len(frames[6]) // 2]
        if extended:
            given = encapsulate_extended(frames)
            dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = given
        else:
            dataset.PixelData = encapsulate(frames)
        dataset.save_as(tmp_path / "scan.dcm")
        if not cut:
            assert np.array_equal(read_dicom(tmp_path / "scan.dcm").array, expected)
    with pytest.raises(ScanFileError, match=r"scan\.dcm \(frame 7\): the compressed pixels \(JPEG-LS.*cut short"):
        read_dicom(tmp_path / "scan.dcm")


@pytest.mark.parametrize("name, syntax", [(JPEG_LS, JPEGLSLossless), (ENDING[2], JPEGLosslessSV1)])
def test_what_a_strict_decoder_refuses_no_lenient_one_reads(
    name: str, syntax: UID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(name, tmp_path, lambda frame: frame[:40] + frame[40:80:-1] + frame[-40:])
    available = get_decoder(syntax)._available
    monkeypatch.setitem(available, "pylibjpeg", black(syntax))
    with pytest.raises(ScanFileError, match="cannot be decoded"):
        read_dicom(path)
    monkeypatch.delitem(available, "gdcm")
    assert not read_dicom(path).array.any(), "nobody else is there to ask"


def test_another_strict_decoder_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has variants that it does not know."""
    expected = read_dicom(real_file(JPEG_2000)).array

    def unable(frame: bytes, runner: object) -> bytes:
        raise NotImplementedError

    monkeypatch.setitem(get_decoder(JPEG2000Lossless)._available, "gdcm", unable)
    assert np.array_equal(read_dicom(real_file(JPEG_2000)).array, expected)
    monkeypatch.setitem(get_decoder(JPEG2000Lossless)._available, "pillow", unable)
    with pytest.raises(ScanFileError, match="cannot be decoded"):
        read_dicom(real_file(JPEG_2000))
