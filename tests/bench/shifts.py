"""Pairs of real samples, home and target, with labels on both: what the estimate of harm is tried on.

Six families chose the method, and others were looked at once it was chosen; some pairs have no shift at all.
`RETAIN_TEST_DATA` names the folder of all but the first; the image encoder is that of `make vision-bases`. Embeddings
are kept in the store by content, so a second run embeds nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.embeddings import embed, vectors_folder
from tasks.paths import Paths
from tasks.recipe import load_recipe, recipe_path
from tests.bench.figures import ROOT

MAX_LENGTH = 128
POOL_ROWS = 1_000
"""Rows of one domain that are embedded; each seed draws its samples from them."""
HOME_ROWS, TARGET_ROWS, FEWEST_A_LABEL = 600, 600, 5
IMAGE_BASE = ROOT / "data" / "bases" / "cifar10-resnet"
CHOOSING = ("sentiment", "intents", "photographs", "dialogues", "x-rays", "clauses")
HELD_OUT = ("tasks", "steps", "passages", "contracts")
ALIKE_FAMILY = "alike"
ALIKE = {
    "sentiment": ("amazon", "tweets"),
    "intents": ("half 1a",),
    "photographs": ("plain",),
    "dialogues": ("bank", "hotel", "easy users"),
    "x-rays": ("train",),
    "clauses": ("trade",),
    "tasks": ("hotel",),
    "steps": ("money",),
    "passages": ("told",),
    "contracts": ("first clauses",),
}
"""Pools that are home and target at once, in other groups: where nothing shifted, nothing may be promised less."""


@dataclass(frozen=True)
class Pool:
    """The rows of one domain: a text or an encoded image, its label, and what must not be split."""

    content: list[Any]
    labels: NDArray[np.str_]
    groups: NDArray[np.str_]

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, str, str]]) -> Pool:
        """Keep at most `POOL_ROWS` of (content, label, group), whole groups that hash first."""
        order = sorted(range(len(rows)), key=lambda row: (_position(rows[row][2]), row))[:POOL_ROWS]
        kept = [rows[row] for row in order]
        return cls(
            [row[0] for row in kept], np.array([row[1] for row in kept]), np.array([row[2] for row in kept])
        )


@dataclass(frozen=True)
class Shift:
    """A model made of `home` is used on `target`. Where both are one pool, their groups are kept apart."""

    name: str
    family: str
    home: str
    target: str


@dataclass(frozen=True)
class Drawn:
    """One seed's samples of a shift: vectors (rows, dim), labels as names, groups."""

    vectors: NDArray[np.float32]
    labels: NDArray[np.str_]
    groups: NDArray[np.str_]


class Domains:
    """Every pool by name, its vectors, and the shifts between them."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self.shifts: list[Shift] = []
        self.vectors: dict[str, NDArray[np.float32]] = {}

    def add(self, family: str, pools: dict[str, Pool], pairs: Sequence[tuple[str, str]]) -> None:
        """Take a family's pools and its pairs, and embed them."""
        self.pools |= {f"{family}: {name}": pool for name, pool in pools.items()}
        self.shifts += [
            Shift(f"{family}: {home} → {target}", family, f"{family}: {home}", f"{family}: {target}")
            for home, target in pairs
        ]
        self.shifts += [
            Shift(f"{family}: {name} → as at home", ALIKE_FAMILY, f"{family}: {name}", f"{family}: {name}")
            for name in ALIKE[family]
        ]
        contents = [content for pool in pools.values() for content in pool.content]
        ends = np.cumsum([len(pool.content) for pool in pools.values()])
        parts = np.split(_embed(contents, isinstance(contents[0], bytes)), ends[:-1])
        self.vectors |= {f"{family}: {name}": part for name, part in zip(pools, parts, strict=True)}

    def draw(self, shift: Shift, seed: int) -> tuple[Drawn, Drawn]:
        """Draw home and target, whole groups that hash first and no group in both; labels that home knows."""
        home_groups, target_groups = self.pools[shift.home].groups, self.pools[shift.target].groups
        shared = bool(set(home_groups) & set(target_groups))
        most = min(HOME_ROWS, round(0.6 * len(home_groups))) if shared else HOME_ROWS
        home = self._drawn(shift.home, np.ones(len(home_groups), dtype=bool), most, seed)
        names, counts = np.unique(home.labels, return_counts=True)
        usable = ~np.isin(target_groups, home.groups)
        usable &= np.isin(self.pools[shift.target].labels, names[counts >= FEWEST_A_LABEL])
        return home, self._drawn(shift.target, usable, TARGET_ROWS, seed)

    def _drawn(self, name: str, usable: NDArray[np.bool_], most: int, seed: int) -> Drawn:
        pool = self.pools[name]
        position = np.array([_position(f"{seed}:{group}") for group in pool.groups])
        order = np.argsort(position, kind="stable")
        rows = order[usable[order]][:most]
        return Drawn(self.vectors[name][rows], pool.labels[rows], pool.groups[rows])


