"""`pipeline.caption --attention`: the drawn captions are the printed ones; what is refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.checkpoints import STATE, make_record
from support.in_process import run_here
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes

from pipeline.caption import main
from pipeline.checkpoint.commit import commit
from pipeline.config.data import DataConfig
from pipeline.config.generation import GenerationConfig
from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.config.parser import dump_config
from pipeline.config.run import Config
from pipeline.evaluation.attended_images import attended_images
from pipeline.evaluation.image_files import read_image
from pipeline.generation.trained import load_trained
from pipeline.model.captioner import Captioner
from pipeline.observability.attention_panels import GAP, PANELS
from pipeline.observability.contact_sheet import IMAGE_SIDE, LINE_HEIGHT, MARGIN
from shards.tokenizer import encode, load_tokenizer, train_bpe_tokenizer

LAUNCH = ("-m", "launch", "--config_file", "launch/cpu.yaml", "--num_processes", "2")
TOKENS = PANELS + 2  # of each caption


def make_checkpoint(folder: Path, tokenizer: Path, kind: str) -> Path:
    """A captioner with random weights whose captions all have `TOKENS` tokens."""
    torch.manual_seed(0)
    encoder = EncoderConfig("shufflenet_v2_x0_5", weights=None, hidden_dim=16)
    decoder = DecoderConfig(kind, 16, attention_dim=8, heads=2)  # type: ignore[arg-type]
    config = Config(
        data=DataConfig(train="shards", image_size=96),
        model=ModelConfig(dim=16, encoder=encoder, decoder=decoder),
        generation=GenerationConfig("beam", beam=2, max_tokens=TOKENS, min_tokens=TOKENS),
    )
    captioner = Captioner(config.model, load_tokenizer(tokenizer).get_vocab_size())
    torch.nn.init.normal_(captioner.decoder.to_words.weight, std=2.0)
    record = make_record(tokenizer, dump_config(config))
    return commit(folder / kind, record, STATE, captioner.state_dict(), {})


@pytest.fixture(scope="module")
def checkpoint(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("run"), scenes.tokenizer, "soft_attention")


@pytest.fixture(scope="module")
def photos(scenes: Scenes) -> list[str]:
    return sorted(map(str, scenes.data.glob("val2017/*.jpg")))[:3]


def caption(*arguments: object, launch: tuple[str, ...] = ()) -> str:
    """What the command prints."""
    command = [sys.executable, *launch, "-m", "pipeline.caption", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_draws_a_row_for_each_image(
    checkpoint: Path, photos: list[str], tmp_path: Path
) -> None:
    drawn = tmp_path / "new" / "attention.png"
    printed = caption("--checkpoint", checkpoint, *photos, "--attention", drawn).splitlines()
    attended = attended_images(load_trained(checkpoint), torch.device("cpu"), photos)
    assert printed == [f"{p}: {a.caption}" for p, a in zip(photos, attended, strict=True)]
    cell, num_lines = IMAGE_SIDE + MARGIN, 2
    rows_height = 3 * (num_lines * (cell + 2 * LINE_HEIGHT) + GAP)
    with Image.open(drawn) as image:
        assert image.width == (PANELS + 1) * cell + MARGIN
        assert rows_height < image.height < rows_height + 60  # the legend

    both, later = tmp_path / "two.png", tmp_path / "later.png"
    options = ("--checkpoint", checkpoint, *photos, "--out", tmp_path / "captions.json")
    caption(*options, "--attention", both, launch=LAUNCH)
    assert both.read_bytes() == drawn.read_bytes()  # two processes draw as one does
    assert run_here(main, *options, "--attention", later) == 0  # for captions of an earlier run
    assert later.read_bytes() == drawn.read_bytes()


def test_an_image_that_was_captioned_earlier_and_cannot_be_read_now_is_not_drawn(
    checkpoint: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, photo in enumerate(photos[:2]):
        shutil.copyfile(photo, tmp_path / f"{number}.jpg")
    (tmp_path / "2.jpg").write_bytes(b"damaged")
    (tmp_path / "2.txt").write_text("a caption from before")
    drawn = ("--sheet", tmp_path / "sheet.png", "--attention", tmp_path / "attention.png")
    assert run_here(main, "--checkpoint", checkpoint, tmp_path, "--txt", *drawn) == 0
    said = capsys.readouterr().err
    assert said.count(f"{tmp_path / '2.jpg'}: not drawn: ") == 2
    assert all(path.exists() for path in drawn[1::2])


@pytest.mark.parametrize("kind", ["adaptive", "transformer"])
def test_each_token_has_its_word_and_its_weights(
    kind: str, scenes: Scenes, photos: list[str], tmp_path: Path
) -> None:
    trained = load_trained(make_checkpoint(tmp_path, scenes.tokenizer, kind))
    for path, found in zip(
        photos, attended_images(trained, torch.device("cpu"), photos), strict=True
    ):
        assert (found.pixels == read_image(path, 96)).all()
        assert len(found.tokens) == TOKENS
        assert found.attention.shape == (TOKENS, 9)  # 96 pixels at a stride of 32
        shares = found.attention.sum(axis=1)
        assert (shares < 0.99).any() == (kind == "adaptive")  # the sentinel has the rest
        assert (shares < 1.001).all()


def test_pieces_of_words_are_shown_as_text(photos: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bpe.json"
    tokenizer = train_bpe_tokenizer(["a naïve dog", "a dog 雪"] * 2, 2, 300)
    tokenizer.save(str(path))
    trained = load_trained(make_checkpoint(tmp_path, path, "att2in"))
    dog = encode(tokenizer, "dog")[0]
    with torch.no_grad():
        trained.captioner.get_submodule("decoder.to_words").bias[dog] = 100.0
    (found,) = attended_images(trained, torch.device("cpu"), photos[:1])
    assert found.tokens == ["dog"] * TOKENS
    assert found.caption == " ".join(found.tokens)


def test_what_cannot_be_drawn_is_refused_with_one_line(
    checkpoint: Path,
    photos: list[str],
    scenes: Scenes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*arguments: object) -> str:
        assert run_here(main, *arguments, *photos) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        return line

    one, drawn = ("--checkpoint", checkpoint), ("--attention", tmp_path / "a.png")
    assert "must end in .png" in refused(*one, "--attention", "a.gif")
    assert "file of --sheet" in refused(*one, *drawn, "--sheet", tmp_path / "a.png")
    assert "give one --checkpoint" in refused(*one, *one, *drawn)
    assert "no image in this folder" in refused(*one, *drawn, scenes.val)  # shards, or features
    for kind in ("lstm", "gru"):
        without = make_checkpoint(tmp_path, scenes.tokenizer, kind)
        line = refused("--checkpoint", without, *drawn)
        assert f"{kind}, has no attention" in line
        assert "soft_attention" in line
    assert not (tmp_path / "a.png").exists()
