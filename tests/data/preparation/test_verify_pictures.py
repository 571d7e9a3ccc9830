import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from vlm.data.preparation import verify_pictures as module
from vlm.data.preparation.verify_pictures import MISSING, UNREADABLE, PictureChecker, Verdict, look_ahead, look_at
from vlm.errors import ConfigError

ORIENTATION = 0x0112  # EXIF's tag


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 10), **settings) -> Path:
    Image.new(mode, size).save(path, **settings)
    return path


def turned(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return save(path, exif=exif)


@pytest.mark.parametrize("verify", ["decode", "header"])
@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGB"), ("a.gif", "P"), ("a.jpg", "CMYK"), ("a.jpg", "L"), ("16.png", "I;16"), ("a.webp", "RGBA"), ("a.tif", "1")]
)
def test_readable_pictures_have_height_and_width(tmp_path: Path, name: str, mode: str, verify: str):
    assert look_at(save(tmp_path / name, mode), verify=verify) == Verdict(size=(10, 20))


@pytest.mark.parametrize("verify", ["decode", "header"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (10, 20)), (3, (10, 20)), (5, (20, 10)), (6, (20, 10)), (8, (20, 10))])
def test_size_is_that_of_the_upright_picture(tmp_path: Path, orientation: int, size: tuple[int, int], verify: str):
    assert look_at(turned(tmp_path / "a.jpg", orientation), verify=verify).size == size


def test_missing_file_is_told_from_an_unreadable_one(tmp_path: Path):
    assert look_at(tmp_path / "no.png", verify="decode").reason == MISSING
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    for verify in ("decode", "header"):
        verdict = look_at(tmp_path / "text.png", verify=verify)
        assert verdict.reason == UNREADABLE and "it is no picture" in verdict.detail and verdict.size is None
    assert look_at(tmp_path / "text.png", verify="off") == Verdict()
    assert look_at(tmp_path / "no.png", verify="off").reason == MISSING


