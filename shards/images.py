"""Checking, resizing and encoding one image; which images are rejected, and why.

Ordinary JPEGs are decoded by libjpeg-turbo at the smallest DCT scale that is not below the wanted
size, resized and encoded again. All other images are decoded by Pillow.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# No photograph is larger than this, and decoding it would take the memory of other processes.
MAX_PIXELS = 64_000_000
MAX_SIDE = 30_000
FORMATS = ("JPEG", "PNG", "WEBP")
EXIF_ORIENTATION = 0x0112
MILD_SHRINKING = 1.25  # beyond it a linear filter, two pixels wide, would skip pixels


@dataclass(frozen=True)
class ImagePolicy:
    """How images are stored."""

    resize_short: int  # largest length of the short side, in pixels; 0 keeps the original size
    quality: int  # JPEG quality, 1 to 100

    def __post_init__(self) -> None:
        if self.resize_short < 0:
            raise ValueError(f"--resize_short must be 0 or more, not {self.resize_short}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must be 1 to 100, not {self.quality}")


class RejectedImageError(Exception):
    """An image that must not be packed.

    Attributes:
        reason: one of a few fixed phrases, by which reports count.
        detail: what exactly is wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def pack_image(data: bytes, policy: ImagePolicy) -> tuple[bytes, int, int]:
    """Check an image by decoding it in full, and return the JPEG to store.

    A JPEG that is upright, RGB or grey, and not too large keeps its bytes, because encoding it
    again would lose quality. No image is enlarged.

    Returns:
        JPEG bytes, width, height (pixels).
    Raises:
        RejectedImageError: not an allowed format, too large, or damaged.
    """
    if not data:
        raise RejectedImageError("empty file", "0 bytes")
    if data[:2] == b"\xff\xd8":
        header = _jpeg_header(data)
        if header[2] not in ("CMYK", "YCCK"):  # libjpeg-turbo does not convert these to RGB
            return _pack_jpeg(data, header[0], header[1], policy)
    pixels = decode_any(data)
    height, width = target_size(pixels.shape[0], pixels.shape[1], policy.resize_short)
    return _encode(shrink(pixels, height, width), policy)


def decode_rgb(data: bytes) -> np.ndarray:
    """Decode a stored JPEG exactly, without the fast approximations.

    Returns:
        (H, W, 3) uint8.
    Raises:
        RejectedImageError: it does not decode in full.
    """
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        raise RejectedImageError("damaged image", str(error)) from None
    return pixels


def _pack_jpeg(data: bytes, height: int, width: int, policy: ImagePolicy) -> tuple[bytes, int, int]:
    _check_size(width, height)
    orientation = _exif_orientation(data)
    target_h, target_w = target_size(height, width, policy.resize_short)
    keep = (target_h, target_w) == (height, width) and orientation == 1
    # Where the bytes are kept, decoding at an eighth of the size checks them in half the time.
    least_h, least_w = (1, 1) if keep else (target_h, target_w)
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, min_height=least_h, min_width=least_w
        )
    except ValueError as error:
        raise RejectedImageError("damaged image", str(error)) from None
    if keep:
        return data, width, height
    return _encode(_upright(shrink(pixels, target_h, target_w), orientation), policy)


def _jpeg_header(data: bytes) -> tuple[int, int, str, str]:
    try:
        header: tuple[int, int, str, str] = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise RejectedImageError("damaged image", str(error)) from None
    return header


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise RejectedImageError("image too large", f"{width}x{height} pixels")


def target_size(height: int, width: int, resize_short: int) -> tuple[int, int]:
    """The size (height, width) with the short side shrunk to `resize_short`, in pixels."""
    short = min(height, width)
    if resize_short == 0 or short <= resize_short:
        return height, width
    return round(height * resize_short / short), round(width * resize_short / short)


def shrink(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 pixels to a size that is not larger than theirs."""
    if (height, width) == pixels.shape[:2]:
        return pixels
    # After DCT scaling there is usually at most a quarter left to shrink. There a linear filter is
    # as close to Lanczos as area averaging is, in a third of the time (docs/benchmarks.md).
    # INTER_LINEAR_EXACT gives the same bits on every processor.
    mild = pixels.shape[0] <= MILD_SHRINKING * height
    return cv2.resize(
        pixels, (width, height), interpolation=cv2.INTER_LINEAR_EXACT if mild else cv2.INTER_AREA
    )


def _encode(pixels: np.ndarray, policy: ImagePolicy) -> tuple[bytes, int, int]:
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), policy.quality, "RGB", "420", fastdct=False
    )
    return data, pixels.shape[1], pixels.shape[0]


def _exif_orientation(data: bytes) -> int:
    """The EXIF orientation of JPEG bytes: 1 (upright) to 8; 1 where there is none."""
    if not _has_exif(data):  # most images need no parser
        return 1
    try:
        with _open(data, ("JPEG",)) as image:
            return _orientation(image)
    except Exception:  # Pillow cannot open every file that libjpeg-turbo decodes
        return 1


def _open(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """An image of one of these formats, not yet decoded."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns; MAX_PIXELS rejects
    return Image.open(io.BytesIO(data), formats=formats)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open image: 1 to 8; 1 where none can be read."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds on broken EXIF; the pixels may be fine
        return 1
    return orientation if orientation in range(1, 9) else 1


def _has_exif(data: bytes) -> bool:
    """Whether one of the segments before the pixels is EXIF (ITU-T T.81, annex B).

    Searching all bytes for the EXIF marker would take a fiftieth of the time of packing the image.
    """
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        if marker == b"\xff":  # a fill byte
            position += 1
            continue
        if marker == b"\xda":  # start of the pixels
            return False
        if marker == b"\xe1" and data[position + 4 : position + 10] == b"Exif\0\0":
            return True
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return b"Exif\0\0" in data[: 1 << 17]  # malformed: the parser decides


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror (H, W, 3) pixels as the EXIF orientation says (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def decode_any(data: bytes) -> np.ndarray:
    """Decode the first frame of an image of any allowed format, upright, on a white background.

    Returns:
        (H, W, 3) uint8.
    Raises:
        RejectedImageError: not an allowed format, too large, or damaged.
    """
    try:
        with _open(data, FORMATS) as image:
            _check_size(*image.size)
            if image.mode.startswith("I"):  # 16 bits a channel: keep the upper 8
                pixels = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
                pixels = np.repeat(pixels[:, :, None], 3, axis=2)
            elif image.has_transparency_data:
                layer = image.convert("RGBA")
                paper = Image.new("RGBA", layer.size, "white")
                pixels = np.asarray(Image.alpha_composite(paper, layer).convert("RGB"))
            else:
                pixels = np.asarray(image.convert("RGB"))
            # Read after the pixels, because the EXIF of a PNG may follow them.
            orientation = _orientation(image)
    except (RejectedImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise RejectedImageError("format not allowed", f"not one of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise RejectedImageError("damaged image", f"{type(error).__name__}: {error}") from None
    return _upright(pixels, orientation)
