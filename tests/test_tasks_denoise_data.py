"""Images without labels: right pixels in disjoint splits, one clear error otherwise."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from omniconv.tasks import photographs, skimage_files
from omniconv.tasks.denoise import from_content, load
from omniconv.tasks.images import Images, draw
from omniconv.tasks.photographs import parse

Image = pytest.importorskip("PIL.Image", reason="images need pillow")

BSD = Path(os.environ.get("OMNICONV_DATA", Path(__file__).parents[2] / "shared" / "data")) / "bsd"
PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "grass", "hubble_deep_field", "immunohistochemistry", "rocket"),
    "validation": ("cell", "coins"),
    "test": ("camera", "chelsea", "coffee", "gravel", "retina"),
}


def save(path: Path, *shape: int, seed: int = 0) -> np.ndarray:
    """Write random pixels, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def fill(root: Path, **counts: int) -> dict[str, list[np.ndarray]]:
    """Grey images 41 x 43 in folders below ``root`` (``here``: in it)."""
    made: dict[str, list[np.ndarray]] = {}
    for name, count in counts.items():
        folder = root if name == "here" else root / name
        made[name] = [
            save(folder / f"{i:03}.png", 41, 43, seed=sum(counts.values()) * len(made) + i)
            for i in range(count)
        ]
    return made


def refusal(spec: object, error: type[Exception] = ValueError, limit: int | None = None) -> str:
    """The one sentence that loading ``spec`` ends in."""
    with pytest.raises(error) as caught:
        load(spec, limit)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


# ---------------------------------------------------------------------------- the argument


def test_the_argument_names_data_and_noise() -> None:
    assert parse("skimage")[::2] == ("skimage", 25.0)
    assert parse("skimage,sigma=50")[::2] == ("skimage", 50.0)
    assert parse("skimage,sigma=12.5")[::2] == ("skimage", 12.5)
    assert parse("skimage,sigma=blind")[::2] == ("skimage", None)
    assert parse("images:/a,b/c") == ("images", Path("/a,b/c"), 25.0)
    assert parse("images:/a,b=c/d,sigma=blind") == ("images", Path("/a,b=c/d"), None)
    assert parse("bsd:a:b,sigma=15") == ("bsd", Path("a:b"), 15.0)
    assert parse("images:/a,b=c/") == ("images", Path("/a,b=c"), 25.0)
    assert parse("images:~/x")[1] == Path.home() / "x"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "data must be 'skimage', images:DIR or bsd:DIR, with"),
        ("skimages", r"got 'skimages' \(did you mean 'skimage'\?\)$"),
        ("mnist5k", "got 'mnist5k'$"),
        ("skimage:/tmp", "got 'skimage:/tmp' with a folder$"),
        ("images", "got 'images' without a folder$"),
        ("bsd:", "got 'bsd:' without a folder$"),
        ("bsd:,sigma=15", "got 'bsd:,sigma=15' without a folder$"),
        ("skimage,sgma=50", r"got option 'sgma' in 'skimage,sgma=50' \(did you mean 'sigma'\?\)$"),
        ("skimage,sigma=50,sigma=25", "got 'skimage,sigma=50,sigma=25'"),
        ("skimage,50", "got 'skimage,50'"),
        *(
            (f"skimage,sigma={value}", "^sigma must be 'blind' or a number above 0 and up to 255")
            for value in ("0", "", "-1", "255.1", "nan", "inf", "1e1", "Blind", " 25", "2_5", "٣")
        ),
    ],
)
def test_a_malformed_argument_is_refused(spec: str, message: str) -> None:
    assert re.search(message, refusal(spec))


@pytest.mark.parametrize("spec", [None, 25, b"skimage", Path("skimage")])
def test_an_argument_of_another_type_is_refused(spec: object) -> None:
    assert re.search(r"^data must be 'skimage'.*, got .* \(\w+\)$", refusal(spec, TypeError))


# ---------------------------------------------------------------------------- scikit-image's


@pytest.fixture(scope="module")
def shipped() -> Images:
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    return load("skimage")


def test_photographs_are_those_of_scikit_image_in_grey(shipped: Images) -> None:
    color = pytest.importorskip("skimage.color")
    data = pytest.importorskip("skimage.data")
    assert shipped.sizes == {"train": 6, "validation": 2, "test": 5}
    assert (shipped.channels, shipped.sigma, shipped.classes) == (1, 25.0, ())
    for split, names in PHOTOGRAPHS.items():
        for name, image in zip(names, getattr(shipped, split), strict=True):
            pixels = getattr(data, name)()
            if name == "retina":
                pixels = pixels[577:833, 577:833]
            if pixels.ndim == 3:
                pixels = np.floor(255 * color.rgb2gray(pixels) + 0.5 + 1e-9)
            assert image.dtype == torch.uint8
            assert image.is_contiguous()
            assert np.array_equal(image[0].numpy(), pixels), name


