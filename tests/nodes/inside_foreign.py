"""Other people's nodes on our types, in ComfyUI's own interpreter: `python inside_foreign.py COMFYUI FAMILY CHECK…`.

What they do to a CONTROL_NET, a CONDITIONING, a CLIP and a LATENT; see inside.py and setup_control.py.
"""

from __future__ import annotations

import copy
import gc
from unittest import mock

import setup_control
import torch
import torch.nn.functional as F
from inside_process import close, main
from setup_control import Setup, raises, reference_run


def advanced(s: Setup, mask: torch.Tensor):
    """Our control in a class of another pack's, made and masked as Advanced-ControlNet does."""
    from comfy.controlnet import ControlNet

    class Advanced(ControlNet):
        def control_merge(self, control, control_prev, output_dtype):
            for residual in control["input"]:
                residual[:] = residual[:] * F.interpolate(mask, residual.shape[-2:], mode="bilinear")
            return super().control_merge(control, control_prev, output_dtype)

        def copy(self):
            return take(self)

    def take(control):
        names = ("control_model", "global_average_pooling", "compression_ratio", "latent_format", "load_device")
        names += ("manual_cast_dtype", "extra_conds", "strength_type", "concat_mask", "preprocess_image")
        made = Advanced(**{name: getattr(control, name) for name in names})
        control.copy_to(made)
        made.control_model_wrapped = control.control_model_wrapped.clone()
        return made

    return take(s.control)


def check_a_control_is_of_comfyuis_own_class(s: Setup) -> None:
    from comfy.controlnet import ControlNet

    with_vae = s.bridge.load_control(str(s.paths[3]), "float32", s.vae)
    applied = s.apply(resize="pad")[0][0][1]["control"]
    for control in (s.control, s.control.copy(), with_vae, with_vae.copy(), applied, applied.copy()):
        assert type(control) is ControlNet
    assert applied.copy().extra_args == {"resize": "pad"} and with_vae.copy().extra_args == {"vae": s.vae}


def check_masks_of_another_pack_reach_the_residuals(s: Setup) -> None:
    mask = torch.zeros(1, 1, 96, 128)
    mask[..., :64] = 1
    tokens = F.interpolate(mask, (6, 8), mode="bilinear").flatten(2).movedim(1, 2)
    for cfg in (1.0, 4.5):
        close(s.run(s.apply(advanced(s, mask)), cfg), reference_run(s, {3: tokens}, cfg), 1e-4)
    close(s.run(s.apply(advanced(s, torch.zeros_like(mask)))), s.run(), 1e-6)
    half = s.load(str(s.family / "transformer"), "bfloat16")
    close(s.run(s.apply(advanced(s, mask)), model=half), reference_run(s, {3: tokens}, 1.0), 0.05)


def check_a_type_for_union_controlnets_is_ignored(s: Setup) -> None:
    from comfy_extras.nodes_controlnet import SetUnionControlNetType

    made = SetUnionControlNetType.execute(s.control, "auto")
    typed = made.result[0] if hasattr(made, "result") else made[0]
    assert "control_type" in typed.extra_args
    typed.set_extra_arg("something_else", 1)
    assert torch.equal(s.run(s.apply(typed), 4.5), s.run(s.apply(), 4.5))


def check_the_first_hints_are_taken_where_there_are_more_than_pictures(s: Setup) -> None:
    empty = s.part("nodes.bridge.guider").empty_latent
    hints = torch.cat([s.hints, 1 - s.hints])
    for count, given in ((1, hints[:2]), (1, hints), (2, hints)):
        s.latent = empty(128, 96, count)
        conds = s.apply(hints=given)
        close(s.run(conds, 4.5), s.run(s.apply(hints=given[:count]), 4.5), 1e-6)
    s.latent = empty(128, 96, 4)  # and they are all still there
    close(s.run(conds, 4.5), s.run(s.apply(hints=hints), 4.5), 1e-6)


