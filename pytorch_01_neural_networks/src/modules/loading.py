"""Weights in files: what a state dict is, strict and partial loading, and the load that silently loads nothing."""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pytorch_01_neural_networks.src.modules.descent import descend
from shared.lesson import Lesson
from shared.snippets import complaint

import torch
from torch import nn

State = Mapping[str, torch.Tensor]
WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}


class Classifier(nn.Module):
    """(B, 3, H, W) → (B, classes): a trunk that is worth keeping, and a head that belongs to one task."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.trunk(x))
        return y


def pretend_training(model: nn.Module) -> nn.Module:
    """Gives every tensor of a model's state dict values that no fresh model has, in place; ends in evaluation."""
    for x in model.state_dict().values():
        x.add_(torch.rand_like(x) + 0.1) if x.is_floating_point() else x.add_(3)
    return model.eval()


def without_wrappers(state: State) -> State:
    """Names as the model itself has them: a prefix that all names share, and that is a wrapper's, is taken off."""
    while state and (prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in state)), None)):
        state = {name.removeprefix(prefix): x for name, x in state.items()}
    return state


def count_loaded(model: nn.Module, state: State) -> int:
    """How many tensors of the model equal the one in `state` that was meant for them: by value, whatever was reported."""
    meant = without_wrappers(state)
    return sum(name in meant and torch.equal(x.cpu(), meant[name].cpu()) for name, x in model.state_dict().items())


def load_and_hope(model: nn.Module, state: State) -> None:
    """The mistake: strict=False makes the error go away, and what it returns is not read."""
    model.load_state_dict(state, strict=False)


def load_checked(model: nn.Module, state: State, new: tuple[str, ...] = ()) -> None:
    """Right: prefixes of wrappers come off, and all names must fit but those that begin with one of `new`.

    What `state` has under `new` is left out. Raises ValueError before anything is loaded.
    """
    wanted = {name: x for name, x in without_wrappers(state).items() if not name.startswith(new)}
    expected = {name for name in model.state_dict() if not name.startswith(new)}
    if wrong := sorted(expected ^ wanted.keys()):
        raise ValueError(f"names that do not fit: {', '.join(wrong[:3])}")
    model.load_state_dict(wanted, strict=False)


def remember_best_by_reference(model: nn.Module) -> State:
    """The mistake: state_dict() hands out the live tensors, so the best weights go on training."""
    return model.state_dict()


def remember_best(model: nn.Module) -> State:
    """Right: copies of the numbers."""
    return copy.deepcopy(model.state_dict())


def show_loading(lesson: Lesson) -> None:
    show_state_dict(lesson)
    show_strict_errors(lesson)
    show_silent_load(lesson)
    show_new_head(lesson)
    show_assign(lesson)