def hashes(image: np.ndarray, size: int, stride: int = 1) -> np.ndarray:
    """A 64-bit hash of each ``size`` x ``size`` patch."""
    odd = np.random.default_rng(0).integers(1, 2**62, (2, size), dtype=np.uint64) * 2 + 1
    pixels = image.astype(np.uint64)
    height, width = (extent - size + 1 for extent in pixels.shape)
    lines = sum(pixels[:, i : width + i] * odd[0, i] for i in range(size))
    return sum(lines[i : height + i] * odd[1, i] for i in range(size))[::stride, ::stride].ravel()


def turned(image: np.ndarray) -> Iterator[np.ndarray]:
    for way in (image, image.T):
        yield from (way, way[::-1], way[:, ::-1], way[::-1, ::-1])


def textured(image: np.ndarray) -> np.ndarray:
    """Whether each 8 x 8 tile varies by more than 3 grey levels: skies are alike everywhere."""
    height, width = (extent // 8 for extent in image.shape)
    tiles = image[: 8 * height, : 8 * width].reshape(height, 8, width, 8)
    return (np.ptp(tiles, axis=(1, 3)) > 3).ravel()


def shared_tiles(judged: Sequence[torch.Tensor], learned: Sequence[torch.Tensor]) -> int:
    """How many textured 8 x 8 tiles of ``judged``, in any orientation, occur in ``learned``.

    A common patch of 15 x 15 pixels holds at least one such tile.
    """
    ways = [way for image in judged for way in turned(image[0].numpy())]
    tiles = np.concatenate([hashes(way, 8, 8)[textured(way)] for way in ways])
    places = np.concatenate([hashes(image[0].numpy(), 8) for image in learned])
    return int(np.isin(tiles, places).sum())


def test_splits_share_no_patch(shipped: Images) -> None:
    assert shared_tiles(shipped.validation + shipped.test, shipped.train) == 0
    assert shared_tiles(shipped.test, shipped.validation) == 0


def test_shared_patches_would_be_found(shipped: Images) -> None:
    cut = shipped.train[2].transpose(1, 2).flip(1)[:, 100:115, 31:46]
    assert shared_tiles((cut.contiguous(),), shipped.train) >= 1


def test_licence_and_source_are_stated(shipped: Images) -> None:
    for names in PHOTOGRAPHS.values():
        for name in names:
            assert {"immunohistochemistry": "ihc"}.get(name, name) in shipped.licence
    assert shipped.licence.startswith("CC0 (")
    assert "scikit-image" in shipped.source


def test_reading_imports_no_scikit_image() -> None:
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    code = (
        "import sys; from omniconv.tasks.denoise import load; load('skimage');"
        "print([m for m in ('skimage', 'scipy', 'imageio', 'networkx') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_without_packages_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert refusal("skimage", ImportError) == (
        "data 'skimage' needs the package scikit-image: pip install \"omniconv[compare]\""
    )
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert refusal("images:.", ImportError) == (
        "data 'images' needs the package pillow: pip install \"omniconv[compare]\""
    )


def test_another_or_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "skimage"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    wanted = r"must be the file of scikit-image 0\.26 \(SHA-256 88431cd9653c\.\.\.\)"
    first = re.escape(str(package / "data" / "astronaut.png"))
    assert re.fullmatch(f"'{first}' {wanted}, but it does not exist", refusal("skimage"))
    save(package / "data" / "astronaut.png", 512, 512, 3)
    text = refusal("skimage")
    assert re.fullmatch(f"'{first}' {wanted}, got [0-9a-f]{{12}}...: pip install .*", text)


# ---------------------------------------------------------------------------- folders


def test_folders_of_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    made = fill(tmp_path, train=3, validation=2, test=4)
    (tmp_path / "train" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden.png").write_text("no image")
    data = load(f"images:{tmp_path},sigma=50")
    assert (data.name, data.channels, data.sigma) == (tmp_path.name, 1, 50.0)
    assert data.sizes == {"train": 3, "validation": 2, "test": 4}
    for split, images in made.items():
        for image, pixels in zip(getattr(data, split), images, strict=True):
            assert np.array_equal(image.numpy(), pixels[None])


def test_val_is_validation(tmp_path: Path) -> None:
    made = fill(tmp_path, train=3, val=2, test=1)
    data = load(f"images:{tmp_path}")
    assert np.array_equal(data.validation[1][0].numpy(), made["val"][1])
    fill(tmp_path, validation=1)
    assert refusal(f"images:{tmp_path}") == (f"'{tmp_path}' must hold validation or val, got both")


def test_validation_is_a_tenth_of_train_and_always_the_same(tmp_path: Path) -> None:
    made = fill(tmp_path, train=20, test=1)
    first, second = load(f"images:{tmp_path}"), load(f"images:{tmp_path}")
    assert first.sizes == {"train": 18, "validation": 2, "test": 1}
    assert first.hash == second.hash
    kept = {image.numpy().tobytes() for image in first.train + first.validation}
    assert kept == {pixels.tobytes() for pixels in made["train"]}


def test_one_folder_is_split(tmp_path: Path) -> None:
    made = fill(tmp_path, here=20)
    data = load(f"images:{tmp_path}")
    assert data.sizes == {"train": 14, "validation": 2, "test": 4}
    kept = [image.numpy().tobytes() for image in data.train + data.validation + data.test]
    assert sorted(kept) == sorted(pixels.tobytes() for pixels in made["here"])
    assert load(f"images:{tmp_path}").hash == data.hash


def test_three_images_are_enough(tmp_path: Path) -> None:
    fill(tmp_path, here=3)
    assert load(f"images:{tmp_path}").sizes == {"train": 1, "validation": 1, "test": 1}
    (tmp_path / "002.png").unlink()
    assert refusal(f"images:{tmp_path}") == (
        f"'{tmp_path}' must hold at least 3 images, one for each split, got 2"
    )


def test_sizes_may_differ_and_one_colour_image_makes_all_colour(tmp_path: Path) -> None:
    grey = save(tmp_path / "train" / "a.png", 40, 90, seed=1)
    save(tmp_path / "validation" / "b.png", 11, 12, seed=2)
    colour = save(tmp_path / "test" / "c.png", 33, 11, 3, seed=3)
    data = load(f"images:{tmp_path}")
    assert data.channels == 3
    assert data.train[0].shape == (3, 40, 90)
    assert np.array_equal(data.train[0].numpy(), np.stack([grey] * 3))
    assert np.array_equal(data.test[0].numpy(), np.moveaxis(colour, 2, 0))
    assert all(image.is_contiguous() for image in data.train + data.validation + data.test)


def test_limits_are_nested_and_leave_the_other_splits(tmp_path: Path) -> None:
    fill(tmp_path, train=20, test=2)
    whole = load(f"images:{tmp_path}")
    kept: set[bytes] = set()
    for size in (1, 5, 18):
        data = load(f"images:{tmp_path}", size)
        assert data.sizes == {"train": size, "validation": 2, "test": 2}
        assert all(map(torch.equal, data.validation, whole.validation))
        now = {image.numpy().tobytes() for image in data.train}
        assert kept < now
        kept = now
    for limit in (0, 19):
        text = refusal(f"images:{tmp_path}", limit=limit)
        assert text == f"limit_train must be an int of at least 1 and at most 18, got {limit}"
    assert "limit_train must be an int" in refusal(f"images:{tmp_path}", TypeError, limit="5")  # type: ignore[arg-type]


def test_draws_are_fixed() -> None:
    assert draw(20, 4).tolist() == EXPECTED
    assert set(draw(20, 4)) < set(draw(20, 9))


EXPECTED = [2, 3, 11, 13]


@pytest.mark.parametrize(("split", "least"), [("train", 40), ("validation", 11), ("test", 11)])
def test_images_below_the_least_size_are_refused(tmp_path: Path, split: str, least: int) -> None:
    fill(tmp_path, train=2, validation=2, test=2)
    path = tmp_path / split / "small.png"
    save(path, 60, least - 1)
    assert refusal(f"images:{tmp_path}") == (
        f"'{path}' must have at least {least} x {least} pixels, got 60 x {least - 1}"
    )
    save(path, 60, least)
    assert load(f"images:{tmp_path}").sizes[split] == 3


@pytest.mark.parametrize(
    ("one", "other"), [("train", "test"), ("train", "validation"), ("validation", "test")]
)
def test_an_image_in_two_splits_is_refused(tmp_path: Path, one: str, other: str) -> None:
    fill(tmp_path, train=2, validation=2, test=2)
    source, copy = tmp_path / one / "001.png", tmp_path / other / "copy.bmp"
    Image.open(source).save(copy)
    assert refusal(f"images:{tmp_path}") == (
        f"'{copy}' ({other}) must be no {one} image, but it has the pixels of '{source}'"
    )


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert refusal(f"images:{gone}") == f"'{gone}' must be a folder, but there is none"
    assert refusal(f"bsd:{gone}") == f"'{gone}' must be a folder, but there is none"
    assert "must be a folder of images (.bmp," in refusal(f"images:{tmp_path}")
    fill(tmp_path, train=2)
    text = refusal(f"images:{tmp_path}")
    assert f"'{tmp_path / 'test'}' must be a folder of images" in text
    assert text.endswith("cannot be read: No such file or directory")
    (tmp_path / "test").mkdir()
    assert refusal(f"images:{tmp_path}").endswith("got none")
    path = tmp_path / "test" / "a.png"
    path.write_bytes(b"no image")
    text = refusal(f"images:{tmp_path}")
    assert text.startswith(f"'{path}' must be an image of 8 bits per channel")
    whole = save(path, 50, 50)
    path.write_bytes(path.read_bytes()[: whole.size // 2])
    assert refusal(f"images:{tmp_path}").startswith(f"'{path}' must be an image of 8 bits")
    Image.fromarray(np.zeros((50, 50), np.uint16)).save(path)
    assert "got mode 'I;16'" in refusal(f"images:{tmp_path}")


def test_a_single_train_image_leaves_none_for_validation(tmp_path: Path) -> None:
    fill(tmp_path, train=1, test=1)
    assert refusal(f"images:{tmp_path}") == (
        f"image folder '{tmp_path}' must hold at least 2 train images, one of them for "
        "validation, got 1"
    )


# ---------------------------------------------------------------------------- BSD


def test_bsd_is_tested_on_two_sets(tmp_path: Path) -> None:
    made = fill(tmp_path, Train400=20, BSD68=2, Set12=3)
    data = load(f"bsd:{tmp_path},sigma=blind")
    assert list(data.tests) == ["BSD68", "Set12"]
    assert data.sigma is None
    assert data.sizes == {"train": 18, "validation": 2, "test": 2}
    assert data.test is data.tests["BSD68"]
    assert np.array_equal(data.tests["Set12"][2][0].numpy(), made["Set12"][2])
    (tmp_path / "BSD68").rename(tmp_path / "elsewhere")
    assert f"'{tmp_path / 'bsd68'}' must be a folder of images" in refusal(f"bsd:{tmp_path}")


@pytest.mark.skipif(not BSD.is_dir(), reason=f"no images in {BSD}")
def test_the_real_bsd() -> None:
    data = load(f"bsd:{BSD}")
    assert data.channels == 1
    assert {name: len(images) for name, images in data.tests.items()} == {"BSD68": 68, "Set12": 12}
    assert data.sizes == {"train": 360, "validation": 40, "test": 68}
    assert {tuple(image.shape) for image in data.train} == {(1, 180, 180)}
    assert {tuple(sorted(image.shape)) for image in data.test} == {(1, 321, 481)}
    assert [tuple(image.shape[1:]) for image in data.tests["Set12"]] == [(256, 256)] * 7 + [
        (512, 512)
    ] * 5
    assert shared_tiles(data.test[:8], data.train[10:50]) == 0


@pytest.mark.skipif(not BSD.is_dir(), reason=f"no images in {BSD}")
def test_a_part_of_set12_s_starfish_is_in_train400() -> None:
    data = load(f"bsd:{BSD}")
    parts = [shared_tiles([image], data.train[10:20]) > 0 for image in data.tests["Set12"][2:5]]
    assert parts == [False, True, False]


# ---------------------------------------------------------------------------- content and hash


def test_content_survives_a_file_that_cannot_run_code(tmp_path: Path) -> None:
    fill(tmp_path, Train400=4, BSD68=2, Set12=1)
    for noise in ("blind", "12.5"):
        data = load(f"bsd:{tmp_path},sigma={noise}")
        file = io.BytesIO()
        torch.save(data.to_content(), file)
        file.seek(0)
        again = from_content(torch.load(file, weights_only=True))
        assert again.hash == data.hash
        for name in ("name", "source", "licence", "channels", "sigma", "sizes", "classes"):
            assert getattr(again, name) == getattr(data, name)
        assert list(again.tests) == list(data.tests)
        assert all(map(torch.equal, again.train, data.train))
        assert all(map(torch.equal, again.tests["Set12"], data.tests["Set12"]))


def test_the_hash_tells_noise_pixels_and_splits_apart(tmp_path: Path) -> None:
    fill(tmp_path, train=3, validation=2, test=2)
    spec = f"images:{tmp_path}"
    found = [load(name).hash for name in (spec, f"{spec},sigma=50", f"{spec},sigma=blind")]
    found.append(load(spec, 2).hash)
    path = tmp_path / "test" / "001.png"
    pixels = np.array(Image.open(path))
    pixels[3, 4] ^= 1
    Image.fromarray(pixels).save(path)
    found.append(load(spec).hash)
    path.rename(tmp_path / "validation" / "zzz.png")
    found.append(load(spec).hash)
    assert len(set(found)) == 6
    assert load(f"{spec},sigma=25").hash == found[-1]


def test_every_photograph_has_a_place() -> None:
    assert sum(skimage_files.COUNTS) == len(skimage_files.SHA256) == 13
    assert photographs.SIGMA == 25.0
