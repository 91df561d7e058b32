import numpy as np
import pytest
import SimpleITK as sitk

from adl_monai.data.geometry import (
    affine_fault,
    affine_from_dicom,
    affine_from_itk,
    complete_plane,
    fits_in_itk_plane,
    is_orthonormal,
    itk_from_affine,
    lps_to_ras,
    ras_to_lps,
    same_affine,
    slice_normal,
    spacing_from_affine,
)

DIRECTION = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0)


def test_lps_and_ras_differ_in_the_first_two_world_axes(oblique: np.ndarray) -> None:
    turned = lps_to_ras(oblique)
    assert np.array_equal(turned[:2], -oblique[:2])
    assert np.array_equal(turned[2:], oblique[2:])
    assert np.array_equal(ras_to_lps(turned), oblique)


def test_itk_affine_places_voxels_where_itk_does() -> None:
    image = sitk.Image(5, 6, 7, sitk.sitkInt16)
    image.SetOrigin((-10.5, 20.0, 3.25))
    image.SetSpacing((0.7, 1.1, 2.5))
    image.SetDirection(DIRECTION)
    affine = affine_from_itk(image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    for index in ((0, 0, 0), (4, 0, 0), (1, 5, 6)):
        ras = affine @ [*index, 1]
        assert np.allclose(ras[:3] * [-1, -1, 1], image.TransformIndexToPhysicalPoint(index))
    assert np.allclose(spacing_from_affine(affine), (0.7, 1.1, 2.5))


@pytest.mark.parametrize("dims", [2, 3])
def test_itk_round_trip(dims: int) -> None:
    origin, spacing = (-10.5, 20.0, 3.25)[:dims], (0.7, 1.1, 2.5)[:dims]
    direction = np.reshape(DIRECTION, (3, 3))[:dims, :dims].ravel()
    back = itk_from_affine(affine_from_itk(origin, spacing, direction), dims)
    assert np.allclose(back[0], origin)
    assert np.allclose(back[1], spacing)
    assert np.allclose(back[2], direction)


def test_2d_itk_images_lie_in_the_plane_zero(oblique: np.ndarray) -> None:
    affine = affine_from_itk((3.0, 4.0), (0.5, 0.75), (0.0, 1.0, 1.0, 0.0))
    assert affine.shape == (4, 4)
    assert fits_in_itk_plane(affine)
    assert not fits_in_itk_plane(oblique)
    raised = affine.copy()
    raised[2, 3] = 12
    assert not fits_in_itk_plane(raised)


def test_dicom_columns_move_along_the_row_direction() -> None:
    # A coronal plane: rows run to the patient's left, columns run down.
    affine = affine_from_dicom(
        np.array([-50.0, 60.0, 70.0]), np.array([1.0, 0, 0, 0, 0, -1]), np.array([0.8, 0.5]), 3.0
    )
    assert np.allclose(affine @ [0, 0, 0, 1], [50, -60, 70, 1])
    assert np.allclose(affine @ [2, 0, 0, 1], [49, -60, 70, 1])  # +x in LPS by PixelSpacing[1]
    assert np.allclose(affine @ [0, 2, 0, 1], [50, -60, 68.4, 1])  # -z by PixelSpacing[0]
    assert np.allclose(affine @ [0, 0, 1, 1], [50, -63, 70, 1])  # the normal is +y in LPS
    assert np.allclose(slice_normal(np.array([1.0, 0, 0, 0, 0, -1])), [0, 1, 0])


@pytest.mark.parametrize(
    "orientation, good",
    [
        ([1, 0, 0, 0, 1, 0], True),
        ([0.8, 0.6, 0, -0.6, 0.8, 0], True),
        ([0, 0, 0, 0, 0, 0], False),
        ([1, 0, 0, 0, 2, 0], False),
        ([1, 0, 0, 0.6, 0.8, 0], False),
        ([1, 0, 0, np.nan, 1, 0], False),
    ],
)
def test_is_orthonormal(orientation: list[float], good: bool) -> None:
    assert is_orthonormal(np.array(orientation, float)) is good


def test_affine_fault(oblique: np.ndarray) -> None:
    assert affine_fault(oblique) is None
    assert affine_fault(oblique * [[1e-4], [1e-4], [1e-4], [1]]) is None  # tiny voxels are no fault
    broken = oblique.copy()
    broken[0, 3] = np.nan
    assert affine_fault(broken) == "not finite"
    flat = oblique.copy()
    flat[:3, 2] = flat[:3, 0] + flat[:3, 1]
    assert affine_fault(flat) == "singular"
    assert affine_fault(np.diag([1.0, 1, 0, 1])) == "singular"


def test_complete_plane_adds_only_what_is_missing(oblique: np.ndarray) -> None:
    assert complete_plane(oblique) is oblique
    flat = oblique.copy()
    flat[:3, 2] = 0
    completed = complete_plane(flat)
    assert affine_fault(completed) is None
    assert np.allclose(completed[:3, 2] @ completed[:3, :2], 0)
    assert np.isclose(np.linalg.norm(completed[:3, 2]), 1)


def test_same_affine(oblique: np.ndarray) -> None:
    assert same_affine(oblique, oblique + 1e-6)
    moved = oblique.copy()
    moved[2, 3] += 0.01
    assert not same_affine(oblique, moved)
