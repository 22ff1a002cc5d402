"""Copies of images: planted ones are found whatever was done to them, unlike ones are not taken for copies."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tasks.errors import DataError
from tasks.measures.images import (
    MOST_BITS_APART,
    ImageIndex,
    Sketch,
    exact_image_clusters,
    image_leaks,
    image_normal_form,
    near_image_clusters,
    thumbnail,
)


def scene(seed: int, side: int = 34) -> np.ndarray:
    """Return a smooth random picture with sharp blocks, (side, side, 3), uint8."""
    chance = np.random.default_rng(seed)
    soft = gaussian_filter(chance.standard_normal((side, side, 3)), (side / 8, side / 8, 0))
    soft = (soft - soft.min()) / (soft.max() - soft.min()) * 180 + 20
    for _ in range(4):
        top, left = chance.integers(0, side - side // 4, 2)
        soft[top : top + side // 4, left : left + side // 5] += chance.integers(-60, 60)
    return np.clip(soft, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def window(pixels: np.ndarray, down: int, right: int, side: int = 32) -> np.ndarray:
    """Return a part, so that a shifted one has other content at its edge, not a repeated column."""
    return pixels[down : down + side, right : right + side]


def brighter(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels * 1.15 + 12, 0, 255).astype(np.uint8)


def darker_grey(pixels: np.ndarray) -> np.ndarray:
    return (np.asarray(Image.fromarray(pixels).convert("L")) * 0.8).astype(np.uint8)


SCENES = [scene(seed) for seed in range(120)]
PLAIN = [encoded(window(pixels, 1, 1)) for pixels in SCENES]
COPIES = {
    "shifted down": [encoded(window(pixels, 2, 1)) for pixels in SCENES],
    "shifted up and left": [encoded(window(pixels, 0, 0)) for pixels in SCENES],
    "JPEG of quality 60": [encoded(window(pixels, 1, 1), "JPEG", quality=60) for pixels in SCENES],
    "brighter": [encoded(brighter(window(pixels, 1, 1))) for pixels in SCENES],
    "darker grey": [encoded(darker_grey(window(pixels, 1, 1))) for pixels in SCENES],
}


@pytest.mark.parametrize("change", COPIES)
def test_changed_copies_are_found_with_their_original_and_no_other(change: str) -> None:
    found = image_leaks(COPIES[change], PLAIN)
    assert np.mean(found == np.arange(120)) >= 0.95
    assert ((found == np.arange(120)) | (found == -1)).all()


def test_unlike_images_are_no_copies() -> None:
    assert len(set(near_image_clusters(PLAIN).tolist())) == 120
    assert (image_leaks([encoded(scene(seed)) for seed in range(500, 560)], PLAIN) == -1).all()


def test_clusters_hold_an_image_and_its_copies() -> None:
    images = [*PLAIN[:30], *COPIES["shifted down"][:10], *COPIES["JPEG of quality 60"][:10], PLAIN[3]]
    clusters = near_image_clusters(images).tolist()
    assert clusters == [*range(30), *range(10), *range(10), 3]
    assert exact_image_clusters(images).tolist() == [*range(50), 3]


def test_a_large_image_resized_and_encoded_again_is_found() -> None:
    large = [scene(seed, 300) for seed in range(200, 215)]
    smaller = [
        encoded(np.asarray(Image.fromarray(pixels).resize((180, 200))), "JPEG", quality=70)
        for pixels in large
    ]
    shifted = [encoded(pixels[1:, 1:]) for pixels in large]
    train = [encoded(pixels) for pixels in large]
    assert image_leaks(smaller, train).tolist() == list(range(15))
    assert image_leaks(shifted, train).tolist() == list(range(15))


def test_the_normal_form_is_of_pixels_not_of_bytes() -> None:
    pixels = window(scene(1), 0, 0)
    form = image_normal_form(encoded(pixels))
    assert image_normal_form(encoded(pixels, "BMP")) == form
    assert image_normal_form(encoded(pixels, compress_level=1)) == form
    assert image_normal_form(encoded(pixels[:, ::-1])) != form
    grey = pixels[:, :, 0]
    assert image_normal_form(encoded(grey)) == image_normal_form(encoded(np.stack([grey] * 3, axis=2)))
    assert image_normal_form(encoded(np.zeros((2, 8), np.uint8))) != image_normal_form(
        encoded(np.zeros((8, 2), np.uint8))
    )


def test_the_index_finds_every_hash_within_seven_bits() -> None:
    chance = np.random.default_rng(7)
    thumbnail = np.zeros((1, 32, 32), dtype=np.float32)
    thumbnail[0, 0, 0] = 1
    for trial in range(300):
        value = int(chance.integers(0, 2**63))
        flips = chance.choice(64, MOST_BITS_APART + trial % 2, replace=False)
        other = value
        for bit in flips.tolist():
            other ^= 1 << bit
        index = ImageIndex()
        index.add(5, Sketch(thumbnail, np.array([value], dtype=np.uint64)))
        matches = index.matches(Sketch(thumbnail, np.array([other], dtype=np.uint64)))
        assert matches == ([] if trial % 2 else [5])


def test_equal_images_have_equal_hashes_and_unlike_ones_far_ones() -> None:
    hashes, again = ([int(Sketch.of(content).hashes[0]) for content in PLAIN[:40]] for _ in range(2))
    assert hashes == again
    apart = [(one ^ other).bit_count() for one in hashes for other in hashes if one != other]
    assert np.median(apart) > 20


def test_images_of_one_shade_are_copies_only_when_equal() -> None:
    shades = [encoded(np.full((20, 20), shade, np.uint8)) for shade in (10, 11, 200, 10)]
    assert near_image_clusters(shades).tolist() == [0, 1, 2, 0]


def test_cmyk_16_bit_palette_and_turned_images_are_read() -> None:
    pixels = window(scene(3), 0, 0)
    cmyk, palette, turned = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG", quality=95)
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE).save(palette, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(turned, "PNG", exif=exif)
    deep = encoded(pixels[:, :, 1].astype(np.uint16) * 200)
    dark = encoded(pixels[:, :, 1].astype(np.uint16) * 100)
    contents = [encoded(pixels), cmyk.getvalue(), palette.getvalue(), turned.getvalue()]
    assert near_image_clusters(contents).tolist() == [0, 0, 0, 0]
    assert image_normal_form(turned.getvalue()) == image_normal_form(contents[0])
    assert near_image_clusters([deep, dark]).tolist() == [0, 0]
    assert image_normal_form(deep) != image_normal_form(dark)


def test_all_images_that_cannot_be_decoded_are_named() -> None:
    whole = encoded(scene(4, 200), "JPEG")
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in (b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0), b"IDAT", b"IEND")
    )
    printed, large = io.BytesIO(), io.BytesIO()
    Image.new("LAB", (9, 9), (50, 1, 2)).save(printed, "TIFF")
    Image.new("L", (10_000, 10_000)).save(large, "PNG")
    contents = [
        PLAIN[0],
        whole[: len(whole) // 2],
        b"",
        b"no image",
        bomb,
        printed.getvalue(),
        large.getvalue(),
    ]
    with pytest.raises(DataError) as caught:
        near_image_clusters(contents)
    message = str(caught.value)
    assert "Some images cannot be compared; replace or remove them:" in message
    assert [number for number in range(7) if f"row {number}: An image of" in message] == [1, 2, 3, 4, 5, 6]
    assert "its colours are LAB" in message
    assert message.count("decompression bomb") == 2
    assert "decompression bomb" in message
    assert "BytesIO" not in message


def test_no_images_are_no_clusters() -> None:
    assert near_image_clusters([]).tolist() == []
    assert image_leaks(PLAIN[:2], []).tolist() == [-1, -1]


def shown(content: bytes) -> Image.Image:
    head, _, encoded_picture = thumbnail(content).partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(encoded_picture)))


def test_a_report_shows_a_small_image_as_it_is_and_a_large_one_smaller() -> None:
    small = scene(1, 28)
    assert np.array_equal(np.asarray(shown(encoded(small))), small)
    large = shown(encoded(scene(2, 400)[:, :200]))
    assert large.size == (48, 96), "its proportions are kept"


def test_a_report_shows_deep_and_printed_images_too() -> None:
    deep = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    grey = np.asarray(shown(encoded(deep)))
    assert (grey.min(), grey.max()) == (0, 255)
    file = io.BytesIO()
    Image.fromarray(scene(3)).convert("CMYK").save(file, "JPEG")
    assert shown(file.getvalue()).mode == "RGB"
    with pytest.raises(DataError, match="cannot be decoded"):
        thumbnail(b"no image")