def check_hints_shrink_without_aliasing_and_grow_smoothly(s: Setup) -> None:
    fine = torch.rand(1, 96 * 4, 128 * 4, 3, generator=torch.Generator().manual_seed(2)).round()
    fine[:, ::4] = 1
    means = F.avg_pool2d(fine.movedim(-1, 1), 4).movedim(1, -1)
    small = s.hints[:1, ::2, ::2]
    grown = F.interpolate(small.movedim(-1, 1), (96, 128), mode="bilinear").movedim(1, -1)
    apply = setup_control.stock().apply_controlnet
    for given, expected in ((fine, means), (small, grown)):
        right = s.run(s.apply(hints=expected))
        close(s.run(s.apply(hints=given)), right, 1e-5)
        close(s.run(s.apply(hints=given, resize="stretch")), right, 1e-5)
        close(s.run(apply(s.positive, s.negative, s.control, given, 1.0, 0.0, 1.0, vae=s.vae)), right, 1e-5)


def check_the_loaders_vae_reads_what_comes_without_one(s: Setup) -> None:
    import nodes

    control = s.bridge.load_control(str(s.paths[3]), "float32", s.vae)
    positive = nodes.ControlNetApply().apply_controlnet(s.positive, control, s.hints, 1.0)[0]
    expected = s.run(s.apply(), 4.5)
    close(s.run((positive, s.negative), 4.5), expected, 1e-6)
    wrong = s.bridge.load_control(str(s.paths[3]), "float32", mock.Mock(latent_channels=16))
    assert torch.equal(s.run(s.apply(wrong), 4.5), expected), "a VAE that comes with the hint wins"
    without = nodes.ControlNetApply().apply_controlnet(s.positive, s.control, s.hints, 1.0)[0]
    raises("of PixArt-δ ControlNet Loader", s.run, (without, s.negative))


def check_a_dead_entry_among_the_loaded_models_is_skipped(s: Setup) -> None:
    """As a foreign node leaves it: the model lives, its patcher is gone."""
    import comfy.model_management as memory
    import comfy.model_patcher

    expected = s.run(s.apply())
    module = torch.nn.Linear(2, 2)
    patcher = comfy.model_patcher.ModelPatcher(module, torch.device("cpu"), torch.device("cpu"))
    memory.load_models_gpu([patcher])
    del patcher
    gc.collect()
    with mock.patch.object(memory, "cleanup_models_gc"), mock.patch.object(memory, "cleanup_models"):
        assert None in memory.loaded_models(only_currently_used=True)
        assert torch.equal(s.run(s.apply()), expected)
    del module


def check_hints_are_read_only_where_the_control_acts(s: Setup) -> None:
    conds = s.apply(start=0.0, end=0.2)
    sigmas = s.model.get_model_object("model_sampling").sigmas
    control, hints = conds[0][0][1]["control"], s.hint
    control.pre_run(s.model.model, s.model.get_model_object("model_sampling").percent_to_sigma)
    assert hints._acts(control, sigmas.flip(0)) and not hints._acts(control, sigmas[:100].flip(0))


def micro(s: Setup):
    """A MODEL with micro-conditions, and its conditioning's width."""
    assert s.model.model.diffusion_model.config.micro_condition
    return s.model.model.extra_conds


