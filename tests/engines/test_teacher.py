"""What a teacher's labels are, and who learns from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adl_monai.engines import PhaseSchedule, Teacher
from adl_monai.errors import ModelError, UsageError
from adl_monai.networks import EfficientUNet
from tests.engines.test_trainer import ONLY_ADVERSARIAL, ONLY_DENOISER, build, state_of


class Scaled(nn.Module):
    """Multiplies by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.factor * image


class Ramp(Scaled):
    """Adds a ramp along each axis: no mirror symmetry along any."""

    def forward(self, image: Tensor) -> Tensor:
        for axis, size in enumerate(image.shape[2:], start=3):
            image = image + self.factor * torch.linspace(-1, 1, size).view(-1, *[1] * (image.ndim - axis))
        return image


def teacher(folder: Path, *factors: float, kind: type[Scaled] = Scaled, spatial_dims: int = 3, share: float = 1.0):
    models = []
    for number, factor in enumerate(factors):
        torch.save({"factor": torch.tensor(factor).half()}, folder / f"{number}.pt")
        models.append({"network": kind(), "weights": folder / f"{number}.pt"})
    return Teacher(models, spatial_dims=spatial_dims, share=share)


def test_labels_lean_on_the_teacher_by_its_share(tmp_path: Path) -> None:
    noisy, clean = torch.rand(2, 1, 8, 8, 8), torch.rand(2, 1, 8, 8, 8)
    labels = teacher(tmp_path, 0.5, share=0.75).labels(noisy, clean, turn=3)
    torch.testing.assert_close(labels, 0.75 * 0.5 * noisy + 0.25 * clean)
    assert labels.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_nearer_teacher_teaches_each_image(tmp_path: Path) -> None:
    noisy = torch.rand(3, 1, 8, 8) + 0.1
    clean = noisy * torch.tensor([0.6, 0.9, 0.7]).view(-1, 1, 1, 1)
    labels = teacher(tmp_path, 0.5, 1.0, spatial_dims=2).labels(noisy, clean, turn=0)
    torch.testing.assert_close(labels, noisy * torch.tensor([0.5, 1.0, 0.5]).view(-1, 1, 1, 1))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_over_the_turns_it_is_the_mean_over_all_mirror_images(spatial_dims: int, tmp_path: Path) -> None:
    noisy = torch.rand(1, 1, *range(4, 4 + spatial_dims))
    ramp = teacher(tmp_path, 0.5, kind=Ramp, spatial_dims=spatial_dims)
    turns = [ramp.labels(noisy, noisy, turn) for turn in range(2**spatial_dims)]
    assert all(not torch.allclose(turn, noisy, atol=0.1) for turn in turns)
    torch.testing.assert_close(torch.stack(turns).mean(0), noisy)
    torch.testing.assert_close(ramp.labels(noisy, noisy, 2**spatial_dims), turns[0])


def test_a_teacher_must_fit_its_network_and_have_a_say(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(())}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="does not fit the network to learn from"):
        Teacher([{"network": Scaled(), "weights": tmp_path / "weights.pt"}])
    with pytest.raises(ValueError, match="give one at least"):
        Teacher([])
    for share in (0.0, 1.5):
        with pytest.raises(UsageError, match="share of a label"):
            teacher(tmp_path, 1.0, share=share)


@pytest.mark.parametrize("phases", [ONLY_DENOISER, ONLY_ADVERSARIAL])
def test_the_denoiser_learns_what_the_teacher_gives_and_the_teacher_nothing(
    phases: PhaseSchedule, tmp_path: Path
) -> None:
    taught, alone = build(phases), build(phases)
    # Half the brightness: nothing in the clean images says so.
    taught.teacher = teacher(tmp_path, 0.5, spatial_dims=2)
    before = state_of(taught.teacher.networks[0])
    taught.state.max_epochs = alone.state.max_epochs = 60
    for trainer in (taught, alone):
        trainer.run()
    assert state_of(taught.teacher.networks[0]) == before
    noisy = torch.stack([item["image"] for item in taught.data_loader.dataset])
    means = []
    for trainer in (taught, alone):
        network = trainer.network.eval()
        with torch.no_grad():
            means.append(network(noisy)[0].mean().item())
    assert means[1] == pytest.approx(0.5, abs=0.1)
    assert means[0] == pytest.approx(0.25, abs=0.1)


def test_the_discriminator_sees_clean_images_still(tmp_path: Path) -> None:
    seen = []
    trainer = build(ONLY_ADVERSARIAL)
    trainer.teacher = teacher(tmp_path, 0.5, spatial_dims=2)
    judge = trainer._discriminator_loss
    trainer._discriminator_loss = lambda denoised, clean: seen.append(clean) or judge(denoised, clean)  # type: ignore
    trainer.run()
    clean = trainer.data_loader.dataset[0]["label"]
    assert seen
    assert all(torch.equal(image, clean) for batch in seen for image in batch)


def test_networks_teach_in_inference_form(tmp_path: Path) -> None:
    network = EfficientUNet(2, filters=(4, 4, 4, 4), multi_scale=False)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other = EfficientUNet(2, filters=(4, 4, 4, 4), multi_scale=False)
    label = Teacher([{"network": other, "weights": tmp_path / "weights.pt"}], spatial_dims=2, share=1.0)
    noisy = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(label.labels(noisy, noisy, 0), network.eval()(noisy))
    assert not other.training
