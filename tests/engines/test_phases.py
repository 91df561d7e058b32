import pytest

from adl_monai.engines import Phase, PhaseSchedule


def test_phases_share_the_run() -> None:
    schedule = PhaseSchedule(0.5, 0.2)
    assert [schedule.phase(epoch, 10) for epoch in (5, 6, 7, 8)] == [
        Phase.DENOISER,
        Phase.DISCRIMINATOR,
        Phase.DISCRIMINATOR,
        Phase.ADVERSARIAL,
    ]


def test_a_short_run_still_warms_the_discriminator_up() -> None:
    schedule = PhaseSchedule(0.85, 0.05)
    assert [schedule.phase(epoch, 10) for epoch in (8, 9, 10)] == [
        Phase.DENOISER,
        Phase.DISCRIMINATOR,
        Phase.ADVERSARIAL,
    ]


def test_a_run_too_short_for_phase_three_trains_the_denoiser_throughout() -> None:
    schedule = PhaseSchedule(0.85, 0.05)
    assert {schedule.phase(epoch, 8) for epoch in range(1, 9)} == {Phase.DENOISER}
    assert schedule.phase(10, 10) is Phase.ADVERSARIAL
    # Before: where phase 1 rounds to no epoch, the discriminator alone was trained, and a random denoiser shipped.
    assert PhaseSchedule(0.34, 0.33).phase(1, 1) is Phase.DENOISER
    assert PhaseSchedule(0.34, 0.66).phase(1, 1) is Phase.DISCRIMINATOR, "no phase 3 was asked for"


def test_a_whole_run_of_phase_one() -> None:
    schedule = PhaseSchedule(1.0, 0.0)
    assert {schedule.phase(epoch, 7) for epoch in range(1, 8)} == {Phase.DENOISER}


@pytest.mark.parametrize(("denoiser", "discriminator"), [(-0.1, 0.5), (0.5, -0.1), (0.8, 0.3)])
def test_impossible_shares_are_refused(denoiser: float, discriminator: float) -> None:
    with pytest.raises(ValueError, match="phase fractions"):
        PhaseSchedule(denoiser, discriminator)
