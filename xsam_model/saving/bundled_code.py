"""Copies the network's code into a saved folder, so that `trust_remote_code=True` loads it without this package.

transformers follows relative imports within one folder only, so each module becomes one file there:
`xsam_model.layers.trunk` is `layers_trunk.py`. Imports are the only lines that change.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

# Where the Auto classes find theirs: fields of config.json, processor_config.json and its image processor.
MODEL_MAP = {
    "AutoConfig": "configuration_xsam.XSamConfig",
    "AutoModel": "modeling_xsam.XSamForSegmentation",
    "AutoModelForUniversalSegmentation": "modeling_xsam.XSamForSegmentation",
}
PROCESSOR_MAP = {"AutoProcessor": "processing_xsam.XSamProcessor"}
IMAGE_PROCESSOR_MAP = {"AutoImageProcessor": "image_processing_xsam.XSamImageProcessor"}

_HERE = Path(__file__)
_ROOTS = ("configuration_xsam", "image_processing_xsam", "modeling_xsam", "processing_xsam")
_IMPORT = re.compile(r"^(\s*from )xsam_model\.([\w.]+)(?= import )", re.MULTILINE)


def write_code(folder: Path) -> None:
    """Write the modules that the network and its processor consist of, replacing those of an earlier save."""
    if _HERE.stem == _flat("saving.bundled_code"):  # this is such a copy, and so are its neighbors
        for file in _HERE.parent.glob("*_*.py"):
            if file.name != "__init__.py":
                shutil.copyfile(file, folder / file.name)
        return
    waiting, written = list(_ROOTS), set[str]()
    while waiting:
        module = waiting.pop()
        if module not in written:
            written.add(module)
            source = (_HERE.parents[1] / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
            waiting += [found[2] for found in _IMPORT.finditer(source)]
            code = _IMPORT.sub(lambda found: f"{found[1]}.{_flat(found[2])}", source)
            (folder / f"{_flat(module)}.py").write_text(code, encoding="utf-8")


def _flat(module: str) -> str:
    return module.replace(".", "_")
