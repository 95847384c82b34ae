"""``uvos segment``: outputs, batches of videos, resuming and signals."""

import functools
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import av
import cv2
import pytest

from tests.helpers.command_line import SMALL, uvos
from tests.helpers.small_adnet import clip
from uvos_jax import progress
from uvos_jax.video import VideoWriter, read_mask

NETWORK = ["--model", "adnet", "--weights", "random", *SMALL]


@pytest.fixture(autouse=True)
def _chdir_to_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _frames(path, count):
    path.mkdir(parents=True)
    for i, frame in enumerate(clip(count)):
        cv2.imwrite(str(path / f"{i:05d}.jpg"), frame)
    return path


def _run(output):
    return json.loads((output / "run.json").read_text())


def _times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_requested_outputs_and_frame_range(tmp_path):
    code, out, err = uvos("segment", _frames(tmp_path / "clip", 12), *NETWORK, "--output", "out", "--every", "3",
                          "--start", "0.1s", "--soft", "--json", "--cutout", "png", "--no-overlay")
    assert code == 0, err
    # At 24 frames per second, the first frame after 0.1 s is 00003.
    names = ["00003", "00006", "00009"]
    for folder in ("masks", "soft", "cutout"):
        assert sorted(path.stem for path in (tmp_path / "out" / folder).iterdir()) == names
    run = _run(tmp_path / "out")
    assert run["clip"]["every"] == 3 and run["clip"]["start"] == "0.1s" and run["source"]["fps"] == 8
    assert set(run["results"]) == {p.name for p in (tmp_path / "out").iterdir()}
    assert re.search(r"3 masks, .*objects.json", out) and "overlay" not in out


def test_overlay_options_are_applied(tmp_path):
    clip_ = _frames(tmp_path / "clip", 2)
    for name, look in {"a": [], "b": ["--background", "#00ff00", "--alpha", "0", "--contour", "0"]}.items():
        assert uvos("segment", clip_, *NETWORK, "--output", name, *look)[0] == 0
    with av.open("a/overlay.mp4") as a, av.open("b/overlay.mp4") as b:
        plain, green = (next(video.decode(video=0)).to_ndarray(format="rgb24") for video in (a, b))
    background = cv2.erode((read_mask("b/masks/00000.png") == 0).astype("uint8"), None, iterations=3) > 0
    assert background.any()
    assert abs(green[background].mean(0) - (0, 255, 0)).max() < 25 < abs(plain[background].mean(0) - (0, 255, 0)).max()


@pytest.mark.slow
def test_default_network_is_reported(tmp_path):
    code, out, err = uvos("segment", _frames(tmp_path / "clip", 1), "--size", "33")
    assert code == 0 and len([line for line in err.splitlines() if "Default network" in line]) == 1
    run = _run(tmp_path / "uvos_output/clip")
    assert "1 mask," in out and run["hyper_parameters"]["short_side"] == 33
    assert run["weights"]["packaged"] == "default" and run["weights"]["license"] in err


@pytest.mark.slow
def test_packaged_weights_are_selected_by_name(tmp_path):
    clip_ = _frames(tmp_path / "clip", 1)
    code, _, err = uvos("segment", clip_, "--size", "33", "--weights", "synthetic")
    assert code == 0 and "packaged weights 'synthetic' (Apache-2.0" in err and "Default network" not in err
    assert _run(tmp_path / "uvos_output/clip")["weights"]["packaged"] == "synthetic"
    code, out, err = uvos("segment", clip_, "--weights", "syntetic", "--output", "other")
    assert code == 2 and out == "" and "Did you mean 'synthetic'?" in err
    code, out, err = uvos("segment", clip_, "--weights", "", "--output", "other")
    assert code == 2 and "There are no weights ''" in err and "default, synthetic" in err


def test_quiet_prints_nothing_and_log_file_gets_everything(tmp_path):
    folder = _frames(tmp_path / "clip", 3)
    assert uvos("segment", folder, *NETWORK, "--quiet", "--log-file", "log.txt") == (0, "", "")
    code, out, err = uvos("segment", folder, *NETWORK, "--quiet", "--log-file", "log.txt")
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and "--overwrite" in err
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ (INFO|ERROR) ", line) for line in lines)
    assert sum("3 masks, overlay.mp4" in line for line in lines) == 1 and "--overwrite" in lines[-1]
    assert "INFO adnet on clip: compiling, first frame ..." in lines[0] and "adnet on clip: 3 frames in" in lines[1]