def domains(wanted: Sequence[str] = (*CHOOSING, *HELD_OUT)) -> Domains:
    """Read and embed the wanted families whose data is here; say which is not."""
    found = Domains()
    if "sentiment" in wanted:
        found.add("sentiment", *_sentiment())
    folder = Path(os.environ.get("RETAIN_TEST_DATA", "shared/data"))
    families: dict[str, tuple[str, Callable[[Path], tuple[dict[str, Pool], list[tuple[str, str]]]]]] = {
        "intents": ("banking77", _intents),
        "photographs": ("cifar10_small", _photographs),
        "clauses": ("cuad_clauses", _clauses),
        "dialogues": ("star_support_dialogues", _dialogues),
        "tasks": ("star_support_dialogues", _tasks),
        "steps": ("bench_gsm8k", _steps),
        "passages": ("bench_lambada_openai", _passages),
        "contracts": ("cuad_clauses", _contracts),
        "x-rays": ("pneumoniamnist", _x_rays),
    }
    for family, (place, read) in families.items():
        if family not in wanted:
            continue
        if not (folder / place).is_dir():
            print(f"{family}: skipped, RETAIN_TEST_DATA names no folder with {place}")
        elif family in ("photographs", "x-rays") and not IMAGE_BASE.is_dir():
            print(f"{family}: skipped, there is no {IMAGE_BASE} (make vision-bases)")
        else:
            found.add(family, *read(folder / place))
    return found


# --- texts --------------------------------------------------------------------------------------------


def _sentiment() -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Four domains with the sign of a rating, reviews whole: every ordered pair."""
    from tasks.sources import fetch_raw
    from tasks.tables import read_table

    recipe = load_recipe(recipe_path(ROOT, "sentiment"))
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder), "sentiment")
        fetch_raw(recipe, paths)
        tables = {"amazon": recipe.data.train, **recipe.data.targets}
        pools = {}
        for name, table in tables.items():
            rows, _ = read_table(table, paths.raw, recipe.data.labels)
            pools[name] = Pool.of(list(zip(rows["text"], rows["label"], rows["group"], strict=True)))
    return pools, [(home, target) for home in pools for target in pools if home != target]


TOPICS = (
    ("top-up", r"top_?up|topping"),
    ("transfer", r"transfer|beneficiary|receiving_money"),
    ("cash", r"cash|atm"),
    ("exchange", r"exchange|currenc|country"),
    ("identity", r"verify|identity|passcode|pin|compromised|lost|edit_personal|age_limit|terminate"),
    ("payment", r"payment|refund|debit|charge|pay|transaction|Refund"),
    ("card", r"card"),
)


def _intents(folder: Path) -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Seven topics of questions to a bank; home and target hold other intents of each (as in BREEDS, 2021)."""
    rows = _lines(folder, "train", "test")
    intents = sorted({row["label"] for row in rows})
    topic = {
        name: next((found for found, words in TOPICS if re.search(words, name)), "card") for name in intents
    }
    pools = {}
    for cut in (1, 2):
        half: dict[str, int] = {}
        for name in {*topic.values()}:
            mine = sorted((x for x in intents if topic[x] == name), key=lambda x: _position(f"{cut}:{x}"))
            half |= {intent: place % 2 for place, intent in enumerate(mine)}
        for side in (0, 1):
            kept = [
                (row["text"], topic[row["label"]], row["text"]) for row in rows if half[row["label"]] == side
            ]
            pools[f"half {cut}{'ab'[side]}"] = Pool.of(kept)
    return pools, [
        (f"half {cut}{home}", f"half {cut}{target}") for cut in (1, 2) for home, target in ("ab", "ba")
    ]


KINDS = (
    ("trade", r"distribut|supply|manufactur|reseller|franchise|agency|affiliate|sales"),
    ("promotion", r"brand|sponsor|endorse|promotion|marketing"),
    ("technology", r"licen[sc]e|hosting|maintenance|software|development|intellectual"),
    ("alliance", r"alliance|collaborat|venture|cooperation|outsourc|consult|service|transport"),
)


