"""Data with faults that are known: texts, labels, embeddings and images, each with its planted ones."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SIMILARITY = 0.75
"""`near_duplicate_similarity` of the recipes, and of what `retain init` writes."""
SENTENCES = (
    "Où avez-vous acheté ce café à côté de l'hôtel ?",
    "Der Schlüssel lag unter der Fußmatte vor der Tür.",
    "El niño pidió un bocadillo de jamón y una piña.",
    "Não há pão fresco na padaria às segundas-feiras.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Zażółć gęślą jaźń, powiedział cicho Łukasz.",
    "Smörgåsbordet är öppet från klockan åtta på lördag.",
    "Işığı kapatıp çıktığında saat üçü geçmişti.",
    "Когда прибывает поезд из Санкт-Петербурга?",
    "Дякую, доставка була дуже швидкою.",
    "Πού μπορώ να αγοράσω εισιτήριο για το λεωφορείο;",
    "מתי מגיע האוטובוס הבא לתל אביב?",
    "متى يصل القطار القادم إلى القاهرة؟",
    "我的银行卡什么时候能寄到？",
    "注文した商品がまだ届いていません。",
    "배송이 너무 늦어서 환불을 받고 싶어요.",
    "The café’s crème brûlée costs 7 € – too much.",
    "“Great value”, she said… and bought two.",
    "Best trip ever 😀 see you next year 🎉",
    "It was 30 °C in the shade, ± 2 degrees.",
)
"""Every one of these is changed by reading its UTF-8 as Windows-1252."""
CLEAN = (
    "Please reset my password.",
    "ÂME ET CŒUR, a restaurant in Lyon",
    "The Ångström is a unit of length.",
    "Ärger, Öl und Übermut",
    "«Très bien», dit-elle.",
    "Señor Núñez, ¿dónde está?",
    "3 × 4 ≠ 11 ± 1 µm, § 12",
    "Ð and þ are letters of Icelandic.",
    "LA CRÈME DE LA CRÈME “À LA CARTE”",
    "She scored 10/10 – “perfect”…",
)


def misread(text: str) -> str:
    """Return a text whose UTF-8 was read as Windows-1252; its five undefined bytes become control characters."""
    return "".join(bytes([byte]).decode("cp1252" if _defined(byte) else "latin-1") for byte in text.encode())


def _defined(byte: int) -> bool:
    return byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)


def texts(count: int, seed: int, fewest: int = 8, most: int = 40) -> list[str]:
    """Return unrelated texts of words as frequent as in a language (Zipf), so that they share the common ones."""
    chance = random.Random(seed)
    spelling = random.Random(0)
    words = ["".join(spelling.choices("etaoinshrdlu", k=spelling.randint(2, 9))) for _ in range(5_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    return [
        " ".join(chance.choices(words, weights, k=chance.randint(fewest, most))).capitalize() + "."
        for _ in range(count)
    ]


def _words(change: Callable[[list[str], random.Random], None]) -> Callable[[str, int], str]:
    def edit(text: str, seed: int) -> str:
        words = text.split()
        change(words, random.Random(seed))
        return " ".join(words)

    return edit


def _replace(words: list[str], chance: random.Random) -> None:
    words[chance.randrange(len(words))] = "zebra"


def _drop(words: list[str], chance: random.Random) -> None:
    del words[chance.randrange(len(words))]


def _swap(words: list[str], chance: random.Random) -> None:
    place = chance.randrange(len(words) - 1)
    words[place : place + 2] = reversed(words[place : place + 2])


def _letter(text: str, seed: int) -> str:
    place = random.Random(seed).randrange(len(text))
    return text[:place] + "z" + text[place + 1 :]


def _punctuation(text: str, seed: int) -> str:
    return text.upper().replace(" ", ", " if seed % 2 else "  ") + " !"


EDITS: dict[str, Callable[[str, int], str]] = {
    "case and punctuation": _punctuation,
    "one letter": _letter,
    "one word replaced": _words(_replace),
    "one word dropped": _words(_drop),
    "two words swapped": _words(_swap),
}


Talk = list[dict[str, str]]


def conversation(seed: int) -> Talk:
    """Return a conversation of two to eight turns in order, half of them after a system message."""
    said = texts(10, seed + 100)
    pairs = seed % 4 + 1
    roles = [*(["system"] if seed % 2 else []), *["user", "assistant"] * pairs]
    return [{"role": role, "content": said[turn]} for turn, role in enumerate(roles)]


def _silent(which: int, content: str) -> Callable[[Talk], Talk]:
    def change(talk: Talk) -> Talk:
        turns = [dict(turn) for turn in talk]
        turns[which]["content"] = content
        return turns

    return change


EMPTY_TURNS = [
    _silent(which, content) for which in (0, 1, -1) for content in ("", "  ", "\n\t\n", "\u00a0", "\u3000")
]
DISORDERS: list[Callable[[Talk], Talk]] = [
    lambda talk: talk[:-1],
    lambda talk: [*talk, talk[-1]],
    lambda talk: [*talk[:-2], talk[-1], talk[-2]],
    lambda talk: [*talk, {"role": "system", "content": "Be brief."}],
    lambda talk: [*talk, {"role": "user", "content": "Thanks."}],
]


def flipped(
    rows: int, classes: int, share: float, distance: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return vectors (rows, 64) of Gaussian classes, their labels with `share` of them wrong, and the wrong rows."""
    chance = np.random.default_rng(seed)
    truth = chance.integers(0, classes, rows)
    vectors = chance.standard_normal((rows, 64))
    vectors[np.arange(rows), truth] += distance
    wrong = np.sort(chance.permutation(rows)[: round(share * rows)])
    given = truth.copy()
    given[wrong] = (given[wrong] + chance.integers(1, classes, len(wrong))) % classes
    return vectors, given, wrong


