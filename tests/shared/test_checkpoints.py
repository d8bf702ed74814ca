import builtins
import errno
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from shared import checkpoints, manifest
from shared.checkpoints import latest, load, restore_rng_state, rng_state, save, verify
from shared.errors import CannotRun

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


def small_state(step=1):
    """A state whose content tells its step, with a tensor in which no single bit can be checked by eye."""
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "weights": torch.randn(300, generator=generator), "history": [0.5] * step}


def is_state_of(state, step):
    expected = small_state(step)
    return state["step"] == step and torch.equal(state["weights"], expected["weights"])


def steps_in(folder):
    return sorted(int(path.name[5:13]) for path in folder.glob("step-*"))


def hidden_in(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]


# ── saving and loading ───────────────────────────────────────────────────────────────────────────


def test_a_whole_training_state_comes_back(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    for _ in range(3):
        model(torch.randn(8, 6)).sum().backward()
        optimizer.step()
        scheduler.step()
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    state = {name: part.state_dict() for name, part in parts.items()}
    path = save(tmp_path, 3, {**state, "rng": rng_state(), "options": {"lr": 1e-3, "name": "x", "shape": (1, 2)}})
    found = load(tmp_path)
    assert (found.step, found.path, found.notice) == (3, path, None)
    assert path == tmp_path / "step-00000003" == latest(tmp_path)
    assert found.state["options"] == {"lr": 1e-3, "name": "x", "shape": (1, 2)}
    for name, part in parts.items():
        part.load_state_dict(found.state[name])
    for name, tensor in state["model"].items():
        assert torch.equal(found.state["model"][name], tensor)
    assert found.state["optimizer"]["state"][0]["exp_avg"].equal(state["optimizer"]["state"][0]["exp_avg"])
    fields = verify(path)
    assert (fields["format"], fields["step"], fields["torch"]) == (1, 3, torch.__version__)
    assert fields["files"]["state.pt"]["bytes"] == (path / "state.pt").stat().st_size
    assert load(path).step == 3
    assert load(str(tmp_path)).step == 3


def test_weights_are_also_written_for_other_programs(tmp_path):
    from safetensors.torch import load_file

    weights = {"a": torch.randn(4, 3).T, "b": torch.arange(5)}
    path = save(tmp_path, 1, small_state(), weights=weights)
    found = load_file(path / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert set(verify(path)["files"]) == {"state.pt", "model.safetensors"}


def test_there_may_be_no_checkpoint(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "missing") is None
    for folder in (tmp_path, tmp_path / "missing"):
        for fallback in (True, False):
            with pytest.raises(CannotRun, match=r"there is no checkpoint in .*; train first"):
                load(folder, fallback=fallback)
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(CannotRun, match=r"there is no checkpoint in .*model\.pt"):
        load(tmp_path / "model.pt")
    with pytest.raises(CannotRun, match=r"step-00000007/manifest.json is not as it was saved \(it is missing\)"):
        load(tmp_path / "step-00000007")


def test_the_newest_stay_and_the_best(tmp_path):
    metrics = {1: 0.1, 2: 0.9, 3: None, 4: float("nan"), 5: 0.9, 6: 0.3, 7: float("inf")}
    for step, metric in metrics.items():
        save(tmp_path, step, small_state(step), metric=metric, keep=2)
    assert steps_in(tmp_path) == [2, 6, 7]
    assert (tmp_path / "best").read_text().startswith("step-00000002 ")
    assert (tmp_path / "last").read_text().startswith("step-00000007 ")
    save(tmp_path, 8, small_state(8), metric=0.91, keep=1)
    assert steps_in(tmp_path) == [8]
    assert hidden_in(tmp_path) == []
    with pytest.raises(ValueError, match="keep must be at least 1"):
        save(tmp_path, 9, small_state(9), keep=0)


def test_a_run_that_starts_anew_keeps_its_own_checkpoints(tmp_path):
    for step in (100, 200, 300):
        save(tmp_path, step, small_state(step))
    for step in (10, 20):
        save(tmp_path, step, small_state(step), keep=2)
    assert steps_in(tmp_path) == [10, 20]
    assert load(tmp_path).step == 20


def test_a_step_can_be_saved_again(tmp_path):
    save(tmp_path, 5, {"run": 1})
    path = save(tmp_path, 5, {"run": 2})
    assert path.name == "step-00000005-2"
    assert load(tmp_path).state == {"run": 2}
    assert load(tmp_path / "step-00000005").state == {"run": 1}
    assert save(tmp_path, 123_456_789, {"run": 3}, keep=1).name == "step-123456789"
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-123456789"]


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    save(tmp_path, 1, small_state())
    for value in (np.float64(0.5), np.zeros(3), nn.Linear(2, 2), Path("x"), lambda: 0):
        with pytest.raises(TypeError, match="tensors and plain values only"):
            save(tmp_path, 2, {"value": value})
    assert steps_in(tmp_path) == [1]
    assert hidden_in(tmp_path) == []
    assert is_state_of(load(tmp_path).state, 1)


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def saved(tmp_path):
    """A folder with two checkpoints, and the files of the newer one with their content."""
    for step in (1, 2):
        save(tmp_path, step, small_state(step), weights={"w": torch.ones(20)})
    path = tmp_path / "step-00000002"
    files = {file: file.read_bytes() for file in (*path.iterdir(), tmp_path / "last")}
    assert len(files) == 4
    return tmp_path, files


@pytest.fixture
def nothing_is_parsed(monkeypatch):
    """torch.load runs only on files that are as they were saved."""
    genuine = torch.load

    def checked(file, **options):
        folder = Path(file).parent
        if not folder.name.startswith(".new-"):
            verify(folder)
        return genuine(file, **options)

    monkeypatch.setattr(torch, "load", checked)


def test_every_flipped_bit_is_found(saved, nothing_is_parsed):
    folder, files = saved
    generator = random.Random(0)
    targets = list(files)
    for trial in range(300):
        file = targets[trial % len(targets)]
        content = bytearray(files[file])
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        file.write_bytes(content)
        with pytest.raises(CannotRun) as caught:
            load(folder)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
        fallen_back = load(folder, fallback=True)  # a damaged pointer leaves both checkpoints whole
        step = 2 if file.name == "last" else 1
        assert is_state_of(fallen_back.state, step)
        assert f"goes on from step {step}" in fallen_back.notice
        file.write_bytes(files[file])
    assert is_state_of(load(folder).state, 2)


def test_every_truncation_is_found(saved, nothing_is_parsed):
    folder, files = saved
    generator = random.Random(1)
    targets = list(files)
    for trial in range(60):
        file = targets[trial % len(targets)]
        length = 0 if trial < len(targets) else generator.randrange(len(files[file]))
        file.write_bytes(files[file][:length])
        with pytest.raises(CannotRun, match="is not as it was saved") as caught:
            load(folder)
        assert str(file) in str(caught.value)
        file.write_bytes(files[file])


def test_missing_and_swapped_files_are_found(saved, nothing_is_parsed):
    folder, files = saved
    newer, older = folder / "step-00000002", folder / "step-00000001"
    for file, content in files.items():
        if file.name != "last":
            file.unlink()
            with pytest.raises(CannotRun, match="is not as it was saved") as caught:
                load(folder)
            assert str(file) in str(caught.value)
            assert load(folder, fallback=True).step == 1
            file.write_bytes(content)
    for name in ("state.pt", "manifest.json"):  # those of another checkpoint, whole in themselves
        (newer / name).write_bytes((older / name).read_bytes())
        with pytest.raises(CannotRun, match="is not as it was saved"):
            load(folder)
        (newer / name).write_bytes(files[newer / name])
    (newer / "state.pt").write_bytes(files[newer / "model.safetensors"])
    with pytest.raises(CannotRun, match=r"state\.pt"):
        load(newer)
    (newer / "state.pt").write_bytes(files[newer / "state.pt"])
    (folder / "last").write_text((folder / "last").read_text().replace("00000002", "00000001"))
    with pytest.raises(CannotRun, match="does not fit step-00000001"):
        load(folder)
    (folder / "last").write_text("../../elsewhere 0\n")
    with pytest.raises(CannotRun, match="it names no checkpoint"):
        load(folder)


def test_without_a_pointer_the_newest_counts(saved):
    folder, _ = saved
    (folder / "last").unlink()
    assert latest(folder) == folder / "step-00000002"
    assert load(folder).step == 2


def test_nothing_whole_is_left(saved):
    folder, _ = saved
    for path in folder.glob("step-*"):
        (path / "state.pt").write_bytes(b"")
    with pytest.raises(CannotRun, match=r"step-00000002/state\.pt"):
        load(folder, fallback=True)


def test_another_format_is_refused(saved):
    folder, files = saved
    fields = json.loads(files[folder / "step-00000002" / "manifest.json"])
    del fields["sha256"]
    (folder / "step-00000002" / "manifest.json").write_bytes(manifest._encode({**fields, "format": 2}))
    with pytest.raises(CannotRun, match="has format 2 and this lab reads 1; update the lab"):
        load(folder / "step-00000002")
    for text in (b"[]", b"7", b"null", b'{"format": 1}', b"[" * 100_000, b"\xff\xfe", b"{}"):
        (folder / "step-00000002" / "manifest.json").write_bytes(text)
        with pytest.raises(CannotRun, match=r"manifest\.json is not as it was saved"):
            load(folder / "step-00000002")


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_hostile_pickles_are_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = [
        (os.system, "touch hostile"),
        (os.mkdir, "hostile"),
        (eval, "open('hostile', 'w')"),
        (exec, "open('hostile', 'w')"),
        (subprocess.Popen, ["touch", "hostile"]),
        (builtins.open, "hostile", "w"),
        (getattr, Hostile(__import__, "os"), "mkdir"),
        (torch.save, {}, "hostile"),
        (map, Hostile(getattr, Hostile(__import__, "os"), "mkdir"), ["hostile"]),
    ]
    path = tmp_path / "step-00000001"
    for call in calls:
        for wrap in (lambda value: value, lambda value: {"model": [value]}, lambda value: {value: 1}):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            with (path / "state.pt").open("wb") as file:
                torch.save(wrap(Hostile(*call)), file)
            manifest.write_manifest(path, {"step": 1, "metric": None, "created": "", "torch": ""})
            with pytest.raises(CannotRun, match="only tensors and plain values are"):
                load(path)
    for content in (
        pickle.dumps(Hostile(os.mkdir, "hostile"), protocol=2),
        b"",
        b"PK\x03\x04",
        b"\x80\x02c",
    ):  # no zip at all
        (path / "manifest.json").unlink()
        (path / "state.pt").write_bytes(content)
        manifest.write_manifest(path, {"step": 1, "metric": None, "created": "", "torch": ""})
        with pytest.raises(CannotRun, match="only tensors and plain values are"):
            load(path)
    assert not (tmp_path / "hostile").exists()


def test_malformed_pickles_are_refused_in_one_line(tmp_path):
    path = tmp_path / "step-00000001"
    path.mkdir()
    generator = random.Random(2)
    for _ in range(200):
        (path / "state.pt").write_bytes(generator.randbytes(generator.randrange(60)))
        manifest.write_manifest(path, {"step": 1})
        with pytest.raises(CannotRun, match="was not loaded") as caught:
            load(path)
        assert "\n" not in str(caught.value)
        (path / "manifest.json").unlink()


# ── full disks, kills, several writers ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["state", "flush", "manifest", "rename", "pointer"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, place):
    save(tmp_path, 1, small_state(1))
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "state":  # in the middle of what torch writes

        class FullDisk:
            def __init__(self, file):
                self.file, self.room = file, 1000

            def write(self, data):
                self.room -= len(data)
                return fail() if self.room < 0 else self.file.write(data)

            def flush(self):
                self.file.flush()

        genuine = torch.save
        monkeypatch.setattr(torch, "save", lambda state, file: genuine(state, FullDisk(file)))
    elif place == "flush":
        monkeypatch.setattr(checkpoints.os, "fsync", fail)
    elif place == "manifest":
        monkeypatch.setattr(checkpoints, "write_manifest", fail)
    elif place == "rename":
        genuine_rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda path, to: fail() if to.name.startswith("step") else genuine_rename(path, to)
        )
    elif place == "pointer":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CannotRun, match=r"No space left on device.*free some space"):
        save(tmp_path, 2, small_state(2), metric=1.0)
    monkeypatch.undo()
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert is_state_of(load(tmp_path).state, 1)
    save(tmp_path, 2, small_state(2))
    assert load(tmp_path).path.name == "step-00000002"


