"""One process of a training on several nodes that only writes down what torchrun has told it. It needs no PyTorch."""

import json
import os
import sys
from pathlib import Path

NAMES = ("GROUP_RANK", "LOCAL_RANK", "RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")

if __name__ == "__main__":
    told = {name: int(os.environ[name]) for name in NAMES}
    Path(sys.argv[1], f"{told['RANK']}.json").write_text(json.dumps(told), encoding="utf-8")
