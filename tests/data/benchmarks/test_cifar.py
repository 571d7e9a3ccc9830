"""Files are pickled here as those of 2009 were: protocol 2, and numpy's old module name."""

import os
import pickle
import tarfile

import numpy as np
import pytest

from vlm.data.benchmarks import BENCHMARKS
from vlm.errors import DataFormatError, UnknownNameError


def old_pickle(value):
    return pickle.dumps(value, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path, pixels):
    """torchvision's root, with the unpacked folder."""
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "batches.meta").write_bytes(old_pickle({b"label_names": [b"airplane", b"automobile", b"bird"]}))
    (folder / "test_batch").write_bytes(old_pickle({b"data": pixels, b"labels": [2, 0, 1, 1]}))
    return tmp_path / "root"


def test_pictures_labels_and_names_of_the_archive_or_of_the_folder(cifar10, pixels, tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as packed:
        packed.add(cifar10 / "cifar-10-batches-py", "cifar-10-batches-py")
    for place in (cifar10, cifar10 / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz", tmp_path):
        data = BENCHMARKS["cifar10"].open(place, "test", None)
        assert data.name == "cifar10" and data.class_names == ("airplane", "automobile", "bird") and data.labels.tolist() == [2, 0, 1, 1]
        image = data.pictures[3].open()
        assert image.size == (32, 32) and image.getpixel((5, 2)) == tuple(pixels[3, [2 * 32 + 5, 1024 + 2 * 32 + 5, 2048 + 2 * 32 + 5]])


def test_cifar100_has_fine_labels_and_names_with_underscores(tmp_path, pixels):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "meta").write_bytes(old_pickle({b"fine_label_names": [b"apple", b"aquarium_fish"], b"coarse_label_names": [b"fish"]}))
    (folder / "train").write_bytes(old_pickle({b"data": pixels, b"fine_labels": [1, 0, 1, 1], b"coarse_labels": [0, 0, 0, 0]}))
    data = BENCHMARKS["cifar100"].open(folder, "train", None)
    assert data.class_names == ("apple", "aquarium_fish") and data.labels.tolist() == [1, 0, 1, 1] and data.pictures[0].id == "train/0"


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run_it(cifar10, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(DataFormatError, match="has no place in CIFAR"):
        BENCHMARKS["cifar10"].open(cifar10, "test", None)
    assert not (tmp_path / "ran").exists()


def test_what_is_missing_cut_or_something_else_is_said(cifar10, tmp_path, pixels):
    spec, batch = BENCHMARKS["cifar10"], cifar10 / "cifar-10-batches-py" / "test_batch"
    with pytest.raises(UnknownNameError, match="split of cifar10 named 'val'"):
        spec.open(cifar10, "val", None)
    with pytest.raises(DataFormatError, match=r"holds neither cifar-10-python.tar.gz nor cifar-10-batches-py/test_batch"):
        spec.open(tmp_path / "nowhere", "test", None)
    batch.write_bytes(old_pickle({b"data": pixels, b"labels": [0, 1]}))
    with pytest.raises(DataFormatError, match="is cut: 4 pictures, 2 labels"):
        spec.open(cifar10, "test", None)
    batch.write_bytes(old_pickle({b"data": pixels[:, :7], b"labels": [0] * 4}))
    with pytest.raises(DataFormatError, match="is not cifar10 as it is published"):
        spec.open(cifar10, "test", None)
    batch.write_bytes(b"no pickle")
    with pytest.raises(DataFormatError, match="no pickle of CIFAR's"):
        spec.open(cifar10, "test", None)
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataFormatError, match=r"is not the archive cifar-10-python\.tar\.gz"):
        spec.open(tmp_path / "x.tar.gz", "test", None)
