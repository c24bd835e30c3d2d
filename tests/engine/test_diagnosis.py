from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest
from packaging.specifiers import SpecifierSet

from memorysam_cli.engine import diagnosis
from memorysam_cli.engine.diagnosis import Finding, ok


def states(found: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(each.name, each.state) for each in found]


def test_this_machine_computes() -> None:
    (found,) = diagnosis.network()
    assert found.state == "ok" and "nano segments" in found.found


def test_a_result_that_is_not_finite_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from memorysam_cli.model import weights

    class Broken:
        def eval(self) -> None: ...

        def logits(self, frames: list[torch.Tensor]) -> torch.Tensor:
            return torch.full((1, 2, 16, 16), float("nan"))

    monkeypatch.setattr(weights, "build_for_measuring", lambda *_: Broken())
    assert states(diagnosis.network()) == [("network", "problem")]


def test_a_check_that_crashes_is_a_problem_and_the_others_go_on() -> None:
    def crash() -> Iterator[Finding]:
        yield ok("before", "")
        raise OSError("libfoo.so.1: cannot open\nand more")

    found = list(diagnosis.examine({"broken": crash, "sound": lambda: [ok("after", "")]}))
    assert [(each.name, each.state) for each in found] == [("before", "ok"), ("broken", "problem"), ("after", "ok")]
    assert found[1].found == "cannot be checked (OSError: libfoo.so.1: cannot open)"


@pytest.mark.parametrize(
    ("version", "how", "bound", "is_met"),
    [
        ("2.13.0+cpu", ">=", "2.10", True),
        ("2.9.1", ">=", "2.10", False),
        ("1.1.0", "==", "1.1", True),
        ("1.1.1", "==", "1.1.0", False),
        ("5.0.0.93", ">=", "4.10", True),
        ("3.0", "<", "3", False),
        ("0.29rc1", ">=", "0.29", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, how: str, bound: str, is_met: bool) -> None:
    assert diagnosis.fits(version, SpecifierSet(how + bound)) is is_met


def test_missing_and_old_packages_are_problems_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=2.0", "torch>=99.1", "nowhere-to-be-found>=1", "ray[data]>=2.50; extra == 'ray'"]
    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    found = {each.name: each for each in diagnosis.packages()}
    assert {name: each.state for name, each in found.items()} == {
        "numpy": "ok", "torch": "problem", "nowhere-to-be-found": "problem",
    }  # fmt: skip
    assert found["torch"].remedy == "pip install 'torch>=99.1'"


def _installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    real = metadata.version

    def version(name: str) -> str:
        key = name.replace("-", "_")
        if key in versions:
            return versions[key]
        if name in {"torchvision", "opencv-python", "opencv-contrib-python"}:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_torchvision_is_absent_sound_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch)
    assert "absent" in next(diagnosis.torchvision()).found
    _installed(monkeypatch, torchvision="0.28.0")

    def ends(code: int, text: str) -> Any:
        return lambda *_, **__: subprocess.CompletedProcess([], code, "", text)

    monkeypatch.setattr(subprocess, "run", ends(0, ""))
    assert states(diagnosis.torchvision()) == [("torchvision", "ok")]
    monkeypatch.setattr(
        subprocess, "run", ends(1, "Traceback\nRuntimeError: operator torchvision::nms does not exist\n")
    )
    (found,) = diagnosis.torchvision()
    assert found.state == "warning" and "operator torchvision::nms" in found.found
    monkeypatch.setattr(subprocess, "run", ends(-11, ""))
    assert "exit code -11" in next(diagnosis.torchvision()).found


def test_an_opencv_with_windows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch)
    assert states(diagnosis.opencv()) == []
    _installed(monkeypatch, opencv_python="4.12")
    assert states(diagnosis.opencv()) == [("OpenCV", "warning")]


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(diagnosis, "driver_lines", lambda: ["570.1, NVIDIA H200, 143771 MiB"])
    monkeypatch.setattr(torch.version, "cuda", None)
    found = list(diagnosis.torch_build())[1]
    assert found.state == "problem" and "all would run on the CPU" in found.found
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "cannot use it" in list(diagnosis.torch_build())[1].found
    monkeypatch.setattr(diagnosis, "driver_lines", list)
    assert list(diagnosis.torch_build())[1].state == "ok"


def test_the_driver_is_asked_and_a_broken_one_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / diagnosis.DRIVER
    monkeypatch.setenv("PATH", str(tmp_path))
    assert diagnosis.driver_lines() == []
    program.write_text(f"#!{sys.executable}\nprint('570.1, H200, 143771 MiB')\n")
    program.chmod(0o755)
    assert diagnosis.driver_lines() == ["570.1, H200, 143771 MiB"]
    program.write_text(f"#!{sys.executable}\nraise SystemExit(9)\n")
    assert diagnosis.driver_lines() == []


Usage = namedtuple("Usage", "total used free")


def test_disks_that_are_full_nearly_full_or_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diagnosis, "hub_cache", lambda: tmp_path / "a" / "b")
    assert {state for _, state in states(diagnosis.disks())} == {"ok"}
    for free, state in ((1e9, "warning"), (1e8, "problem")):
        monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda _, free=free: Usage(1e12, 0, free))
        assert {each.state for each in diagnosis.disks()} == {state}

    def refuse(folder: Path) -> None:
        raise diagnosis.MemorySamError("is read-only")

    monkeypatch.setattr(diagnosis.atomic, "refuse_unwritable", refuse)
    assert {each.state for each in diagnosis.disks()} == {"problem"}


def test_little_shared_memory_and_few_files_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    import torch

    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda _: Usage(64e6, 0, 64e6))
    for gpus, state in ((0, "ok"), (1, "ok"), (2, "warning")):  # only several GPUs need it
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert [each.state for each in diagnosis.shared_memory()] == [state]
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (256, 4096) if which == resource.RLIMIT_NOFILE else (-1, -1)
    )
    assert states(diagnosis.limits()) == [("open files", "warning")]


def test_a_machine_on_which_others_compute_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(diagnosis.os, "getloadavg", lambda: (2.6, 9.0, 9.0), raising=False)
    assert states(diagnosis.load()) == [("load", "ok")]
    monkeypatch.setattr(diagnosis.os, "getloadavg", lambda: (8.2, 2.0, 2.0), raising=False)
    (found,) = diagnosis.load()
    assert found.state == "warning" and "8.2" in found.found and "2 cores" in found.found
    assert "OMP_NUM_THREADS" in found.remedy


class _Silent(http.server.BaseHTTPRequestHandler):
    code = 200
    seen: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_HEAD(self) -> None:
        _Silent.seen.append((self.path, dict(self.headers)))
        self.send_response(_Silent.code)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_the_hub_is_asked_once_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    server = http.server.HTTPServer(("127.0.0.1", 0), _Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    try:
        for code, state in ((200, "ok"), (404, "ok"), (503, "warning")):
            _Silent.code = code
            assert states(diagnosis.hub()) == [(diagnosis.HUB, state)]
        assert len(_Silent.seen) == 3
        assert not any("hf_secret" in value for _, headers in _Silent.seen for value in headers.values())
    finally:
        server.shutdown()
        server.server_close()
    (found,) = diagnosis.hub()
    assert found.state == "warning" and "cannot be reached" in found.found and "HF_ENDPOINT" in found.remedy
    monkeypatch.setattr(constants, "ENDPOINT", "file:///etc/passwd")
    assert next(diagnosis.hub()).state == "warning"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert states(diagnosis.hub()) == [(diagnosis.HUB, "ok")]
