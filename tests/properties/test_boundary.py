"""The boundary network: one module at each depth, hidden states in and out, however it is run.

Zeros in are depth-skip, the true hidden state in is the whole network, both bit for bit: compiled, channels last, in
half precision, with a control branch or a structure encoder beside it, and in batches of images and guidance passes.
"""

from functools import cache

import pytest
import tiny_random
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch._dynamo.testing import CompileCounterWithBackend

from idcompress.adapters.deep_features import call_unet, giving
from idcompress.adapters.side_networks import cut_networks

KINDS = ("plain", "control", "structure")
SHAPE = {
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
DEPTH, SMALLER = 4, 2  # of 5 levels, of 13 for structure


@cache
def made(kind):
    """The whole networks of a kind, by name."""
    torch.manual_seed(0)
    if kind == "structure":
        pipeline = tiny_random.stablesr_pipeline()
        return {"unet": pipeline.unet, "structure_encoder": pipeline.structure_encoder}
    up = ("UpBlock2D", "CrossAttnUpBlock2D")
    networks = {"unet": UNet2DConditionModel(sample_size=8, up_block_types=up, **SHAPE)}
    if kind == "control":
        branch = ControlNetModel(in_channels=4, conditioning_embedding_out_channels=(4, 8), **SHAPE)
        for block in (*branch.controlnet_down_blocks, branch.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=0.1)
        networks["controlnet"] = branch
    return {name: network.eval().requires_grad_(False) for name, network in networks.items()}


@pytest.fixture
def networks():
    """kind, dtype and memory format -> the same networks in those."""

    def of(kind, dtype=torch.float32, memory_format=torch.contiguous_format):
        found = {name: type(network).from_config(network.config) for name, network in made(kind).items()}
        for name, network in found.items():
            network.load_state_dict(made(kind)[name].state_dict())
            network.eval().requires_grad_(False).to(dtype=dtype, memory_format=memory_format)
        return found

    return of


class Call:
    """A batch of images and guidance passes, and what the side network says of it."""

    def __init__(self, networks, images=1, passes=1, memory_format=torch.contiguous_format):
        unet, batch = networks["unet"], images * passes
        generator = torch.Generator().manual_seed(batch)

        def drawn(*shape):
            return torch.randn(batch, *shape, generator=generator).to(unet.dtype)

        width = unet.config.cross_attention_dim
        self.sample, self.text = drawn(4, 8, 8).to(memory_format=memory_format), drawn(3, width)
        self.image = {"controlnet_cond": drawn(3, 16, 16)} if "controlnet" in networks else {}
        self.latents = drawn(4, 8, 8)

    def side(self, networks, timestep=300):
        """Arguments of the U-Net that a side network makes."""
        time = torch.tensor(timestep)
        if "controlnet" in networks:
            down, middle = networks["controlnet"](self.sample, time, self.text, **self.image, return_dict=False)
            return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
        if "structure_encoder" in networks:
            return {"structure_features": networks["structure_encoder"](self.latents, time)}
        return {}

    def __call__(self, unet, side, timestep=300, **deep):
        with torch.inference_mode():
            output, found = call_unet(
                unet, self.sample, torch.tensor(timestep), self.text, **side, return_dict=False, **deep
            )
        return output[0], found


def check(networks, call):
    """Zeros in are the cut network, the true state the whole one, and both leave the smaller depth's state alike."""
    cut = cut_networks(networks, DEPTH)
    side, cut_side = call.side(networks), call.side({**networks, **cut})
    whole, found = call(giving(networks["unet"], [DEPTH, SMALLER]), side)
    assert sorted(found) == [SMALLER, DEPTH]
    boundary = giving(cut["unet"], [DEPTH, SMALLER])
    plain, left = call(boundary, cut_side)
    assert sorted(left) == [SMALLER]
    zeros, _ = call(boundary, cut_side, deep_features=torch.zeros_like(found[DEPTH]))
    assert torch.equal(plain, zeros) and torch.equal(plain, call(cut["unet"], cut_side)[0])
    for beside in (cut_side, side):  # a fresh side network's, and those that the whole one left
        true, left = call(boundary, beside, deep_features=found[DEPTH])
        assert torch.equal(true, whole) and torch.equal(left[SMALLER], found[SMALLER])
    assert not torch.equal(plain, whole)
    assert whole.dtype == found[DEPTH].dtype == networks["unet"].dtype
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("images", "passes"), [(1, 1), (2, 1), (2, 2), (2, 3)])
def test_batches_of_images_and_passes(networks, kind, images, passes):
    networks = networks(kind)
    check(networks, Call(networks, images, passes))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(networks, kind):
    networks = networks(kind, torch.bfloat16)
    check(networks, Call(networks, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last(networks, kind):
    """Hidden states stay as they lie in memory."""
    networks = networks(kind, memory_format=torch.channels_last)
    found = check(networks, Call(networks, 2, memory_format=torch.channels_last))
    assert all(state.is_contiguous(memory_format=torch.channels_last) for state in found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_each_depth_is_one_graph(networks, kind):
    """Over timesteps and hidden states, without a recompilation, and with the values of the module as it is."""
    networks = networks(kind)
    call, cut = Call(networks, 2), cut_networks(networks, DEPTH)
    stages = {None: giving(networks["unet"], [DEPTH]), DEPTH: cut["unet"]}
    steps = [(None, 900), (DEPTH, 700), (None, 400), (DEPTH, 100)]

    def run():
        states, outputs = {}, []
        for depth, timestep in steps:
            deep = {} if depth is None else {"deep_features": states[DEPTH]}
            output, found = call(stages[depth], sides[timestep], timestep, **deep)
            states |= found
            outputs.append(output)
        return outputs

    sides = {timestep: call.side(networks, timestep) for _, timestep in steps}
    wanted, counters = run(), {}
    for depth, unet in stages.items():
        counters[depth] = CompileCounterWithBackend("eager")
        unet.compile(backend=counters[depth], dynamic=False)
    assert all(map(torch.equal, run(), wanted))
    assert {depth: counter.frame_count for depth, counter in counters.items()} == {None: 1, DEPTH: 1}
    torch._dynamo.reset()


def test_copies_of_a_compiled_network_are_compiled(networks):
    unet = networks("plain")["unet"]
    assert giving(unet, [DEPTH])._compiled_call_impl is None
    unet.compile()
    for copy in (giving(unet, [SMALLER]), cut_networks({"unet": unet}, DEPTH)["unet"]):
        assert copy._compiled_call_impl is not None
