from __future__ import annotations

import os

import pytest

from cxr_spark.engine.device import CPU, PRETEND, Device, DeviceError, choose_device


def test_no_address_is_the_processor() -> None:
    assert choose_device([], one_an_executor=True) == CPU


def test_the_one_gpu_of_an_executor_is_all_that_its_process_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert choose_device(["3"], one_an_executor=True) == Device("GPU", 0, "3")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(("visible", "index"), [("", 3), ("2,3", 1), ("0,1,2,3", 3)])
def test_several_gpus_are_told_apart_by_index(
    monkeypatch: pytest.MonkeyPatch, visible: str, index: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert choose_device(["3"], one_an_executor=False) == Device("GPU", index, "3")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(("visible", "address"), [("0,1", "3"), ("", "GPU-1f2e")])
def test_a_gpu_of_unknown_index_is_refused(
    monkeypatch: pytest.MonkeyPatch, visible: str, address: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(DeviceError, match="set spark.executor.resource.gpu.amount to 1"):
        choose_device([address], one_an_executor=False)


def test_two_gpus_for_one_task_are_refused() -> None:
    with pytest.raises(DeviceError, match="set spark.task.resource.gpu.amount to 1"):
        choose_device(["0", "1"], one_an_executor=False)


def test_pretended_gpus_are_logical_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRETEND, "1")
    device = choose_device(["1"], one_an_executor=True)
    assert (device.kind, device.name, device.address) == ("GPU", "/CPU:1", "1")
