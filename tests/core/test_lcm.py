"""Schedule and LCM sampler: inverse properties, the boundary condition, both grids, parity with diffusers."""

import pytest
import torch

import pixart_core as pc
from pixart_core.lcm import ddim_timesteps
from pixart_core.schedule import add_noise, alphas_cumprod, consistency, ddim_weights, predict_x0


def test_schedule_is_the_linear_one_of_the_paper():
    table = alphas_cumprod()
    assert table.shape == (1000,) and table[0].item() == pytest.approx(1 - 1e-4)
    sigma_max = ((1 - table[-1]) / table[-1]).sqrt().item()
    assert sigma_max == pytest.approx(157.407, rel=1e-4)


def test_predict_x0_inverts_add_noise_and_a_ddim_step_adds_the_same_noise_again():
    latent, noise = torch.randn(3, 4, 6, 8), torch.randn(3, 4, 6, 8)
    t = torch.tensor([19, 259, 499])
    noisy = add_noise(latent, noise, t)
    torch.testing.assert_close(predict_x0(noisy, noise, t), latent, rtol=1e-3, atol=1e-3)
    for end in (t, t - 19, torch.tensor([0, 0, 0])):
        of_noisy, of_epsilon = ddim_weights(t, end)
        torch.testing.assert_close(of_noisy * noisy + of_epsilon * noise, add_noise(latent, noise, end))


def test_boundary_condition():
    assert pc.boundary_scalings(0) == (1.0, 0.0)
    c_skip, c_out = pc.boundary_scalings(torch.tensor([0, 19, 999]))
    assert c_skip[0] == 1
    assert c_out[0] == 0
    assert c_skip[2] < 1e-8
    assert c_out[2] == pytest.approx(1)
    expected = 0.25 / ((19 / 0.1) ** 2 + 0.25)
    assert c_skip[1].item() == pytest.approx(expected)
    noisy = torch.randn(2, 4, 4, 4)
    assert torch.equal(consistency(noisy, torch.randn_like(noisy), torch.zeros(2, dtype=torch.long)), noisy)


@pytest.mark.parametrize("steps", range(1, 9))
def test_timestep_grids(steps):
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", original_inference_steps=50)
    scheduler.set_timesteps(steps)
    assert pc.lcm_timesteps(steps) == scheduler.timesteps.tolist()
    official = pc.lcm_timesteps(steps, "official")
    assert len(official) == steps
    assert official[0] == 999
    assert set(official) <= set(ddim_timesteps())
    assert official == sorted(official, reverse=True)


def test_named_grids():
    assert pc.lcm_timesteps(4) == [999, 759, 499, 259]
    assert pc.lcm_timesteps(4, "official") == [999, 759, 519, 279]


def test_a_one_step_model_predicts_once_from_plain_noise():
    """PixArt-α-DMD: x₀ = (z − √(1 − ᾱ) ε) / √ᾱ at t = 400, where z is the noise itself."""
    assert pc.lcm_timesteps(1, "dmd") == [400]
    for steps, strength in ((2, 1.0), (1, 0.5)):
        with pytest.raises(ValueError, match="takes 1 step from plain noise"):
            pc.lcm_timesteps(steps, "dmd", strength)
    noise, epsilon = torch.randn(2, 2, 4, 8, 8).unbind()
    drawn = pc.sample_lcm(lambda z, t: epsilon, noise, pc.lcm_timesteps(1, "dmd"))
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[400].float()
    torch.testing.assert_close(drawn, (noise - (1 - kept).sqrt() * epsilon) / kept.sqrt(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [0, 9, -1, 2.5, True])
def test_number_of_steps_is_checked(steps):
    with pytest.raises(ValueError, match="LCM sampling takes 1 to 8 steps"):
        pc.lcm_timesteps(steps)


def test_unknown_grid():
    with pytest.raises(ValueError, match="choose one of diffusers, official"):
        pc.lcm_timesteps(4, "karras")


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.75, 0.99])
def test_strength_equals_diffusers(strength):
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", original_inference_steps=50)
    scheduler.set_timesteps(4, strength=strength)
    assert pc.lcm_timesteps(4, strength=strength) == scheduler.timesteps.tolist()


def test_strength_is_checked():
    with pytest.raises(ValueError, match="leaves 2 timesteps, too few for 4"):
        pc.lcm_timesteps(4, strength=0.05)
    with pytest.raises(ValueError, match="above 0"):
        pc.lcm_timesteps(4, strength=0)


def epsilon_of(latent, timestep):
    """A smooth stand-in for a network, different at every timestep and place."""
    return torch.tanh(latent * (1 + timestep.view(-1, 1, 1, 1) / 1000)) * 0.9


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_sampler_equals_diffusers_scheduler(steps, monkeypatch):
    import diffusers.schedulers.scheduling_lcm as lcm

    noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    noises = torch.randn(steps, 2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    scheduler = lcm.LCMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", original_inference_steps=50)
    scheduler.set_timesteps(steps)
    latent = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        monkeypatch.setattr(lcm, "randn_tensor", lambda *args, step=step, **kwargs: noises[step])
        latent, theirs = scheduler.step(epsilon_of(latent, timestep), timestep, latent, return_dict=False)
    ours = pc.sample_lcm(epsilon_of, noise, pc.lcm_timesteps(steps), noises=noises)
    assert ((ours - theirs).norm() / theirs.norm()) < 1e-4


def test_generator_noises_are_reproducible_and_the_callback_sees_every_step():
    noise, seen = torch.randn(1, 4, 4, 4), []
    run = [
        pc.sample_lcm(
            epsilon_of,
            noise,
            pc.lcm_timesteps(3),
            generator=torch.Generator().manual_seed(5),
            callback=lambda step, x: seen.append(step),
        )
        for _ in range(2)
    ]
    assert torch.equal(*run) and seen == [0, 1, 2, 0, 1, 2]


def test_callback_can_cancel():
    def cancel(step, denoised):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pc.sample_lcm(epsilon_of, torch.randn(1, 4, 4, 4), [999, 499], callback=cancel)


def test_nan_and_missing_noises_are_named():
    with pytest.raises(ValueError, match="NaN or infinite"):
        pc.sample_lcm(lambda x, t: x * float("nan"), torch.randn(1, 4, 4, 4), [999])
    with pytest.raises(ValueError, match="need 3 noises, got 1"):
        pc.sample_lcm(epsilon_of, torch.randn(1, 4, 4, 4), [999, 759, 499, 259], noises=[torch.zeros(1, 4, 4, 4)])
