"""The stored architectures of the published models have the published sizes."""

import pytest

from idcompress.errors import IdcError
from idcompress.models.official import meta_components
from idcompress.pruning import depth_skip


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_sizes():
    ip2p, controlnet = meta_components("ip2p"), meta_components("controlnet")
    assert count(ip2p["unet"]) == 859_532_484
    assert count(controlnet["unet"]) == 859_520_964
    assert count(controlnet["controlnet"]) == 361_279_120
    assert count(ip2p["vae"]) == 83_653_863
    assert count(ip2p["text_encoder"]) == 123_060_480


def test_the_whole_control_pipeline_at_depth_9():
    components = meta_components("controlnet")
    pruned = depth_skip.apply(components, depth_skip.chosen(9))
    assert sum(map(count, pruned.values())) == 703_875_924
    assert depth_skip.apply(components, depth_skip.chosen(13)) == {}


def test_unknown_task():
    with pytest.raises(IdcError, match="ip2p"):
        meta_components("nothing")
