"""Building kernels: the cache, the compiler, and what happens where one of them is missing."""

from __future__ import annotations

import os
import re
import runpy
import signal
import stat
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import pytest
import torch

import omniconv as oc
from omniconv.kernels import backend, build, cache

# Takes one argument: what making the file does.
MAKER = """
import os, sys, time
from omniconv.kernels.cache import find_or_make
def make(path):
    with open(os.environ["LOG"], "a") as log:
        log.write("made\\n")
    path.write_text("half")
    time.sleep(float(sys.argv[1]))
    path.write_text("whole")
print(find_or_make("thing-1.so", make).read_text())
"""

COMPILER = """#!{python}
import pathlib, sys
if "--version" in sys.argv:
    print("compiler 1.0")
elif {fails}:
    sys.exit("cpu.cpp:1: error: nothing works")
else:
    pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_text(" ".join(sys.argv))
    with open({log!r}, "a") as log:
        log.write("built\\n")
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A cache of its own for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("OMNICONV_CACHE", str(folder))
    return folder


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that writes its command line into the library; returns how often it ran."""
    log = tmp_path / "log"
    path = tmp_path / "compiler"

    def write(fails: bool = False) -> None:
        path.write_text(COMPILER.format(python=sys.executable, fails=fails, log=str(log)))
        path.chmod(0o755)
        build._version.cache_clear()

    def runs() -> int:
        return log.read_text().count("built") if log.exists() else 0

    write()
    monkeypatch.setenv("CXX", str(path))
    runs.write = write
    yield runs
    build._version.cache_clear()


@pytest.fixture
def fresh(monkeypatch):
    """No kernel has been looked for in this process."""
    monkeypatch.setattr(backend, "_states", {})
    monkeypatch.setattr(backend, "_backend", "auto")


def in_a_process(seconds: float, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(seconds)]
    environment = os.environ | {"LOG": str(log)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_the_library_is_built_once_and_kept_private(home, compiler, capsys):
    assert build.find("dcls") is None
    path = build.library("dcls")
    assert capsys.readouterr().err.splitlines() == [
        "omniconv: building the kernel dcls, once, some 10 seconds"
    ]
    assert path.parent == home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert build.library("dcls") == build.find("dcls") == path
    assert compiler() == 1
    assert capsys.readouterr().err == ""
    assert sorted(p.name for p in home.iterdir()) == sorted([path.name, "dcls.lock"])
    words = path.read_text().split()
    assert "-ltorch_cpu" in words
    assert not {"-fopenmp", "-march=native", "-ffast-math"} & set(words)


@pytest.mark.parametrize("what", ["sources", "flags", "compiler", "torch", "architecture"])
def test_whatever_a_library_depends_on_is_in_its_name(home, compiler, tmp_path, monkeypatch, what):
    monkeypatch.setattr(build, "HERE", tmp_path)
    (tmp_path / "dcls").mkdir()
    (tmp_path / "dcls" / "cpu.cpp").write_text("int one;")
    (tmp_path / "dcls" / "notes.py").write_text("one")
    before = build._cached_name("dcls")
    (tmp_path / "dcls" / "notes.py").write_text("two")
    assert build._cached_name("dcls") == before
    if what == "sources":
        (tmp_path / "dcls" / "more.h").write_text("int two;")
    elif what == "flags":
        monkeypatch.setattr(build, "FLAGS", ("-O1",))
    elif what == "compiler":
        path = Path(os.environ["CXX"])
        path.write_text(path.read_text().replace("compiler 1.0", "compiler 1.1"))
        build._version.cache_clear()
    elif what == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    else:
        monkeypatch.setattr(build.platform, "machine", lambda: "vax")
    assert build._cached_name("dcls") != before


def test_eight_processes_at_once_build_once(home, tmp_path):
    log = tmp_path / "made"
    jobs = [in_a_process(0.3, log) for _ in range(8)]
    assert [job.communicate(timeout=60)[0] for job in jobs] == ["whole\n"] * 8
    assert log.read_text() == "made\n"


def test_a_build_that_was_killed_leaves_nothing(home, tmp_path):
    job = in_a_process(60, tmp_path / "made")
    until = time.monotonic() + 30
    while not list(home.glob("thing-1.so.*.part")) and time.monotonic() < until:
        time.sleep(0.01)
    assert list(home.glob("thing-1.so.*.part"))
    assert cache.find("thing-1.so") is None
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert cache.find_or_make("thing-1.so", lambda p: p.write_text("new")).read_text() == "new"
    assert sorted(p.name for p in home.iterdir()) == ["thing-1.so", "thing.lock"]


def test_a_build_that_fails_leaves_nothing(home, compiler):
    compiler.write(fails=True)
    with pytest.raises(build.CannotBuild, match=r"failed: cpu.cpp:1: error: nothing works$"):
        build.library("dcls")
    assert [p.name for p in home.iterdir()] == ["dcls.lock"]
    compiler.write()
    assert build.library("dcls").is_file()


def test_a_build_that_hangs_ends(home, compiler, monkeypatch):
    monkeypatch.setattr(build, "PATIENCE", 0.2)
    path = Path(os.environ["CXX"])
    path.write_text(f"#!{sys.executable}\nimport time; time.sleep(30)")
    with pytest.raises(build.CannotBuild, match="timed out"):
        build.library("dcls")


def test_the_cache_forgets_the_oldest(home):
    for i in range(cache.KEPT + 2):
        path = cache.find_or_make(f"thing-{i}.so", lambda p: p.write_text("it"))
        os.utime(path, (i, i))
    cache.find_or_make("other-1.so", lambda p: p.write_text("it"))
    # times are set after each file is made, so the last one is still the newest
    assert cache.find("thing-0.so") is None
    assert cache.find(f"thing-{cache.KEPT + 1}.so") is not None
    assert len(list(home.glob("thing-*.so"))) == cache.KEPT


def make_public(home: Path, monkeypatch) -> None:
    home.mkdir()
    home.chmod(0o755)


def make_foreign(home: Path, monkeypatch) -> None:
    home.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)


def make_link(home: Path, monkeypatch) -> None:
    (home.parent / "elsewhere").mkdir(mode=0o700)
    home.symlink_to(home.parent / "elsewhere")


def make_file(home: Path, monkeypatch) -> None:
    home.write_text("")


def make_unwritable(home: Path, monkeypatch) -> None:
    """As in a read-only home; root may write everywhere but there."""
    if os.geteuid():
        home.parent.joinpath("home").mkdir(mode=0o500)
        monkeypatch.setenv("OMNICONV_CACHE", str(home.parent / "home" / "cache"))
    elif sys.platform == "linux":
        monkeypatch.setenv("OMNICONV_CACHE", "/proc/omniconv")
    else:
        pytest.skip("root may write everywhere")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (make_public, "others may enter it; chmod 700"),
        (make_foreign, "it belongs to another user"),
        (make_link, "it is no folder"),
        (make_file, "File exists"),
        (make_unwritable, "cannot be used"),
    ],
)
def test_an_unusable_cache_is_not_used(home, compiler, fresh, monkeypatch, spoil, reason):
    spoil(home, monkeypatch)
    with pytest.raises(build.CannotBuild, match=reason):
        build.library("dcls")
    assert reason in backend.load("dcls").reason
    assert compiler() == 0
    assert not list(home.parent.rglob("*.so"))


def test_the_cache_is_the_platforms_unless_it_is_named(monkeypatch):
    monkeypatch.delenv("OMNICONV_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.folder() == Path("/caches/omniconv")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == Path("/home/someone/.cache/omniconv")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.folder() == Path("/home/someone/Library/Caches/omniconv")
    monkeypatch.setenv("OMNICONV_CACHE", "here")
    assert cache.folder() == Path.cwd() / "here"


def test_without_a_compiler_the_reference_computes_and_one_warning_says_so(
    home, fresh, monkeypatch
):
    layer = oc.DCLSConv2d(3, 4, 5, interpolation="gauss")
    monkeypatch.setattr(backend, "_backend", "torch")
    expected = layer.weight
    monkeypatch.setattr(backend, "_backend", "auto")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.warns(
        RuntimeWarning,
        match=r"^omniconv computes dcls by its torch reference, which is slower: no C\+\+ compiler "
        r"was found: none of g\+\+, clang\+\+, c\+\+$",
    ):
        found = layer.weight
    assert torch.equal(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer.weight, expected)


def test_a_named_compiler_that_is_not_there_is_named(home, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    with pytest.raises(build.CannotBuild, match="CXX is 'no-such-compiler'"):
        build.library("dcls")


def test_a_library_that_cannot_be_loaded_is_a_reason(home, compiler, fresh):
    state = backend.load("dcls")  # what this compiler builds is no library
    assert not state.path
    assert "cache/dcls-" in state.reason


def test_a_wheels_library_comes_first(home, compiler, tmp_path, monkeypatch):
    build.main(tmp_path / "wheel" / "prebuilt")
    assert compiler() == len(build.KERNELS)
    monkeypatch.setattr(build, "HERE", tmp_path / "wheel")
    (tmp_path / "wheel" / "dcls").mkdir()
    monkeypatch.setenv("CXX", "none is needed")
    stale = tmp_path / "wheel" / "prebuilt" / "dcls-0123.so"
    stale.write_text("of other sources")
    monkeypatch.setenv("OMNICONV_CACHE", "/nor/a/cache")
    right = tmp_path / "wheel" / "prebuilt" / build.wheel_name("dcls")
    right.write_text("of these")
    assert build.library("dcls") == build.find("dcls") == right


@pytest.mark.parametrize("name", ["cuda", "", "TORCH"])
def test_the_back_end_has_two_names(name, monkeypatch):
    with pytest.raises(ValueError, match=f"name must be one of 'auto', 'torch', got '{name}'"):
        backend.set_backend(name)


def test_the_environment_names_the_back_end(monkeypatch):
    monkeypatch.setenv("OMNICONV_BACKEND", "torch")
    assert runpy.run_path(backend.__file__)["get_backend"]() == "torch"
    monkeypatch.delenv("OMNICONV_BACKEND")
    assert runpy.run_path(backend.__file__)["get_backend"]() == "auto"
    monkeypatch.setenv("OMNICONV_BACKEND", "cuda")
    with pytest.raises(ValueError, match="OMNICONV_BACKEND must be one of 'auto', 'torch', got"):
        runpy.run_path(backend.__file__)


@pytest.fixture
def wheel_hook(monkeypatch):
    """The build hook, without the package that runs it."""
    interface = types.ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    path = Path(__file__).parents[1] / "tools" / "wheel_hook.py"
    return runpy.run_path(str(path))["PrebuiltKernels"]()


def test_a_wheel_names_its_platform_only_where_it_holds_libraries(
    wheel_hook, tmp_path, monkeypatch
):
    plain = {"force_include": {}, "pure_python": True, "tag": None}
    found = {"force_include": {}, "pure_python": True, "tag": None}
    monkeypatch.delenv("OMNICONV_PREBUILT", raising=False)
    wheel_hook.initialize("standard", found)
    assert found == plain
    monkeypatch.setenv("OMNICONV_PREBUILT", str(tmp_path))
    wheel_hook.initialize("editable", found)
    assert found == plain
    with pytest.raises(ValueError, match="OMNICONV_PREBUILT must be a folder of libraries"):
        wheel_hook.initialize("standard", found)
    (tmp_path / "dcls-1.so").write_text("")
    wheel_hook.initialize("standard", found)
    included = {str((tmp_path / "dcls-1.so").resolve()): "omniconv/kernels/prebuilt/dcls-1.so"}
    assert found["force_include"] == included
    assert found["pure_python"] is False
    assert re.fullmatch(r"py3-none-\w+", found["tag"])
