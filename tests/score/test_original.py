"""The original tool's configuration file, and our own settings in one."""

from pathlib import Path

import pytest

from vlm.errors import ConfigError, DataFormatError
from vlm.score.job import Job
from vlm.score.original import read_job_config


def config(folder: Path, text: str):
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return read_job_config(path)


def test_the_keys_of_the_original(tmp_path, caplog):
    found = config(
        tmp_path,
        "csv_path: pairs.csv\nimage_path: photos\nuse_cuda: false\npretrained_model: openai/clip-vit-base-patch32\nbatch_size: 10\nimg_resize: 800\n",
    )
    job = Job(**found)
    assert (job.pairs, job.image_col, job.text_col) == (("pairs.csv",), "url", "caption")
    assert (job.images, job.image_root, job.url_file) == ("local", Path("photos"), "{4}.png")
    assert (job.model, job.device, job.batch_size) == ("openai/clip-vit-base-patch32", "cpu", "10")
    assert "img_resize 800 has no effect" in caplog.text


def test_its_urls_are_fetched(tmp_path):
    job = Job(**config(tmp_path, "csv_path: pairs.csv\nimage_path: url\nuse_cuda: true\n"))
    assert (job.images, job.image_root, job.url_file, job.device) == ("url", None, "", "auto")


def test_our_own_settings_stand_beside_them(tmp_path):
    job = Job(**config(tmp_path, "pairs: [a.csv, b.csv]\nimage-root: photos\npart_rows: 5\ntimeout: 3\ncompile: true\ncarry: id\n"))
    assert (job.pairs, job.image_root, job.part_rows, job.timeout, job.compile, job.carry) == (
        ("a.csv", "b.csv"),
        Path("photos"),
        5,
        3.0,
        True,
        ("id",),
    )


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("csv_pth: a.csv", ConfigError, "unknown key 'csv_pth'"),
        ("part_rows: many", ConfigError, "part_rows is of type int, got 'many'"),
        ("use_cuda: 2", ConfigError, "true or false"),
        ("- a", DataFormatError, "holds no settings"),
        ("a: [", DataFormatError, "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        config(tmp_path, text)


def test_missing_file_of_settings_is_named_once(tmp_path):
    missing = tmp_path / "none.yaml"
    with pytest.raises(DataFormatError) as refused:
        read_job_config(missing)
    assert str(refused.value) == f"--config {missing} cannot be read: No such file or directory. Name a readable YAML file."
