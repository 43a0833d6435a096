"""The pure parts of shards/: keys, plan, tokenizer, pictures."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tokenizers import normalizers

from shards.format import add_to_tar, image_id_of, key_of, open_tar_for_writing, ustar_header
from shards.images import BadImageError, ImagePolicy, decode_any, decode_rgb, pack_image
from shards.plain_captions import fast_encoder
from shards.plan import plan_shards
from shards.tokenizer import (
    SPECIAL_TOKENS,
    UNK,
    decode,
    encode,
    encode_all,
    load_tokenizer,
    train_bpe_tokenizer,
    train_word_tokenizer,
)

KEEP = ImagePolicy(resize_short=0, quality=90)
SMALL = ImagePolicy(resize_short=32, quality=90)


def picture(width: int, height: int) -> np.ndarray:
    """A smooth picture, red growing to the right and green downwards: (H, W, 3) uint8."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 64)], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# -------------------------------------------------------------------------------------- keys, plan


@given(st.integers(0, 10**15))
def test_a_key_gives_its_image_id_back(image_id: int) -> None:
    assert image_id_of(key_of(image_id)) == image_id


@given(st.text("0123456789abcdefghijklmnopqrstuvwxyz_-", min_size=1))
def test_a_string_stays_a_string_unless_it_is_a_numbers_key(image_id: str) -> None:
    is_number = image_id.isdigit() and f"{int(image_id):012d}" == image_id
    assert image_id_of(key_of(image_id)) == (int(image_id) if is_number else image_id)


@pytest.mark.parametrize("image_id", ["123", "0007", "0000000000123", "000000000139"])
def test_ids_of_digits(image_id: str) -> None:
    assert image_id_of(image_id) == (139 if image_id == "000000000139" else image_id)


@pytest.mark.parametrize("image_id", [-1, True, 1.5, "", "A b", "../x", None])
def test_an_impossible_image_id_is_refused(image_id: object) -> None:
    with pytest.raises(ValueError, match="image id"):
        key_of(image_id)  # type: ignore[arg-type]


@given(st.sets(st.integers(0, 10**6), max_size=200), st.integers(1, 50))
def test_each_record_goes_into_one_shard(ids: set[int], samples_per_shard: int) -> None:
    keys = [key_of(i) for i in ids]
    plan = plan_shards(keys, samples_per_shard)
    assert sorted(position for shard in plan for position in shard) == list(range(len(keys)))
    sizes = [len(shard) for shard in plan]
    assert max(sizes, default=0) <= samples_per_shard
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@given(st.permutations(range(40)))
def test_the_plan_does_not_depend_on_the_order_of_the_source(order: list[int]) -> None:
    keys = [key_of(i) for i in order]
    dealt = [[keys[i] for i in shard] for shard in plan_shards(keys, 7)]
    sorted_keys = sorted(keys)
    assert dealt == [[sorted_keys[i] for i in shard] for shard in plan_shards(sorted_keys, 7)]


def test_a_repeated_key_is_named() -> None:
    with pytest.raises(ValueError, match="000000000002"):
        plan_shards([key_of(i) for i in (1, 2, 2)], 10)


# --------------------------------------------------------------------------------------- tokenizer


def test_words_are_lower_case_with_punctuation_split_off() -> None:
    tokenizer = train_word_tokenizer(["A dog's ball, red.", "a DOG runs."], min_count=1)
    words = [tokenizer.id_to_token(i) for i in encode(tokenizer, "A Dog's ball!")]
    assert words == ["a", "dog", "'", "s", "ball", "<unk>"]
    assert decode(tokenizer, encode(tokenizer, "A dog's ball, red.")) == "a dog's ball, red."


def test_rare_words_become_unk_and_special_ids_are_fixed(tmp_path: Path) -> None:
    tokenizer = train_word_tokenizer(["a cat", "a cat", "a zebra"], min_count=2)
    assert encode(tokenizer, "a zebra") == [4, UNK]
    assert [tokenizer.id_to_token(i) for i in range(4)] == list(SPECIAL_TOKENS)
    tokenizer.save(str(tmp_path / "t.json"))
    assert load_tokenizer(tmp_path / "t.json").get_vocab() == tokenizer.get_vocab()


