"""Frozen vectors on disk: the same bits whatever interrupts or divides the work, never those of another key, and never a number that is not one."""

import hashlib
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vlm.data.feature_cache import FeatureCache, remove_cache, write_features
from vlm.data.feature_cache.plan import length_batches
from vlm.errors import ConfigError, DataFormatError
from vlm.types import World

KEY = {"encoder": {"name": "letters", "pooling": "mean"}, "dataset": "words"}
WORDS = [f"{'x' * (i * 7 % 13)}{i}" for i in range(50)]
WIDTH = 6


def letters(texts):
    """A vector of each text from its hash, so that no two texts have the same."""
    digests = [hashlib.sha256(text.encode()).digest()[:WIDTH] for text in texts]
    return torch.tensor([list(digest) for digest in digests], dtype=torch.float32) / 7


def refuse_to_encode(items):
    raise AssertionError(f"{len(items)} items were encoded again")


def write(folder, items=WORDS, encode=letters, *, key=KEY, batch_size=4, shard_rows=8, **options):
    write_features(folder, items, encode, key=key, batch_size=batch_size, shard_rows=shard_rows, **options)
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def shards(folder):
    return sorted(folder.glob("features-*.bin"))


# Reading


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_come_back_in_the_order_asked_for_and_may_repeat(tmp_path, dtype):
    cache = FeatureCache(write(tmp_path / "cache", dtype=dtype), KEY)
    indices = torch.tensor([49, 0, 17, 17, 8, 7, 49])
    assert torch.equal(cache.rows(indices), letters([WORDS[i] for i in indices]).to(dtype))
    assert torch.equal(cache.rows([3, 1]), letters([WORDS[3], WORDS[1]]).to(dtype))
    assert cache.rows([]).shape == (0, WIDTH)
    assert (len(cache), cache.width, cache.dtype) == (50, WIDTH, dtype)


def test_shards_that_end_with_a_page_are_read_as_those_that_do_not(tmp_path):
    vectors = torch.randn(4096, 64).half()
    for shard_rows in (1024, 1000):  # of 128 bytes: 32 pages, and 31.25
        folder = write(tmp_path / str(shard_rows), range(4096), lambda items: vectors[items], batch_size=512, shard_rows=shard_rows)
        order = torch.randperm(4096)
        assert torch.equal(FeatureCache(folder).rows(order), vectors[order])


def test_an_odd_width_of_halves_is_read(tmp_path):
    vectors = torch.randn(20, 7).half()
    cache = FeatureCache(write(tmp_path / "cache", range(20), lambda items: vectors[items]))
    assert torch.equal(cache.rows(range(20)), vectors)


@pytest.mark.parametrize("indices", [[0, 50], [-1]])
def test_numbers_outside_the_cache_are_refused(tmp_path, indices):
    with pytest.raises(IndexError, match="holds 50"):
        FeatureCache(write(tmp_path / "cache")).rows(indices)


def test_mean_and_deviation_are_those_of_the_stored_vectors(tmp_path):
    cache = FeatureCache(write(tmp_path / "cache"))
    stored = letters(WORDS).half().double()
    torch.testing.assert_close(cache.mean.double(), stored.mean(dim=0), atol=0, rtol=1e-6)
    torch.testing.assert_close(cache.std.double(), stored.std(dim=0, correction=0), atol=0, rtol=1e-6)
    norms = stored.norm(dim=1)
    assert (cache.manifest.min_norm, cache.manifest.max_norm) == pytest.approx((norms.min().item(), norms.max().item()), rel=1e-12)


def test_a_shard_is_plain_rows_that_numpy_reads(tmp_path):
    first, *_ = shards(write(tmp_path / "cache"))
    assert np.array_equal(np.fromfile(first, "<f2", count=8 * WIDTH).reshape(8, WIDTH), letters(WORDS[:8]).half().numpy())


