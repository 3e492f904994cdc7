"""Finished trials as lines of small files, from which a fresh clone goes on.

A trial is known by the evaluator's protocol, the mask's fingerprint and the seed, as for
`Cached`: its lines fill the cache of an evaluator, so that a search that is begun again
draws what it drew, and is answered what it was answered.
"""

from __future__ import annotations

import base64
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import tables
import torch

import masksearch as ms
from masksearch.contracts import Record


class Kept:
    """The lines of one file.

    Args:
        path: The file; made where it is missing.
        cache: Folder of a `Cached` evaluator, which is filled.
    """

    def __init__(self, path: Path, cache: Path) -> None:
        self.path, self.lines = path, tables.read(path)
        cache.mkdir(parents=True, exist_ok=True)
        for line in self.lines:
            if line["reports"] and line["fingerprint"]:
                name = f"{line['protocol']}-{line['fingerprint']}-{line['seed']}.json"
                (cache / name).write_text(json.dumps({"reports": line["reports"]}) + "\n", "utf-8")

    def of(self, **about: Any) -> list[tables.Line]:
        """The lines with those values."""
        return [line for line in self.lines if all(line[n] == about[n] for n in about)]

    def add(self, record: Record, whole: bool = False, **about: Any) -> None:
        """Writes the line of a record, once; failures are kept as such.

        Args:
            record: What has ended.
            whole: Whether the mask is written, where nothing else tells it.
            about: Which line it is, beside its number or its name and seed.
        """
        place = {"number": record.number} if not record.name else {}
        known = {**about, **place, "name": record.name, "seed": record.seed}
        if record.refused or self.of(**known):
            return
        last = record.curve[-1:] if record.mask is None else record.curve  # gates have a hundred
        reports = [[r.step, {n: float(f"{v:.7g}") for n, v in r.values.items()}] for r in last]
        line: tables.Line = {
            **known,
            "status": record.status,
            "seconds": round(record.seconds, 1),
            "density": round(1 - record.measures.get("effective_sparsity", 0.0), 5),
            "score": record.values.get("glue"),
            "reports": reports,
            "params": dict(record.params),
            "mask": packed(record.mask) if record.mask and whole else None,
            "protocol": record.protocol,
            "fingerprint": record.fingerprint,
            "reason": record.reason,
        }
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def packed(mask: ms.Mask) -> str:
    """A mask in one word: its plain form, and the bits of tables diagonal by diagonal, which are
    alike where gates belong to distances."""
    tensors = dict[str, torch.Tensor]()
    plain = json.dumps(mask.to_dict(tensors), separators=(",", ":")).encode()
    shapes = json.dumps({name: list(each.shape) for name, each in tensors.items()}).encode()
    bits = [np.packbits(each.numpy()[..., *diagonals(each)]) for each in tensors.values()]
    parts = [plain, shapes, b"".join(each.tobytes() for each in bits)]
    return base64.b85encode(lzma.compress(b"\n".join(parts), lzma.FORMAT_ALONE)).decode()


def unpacked(text: str) -> ms.Mask:
    """The mask of such a word."""
    plain, shapes, rest = lzma.decompress(base64.b85decode(text)).split(b"\n", 2)
    bits, tensors = np.frombuffer(rest, np.uint8), dict[str, torch.Tensor]()
    for name, shape in json.loads(shapes).items():
        tensors[name] = torch.zeros(shape, dtype=torch.uint8)
        size = -(-tensors[name].numel() // 8)
        cells = np.unpackbits(bits[:size], count=tensors[name].numel())
        tensors[name].numpy()[..., *diagonals(tensors[name])] = cells.reshape(*shape[:-2], -1)
        bits = bits[size:]
    return ms.Mask.from_dict(json.loads(plain), tensors)


def diagonals(table: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a square's cells, diagonal by diagonal."""
    query, key = np.indices(table.shape[-2:]).reshape(2, -1)
    order = np.lexsort((query, key - query))
    return query[order], key[order]
