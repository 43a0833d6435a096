"""Every recipe in configs/ is a configuration that runs."""

from pathlib import Path

import pytest
import torch
from support.repository import ROOT

from pipeline.config.parser import parse_config
from pipeline.model.captioner import Captioner

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_a_captioner_that_fits_its_images(recipe: Path) -> None:
    config = parse_config(["--config", str(recipe), "--data.train", "x", "--run_dir", "r"])
    side = config.data.image_size
    with torch.no_grad(), torch.device("meta"):  # shapes alone, without the arithmetic
        captioner = Captioner(config.model, 50, pretrained=False).eval()
        encoded = captioner.encoder(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    assert encoded.pooled.shape == (1, config.model.dim)
    assert (encoded.grid is None) == (config.model.decoder.kind in ("lstm", "gru"))
    if encoded.grid is not None and config.model.encoder.grid:
        assert encoded.grid.shape[1] == config.model.encoder.grid**2
