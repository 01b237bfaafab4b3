"""A whole comparison of the denoising task, small: steps, decibels, a search, extra figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

import omniconv.compare as compare
from omniconv.compare import progress


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for index in range(6):
        coarse = draw.integers(0, 255, (6, 7)).astype(np.uint8)
        Image.fromarray(coarse).resize((48, 44), Image.Resampling.BICUBIC).save(
            folder / f"{index}.png"
        )
    plan = compare.parse(
        {
            "task": "denoise",
            "data": f"images:{folder},sigma=30",
            "backbone": "dncnn3",
            "width": 4,
            "rows": ["conv", "weighted(kernel_size=5, search=3)"],
            "frontier": None,
            "seeds": 2,
            "budget": "12steps",
            "batch_size": 4,
            "tuning": {"budget": "3steps", "factors": [1, 3]},
            "threads": 1,
        }
    )
    out = tmp_path_factory.mktemp("done")
    code, found = compare.run(plan, out, progress=False)
    assert code == 0
    return out, found


def test_scores_are_decibels_after_a_number_of_steps(done):
    _, found = done
    assert (found["unit"], found["metric"]["unit"], found["metric"]["margin"]) == (
        "steps",
        "dB",
        0.1,
    )
    assert 15 < found["metric"]["chance"] < 20  # -20 log10(30 / 255) = 18.6
    for row in found["rows"]:
        for trial in row["trials"]:
            assert [leg["at"] for leg in trial["curve"]] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 12]
            assert 0 < trial["score"] < 40
        assert 0 < row["extras"]["SSIM"] < 1
        assert row["pictures"]["attention"] == []
        assert row["pictures"]["receptive_field"]["area"] < 0.2
    assert "dB" in progress.final_table(found).splitlines()[0]
    assert "dB" in (done[0] / "report.html").read_text(encoding="utf-8")


def test_the_density_is_the_best_of_the_search(done):
    row = done[1]["rows"][1]
    assert row["label"] == "weighted(kernel_size=5, search=3)"
    assert len(row["search"]) == 3
    assert row["search"][0]["density"] == pytest.approx([0.525, 1.0])  # the middle of the box
    best = max(row["search"], key=lambda entry: entry["validation_score"])
    assert row["arguments"] == {"density": best["density"], "kernel_size": 5}
    assert [entry["lr"] for entry in row["tuning"]] == [0.001, 0.003]


def test_the_report_is_made_again_from_the_store_alone(done):
    out, found = done
    before = {name: (out / name).read_bytes() for name in ("report.html", "results.csv")}
    for name in before:
        (out / name).unlink()
    code, again = compare.rebuild(out)
    assert code == 0
    assert again | {"created": ""} == json.loads(json.dumps(found)) | {"created": ""}
    assert (out / "results.csv").read_bytes() == before["results.csv"]
    assert (out / "report.html").exists()


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_a_store_is_refused(tmp_path, folder):
    with pytest.raises(compare.Refused, match="store must be the folder of an earlier comparison"):
        compare.rebuild(tmp_path / folder)
    assert list(tmp_path.iterdir()) == []
