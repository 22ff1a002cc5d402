"""Images are read as the processor that comes with a base reads them, or are refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tasks.errors import StageError
from tasks.families.image_classification import load_image_encoder
from tasks.families.preprocessing import PREPROCESSOR, Preprocessing, read_preprocessing

CHANNELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def photograph(width: int, height: int) -> Image.Image:
    draws = np.random.default_rng(width).integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8)
    return Image.fromarray(draws).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def described(folder: Path, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / PREPROCESSOR).write_text(json.dumps({**CHANNELS, **settings}))
    return folder


SQUARE, EDGE, CROP = {"height": 40, "width": 40}, {"shortest_edge": 40}, {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("DeiT", {"size": SQUARE, "crop_size": CROP}),
        ("ViT", {"size": SQUARE}),
        ("ViT", {"size": SQUARE, "resample": 3}),
        ("Bit", {"size": EDGE, "crop_size": CROP}),
        ("ConvNext", {"size": EDGE}),
        ("ConvNext", {"size": EDGE, "crop_pct": 0.95, "resample": 2}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
        ("Levit", {"size": EDGE, "crop_size": CROP}),
        ("PoolFormer", {"size": EDGE, "crop_size": CROP}),
        ("EfficientNet", {"size": SQUARE, "resample": 0}),
        ("MobileNetV2", {"size": EDGE, "crop_size": {"height": 31, "width": 31}}),
        ("Siglip", {"size": SQUARE, "do_normalize": False}),
    ],
)
def test_pixels_are_those_of_the_processor_and_of_what_is_saved(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**CHANNELS, **settings)
    processor.save_pretrained(tmp_path / "base")
    reads = read_preprocessing(tmp_path / "base")
    described(tmp_path / "tuned", **reads.settings())
    assert read_preprocessing(tmp_path / "tuned") == reads
    saved = transformers.BitImageProcessorPil.from_pretrained(tmp_path / "tuned")
    for width, height in ((90, 61), (61, 90), (33, 33)):
        image = photograph(width, height)
        mine = reads.normalise(torch.from_numpy(reads.pixels(png(image)))[None])
        wanted = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
        if "image_processor_type" in reads.settings():
            theirs = saved(image, return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 32}, (32, 36, True, 3)),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 40, "crop_size": 32}, (32, 40, True, 3)),
        ({"size": 40, "do_center_crop": True, "crop_size": 32, "resample": 3}, (32, 40, False, 3)),
        ({"size": 40}, (40, None, False, 2)),
    ],
)
def test_older_files_are_read_as_they_were_meant(
    tmp_path: Path, settings: dict[str, Any], wanted: tuple[Any, ...]
) -> None:
    reads = read_preprocessing(described(tmp_path, **settings))
    assert (reads.side, reads.resized, reads.proportional, reads.resample) == wanted


def test_a_square_size_alone_is_read_and_written_as_ever(tmp_path: Path) -> None:
    reads = read_preprocessing(described(tmp_path, size=SQUARE))
    image = photograph(90, 61)
    squashed = np.asarray(image.resize((40, 40), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(reads.pixels(png(image)), squashed)
    assert repr(reads) == "Preprocessing(side=40, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.4))"
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    assert reads.settings() == {**steps, "size": SQUARE, **CHANNELS}
    assert repr(Preprocessing(32, (0.5,), (0.5,), resized=40)) != repr(Preprocessing(32, (0.5,), (0.5,)))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"size": {"height": 40, "width": 32}}, "size: .*'width': 32"),
        ({"size": {"shortest_edge": 40, "longest_edge": 80}}, "size: .*longest_edge"),
        ({"size": EDGE}, "size.shortest_edge without do_center_crop"),
        ({"size": EDGE, "do_center_crop": True}, "crop_size: None"),
        ({"size": EDGE, "do_center_crop": True, "crop_size": 48}, "crop_size: 48 is more than the 40"),
        ({"size": SQUARE, "crop_pct": 0.9}, "crop_pct"),
        ({"size": SQUARE, "resample": "cubic"}, "resample: cubic"),
        ({"size": SQUARE, "do_resize": False}, "do_resize: false"),
        ({"size": SQUARE, "do_pad": True}, "do_pad: true"),
        ({"size": SQUARE, "do_flip_channel_order": True}, "do_flip_channel_order: true"),
        ({"size": SQUARE, "rescale_factor": 1 / 127.5, "rescale_offset": True}, "rescale_offset: true"),
        ({"size": SQUARE, "image_processor_type": "ImageGPTImageProcessor"}, "ImageGPTImageProcessor is not"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": SQUARE},
            "size: a ConvNextImageProcessor",
        ),
    ],
)
def test_what_is_not_understood_is_refused_by_its_field(
    tmp_path: Path, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(StageError) as refused:
        read_preprocessing(described(tmp_path, **settings))
    refused.match(PREPROCESSOR)
    refused.match(field)


def test_a_base_whose_processor_crops_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    config = transformers.DeiTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        num_labels=5,
    )
    base = transformers.DeiTForImageClassification(config).eval()
    base.save_pretrained(tmp_path)
    processor = transformers.DeiTImageProcessorPil(size=SQUARE, crop_size=CROP)
    processor.save_pretrained(tmp_path)
    image = photograph(90, 61)
    with torch.inference_mode():
        wanted = base(processor(image, return_tensors="pt")["pixel_values"]).logits.numpy()
    found = load_image_encoder(tmp_path, "cpu").original_logits([png(image)])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
