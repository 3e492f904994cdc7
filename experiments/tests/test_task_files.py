"""SQuAD's and SWAG's files: which are taken, how one alone is split, which rows are a sample."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from split_evaluators import squad, swag
from toy_questions import squad_json, swag_rows, task_judge, write_squad, write_swag

import masksearch as ms
from masksearch import masks
from masksearch.errors import DataError

KINDS = ("squad", "swag")
NAMES = {"squad": ("train-v1.1.json", "dev-v1.1.json"), "swag": ("train.jsonl", "val.jsonl")}
GROUPS = {"squad": ("article", "articles"), "swag": ("start", "starts")}


def write(kind: str, path: Path, groups: int, seed: int = 0) -> Path:
    """Three rows of each of so many articles, or starts."""
    if kind == "squad":
        return write_squad(path, squad_json(groups, 3, seed=seed))
    return write_swag(path, [row for row in swag_rows(groups, seed=seed) for _ in range(3)])


def read(kind: str, path: Path, held_out: Path | None = None, **settings: Any) -> Any:
    return task_judge(kind, path, held_out, **settings).data()


def groups_of(kind: str, rows: Sequence[Any]) -> set[str]:
    return {getattr(row, GROUPS[kind][0]) for row in rows}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_both_parts(kind: str, tmp_path: Path) -> None:
    train, dev = NAMES[kind]
    for seed, (name, count) in enumerate(((train, 4), (dev, 2))):
        write(kind, tmp_path / name, count, seed)
    for left_out in ("train_full.csv", "test.csv", "other.txt"):
        (tmp_path / left_out).write_text("something else")
    data = read(kind, tmp_path)
    assert (len(data.train), len(data.dev)) == (12, 6)
    assert data.source == f"{train}, held out {dev}"
    other = write(kind, tmp_path / f"of_ones_own{Path(dev).suffix}", 3, 2)
    assert len(read(kind, tmp_path / train, other).dev) == 9
    assert read(kind, tmp_path / train, other).digest != data.digest
    both = [dev, dev.replace("1.1", "2.0") if kind == "squad" else "val.csv"]
    (tmp_path / both[1]).write_text((tmp_path / dev).read_text())
    with pytest.raises(DataError, match=rf"{sorted(both)[0]}, {sorted(both)[1]}: several "):
        read(kind, tmp_path, split_seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_is_split_by_groups_and_says_so(kind: str, tmp_path: Path, caplog) -> None:
    path = write(kind, tmp_path / NAMES[kind][1], 10)
    with caplog.at_level(logging.INFO, logger="masksearch"):
        data, named = read(kind, path), GROUPS[kind][1]
    assert data.source == f"{path.name} alone: 2 of 10 {named}, drawn by seed 0, are held out"
    assert data.source in caplog.text
    assert len(groups_of(kind, data.dev)) == 2
    assert not groups_of(kind, data.train) & groups_of(kind, data.dev)
    assert len(data.train) + len(data.dev) == 30
    assert read(kind, tmp_path) == data  # the only file of a folder
    drawn = [groups_of(kind, read(kind, path, split_seed=seed).dev) for seed in range(5)]
    assert len(set(map(frozenset, drawn))) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_a_seeded_sample(kind: str, tmp_path: Path) -> None:
    path = write(kind, tmp_path / NAMES[kind][1], 10)
    whole, part = read(kind, path), read(kind, path, rows=7, dev_rows=3)
    assert (len(part.train), len(part.dev)) == (7, 3)
    order = [[*whole.train].index(row) for row in part.train]
    assert order == sorted(order)  # as in the file
    assert max(order) > 7  # not the head
    assert part.digest != whole.digest
    assert part == read(kind, path, rows=7, dev_rows=3)
    assert groups_of(kind, part.dev) <= groups_of(kind, whole.dev)


@pytest.mark.slow
@pytest.mark.parametrize("make", [squad, swag])
def test_the_files_travel_to_worker_processes(make: Any, tmp_path: Path) -> None:
    how = {"run": tmp_path / "run", "seeds": [1], "executor": ms.Local(), "progress": None}
    compared = ms.compare({"star": masks.star()}, make(tmp_path), **how)
    assert [record.reason for record in compared.records] == [""]