def check_sizes_are_read_however_they_are_written(s: Setup) -> None:
    extra_conds = micro(s)
    given = {"cross_attn": s.positive[0][0], "noise": torch.zeros(1, 4, 8, 8), "device": "cpu", "width": 64}
    written = (0.6, [0.6], [[0.6]], (0.6,), torch.tensor(0.6), torch.tensor([[0.6]]), [torch.tensor(0.6)])
    ratio = s.part("nodes.bridge.conds").aspect_ratio
    for value in written:
        conds = extra_conds(**given, height=96, aspect_ratio=value)
        assert conds["c_size"].cond.tolist() == [[96, 64]]
        assert torch.equal(ratio(None, conds["c_ar"].cond), torch.tensor([[0.6]]))
    for value in ([[1000, 600]], (1000, 600), torch.tensor([[1000.0, 600.0]]), [[1000.0], [600]]):
        conds = extra_conds(**given, height=96, img_hw=value)
        assert conds["c_size"].cond.tolist() == [[1000, 600]] and "c_ar" not in conds
    conds = extra_conds(**given, height=[[96]], img_hw=[[1000, 600], [200, 100]], aspect_ratio=[[0.5], [2.0]])
    assert conds["c_size"].process_cond(batch_size=2).cond.tolist() == [[1000, 600], [200, 100]]
    assert ratio(None, conds["c_ar"].process_cond(batch_size=2).cond).tolist() == [[0.5], [2.0]]
    for wrong in ({"img_hw": [[1, 2, 3]]}, {"aspect_ratio": "wide"}, {"aspect_ratio": [[0.0]]}, {"img_hw": []}):
        raises(f"the conditioning's {next(iter(wrong))} is", extra_conds, **given, height=96, **wrong)


def check_sizes_in_lists_sample_as_numbers_and_nothing_is_written_into_them(s: Setup) -> None:
    caption, values = s.positive[0]
    lists = [[caption, {**values, "img_hw": [[1000, 600]], "aspect_ratio": [[0.6]]}]]
    plain = [[caption, {**values, "height": 1000, "width": 600, "aspect_ratio": 0.6}]]
    before = copy.deepcopy(lists)
    expected = s.run((plain, plain), 4.5)
    close(s.run((lists, lists), 4.5), expected, 1e-6)
    assert before[0][1].keys() == lists[0][1].keys() and lists[0][1]["aspect_ratio"] == [[0.6]]
    assert (s.run((s.positive, s.positive), 4.5) - expected).norm() / expected.norm() > 1e-4


def check_conditionings_of_any_encoder_are_cut_at_120_tokens(s: Setup) -> None:
    generator = torch.Generator().manual_seed(4)
    long = torch.randn(1, 300, s.positive[0][0].shape[-1], generator=generator)
    cut = torch.cat([long[:, :119], long[:, -1:]], dim=1)
    close(s.run(([[long, {}]], s.negative), 4.5), s.run(([[cut, {}]], s.negative), 4.5), 1e-6)
    mask = torch.zeros(1, 300)
    mask[:, :7] = 1
    padded = [[long, {"caption_mask": mask}]]
    with mock.patch.object(s.part("nodes.bridge.conds"), "say_once") as said:
        close(s.run((padded, s.negative)), s.run(([[long[:, :7], {}]], s.negative)), 1e-5)
        assert not said.called, "padding is not cut off"
        s.run(([[long, {}]], s.negative))
        assert "300 tokens and PixArt reads 120" in said.call_args.args[0]
    both = torch.cat([cut, cut], dim=1)[:, :130]
    assert s.run(s.apply(conds=([[both, {}]], s.negative)), 4.5).isfinite().all()


def tokens_of(s: Setup, clip, text: str, **options) -> list:
    return s.part("nodes.bridge.prompt").pixart_tokens(clip, text, **options)["t5xxl"]


def check_120_tokens_of_any_clip(s: Setup) -> None:
    """The T5 of Stable Diffusion 3's tokenizer pads to 77 by itself and knows no limit."""
    import comfy.sd
    from comfy.text_encoders.pixart_t5 import PixArtTokenizer
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    say = mock.patch.object(s.part("nodes.bridge.prompt"), "say")
    for tokenizer in (SD3Tokenizer(), PixArtTokenizer()):
        clip = comfy.sd.CLIP(no_init=True)
        clip.tokenizer, clip.tokenizer_options = tokenizer, {}
        with say as said:
            (short,), (empty,) = tokens_of(s, clip, "a red mountain"), tokens_of(s, clip, "")
            assert short[-1][0] == 1
            assert 3 <= len(short) <= 6
            assert [token[0] for token in empty] == [1]
            assert not said.called
            (long,) = tokens_of(s, clip, "a red mountain and a lake " * 60)
            assert len(long) == 120
            assert long[-1][0] == 1
            assert long[:3] == short[:3]
            assert "PixArt reads 120" in said.call_args.args[0]
            assert "and a lake" in said.call_args.args[0]