def test_ids_lead_to_rows(tmp_path):
    ids = [f"COCO_{i:03}é" for i in random.Random(0).sample(range(1000), 50)]
    cache = FeatureCache(write(tmp_path / "cache", ids=ids))
    wanted = [ids[30], ids[2], ids[30]]
    assert cache.rows_of(wanted).tolist() == [30, 2, 30]
    assert torch.equal(cache.rows(cache.rows_of(wanted)), letters([WORDS[30], WORDS[2], WORDS[30]]).half())
    assert cache.rows_of([]).tolist() == []
    assert list(cache.ids) == ids
    with pytest.raises(DataFormatError, match=r"no item 'cat' \(1 of 2 ids are unknown"):
        cache.rows_of([ids[0], "cat"])


def test_without_ids_nothing_can_be_looked_up(tmp_path):
    with pytest.raises(DataFormatError, match="without ids"):
        FeatureCache(write(tmp_path / "cache")).rows_of(["cat"])


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.alone)])
def test_several_workers_read_one_cache(tmp_path, context):
    cache = FeatureCache(write(tmp_path / "cache"))
    assert len(pickle.dumps(cache)) < 1000  # the folder, not the vectors
    loader = DataLoader(Batches(cache), batch_size=None, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), letters(WORDS[:48]).half())


class Batches(torch.utils.data.Dataset):
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return 6

    def __getitem__(self, batch):
        return self.cache.rows(range(batch * 8, batch * 8 + 8))


# What is encoded, and how


def test_equal_items_are_encoded_once(tmp_path):
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return letters(texts)

    prompts = [f"a photo of a {name}." for _ in range(5) for name in ("cat", "dog", "cat", "fox")]
    cache = FeatureCache(write(tmp_path / "cache", prompts, encode))
    assert sorted(encoded) == sorted(set(prompts))
    assert (len(cache), cache.manifest.rows) == (20, 3)
    assert torch.equal(cache.rows(range(20)), letters(prompts).half())
    write(tmp_path / "paths", [Path("a.jpg"), Path("b.jpg"), Path("a.jpg")], lambda paths: letters([path.name for path in paths]))
    assert FeatureCache(tmp_path / "paths").manifest.rows == 2


def test_items_that_cannot_be_compared_are_each_encoded(tmp_path):
    items = [{"text": "cat"}, {"text": "cat"}]
    cache = FeatureCache(write(tmp_path / "cache", items, lambda items: letters([item["text"] for item in items])))
    assert cache.manifest.rows == 2


def test_batches_are_sorted_by_length_within_the_budget(tmp_path):
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 30, size=50)]
    seen = []

    def encode(texts):
        seen.append([lengths[WORDS.index(text)] for text in texts])
        return letters(texts)

    cache = FeatureCache(write(tmp_path / "cache", encode=encode, lengths=lengths, batch_size=None, batch_tokens=60, shard_rows=100))
    assert max(len(batch) * max(batch) for batch in seen) <= 60
    assert [length for batch in seen for length in batch] == sorted(lengths, reverse=True)
    padding = sum(len(batch) * max(batch) for batch in seen) / sum(lengths)
    assert padding < 1.15
    assert torch.equal(cache.rows(range(50)), letters(WORDS).half())


def test_a_batch_holds_what_both_bounds_allow():
    batches = length_batches([1, 9, 2, 2, 1, 1, 1, 0, 0], batch_size=4, batch_tokens=10)
    assert [batch.tolist() for batch in batches] == [[1], [2, 3, 0, 4], [5, 6, 7, 8]]


def test_texts_without_lengths_are_sorted_by_their_letters(tmp_path):
    seen = []

    def encode(texts):
        seen.extend(map(len, texts))
        return letters(texts)

    write(tmp_path / "cache", encode=encode, shard_rows=100)
    assert seen == sorted(seen, reverse=True)


