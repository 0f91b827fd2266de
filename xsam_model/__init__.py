"""X-SAM by Hugging Face conventions: takes text and visual prompts, returns masks and text.

Depends on PyTorch, transformers, NumPy and Pillow, and on nothing else of this project.
"""

import sys
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from xsam_model.configuration_xsam import XSamConfig, XSamSegmentorConfig, XSamTrunkConfig
    from xsam_model.image_processing_xsam import XSamImageProcessor
    from xsam_model.modeling_xsam import XSamForSegmentation, XSamImageFeatures, XSamOutput
    from xsam_model.post_processing.instances import InstanceSegmentation, PhraseSegmentation
    from xsam_model.post_processing.maps import PanopticSegmentation, SemanticSegmentation
    from xsam_model.processing_xsam import XSamInputs, XSamProcessor
    from xsam_model.prompts.answers import Caption, CaptionPhrase
    from xsam_model.prompts.visual import draw_region
    from xsam_model.segmenter import EncodedImages, Query, Replies, XSamResult, XSamSegmenter

_MODULES = {
    "configuration_xsam": ("XSamConfig", "XSamSegmentorConfig", "XSamTrunkConfig"),
    "image_processing_xsam": ("XSamImageProcessor",),
    "modeling_xsam": ("XSamForSegmentation", "XSamImageFeatures", "XSamOutput"),
    "post_processing.instances": ("InstanceSegmentation", "PhraseSegmentation"),
    "post_processing.maps": ("PanopticSegmentation", "SemanticSegmentation"),
    "processing_xsam": ("XSamInputs", "XSamProcessor"),
    "prompts.answers": ("Caption", "CaptionPhrase"),
    "prompts.visual": ("draw_region",),
    "segmenter": ("EncodedImages", "Query", "Replies", "XSamResult", "XSamSegmenter"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Caption",
    "CaptionPhrase",
    "EncodedImages",
    "InstanceSegmentation",
    "PanopticSegmentation",
    "PhraseSegmentation",
    "Query",
    "Replies",
    "SemanticSegmentation",
    "XSamConfig",
    "XSamForSegmentation",
    "XSamImageFeatures",
    "XSamImageProcessor",
    "XSamInputs",
    "XSamOutput",
    "XSamProcessor",
    "XSamResult",
    "XSamSegmenter",
    "XSamSegmentorConfig",
    "XSamTrunkConfig",
    "draw_region",
]


def __getattr__(name: str) -> Any:
    """Import a class when it is first asked for: what only checks prompts need not wait seconds for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def _register() -> None:
    """Make AutoConfig, AutoModel, AutoImageProcessor and AutoProcessor know X-SAM, which these modules do."""
    for module in ("modeling_xsam", "processing_xsam"):
        import_module(f"{__name__}.{module}")


def _is_loading(name: str) -> bool:
    return getattr(sys.modules[name].__spec__, "_initializing", False)


_AUTO = "transformers.models.auto"


class _RegisteringLater(MetaPathFinder):
    """Registers X-SAM as soon as transformers' Auto classes are imported: importing this package promises that.

    They may be imported in the middle of another module, as by a configuration that X-SAM is made of; then X-SAM is
    registered with the next of their modules, or when something of it is asked for.
    """

    def __init__(self) -> None:
        self._is_looking = False

    def find_spec(
        self, name: str, _path: "Sequence[str] | None" = None, _target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if not f"{name}.".startswith(f"{_AUTO}.") or self._is_looking:
            return None
        self._is_looking = True
        try:
            spec = find_spec(name)
        finally:
            self._is_looking = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: "ModuleType") -> None:
                load(module)
                # A module of this package that is being imported cannot be asked for yet; it registers what it holds.
                is_loading = any(_is_loading(name) for name in list(sys.modules) if name.startswith(f"{__name__}."))
                if self in sys.meta_path and not is_loading:
                    with suppress(ImportError):  # nor can one of transformers that the network is made of
                        _register()
                        sys.meta_path.remove(self)

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "transformers" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisteringLater())
