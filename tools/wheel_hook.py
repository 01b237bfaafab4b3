"""Puts compiled kernels into a wheel and names its platform, where ``OMNICONV_PREBUILT`` is set.

It names the folder that ``python -m omniconv.kernels.build`` wrote; without it the wheel is pure
Python and kernels are built at their first use.
"""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PrebuiltKernels(BuildHookInterface):
    """Run by hatchling before it writes a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the libraries and the platform's tag to what will be written."""
        folder = os.environ.get("OMNICONV_PREBUILT")
        if not folder or version == "editable":
            return
        libraries = sorted(Path(folder).glob("*.so"))
        if not libraries:
            raise ValueError(f"OMNICONV_PREBUILT must be a folder of libraries, got {folder!r}")
        for path in libraries:
            inside = f"omniconv/kernels/prebuilt/{path.name}"
            build_data["force_include"][str(path.resolve())] = inside
        build_data["pure_python"] = False
        platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
        build_data["tag"] = f"py3-none-{platform}"  # the library uses no part of Python's ABI