def test_no_gradient_is_kept_and_what_the_encoder_makes_may_be_on_its_graph(tmp_path):
    weight = torch.ones(WIDTH, requires_grad=True)
    write(tmp_path / "cache", encode=lambda texts: letters(texts) * weight)
    assert torch.equal(FeatureCache(tmp_path / "cache").rows([5]), letters([WORDS[5]]).half())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"items": []}, "nothing to encode"),
        ({"dtype": torch.int8}, "got torch.int8"),
        ({"ids": ["a"]}, "50 items and 1 ids"),
        ({"ids": ["a"] * 50}, "Items 0 and 1 have the same id 'a'"),
        ({"lengths": [1]}, "50 items and 1 lengths"),
        ({"batch_size": None}, "Give a batch_size"),
        ({"batch_tokens": 10}, "needs lengths"),
        ({"batch_tokens": 10, "lengths": [*range(50)]}, r"Item 49 \('.*49'\) has 49 tokens, a batch holds batch_tokens=10"),
        ({"batch_size": 0}, "at least 1, got 0"),
        ({"key": {"path": Path("a")}}, "text, numbers, lists and mappings only"),
        ({"key": {"rate": float("nan")}}, "text, numbers, lists and mappings only"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_encoding(tmp_path, options, problem):
    with pytest.raises(ConfigError, match=problem):
        write(tmp_path / "cache", **{"encode": refuse_to_encode} | options)
    assert not (tmp_path / "cache").exists()


# Numbers that cannot be stored


def spoiled(value, *, at="x", dtype=torch.float32):
    def encode(texts):
        vectors = letters(texts).to(dtype)
        vectors[[text == at for text in texts], 3] = value
        return vectors

    return encode


def test_values_beyond_fp16_are_refused_with_advice(tmp_path):
    with pytest.raises(DataFormatError, match=r"Item 20 \('x20'\): .* 70,000, and float16 holds 65,504 at most. Store the features as bfloat16"):
        write(tmp_path / "cache", ["a"] * 20 + ["x20"], spoiled(70_000, at="x20"))
    write(tmp_path / "other", ["a"] * 20 + ["x20"], spoiled(70_000, at="x20"), dtype=torch.bfloat16)
    assert FeatureCache(tmp_path / "other").rows([20])[0, 3] == torch.tensor(70_000).bfloat16()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nan_and_infinity_are_refused_with_the_item(tmp_path, value, dtype):
    with pytest.raises(DataFormatError, match=r"Item 'seven' \('x7'\): the encoder returned NaN or infinity"):
        write(tmp_path / "cache", ["a", "x7"], spoiled(value, at="x7"), ids=["one", "seven"], dtype=dtype)
    assert shards(tmp_path / "cache") == []


def test_bfloat16_vectors_come_back_bit_equal(tmp_path):
    vectors = (torch.randn(30, 8) * 1e5).bfloat16()
    cache = FeatureCache(write(tmp_path / "cache", range(30), lambda items: vectors[items], dtype=torch.bfloat16))
    assert torch.equal(cache.rows(range(30)), vectors)


@pytest.mark.parametrize(
    ("encode", "problem"),
    [
        (lambda texts: letters(texts)[:-1], r"shape \[3, 6\] for 4 items"),
        (lambda texts: letters(texts)[:, None], r"shape \[4, 1, 6\]"),
        (lambda texts: letters(texts).int(), r"torch.int32 of shape"),
        (lambda texts: torch.zeros(len(texts), len(texts[0])), r"wanted floats of \[4, "),
    ],
)
def test_an_encoder_that_returns_something_else_is_refused(tmp_path, encode, problem):
    with pytest.raises(DataFormatError, match=problem):
        write(tmp_path / "cache", encode=encode)


def test_another_width_than_the_one_stated_is_refused(tmp_path):
    with pytest.raises(DataFormatError, match=r"shape \[4, 6\] for 4 items; wanted floats of \[4, 512\]"):
        write(tmp_path / "cache", width=512)


# Whose features they are


def test_another_key_is_refused_with_what_differs(tmp_path):
    folder = write(tmp_path / "cache")
    other = {"encoder": {"name": "letters", "pooling": "last"}, "dataset": "words", "template": "a {}"}
    expected = r"encoder.pooling is 'mean' there, wanted 'last'; template is absent there, wanted 'a \{\}'. Choose another folder, or add --overwrite"
    with pytest.raises(ConfigError, match=expected):
        FeatureCache(folder, other)
    with pytest.raises(ConfigError, match=expected):
        write(folder, encode=refuse_to_encode, key=other)


def test_the_key_is_a_mapping_without_order_and_its_hash_is_written(tmp_path):
    folder = write(tmp_path / "cache", key={"b": (1, 2), "a": {"d": None, "c": 0.1}})
    FeatureCache(folder, {"a": {"c": 0.1, "d": None}, "b": [1, 2]})
    written = json.loads((folder / "manifest.json").read_text())
    assert written["key_sha256"] == hashlib.sha256(b'{"a": {"c": 0.1, "d": null}, "b": [1, 2]}').hexdigest()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dtype": torch.float32}, "dtype on disk is 'float16' there, wanted 'float32'"),
        ({"items": [*WORDS[:-1], "other"]}, "SHA-256 of the items is "),
        ({"ids": [*map(str, range(50))]}, "SHA-256 of the items is "),
    ],
)
def test_another_dtype_or_other_items_are_refused(tmp_path, options, problem):
    folder = write(tmp_path / "cache")
    with pytest.raises(ConfigError, match=problem):
        write(folder, **{"encode": refuse_to_encode} | options)


