"""The cache: computed once, whole after a kill, bounded, and right again when a file changes."""

import multiprocessing
import os
import signal
import sqlite3
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import FILES, compose, tree
from tlexp.backbones.base import InputSpec
from tlexp.data.cache import Cache, Ledger
from tlexp.data.images import sources
from tlexp.data.images.sources import ImageFiles, PixelArray
from tlexp.data.images.stores import Cached, InMemory, Lazy
from tlexp.data.quality.scan import facts
from tlexp.error_lines import one_line
from tlexp.errors import UsageError
from tlexp.runs.build import build

SPEC = InputSpec(3, 16, (0.5,) * 3, (0.25,) * 3, "bicubic", 18)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 10**8)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 20 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return ImageFiles(tuple(sorted(folder.iterdir())), str(folder))


@pytest.fixture
def decodes(monkeypatch, tmp_path):
    """Counts how many pictures are opened, by all processes."""
    count, real = tmp_path / "opened", sources.open_image

    def counted(file, location, value_range):
        with count.open("ab", buffering=0) as log:
            log.write(b"x")
        return real(file, location, value_range)

    monkeypatch.setattr(sources, "open_image", counted)
    return lambda: count.stat().st_size if count.exists() else 0


def everything(table):
    return table[np.arange(len(table))]


def test_each_picture_is_decoded_once_whatever_part_of_them_is_asked_for(cache, files, decodes):
    some = files.take(np.array([3, 1, 4])).materialize(SPEC, cache)
    assert isinstance(some, Cached)
    assert decodes() == 3
    table = files.materialize(SPEC, cache)
    assert decodes() == 20
    assert torch.equal(everything(table), everything(files.materialize(SPEC)))
    assert torch.equal(everything(some), everything(table)[[3, 1, 4]])
    decoded = decodes()
    assert torch.equal(everything(files.materialize(SPEC, cache)), everything(table))
    assert decodes() == decoded


def test_another_geometry_is_another_entry_and_other_statistics_are_not(cache, files, decodes):
    files.materialize(SPEC, cache)
    other = InputSpec(3, 16, (0.1,) * 3, (0.9,) * 3, "bicubic", 18)
    assert torch.equal(everything(files.materialize(other, cache)), everything(files.materialize(other)))
    assert decodes() == 20 + 20, "once for the cache, once without it"
    files.materialize(InputSpec(3, 12, (0.5,) * 3, (0.25,) * 3, "bicubic", 18), cache)
    assert decodes() == 60


