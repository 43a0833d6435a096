"""Images as they are packed: decoded, turned upright, shrunk, encoded, or rejected."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from shards.images import ImagePolicy, RejectedImageError, decode_any, decode_rgb, pack_image

KEEP = ImagePolicy(resize_short=0, quality=90)
SMALL = ImagePolicy(resize_short=32, quality=90)


def smooth_image(width: int, height: int) -> np.ndarray:
    """A smooth image, red growing to the right and green downwards: (H, W, 3) uint8."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 64)], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_small_jpeg_keeps_its_bytes() -> None:
    data = simplejpeg.encode_jpeg(smooth_image(64, 48), 90)
    assert pack_image(data, KEEP) == (data, 64, 48)
    assert pack_image(data, ImagePolicy(48, 90)) == (data, 64, 48)


def test_a_large_jpeg_is_shrunk_to_its_short_side() -> None:
    data = simplejpeg.encode_jpeg(smooth_image(300, 200), 95)
    packed, width, height = pack_image(data, SMALL)
    assert (width, height) == (48, 32)
    pixels = decode_rgb(packed)
    assert pixels.shape == (32, 48, 3)
    assert abs(pixels.astype(int) - smooth_image(48, 32)).mean() < 4  # of 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_images_come_out_upright(orientation: int) -> None:
    image = Image.fromarray(smooth_image(64, 48))
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", quality=95, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    packed, width, height = pack_image(data, KEEP)
    assert (height, width) == upright.shape[:2]
    assert abs(decode_rgb(packed).astype(int) - upright).mean() < 3
    assert abs(decode_any(data).astype(int) - upright).mean() < 3


BROKEN_EXIF = (b"", b"oops", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x05\x01\x12\0")


@pytest.mark.parametrize("rest", BROKEN_EXIF)
@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGB", "WEBP")]
)
def test_broken_exif_does_not_spoil_the_pixels(mode: str, kind: str, rest: bytes) -> None:
    source = Image.fromarray(smooth_image(64, 48)).convert(mode)
    data = encoded(source, kind, exif=b"Exif\0\0" + rest)
    wanted = np.asarray(source.convert("RGB")).astype(int)
    packed, width, height = pack_image(data, KEEP)
    assert (width, height) == (64, 48)
    assert abs(decode_rgb(packed).astype(int) - wanted).mean() < 6
    assert abs(decode_any(data).astype(int) - wanted).mean() < 6


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("RGB", "PNG"), ("RGB", "WEBP")])
def test_every_kind_of_image_is_turned_upright(mode: str, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(smooth_image(64, 48)).convert(mode), kind, exif=exif)
    assert pack_image(data, KEEP)[1:] == (48, 64)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("RGB", "WEBP")],
)
def test_every_kind_of_image_becomes_an_rgb_jpeg(mode: str, kind: str) -> None:
    source = Image.fromarray(smooth_image(64, 48)).convert(mode, palette=Image.Palette.ADAPTIVE)
    packed, width, height = pack_image(encoded(source, kind), KEEP)
    assert (width, height) == (64, 48)
    wanted = np.asarray(source.convert("RGB")).astype(int)
    assert abs(decode_rgb(packed).astype(int) - wanted).mean() < 6


def test_transparent_pixels_show_white_paper() -> None:
    source = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    packed, _, _ = pack_image(encoded(source, "PNG"), KEEP)
    assert decode_rgb(packed).min() > 250


def test_sixteen_bits_keep_their_upper_eight() -> None:
    grey = (np.arange(64 * 64, dtype=np.uint32) * 16).astype(np.uint16).reshape(64, 64)
    packed, _, _ = pack_image(encoded(Image.fromarray(grey), "PNG"), KEEP)
    assert abs(decode_rgb(packed)[:, :, 0].astype(int) - (grey >> 8)).mean() < 3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("policy", [KEEP, SMALL])
def test_a_truncated_image_is_bad(share: float, policy: ImagePolicy) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    for data in (simplejpeg.encode_jpeg(noise, 90), encoded(Image.fromarray(noise), "PNG")):
        with pytest.raises(RejectedImageError):
            pack_image(data[: int(len(data) * share)], policy)


def test_what_is_no_image_or_not_allowed_is_bad() -> None:
    bmp = encoded(Image.fromarray(smooth_image(8, 8)), "BMP")
    for data, reason in ((b"", "empty file"), (b"hello", "format not allowed"),
                         (bmp, "format not allowed")):  # fmt: skip
        with pytest.raises(RejectedImageError) as caught:
            pack_image(data, KEEP)
        assert caught.value.reason == reason


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = encoded(Image.new("1", (13_000, 13_000)), "PNG")
    with pytest.raises(RejectedImageError) as caught:
        pack_image(bomb, KEEP)
    assert caught.value.reason == "image too large"
