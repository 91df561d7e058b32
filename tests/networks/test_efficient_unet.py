"""The denoiser: shapes, counts, heads, precision, and the exchange of weights between its two faces."""

import copy

import pytest
import torch
from torch import Tensor, nn

from adl_monai.networks import EfficientUNet

SMALL = (4, 6, 8, 10)
GROUP = ("group", {"num_groups": 4})
SIZES = (16, 24, 8)


def image(spatial_dims: int, channels: int = 1, batch: int = 2) -> Tensor:
    return torch.rand(batch, channels, *SIZES[:spatial_dims], generator=torch.Generator().manual_seed(1))


def area_averages(full: Tensor) -> list[Tensor]:
    pool = torch.nn.functional.avg_pool2d if full.ndim == 4 else torch.nn.functional.avg_pool3d
    return [full, pool(full, 2), pool(full, 4)]


def loss_to(denoised: list[Tensor], clean: Tensor) -> Tensor:
    return sum((one - other).abs().mean() for one, other in zip(denoised, area_averages(clean), strict=True))


@pytest.mark.parametrize(("spatial_dims", "parameters"), [(2, 4_128_868), (3, 11_980_612)])
def test_paper_preset(spatial_dims: int, parameters: int) -> None:
    denoiser = EfficientUNet(spatial_dims).eval()
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters
    with torch.no_grad():
        denoised = denoiser(torch.rand(1, 1, *(16,) * spatial_dims))
    assert [tuple(one.shape) for one in denoised] == [(1, 1, *(size,) * spatial_dims) for size in (16, 8, 4)]
    assert all(one.min() > 0 and one.max() < 1 for one in denoised)


