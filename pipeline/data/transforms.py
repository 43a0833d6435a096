"""JPEG bytes -> the square that the encoder sees, written directly into its slot of a batch.

S image side in pixels
"""

import math
import struct

import cv2
import numpy as np
import simplejpeg


def training_crop(data: bytes, out: np.ndarray, min_crop: float, draw: bytes) -> None:
    """Cut out a random square and decode it fast: fast DCT and upsampling, bilinear resizing.

    The side of the square is uniform in [min_crop, 1] of the image's short side, and its position
    is uniform. An image much larger than needed is decoded at a fraction of its size, which takes
    libjpeg less time.

    Args:
        data: a JPEG.
        out: (S, S, 3) uint8, contiguous; receives the crop.
        min_crop: smallest side of the crop as a share of the short side, above 0, at most 1.
        draw: 24 random bytes, which alone determine the crop.
    Raises:
        ValueError: the JPEG does not decode in full.
    """
    size = out.shape[0]
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    u, v, w = (number / 2.0**64 for number in struct.unpack("<3Q", draw))  # uniform in [0, 1)
    side = min(height, width) * (min_crop + (1.0 - min_crop) * u)
    needed = min(1.0, size / side)  # the crop must keep at least `size` pixels a side
    pixels = simplejpeg.decode_jpeg(
        data,
        "RGB",
        fastdct=True,
        fastupsample=True,
        min_height=math.ceil(height * needed),
        min_width=math.ceil(width * needed),
    )
    scale = pixels.shape[0] / height
    side = min(round(side * scale), *pixels.shape[:2])
    top = int(v * (pixels.shape[0] - side + 1))
    left = int(w * (pixels.shape[1] - side + 1))
    crop = pixels[top : top + side, left : left + side]
    cv2.resize(crop, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)


def center_crop(data: bytes, out: np.ndarray) -> None:
    """Cut out the largest square in the middle, decoded exactly, and resize it by pixel area.

    Args:
        data: a JPEG.
        out: (S, S, 3) uint8, contiguous; receives the crop.
    Raises:
        ValueError: the JPEG does not decode in full.
    """
    pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    resize_center(pixels, out)


def resize_center(pixels: np.ndarray, out: np.ndarray) -> None:
    """Cut out the largest square in the middle and resize it.

    Args:
        pixels: (H, W, 3) uint8.
        out: (S, S, 3) uint8, contiguous; receives the square.
    """
    height, width = pixels.shape[:2]
    side, size = min(height, width), out.shape[0]
    top, left = (height - side) // 2, (width - side) // 2
    crop = pixels[top : top + side, left : left + side]
    shrinking = side > size
    cv2.resize(
        crop, (size, size), dst=out, interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    )