def test_truncated_picture_is_found_by_decoding_only(tmp_path: Path):
    data = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(data, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    verdict = look_at(path, verify="decode")
    assert verdict.reason == UNREADABLE and "truncated" in verdict.detail
    assert look_at(path, verify="header") == Verdict(size=(64, 64))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_half_of_a_picture_followed_by_zeros_is_damaged(tmp_path: Path, suffix: str):
    path = tmp_path / f"half.{suffix}"
    Image.effect_noise((64, 64), 90).save(path)
    data = path.read_bytes()
    path.write_bytes(data + bytes(100))
    assert look_at(path, verify="decode") == Verdict(size=(64, 64))  # zeros behind the end do no harm
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    verdict = look_at(path, verify="decode")
    assert verdict.reason == UNREADABLE and "is damaged" in verdict.detail
    assert look_at(path, verify="header") == Verdict(size=(64, 64))


def test_floating_point_values_and_decompression_bombs_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    verdict = look_at(save(tmp_path / "a.tif", "F"), verify="decode")
    assert verdict.reason == UNREADABLE and "floating-point" in verdict.detail
    path = save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    assert look_at(path, verify="decode").size == (10, 20)  # PIL only warns up to twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    verdict = look_at(path, verify="decode")
    assert verdict.reason == UNREADABLE and "decompression bomb" in verdict.detail


def test_digest_is_the_sha256_of_the_file(tmp_path: Path):
    path = save(tmp_path / "a.png")
    assert look_at(path, verify="header", digest=True).digest == hashlib.sha256(path.read_bytes()).digest()


def test_processes_give_the_verdicts_of_this_process_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FEW", 2)
    paths = [save(tmp_path / f"{i}.png", size=(i + 1, 3)) for i in range(40)]
    paths.insert(20, tmp_path / "no.png")
    with PictureChecker(workers=2) as checker:
        seen = list(checker.start(paths))
        assert checker._pool is not None
    assert seen == [look_at(path, verify="decode") for path in paths]


def test_each_file_is_looked_at_once_and_every_item_after_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ITEMS_A_BLOCK", 2)
    files = {name: save(tmp_path / f"{name}.png") for name in "abc"} | {"no": None}
    asked: list[Path] = []

    class Counting(PictureChecker):
        def start(self, paths):
            asked.extend(paths)
            return super().start(paths)

    verdicts: dict[str, Verdict] = {}
    items = ["a", "b", "a", "no", "c", "a"]
    with Counting(workers=1) as checker:
        for item, expected in zip(look_ahead(items, files=lambda item: {item: files[item]}, checker=checker, verdicts=verdicts), items, strict=True):
            assert item == expected and item in verdicts
        assert list(look_ahead(["b"], files=lambda item: {item: files[item]}, checker=checker, verdicts=verdicts)) == ["b"]
    assert sorted(asked) == sorted(files[name] for name in "abc")
    assert verdicts["no"] == Verdict(reason=MISSING, detail="There is no image file no.")


def test_verdicts_name_pictures_as_the_user_knows_them(tmp_path: Path):
    (tmp_path / "hidden.png").write_bytes(b"no picture")
    verdicts: dict[str, Verdict] = {}
    with PictureChecker(workers=1) as checker:
        list(look_ahead(["x"], files=lambda item: {"train/1.png": tmp_path / "hidden.png"}, checker=checker, verdicts=verdicts))
    assert verdicts["train/1.png"].detail.startswith("The image file train/1.png cannot be read: it is no picture")


def test_dead_worker_is_one_line_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FEW", 0)
    with PictureChecker(workers=2) as checker:
        list(checker.start([save(tmp_path / "a.png")]))
        for process in list(checker._pool._processes.values()):
            process.kill()
        with pytest.raises(ConfigError, match=r"died.*--workers"):
            for _ in range(100):
                list(checker.start([tmp_path / "a.png"]))


def test_less_than_one_worker_is_refused():
    with pytest.raises(ConfigError, match=r"--workers is 0; at least 1"):
        PictureChecker(workers=0)


def test_a_name_too_long_for_a_file_is_a_missing_picture(tmp_path: Path):
    verdict = look_at(tmp_path / f"{'x' * 300}.jpg", verify="decode")
    assert verdict.reason == "image file missing"
    assert verdict.detail.endswith("xxx.jpg: the name is too long for one.")


def test_a_picture_that_the_system_refuses_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    verdict = look_at(tmp_path / "a.jpg", verify="decode")
    assert verdict.reason == "image file unreadable"
    assert verdict.detail == f"The image file {tmp_path / 'a.jpg'} cannot be read: Permission denied. Replace the file, or leave it out."


COMMAND = """
import sys
from vlm.__main__ import main
from vlm.data.preparation import verify_pictures

start = verify_pictures._start_pool

def start_and_say_so(workers):
    print("begun", flush=True)
    return start(workers)

verify_pictures._start_pool = start_and_say_so
sys.exit(main(sys.argv[1:]))
"""


def interruptible() -> None:
    """Programs started in the background of a shell ignore interrupts, and so do the programs that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("command", "delay"), [("data check mine", 0.1), ("preprocess --dataset-id mine", 1.5)])
def test_an_interrupt_is_one_line_whatever_the_workers_do(tmp_path: Path, command: str, delay: float):
    (tmp_path / "mine").mkdir()
    Image.effect_noise((1500, 1500), 90).save(tmp_path / "picture.jpg")
    for i in range(1000):
        (tmp_path / f"mine/{i}.jpg").hardlink_to(tmp_path / "picture.jpg")
        (tmp_path / f"mine/{i}.txt").write_text("Noise", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *command.split(), "--workers", "2"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
        start_new_session=True,  # a process group of its own, which a terminal's Ctrl-C reaches as a whole
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert [line for line in err.splitlines() if " is read as " not in line] == [f"vlm {command.split()[0]}: interrupted"]