def _clauses(folder: Path) -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Clauses of contracts of four kinds, and of contracts before 2008 and after 2014: labels in both only."""
    rows = _lines(folder, "train", "test")
    pools = {}
    for name, _ in KINDS:
        pools[name] = [row for row in rows if _kind(row["contract"]) == name]
    years = [(row, _year(row["contract"])) for row in rows]
    pools["before 2008"] = [row for row, year in years if year and year < 2008]
    pools["after 2014"] = [row for row, year in years if year and year > 2014]
    made = {
        name: Pool.of([(row["text"], row["label"], row["contract"]) for row in kept])
        for name, kept in pools.items()
    }
    ring = [name for name, _ in KINDS]
    pairs = [(ring[place], ring[(place + 1) % 4]) for place in range(4)]
    pairs += [("trade", "technology"), ("alliance", "promotion")]
    return made, [*pairs, ("before 2008", "after 2014"), ("after 2014", "before 2008")]


def _kind(contract: str) -> str:
    kind = re.split(r"_|EX-[\d.]+", re.sub(r"\.pdf$", "", contract, flags=re.I))[-1].lower()
    return next((name for name, words in KINDS if re.search(words, kind)), "")


def _year(contract: str) -> int | None:
    found = re.search(r"_((?:19|20)\d\d)\d{4}_|_\d\d_\d\d_((?:19|20)\d\d)", contract)
    return int(found[1] or found[2]) if found else None


def _dialogues(folder: Path) -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Who speaks, from one domain to another; which domain, from easy users to difficult, from first turns to later."""
    rows = _lines(folder, "train", "test")
    speakers: dict[str, list[tuple[Any, str, str]]] = {}
    topics: dict[str, list[tuple[Any, str, str]]] = {"easy users": [], "difficult users": []}
    topics |= {"first turns": [], "later turns": []}
    for row in rows:
        turns = [turn for turn in row["messages"] if turn["role"] != "system"]
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        name = str(row["id"])
        speakers.setdefault(row["domain"], []).extend((turn["content"], turn["role"], name) for turn in turns)
        if row["domain"] in ("restaurant", "meeting"):
            continue
        topics["easy users" if row["happy"] else "difficult users"] += [
            (x, row["domain"], name) for x in said
        ]
        topics["first turns"] += [(x, row["domain"], name) for x in said[:2]]
        topics["later turns"] += [(x, row["domain"], name) for x in said[2:]]
    ring = ["bank", "hotel", "party", "weather"]
    pools = {name: Pool.of(speakers[name]) for name in ring} | {x: Pool.of(y) for x, y in topics.items()}
    pairs = [(ring[place], ring[(place + step) % 4]) for place in range(4) for step in (1, 2)]
    pairs += [("easy users", "difficult users"), ("difficult users", "easy users")]
    return pools, [*pairs, ("first turns", "later turns"), ("later turns", "first turns")]


ARRANGED = r"_(book|schedule|plan)$"


def _tasks(folder: Path) -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Whether a user wants something arranged (a booking, an appointment, a party) or not, from domain to domain."""
    turns: dict[str, list[tuple[Any, str, str]]] = {}
    for row in _lines(folder, "train", "test"):
        label = "arrange" if re.search(ARRANGED, row["task"]) else "other"
        said = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
        turns.setdefault(row["domain"], []).extend((text, label, str(row["id"])) for text in said)
    ring = ["hotel", "doctor", "party", "plane"]
    pairs = [(ring[place], ring[(place + step) % 4]) for place in range(4) for step in (1, 2)]
    return {name: Pool.of(turns[name]) for name in ring}, pairs


STEPS = (("money", r"\$|dollar|cents?\b"), ("time", r"hour|minute|day|week|month|year"))


def _steps(folder: Path) -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Whether a problem of arithmetic takes at most two or at least four steps: of money, of time, of other things."""
    pools: dict[str, list[tuple[Any, str, str]]] = {}
    for row in _lines(folder, "train", "test"):
        steps, text = row["answer"].count("<<"), row["question"]
        name = next((name for name, words in STEPS if re.search(words, text, re.I)), "things")
        if steps and steps != 3:
            pools.setdefault(name, []).append((text, "few" if steps < 3 else "many", text))
    names = list(pools)
    pairs = [(home, target) for home in names for target in names if home != target]
    return {name: Pool.of(rows) for name, rows in pools.items()}, pairs


