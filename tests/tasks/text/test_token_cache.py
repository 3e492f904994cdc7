"""The cache file: what comes back, and what does not do harm."""

import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masksearch.tasks.text.packing import Boundaries, TokenStream
from masksearch.tasks.text.token_cache import TokenSpool, alone, read_cache, write_cache


def streams(kind: str = "uint16", size: int = 300) -> dict[str, TokenStream]:
    ids = (np.arange(size) % 200).astype(kind)
    begins = Boundaries(size, np.array([0, 50]), np.array([0, 20, 50]))
    empty = Boundaries(0, np.empty(0, np.int64), np.empty(0, np.int64))
    return {"train": TokenStream(ids, begins), "held_out": TokenStream(ids[:0], empty)}


def same(one: dict[str, TokenStream], two: dict[str, TokenStream]) -> bool:
    return one.keys() == two.keys() and all(
        np.array_equal(a, b) and a.dtype == b.dtype
        for name in one
        for a, b in (
            (one[name].ids, two[name].ids),
            (one[name].begins.documents, two[name].begins.documents),
            (one[name].begins.paragraphs, two[name].begins.paragraphs),
        )
    )


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int32"])
def test_what_is_written_comes_back_mapped(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "deep" / "x.arrow"
    write_cache(path, streams(kind), '{"a": 1}', ["one", ""])
    before = pa.total_allocated_bytes()
    found = read_cache(path)
    assert found is not None
    assert same(found.streams, streams(kind))
    assert (found.tokenizer, found.content) == ('{"a": 1}', ["one", ""])
    assert pa.total_allocated_bytes() - before < 100  # the ids stay in the file
    assert not found.streams["train"].ids.flags.writeable
    assert [file.name for file in path.parent.iterdir()] == ["x.arrow"]
    path.unlink()  # who reads it goes on reading
    assert same(found.streams, streams(kind))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_never_come_back(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.arrow"
    write_cache(path, streams(), "{}", ["one", "two"])
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(whole) - 1))
        flipped = whole[at] ^ data.draw(st.integers(1, 255))
        path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    else:
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_cache(path)
    if found is None:
        assert ["is made again" in str(one.message) for one in caught] == [True]
    else:  # a byte that pads
        assert same(found.streams, streams())
        assert (found.tokenizer, found.content) == ("{}", ["one", "two"])


def test_a_foreign_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    batch = pa.record_batch({"ids": [1, 2, 3]})
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.warns(UserWarning, match=r"x\.arrow is corrupt .*made again"):
        assert read_cache(path) is None


def test_a_full_disk_costs_a_warning(small_disk: Path) -> None:
    kind = np.dtype(np.uint16)
    spool = TokenSpool(small_disk)
    part = np.arange(60_000, dtype=kind)
    with pytest.warns(UserWarning, match=r"cannot cache .*they stay in memory"):
        [spool.append(part) for _ in range(60)]
    ids = spool.finished(kind)
    assert np.array_equal(ids, np.tile(part, 60))
    begins = Boundaries(len(ids), np.array([0]), np.array([0]))
    with pytest.warns(UserWarning, match="cannot cache"):
        write_cache(small_disk / "x.arrow", {"train": TokenStream(ids, begins)}, "{}", ["", ""])
    assert not list(small_disk.iterdir())


def test_a_spool_is_mapped_and_leaves_nothing(tmp_path: Path) -> None:
    spool = TokenSpool(tmp_path)
    for start in (0, 5):
        spool.append(np.arange(start, start + 5, dtype=np.int32))
    ids = spool.finished(np.dtype(np.int32))
    assert isinstance(ids, np.memmap)
    assert ids.tolist() == list(range(10))
    assert not list(tmp_path.iterdir())
    assert len(TokenSpool(tmp_path).finished(np.dtype(np.uint8))) == 0


def made(path: str, barrier: "multiprocessing.synchronize.Barrier", lock: bool) -> None:
    barrier.wait(120)
    for _ in range(20):
        if lock:
            with alone(Path(path)):
                write_cache(Path(path), streams(size=20_000), "{}", ["a", "b"])
        else:
            write_cache(Path(path), streams(size=20_000), "{}", ["a", "b"])


@pytest.mark.parametrize("lock", [True, False])
def test_two_writers_do_no_harm(tmp_path: Path, lock: bool) -> None:
    path = tmp_path / "x.arrow"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    workers = [context.Process(target=made, args=(str(path), barrier, lock)) for _ in range(2)]
    for worker in workers:
        worker.start()
    barrier.wait(120)
    while any(worker.is_alive() for worker in workers):
        if path.exists():
            found = read_cache(path)
            assert found is not None
            assert same(found.streams, streams(size=20_000))
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert not list(tmp_path.glob("*.partial"))


def test_a_lock_that_cannot_be_had_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with alone(tmp_path / "file" / "x.arrow"):
        pass
