"""The private elements that a derived image keeps: what its values and its diffusion weighting cannot be read without.

Vendors state here what had no public element when their scanners were built; much of it is on PS3.15's list of safe
private attributes (E.3.10). It holds for a denoised image too, as stored values keep their meaning. Anything else that
is private may speak of pixels that are gone, or of the patient.
"""

from __future__ import annotations

from pydicom.dataset import Dataset, PrivateBlock
from pydicom.tag import BaseTag, Tag

KEPT = {
    (0x0009, "GEMS_PETD_01"): [0x0D],  # when the scan began: what decay is counted from
    (0x0019, "GEMS_ACQU_01"): [0xBB, 0xBC, 0xBD],  # diffusion direction
    (0x0019, "SIEMENS MR HEADER"): [0x0C, 0x0D, 0x0E, 0x27],  # b-value, directionality, direction, b-matrix
    (0x0043, "GEMS_PARM_01"): [0x39],  # b-value
    (0x2001, "Philips Imaging DD 001"): [0x03, 0x04],  # b-value, kind of direction
    (0x2005, "Philips MR Imaging DD 001"): [0x0D, 0x0E, 0xB0, 0xB1, 0xB2],  # scale intercept and slope, direction
    (0x2005, "Philips MR Imaging DD 005"): [0x09, 0x0A, 0x0F],  # rescale intercept and slope; a frame's own elements
    (0x7053, "Philips PET Private Group"): [0x00, 0x09],  # factors to SUV and to activity concentration
}
"""Elements within a block, by the group and the creator that reserves the block."""


def kept_private(dataset: Dataset) -> set[BaseTag]:
    """Tags of the private elements of this data set (not of its sequences' items) to keep, creators among them.

    One whose value cannot be parsed is not kept.
    """
    kept = set()
    for (group, creator), elements in KEPT.items():
        try:
            block = dataset.private_block(group, creator)
        except KeyError:
            continue
        found = {block.get_tag(element) for element in elements if element in block and _is_whole(block, element)}
        if found:
            kept |= {Tag(group, block.block_start >> 8), *found}
    return kept


def _is_whole(block: PrivateBlock, element: int) -> bool:
    try:
        return block[element].VM >= 0
    except Exception:  # pydicom raises nearly anything on damaged values
        return False
