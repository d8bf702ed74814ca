"""The pretended GPU refuses what a real one refuses, and lets nothing start CUDA unseen."""

from collections.abc import Iterator

from tests.pretend_cuda import A100, GPU, H200, Crossing, Machine, pretended_machine

import pytest
import torch


@pytest.fixture
def machine() -> Iterator[Machine]:
    with pretended_machine() as machine:
        yield machine


def test_nothing_of_it_stays_behind() -> None:
    before = {name: getattr(torch.cuda, name) for name in Machine(H200).functions()}
    with pretended_machine():
        x = torch.ones(2, device="cuda")
        assert torch.cuda.is_available()
    assert {name: getattr(torch.cuda, name) for name in before} == before
    assert x.device.type == "cpu"


@pytest.mark.parametrize("device", ["cuda", "cuda:0", GPU, torch.device("cuda")])
def test_tensors_know_their_device(machine: Machine, device: str | torch.device) -> None:
    x = torch.randn(4, 4, device=device)
    for made in (x, x + 1, x[0], x.t(), torch.mm(x, x), x.sum(), torch.empty_like(x), x.half(), x.to(torch.int8)):
        assert made.device == GPU
        assert made.is_cuda
    for made in (torch.zeros(2), x.cpu(), x.to("cpu"), x.to(device=torch.device("cpu")), torch.zeros(2).pin_memory()):
        assert made.device.type == "cpu"
        assert not made.is_cuda
    for sent in (torch.ones(3).to(device), torch.ones(3).to(device, torch.float16), torch.ones(3).cuda()):
        assert sent.device == GPU
    assert torch.zeros((), device=x.device).is_cuda


def test_a_copy_is_a_copy(machine: Machine) -> None:
    here = torch.zeros(3)
    there = here.to("cuda")
    there.fill_(1.0)
    back = there.cpu()
    there.fill_(2.0)
    assert (here.tolist(), there.tolist(), back.tolist()) == ([0] * 3, [2] * 3, [1] * 3)
    assert not back.copy_(there).is_cuda
    assert there.copy_(here, non_blocking=True).is_cuda
    assert there.tolist() == [0] * 3
    there.copy_(here.pin_memory(), non_blocking=True)
    assert machine.crossings == [
        Crossing(to_gpu=False, is_pinned=False, non_blocking=False, on_a_side_stream=False, size_bytes=12),
        Crossing(to_gpu=True, is_pinned=False, non_blocking=True, on_a_side_stream=False, size_bytes=12),
        Crossing(to_gpu=True, is_pinned=True, non_blocking=True, on_a_side_stream=False, size_bytes=12),
    ]


def test_a_model_moves_and_learns(machine: Machine) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to("cuda")
    made_there = torch.nn.Linear(3, 4, device="cuda")
    assert {tensor.device for module in (model, made_there) for tensor in module.state_dict().values()} == {GPU}
    assert made_there(torch.ones(2, 3, device="cuda")).is_cuda
    with pytest.raises(RuntimeError, match="same device"):
        model(torch.ones(2, 3))
    y = model(torch.randn(2, 3, device="cuda"))
    y.sum().backward()
    gradient = model[0].weight.grad
    assert y.device == GPU
    assert gradient is not None
    assert gradient.device == GPU
    assert {tensor.device.type for tensor in model.to("cpu", non_blocking=True).state_dict().values()} == {"cpu"}
    assert {tensor.device.type for tensor in model.to("meta").state_dict().values()} == {"meta"}


def test_random_numbers_have_a_state(machine: Machine) -> None:
    state = torch.cuda.get_rng_state()
    first = torch.randn(3, device="cuda")
    torch.cuda.set_rng_state(state, GPU)
    assert torch.randn(3, device="cuda").tolist() == first.tolist()


def test_two_devices_do_not_mix(machine: Machine) -> None:
    here, there = torch.ones(2, 2), torch.ones(2, 2, device="cuda")
    for mixed in (
        lambda: here + there,
        lambda: torch.mm(there, there, out=here),
        lambda: torch.equal(here, there),
        lambda: torch.stack([here, there]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    assert (there + torch.tensor(1.0)).is_cuda  # a single number may come from the CPU
    for refused in (there.numpy, there.pin_memory):
        with pytest.raises(TypeError, match="cuda:0"):
            refused()


@pytest.mark.parametrize(
    "start",
    [
        lambda: torch.cuda.initial_seed(),
        lambda: torch._C._cuda_getDeviceCount() or torch.cuda.init(),
        lambda: torch.cuda.ipc_collect(),
        lambda: torch.cuda.set_per_process_memory_fraction(0.5),
    ],
)
def test_what_is_not_pretended_is_seen(machine: Machine, start) -> None:
    with pytest.raises(AssertionError, match="start CUDA"):
        start()


def test_a_graph_computes_when_it_is_replayed(machine: Machine) -> None:
    x, graph = torch.ones(3, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = 2 * x + 1
        with pytest.raises(RuntimeError, match="capturing"):
            y.sum().item()
        with pytest.raises(RuntimeError, match="capturing"):
            torch.cuda.synchronize()
    assert y.isnan().all()
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [2 * value + 1] * 3


def test_streams_and_events(machine: Machine) -> None:
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        assert torch.cuda.current_stream() is side
        event = side.record_event()
    assert torch.cuda.current_stream() is main
    main.wait_event(event)
    main.wait_stream(side)
    assert main.waited_for == [event, side]
    with pytest.raises(AssertionError, match="never recorded"):
        main.wait_event(torch.cuda.Event())
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    with pytest.raises(ValueError, match="recorded"):
        start.elapsed_time(end)
    end.record()
    assert start.elapsed_time(end) > 0
    with pytest.raises(ValueError, match="enable_timing"):
        start.elapsed_time(event)


def test_products_of_few_bits_have_the_conditions_of_cublas(machine: Machine) -> None:
    one = torch.ones((), device="cuda")
    a, b = (torch.randint(-9, 9, (32, 64), device="cuda", dtype=torch.int8) for _ in range(2))
    assert torch.equal(torch._int_mm(a, b.t()), (a.double() @ b.double().t()).int())
    fp8 = torch.float8_e4m3fn
    product = torch._scaled_mm(a.to(fp8), b.to(fp8).t(), one, one, out_dtype=torch.float32, use_fast_accum=True)
    assert torch.equal(product, a.to(fp8).float() @ b.to(fp8).float().t())
    for refused in (
        lambda: torch._int_mm(a[:16], b.t()),
        lambda: torch._int_mm(a[:, :60], b[:, :60].t()),
        lambda: torch._scaled_mm(a.to(fp8), b.to(fp8).t().contiguous(), one, one),
        lambda: torch._scaled_mm(a.to(fp8), b.to(fp8).t(), one, one.half()),
        lambda: torch._scaled_mm(a.to(fp8), b.to(fp8)[:30].t(), one, one),
    ):
        with pytest.raises(RuntimeError, match="_mm"):
            refused()


def test_float8_needs_a_newer_chip() -> None:
    with pretended_machine(A100):
        x, one = torch.ones(32, 32, device="cuda").to(torch.float8_e4m3fn), torch.ones((), device="cuda")
        assert torch.cuda.get_device_capability() == (8, 0)
        with pytest.raises(RuntimeError, match="compute capability"):
            torch._scaled_mm(x, x.t(), one, one)