def test_a_folder_with_other_files_is_neither_written_to_nor_removed(tmp_path):
    (tmp_path / "notes.txt").touch()
    for work in (write, remove_cache):
        with pytest.raises(ConfigError, match=r"holds 'notes.txt', which is not of a feature cache"):
            work(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_prepared_dataset_is_no_feature_cache(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 2, "name": "mix"}')
    with pytest.raises(ConfigError, match="something else"):
        remove_cache(tmp_path)
    with pytest.raises(DataFormatError, match="something else"):
        FeatureCache(tmp_path)


def test_a_removed_cache_can_be_written_with_another_key(tmp_path):
    folder = write(tmp_path / "cache")
    remove_cache(folder)
    assert not folder.exists()
    remove_cache(folder)
    FeatureCache(write(folder, key={"other": 1}), {"other": 1})


# Interrupted, divided


def test_work_that_stands_is_not_done_again(tmp_path):
    folder = write(tmp_path / "cache")
    before = files(folder)
    write(folder, encode=refuse_to_encode)
    assert files(folder) == before


def test_two_ranks_write_the_bytes_of_one(tmp_path):
    alone = write(tmp_path / "alone")
    for rank in (1, 0):
        with pytest.raises(DataFormatError, match="not"):
            FeatureCache(tmp_path / "two")
        write(tmp_path / "two", world=World(rank, 2, torch.device("cpu")))
    assert files(tmp_path / "two") == files(alone)


def test_ranks_at_the_same_time_write_the_bytes_of_one(tmp_path):
    alone = write(tmp_path / "alone")
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=write, args=(tmp_path / "many",), kwargs={"world": World(rank, 3, torch.device("cpu"))}) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert files(tmp_path / "many") == files(alone)


def write_and_die(folder, events):
    """Kill this process at so many encoded batches, flushes and renames: before the renames, so that what was written just before has no name yet."""
    left = [events]

    def counted(work):
        def count_and_work(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*args, **kwargs)

        return count_and_work

    os.fsync, Path.replace = counted(os.fsync), counted(Path.replace)
    write(folder, encode=counted(letters))


def test_killed_again_and_again_it_ends_bit_equal(tmp_path):
    """SIGKILL between any two of its doings; whatever has its name is whole, and the next process goes on after it."""
    whole, folder = files(write(tmp_path / "whole")), tmp_path / "killed"
    draw, context, codes = random.Random(0), multiprocessing.get_context("fork"), []
    while not codes or codes[-1]:
        process = context.Process(target=write_and_die, args=(folder, 1 + len(codes) if len(codes) < 12 else draw.randint(5, 15)))
        process.start()
        process.join()
        codes.append(process.exitcode)
        assert {path.name: path.read_bytes() for path in shards(folder)}.items() <= whole.items()
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert len(codes) > 12
    assert files(folder) == whole


