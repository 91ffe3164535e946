"""Compiles Python functions to machine code for the CPU. The compiler is numba.

In a small model, a pass over a few rows consists of hundreds of operations that take one or two microseconds each. Most
of this time is the cost of the calls. A compiled function does the work of many operations in one call, without copies
in between.

The compiler saves the machine code beside the module. So only the first start of a server has to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

Function = TypeVar("Function", bound=Callable[..., Any])

# Options of the compiler. It may reorder sums and fuse multiplications with additions, as every BLAS library does. NaN
# and infinity keep their meaning.
_MATHS = {"reassoc", "contract", "nsz", "arcp"}

# Options for functions in which the order of the operations decides how exact the result is.
_ORDERED = {"contract", "nsz"}


def compiled(function: Function) -> Function:
    """Compile `function` once for each combination of argument types, at the first call with these types. The arguments
    must be numpy arrays and numbers.
    """
    options: dict[str, Any] = {"fastmath": _MATHS, "nogil": True, "error_model": "numpy"}
    try:
        result: Function = numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder for the compiled code is writable, so the code is compiled at every start
        result = numba.njit(function, **options)
    return result


def inlined(function: Function) -> Function:
    """Compile `function` as a part of the compiled functions that call it. Its sums are not reordered."""
    result: Function = numba.njit(function, fastmath=_ORDERED, error_model="numpy")
    return result
