"""How an image becomes the pixels that a vision backbone reads, as the processor that comes with its base does it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.errors import DataError, StageError

PREPROCESSOR = "preprocessor_config.json"
BILINEAR, BICUBIC = 2, 3
"""What Pillow, and so transformers, call these filters."""


class Defaults(NamedTuple):
    """What a processor of transformers does where its file does not say."""

    resample: int = BICUBIC
    proportional: bool = False
    """Whether a size that is a number means the shortest edge."""
    crops: bool = False


KINDS = {
    "": Defaults(BILINEAR),
    "Beit": Defaults(),
    "Bit": Defaults(proportional=True, crops=True),
    "CLIP": Defaults(proportional=True, crops=True),
    "ConvNext": Defaults(proportional=True),
    "DeiT": Defaults(crops=True),
    "EfficientNet": Defaults(),
    "Levit": Defaults(proportional=True, crops=True),
    "MobileNetV1": Defaults(BILINEAR, proportional=True, crops=True),
    "MobileNetV2": Defaults(BILINEAR, proportional=True, crops=True),
    "PoolFormer": Defaults(proportional=True, crops=True),
    "Pvt": Defaults(),
    "Siglip": Defaults(),
    "ViT": Defaults(BILINEAR),
}
"""The processors that are known, by the beginnings of their names; a file may name none."""
CROP_SHARES = {"ConvNext": 224 / 256, "PoolFormer": 0.9}
"""`crop_pct` of the processors that have one."""
UNCROPPED_FROM = 384
"""The size from which ConvNext's processor crops nothing."""
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels")
"""What a file may say is done (the last is of segmentation alone, and all images become RGB)."""
_ENDING = re.compile(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$")


@dataclass(frozen=True, repr=False)
class Preprocessing:
    """How an image becomes numbers: side in pixels, and each channel's mean and deviation, from 0 to 1."""

    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    resized: int | None = None
    """The side that an image is resized to before its centre is cut out; None where nothing is cut off."""
    proportional: bool = False
    """Whether that is the shortest edge, and the other stays in proportion."""
    resample: int = BILINEAR
    """Pillow's filter."""

    def __repr__(self) -> str:
        # What is as usual is left out: the text names measurements that are kept.
        named = [(one.name, getattr(self, one.name), one.default) for one in dataclasses.fields(self)]
        shown = [f"{name}={value!r}" for name, value, usual in named if value != usual]
        return f"Preprocessing({', '.join(shown)})"

    def pixels(self, image: bytes) -> NDArray[np.uint8]:
        """Decode an image to `(3, side, side)`, uint8; grey becomes three equal channels.

        Raises:
            DataError: it cannot be decoded.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(image)) as opened:
                sized = self._sized(opened.convert("RGB"))
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"An image of {len(image)} bytes cannot be decoded: {error}") from None
        return np.ascontiguousarray(np.asarray(sized).transpose(2, 0, 1))

    def _sized(self, image: Any) -> Any:
        edge = self.resized or self.side
        width, height = edge, edge
        if self.proportional:
            width, height = (int(edge * own / min(image.size)) for own in image.size)
        sized = image.resize((width, height), self.resample)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        return sized.crop((left, top, left + self.side, top + self.side))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale uint8 pixels `(rows, 3, side, side)` to what the backbone was trained on."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, -1, 1, 1)
        deviation = torch.tensor(self.deviation, device=pixels.device).view(1, -1, 1, 1)
        return (pixels.float() / 255 - mean) / deviation

    def settings(self) -> dict[str, Any]:
        """Return what a file says of it, for `read_preprocessing` and for transformers."""
        edge = self.resized or self.side
        found = {
            "do_resize": True,
            "size": {"shortest_edge": edge} if self.proportional else {"height": edge, "width": edge},
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.deviation),
        }
        if self == Preprocessing(self.side, self.mean, self.deviation):
            return found
        # Of transformers' processors, Bit's does what its file says and nothing of its own.
        crop = {"do_center_crop": True, "crop_size": {"height": self.side, "width": self.side}}
        return {"image_processor_type": "BitImageProcessor", "resample": self.resample, **crop, **found}


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read how a model folder's images are preprocessed.

    Raises:
        StageError: it does not say, or asks for what is not known here; the fields are named.
    """
    path = folder / PREPROCESSOR
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        said = {name: value for name, value in said.items() if value is not None}
        kind = _kind(said)
        if problems := _unknown_steps(said):
            raise StageError(
                f"{path} asks for what is not known here, so that images would differ:", problems
            )
        mean, deviation = _channels(said, kind)
        return _resized(said, kind, mean, deviation)
    except FileNotFoundError:
        raise StageError(
            f"{folder} has no {PREPROCESSOR}: how images are scaled cannot be guessed."
        ) from None
    except _NotKnownError as error:
        raise StageError(
            f"{path}, {error}. Images cannot be preprocessed as the base's own were: take another base, or correct "
            "the file."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{path} does not say size, image_mean and image_std: {error!r}") from error


class _NotKnownError(Exception):
    """A field says what is not understood."""


def _kind(said: Mapping[str, Any]) -> str:
    """Return the beginning of the processor's name, as in `KINDS`."""
    field = "image_processor_type" if "image_processor_type" in said else "feature_extractor_type"
    kind = _ENDING.sub("", str(said.get(field, "")))
    if kind not in KINDS:
        raise _NotKnownError(
            f"{field}: {said[field]} is not known; known are {', '.join(filter(None, KINDS))}"
        )
    return kind


def _unknown_steps(said: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{name}: true"
        for name, value in said.items()
        if name.startswith("do_") and value and name not in STEPS
    ]
    problems += [f"{name}: false" for name in ("do_resize", "do_rescale") if not said.get(name, True)]
    if said.get("rescale_offset"):
        problems.append("rescale_offset: true")
    factor = said.get("rescale_factor", 1 / 255)
    if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        problems.append(f"rescale_factor: {factor}, and not 1/255")
    return problems


def _channels(said: Mapping[str, Any], kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and deviation; EfficientNet's `include_top` divides by the deviation once more."""
    normalises = said.get("do_normalize", True)
    mean = tuple(said["image_mean"]) if normalises else (0.0,) * 3
    deviation = tuple(said["image_std"]) if normalises else (1.0,) * 3
    if said.get("include_top", kind == "EfficientNet"):
        deviation = tuple(one * again for one, again in zip(deviation, said["image_std"], strict=True))
    return mean, deviation


def _resized(
    said: Mapping[str, Any], kind: str, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Preprocessing:
    usual = KINDS[kind]
    size, proportional = _size(said, usual)
    crop = _crop(said) if said.get("do_center_crop", usual.crops) else None
    share = said.get("crop_pct", CROP_SHARES.get(kind))
    if share is not None and kind not in CROP_SHARES:
        raise _NotKnownError(f"crop_pct: {share} means nothing without an image_processor_type that has it")
    edge = size
    if kind == "ConvNext":
        if crop is not None or not proportional:
            raise _NotKnownError(
                "size: a ConvNextImageProcessor reads size.shortest_edge, and has no do_center_crop"
            )
        crop, proportional = size, size < UNCROPPED_FROM
        edge = int(size / share) if proportional else size
    elif kind == "PoolFormer":
        edge, proportional = int(size / share), True
    elif kind == "Levit" and proportional:
        edge = int(256 / 224 * size)
    if crop is None and proportional:
        raise _NotKnownError(
            "size.shortest_edge without do_center_crop and crop_size gives images of many shapes"
        )
    if crop is not None and crop > edge:
        raise _NotKnownError(f"crop_size: {crop} is more than the {edge} that images are resized to")
    side = crop or edge
    return Preprocessing(
        side, mean, deviation, None if edge == side else edge, proportional, _resample(said, usual)
    )


def _size(said: Mapping[str, Any], usual: Defaults) -> tuple[int, bool]:
    """Return the side, and whether it is that of the shortest edge alone."""
    size = said["size"]
    if isinstance(size, int):
        return size, usual.proportional
    edges = {name: int(value) for name, value in size.items() if value is not None}
    if edges.keys() == {"shortest_edge"}:
        return edges["shortest_edge"], True
    if edges.keys() == {"height", "width"} and edges["height"] == edges["width"]:
        return edges["height"], False
    raise _NotKnownError(f"size: {size} is neither a square of `height` and `width` nor a `shortest_edge`")


def _crop(said: Mapping[str, Any]) -> int:
    size = said.get("crop_size")
    edges = {size} if isinstance(size, int) else set(dict(size or {}).values()) - {None}
    if len(edges) != 1:
        raise _NotKnownError(f"crop_size: {size} is no square, and do_center_crop asks for one")
    return int(edges.pop())


def _resample(said: Mapping[str, Any], usual: Defaults) -> int:
    from PIL import Image

    resample = said.get("resample", usual.resample)
    if resample not in [one.value for one in Image.Resampling]:
        raise _NotKnownError(f"resample: {resample} is none of Pillow's filters")
    return int(resample)
