"""What ends a script: one line and a code, for what torch, the system and other ranks say in words of their own."""
import errno

import pytest
import torch
from torch.distributed import DistBackendError, DistStoreError

from cmr import checkpoint
from cmr.errors import DataError, answer
from cmr.files import read_json, read_sealed_json
from cmr.nifti import read_nifti

NCCL = """NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, unhandled system error, NCCL version 2.27.3
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
"""


@pytest.mark.parametrize("said", [
    "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB",
    "CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED", "GET was unable to find an engine to execute this computation"])
def test_memory_that_runs_out_in_the_words_of_each_library(said):
    line, code = answer(RuntimeError(said))
    assert code == 5 and line.startswith("out of memory; make --batch")


@pytest.mark.parametrize("error, code, words", [
    (MemoryError(), 5, "out of memory; make --batch"),
    (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"), 5,
     "/dev/shm, where processes"),
    (DistBackendError(NCCL + "Error while creating shared memory segment /dev/shm/nccl-Zn (size 33030528)"), 5,
     "--shm-size=1g"),
    (DistBackendError(NCCL + "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000"), 5,
     "the ranks cannot work together: Duplicate GPU detected"),
    (DistStoreError("wait timeout after 180000ms, keys: /here-1"), 5, "wait timeout after 180000ms"),
    (PermissionError(errno.EACCES, "Permission denied", "a.nii.gz"), 5, "a.nii.gz: Permission denied; you have no"),
    (OSError(errno.ENOSPC, "No space left on device", "a"), 5, "a: No space left on device; free some space"),
    (OSError(errno.EMFILE, "Too many open files"), 5, "ulimit -n"),
    (DataError("a mask"), 3, "a mask"),
])
def test_each_is_one_line_with_what_to_do(error, code, words):
    line, found = answer(error)
    assert found == code and words in line and "\n" not in line


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3)")])
def test_a_fault_of_the_program_is_no_line(error):
    assert answer(error)[0] is None


@pytest.mark.parametrize("read", [read_nifti, checkpoint.load, read_json, read_sealed_json])
def test_a_file_that_may_not_be_read_is_not_called_damaged(read, tmp_path, monkeypatch):
    path = tmp_path / "closed.nii.gz"
    checkpoint.save(path, weights=torch.zeros(1))
    def refuse(file, *arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))
    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError):
        read(path)
