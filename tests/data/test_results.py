"""Results of denoising are known, wherever an earlier run has put them."""

from __future__ import annotations

from pathlib import Path

from adl_monai.data.results import results_among


def test_results_below_a_folder_of_results_have_their_sources_sub_folders() -> None:
    sources = [Path("/in/s1/a.nii.gz"), Path("/in/s2/a.nii.gz"), Path("/in/b.nii")]
    beside = [Path("/in/s1/a_denoised.nii"), Path("/in/b_denoised_preview.png")]
    below = [Path("/in/out/s1/a_denoised.nii.gz"), Path("/in/out/b_denoised.mha"), Path("/in/x/out/s2/a_denoised.nii")]
    others = [Path("/in/s3/a_denoised.nii"), Path("/in/out/s1/c_denoised.nii"), Path("/in/s1/b_denoised_old.nii")]
    beside.append(Path("/in/s2/a_denoised_preview.PNG"))
    others.append(Path("/in/s2/a_denoised_preview.nii"))  # no picture
    assert results_among([*sources, *beside, *below, *others]) == {*beside, *below}
