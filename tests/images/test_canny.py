"""Edge maps lie where the edges are."""

import torch

from idcompress.images.canny import canny


def test_a_step_gives_one_line_and_a_flat_picture_none() -> None:
    image = torch.full((2, 3, 32, 32), 0.2)
    image[1, :, :, 16:] = 0.8
    edges = canny(image)
    assert edges.shape == (2, 1, 32, 32)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert edges[0].sum() == 0
    columns = edges[1, 0].sum(0).nonzero().flatten()
    assert len(columns) == 1 and abs(int(columns[0]) - 16) <= 1


def test_higher_thresholds_keep_fewer_edges() -> None:
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    assert canny(image, 200, 400).sum() < canny(image, 50, 100).sum()
