"""Find images that show the same: equal pixels first, then nearly equal ones, across splits too.

Near means: a perceptual hash within 7 bits, which proposes a pair, and a correlation of the thumbnails of at least
0.96, which verifies it. The hash is pHash (Zauner 2010): which of the 64 lowest DCT coefficients of a 32 × 32 grey
thumbnail lie above their median. So encoding again, brightness, contrast and size do not matter. Small images are also
compared after a shift by one pixel, which moves a 28 × 28 picture's hash by 8 bits at the median. Rotated, mirrored
and cropped copies are not found.

Hashes are looked up in four bands of 16 bits, each also with one bit flipped: by the pigeonhole principle that finds
every pair within 7 bits (multi-index hashing, Norouzi, Punjani, Fleet 2012) without comparing all of them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.measures.clusters import find, roots, union

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 32
HASH_SIDE = 8
MOST_BITS_APART = 7
LEAST_CORRELATION = 0.96
SMALL_SIDE = 128
"""An image with a shorter side than this, in pixels, is also compared after shifts by one pixel."""
CLUSTER_MEMBERS_INDEXED = 20
SHOWN = 96
"""Most pixels of a side of an image that a report shows."""
_FLAT = 1.0
_PROBES = np.array([0, *(1 << bit for bit in range(16))], dtype=np.uint16)
_SHIFTS = sorted(((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)), key=lambda shift: shift != (0, 0))

Rows = NDArray[np.int64]
Result = TypeVar("Result")


def image_normal_form(content: bytes) -> str:
    """Return the sha256 of the decoded pixels: equal for two files that show the same, whatever their format.

    8-bit pictures are compared as RGBA, turned as their EXIF orientation says; deeper ones keep their depth.

    Raises: DataError: it cannot be decoded.
    """
    image = _decoded(content)
    plain = image if _is_deep(image) else image.convert("RGBA")
    head = f"{plain.mode} {plain.width} {plain.height} ".encode()
    return hashlib.sha256(head + plain.tobytes()).hexdigest()


def thumbnail(content: bytes) -> str:
    """Return an image of at most 96 × 96 pixels as a `data:` address of a PNG, for a report; smaller ones as they are.

    Raises: DataError: it cannot be decoded.
    """
    from PIL import Image

    image, out = _decoded(content), io.BytesIO()
    small = Image.fromarray(_grey(image).astype(np.uint8)) if _is_deep(image) else image.convert("RGB")
    small.thumbnail((SHOWN, SHOWN))
    small.save(out, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def exact_image_clusters(contents: Sequence[bytes]) -> Rows:
    """Return for each image the first one of the same pixels, shape (images,).

    Raises: DataError: some cannot be decoded; all of them are named.
    """
    first: dict[str, int] = {}
    forms = _each(image_normal_form, contents)
    return np.array([first.setdefault(form, row) for row, form in enumerate(forms)], dtype=np.int64)


def near_image_clusters(contents: Sequence[bytes]) -> Rows:
    """Return for each image the first one of its cluster of near-copies, shape (images,).

    Clusters are connected components. Of a cluster only the first 20 different images are held against later
    ones, which bounds the work when thousands of images are alike.

    Raises: DataError: some cannot be decoded; all of them are named.
    """
    parent = exact_image_clusters(contents)
    members = np.zeros(len(contents), dtype=np.int64)
    index = ImageIndex()
    for row in np.flatnonzero(parent == np.arange(len(contents))).tolist():
        sketch = Sketch.of(contents[row])
        for other in index.matches(sketch):
            union(parent, row, other)
        root = find(parent, row)
        if members[root] < CLUSTER_MEMBERS_INDEXED:
            members[root] += 1
            index.add(row, sketch)
    return roots(parent)


def image_leaks(contents: Sequence[bytes], train: Sequence[bytes]) -> Rows:
    """Return for each image a row of `train` that equals it or nearly does, or -1; shape (images,).

    Raises: DataError: some cannot be decoded; all of them are named.
    """
    index = ImageIndex()
    seen: dict[str, int] = {}
    for row, form in enumerate(_each(image_normal_form, train)):
        if seen.setdefault(form, row) == row:
            index.add(row, Sketch.of(train[row]))
    found = np.full(len(contents), -1, dtype=np.int64)
    for row, form in enumerate(_each(image_normal_form, contents)):
        matches = [seen[form]] if form in seen else index.matches(Sketch.of(contents[row]))
        if matches:
            found[row] = matches[0]
    return found


@dataclass(frozen=True)
class Sketch:
    """What an image is compared by: itself first, then shifted by one pixel where it is small."""

    thumbnails: NDArray[np.float32]
    """Shape (variants, 32, 32), of mean 0 and norm 1 each; no variants for an image of one shade."""
    hashes: NDArray[np.uint64]
    """Shape (variants,)."""

    @classmethod
    def of(cls, content: bytes) -> Sketch:
        """Return the sketch of an encoded image.

        Raises: DataError: it cannot be decoded.
        """
        raw = _thumbnails(content)
        if raw[0].std() < _FLAT:  # nothing to correlate: such an image equals another or does not
            raw = raw[:0]
        centred = raw - raw.mean(axis=(1, 2), keepdims=True)
        norms = np.sqrt(np.sum(centred**2, axis=(1, 2), keepdims=True))
        return cls(centred / np.maximum(norms, 1e-6), _hashes(raw))


class ImageIndex:
    """Images that can be asked for their near-copies."""

    def __init__(self) -> None:
        self._bands: tuple[defaultdict[int, list[int]], ...] = tuple(defaultdict(list) for _ in range(4))
        self._hash: dict[int, int] = {}
        self._thumbnail: dict[int, NDArray[np.float16]] = {}

    def add(self, row: int, sketch: Sketch) -> None:
        """Remember the image of `row`."""
        if len(sketch.hashes):
            self._hash[row] = int(sketch.hashes[0])
            self._thumbnail[row] = sketch.thumbnails[0].astype(np.float16)
            for band, value in zip(self._bands, sketch.hashes[:1].view(np.uint16).tolist(), strict=True):
                band[value].append(row)

    def matches(self, sketch: Sketch) -> list[int]:
        """Return the rows that nearly equal the image, in order."""
        found: set[int] = set()
        for number in range(len(sketch.hashes)):
            whole = int(sketch.hashes[number])
            thumbnail = sketch.thumbnails[number]
            for row in self._proposed(sketch.hashes[number : number + 1]) - found:
                near = (whole ^ self._hash[row]).bit_count() <= MOST_BITS_APART
                if near and float(np.sum(thumbnail * self._thumbnail[row])) >= LEAST_CORRELATION:
                    found.add(row)
        return sorted(found)

    def _proposed(self, hashed: NDArray[np.uint64]) -> set[int]:
        rows: set[int] = set()
        probes = (hashed.view(np.uint16)[:, None] ^ _PROBES).tolist()
        for band, values in zip(self._bands, probes, strict=True):
            for value in values:
                if value in band:
                    rows.update(band[value])
        return rows


def _thumbnails(content: bytes) -> NDArray[np.float32]:
    """Return the grey thumbnails of an image and of its shifts by one pixel, (1 or 9, 32, 32)."""
    from PIL import Image

    grey = _grey(_decoded(content))
    height, width = grey.shape
    padded = np.pad(grey, 1, mode="edge")
    shifts = _SHIFTS if min(height, width) < SMALL_SIDE else _SHIFTS[:1]
    side = (THUMBNAIL, THUMBNAIL)
    return np.stack(
        [
            np.asarray(
                Image.fromarray(padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]).resize(
                    side, Image.Resampling.LANCZOS
                ),
                dtype=np.float32,
            )
            for dy, dx in shifts
        ]
    )


def _grey(image: Image) -> NDArray[np.float32]:
    """Return grey levels from 0 to 255; deeper pictures are stretched to that range."""
    if not _is_deep(image):
        return np.asarray(image.convert("L"), dtype=np.float32)
    deep = np.asarray(image, dtype=np.float64)
    low, high = float(deep.min()), float(deep.max())
    return ((deep - low) * (255 / (high - low) if high > low else 0.0)).astype(np.float32)


def _hashes(thumbnails: NDArray[np.float32]) -> NDArray[np.uint64]:
    from scipy.fft import dctn

    frequencies = dctn(thumbnails, axes=(1, 2), norm="ortho")[:, :HASH_SIDE, :HASH_SIDE]
    coefficients = frequencies.reshape(len(thumbnails), HASH_SIDE * HASH_SIDE)
    # The first is the mean brightness, far from all others.
    middle = np.median(coefficients[:, 1:], axis=1, keepdims=True)
    return np.packbits(coefficients > middle, axis=1).view(np.uint64)[:, 0]


@contextmanager
def bombs_are_errors() -> Iterator[None]:
    """Have Pillow refuse every image that it would otherwise only warn of."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _decoded(content: bytes) -> Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with bombs_are_errors(), Image.open(io.BytesIO(content)) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
            if not image.width or not image.height:
                raise ValueError(f"it has {image.width} × {image.height} pixels")
            if image.mode == "LAB":
                raise ValueError("its colours are LAB; make RGB of them")
            return image
    except UnidentifiedImageError:
        raise DataError(
            f"An image of {len(content)} bytes cannot be decoded: its format is not known"
        ) from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        struct.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(f"An image of {len(content)} bytes cannot be decoded: {error}") from None


def _is_deep(image: Image) -> bool:
    """Say whether a channel has more than 8 bits (modes I, I;16 and F)."""
    return image.mode[0] in "IF"


def _each(measure: Callable[[bytes], Result], contents: Sequence[bytes]) -> Iterator[Result]:
    """Yield the measure of each image; raise one error that names all that cannot be decoded."""
    problems = []
    for row, content in enumerate(contents):
        try:
            result = measure(content)
        except DataError as error:
            problems.append(f"row {row}: {error}")
            continue
        yield result
    if problems:
        raise DataError("Some images cannot be compared; replace or remove them:", problems)