def best_guess(
    vectors: NDArray[np.float64], given: NDArray[np.int64], share: float, distance: float
) -> NDArray[np.int64]:
    """Return the rows of `flipped` whose label is wrong more probably than right, by the densities they came from."""
    classes = int(given.max()) + 1
    scores = distance * vectors[:, :classes]
    posterior = np.exp(scores - scores.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    own = posterior[np.arange(len(given)), given]
    return np.flatnonzero((1 - own) * share / (classes - 1) > own * (1 - share))


def topics(rows: int, copies: int, seed: int) -> NDArray[np.float32]:
    """Return embeddings (rows, 384) about 20 topics, alike within a topic; the last `copies` reword the first ones.

    Rows of a topic have a cosine of about 0.5, and reworded ones of 0.92 to 0.98.
    """
    chance = np.random.default_rng(seed)

    def directions(count: int) -> NDArray[np.float64]:
        drawn = chance.standard_normal((count, 384))
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    vectors = directions(20)[chance.integers(0, 20, rows)] + directions(rows)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = chance.uniform(0.92, 0.98, (copies, 1))
    vectors[rows - copies :] = cosine * vectors[:copies] + np.sqrt(1 - cosine**2) * directions(copies)
    return vectors.astype(np.float32)


def scene(seed: int, side: int) -> NDArray[np.uint8]:
    """Return a smooth random picture with a few sharp blocks, (side, side, 3)."""
    from scipy.ndimage import gaussian_filter

    chance = np.random.default_rng(seed)
    soft = gaussian_filter(chance.standard_normal((side, side, 3)), (side / 8, side / 8, 0))
    soft = (soft - soft.min()) / (soft.max() - soft.min()) * 180 + 20
    for _ in range(4):
        top, left = chance.integers(0, side - side // 4, 2)
        soft[top : top + side // 4, left : left + side // 5] += chance.integers(-60, 60)
    return np.clip(soft, 0, 255).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG", **options: int) -> bytes:
    """Return the pixels as a file of that kind."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _window(pixels: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    return pixels[down : len(pixels) - 2 + down, right : pixels.shape[1] - 2 + right]


def unchanged(pixels: NDArray[np.uint8]) -> bytes:
    """Return the middle of a picture, one pixel off each edge, so that there is room to shift."""
    return encoded(_window(pixels, 1, 1))


IMAGE_CHANGES: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "shifted one pixel right": lambda pixels: encoded(_window(pixels, 1, 0)),
    "shifted one pixel down and right": lambda pixels: encoded(_window(pixels, 0, 0)),
    "encoded again (JPEG, quality 60)": lambda pixels: encoded(_window(pixels, 1, 1), "JPEG", quality=60),
    "brighter by 15 %": lambda pixels: encoded(
        np.clip(_window(pixels, 1, 1) * 1.15 + 12, 0, 255).astype(np.uint8)
    ),
}
