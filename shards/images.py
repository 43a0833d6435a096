"""Bytes of a picture -> checked, resized, encoded bytes; what is rejected, and why.

Ordinary JPEGs go through libjpeg-turbo: decoded at the smallest DCT scale that is not below the
wanted size, resized, encoded again. Everything else goes through Pillow.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# Anything larger than this is no photograph; decoding it would only take the memory of others.
MAX_PIXELS = 64_000_000
MAX_SIDE = 30_000
FORMATS = ("JPEG", "PNG", "WEBP")
EXIF_ORIENTATION = 0x0112
MILD_SHRINKING = 1.25  # a linear filter sees two pixels across; beyond this it would miss some

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns; MAX_PIXELS above refuses


@dataclass(frozen=True)
class ImagePolicy:
    """How pictures are stored."""

    resize_short: int  # the short side in pixels at the most; 0 keeps the original size
    quality: int  # JPEG quality, 1 to 100

    def __post_init__(self) -> None:
        if self.resize_short < 0:
            raise ValueError(f"--resize-short must be 0 or more, not {self.resize_short}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must be 1 to 100, not {self.quality}")


class BadImageError(Exception):
    """A picture that must not be packed.

    reason: one of a few fixed phrases, which reports count by; detail: the particulars.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def pack_image(data: bytes, policy: ImagePolicy) -> tuple[bytes, int, int]:
    """Check a picture by decoding it in full, and give the JPEG to store.

    A JPEG that is upright RGB or grey and needs no shrinking keeps its bytes: encoding it again
    would only lose quality. Nothing is ever enlarged.

    Returns:
        JPEG bytes, width, height (pixels).
    Raises:
        BadImageError: not an allowed format, too large, or damaged.
    """
    if not data:
        raise BadImageError("empty file", "0 bytes")
    if data[:2] == b"\xff\xd8":
        header = _jpeg_header(data)
        if header[2] not in ("CMYK", "YCCK"):  # libjpeg-turbo does not turn these into RGB
            return _pack_jpeg(data, header[0], header[1], policy)
    pixels = decode_any(data)
    height, width = target_size(pixels.shape[0], pixels.shape[1], policy.resize_short)
    return _encode(shrink(pixels, height, width), policy)


def decode_rgb(data: bytes) -> np.ndarray:
    """Decode a stored JPEG exactly.

    Returns:
        (H, W, 3) uint8.
    Raises:
        BadImageError: it does not decode in full.
    """
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        raise BadImageError("damaged image", str(error)) from None
    return pixels


def _pack_jpeg(data: bytes, height: int, width: int, policy: ImagePolicy) -> tuple[bytes, int, int]:
    _check_size(width, height)
    orientation = _exif_orientation(data)
    target_h, target_w = target_size(height, width, policy.resize_short)
    keep = (target_h, target_w) == (height, width) and orientation == 1
    # Where the bytes are kept, an eighth of the size reads them as fully in half the time.
    least_h, least_w = (1, 1) if keep else (target_h, target_w)
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, min_height=least_h, min_width=least_w
        )
    except ValueError as error:
        raise BadImageError("damaged image", str(error)) from None
    if keep:
        return data, width, height
    return _encode(_upright(shrink(pixels, target_h, target_w), orientation), policy)


def _jpeg_header(data: bytes) -> tuple[int, int, str, str]:
    try:
        header: tuple[int, int, str, str] = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadImageError("damaged image", str(error)) from None
    return header


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadImageError("image too large", f"{width}x{height} pixels")


def target_size(height: int, width: int, resize_short: int) -> tuple[int, int]:
    """Size with the short side at `resize_short`, at most the present size."""
    short = min(height, width)
    if resize_short == 0 or short <= resize_short:
        return height, width
    return round(height * resize_short / short), round(width * resize_short / short)


def shrink(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 pixels to a size that is not larger."""
    if (height, width) == pixels.shape[:2]:
        return pixels
    # A decoder's DCT scaling leaves at most a quarter to shrink as a rule, where a linear filter is
    # as close to Lanczos as averaging areas, in a third of the time (docs/benchmarks.md). This one
    # gives the same bits on every processor.
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
    """The EXIF orientation, 1 (upright) to 8, of JPEG bytes; 1 where there is none."""
    if not _has_exif(data):  # spares most pictures the parser
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _orientation(image)
    except Exception:  # what libjpeg-turbo decodes, Pillow need not open
        return 1


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, of an open picture; 1 where there is none that can be read."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds on broken EXIF; the pixels are what counts
        return 1
    return orientation if orientation in range(1, 9) else 1


def _has_exif(data: bytes) -> bool:
    """Whether one of the segments before the pixels is EXIF (ITU-T T.81, annex B).

    Searching all bytes for its mark would take as long as a fiftieth of packing the picture.
    """
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        if marker == b"\xff":  # a fill byte
            position += 1
            continue
        if marker == b"\xda":  # the pixels begin
            return False
        if marker == b"\xe1" and data[position + 4 : position + 10] == b"Exif\0\0":
            return True
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return b"Exif\0\0" in data[: 1 << 17]  # an odd file: let the parser see


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, 3) pixels upright as the EXIF orientation says (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def decode_any(data: bytes) -> np.ndarray:
    """Decode a picture of any allowed format, upright, its first frame, on white paper.

    Returns:
        (H, W, 3) uint8.
    Raises:
        BadImageError: not an allowed format, too large, or damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size)
            if image.mode.startswith("I"):  # 16 bits a channel: keep the upper eight
                pixels = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
                pixels = np.repeat(pixels[:, :, None], 3, axis=2)
            elif image.has_transparency_data:
                layer = image.convert("RGBA")
                paper = Image.new("RGBA", layer.size, "white")
                pixels = np.asarray(Image.alpha_composite(paper, layer).convert("RGB"))
            else:
                pixels = np.asarray(image.convert("RGB"))
            # After the pixels: a PNG's EXIF may lie behind them, and damage to them must show.
            orientation = _orientation(image)
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImageError("format not allowed", f"not one of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise BadImageError("damaged image", f"{type(error).__name__}: {error}") from None
    return _upright(pixels, orientation)
