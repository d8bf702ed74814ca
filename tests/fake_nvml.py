"""A small NVML that answers, refuses and counts as the real one does; tests put it in place of the module pynvml."""

from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

MIB = 2**20


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """The part of pynvml that is used, with two GPUs unless told otherwise; `refuse` holds names of queries that raise."""

    NVMLError = NVMLError

    def __init__(self, *gpus: SimpleNamespace) -> None:
        super().__init__("pynvml")
        self.__spec__ = ModuleSpec("pynvml", None)  # importlib.util.find_spec wants one
        self.refuse: set[str] = set()
        self.open_count = 0
        self.cuda_version = 13020
        self.power_mw, self.power_limit_mw = 250_500, 400_000
        self.clocks_mhz, self.max_clocks_mhz = {1: 1410, 2: 1593}, {1: 1410, 2: 1593}
        self.link, self.max_link = (4, 16), (4, 16)  # PCIe generation and width
        self.gpus = list(gpus) or [
            SimpleNamespace(uuid="GPU-aaaa", pci="00000000:3b:00.0", used=100 * MIB, reasons=0x1),
            SimpleNamespace(uuid="GPU-bbbb", pci="00000001:af:00.0", used=200 * MIB, reasons=0x4),
        ]

    def __getattribute__(self, name: str) -> object:
        if name.startswith("nvml") and name in self.refuse:

            def refused(*_: object) -> object:
                raise NVMLError("Not Supported")

            return refused
        return super().__getattribute__(name)

    def _find(self, field: str, value: object) -> SimpleNamespace:
        assert self.open_count > 0, "queried before nvmlInit or after the last nvmlShutdown"
        for gpu in self.gpus:
            if getattr(gpu, field) == value:
                return gpu
        raise NVMLError("Not Found")

    def nvmlInit(self) -> None:  # noqa: N802
        self.open_count += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open_count -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> SimpleNamespace:  # noqa: N802
        return self._find("uuid", self.gpus[index].uuid if index < len(self.gpus) else None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> SimpleNamespace:  # noqa: N802
        return self._find("uuid", uuid)

    def nvmlDeviceGetHandleByPciBusId(self, pci: str) -> SimpleNamespace:  # noqa: N802
        return self._find("pci", pci)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return self.cuda_version

    def nvmlDeviceGetUtilizationRates(self, gpu: SimpleNamespace) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=97, memory=40)

    def nvmlDeviceGetClockInfo(self, gpu: SimpleNamespace, kind: int) -> int:  # noqa: N802
        return self.clocks_mhz[kind]

    def nvmlDeviceGetMaxClockInfo(self, gpu: SimpleNamespace, kind: int) -> int:  # noqa: N802
        return self.max_clocks_mhz[kind]

    def nvmlDeviceGetPowerUsage(self, gpu: SimpleNamespace) -> int:  # noqa: N802
        return self.power_mw

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: SimpleNamespace) -> int:  # noqa: N802
        return self.power_limit_mw

    def nvmlDeviceGetTemperature(self, gpu: SimpleNamespace, sensor: int) -> int:  # noqa: N802
        return {0: 61}[sensor]

    def nvmlDeviceGetMemoryInfo(self, gpu: SimpleNamespace) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=80 * 2**30, free=1, used=gpu.used)

    def nvmlDeviceGetCurrPcieLinkGeneration(self, gpu: SimpleNamespace) -> int:  # noqa: N802
        return self.link[0]

    def nvmlDeviceGetCurrPcieLinkWidth(self, gpu: SimpleNamespace) -> int:  # noqa: N802
        return self.link[1]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, gpu: SimpleNamespace) -> int:  # noqa: N802
        return self.max_link[0]

    def nvmlDeviceGetMaxPcieLinkWidth(self, gpu: SimpleNamespace) -> int:  # noqa: N802
        return self.max_link[1]

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: SimpleNamespace) -> int:  # noqa: N802
        return gpu.reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: SimpleNamespace) -> int:  # noqa: N802
        return gpu.reasons | 0x20
