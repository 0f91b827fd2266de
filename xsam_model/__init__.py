"""X-SAM by Hugging Face conventions: takes text and visual prompts, returns masks and text.

Depends on PyTorch, transformers, NumPy and Pillow, and on nothing else of this project.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

from xsam_model.configuration_xsam import XSamConfig, XSamSegmentorConfig, XSamTrunkConfig
from xsam_model.image_processing_xsam import XSamImageProcessor
from xsam_model.modeling_xsam import XSamForSegmentation, XSamImageFeatures, XSamOutput
from xsam_model.post_processing.instances import InstanceSegmentation, PhraseSegmentation
from xsam_model.post_processing.maps import PanopticSegmentation, SemanticSegmentation
from xsam_model.processing_xsam import XSamInputs, XSamProcessor
from xsam_model.prompts.answers import Caption, CaptionPhrase
from xsam_model.prompts.visual import draw_region
from xsam_model.segmenter import EncodedImages, Query, Replies, XSamResult, XSamSegmenter

AutoConfig.register(XSamConfig.model_type, XSamConfig)
AutoModel.register(XSamConfig, XSamForSegmentation)
AutoImageProcessor.register(XSamConfig, image_processor_classes={"pil": XSamImageProcessor})
AutoProcessor.register(XSamConfig, XSamProcessor)

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
