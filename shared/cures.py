"""What to do about each problem that `lab doctor` finds, by operating system, as a command where there is one."""

from shared.machine import Facts

# Problem → system → what to do; "any" serves all systems, and names in braces are filled in by `cure_for`.
CURES: dict[str, dict[str, str]] = {
    "newer Python": {
        "linux": "uv venv --python 3.13",
        "darwin": "brew install python@3.13",
        "win32": "winget install Python.Python.3.13",
    },
    "Apple silicon": {
        "any": "on Apple silicon, use an arm64 Python (brew install python@3.13); on an Intel Mac, rent a Linux machine"
    },
    "install": {"any": "{install} --upgrade -r {requirements}"},
    "reinstall": {
        "linux": "{reinstall} -r {requirements}",
        "darwin": "{reinstall} -r {requirements}",
        "win32": "winget install Microsoft.VCRedist.2015+.x64; where that is there: {reinstall} -r {requirements}",
    },
    "same source": {"any": "{reinstall} torch torchvision, both in one command"},
    # Both packages own files of the module pynvml, so that removing one breaks the other.
    "pynvml": {
        "any": "{uninstall} pynvml, and after it {reinstall} nvidia-ml-py (both own files of the module pynvml)"
    },
    "show the GPU": {
        "linux": "unset CUDA_VISIBLE_DEVICES",
        "darwin": "unset CUDA_VISIBLE_DEVICES",
        "win32": "Remove-Item Env:CUDA_VISIBLE_DEVICES",
    },
    "compiler": {
        "linux": "sudo apt-get install g++",
        "darwin": "xcode-select --install",
        "win32": "winget install Microsoft.VisualStudio.2022.BuildTools, choose C++ in it, and start Python from its "
        "x64 Native Tools prompt",
    },
    "use clang": {"any": "export CXX=clang++"},
    "headers": {
        "linux": "sudo apt-get install python{python}-dev",
        "darwin": "brew reinstall python@{python}",
        "win32": "winget install --force Python.Python.{python}",
    },
    "disk": {
        "linux": "{clean}; `du -xh --max-depth=2 ~ | sort -h` shows what is large",
        "darwin": "{clean}; System Settings > General > Storage shows what is large",
        "win32": "{clean}; cleanmgr frees more",
    },
    "memory": {
        "linux": "`ps aux --sort=-rss | head` shows what takes it; or run the scripts with --quick",
        "darwin": "Activity Monitor shows what takes it; or run the scripts with --quick",
        "win32": "the Task Manager shows what takes it; or run the scripts with --quick",
    },
    "datasets": {
        "linux": 'export LAB_DATA="$HOME/lab-data"',
        "darwin": 'export LAB_DATA="$HOME/lab-data"',
        "win32": '$env:LAB_DATA = "$HOME\\lab-data"',
    },
    "results": {
        "linux": 'sudo chown -R "$USER" . in the lab\'s folder, or run with --out DIR',
        "darwin": 'sudo chown -R "$USER" . in the lab\'s folder, or run with --out DIR',
        "win32": "move the lab to a folder of your own, such as Documents, or run with --out DIR",
    },
    "signs": {
        "linux": "export LC_ALL=C.UTF-8",
        "darwin": "export LC_ALL=en_US.UTF-8",
        "win32": "$env:PYTHONUTF8 = 1",
    },
    "driver": {
        "linux": "sudo apt-get install nvidia-driver-{driver} (Ubuntu; on a rented machine, choose a newer image); or a "
        "torch built for an older CUDA: {choose}",
        "wsl": "install the newest driver from nvidia.com/drivers in Windows, and none inside WSL",
        "win32": "install the newest driver from nvidia.com/drivers; or a torch built for an older CUDA: {choose}",
    },
    "CUDA build": {"linux": "{reinstall} torch torchvision", "win32": "{choose}"},
    "other build": {"any": "{choose}"},
    "no GPU": {
        "linux": "if there is an NVIDIA GPU: sudo ubuntu-drivers install; in a container: docker run --gpus all",
        "wsl": "if there is an NVIDIA GPU: install the driver from nvidia.com/drivers in Windows, and none inside WSL",
        "darwin": "with macOS 14 or newer and an arm64 Python, torch computes on Apple's GPU through MPS",
        "win32": "if there is an NVIDIA GPU: install the driver from nvidia.com/drivers",
    },
    "MIG": {"any": "sudo nvidia-smi -mig 0; or make a slice: sudo nvidia-smi mig -cgi 0 -C"},
    "wake the GPU": {
        "linux": "sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm; or restart the machine",
        "win32": "restart the machine, then install the driver again",
    },
    "free the GPU": {
        "linux": "nvidia-smi lists the processes that use it; end yours with: kill PID",
        "darwin": "close other programs",
        "win32": "nvidia-smi lists the processes that use it; close yours",
    },
    "GPU fails": {
        "linux": "sudo dmesg | grep -i -e nvrm -e xid shows the driver's reason; restart the machine",
        "darwin": "update macOS and torch",
        "win32": "restart the machine, then install the driver again",
    },
    "GPU is wrong": {
        "linux": "nvidia-smi -q -d ECC shows memory errors; use another GPU",
        "darwin": "update macOS and torch",
        "win32": "nvidia-smi -q -d ECC shows memory errors; use another GPU",
    },
}


def cure_for(key: str, facts: Facts, driver: int = 0) -> str:
    """The cure for the problem `key` of CURES on this machine, in one line; `driver` is the oldest one that will do."""
    by_system = CURES[key]
    system = "wsl" if facts.is_wsl and "wsl" in by_system else facts.system
    text = by_system.get(system) or by_system.get("any") or by_system["linux"]
    uses_uv = facts.installer == "uv pip"
    return text.format(
        install=f"{facts.installer} install",
        reinstall=f"{facts.installer} install {'--reinstall' if uses_uv else '--force-reinstall'}",
        uninstall=f"{facts.installer} uninstall{'' if uses_uv else ' -y'}",
        choose=(
            "uv pip install --reinstall --torch-backend auto torch torchvision"
            if uses_uv
            else "choose your system and CUDA at https://pytorch.org/get-started and run the command that it shows"
        ),
        clean="uv cache clean" if uses_uv else "python -m pip cache purge",
        requirements=facts.requirements,
        python="{}.{}".format(*facts.python),
        driver=driver,
    )
