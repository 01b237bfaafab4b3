"""Readers of CIFAR-10 binary, IDX and image folders: right pixels, one clear error otherwise."""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from omniconv.tasks.classify import load

Maker = Callable[[Path], str]
RECORD = 3073


def cifar_bytes(labels: list[int], seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return b"".join(
        bytes([label]) + rng.integers(0, 256, RECORD - 1, dtype=np.uint8).tobytes()
        for label in labels
    )


def make_cifar(root: Path) -> str:
    (root / "data_batch_1.bin").write_bytes(cifar_bytes(list(range(10)) * 2, 1))
    (root / "data_batch_4.bin").write_bytes(cifar_bytes(list(range(10)) * 2, 4))
    (root / "test_batch.bin").write_bytes(cifar_bytes(list(range(10)), 9))
    return f"cifar10:{root}"


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def make_idx(root: Path, packed: bool = False) -> str:
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 8)):
        files = {
            f"{prefix}-images-idx3-ubyte": rng.integers(0, 256, (count, 6, 5)),
            f"{prefix}-labels-idx1-ubyte": np.arange(count) % 4 + 3,
        }
        for name, array in files.items():
            if packed:
                (root / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
            else:
                (root / name).write_bytes(idx_bytes(array))
    return f"idx:{root}"


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    image = pytest.importorskip("PIL.Image").fromarray(array.astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.convert(mode) if mode else image).save(path)


def make_folder(root: Path) -> str:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("zebra", "ant"):
            for i in range(count):
                save(root / split / name / f"{i}.png", rng.integers(0, 256, (7, 9, 3)))
    return f"folder:{root}"


MAKERS: dict[str, Maker] = {
    "cifar10": make_cifar,
    "idx": make_idx,
    "idx.gz": lambda root: make_idx(root, packed=True),
    "folder": make_folder,
}


def refusal(spec: str) -> str:
    """The one sentence that loading ``spec`` ends in."""
    with pytest.raises(ValueError) as caught:
        load(spec)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


# ---------------------------------------------------------------------------- right pixels


def test_cifar_records_become_labels_and_planes(tmp_path: Path) -> None:
    data = load(make_cifar(tmp_path))
    assert (data.channels, data.size) == (3, (32, 32))
    assert data.sizes == {"train": 30, "validation": 10, "test": 10}
    assert data.classes[:2] == ("airplane", "automobile")
    raw = np.frombuffer((tmp_path / "test_batch.bin").read_bytes(), np.uint8)
    for i in range(10):
        record = raw[i * RECORD : (i + 1) * RECORD]
        assert data.test.labels[i] == record[0]
        for plane in range(3):
            expected = record[1 + 1024 * plane : 1 + 1024 * (plane + 1)].reshape(32, 32)
            assert np.array_equal(data.test.images[i, plane].numpy(), expected)


def test_cifar_class_names_come_from_the_meta_file(tmp_path: Path) -> None:
    spec = make_cifar(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"kind {i}" for i in range(10)) + "\n\n")
    assert load(spec).classes == tuple(f"kind {i}" for i in range(10))


@pytest.mark.parametrize("packed", [False, True])
def test_idx_values_become_grey_images_and_label_indices(tmp_path: Path, packed: bool) -> None:
    data = load(make_idx(tmp_path, packed))
    assert (data.channels, data.size, data.classes) == (1, (6, 5), ("3", "4", "5", "6"))
    rng = np.random.default_rng(0)
    rng.integers(0, 256, (40, 6, 5))
    assert np.array_equal(data.test.images[:, 0].numpy(), rng.integers(0, 256, (8, 6, 5)))
    assert data.test.labels.tolist() == [0, 1, 2, 3] * 2


def test_folder_classes_are_sorted_names_and_pixels_are_pillow_s(tmp_path: Path) -> None:
    data = load(make_folder(tmp_path))
    assert (data.channels, data.size, data.classes) == (3, (7, 9), ("ant", "zebra"))
    assert data.sizes == {"train": 6, "validation": 2, "test": 4}
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    image = pytest.importorskip("PIL.Image").open(tmp_path / "test" / "zebra" / "0.png")
    assert np.array_equal(data.test.images[2].permute(1, 2, 0).numpy(), np.asarray(image))