def test_a_file_that_changes_is_read_again_also_with_the_old_size_and_time(cache, files, decodes):
    files.materialize(SPEC, cache)
    path = files.paths[7]
    stat = path.stat()
    Image.new("RGB", (16, 16), (200, 0, 0)).save(path)
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * max(0, stat.st_size - len(content)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    changed = files.materialize(SPEC, cache)
    assert decodes() == 21
    assert changed.image(7)[:, 0, 0].tolist() == [200, 0, 0]


def test_pictures_keep_their_margins_for_crops_at_random(cache, files):
    whole = files.materialize(SPEC, cache, keep_margins=True)
    shapes = {tuple(whole.image(index).shape) for index in range(len(whole))}
    assert len(shapes) > 5
    assert all(min(shape[1:]) == 18 for shape in shapes)


def test_processes_that_come_together_decode_each_picture_once_and_agree(cache, files, decodes):
    queue = FORK.Queue()

    def read(part):
        queue.put((part, everything(files.take(np.arange(part, 20)).materialize(SPEC, cache)).double().sum().item()))

    processes = [FORK.Process(target=read, args=(part,)) for part in (0, 0, 5, 10)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert decodes() == 20
    expected = {
        part: everything(files.take(np.arange(part, 20)).materialize(SPEC)).double().sum().item() for part, _ in answers
    }
    assert dict(answers) == pytest.approx(expected)


def test_a_process_killed_while_it_writes_leaves_nothing_wrong(cache, tmp_path, monkeypatch):
    folder = tree(tmp_path / "many", a=600)
    files = ImageFiles(tuple(sorted((folder / "a").iterdir())), str(folder))
    real = sources.open_image

    def slow(file, location, value_range):
        time.sleep(0.001)
        return real(file, location, value_range)

    monkeypatch.setattr(sources, "open_image", slow)
    for wait in (0.02, 0.2, 0.45):
        process = FORK.Process(target=files.materialize, args=(SPEC, cache))
        process.start()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    monkeypatch.setattr(sources, "open_image", real)
    assert torch.equal(everything(files.materialize(SPEC, cache)), everything(files.materialize(SPEC)))


def test_half_written_pixels_are_written_over_and_a_lost_file_is_made_again(cache, files):
    files.take(np.arange(10)).materialize(SPEC, cache)
    (file,) = cache.folder.glob("images/*/pixels")
    with file.open("ab") as pixels:
        pixels.write(b"half a picture")
    expected = everything(files.materialize(SPEC))
    assert torch.equal(everything(files.materialize(SPEC, cache)), expected)
    file.unlink()
    assert torch.equal(everything(files.materialize(SPEC, cache)), expected)


def test_a_lost_file_harms_neither_other_parts_nor_who_has_it_open(cache, files):
    first, second = files.take(np.arange(10)), files.take(np.arange(10, 14))
    tables = [part.materialize(SPEC, cache) for part in (first, second)]
    next(cache.folder.glob("images/*/pixels")).unlink()
    tables += [part.materialize(SPEC, cache) for part in (first, second, first)]
    for table, part in zip(tables, (first, second, first, second, first), strict=True):
        assert torch.equal(everything(table), everything(part.materialize(SPEC)))


def test_processes_that_take_room_from_each_other_all_go_on(tmp_path, files):
    """Four processes, six entries each, room for three: whoever loses an entry decodes it again."""
    cache = Cache(tmp_path / "cache", 3 * 20 * 16 * 16 * 3 + 60_000)
    queue = FORK.Queue()
    specs = [InputSpec(3, 16, (mean / 10,) * 3, (1.0,) * 3, "bicubic", 16, "border") for mean in range(6)]
    expected = [everything(files.materialize(spec)) for spec in specs]

    def work(number):
        try:
            order = np.random.default_rng(number).integers(0, 6, 30)
            right = all(torch.equal(everything(files.materialize(specs[i], cache)), expected[i]) for i in order)
            queue.put("right" if right else "wrong pixels")
        except BaseException as error:
            queue.put(repr(error))

    processes = [FORK.Process(target=work, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=120) for _ in processes] == ["right"] * 4
    for process in processes:
        process.join()


def test_an_entry_full_of_files_that_have_changed_starts_anew(tmp_path, files):
    cache = Cache(tmp_path / "cache", 3 * 20 * 16 * 16 * 3)
    for _ in range(8):
        for path in files.paths:
            path.touch()
        assert isinstance(files.materialize(SPEC, cache), Cached)


@pytest.mark.parametrize("kind", ["a file", "read-only", "torn"])
def test_a_cache_that_cannot_be_used_costs_time_and_not_the_run(tmp_path, files, monkeypatch, caplog, kind):
    cache = Cache(tmp_path / "cache", 10**8)
    if kind == "a file":
        cache.folder.write_text("no folder")
    elif kind == "torn":
        files.materialize(SPEC, cache)
        facts(files, cache)
        for ledger in cache.folder.rglob("ledger.sqlite"):
            ledger.write_bytes(b"no database at all, but long enough to be taken for one" * 100)
    else:
        monkeypatch.setattr(
            sqlite3, "connect", lambda *args: (_ for _ in ()).throw(sqlite3.OperationalError("readonly"))
        )
    assert torch.equal(everything(files.materialize(SPEC, cache)), everything(files.materialize(SPEC)))
    assert [actual.error for actual in facts(files, cache)] == [None] * 20
    assert caplog.text.count("cannot be used") == 2


def test_a_fault_of_the_machine_is_not_remembered(cache, files, monkeypatch):
    real = Image.open

    def busy(file):
        if "05.png" in str(file):
            raise OSError(24, "Too many open files")
        return real(file)

    monkeypatch.setattr(Image, "open", busy)
    assert [index for index, actual in enumerate(facts(files, cache)) if actual.error] == [5]
    monkeypatch.setattr(Image, "open", real)
    assert not any(actual.error for actual in facts(files, cache))


def test_what_was_used_longest_ago_makes_room(tmp_path, files):
    size = 20 * 16 * 16 * 3
    cache = Cache(tmp_path / "cache", 3 * size + 60_000)  # with room for the ledgers
    kept = {}
    for index, mean in enumerate((0.1, 0.2, 0.3, 0.4)):
        # The mean fills borders, so that each of these is another entry.
        spec = InputSpec(3, 16, (mean,) * 3, (1.0,) * 3, "bicubic", 16, "border")
        kept[index] = files.materialize(spec, cache), everything(files.materialize(spec))
        time.sleep(0.02)
    assert sum(file.stat().st_size for file in cache.folder.rglob("*") if file.is_file()) <= cache.limit
    assert len(list(cache.folder.glob("images/*/pixels"))) < 4
    for table, expected in kept.values():
        assert torch.equal(everything(table), expected), "who has it open goes on reading"


def test_what_does_not_fit_is_decoded_each_time_and_said(tmp_path, decodes):
    folder = tree(tmp_path / "pets", cat=10, dog=10)
    run = ("data=images", f"data.target.root={folder}", "init=random", "batch_size=4", "cache_gb=0")
    data = build(compose(*run)).data
    data.materialize()
    assert isinstance(data.raw("target", "train").inputs, Lazy)
    assert any("decoded again in every epoch" in notice for notice in data.notices())
    loader = data.train_dataloader().iterables["target"]
    assert loader.num_workers >= 1
    batches = [list(loader) for _ in range(2)]
    assert decodes() > 0
    stored = build(compose(*run, "cache_gb=1")).data
    stored.materialize()
    for ours, theirs in zip(batches[0], stored.train_dataloader().iterables["target"], strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.labels, theirs.labels)


def test_a_bad_picture_is_said_before_training_also_where_nothing_is_kept(tmp_path):
    folder = tree(tmp_path / "pets", train={"cat": 10, "dog": 10}, test={"cat": 2, "dog": 2})
    (folder / "test/dog/1.png").write_bytes(b"torn")
    run = ("data=images", f"data.target.root={folder}", "init=random", "batch_size=4", "cache_gb=0")
    with pytest.raises(UsageError, match=r"test/dog/1.png: not a readable image \(unknown format\); fix or remove it"):
        build(compose(*run)).data.materialize()


def test_an_error_in_a_worker_is_one_line_too(tmp_path):
    folder = tree(tmp_path / "pets", cat=10, dog=10)
    run = ("data=images", f"data.target.root={folder}", "init=random", "batch_size=4", "cache_gb=0", "workers=1")
    loader = build(compose(*run)).data.train_dataloader().iterables["target"]
    for path in folder.rglob("*.png"):
        path.write_bytes(b"torn in mid-training")
    with pytest.raises(UsageError) as caught:
        list(loader)
    assert isinstance(caught.value, UsageError)
    line = one_line(caught.value)
    assert line.startswith(str(folder))
    assert line.endswith(".png: not a readable image (unknown format); fix or remove it, or set on_bad=skip")


def test_a_full_disk_leaves_a_slower_run(cache, files, monkeypatch, caplog):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert isinstance(files.materialize(SPEC, cache), Lazy)
    assert "cannot be used ([Errno 28] No space left on device); images are decoded again" in caplog.text
    monkeypatch.undo()
    assert torch.equal(everything(files.materialize(SPEC, cache)), everything(files.materialize(SPEC)))


def test_arrays_of_the_right_size_stay_in_memory_and_others_are_kept(cache):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    fits = InputSpec(3, 16, (0.5,) * 3, (0.25,) * 3)
    assert isinstance(PixelArray(pixels).materialize(fits, cache), InMemory)
    stored = PixelArray(pixels).materialize(SPEC, cache)
    assert isinstance(stored, Cached)
    assert torch.equal(everything(stored), everything(PixelArray(pixels).materialize(SPEC)))


def test_tokens_are_kept_for_the_same_texts_and_the_same_tokenizer(monkeypatch, tmp_path):
    bert = ("backbone=text", f"backbone.name={FILES / 'tiny_bert'}", "init=random", "data=text_table")
    run = (*bert, f"data.target.root={FILES / 'letters.csv'}", f"cache={tmp_path / 'cache'}")
    first, second, shorter = (build(compose(*run, *more)).data for more in ((), (), ("backbone.max_length=4",)))
    before = first.raw("target", "test").inputs
    monkeypatch.setattr(type(first.spec), "tokens", lambda *args: pytest.fail("tokenised again"))
    again = second.raw("target", "test").inputs
    for ours, theirs in zip(before[np.arange(5)].values(), again[np.arange(5)].values(), strict=True):
        assert torch.equal(ours, theirs)
    assert before.truncated == again.truncated
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        shorter.raw("target", "test")


def test_a_ledger_has_a_value_or_has_it_not(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.add({"a": [1, 2], "b": "why not"})
    ledger.add({"a": [3]})
    assert Ledger(tmp_path / "ledger.sqlite").read() == {"a": [3], "b": "why not"}


def test_where_the_cache_lies_changes_no_key(tmp_path):
    assert compose(f"cache={tmp_path}", "cache_gb=1", "workers=3").hash == compose().hash
