"""CUDA graphs and TorchCompileModel in ComfyUI's own interpreter: `python inside_graphs.py COMFYUI FAMILY CHECK…`.

There is no GPU here: a capture for the CPU stands in for CUDA's, and computes anew at each replay what was captured.
"""

from __future__ import annotations

import itertools
import logging

import setup_control
import torch
from inside_process import ROOT, close, main, sibling


class Setup(setup_control.Setup):
    """As for controls, and graphs that work on the CPU in the place of the model's own."""

    def __init__(self, part, family: str):
        super().__init__(part, family)
        self.capture = sibling("capture_fixture", ROOT / "tests").OnCpu()
        self.unet = self.model.model.diffusion_model
        self.bridge_graphs, self.core_graphs = part("nodes.bridge.graphs"), part("pixart_core.graphs")
        self.unet.graphs = self.core_graphs.Graphs(self.capture, works_on=("cpu",))
        self.lcm = self.sampling.add_lcm_sampling(self.model)
        self.off = self.sampling.switch_graphs(self.lcm, False)
        self.said = Said()
        logging.getLogger(self.bridge_graphs.__name__).addHandler(self.said)
        logging.getLogger(self.bridge_graphs.__name__).setLevel(logging.INFO)

    def draw(self, model, positive=None, seed=3):
        return self.sampling.run_lcm(model, positive or self.positive, self.latent, seed, 4, "diffusers")["samples"]

    def is_plain(self, reason: str, model, **options) -> None:
        """A run of this model replays nothing, and its log says why."""
        before = self.capture.captures, self.capture.replays
        self.sample(model, **{"steps": 4, **options})
        assert (self.capture.captures, self.capture.replays) == before, reason
        assert reason in self.said.texts[-1], (reason, self.said.texts)


class Said(logging.Handler):
    def __init__(self):
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record) -> None:
        self.texts.append(record.getMessage())


def check_replayed_pictures_are_the_same_to_the_last_bit(s: Setup) -> None:
    for name, options in {"lcm": {}, "guided": {"cfg": 3.0, "sampler_name": "euler", "steps": 5}}.items():
        for seed in (3, 4):
            expected = s.sample(s.off, seed=seed, **options)
            captured = s.capture.captures
            assert torch.equal(s.sample(s.lcm, seed=seed, **options), expected), name
            assert s.capture.captures == captured + (seed == 3), (name, seed)
    assert torch.equal(s.draw(s.lcm), s.draw(s.off))
    assert s.capture.replays > 10
    assert all(one != other for one, other in itertools.pairwise(s.said.texts)), s.said.texts


def check_the_decision_is_said_once(s: Setup) -> None:
    for _ in range(3):
        s.draw(s.lcm)
    assert s.said.texts == ["CUDA graphs are used from a size's second step on"]


def check_another_size_batch_and_prompt(s: Setup) -> None:
    other = s.part("nodes.bridge.prompt").encode_prompts(
        s.part("nodes.bridge.clip").load_clip(str(s.family / "text_encoder")), "a lake below a house", "", 0, 0, False
    )[0]
    for width, height, batch in ((128, 96, 2), (96, 96, 1), (128, 96, 2)):
        s.latent = s.sampling.empty_latent(width, height, batch)
        for positive in (s.positive, other):
            assert torch.equal(s.draw(s.lcm, positive), s.draw(s.off, positive))
    assert s.capture.replays


def check_replayed_control_is_the_same(s: Setup) -> None:
    applied = s.apply()[0]
    for seed in (3, 4):
        assert torch.equal(s.draw(s.lcm, applied, seed), s.draw(s.off, applied, seed))
    names = [name for name, *_ in s.unet.graphs._graphs]
    assert sorted(name.split()[0] for name in names) == ["control", "step"], names
    chained = s.apply(s.bridge.load_control(str(s.paths[1]), "float32"), conds=(applied, s.negative))[0]
    assert torch.equal(s.draw(s.lcm, chained), s.draw(s.off, chained))
    assert torch.equal(s.draw(s.lcm), s.draw(s.off))
    partly = s.apply(start=0.2, end=0.6)[0]
    assert torch.equal(s.draw(s.lcm, partly), s.draw(s.off, partly))


def check_a_lora_comes_and_goes(s: Setup) -> None:
    plain, patch = s.draw(s.off), {"diffusion_model.blocks.0.mlp.fc1.weight": ("diff", (torch.ones(192, 48),))}
    changed = s.lcm.clone()
    changed.add_patches(patch, 0.5)
    other = s.lcm.clone()
    other.add_patches(patch, 0.7)
    assert torch.equal(s.draw(s.lcm), plain)
    drawn = {name: [s.draw(model) for _ in range(2)] for name, model in {"one": changed, "other": other}.items()}
    assert torch.equal(s.draw(s.lcm), plain)
    for name, model in {"one": changed, "other": other}.items():
        expected = s.draw(s.sampling.switch_graphs(model, False))
        assert all(torch.equal(each, expected) for each in drawn[name]), name
        assert (expected - plain).norm() > 1e-3


