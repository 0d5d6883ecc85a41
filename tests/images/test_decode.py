"""Images as they are: each form is read as people see it, or refused by name."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_fetch import fetched, folder
from test_index import encoded, noise, refusal

from maskdit.artifacts.atomic import read_json
from maskdit.images.check import examined
from maskdit.images.decode import decode
from maskdit.images.scan import scan


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def grey(values: list[int], kind: type = np.uint16) -> Image.Image:
    return Image.fromarray(np.array([values], kind))


def read(data: bytes) -> list[Any]:
    return np.asarray(decode(data)).tolist()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_values_of_16_bits_are_taken_as_they_are_if_they_fit_in_8_and_else_their_upper_8_bits(kind: str) -> None:
    assert [pixel[0] for pixel in read(saved(grey([0, 1, 255]), kind))[0]] == [0, 1, 255], "a mask"
    assert [pixel[0] for pixel in read(saved(grey([0, 2**8, 65535]), kind))[0]] == [0, 1, 255]
    assert [pixel[0] for pixel in read(saved(grey([0]), kind))[0]] == [0]


@pytest.mark.parametrize("top", [256, 1023, 4095, 16383])
def test_values_that_fill_neither_8_nor_16_bits_are_refused(top: int) -> None:
    assert f"its values from 0 to {top} fill neither 8 nor 16 bits" in refusal(decode, saved(grey([0, top])), "x.png")


def test_values_of_32_bits_are_taken_by_their_range_or_refused() -> None:
    def wide(*values: int) -> bytes:
        return saved(grey([*values], np.int32), "TIFF")

    assert [pixel[0] for pixel in read(wide(0, 7, 255))[0]] == [0, 7, 255]
    assert [pixel[0] for pixel in read(wide(0, 40000, 65535))[0]] == [0, 156, 255]
    for values in ((-1, 200), (0, 2**16), (0, 2**31 - 1)):
        assert "fill neither 8 nor 16 bits" in refusal(decode, wide(*values), "x.tif")


def test_a_grey_map_whose_maximum_is_not_255_is_scaled_by_it() -> None:
    assert read(b"P5 2 1 15 \x00\x0f")[0][1] == [255] * 3
    assert read(b"P5 2 1 4095 \x00\x00\x0f\xff")[0][1] == [255] * 3


def transparent_palette() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putdata([0, 1])
    return saved(image, transparency=b"\x00\xff")


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (transparent_palette(), [[[255, 255, 255], [0, 0, 200]]]),
        (saved(Image.merge("LA", [Image.new("L", (1, 1), 10), Image.new("L", (1, 1), 0)])), [[[255] * 3]]),
        (saved(Image.merge("LA", [Image.new("L", (1, 1), 10), Image.new("L", (1, 1), 255)])), [[[10] * 3]]),
        (saved(Image.new("L", (1, 1), 10), transparency=10), [[[255] * 3]]),
        (saved(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), [[[255] * 3]]),
        (saved(Image.new("1", (1, 1), 1)), [[[255] * 3]]),
        (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[[255, 0, 0]]]),
    ],
    ids=["palette", "clear grey", "opaque grey", "a clear grey", "a clear colour", "one bit", "CMYK TIFF"],
)
def test_transparency_is_white_and_colours_are_those_that_are_seen(data: bytes, wanted: list[Any]) -> None:
    assert read(data) == wanted


def test_ycck_of_a_jpeg_has_the_colours_of_its_inks() -> None:
    inks = Image.new("YCbCr", (16, 16), (76, 85, 255))  # red, as libjpeg has it in the inks of YCCK
    data = saved(Image.merge("CMYK", [*inks.split(), Image.new("L", (16, 16), 0)]), "JPEG", quality=95)
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0, "CMYK"
    ycck = data[: adobe + 11] + b"\x02" + data[adobe + 12 :]
    red, green, blue = np.asarray(decode(ycck)).reshape(-1, 3).mean(0)
    plain = np.asarray(decode(data)).reshape(-1, 3).mean(0)
    assert max(abs(red - 255), abs(green), abs(blue)) < 12, (red, green, blue, plain)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read_and_counted(kind: str, tmp_path: Path) -> None:
    first, second = noise(1), noise(2)
    more = {"lossless": True} if kind == "WEBP" else {}
    data = saved(first, kind, save_all=True, append_images=[second], **more)
    one = saved(first, kind, **more)
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(decode(one)))
    for name, content in (("still", one), ("moving", data)):
        (tmp_path / "red").mkdir(exist_ok=True)
        (tmp_path / "red" / f"{name}.{kind.lower()}").write_bytes(content)
    found = scan(tmp_path)
    assert [examined(found, row)["frames"] for row in range(2)] == [True, False]


ARROW = np.zeros((20, 30, 3), np.uint8)
ARROW[:10, :15] = 255  # white in the upper left corner
LAID = {  # orientation: how the pixels lie that are seen as ARROW
    1: ARROW,
    2: ARROW[:, ::-1],
    3: ARROW[::-1, ::-1],
    4: ARROW[::-1],
    5: ARROW.transpose(1, 0, 2),
    6: np.rot90(ARROW),
    7: np.rot90(ARROW, 2).transpose(1, 0, 2),
    8: np.rot90(ARROW, -1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("number", LAID)
def test_a_photograph_is_set_upright_where_the_entry_says_so(number: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    data = saved(Image.fromarray(np.ascontiguousarray(LAID[number])), kind, exif=exif)
    upright = np.asarray(decode(data, upright=True)).astype(int)
    assert upright.shape == ARROW.shape
    assert np.abs(upright - ARROW).max() < 40
    if kind != "TIFF":  # where it is no EXIF, but says how the rows of the file lie
        assert decode(data).size == LAID[number].shape[1::-1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_cannot_be_read_turns_nothing() -> None:
    data = saved(noise(1), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    np.testing.assert_array_equal(np.asarray(decode(data, upright=True)), np.asarray(decode(data)))


def test_orientation_apply_is_read_from_the_entry_and_kept_with_the_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("blue", "red"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "1.jpg").write_bytes(saved(Image.fromarray(np.rot90(ARROW).copy()), "JPEG", exif=exif))
    plain = fetched(folder(tmp_path / "root", images=2, heldout=0.0), tmp_path / "plain")
    turned = fetched(folder(tmp_path / "root", images=2, heldout=0.0, orientation="apply"), tmp_path / "turned")
    assert plain.pixels[0][-1, 0].min() > 200, "white where the file has it"
    assert turned.pixels[0][0, 0].min() > 200
    assert turned.pixels[0][-1, 0].max() < 50
    assert "orientation" not in read_json(tmp_path / "plain" / "index.json")
    assert read_json(tmp_path / "turned" / "report.json")["images"]["turned"] == ["blue/1.jpg", "red/1.jpg"]


@pytest.mark.parametrize("data", [b"", encoded(noise(1))[:40], bytes(4096)], ids=["empty", "cut", "zeros"])
def test_a_file_without_an_image_is_damaged_by_name(data: bytes) -> None:
    assert refusal(decode, data, "a/x.png").startswith("a/x.png: damaged (")