def test_folder_of_grey_files_has_one_channel_until_one_is_coloured(tmp_path: Path) -> None:
    ramp = np.arange(64).reshape(8, 8)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            save(tmp_path / split / name / "x.png", ramp)
    grey = load(f"folder:{tmp_path}")
    assert grey.channels == 1
    assert grey.sizes == {"train": 2, "validation": 2, "test": 2}
    assert np.array_equal(grey.test.images[0, 0].numpy(), ramp)
    save(tmp_path / "val" / "b" / "x.png", ramp, "RGBA")
    colour = load(f"folder:{tmp_path}")
    assert colour.channels == 3
    assert np.array_equal(colour.test.images[0].numpy(), np.stack([ramp] * 3))


def test_folder_leaves_out_hidden_and_other_files(tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    before = load(spec).hash
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "ant" / "notes.txt").write_text("x")
    (tmp_path / "train" / "ant" / "._0.png").write_bytes(b"x")
    assert load(spec).hash == before


def test_folder_order_is_not_the_file_system_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_folder(tmp_path)
    genuine = os.scandir
    hashes = set()
    for backwards in (False, True):

        @contextmanager
        def scandir(path: Path, backwards: bool = backwards) -> Iterator[list[os.DirEntry[str]]]:
            with genuine(path) as entries:
                yield sorted(entries, key=lambda entry: entry.name, reverse=backwards)

        with monkeypatch.context() as patch:
            patch.setattr("omniconv.tasks.folder.os.scandir", scandir)
            hashes.add(load(spec).hash)
    assert len(hashes) == 1


def test_transparent_palette_images_are_read(tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    path = tmp_path / "test" / "ant" / "0.png"
    image = pytest.importorskip("PIL.Image").open(path).convert("P")
    image.save(path, transparency=bytes(range(256)))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(load(spec).test.images[0].permute(1, 2, 0).numpy(), expected)


def test_limit_decodes_only_the_images_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omniconv.tasks import folder

    spec = make_folder(tmp_path)
    read: list[Path] = []
    decode = folder.decode
    monkeypatch.setattr(folder, "decode", lambda path: read.append(path) or decode(path))
    data = load(spec, limit_train=2)
    assert len(read) == len(set(read)) == sum(data.sizes.values()) == 2 + 2 + 4


@pytest.mark.parametrize("kind", MAKERS)
def test_loaded_tensors_are_contiguous_and_the_splits_disjoint(tmp_path: Path, kind: str) -> None:
    data = load(MAKERS[kind](tmp_path))
    seen: set[bytes] = set()
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.images.is_contiguous()
        assert split.labels.is_contiguous()
        images = {image.numpy().tobytes() for image in split.images}
        assert len(images) == len(split.labels)
        assert not images & seen
        seen |= images


# ------------------------------------------------------------------------------- bad files


def break_file(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)


CIFAR_CASES: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("test_batch.bin", None, "does not exist"),
    "empty": ("data_batch_4.bin", b"", "records of 3073 bytes.*got 0 bytes"),
    "truncated": ("data_batch_1.bin", cifar_bytes([1, 2], 0)[:-1], "got 6145 bytes"),
    "extended": ("test_batch.bin", cifar_bytes([1, 2], 0) + b"x", "got 6147 bytes"),
    "label": ("data_batch_4.bin", cifar_bytes([1, 12], 0), "got label 12 in record 1"),
}


@pytest.mark.parametrize("case", CIFAR_CASES)
def test_bad_cifar_file(tmp_path: Path, case: str) -> None:
    spec = make_cifar(tmp_path)
    name, content, message = CIFAR_CASES[case]
    break_file(tmp_path / name, content)
    text = refusal(spec)
    assert str(tmp_path / name) in text
    assert re.search(message, text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", r"10 different printable class names.*got \('a', 'b'\)"),
        (b"a\n" * 10, "10 different printable class names.*got"),
        (b"\xff\xfe", "not UTF-8"),
        ("\n".join(f"a\x1b{i}" for i in range(10)).encode(), r"printable.*got \('a.x1b0'"),
    ],
    ids=["few", "twice", "encoding", "escapes"],
)
def test_bad_cifar_class_names(tmp_path: Path, content: bytes, message: str) -> None:
    spec = make_cifar(tmp_path)
    (tmp_path / "batches.meta.txt").write_bytes(content)
    text = refusal(spec)
    assert "batches.meta.txt" in text
    assert re.search(message, text)


def test_cifar_without_a_train_file(tmp_path: Path) -> None:
    spec = make_cifar(tmp_path)
    for path in tmp_path.glob("data_batch_*"):
        path.unlink()
    assert re.search("at least one of data_batch_1.bin to data_batch_5.bin", refusal(spec))