def check_padding_asked_for_is_no_prompt(s: Setup) -> None:
    from comfy_extras.nodes_cond import T5TokenizerOptions

    clip = s.part("nodes.bridge.clip").load_clip(str(s.family / "text_encoder"))
    bare = clip.tokenize("a red mountain")["t5xxl"][0]
    end = bare[-1][0]
    say = mock.patch.object(s.part("nodes.bridge.prompt"), "say")
    for padding, length in ((0, 50), (0, 300), (300, 0), (20, 0)):
        made = T5TokenizerOptions.execute(clip, padding, length)
        padded = made.result[0] if hasattr(made, "result") else made[0]
        with say as said:
            row = padded.tokenize("a red mountain")["t5xxl"][0]
            assert row[: len(bare)] == bare and len(row) == min(120, max(length, len(bare) + padding))
            assert {token[0] for token in row[len(bare) :]} == {0} and not said.called
            (row,) = padded.tokenize("a red mountain and a lake " * 60)["t5xxl"]
            assert len(row) == 120
            assert row[-1][0] == end
            assert said.call_count == 1
            assert "<pad>" not in said.call_args.args[0]


def check_the_null_caption_has_what_the_prompt_is_encoded_with(s: Setup) -> None:
    import comfy.hooks

    clip = s.part("nodes.bridge.clip").load_clip(str(s.family / "text_encoder")).clone()
    clip.apply_hooks_to_conds = comfy.hooks.HookGroup()
    clip.apply_hooks_to_conds.add(comfy.hooks.Hook())
    encode = s.part("nodes.bridge.prompt").encode_prompts
    positive, negative = encode(clip, "a red mountain", "", 600, 1000, False, s.model)
    (caption, values), (null, others) = positive[0], negative[0]
    assert others["hooks"] is clip.apply_hooks_to_conds and values.keys() == others.keys()
    assert (others["width"], others["height"]) == (600, 1000) and others is not values
    close(null, s.reference.null_caption(1, caption.shape[1]), 1e-6)
    parts = [[caption, {"clip_start_percent": 0.0}], [caption[:, :3], {"clip_start_percent": 0.5}]]
    with mock.patch.object(clip, "encode_from_tokens_scheduled", lambda *_, **__: parts):
        negative = encode(clip, "a red mountain", "", 0, 0, False, s.model)[1]
    assert [(len(null[0]), values) for null, values in negative] == [(len(c[0]), v) for c, v in parts]


def lcm(s: Setup, steps: int = 3, model=None, **latent):
    made = {**s.latent, **latent}
    return s.sampling.run_lcm(model or s.model, s.positive, made, 3, steps, "diffusers")


def check_a_picture_of_a_batch_has_the_batchs_noise(s: Setup) -> None:
    """Redone alone it is the same; by Latent Batch Seed Behavior all are."""
    samples = torch.zeros(3, 4, 12, 16)
    whole = lcm(s, samples=samples)["samples"]
    close(lcm(s, samples=samples[:1], batch_index=[2])["samples"], whole[2:], 1e-4)
    close(lcm(s, samples=samples, batch_index=[0, 1, 2])["samples"], whole, 1e-4)
    one = lcm(s, 1, samples=samples)["samples"]
    close(lcm(s, 1, samples=samples[:1], batch_index=[1])["samples"], one[1:2], 1e-4)
    same = lcm(s, samples=samples, batch_index=[0, 0, 0])["samples"]
    close(same[1:], same[:1].expand(2, -1, -1, -1), 1e-5)
    assert (whole[1] - whole[0]).norm() / whole[0].norm() > 0.1