def test_the_second_of_two_processes_with_the_same_shard_is_told(tmp_path):
    def encode(texts):
        with pytest.raises(ConfigError, match="Another process writes a shard"):
            write(tmp_path / "cache", encode=refuse_to_encode)
        return letters(texts)

    write(tmp_path / "cache", encode=encode)


def test_a_resumed_cache_keeps_the_size_of_its_shards(tmp_path, caplog):
    folder = write(tmp_path / "cache", world=World(0, 2, torch.device("cpu")))
    write(folder, shard_rows=20)
    assert "have 8 rows and keep them; shard_rows=20 is not used" in caplog.text
    assert files(folder) == files(write(tmp_path / "other"))


def test_an_unfinished_cache_is_not_opened(tmp_path):
    folder = write(tmp_path / "cache", world=World(0, 2, torch.device("cpu")))
    with pytest.raises(DataFormatError, match=r"is not finished: 4 of 7 shards stand. Run the command that wrote it again"):
        FeatureCache(folder)


@pytest.mark.parametrize("name", ["features-00001.bin", "index.safetensors"])
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_damage_is_found_when_opened_and_mended_by_writing_again(tmp_path, name, damage):
    folder = write(tmp_path / "cache")
    whole = files(folder)
    path = folder / name
    path.unlink() if damage == "missing" else os.truncate(path, 40)
    with pytest.raises(DataFormatError, match=rf"{name} (is missing|has 40 bytes, its manifest says {len(whole[name])})"):
        FeatureCache(folder)
    write(folder)
    assert files(folder) == whole


@pytest.mark.parametrize("name", ["features-00001.bin", "index.safetensors"])
def test_an_altered_file_is_found_by_its_hash(tmp_path, name):
    folder = write(tmp_path / "cache", ids=[*map(str, range(50))])
    FeatureCache(folder).verify()
    whole = files(folder)
    (folder / name).write_bytes(whole[name][:-1] + b"?")
    with pytest.raises(DataFormatError, match=rf"{name} was altered: .* Delete that file."):
        FeatureCache(folder).verify()
    (folder / name).unlink()
    write(folder, ids=[*map(str, range(50))])
    assert files(folder) == whole


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "features", "format_version": 1}'])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    folder = write(tmp_path / "cache")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DataFormatError, match=r"is damaged .* --overwrite"):
        FeatureCache(folder)
    remove_cache(folder)


def test_a_newer_format_is_refused(tmp_path):
    folder = write(tmp_path / "cache")
    (folder / "manifest.json").write_text('{"kind": "features", "format_version": 2}')
    with pytest.raises(DataFormatError, match="has format_version 2; this vlm reads up to 1"):
        FeatureCache(folder)


def test_an_error_of_the_encoder_is_not_taken_for_one_of_the_disk(tmp_path):
    def encode(texts):
        raise FileNotFoundError("cat.jpg")

    with pytest.raises(FileNotFoundError, match=r"cat.jpg"):
        write(tmp_path / "cache", encode=encode)


def test_progress_sees_every_batch(tmp_path):
    seen = []

    def progress(batches, total):
        for batch in batches:
            yield batch
            seen.append(total)

    write(tmp_path / "cache", progress=progress)
    assert seen == [13] * 13  # six shards of two batches, and one of two items


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted")
def test_a_full_disk_is_said_and_the_shards_that_stand_are_kept(tmp_path):
    """A real disk of 400 kB; then it grows, and the work goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        folder = disk / "cache"
        options = {"items": range(80), "encode": lambda items: torch.arange(4096).half() + torch.tensor(items)[:, None]}
        with pytest.raises(
            ConfigError, match=r"Cannot write features to .*cache \(No space left on device\). Free space .* Shards that stand are kept"
        ):
            write(folder, **options)
        standing = files(folder)
        assert 1 <= sum(name.endswith(".bin") for name in standing) < 10
        assert not any(name.endswith(".tmp") for name in standing)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        write(folder, **options)
        assert files(folder) == files(write(tmp_path / "whole", **options))
        assert {name: data for name, data in standing.items() if name.endswith(".bin")}.items() <= files(folder).items()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
