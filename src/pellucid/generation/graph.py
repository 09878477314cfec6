"""A compiled graph, called without Python's lock: `AOTIModelPackageLoader` holds it, and nothing else would run meanwhile."""

from __future__ import annotations

import ctypes
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import finalize
from zipfile import ZipFile

from torch import Tensor
from torch._C import _aoti

ONE = ctypes.c_size_t(1)
Pointer = ctypes.c_void_p

pointer_of = ctypes.pythonapi["PyCapsule_GetPointer"]  # by this way nobody else's
pointer_of.restype, pointer_of.argtypes = Pointer, [ctypes.py_object, ctypes.c_char_p]
capsule_of = ctypes.pythonapi["PyCapsule_New"]
capsule_of.restype, capsule_of.argtypes = ctypes.py_object, [Pointer, ctypes.c_char_p, Pointer]


class Graph:
    """A graph with one output from a package of AOTInductor, by its C interface (torch's aoti_runtime/interface.h).

    Raises `OSError`, `BadZipFile` or `RuntimeError` if the file is not a sound package.
    """

    def __init__(self, package: Path) -> None:
        self.container = Pointer()
        with TemporaryDirectory() as folder, ZipFile(package) as parts:  # which checks the sums of what it reads
            names = [name for name in parts.namelist() if name.endswith((".so", ".json")) and "metadata" not in name]
            if len(names) != 1:  # the other would list operators that the graph has torch's own loader call
                raise RuntimeError(f"{package} is not one library alone: {names}")
            library = ctypes.CDLL(parts.extract(names[0], folder))
            create = library.AOTInductorModelContainerCreateWithDevice  # which may read the file once more
            if create(ctypes.byref(self.container), ONE, b"cpu", None):
                raise RuntimeError(f"{package} could not be loaded")
        self.run = library.AOTInductorModelContainerRun
        finalize(self, library.AOTInductorModelContainerDelete, self.container).atexit = False

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        handles = _aoti.unsafe_alloc_void_ptrs_from_tensors(inputs)
        given = (Pointer * len(handles))(*(pointer_of(handle, None) for handle in handles))  # and taken: the graph frees them
        found = (Pointer * 1)()
        if self.run(self.container, given, ctypes.c_size_t(len(given)), found, ONE, None, None):
            raise RuntimeError("a compiled step failed; what it says of it stands above")
        return _aoti.alloc_tensors_by_stealing_from_void_ptrs([capsule_of(found[0], None, None)])[0]
