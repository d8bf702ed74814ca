"""For every test: this checkout's modules, no folder of real results, a plain terminal, and a count of GPU tests.

A test that starts a script in another process gives it `--out`; in this process a forgotten one is refused below.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# A shell starts what runs in its background deaf to Ctrl-C, and processes that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The workers of pytest-xdist share the cores. Before torch is imported; processes that a test starts inherit it.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def refuse_real_results(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: whatever a test tries, what the learner has measured stays as it is."""
    if event == "os.mkdir":
        writes = True
    elif event == "open":
        writes = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        return
    if writes and isinstance(arguments[0], str | os.PathLike):
        path = Path(os.path.abspath(arguments[0]))
        if path.is_relative_to(ROOT):
            project, *below = path.relative_to(ROOT).parts or [""]
            if project.startswith("pytorch_") and below[:1] in (["results"], ["runs"]):
                raise RuntimeError(f"a test would write to {path}; give the script --out with a temporary folder")


sys.addaudithook(refuse_real_results)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, output is as in a pipe, 100 columns wide."""
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Gives torch back the number of threads that a test, or the code that it calls, may change."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "gpu" in report.keywords]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} GPU tests were skipped: there is no CUDA GPU here.")