def test_text_that_looks_like_a_special_token_is_text() -> None:
    tokenizer = train_word_tokenizer(["a <pad> sign"], min_count=1)
    assert min(encode(tokenizer, "<pad> <eos>")) >= UNK


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_encodes_without_marks(captions: list[str]) -> None:
    tokenizer = train_word_tokenizer(["a b", *captions], min_count=1)
    for caption in captions:
        assert all(i > UNK for i in encode(tokenizer, caption))


WORDY = train_word_tokenizer(["A man's dog, 3 red_balls! A man; (dog) <unk> x-ray"], min_count=1)
ASCII = st.text(st.characters(max_codepoint=127), max_size=40)
SPEECH = st.lists(st.sampled_from(["A", "man", "'", "s ", "3", "_", "<unk>", "zebra", " ", "-"]))


@given(st.lists(st.one_of(ASCII, SPEECH.map("".join), st.text(max_size=20)), max_size=5))
def test_plain_captions_give_the_ids_of_the_library(captions: list[str]) -> None:
    assert fast_encoder(WORDY)(captions) == encode_all(WORDY, captions)


def test_other_tokenizers_are_the_librarys_alone() -> None:
    bpe = train_bpe_tokenizer(["a red circle"] * 3, min_count=1, vocab_size=270)
    cased = train_word_tokenizer(["a Red circle"], min_count=1)
    cased.normalizer = normalizers.NFC()
    for tokenizer in (bpe, cased):
        captions = ["A red Circle", "a red circle!"]
        assert fast_encoder(tokenizer)(captions) == encode_all(tokenizer, captions)


RUSSIAN = ["Собака бежит по траве.", "СОБАКА спит на ТРАВЕ."] * 5
JAPANESE = ["猫が窓辺で眠っている。", "犬が芝生を走っている。"] * 5


@pytest.mark.parametrize("captions", [RUSSIAN, JAPANESE])
def test_bpe_speaks_any_language(captions: list[str]) -> None:
    tokenizer = train_bpe_tokenizer(captions, min_count=2, vocab_size=400)
    assert tokenizer.get_vocab_size() <= 400
    assert [tokenizer.id_to_token(i) for i in range(4)] == list(SPECIAL_TOKENS)
    for caption in captions:
        ids = encode(tokenizer, caption)
        assert min(ids) > UNK
        assert decode(tokenizer, ids) == caption.lower()
        assert len(ids) < len(caption.encode()) / 2
    again = train_bpe_tokenizer(captions, min_count=2, vocab_size=400)
    assert again.to_str() == tokenizer.to_str()


def test_words_of_any_language_are_folded() -> None:
    for one, other in (
        ("Straße", "STRASSE"), ("Σίσυφος", "ΣΊΣΥΦΟΣ"), ("собака", "СОБАКА"), ("ﬁsh", "FISH"),
        ("cafe\u0301", "CAFÉ"), ("İ", "i\u0307"),
    ):  # fmt: skip
        tokenizer = train_word_tokenizer([one, other], min_count=2)
        assert encode(tokenizer, one) == encode(tokenizer, other) == [4]


@given(st.text(max_size=60))
def test_bpe_gives_any_text_back(text: str) -> None:
    tokenizer = train_bpe_tokenizer(["a red circle", text], min_count=1, vocab_size=300)
    folded = tokenizer.normalizer.normalize_str(text)
    assert decode(tokenizer, encode(tokenizer, text)).strip() == folded.strip()


def test_a_bpe_vocabulary_must_hold_the_bytes() -> None:
    with pytest.raises(ValueError, match="260 or more"):
        train_bpe_tokenizer(["a"], min_count=1, vocab_size=100)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version":"1.0"}'])
