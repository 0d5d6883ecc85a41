"""Archives and pictures of strangers: what is harmless is read where it lies, what is not is refused or left out."""

import io
import os
import tarfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, PngImagePlugin
from pyarrow import parquet

from maskdit.config.base import UserError
from maskdit.images import archives, index
from maskdit.images.decode import centre_crop, decode
from maskdit.images.imagenet import in_tables
from maskdit.images.index import Encoded
from maskdit.images.scan import scan


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def noise(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def tar_of(path: Path, files: dict[str, bytes]) -> list[tarfile.TarInfo]:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return tar.getmembers()


def refusal(of, *arguments) -> str:
    with pytest.raises(UserError) as refused:
        of(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def ten(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A tar file of ten pictures."""
    files = {f"red/{number}.png": encoded(noise(number)) for number in range(10)}
    tar_of(tmp_path / "ten.tar", files)
    return tmp_path / "ten.tar", files


def test_a_member_that_inflates_beyond_the_limit_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 2**20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("red/bomb.png", bytes(2**24))
        archive.writestr("red/fits.png", bytes(2**20))
    found = scan(tmp_path)
    inflated = []
    plain = archives.inflated
    monkeypatch.setattr(index, "inflated", lambda data: inflated.append(plain(data)) or inflated[-1])
    assert "larger than 1 MiB" in refusal(found.read, found.names.index("red/bomb.png"))
    assert inflated == []
    assert found.read(found.names.index("red/fits.png")) == bytes(2**20)


def test_a_member_whose_compressed_bytes_end_early_is_refused():
    whole = zlib.compressobj(wbits=-15)
    data = whole.compress(np.random.default_rng(0).bytes(5000)) + whole.flush()
    assert len(archives.inflated(data)) == 5000
    with pytest.raises(zlib.error, match="truncated"):
        archives.inflated(data[:3000])


def test_links_hidden_files_and_unsafe_names_of_a_zip_are_left_out(tmp_path):
    good = encoded(noise(0))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("red/good.png", "../evil.png", "__MACOSX/red/._good.png", "red/.hidden.png", "red/notes.txt"):
            archive.writestr(name, good if name.endswith(".png") else "notes")
        link = zipfile.ZipInfo("red/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert scan(tmp_path).names == ("red/good.png",)


def test_a_packed_way_that_cannot_be_read_at_random_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("red/a.png", encoded(noise(0)))
    assert "x.zip: red/a.png is encrypted, or compressed with a method other than deflate" in refusal(scan, tmp_path)


def test_each_byte_of_a_zip_s_members_is_found_whatever_lies_before_them(tmp_path):
    files = {f"red/{'long' * number}{number}.png": encoded(noise(number)) for number in range(6)}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number, (name, data) in enumerate(files.items()):
            member = zipfile.ZipInfo(name)
            member.extra = b"\xfe\xca" + (5 * number).to_bytes(2, "little") + bytes(5 * number)
            member.compress_type = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
            archive.writestr(member, data)
    found = scan(tmp_path)
    assert {name: found.read(row) for row, name in enumerate(found.names)} == files


@pytest.mark.parametrize("damage", [{6: 99}, {9: 8, 46: 0xFF}], ids=["version", "name"])
def test_a_zip_of_a_version_or_with_a_name_that_nothing_reads_is_refused(damage, tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("red/a.png", encoded(noise(0)))
    whole = bytearray(path.read_bytes())
    for place, byte in damage.items():
        whole[whole.rindex(b"PK\x01\x02") + place] = byte
    path.write_bytes(whole)
    assert "x.zip: damaged" in refusal(scan, tmp_path)


def test_a_tar_whose_member_ends_beyond_any_file_is_refused(tmp_path):
    member = tarfile.TarInfo("red/a.png")
    member.size = 2**62
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "x.tar: damaged (a member ends beyond the end of the file)" in refusal(scan, tmp_path)


def test_a_damaged_header_is_not_taken_for_the_end_of_a_tar_file(ten):
    path, _ = ten
    with tarfile.open(path) as tar:
        place = tar.getmembers()[5].offset
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\xff" * 200)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 5, "tarfile itself sees nothing wrong"
    assert "ten.tar: damaged" in refusal(scan, path.parent)


@pytest.mark.parametrize("kept", [0.35, 0.41, 0.46, 0.93])
def test_a_tar_file_that_ends_early_is_refused(ten, kept):
    path, _ = ten
    os.truncate(path, int(kept * 10 * 1024))
    assert "ten.tar: damaged" in refusal(scan, path.parent)


def test_a_compressed_tar_file_is_refused(ten):
    path, _ = ten
    with tarfile.open(path.with_name("packed.tar"), "w:gz") as packed:
        packed.add(path, "ten.tar")
    assert "packed.tar: damaged" in refusal(scan, path.parent)


def test_a_tar_file_without_the_blocks_at_its_end_is_whole(ten):
    path, files = ten
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    os.truncate(path, -(-(last.offset_data + last.size) // 512) * 512)
    assert len(scan(path.parent)) == len(files)


def test_the_folder_of_a_class_may_be_a_link_and_a_circle_is_not_walked(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(encoded(noise(0)))
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "root", target_is_directory=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "red").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    os.mkfifo(tmp_path / "elsewhere" / "pipe.png")
    assert scan(tmp_path / "root").names == ("red/a.png",)


def test_bytes_that_changed_without_a_change_of_size_are_refused(ten):
    path, _ = ten
    found = scan(path.parent)
    records = found.records.copy()
    records["crc"] = [zlib.crc32(found.read(row)) for row in range(10)]
    pixels = Encoded(replace(found, records=records), 8)
    assert pixels[:].shape == (10, 8, 8, 3)
    with path.open("r+b") as stream:
        stream.seek(int(records[3]["offset"]))
        stream.write(encoded(noise(77))[: int(records[3]["length"])])
    assert refusal(pixels.__getitem__, 3) == "red/3.png: changed since it was fetched; run fetch again"
    assert pixels[4].shape == (8, 8, 3)


@pytest.mark.parametrize("key", [slice(None, None, 3), np.array([7, 0, 7]), [2, 1], -1, np.int64(5), slice(4, 4)], ids=str)
def test_pixels_are_indexed_as_an_array_is(ten, key):
    path, files = ten
    pixels = Encoded(scan(path.parent), 8)
    every = np.stack([centre_crop(decode(data), 8) for _, data in sorted(files.items())])
    np.testing.assert_array_equal(pixels[key], every[key])


def table_of(path: Path, rows: list[tuple[str, bytes | None, int | None]], group: int) -> None:
    path.parent.mkdir(exist_ok=True)
    column = [{"bytes": data, "path": name} for name, data, _ in rows]
    labels = pa.array([label for *_, label in rows], pa.int64())
    parquet.write_table(pa.table({"image": column, "label": labels}), path, row_group_size=group)


def test_a_row_group_is_not_read_again_for_each_of_its_images(tmp_path, monkeypatch):
    rows = [(f"n0000000{number // 50}_{number}.JPEG", encoded(noise(number)), number // 50) for number in range(100)]
    table_of(tmp_path / "train-00000-of-00001.parquet", rows, group=25)
    found, read = in_tables(tmp_path, "train"), []
    plain = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile, "read_row_group", lambda self, group, **w: read.append(group) or plain(self, group, **w)
    )
    pixels = Encoded(found, 8)[:]
    assert len(read) <= 8, "of four groups, a second time only for a thread that was left far behind"
    np.testing.assert_array_equal(pixels, np.stack([centre_crop(decode(data), 8) for _, data, _ in rows]))


def test_a_table_that_is_cut_damaged_or_lacks_an_image_is_one_line(tmp_path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    table_of(path, [(f"n00000000_{number}.JPEG", encoded(noise(number)) if number else None, 0) for number in range(8)], group=4)
    found = in_tables(tmp_path, "train")
    assert "damaged" in refusal(Encoded(found, 8).__getitem__, 0)
    assert Encoded(found, 8)[1].shape == (8, 8, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(1000) + whole[1200:])
    index._Table.cache_clear()
    assert "cannot be read" in refusal(found.read, 1)
    path.write_bytes(whole[:-300])
    index._Table.cache_clear()
    assert "bytes, not" in refusal(found.read, 1)
    assert "not one of the hub's tables" in refusal(in_tables, tmp_path, "train")


def test_no_decoder_is_tried_that_runs_programs():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(script)).format == "EPS", "which Pillow alone would hand to Ghostscript"
    assert refusal(decode, script, "x.jpg") == "x.jpg: damaged (not an image)"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not an image"),
        (b"GIF89a", "damaged"),
        (encoded(noise(0), "JPEG")[:-200], "damaged"),
        (encoded(noise(0))[:-60], "damaged"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "a header", "cut JPEG", "cut PNG", "floats"],
)
def test_what_cannot_be_decoded_is_damaged_in_one_line(data, said):
    assert said in refusal(decode, data, "x.png")


def with_text(length: int) -> bytes:
    """A PNG with so much text, packed."""
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * length, zip=True)
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (encoded(Image.new("1", (10_000, 9_000))), "90,000,000 pixels, and the limit is 89,478,485"),
        (encoded(Image.new("L", (3000, 2))), "3000 x 2 pixels, and the limit is 100 times as long as wide"),
        (with_text(2**26 + 1), "its text is longer than the limit of 64 MiB"),
    ],
    ids=["many pixels", "a thread", "text"],
)
def test_a_whole_image_beyond_a_limit_is_not_damaged_and_the_limit_is_named(data, said):
    assert refusal(decode, data, "x.png") == f"x.png: {said}"


def test_an_image_with_the_text_of_its_generator_is_read():
    assert decode(with_text(2_000_000)).size == (4, 4)


def test_a_bomb_is_refused_in_every_thread():
    bomb, good = encoded(Image.new("1", (10_000, 10_000))), encoded(noise(0))

    def tried(number: int) -> bool:
        try:
            decode(bomb if number % 2 else good, "x")
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tried, range(200))) == [True, False] * 100


def test_cmyk_of_a_jpeg_has_the_colours_of_its_inks():
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow are red
    red = np.asarray(decode(encoded(inks, "JPEG"))).reshape(-1, 3).mean(0)
    assert red[0] > 240
    assert red[1:].max() < 15


def test_an_orientation_is_not_applied():
    turned = Image.Exif()
    turned[0x0112] = 6
    stream = io.BytesIO()
    noise(1, (20, 10)).save(stream, "JPEG", exif=turned)
    assert decode(stream.getvalue()).size == (20, 10)
