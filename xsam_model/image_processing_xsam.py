"""Resizes and normalizes images for both towers, and scales visual prompts to the mask encoder's canvas."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from xsam_model.saving.bundled_code import IMAGE_PROCESSOR_MAP

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BAND_PIXELS = 2**21  # pixels of the padded square held at once; Pillow keeps four bytes for each
_TIMEOUT_S = 60.0
ImageInput = NDArray[np.uint8] | Image.Image | str | Path
SIZE_KEYS = ("original_sizes", "scaled_sizes")


class XSamImageProcessor(BaseImageProcessor):
    """Makes the two inputs that X-SAM needs for every image.

    For the vision tower the image is centered in a square of the mean color and resized. For the mask encoder its
    longest side is resized to the canvas, then it is normalized, then padded with zeros at the bottom and right.

    Args:
        vision_size: side of the vision tower's input in pixels.
        vision_mean, vision_std: normalization of that input, per RGB channel of values in [0, 1].
        segmentor_size: side of the mask encoder's canvas in pixels.
        segmentor_mean, segmentor_std: normalization of the canvas.
    """

    model_input_names = ["pixel_values", "segmentor_pixel_values"]  # noqa: RUF012  (a plain attribute of the parent)

    def __init__(
        self,
        vision_size: int = 384,
        vision_mean: Sequence[float] = (0.5, 0.5, 0.5),
        vision_std: Sequence[float] = (0.5, 0.5, 0.5),
        segmentor_size: int = 1024,
        segmentor_mean: Sequence[float] = IMAGENET_MEAN,
        segmentor_std: Sequence[float] = IMAGENET_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vision_size = vision_size
        self.vision_mean, self.vision_std = tuple(vision_mean), tuple(vision_std)
        self.segmentor_size = segmentor_size
        self.segmentor_mean, self.segmentor_std = tuple(segmentor_mean), tuple(segmentor_std)

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved of it, with the place of its code."""
        return {**super().to_dict(), "auto_map": dict(IMAGE_PROCESSOR_MAP)}

    def preprocess(
        self, images: ImageInput | Sequence[ImageInput], return_tensors: str | None = "pt", **_: Any
    ) -> BatchFeature:
        """Prepare images of any size.

        Args:
            images: uint8 (H, W, 3) RGB arrays in 0-255, PIL images, or paths or URLs of pictures, which are turned as
                their EXIF tag says; a single one is a batch of one.
            return_tensors: "pt", "np" or None.

        Returns:
            `pixel_values` (B, 3, V, V) and `segmentor_pixel_values` (B, 3, S, S) float32; `original_sizes` and
            `scaled_sizes`: lists of (height, width), the latter on the canvas without its padding.

        Raises:
            ValueError: if an array is not uint8 (H, W, 3), a PIL image has more than 8 bits a channel, an image has no
                pixels, or a path or URL is none of a picture.
        """
        images = as_batch(images)
        vision_inputs, segmentor_inputs, sizes = [], [], []
        for index, image in enumerate(images):
            # One image at a time: its PIL copy takes four bytes a pixel in addition to the array.
            picture = _to_picture(image, index)
            vision_inputs.append(self._vision_input(picture))
            segmentor_inputs.append(self._segmentor_input(picture))
            sizes.append((picture.height, picture.width))
            del picture
        data = {
            "pixel_values": np.stack(vision_inputs),
            "segmentor_pixel_values": np.stack(segmentor_inputs),
            "original_sizes": sizes,
            "scaled_sizes": [self.scaled_size(size) for size in sizes],
        }
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=list(SIZE_KEYS))

    def scaled_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of an image on the canvas: its longest side fills it, the other is rounded half up."""
        scale = self.segmentor_size / max(size_hw)
        height, width = (max(1, int(side * scale + 0.5)) for side in size_hw)
        return height, width

    def scale_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Scale a mask from its image to the canvas.

        Args:
            mask: bool (H, W) at the image's original size, not empty.

        Returns:
            bool (S, S), by nearest neighbor. A mask too small to survive that keeps the pixel at its center, so that
            the result is never empty.
        """
        height, width = self.scaled_size((mask.shape[0], mask.shape[1]))
        canvas = np.zeros((self.segmentor_size, self.segmentor_size), dtype=np.bool_)
        picture = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        canvas[:height, :width] = np.asarray(picture) > 0
        if not canvas.any():
            row, column = (int(indices.mean()) for indices in np.nonzero(mask))
            canvas[row * height // mask.shape[0], column * width // mask.shape[1]] = True
        return canvas

    def _vision_input(self, picture: Image.Image) -> NDArray[np.float32]:
        # Truncated, not rounded, as in the reference implementation: 127 for a mean of 0.5.
        fill = tuple(int(mean * 255) for mean in self.vision_mean)
        return _normalize(_resize_square(picture, self.vision_size, fill), self.vision_mean, self.vision_std)

    def _segmentor_input(self, picture: Image.Image) -> NDArray[np.float32]:
        height, width = self.scaled_size((picture.height, picture.width))
        # Padded after normalizing, so that padding is 0 for the network: the mean color, not black.
        canvas = np.zeros((3, self.segmentor_size, self.segmentor_size), dtype=np.float32)
        scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
        canvas[:, :height, :width] = _normalize(scaled, self.segmentor_mean, self.segmentor_std)
        return canvas


def _resize_square(picture: Image.Image, size: int, fill: tuple[int, ...]) -> Image.Image:
    """Return a picture centered in a square and resized to (size, size), without ever holding the whole square.

    Pillow resizes first along rows, then along columns, and rounds in between. Resizing the rows of the square in bands
    therefore gives the same pixels bit for bit; rows of padding stay the fill color at any width.
    """
    side = max(picture.size)
    left, top = ((side - length) // 2 for length in picture.size)
    narrow = Image.new("RGB", (size, side), fill)
    rows = max(1, _BAND_PIXELS // side)
    for start in range(0, picture.height, rows):
        stop = min(picture.height, start + rows)
        band = picture if rows >= picture.height else picture.crop((0, start, picture.width, stop))
        if picture.width < side:
            band, inner = Image.new("RGB", (side, stop - start), fill), band
            band.paste(inner, (left, 0))
        narrow.paste(band.resize((size, stop - start), Image.Resampling.BILINEAR), (0, top + start))
    return narrow.resize((size, size), Image.Resampling.BILINEAR)


def as_batch(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """Return a single image as a batch of one, and a batch as it is."""
    # An array of four dimensions is a batch.
    is_single = images.ndim < 4 if isinstance(images, np.ndarray) else isinstance(images, Image.Image | str | Path)
    return [images] if is_single else images  # type: ignore[list-item, return-value]


def load_picture(image: ImageInput) -> NDArray[np.uint8] | Image.Image:
    """Return an image as it is, or the picture at a path or URL, turned as its EXIF tag says.

    Raises:
        ValueError: if there is no picture.
    """
    if not isinstance(image, str | Path):
        return image
    try:
        is_url = str(image).startswith(("http://", "https://"))
        file = io.BytesIO(urlopen(str(image), timeout=_TIMEOUT_S).read()) if is_url else image
        return ImageOps.exif_transpose(Image.open(file))
    except OSError as error:
        raise ValueError(f"{image} is no picture that can be read: {error}") from error


def _to_picture(image: ImageInput, index: int) -> Image.Image:
    image = load_picture(image)
    if isinstance(image, Image.Image):
        # Modes I and F hold more than 8 bits; converting them would clip at 255.
        if image.mode[0] in "IF" or 0 in image.size:
            raise ValueError(f"image {index} must have pixels of 8 bits, got mode {image.mode} and size {image.size}")
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(
            f"image {index} must be a uint8 array of shape (height, width, 3), got {array.dtype} {array.shape}"
        )
    return Image.fromarray(array)


def _normalize(picture: Image.Image, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """RGB picture -> normalized (3, H, W) float32."""
    # Channels first, because arithmetic along a last axis of length three is slow.
    pixels = np.asarray(picture).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= np.float32(255)
    pixels -= np.array(mean, dtype=np.float32)[:, None, None]
    pixels /= np.array(std, dtype=np.float32)[:, None, None]
    return pixels


__all__ = ["ImageInput", "XSamImageProcessor", "as_batch", "load_picture"]