def _passages(folder: Path) -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Whether the word that a passage of a novel breaks off before is a name: where people speak, where all is told."""
    pools: dict[str, list[tuple[Any, str, str]]] = {"told": [], "spoken": []}
    for row in _lines(folder, "test"):
        label = "name" if row["continuation"].strip()[0].isupper() else "word"
        name = "spoken" if re.search(r"[\"“”]|''|``", row["context"]) else "told"
        pools[name].append((row["context"], label, str(row["id"])))
    return {name: Pool.of(rows) for name, rows in pools.items()}, [("told", "spoken"), ("spoken", "told")]


def _contracts(folder: Path) -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Of which of four kinds a clause's contract is; home and target hold other kinds of clauses."""
    rows = _lines(folder, "train", "test")
    clauses = sorted({row["label"] for row in rows}, key=_position)
    pools: dict[str, list[tuple[Any, str, str]]] = {"first clauses": [], "other clauses": []}
    for row in rows:
        if kind := _kind(row["contract"]):
            name = "first clauses" if clauses.index(row["label"]) % 2 == 0 else "other clauses"
            pools[name].append((row["text"], kind, row["contract"]))
    pairs = [("first clauses", "other clauses"), ("other clauses", "first clauses")]
    return {name: Pool.of(rows) for name, rows in pools.items()}, pairs


def _lines(folder: Path, *splits: str) -> list[dict[str, Any]]:
    texts = [(folder / f"{split}.jsonl").read_text(encoding="utf-8") for split in splits]
    return [json.loads(line) for text in texts for line in text.splitlines()]


# --- images -------------------------------------------------------------------------------------------


def _photographs(folder: Path) -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Photographs that the encoder has not learned from, harmed in five ways; animal or vehicle, by other classes."""
    rows = [(content, label, name) for content, label, name, split in _images(folder) if split == "test"]
    pools = {"plain": Pool.of(rows)} | {
        harm: Pool.of([(harmed(content, harm), label, name) for content, label, name in rows])
        for harm in HARMS
    }
    first = ("cat", "deer", "frog", "airplane", "automobile")
    vehicles = ("airplane", "automobile", "ship", "truck")
    for name, wanted in (("kinds a", True), ("kinds b", False)):
        pools[name] = Pool.of(
            [
                (content, "vehicle" if label in vehicles else "animal", place)
                for content, label, place in rows
                if (label in first) == wanted
            ]
        )
    return pools, [*(("plain", harm) for harm in HARMS), ("kinds a", "kinds b"), ("kinds b", "kinds a")]


def _x_rays(folder: Path) -> tuple[dict[str, Pool], list[tuple[str, str]]]:
    """Training X-rays against the test set, on which models do worse, as it is and harmed in five ways."""
    rows = _images(folder)
    home = [(content, label, name) for content, label, name, split in rows if split == "train"]
    away = [(content, label, name) for content, label, name, split in rows if split == "test"]
    pools = {"train": Pool.of(home), "test": Pool.of(away)} | {
        harm: Pool.of([(harmed(content, harm), label, name) for content, label, name in away])
        for harm in HARMS
    }
    return pools, [("train", "test"), *(("train", harm) for harm in HARMS)]


def _images(folder: Path) -> list[tuple[bytes, str, str, str]]:
    table = pd.read_csv(folder / "labels.csv")
    return [
        ((folder / "images" / row.file).read_bytes(), str(row.label), str(row.file), str(row.split))
        for row in table.itertuples()
    ]


HARMS = ("noise", "blur", "dark", "flat", "turned")


def harmed(content: bytes, harm: str) -> bytes:
    """Return an image with noise, blurred, darker, with less contrast, or turned by 20 degrees; seeded by its bytes."""
    from PIL import Image, ImageFilter

    image = Image.open(io.BytesIO(content))
    image = image.convert("RGB" if image.mode != "L" else "L")
    pixels = np.asarray(image, dtype=np.float64)
    if harm == "noise":
        chance = np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:4], "big"))
        pixels = pixels + 25 * chance.standard_normal(pixels.shape)
    elif harm == "dark":
        pixels = 0.6 * pixels
    elif harm == "flat":
        pixels = 0.5 * pixels + 0.5 * pixels.mean()
    elif harm == "blur":
        pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float64)
    else:
        pixels = np.asarray(image.rotate(20, resample=Image.Resampling.BILINEAR), dtype=np.float64)
    out = io.BytesIO()
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(out, format="PNG")
    return out.getvalue()


# --- vectors ------------------------------------------------------------------------------------------


def _embed(contents: Sequence[Any], images: bool) -> NDArray[np.float32]:
    from tasks.families import family
    from tasks.sources import base_folder, resolve_base

    source = f"path:{IMAGE_BASE}" if images else load_recipe(recipe_path(ROOT, "sentiment")).base
    task = "image-classification" if images else "text-classification"
    base = resolve_base(source, ROOT)
    folder = vectors_folder(base.fingerprint, MAX_LENGTH, device="cpu", precision="fp32")
    return embed(contents, lambda: family(task).load_base(base_folder(base, ROOT)), folder, MAX_LENGTH)


def _position(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
