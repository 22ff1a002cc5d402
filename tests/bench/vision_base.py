"""A ResNet-18 of random weights for small images, for measurements to which it does not matter what it knows."""

from __future__ import annotations

import json
from pathlib import Path


def make_resnet(folder: Path) -> Path:
    """Write the model and its preprocessing to a folder."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    config = ResNetConfig(**sizes, layer_type="basic", downsample_in_first_stage=False)
    ResNetForImageClassification(config).save_pretrained(folder)
    described = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder
