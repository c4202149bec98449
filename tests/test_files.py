"""What a user named is written whole or not at all, and nothing else is harmed."""

import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import captioner
from captioner.errors import CaptionerError
from captioner.files import check_file, is_plain, new_folder, whole_file

ROOT = str(Path(captioner.__file__).parents[1])
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX has these kinds of files")


def put(path: Path, text: str) -> None:
    check_file(path)
    with whole_file(path) as file:
        file.write(text)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_there_when_it_is_whole():
    with whole_file(Path("a.json")) as file:
        file.write("new")
        assert not Path("a.json").exists()
    assert Path("a.json").read_text() == "new" and os.listdir() == ["a.json"]


def test_where_writing_fails_the_file_before_stays():
    put(Path("a.json"), "old")
    with pytest.raises(ZeroDivisionError), whole_file(Path("a.json")) as file:
        file.write("new")
        raise ZeroDivisionError
    assert Path("a.json").read_text() == "old" and os.listdir() == ["a.json"]


@posix
def test_a_link_stays_and_leads_to_the_new_text(here):
    (here / "data").mkdir()
    Path("first").symlink_to("second")
    Path("second").symlink_to(here / "data" / "target")
    for text in ("made", "replaced"):
        put(Path("first"), text)
        assert Path("first").is_symlink() and Path("second").is_symlink()
        assert Path("data/target").read_text() == text
    assert sorted(os.listdir()) == ["data", "first", "second"] and os.listdir("data") == ["target"]


@posix
def test_all_names_of_a_file_have_the_new_text():
    put(Path("a"), "a long old text")
    os.link("a", "b")
    put(Path("a"), "new")
    assert Path("b").read_text() == "new" and Path("a").samefile("b") and sorted(os.listdir()) == ["a", "b"]


@posix
def test_permissions_stay():
    put(Path("a"), "old")
    assert stat.S_IMODE(Path("a").stat().st_mode) == 0o666 & ~current_umask()
    Path("a").chmod(0o600)
    put(Path("a"), "new")
    assert stat.S_IMODE(Path("a").stat().st_mode) == 0o600


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_what_is_read_only_stays():
    Path("a").write_text("old")
    Path("a").chmod(0o444)
    with pytest.raises(CaptionerError, match="a: read-only"):
        check_file(Path("a"))
    assert Path("a").read_text() == "old" and os.listdir() == ["a"]


@posix
@pytest.mark.parametrize("link", [False, True])
def test_devices_are_written_through_and_stay(link):
    for device in ("/dev/null", "/dev/full"):
        path, before = Path(device), os.stat(device)
        if link:
            path = Path(path.name)
            path.symlink_to(device)
        check_file(path)
        if device == "/dev/null":
            put(path, "text")
        else:
            with pytest.raises(CaptionerError, match="full: cannot be written: No space left on device"):
                put(path, "text")
        assert os.stat(device).st_ino == before.st_ino and stat.S_ISCHR(os.stat(device).st_mode)
        assert not list(Path("/dev").glob("*.tmp"))


@posix
def test_a_pipe_is_written_through():
    os.mkfifo("pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()))
    reader.start()
    put(Path("pipe"), "text")
    reader.join()
    assert read == ["text"] and stat.S_ISFIFO(os.stat("pipe").st_mode)


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "out.txt"])
@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_what_stdout_holds_already_is_not_written_over(name, mode):
    if name.startswith("/") and not os.path.lexists(name):
        pytest.skip("this system has no such name")
    if name == "link":
        Path("link").symlink_to("/dev/stdout")
    with open("out.txt", mode) as out:
        out.write(b"before\n")
        out.flush()
        code = "import sys\nfrom pathlib import Path\nfrom captioner.files import *\n"
        code += "check_file(Path(sys.argv[1]))\nwith whole_file(Path(sys.argv[1])) as file: file.write('text\\n')"
        command, environment = [sys.executable, "-c", code, name], os.environ | {"PYTHONPATH": ROOT}
        subprocess.run(command, stdout=out, env=environment, check=True)
        subprocess.run(["echo", "after"], stdout=out, check=True)
    assert Path("out.txt").read_text() == "before\ntext\nafter\n"


@posix
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "folder: a folder"),
        ("link", "link: a folder"),
        ("no/where", "no/where: there is no folder no"),
        ("loop", "loop: cannot be written: Too many levels of symbolic links"),
        ("lost", "lost: there is no folder .*/no"),
        ("/proc/a.json", "/proc/a.json: cannot be written: No such file or directory"),
        (300 * "x", "x: cannot be written: File name too long"),
    ],
)
def test_what_cannot_be_written_is_known_before(name, message):
    Path("folder").mkdir()
    Path("link").symlink_to("folder")
    Path("loop").symlink_to("loop")
    Path("lost").symlink_to("no/where")
    if name.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("this system has no /proc")
    for act in (check_file, lambda path: put(path, "text")):
        with pytest.raises(CaptionerError, match=f"{message}$"):
            act(Path(name))
    assert sorted(os.listdir()) == ["folder", "link", "loop", "lost"]


AS_ANOTHER_USER = """
import os
from pathlib import Path
from captioner.errors import CaptionerError
from captioner.files import check_file, new_folder
if os.geteuid() == 0:
    os.setuid(65534)
for name in ("open/a", "closed/new", "closed/a"):
    try:
        check_file(Path(name))
    except CaptionerError as error:
        print(error)
try:
    with new_folder(Path("closed/m")):
        pass
except CaptionerError as error:
    print(error)
"""


@posix
def test_what_this_user_may_not_write_is_known_before(here):
    for folder in (here, *here.parents[:3]):  # up to the folder that pytest keeps from other users
        folder.chmod(0o755)
    for folder, mode in {"open": 0o777, "closed": 0o555}.items():
        Path(folder).mkdir()
        Path(folder, "a").write_text("old")
        Path(folder, "a").chmod(0o644 if os.geteuid() == 0 else 0o444)
        Path(folder).chmod(mode)
    command = [sys.executable, "-c", AS_ANOTHER_USER]
    finished = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines() == [
        "open/a: read-only",
        "closed/new: cannot be written: Permission denied",
        "closed/a: read-only",
        "closed/m: cannot be written: Permission denied",
    ]
    assert os.listdir("open") == os.listdir("closed") == ["a"]
    Path("closed").chmod(0o755)


def test_a_file_beside_of_any_name_is_left_alone():
    for suffix in (".part", ".tmp"):
        Path(f"a{suffix}").write_text("another's")
    put(Path("a"), "new")
    assert Path("a.part").read_text() == Path("a.tmp").read_text() == "another's"


def test_a_file_is_plain_unless_it_can_only_be_written_through():
    Path("a").touch()
    assert is_plain(Path("a")) and is_plain(Path("new"))
    assert not is_plain(Path(os.devnull))


def test_a_folder_is_there_when_it_is_whole():
    with pytest.raises(ZeroDivisionError), new_folder(Path("model")) as folder:
        (folder / "weights").touch()
        raise ZeroDivisionError
    assert os.listdir() == []
    with new_folder(Path("model")) as folder:
        (folder / "weights").touch()
        assert not Path("model").exists()
    assert os.listdir() == ["model"] and os.listdir("model") == ["weights"]


@posix
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lost", "lost: exists already"),
        ("file", "file: exists already"),
        ("file/model", "file/model: there is no folder file"),
        ("/proc/model", "/proc/model: cannot be written: "),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_at_once(name, message):
    Path("lost").symlink_to("no/where")
    Path("file").touch()
    if name.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("this system has no /proc")
    with pytest.raises(CaptionerError, match=re.escape(message)), new_folder(Path(name)):
        pytest.fail("begun")


@posix
def test_weights_that_find_no_room_are_a_fault_of_one_line(here):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(CaptionerError, match=r"model: cannot be written: .*File too large"),
            new_folder(Path("model")) as folder,
        ):
            save_file({"weights": np.zeros(1000)}, folder / "model.safetensors")
        with pytest.raises(CaptionerError, match="a: cannot be written: File too large"):
            put(Path("a"), 2000 * "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir() == []


@posix
def test_what_is_said_to_be_written_is_on_disk(monkeypatch):
    synced: list[tuple[int, int]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    put(Path("a"), "text")
    assert (Path("a").stat().st_ino, 4) in synced and Path().stat().st_ino == synced[-1][0]
    with new_folder(Path("model")) as folder:
        (folder / "weights").write_text("1234567")
    assert (Path("model/weights").stat().st_ino, 7) in synced
    assert Path("model").stat().st_ino in dict(synced) and Path().stat().st_ino == synced[-1][0]
