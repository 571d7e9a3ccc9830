"""Bit equality with transformers' PIL processors, and with LLaVA's own padding, restated here from llava/mm_utils.py."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.data.image import decode_image, load_image, load_tiles, picture_size, to_pixels, to_tiles
from vlm.errors import DataFormatError
from vlm.types import ImageLayout, ImagePolicy

SIZES = [(40, 40), (61, 37), (37, 61), (20, 33), (32, 15)]  # width, height


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def processed(processor, image: Image.Image) -> torch.Tensor:
    return torch.as_tensor(processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("size", SIZES)
def test_squash_is_siglip_of_transformers(size: tuple[int, int]):
    from transformers import SiglipImageProcessorPil

    tiles, layout = to_tiles(noise(*size), ImagePolicy(size=32, mode="squash"))
    assert torch.equal(tiles, processed(SiglipImageProcessorPil(size={"height": 32, "width": 32}), noise(*size)).to(torch.uint8))
    assert layout == ImageLayout(grid=(1, 1), size=(size[1], size[0]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [32, 33])
def test_crop_is_clip_of_transformers(size: tuple[int, int], side: int):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    tiles, _ = to_tiles(noise(*size), ImagePolicy(size=side, mode="crop"))
    assert torch.equal(tiles, processed(processor, noise(*size)).to(torch.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("half_pixel", ["down", "even"])
def test_crop_out_of_a_larger_resize_is_that_of_transformers_and_of_torchvision(size: tuple[int, int], half_pixel: str):
    """35 of 40 pixels: margins of 2.5, so rounding shows on both sides."""
    policy = ImagePolicy(size=35, mode="crop", short_side=40, half_pixel=half_pixel)
    if half_pixel == "down":
        from transformers import CLIPImageProcessorPil

        processor = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 35, "width": 35})
        expected = processed(processor, noise(*size)).to(torch.uint8)[0]
    else:
        transforms = pytest.importorskip("torchvision.transforms")
        cut = transforms.CenterCrop(35)(transforms.Resize(40, transforms.InterpolationMode.BICUBIC)(noise(*size)))
        expected = torch.from_numpy(np.array(cut)).permute(2, 0, 1)
    assert torch.equal(to_tiles(noise(*size), policy)[0][0], expected)


def test_pixels_of_several_pictures_are_theirs_in_order():
    policy = ImagePolicy(size=32, mode="crop")
    pictures = [noise(*size) for size in SIZES]
    pixels = to_pixels(pictures, policy)
    assert pixels.shape == (len(SIZES), 3, 32, 32)
    assert all(torch.equal(row, to_tiles(picture, policy)[0][0]) for row, picture in zip(pixels, pictures, strict=True))
    with pytest.raises(DataFormatError, match="no picture"):
        to_pixels([], policy)


def test_crop_refuses_a_picture_whose_resized_form_would_be_huge():
    with pytest.raises(DataFormatError, match=r"1x10000 pixels is too narrow for --model\.resize crop.* at most 100 to 1"):
        to_tiles(noise(1, 10_000), ImagePolicy(size=224, mode="crop"))
    assert to_tiles(noise(1, 100), ImagePolicy(size=32, mode="crop"))[0].shape == (1, 3, 32, 32)


def test_file_of_a_picture_too_narrow_to_crop_is_named(tmp_path: Path):
    with pytest.raises(DataFormatError, match=r"x\.png cannot be used: A picture of 1x101 pixels"):
        load_tiles(saved(tmp_path, noise(1, 101)), ImagePolicy(size=32, mode="crop"))


def expand2square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    if width > height:
        result = Image.new(image.mode, (width, width), color)
        result.paste(image, (0, (width - height) // 2))
        return result
    result = Image.new(image.mode, (height, height), color)
    result.paste(image, ((height - width) // 2, 0))
    return result


@pytest.mark.parametrize("size", SIZES)
def test_pad_is_llava(size: tuple[int, int]):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tiles, _ = to_tiles(noise(*size), ImagePolicy(size=32, mode="pad", fill=(122, 116, 104)))
    assert torch.equal(tiles, processed(processor, expand2square(noise(*size), (122, 116, 104))).to(torch.uint8))


def test_resample_filter_is_the_policys():
    tiles, _ = to_tiles(noise(40, 40), ImagePolicy(size=32, resample="nearest"))
    assert torch.equal(tiles[0], torch.from_numpy(np.array(noise(40, 40).resize((32, 32), Image.Resampling.NEAREST))).permute(2, 0, 1))


def saved(tmp_path: Path, image: Image.Image, name: str = "x.png", **options) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_exif_orientation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored left column is the top row
    image = load_image(saved(tmp_path, noise(4, 2), exif=exif))
    assert image.size == (2, 4)
    assert np.array_equal(np.array(image), np.rot90(np.array(noise(4, 2)), k=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_become_white(tmp_path: Path, mode: str):
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), (0, 0, 0, 255) if mode == "RGBA" else (0, 255))
    assert np.array(load_image(saved(tmp_path, image))).tolist() == [[[255] * 3, [0] * 3]]


def test_transparent_palette_color_becomes_white(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert np.array(load_image(saved(tmp_path, image, transparency=0))).tolist() == [[[255] * 3, [40, 50, 60]]]
    assert np.array(load_image(saved(tmp_path, image, "y.png", transparency=b"\x00\xff"))).tolist() == [[[255] * 3, [40, 50, 60]]]
    assert np.array(load_image(saved(tmp_path, image, "z.png"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_sixteen_bit_gray_is_scaled(tmp_path: Path):
    gray = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    for name in ("x.png", "x.tiff"):
        assert np.array(load_image(saved(tmp_path, Image.fromarray(gray), name)))[0, :, 0].tolist() == [0, 100, 255]


def test_cmyk_gray_and_one_bit_pictures_become_rgb(tmp_path: Path):
    for mode, color, name in (("CMYK", (0, 255, 255, 0), "x.tiff"), ("L", 7, "x.png"), ("1", 1, "y.png")):
        expected = {"CMYK": [255, 0, 0], "L": [7] * 3, "1": [255] * 3}[mode]
        assert np.array(load_image(saved(tmp_path, Image.new(mode, (1, 1), color), name))).tolist() == [[expected]]


def test_floating_point_pictures_are_refused_with_their_path(tmp_path: Path):
    with pytest.raises(DataFormatError, match=r"x\.tiff cannot be read: .*floating-point"):
        load_image(saved(tmp_path, Image.new("F", (1, 1)), "x.tiff"))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.webp", "x.bmp"])
def test_cut_and_broken_files_are_named(tmp_path: Path, name: str):
    path = saved(tmp_path, noise(64, 64), name)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:3], b"", b"no picture at all"):
        path.write_bytes(broken)
        with pytest.raises(DataFormatError, match=rf"{name} cannot be read: .*Replace the file") as caught:
            load_image(path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count(name) == 1
        assert "''" not in str(caught.value)


def test_damaged_chunk_is_named(tmp_path: Path):
    path = saved(tmp_path, noise(64, 64))
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(bytes(data))
    with pytest.raises(DataFormatError, match=r"x\.png cannot be read"):
        load_image(path)


def test_missing_file_and_folder_are_named(tmp_path: Path):
    with pytest.raises(DataFormatError, match=r"no image file .*gone\.png"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(DataFormatError, match="cannot be read"):
        load_image(tmp_path)


def test_picture_too_large_to_be_true_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = saved(tmp_path, noise(64, 64))
    with warnings.catch_warnings(), pytest.raises(DataFormatError, match=r"x\.png cannot be read: .*pixels"):
        warnings.simplefilter("ignore")
        load_image(path)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_cropping_between_the_passes_of_the_resize_changes_no_bit(resample: str):
    rng = np.random.default_rng(0)
    for _ in range(25):
        height, width = rng.integers(20, 300, 2).tolist()
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for size in (32, 56):
            short = min(height, width)
            wide, high = (size if side == short else int(size * side / short) for side in (width, height))
            whole = image.resize((wide, high), Image.Resampling[resample.upper()])
            left, top = (wide - size) // 2, (high - size) // 2
            tiles, _ = to_tiles(image, ImagePolicy(size=size, mode="crop", resample=resample))
            assert np.array_equal(tiles[0].permute(1, 2, 0).numpy(), np.asarray(whole.crop((left, top, left + size, top + size))))


def test_reduced_jpeg_is_an_option_and_close(tmp_path: Path):
    path = tmp_path / "large.jpg"
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(path, quality=95)
    full, _ = load_tiles(path, ImagePolicy(size=64))
    reduced, _ = load_tiles(path, ImagePolicy(size=64, reduced_jpeg=True))
    assert load_image(path, at_least=64).size == (160, 120)  # an eighth would be 60 pixels high
    assert load_image(path).size == (640, 480)
    assert (full.int() - reduced.int()).abs().max() < 12


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_size_from_the_head_is_that_of_the_upright_picture(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    upright = load_image(path)
    assert picture_size(path) == (upright.height, upright.width)


@pytest.mark.parametrize("size", [(50, 31), (31, 50), (40, 40), (47, 24), (33, 32)])
def test_letterbox_is_prismatics(size: tuple[int, int]):
    """`LetterboxPad`, then Resize and CenterCrop of torchvision; an odd difference leaves the padded picture a pixel short of a square."""
    transforms = pytest.importorskip("torchvision.transforms")
    picture, longest = noise(*size), max(size)
    across, down = (int((longest - length) / 2) for length in picture.size)
    padded = transforms.functional.pad(picture, (across, down, across, down), fill=(122, 116, 104), padding_mode="constant")
    resized = transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC)(padded)
    expected = np.array(transforms.CenterCrop(32)(resized))
    tiles, _ = to_tiles(picture, ImagePolicy(size=32, mode="letterbox", fill=(122, 116, 104)))
    assert np.array_equal(tiles[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("kind", ["DDS", "AVIF"])
def test_what_else_decoders_raise_for_broken_files_is_one_line(tmp_path: Path, kind: str):
    """Their own plain RuntimeError and NotImplementedError."""
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"This PIL writes no {kind}.")
    path = tmp_path / f"broken.{kind.lower()}"
    noise(40, 40).save(path)
    content = bytearray(path.read_bytes())
    if kind == "DDS":
        content[80:84] = (2**13).to_bytes(4, "little")  # the flags of the pixel format
    else:
        place = content.index(b"mdat") + 8
        content[place : place + 20] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match="cannot be read"):
        load_image(path)
    with pytest.raises(DataFormatError, match="cannot be read as a picture"):
        decode_image(bytes(content), name="broken", max_pixels=10_000)


def test_a_fault_in_a_plugin_of_pil_is_an_unreadable_picture(tmp_path):
    file = io.BytesIO()
    Image.new("F", (20, 20)).save(file, "SPIDER")
    broken = bytearray(file.getvalue())
    broken[104:108] = struct.pack("<f", 2.0)  # says that it is a stack of pictures: AttributeError in PIL
    (tmp_path / "a.spi").write_bytes(broken)
    with pytest.raises(DataFormatError, match="cannot be read as a picture"):
        decode_image(bytes(broken), name="a.spi", max_pixels=1000)
    with pytest.raises(DataFormatError, match=r"a\.spi cannot be read"):
        load_image(tmp_path / "a.spi")