def test_cifar_without_one_class_in_test(tmp_path: Path) -> None:
    spec = make_cifar(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(cifar_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 8], 0))
    text = refusal(spec)
    assert str(tmp_path) in text
    assert re.search("at least 1 test image.s. of every class, got 0 of class 'truck'", text)


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
EIGHT = np.arange(8) % 4 + 3
IDX_CASES: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("train-images-idx3-ubyte", None, "does not exist"),
    "empty": (IMAGES, b"", r"magic 2051.*got 0 bytes"),
    "magic": (IMAGES, idx_bytes(EIGHT) + bytes(8), "magic 2051.*got magic 2049"),
    "swapped": (LABELS, idx_bytes(np.zeros((8, 6, 5))), "magic 2049.*got magic 2051"),
    "truncated": (IMAGES, idx_bytes(np.zeros((8, 6, 5)))[:-1], "8 x 6 x 5 bytes.*got 239"),
    "extended": (IMAGES, idx_bytes(np.zeros((8, 6, 5))) + b"x", "8 x 6 x 5 bytes.*got more"),
    "none": (IMAGES, idx_bytes(np.zeros((0, 6, 5))), "0 x 6 x 5 bytes .one or more."),
    "huge": (IMAGES, struct.pack(">4I", 2051, *[2**32 - 1] * 3) + bytes(9), "declares, got 9"),
    "count": (LABELS, idx_bytes(EIGHT[:7]), "one label for each of the 8 images.*got 7"),
    "size": (IMAGES, idx_bytes(np.zeros((8, 5, 5))), "train size 6 x 5, got 5 x 5"),
    "label": (LABELS, idx_bytes(EIGHT + 1), r"occur in train \(3, 4, 5, 6\), got 7"),
}


@pytest.mark.parametrize("case", IDX_CASES)
def test_bad_idx_file(tmp_path: Path, case: str) -> None:
    spec = make_idx(tmp_path)
    name, content, message = IDX_CASES[case]
    break_file(tmp_path / name, content)
    text = refusal(spec)
    assert str(tmp_path / name) in text
    assert re.search(message, text)


@pytest.mark.parametrize(
    "content",
    [b"no gzip at all", gzip.compress(idx_bytes(EIGHT))[:-9], b"\x1f\x8b\x08" + b"a" * 40],
    ids=["plain", "cut", "noise"],
)
def test_bad_gzip_file(tmp_path: Path, content: bytes) -> None:
    spec = make_idx(tmp_path, packed=True)
    path = tmp_path / f"{LABELS}.gz"
    path.write_bytes(content)
    text = refusal(spec)
    assert str(path) in text
    assert "cannot be read" in text