def check_noise_masks_of_every_shape(s: Setup) -> None:
    picture = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(7))
    mask = torch.zeros(96, 128)
    mask[:, :64] = 1
    expected = lcm(s, samples=picture, noise_mask=mask.expand(2, 1, -1, -1))["samples"]
    close(expected[..., 9:], picture[..., 9:], 1e-3)
    assert (expected[..., :7] - picture[..., :7]).abs().mean() > 0.1
    shapes = [mask, mask[None], mask.expand(2, -1, -1), mask[None, None], mask.expand(5, -1, -1)]
    for given in shapes:
        close(lcm(s, samples=picture, noise_mask=given)["samples"], expected, 1e-5)
    for size in ((12, 16), (192, 256), (48, 64)):
        resized = F.interpolate(mask[None, None], size, mode="nearest")[0]
        out = lcm(s, samples=picture, noise_mask=resized)["samples"]
        close(out[..., 9:], picture[..., 9:], 1e-3)


def check_latents_of_other_models_and_with_other_keys(s: Setup) -> None:
    expected = lcm(s)
    assert set(expected) == {"samples"}, "what KSampler leaves out is left out"
    others = lcm(s, batch_index=[0, 1], type="of others")
    assert others["type"] == "of others" and others["batch_index"] == [0, 1]
    close(others["samples"], expected["samples"], 1e-4)
    for samples in (torch.zeros(2, 16, 12, 16), torch.zeros(2, 4, 1, 12, 16), torch.zeros(2, 16, 1, 12, 16)):
        close(lcm(s, samples=samples)["samples"], expected["samples"], 1e-6)
    coarse = lcm(s, samples=torch.zeros(2, 128, 6, 8), downscale_ratio_spacial=16)
    close(coarse["samples"], expected["samples"], 1e-6)
    for samples in (torch.ones(2, 16, 12, 16), torch.zeros(2, 4, 3, 12, 16), torch.zeros(2, 4, 12)):
        raises("the latent has shape", lcm, s, samples=samples)


def check_few_steps_are_pointed_out_for_whole_schedules_only(s: Setup) -> None:
    import comfy.samplers

    sampling = s.model.get_model_object("model_sampling")
    euler = comfy.samplers.ksampler("euler").sampler_function
    model = s.model.clone()
    model.set_attachments(s.part("nodes.bridge.model").DISTILLED, None)
    few = lambda sigmas: any("too few" in text for text in s.sampling._warnings(model, 4.5, sigmas, euler))  # noqa: E731
    for scheduler in ("normal", "karras", "sgm_uniform", "simple", "beta", "exponential", "kl_optimal"):
        for steps in (14, 20, 30):
            sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
            assert not few(sigmas)
            parts = [sigmas[i : i + length + 1] for length in (1, 3, 6) for i in range(steps - length + 1)]
            assert not [part for part in parts if few(part)], (scheduler, steps)
        for steps in (4, 6, 8):
            sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
            assert few(sigmas), (scheduler, steps)


def check_a_node_says_a_thing_once_in_a_prompt(s: Setup) -> None:
    from comfy_execution.utils import CurrentNodeContext

    ui = s.part("nodes.bridge.ui")
    with mock.patch.object(ui, "say") as said:
        for prompt, node, text, count in (
            ("1", "a", "x", 1),
            ("1", "a", "x", 1),
            ("1", "b", "x", 2),
            ("1", "a", "y", 3),
            ("2", "a", "x", 4),
        ):
            with CurrentNodeContext(prompt, node, 0):
                ui.say_once(text)
            assert said.call_count == count, (prompt, node, text)


if __name__ == "__main__":
    main(globals(), Setup)