def test_a_broken_tokenizer_is_refused_with_its_path(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(path)


# ---------------------------------------------------------------------------------------- pictures


def test_a_small_jpeg_keeps_its_bytes() -> None:
    data = simplejpeg.encode_jpeg(picture(64, 48), 90)
    assert pack_image(data, KEEP) == (data, 64, 48)
    assert pack_image(data, ImagePolicy(48, 90)) == (data, 64, 48)


def test_a_large_jpeg_is_shrunk_to_its_short_side() -> None:
    data = simplejpeg.encode_jpeg(picture(300, 200), 95)
    packed, width, height = pack_image(data, SMALL)
    assert (width, height) == (48, 32)
    pixels = decode_rgb(packed)
    assert pixels.shape == (32, 48, 3)
    assert abs(pixels.astype(int) - picture(48, 32)).mean() < 4  # of 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_pictures_come_out_upright(orientation: int) -> None:
    image = Image.fromarray(picture(64, 48))
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
    source = Image.fromarray(picture(64, 48)).convert(mode)
    data = encoded(source, kind, exif=b"Exif\0\0" + rest)
    wanted = np.asarray(source.convert("RGB")).astype(int)
    packed, width, height = pack_image(data, KEEP)
    assert (width, height) == (64, 48)
    assert abs(decode_rgb(packed).astype(int) - wanted).mean() < 6
    assert abs(decode_any(data).astype(int) - wanted).mean() < 6


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("RGB", "PNG"), ("RGB", "WEBP")])
def test_every_kind_of_picture_is_turned_upright(mode: str, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(picture(64, 48)).convert(mode), kind, exif=exif)
    assert pack_image(data, KEEP)[1:] == (48, 64)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("RGB", "WEBP")],
)
def test_every_kind_of_picture_becomes_an_rgb_jpeg(mode: str, kind: str) -> None:
    source = Image.fromarray(picture(64, 48)).convert(mode, palette=Image.Palette.ADAPTIVE)
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
def test_a_truncated_picture_is_bad(share: float, policy: ImagePolicy) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    for data in (simplejpeg.encode_jpeg(noise, 90), encoded(Image.fromarray(noise), "PNG")):
        with pytest.raises(BadImageError):
            pack_image(data[: int(len(data) * share)], policy)


def test_what_is_no_picture_or_not_allowed_is_bad() -> None:
    bmp = encoded(Image.fromarray(picture(8, 8)), "BMP")
    for data, reason in ((b"", "empty file"), (b"hello", "format not allowed"),
                         (bmp, "format not allowed")):  # fmt: skip
        with pytest.raises(BadImageError) as caught:
            pack_image(data, KEEP)
        assert caught.value.reason == reason


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = encoded(Image.new("1", (13_000, 13_000)), "PNG")
    with pytest.raises(BadImageError) as caught:
        pack_image(bomb, KEEP)
    assert caught.value.reason == "image too large"


# -------------------------------------------------------------------------------------------- tars


@given(st.text(min_size=1, max_size=60), st.integers(0, 8**11 - 1))
def test_a_tar_header_is_that_of_tarfile(name: str, size: int) -> None:
    name = name.encode(errors="replace").decode().replace("\0", "0")
    info = tarfile.TarInfo(name)
    info.size = size
    try:
        expected = info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:  # longer than ustar can hold
        with pytest.raises(ValueError, match="name is too long"):
            ustar_header(name, size)
    else:
        assert ustar_header(name, size) == expected


@given(st.lists(st.binary(max_size=2000), max_size=6))
def test_offsets_are_where_the_data_lies(members: list[bytes]) -> None:
    file = io.BytesIO()
    with open_tar_for_writing(file) as tar:
        offsets = [add_to_tar(tar, f"{n}.bin", data) for n, data in enumerate(members)]
    raw = file.getvalue()
    for data, offset in zip(members, offsets, strict=True):
        assert raw[offset : offset + len(data)] == data
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert [tar.extractfile(m).read() for m in tar] == members  # type: ignore[union-attr]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar} <= {(0, 0, 0, 0o644)}