def test_an_interrupt_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1, small_state(1))

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, small_state(2))
    assert hidden_in(tmp_path) == []
    assert is_state_of(load(tmp_path).state, 1)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CannotRun, match=r"step 1 could not be saved in .*use another folder"):
        save(tmp_path / "file" / "run", 1, small_state())


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    for name, age_s in ((".new-killed", 7200), (".old-killed", 7200), (".new-busy", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.pt").write_bytes(b"half")
        moment = time.time() - age_s
        os.utime(tmp_path / name / "state.pt", (moment, moment))
        os.utime(tmp_path / name, (moment, moment))
    for name in (".last.killed", ".best.killed"):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".last.busy").write_bytes(b"")
    save(tmp_path, 1, small_state())
    assert sorted(hidden_in(tmp_path)) == [".last.busy", ".new-busy"]


# torch is imported once; each child is a fork of that process, which has no threads.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from shared.checkpoints import latest, load, save

torch.set_num_threads(1)
folder = Path(sys.argv[1])
generator = random.Random(0)

def state(step):
    return {"step": step, "weights": torch.full((100_000,), float(step)), "end": step}

save(folder, 0, state(0), keep=2)
reached = 0
for trial in range(8):
    child = os.fork()
    if child == 0:
        step = load(folder).step
        while True:
            step += 1
            save(folder, step, state(step), keep=2, metric=float(step % 7))
    time.sleep(generator.uniform(0.05, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = load(folder)
    weights = found.state["weights"]
    assert found.state["step"] == found.state["end"] == found.step >= reached, (found.step, reached)
    assert bool((weights == found.step).all())
    assert found.notice is None
    reached = found.step
print(reached)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_any_moment_leave_a_last_that_loads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8  # so that the kills came between many saves


MANY = """
import os, sys
from pathlib import Path
import torch
from shared.checkpoints import save, verify

torch.set_num_threads(1)
folder = Path(sys.argv[1])
children = []
for writer in range(4):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for step in range(10):
                save(folder, step, {"writer": writer, "values": torch.full((1000,), writer)}, metric=writer, keep=1)
            code = 0
        finally:
            os._exit(code)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_several_writers_do_not_disturb_each_other(tmp_path):
    done = subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load(tmp_path)
    assert bool((found.state["values"] == found.state["writer"]).all())
    paths = list(tmp_path.glob("step-*"))
    assert len(paths) <= 2  # the last and the best
    assert {verify(path)["metric"] for path in paths} >= {3.0}
    assert hidden_in(tmp_path) == []


# ── random generators ────────────────────────────────────────────────────────────────────────────


def draw():
    torch_numbers = [torch.rand(5), torch.randn(5), torch.randperm(9), torch.rand(3)]
    return torch.cat(torch_numbers).tolist(), np.random.rand(4).tolist(), np.random.randn(3).tolist(), random.random()


def test_random_numbers_go_on_where_they_were_saved(tmp_path):
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    draw()
    np.random.randn(1)  # leaves a second normal number in NumPy's store
    random.gauss(0, 1)  # and in Python's
    save(tmp_path, 1, {"rng": rng_state()})
    expected = draw(), random.gauss(0, 1)
    for _ in range(2):
        torch.manual_seed(9)
        np.random.seed(9)
        random.seed(9)
        restore_rng_state(load(tmp_path).state["rng"])
        assert (draw(), random.gauss(0, 1)) == expected


def test_generators_of_a_missing_gpu_are_left_out(monkeypatch):
    state = rng_state()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    expected = torch.rand(3)
    restore_rng_state({**state, "cuda": [torch.get_rng_state()], "mps": torch.get_rng_state()})
    assert torch.equal(torch.rand(3), expected)


def test_generators_of_gpus_are_saved_and_restored(monkeypatch):
    """The calls that are made, with stand-ins for the drivers; the next test needs a GPU."""
    states = [torch.full((16,), index, dtype=torch.uint8) for index in range(3)]
    restored = {}
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[2])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: restored.update({index: state}))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: restored.update(mps=state))
    assert "cuda" not in rng_state("cpu")
    restore_rng_state(rng_state("cuda:1"))
    restore_rng_state(rng_state(torch.device("mps")))
    assert {name: state[0].item() for name, state in restored.items()} == {0: 0, 1: 1, "mps": 2}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_random_numbers_of_a_gpu_go_on(tmp_path):
    save(tmp_path, 1, {"rng": rng_state("cuda"), "on_gpu": torch.ones(3, device="cuda")})
    expected = torch.rand(5, device="cuda")
    found = load(tmp_path, map_location="cuda")
    assert found.state["on_gpu"].is_cuda
    restore_rng_state(found.state["rng"])
    assert torch.equal(torch.rand(5, device="cuda"), expected)
    assert not load(tmp_path).state["on_gpu"].is_cuda