def test_log_file_has_the_progress_lines_of_standard_error_once(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    code, _, err = uvos("segment", _frames(tmp_path / "clip", 3), *NETWORK, "--log-file", "log.txt")
    assert code == 0 and len(re.findall(r"adnet on clip: \d/3 frames in", err)) == 2
    logged = [line.split(" INFO ")[1] for line in (tmp_path / "log.txt").read_text().splitlines()]
    shown = [line for line in err.splitlines() if "adnet on clip" in line]
    assert [line.split(" in ")[0] for line in logged if "adnet on clip" in line] == [
        line.split(" in ")[0] for line in shown] and len(shown) == 4


def test_resume_reports_and_keeps_finished_run(tmp_path):
    folder = _frames(tmp_path / "clip", 3)
    command = ("segment", folder, *NETWORK, "--resume", "--output", "out")
    code, _, err = uvos(*command)
    assert code == 0 and err.count("compiling, first frame ...") == 1
    before = _times(tmp_path / "out")
    code, _, err = uvos(*command)
    assert code == 0 and "already finished" in err and "compiling" not in err and _times(tmp_path / "out") == before
    # Differences implied by the changed option are not listed.
    for changed, words in {"--flip": "flip", "--size=97": "size (short_side)", "--alpha=0.2": "alpha",
                           "--every=2": "every", "--start=0.04": "start"}.items():
        code, _, err = uvos(*command, changed)
        assert code == 2 and f"a finished run that differs in {words}. " in err
    cv2.imwrite(str(folder / "00000.jpg"), clip(3)[2])
    code, _, err = uvos(*command, "--every", "2")
    assert code == 2 and "differs in every" in err
    code, _, err = uvos(*command)
    assert code == 2 and "differs in video. " in err and _times(tmp_path / "out") == before


def test_errors_before_the_first_chunk_do_not_report_compilation(tmp_path):
    folder = _frames(tmp_path / "clip", 2)
    (folder / "00000.jpg").write_bytes(b"broken")
    code, _, err = uvos("segment", folder, *NETWORK)
    assert code == 2 and len(err.splitlines()) == 1 and "00000" in err


@pytest.mark.slow
def test_undecodable_frame_stops_or_is_skipped(tmp_path):
    folder = _frames(tmp_path / "clip", 4)
    (folder / "00002.jpg").write_bytes(b"broken")
    code, out, err = uvos("segment", folder, *NETWORK)
    assert code == 2 and out == ""
    assert re.search("00002.*--on-error skip.*2 masks are kept.*fixing or skipping it, .*--resume", err)
    code, out, err = uvos("segment", folder, *NETWORK, "--resume", "--on-error", "skip")
    assert code == 0 and "repeated the previous mask for frames that cannot be decoded: 00002." in err
    assert "4 masks" in out
    assert list(_run(tmp_path / "uvos_output/clip")["skipped"]) == ["00002"]


@pytest.mark.slow
def test_passwords_in_urls_are_never_written(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for frame in clip(3):
            writer.write(frame)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://me:secret@127.0.0.1:{server.server_port}/clip.mp4"
        code, out, err = uvos("segment", address, *NETWORK, "--output", "out", "--log-file", "log.txt")
        server.shutdown()
    assert code == 0, err
    assert "127.0.0.1" in _run(tmp_path / "out")["options"]["input"]
    for text in (out, err, *(path.read_text() for path in (tmp_path / "out/run.json", tmp_path / "log.txt"))):
        assert "secret" not in text


@pytest.mark.slow
def test_batch_with_broken_video_can_be_resumed(tmp_path):
    for name in ("a", "b", "c"):
        _frames(tmp_path / "videos" / name, 3)
    broken = tmp_path / "videos/b/00001.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(b"broken")
    code, out, err = uvos("segment", "videos", *NETWORK, "--output", "out")
    assert code == 2 and "2 of 3 videos finished" in out and out.splitlines()[-1].endswith("b.")
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "00001" in errors[0] and "[3/3] adnet on c" in err
    code, _, err = uvos("segment", "videos", *NETWORK, "--output", "out")
    assert code == 2 and "already holds results" in err
    broken.write_bytes(whole)
    before = {name: _times(tmp_path / "out" / name) for name in ("a", "c")}
    code, out, err = uvos("segment", "videos", *NETWORK, "--output", "out", "--resume")
    assert code == 0 and "3 of 3 videos finished" in out and err.count("already finished") == 2
    assert {name: _times(tmp_path / "out" / name) for name in ("a", "c")} == before
    assert _run(tmp_path / "out/b")["finished"] is True


@pytest.mark.slow
def test_batch_errors_name_each_video_once(tmp_path):
    for name in ("decode", "size"):
        _frames(tmp_path / "videos" / name, 2)
    (tmp_path / "videos/decode/00001.jpg").write_bytes(b"broken")
    cv2.imwrite(str(tmp_path / "videos/size/00001.jpg"), clip(2)[1][:-8])
    (tmp_path / "text.mp4").write_text("no video")
    code, _, err = uvos("segment", "videos/decode", "videos/size", "text.mp4", *NETWORK, "--output", "out")
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert code == 2 and len(errors) == 3
    assert errors[0].startswith("Error: Cannot decode the frame 'videos/decode/00001.jpg'")
    assert errors[1].startswith("Error: videos/size: Frame '00001' is 72x40")
    assert errors[2].startswith("Error: Cannot read 'text.mp4' as a video") and errors[2].count("text.mp4") == 1


# Restores the SIGINT handler, in case the tests run where Ctrl-C is ignored.
_FRESH = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
_MAIN = "import sys; from uvos_jax.cli import main; main()"


def _start(*arguments, before=""):
    return subprocess.Popen([sys.executable, "-c", _FRESH + before + _MAIN, *map(str, arguments)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "name"), [
    (signal.SIGINT, 130, "SIGINT"), (signal.SIGTERM, 143, "SIGTERM")])
def test_signal_keeps_finished_frames_and_suggests_resume(tmp_path, number, code, name):
    folder = _frames(tmp_path / "clip", 200)
    command = ("segment", folder, *NETWORK, "--output", tmp_path / "out", "--json")
    process = _start(*command)
    _wait_for(tmp_path / "out/masks/00005.png", process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code and out == "" and "Traceback" not in err
    run = _run(tmp_path / "out")
    assert run["finished"] is False and name in run["stopped"]
    assert re.search(rf"{run['frames']} masks are kept.*--resume to continue", err.splitlines()[-1])
    with av.open(str(tmp_path / "out/overlay.mp4")) as video:
        assert 5 <= sum(1 for _ in video.decode(video=0)) == run["frames"] < 200
    assert len(json.loads((tmp_path / "out/objects.json").read_text())["frames"]) == run["frames"]
    assert not (tmp_path / "out/.uvos.lock").exists()
    code, _, err = uvos(*command, "--resume")
    assert code == 0 and "resuming after" in err and _run(tmp_path / "out")["resumed"] > 0


@pytest.mark.slow
def test_ctrl_c_stops_batch_and_resume_completes_it(tmp_path):
    for name in ("a", "b"):
        _frames(tmp_path / "videos" / name, 100)
    command = ("segment", tmp_path / "videos", *NETWORK, "--output", tmp_path / "out", "--no-overlay")
    process = _start(*command)
    _wait_for(tmp_path / "out/a/masks/00005.png", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert "0 of 2 videos are finished" in err.splitlines()[-1] and not (tmp_path / "out/b").exists()
    code, out, err = uvos(*command, "--resume")
    assert code == 0 and "resuming after" in err and "2 of 2 videos finished" in out
    assert _run(tmp_path / "out/a")["resumed"] > 0 and len(list((tmp_path / "out/a/masks").iterdir())) == 100


@pytest.mark.slow
def test_second_ctrl_c_exits_immediately(tmp_path):
    hang = ("import time; from uvos_jax.inference.engine import Engine; "
            "Engine._start = lambda *_: (print('hangs', flush=True), time.sleep(60)); ")
    process = _start("segment", _frames(tmp_path / "clip", 2), *NETWORK, before=hang)
    assert process.stdout.readline() == "hangs\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err


@pytest.mark.parametrize("module", ["typer", "jax", "flax", "cv2"])
def test_ctrl_c_during_imports_prints_no_traceback(tmp_path, module):
    hook = ("import os, sys, signal\n"
            "class Hook:\n"
            "    def find_spec(self, name, *_):\n"
            f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
            "sys.meta_path.insert(0, Hook())\n")
    process = _start("segment", _frames(tmp_path / "clip", 1), *NETWORK, before="pass\n" + hook)
    assert process.communicate() == ("", "") and process.returncode == 130
    assert not (tmp_path / "uvos_output").exists()


@pytest.mark.slow
def test_video_is_read_from_standard_input(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for frame in clip(3):
            writer.write(frame)
    data = (tmp_path / "clip.mp4").read_bytes()
    done = subprocess.run([sys.executable, "-c", _MAIN, "segment", "-", *NETWORK, "--output", "out"], input=data,
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir("out/masks")) == ["00000.png", "00001.png", "00002.png"]