def test_images_of_two_sizes(tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    path = tmp_path / "test" / "ant" / "1.png"
    save(path, np.zeros((9, 7, 3)))
    text = refusal(spec)
    assert str(path) in text
    assert re.search("7 x 9, got 9 x 7", text)


def test_image_that_is_none_or_truncated_or_of_16_bits(tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    path = tmp_path / "train" / "ant" / "0.png"
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        text = refusal(spec)
        assert str(path) in text
        assert "an image of 8 bits per channel" in text
    pytest.importorskip("PIL.Image").fromarray(np.zeros((7, 9), np.uint16)).save(path)
    assert re.search("0.png' must be an image of 8 bits per channel.*I;16", refusal(spec))


def test_image_of_a_billion_pixels(tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    path = tmp_path / "train" / "ant" / "0.png"
    chunks = b""
    size = struct.pack(">2I5B", 30_000, 30_000, 8, 0, 0, 0, 0)
    for body in (b"IHDR" + size, b"IDAT" + zlib.compress(bytes(9))):
        chunks += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert re.search("0.png' must be an image .*cannot be read: .*exceeds limit", refusal(spec))


def test_without_pillow_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"^data .folder:DIR. needs the package pillow: pip inst"):
        load(spec)


def test_a_decoder_outside_the_list_does_not_run(tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    path = tmp_path / "train" / "ant" / "0.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\nshowpage\n")
    assert re.search("0.png' must be an image .*cannot identify", refusal(spec))


def test_missing_empty_and_unknown_class_folders(tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    (tmp_path / "test" / "anty").mkdir()
    assert re.search(r"only class folders.*got 'anty' \(did you mean 'ant'\?\)", refusal(spec))
    (tmp_path / "test" / "anty").rmdir()
    (tmp_path / "train" / "newt").mkdir()
    assert re.search(r"newt' must be a folder of images .*got none", refusal(spec))
    save(tmp_path / "train" / "newt" / "0.png", np.zeros((7, 9, 3)))
    assert re.search("at least 2 train .*got 1 of class 'newt'", refusal(spec))
    save(tmp_path / "train" / "newt" / "1.png", np.zeros((7, 9, 3)))
    assert re.search("at least 1 test .*got 0 of class 'newt'", refusal(spec))
    shutil.rmtree(tmp_path / "test")
    assert re.search("test' must be a folder .*No such file", refusal(spec))
    (tmp_path / "test").mkdir()
    assert re.search("test' must be a folder .*got none", refusal(spec))
    shutil.rmtree(tmp_path / "train")
    assert re.search("train' must be a folder", refusal(spec))


def test_one_class_is_too_few(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i in range(2):
            save(tmp_path / split / "only" / f"{i}.png", np.zeros((7, 9)))
    assert re.search("at least 2 classes, got 1", refusal(f"folder:{tmp_path}"))


def test_class_name_that_cannot_be_printed(tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    os.mkdir(os.fsencode(tmp_path / "train") + b"/\xff")
    assert re.search("printable class names, got '.udcff'", refusal(spec))


@pytest.mark.parametrize("kind", MAKERS)
def test_directory_pipe_and_dead_link_in_place_of_a_file(tmp_path: Path, kind: str) -> None:
    spec = MAKERS[kind](tmp_path)
    path = sorted(p for p in tmp_path.rglob("*") if p.is_file())[0]
    for replace in (Path.mkdir, os.mkfifo, lambda p: p.symlink_to("nowhere")):
        path.unlink() if not path.is_dir() else path.rmdir()
        replace(path)
        text = refusal(spec)
        assert str(path) in text
        assert "must be" in text


@pytest.mark.parametrize("kind", MAKERS)
def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    spec = MAKERS[kind](tmp_path)

    def denied(path: object, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    monkeypatch.setattr("io.open", denied)
    text = refusal(spec)
    assert str(tmp_path) in text
    assert re.search("cannot be read: .*Permission denied", text)


@pytest.mark.parametrize("kind", ["cifar10", "idx", "folder"])
def test_folder_argument_that_is_missing_or_a_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("nothing", "file", "a\nb", "a\0b"):
        text = refusal(f"{kind}:{tmp_path}/{name}")
        assert "must be a folder, but there is none" in text
        assert repr(f"{tmp_path}/{name}") in text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar", r"data must be 'mnist5k', cifar10:DIR, .*did you mean 'cifar10'"),
        ("mnist5", r"did you mean 'mnist5k'"),
        ("", "data must be .*got ''"),
        ("cifar10", "got 'cifar10' without a folder"),
        ("idx:", "got 'idx:' without a folder"),
        ("mnist5k:/tmp", "data must be"),
        ("pickle:/tmp/x", "got 'pickle:/tmp/x'"),
    ],
)
def test_unknown_data_name(spec: str, message: str) -> None:
    assert re.search(message, refusal(spec))


def test_data_name_of_another_type() -> None:
    with pytest.raises(TypeError, match=r"data must be .*got 5 \(int\)"):
        load(5)  # type: ignore[arg-type]


def damage(content: bytes, rng: random.Random) -> bytes:
    """``content`` cut, extended, with a few bytes changed, or with a piece taken out."""
    at = rng.randrange(len(content))
    match rng.randrange(4):
        case 0:
            return content[:at]
        case 1:
            return content + rng.randbytes(rng.randrange(1, 99))
        case 2:
            return content[:at] + content[at + rng.randrange(1, 99) :]
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.choice([at, rng.randrange(min(40, len(content)))])] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_files_load_or_end_in_one_sentence(tmp_path: Path, kind: str) -> None:
    spec = MAKERS[kind](tmp_path)
    paths = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    rng = random.Random(kind)
    sentences = []
    for _ in range(60):
        path = rng.choice(paths)
        whole = path.read_bytes()
        path.write_bytes(damage(whole, rng))
        try:
            assert sum(load(spec).sizes.values()) > 0
        except ValueError as error:
            sentences.append(str(error))
        path.write_bytes(whole)
    for text in sentences:
        assert str(tmp_path) in text
        assert " must " in text
        assert "\n" not in text
    assert len(sentences) > 15