@pytest.mark.parametrize("head", ["sigmoid", "residual"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("content_enhancer", [True, False])
def test_both_faces_exchange_weights_strictly(spatial_dims: int, head: str, content_enhancer: bool) -> None:
    options = {"filters": SMALL, "head": head, "content_enhancer": content_enhancer}
    training = EfficientUNet(spatial_dims, **options).eval()
    inference = EfficientUNet(spatial_dims, multi_scale=False, **options).eval()
    noisy = image(spatial_dims)
    assert not torch.equal(inference(noisy), training(noisy)[0])
    inference.load_state_dict(training.state_dict(), strict=True)
    assert torch.equal(inference(noisy), training(noisy)[0])
    training.load_state_dict(inference.state_dict(), strict=True)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_biases_start_at_nothing_and_make_a_network_know_its_level(norm: str | None) -> None:
    leaky = ("leakyrelu", {"negative_slope": 0.1})
    options = {"filters": SMALL, "norm": norm, "act": leaky, "head": "residual", "multi_scale": False}
    plain, biased = EfficientUNet(2, **options).eval(), EfficientUNet(2, bias=True, **options).eval()
    nn.init.ones_(plain.head1.project.weight)
    added = biased.state_dict().keys() - plain.state_dict().keys()
    layers = {
        name: layer.kernel_size for name, layer in biased.named_modules() if isinstance(layer, nn.modules.conv._ConvNd)
    }
    assert added == {f"{name}.bias" for name, size in layers.items() if size[0] > 1 and "upsample" not in name}
    biased.load_state_dict(plain.state_dict(), strict=False)
    noisy = image(2)
    assert torch.equal(biased(noisy), plain(noisy))
    if norm is None:
        torch.testing.assert_close(biased(2 * noisy), 2 * biased(noisy))
    for name in added:
        nn.init.normal_(biased.get_parameter(name))
    assert (biased(2 * noisy) - 2 * biased(noisy)).abs().max() > 0.01


def test_flag_can_be_flipped_on_a_copy() -> None:
    denoiser = EfficientUNet(2, filters=SMALL).eval()
    average = copy.deepcopy(denoiser)
    average.multi_scale = False
    noisy = image(2)
    assert torch.equal(average(noisy), denoiser(noisy)[0])


def test_full_scale_alone_skips_the_other_heads() -> None:
    denoiser = EfficientUNet(2, filters=SMALL, multi_scale=False)
    denoiser(image(2)).sum().backward()
    silent = {name.split(".")[0] for name, parameter in denoiser.named_parameters() if parameter.grad is None}
    assert silent == {"head2", "head3"}


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("norm", ["batch", GROUP, "instance", None])
def test_fresh_residual_network_is_nearly_an_identity(spatial_dims: int, norm: object) -> None:
    noisy = 2 * image(spatial_dims, channels=2) - 0.5
    denoised = EfficientUNet(spatial_dims, 2, 2, filters=(16, 24, 32, 40), norm=norm, head="residual")(noisy)
    for one, same in zip(denoised, area_averages(noisy), strict=True):
        assert one.shape == same.shape
        assert 0 < (one - same).abs().mean() < 0.05
    assert denoised[0].min() < 0  # nothing is clipped
    assert denoised[0].max() > 1


@pytest.mark.parametrize("scale", [0.25, 8.0])
def test_without_norm_scaling_the_image_scales_the_output(scale: float) -> None:
    denoiser = EfficientUNet(2, filters=SMALL, norm=None, head="residual", multi_scale=False)
    nn.init.normal_(denoiser.head1.project.weight)  # far from the identity, for which this holds anyway
    noisy = image(2)
    assert (denoiser(noisy) - noisy).abs().max() > 0.05
    torch.testing.assert_close(denoiser(scale * noisy), scale * denoiser(noisy))


@pytest.mark.parametrize("head", ["sigmoid", "residual"])
def test_output_is_float32_under_autocast(head: str) -> None:
    denoiser = EfficientUNet(2, filters=SMALL, head=head).eval()
    noisy = image(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        denoised = denoiser(noisy)
        from_half = denoiser(noisy.bfloat16())
    assert all(one.dtype == torch.float32 for one in [*denoised, *from_half])
    assert (denoised[0] - denoiser(noisy)[0]).abs().max() < 0.05


def test_residual_is_subtracted_in_float32() -> None:
    denoiser = EfficientUNet(2, filters=SMALL, head="residual", multi_scale=False)
    nn.init.zeros_(denoiser.head1.project.weight)
    noisy = 1000 + image(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(denoiser(noisy), noisy)  # bfloat16 would round to steps of 4
    noise = torch.full_like(noisy, 0.75).bfloat16()
    assert torch.equal(denoiser.finish(noisy.bfloat16(), noise), noisy.bfloat16().float() - 0.75)


@pytest.mark.parametrize("head", ["sigmoid", "residual"])
@pytest.mark.parametrize("norm", ["batch", GROUP, "instance", None])
def test_one_step_is_finite_and_reaches_every_parameter(norm: object, head: str) -> None:
    denoiser = EfficientUNet(3, filters=(8, 12, 16, 20), norm=norm, head=head)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    noisy = torch.rand(2, 1, 16, 16, 16)
    clean = torch.rand_like(noisy)
    for _ in range(2):
        optimizer.zero_grad()
        loss = loss_to(denoiser(noisy), clean)
        loss.backward()
        assert loss.isfinite()
        for name, parameter in denoiser.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.count_nonzero() > 0, name
        optimizer.step()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_no_norm_network_stays_alive_while_it_learns(spatial_dims: int, seed: int) -> None:
    torch.manual_seed(seed)
    clean = torch.nn.functional.interpolate(torch.rand(2, 1, *(4,) * spatial_dims), scale_factor=4)
    noisy = clean + 0.2 * torch.randn(clean.shape)
    denoiser = EfficientUNet(spatial_dims, filters=(8, 12, 16, 20), norm=None, head="residual")
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    losses = []
    for _ in range(21):
        optimizer.zero_grad()
        loss = loss_to(denoiser(noisy), clean)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0]
    assert [name for name, parameter in denoiser.named_parameters() if not parameter.grad.count_nonzero()] == []


def test_fresh_residual_heads_correct_both_ways() -> None:
    for head in (denoiser := EfficientUNet(2, filters=(8, 8, 16, 8), head="residual")).head1, denoiser.head3:
        weights = head.project.weight.flatten()
        assert (weights > 0).sum() == (weights < 0).sum() > 0


def test_each_scale_trains_its_own_head() -> None:
    denoiser = EfficientUNet(2, filters=SMALL)
    heads = {"head1", "head2", "head3"}
    for scale, mine in enumerate(sorted(heads)):
        denoiser.zero_grad()
        denoiser(image(2))[scale].square().mean().backward()
        moved = {
            name.split(".")[0]
            for name, parameter in denoiser.named_parameters()
            if parameter.grad is not None and parameter.grad.count_nonzero()
        }
        assert moved & heads == {mine}
        assert "encoder" in moved
        assert ("enhancer" in moved) == (scale == 0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_shape_error_names_the_next_move(spatial_dims: int) -> None:
    assert EfficientUNet.divisor == 8
    denoiser = EfficientUNet(spatial_dims, filters=SMALL)
    given, wanted = ("(30, 45)", "(32, 48)") if spatial_dims == 2 else ("(30, 45, 8)", "(32, 48, 8)")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        denoiser(torch.rand(1, 1, *(30, 45, 8)[:spatial_dims]))
    assert str(caught.value) == f"shape {given} is not divisible by 8; pad to {wanted}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 1"),
        ({"filters": (8, 8, 8)}, "expected 4 positive integers"),
        ({"filters": (8, 8, 8, 0)}, "expected 4 positive integers"),
        ({"filters": (8, 8, 8, 8.5)}, "expected 4 positive integers"),
        ({"in_channels": 0}, "channels"),
        ({"head": "tanh"}, "expected one of sigmoid, residual"),
        ({"head": "residual", "out_channels": 2}, "make them equal"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientUNet(**{"spatial_dims": 2, **options})