def show_state_dict(lesson: Lesson) -> None:
    lesson.section(
        "state_dict: save and load",
        "A state dict is a plain dictionary from names to tensors: parameters and persistent buffers, no code, no "
        "shape of the model. To load, you first make the model from its class, then fill it. Save state dicts rather "
        "than whole models: a pickled model needs the very same class in the very same file to come back.",
    )
    model = pretend_training(Classifier().to(lesson.device))
    x = torch.randn(4, 3, 8, 8, device=lesson.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        torch.save(model.state_dict(), path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    parameters = dict(model.named_parameters())
    lesson.table(
        [
            {"name": name, "shape": str(tuple(x.shape)), "dtype": str(x.dtype).removeprefix("torch."),
             "kind": "parameter" if name in parameters else "buffer"}
            for name, x in state.items()
        ]
    )  # fmt: skip
    restored = Classifier().to(lesson.device).eval()
    answer = restored.load_state_dict(state)
    lesson.check("saved, loaded, and the same to the last bit", torch.equal(restored(x), model(x)),
                 f"{count_loaded(restored, state)} of {len(state)} tensors; it says: {answer}")  # fmt: skip
    lesson.check("what comes from the CPU goes to the model's device",
                 all(p.device == x.device for p in restored.parameters()),
                 f"read to the cpu, then {x.device}")  # fmt: skip
    best, copied = remember_best_by_reference(model), remember_best(model)
    pretend_training(model)
    lost, kept = (count_loaded(restored, of_best) for of_best in (best, copied))
    lesson.check("state_dict() is no copy: the best weights train on", lost == 0 and kept == len(state),
                 f"unchanged: {lost} of {len(state)}, of a deepcopy {kept}")  # fmt: skip
    lesson.shows(
        f"{len(state)} tensors carry this model, {len(state) - len(parameters)} of them buffers that no optimizer "
        "touches and evaluation cannot do without. Name map_location and weights_only=True in every torch.load; and copy "
        "what you want to keep while training goes on."
    )


def show_strict_errors(lesson: Lesson) -> None:
    lesson.section(
        "Three ways in which it does not fit",
        "strict=True, the default, compares names first and shapes second, and refuses with a list of everything. Read "
        "it from the model's side: missing is what the model has and the file lacks, unexpected the opposite.",
    )
    fitting = Classifier().state_dict()
    renamed = {name.replace("head.", "classifier."): x for name, x in fitting.items()}
    states = {
        "a layer more in the model": {name: x for name, x in fitting.items() if not name.startswith("head.")},
        "a layer more in the file": {**fitting, "neck.weight": torch.zeros(16, 16)},
        "another name": renamed,
        "another shape": Classifier(classes=3).state_dict(),
    }
    model = Classifier()
    answers = {case: complaint(lambda: model.load_state_dict(state)) for case, state in states.items()}
    lesson.items(
        {
            case: answer.replace("Error(s) in loading state_dict for Classifier: ", "")
            for case, answer in answers.items()
        }
    )
    words = {
        case: [word for word in ("Missing", "Unexpected", "size mismatch") if word in answer]
        for case, answer in answers.items()
    }
    lesson.check("one error names everything that is wrong", words["another name"] == ["Missing", "Unexpected"],
                 "a renamed attribute is missing and unexpected at once")  # fmt: skip
    quiet = [
        case for case, state in states.items() if not complaint(lambda: model.load_state_dict(state, strict=False))
    ]
    lesson.check("strict=False forgives names, never shapes", quiet == list(states)[:3],
                 f"{len(quiet)} of {len(states)} pass, another shape does not")  # fmt: skip
    lesson.shows(
        f"with strict=False {len(quiet)} of these {len(states)} mistakes raise nothing. Its return value still lists what was "
        "missing and unexpected; the next section is what happens when nobody reads it."
    )


def show_silent_load(lesson: Lesson) -> None:
    lesson.section(
        "strict=False that loads nothing",
        "DistributedDataParallel keeps your model as its attribute module, torch.compile as _orig_mod, and a name is the "
        "path of attributes. So a checkpoint of the wrapped model has a prefix before every name. strict=True refuses "
        "it; strict=False, often given as the remedy, accepts it. How many tensors does the fresh model then really have?",
    )
    trained, x = pretend_training(Classifier()), torch.randn(4, 3, 8, 8)
    prefixes = ("", *WRAPPERS, "_orig_mod.module.")
    table, hoped, checked = [], {}, {}
    for prefix in prefixes:
        state = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
        hoping, checking, strict = Classifier(), Classifier(), Classifier()
        refused = complaint(lambda: strict.load_state_dict(state))
        before = hoping.eval()(x)
        load_and_hope(hoping, state)
        load_checked(checking, state)
        hoped[prefix], checked[prefix] = count_loaded(hoping, state), count_loaded(checking, state)
        table.append({"first name in the file": next(iter(state)), "strict=True": "refuses" if refused else "loads",
                      "strict=False loads": f"{hoped[prefix]} of {len(state)}",
                      "names checked": f"{checked[prefix]} of {len(state)}"})  # fmt: skip
    lesson.table(table)
    size = len(trained.state_dict())
    lesson.check("with a prefix strict=False loads nothing at all", [hoped[prefix] for prefix in prefixes] == [size, 0, 0, 0],
                 "and neither raises nor warns")  # fmt: skip
    lesson.check("the model predicts as before: it is the fresh one", torch.equal(hoping(x), before), "to the last bit")
    missing, unexpected = Classifier().load_state_dict(state, strict=False)
    lesson.check("what it returned had said so", bool(missing) and len(unexpected) == size,
                 f"{len(unexpected)} unexpected, {len(missing)} missing (a batch counter may be)")  # fmt: skip
    lesson.check("without the prefix all are loaded", set(checked.values()) == {size}, f"{size} of {size}, four times")
    refused = complaint(lambda: load_checked(Classifier(), {**trained.state_dict(), "neck.weight": x}))
    lesson.check("and a name that does not fit is refused", "neck.weight" in refused, refused)
    lesson.shows(
        f"{list(hoped.values()).count(0)} of {len(prefixes)} files left the model untouched without a word, and training "
        "would have started from random weights. Save unwrapped (model.module.state_dict()); load strictly; where you "
        "must be lenient, say which names may be missing and check the rest, as load_checked() in src/modules/loading.py does."
    )


def show_new_head(lesson: Lesson) -> None:
    lesson.section(
        "Old weights, new head",
        "Fine-tuning means another task on the same trunk: here ten classes become three. The head's tensors have "
        "another shape, which strict=False does not forgive, so leave them out by name, and nothing else. Then freeze "
        "the trunk and take one step.",
    )
    old, model = pretend_training(Classifier(classes=10)), Classifier(classes=3)
    refused = complaint(lambda: load_and_hope(Classifier(classes=3), old.state_dict()))
    lesson.items({"strict=False says": refused})
    lesson.check("the head's shape is refused even with strict=False", "size mismatch" in refused, "both its tensors")
    head = {name: x.clone() for name, x in model.state_dict().items() if name.startswith("head.")}
    load_checked(model, old.state_dict(), new=("head.",))
    trunk = [name for name in model.state_dict() if name.startswith("trunk.")]
    lesson.check("the trunk comes from the file, the head is as it began",
                 count_loaded(model, old.state_dict()) == len(trunk) and count_loaded(model, head) == len(head),
                 f"{len(trunk)} loaded, {len(head)} new")  # fmt: skip
    model.trunk.requires_grad_(False)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(3, (8,))
    moved = {}
    for mode in ("train()", "eval()"):
        model.train()
        model.trunk.train(mode == "train()")
        before = copy.deepcopy(model.state_dict())
        descend(model, nn.functional.cross_entropy(model(x), y))
        moved[mode] = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    lesson.table(
        [{"trunk frozen, and in": mode, "changed by one step": ", ".join(names)} for mode, names in moved.items()]
    )
    lesson.check("frozen parameters stay, whatever the mode", not {"trunk.0.weight", "trunk.1.weight"} & {*moved["train()"]},
                 "requires_grad_(False)")  # fmt: skip
    buffers = [name for name in moved["train()"] if name.startswith("trunk.")]
    lesson.check("but BatchNorm's buffers drift unless it is in eval()",
                 len(buffers) == 3 and set(moved["eval()"]) == set(head),
                 f"{len(buffers)} buffers changed in train()")  # fmt: skip
    lesson.shows(
        f"partial loading is two lists: what comes from the file ({len(trunk)} tensors) and what is new ({len(head)}). Check "
        "both. Freezing reaches parameters alone; put a frozen trunk into eval() after every model.train(), or its "
        f"{len(buffers)} buffers follow the new data."
    )


def show_assign(lesson: Lesson) -> None:
    lesson.section(
        "Copying or assigning",
        "load_state_dict copies numbers into the tensors that the model has. With assign=True it puts the file's tensors "
        "in their place. That matters for large models: made on the meta device, a model costs no memory and no time "
        "for random weights that are overwritten at once. It also changes whose dtype counts. From a file in bfloat16:",
    )
    state = {
        name: x.bfloat16() if x.is_floating_point() else x
        for name, x in pretend_training(Classifier()).state_dict().items()
    }
    table, after = [], {}
    for device in ("cpu", "meta"):
        for assign in (False, True):
            with torch.device(device):
                model = Classifier()
            before = list(model.parameters())
            said = complaint(lambda: model.load_state_dict(state, assign=assign))
            same = sum(old is new for old, new in zip(before, model.parameters(), strict=True))
            weight = model.head.weight
            after[device, assign] = (weight.device.type, weight.dtype, same, said)
            table.append({"model made on": device, "assign": str(assign), "then on": weight.device.type,
                          "dtype": str(weight.dtype).removeprefix("torch."), "same Parameters": f"{same} of {len(before)}",
                          "it says": said.partition(":")[0] or "nothing"})  # fmt: skip
    lesson.table(table)
    lesson.check("copying keeps the model's dtype, assigning takes the file's",
                 (after["cpu", False][1], after["cpu", True][1]) == (torch.float32, torch.bfloat16),
                 "float32, bfloat16")  # fmt: skip
    lesson.check("assigning makes new Parameters: the optimizer comes after", after["cpu", True][2] == 0 < after["cpu", False][2],
                 "one made before holds the old ones")  # fmt: skip
    lesson.check("a model on meta stays empty unless assign=True",
                 after["meta", False][0] == "meta" and after["meta", True][0] == "cpu", "a warning, no error")  # fmt: skip
    lesson.items({"the warning": after["meta", False][3]})
    numbers = sum(p.numel() for p in model.parameters())
    lesson.shows(
        f"a model on meta is {numbers:,} numbers of which none exists; loading with assign=True makes it real, in the file's "
        "dtype. Copy into a model that is already where it should be, assign into one that is nowhere; make the "
        "optimizer afterwards."
    )