def check_what_patches_the_model_leaves_graphs_out(s: Setup) -> None:
    from comfy.patcher_extension import WrappersMP

    s.is_plain("turns them off", s.off)
    block = s.lcm.clone()
    block.set_model_patch_replace(lambda values, extra: extra["original_block"](values), "dit", "double_block", 1)
    s.is_plain("patches the model (patches_replace)", block)
    attention = s.lcm.clone()
    attention.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    s.is_plain("patches the model (patches)", attention)
    override = s.lcm.clone()
    override.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(*a, **k)
    s.is_plain("optimized_attention_override", override)
    for kind in (WrappersMP.DIFFUSION_MODEL, WrappersMP.APPLY_MODEL):
        wrapped = s.lcm.clone()
        wrapped.add_wrapper_with_key(kind, "test", lambda executor, *a, **k: executor(*a, **k))
        s.is_plain("wraps the model", wrapped)
    replaced = s.lcm.clone()
    replaced.add_object_patch("diffusion_model.final_layer", s.unet.final_layer)
    s.is_plain("replaces a part of the model (diffusion_model.final_layer)", replaced)
    monkey = s.unet.blocks[0].mlp
    monkey.forward = monkey.forward
    s.is_plain("replaces the forward of Mlp", s.lcm)
    del monkey.forward
    linear = s.unet.blocks[0].mlp.fc1
    linear.weight_function = [lambda weight: weight]
    s.is_plain("changes weights while the model runs", s.lcm)
    linear.weight_function = []


def check_another_network_in_its_place_runs(s: Setup) -> None:
    """An object patch of the whole model, as some packs compile it."""

    class Around(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.dtype, self.config = inner, inner.dtype, inner.config

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    model = s.lcm.clone()
    model.add_object_patch("diffusion_model", Around(s.unet))
    assert torch.equal(s.sample(model), s.sample(s.off)) and not s.capture.captures


def check_hooks_of_a_prompt_leave_graphs_out(s: Setup) -> None:
    import comfy.hooks

    hooks = comfy.hooks.HookGroup()
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.weights = {"diffusion_model.blocks.0.mlp.fc1.weight": ("diff", (torch.ones(192, 48),))}
    hook.need_weight_init = False
    hooks.add(hook)
    s.is_plain("hooks change the model", s.lcm, positive=[[s.positive[0][0], {**s.positive[0][1], "hooks": hooks}]])


def check_a_model_in_parts_or_in_dynamic_memory_leaves_graphs_out(s: Setup) -> None:
    from unittest import mock

    s.draw(s.lcm)
    assert len(s.unet.graphs)
    with mock.patch.object(type(s.lcm), "is_dynamic", lambda _: True):
        reasons = list(s.bridge_graphs._network_obstacles(s.lcm, {}))
    assert any("--disable-dynamic-vram" in reason for reason in reasons), reasons
    s.lcm.load_device = torch.device("meta")
    assert any("not whole on meta" in reason for reason in s.bridge_graphs._network_obstacles(s.lcm, {}))


def check_unloading_gives_the_memory_back(s: Setup) -> None:
    import gc
    import weakref

    import comfy.model_management as memory

    expected = s.draw(s.lcm)
    assert len(s.unet.graphs)
    memory.unload_all_models()
    assert not len(s.unet.graphs)
    assert torch.equal(s.draw(s.lcm), expected)
    gc.collect()
    gc.disable()
    try:  # a graph does not keep a control that is gone
        loaded = s.bridge.load_control(str(s.paths[3]), "float32")
        s.draw(s.lcm, s.apply(loaded)[0])
        gone = weakref.ref(loaded.control_model)
        memory.unload_all_models()
        del loaded
        gc.collect()
        assert gone() is None
    finally:
        gc.enable()


def check_an_interrupted_run_leaves_graphs_that_work(s: Setup) -> None:
    import comfy.model_management as memory

    expected = s.draw(s.off)
    s.draw(s.lcm)
    predict, calls = type(s.unet)._predict, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise memory.InterruptProcessingException
        return predict(self, *args, **kwargs)

    type(s.unet)._predict = interrupted
    try:
        s.draw(s.lcm)
        raise AssertionError("the run went on")
    except memory.InterruptProcessingException:
        pass
    finally:
        type(s.unet)._predict = predict
    assert torch.equal(s.draw(s.lcm), expected)


def check_a_copy_has_graphs_of_its_own(s: Setup) -> None:
    import copy

    s.draw(s.lcm)
    other = copy.deepcopy(s.unet)
    assert len(s.unet.graphs)
    assert not len(other.graphs)
    assert other.graphs is not s.unet.graphs


def check_torch_compile_model_works_on_ours(s: Setup) -> None:
    """With a backend that counts graphs and runs them as they are: one for all prompt lengths, also after a LoRA."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    compiled = []

    @torch._dynamo.register_backend(name="counting")
    def counting(graph, _inputs, **_options):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = TorchCompileModel.execute(s.lcm, "counting").result[0]
    counts = []
    for length in (s.positive[0][0].shape[1], 7, 9, 12):
        positive = [[torch.randn(1, length, s.positive[0][0].shape[-1]), s.positive[0][1]]]
        close(s.sample(model, positive=positive), s.sample(s.off, positive=positive), 1e-4)
        counts.append(len(compiled))
    assert 0 < counts[0] <= counts[1] == counts[-1] <= 2 * counts[0], counts  # once for one length, once for any
    assert not s.capture.captures and "torch_compile" in s.said.texts[-2], s.said.texts
    patch = {"diffusion_model.blocks.0.mlp.fc1.weight": ("diff", (torch.ones(192, 48),))}
    lora, plain = model.clone(), s.off.clone()
    for each in (lora, plain):
        each.add_patches(patch, 0.5)
    close(s.sample(lora), s.sample(plain), 1e-4)
    assert len(compiled) <= counts[-1] + counts[0], (counts, len(compiled))


if __name__ == "__main__":
    main(globals(), Setup)
