"""The words command: order of the words, the projector's files, the image and the page."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.checkpoints import STATE, make_record
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes
from tokenizers import Tokenizer
from werkzeug.test import Client

from pipeline import words
from pipeline.checkpoint.commit import commit
from shards.tokenizer import train_bpe_tokenizer, train_word_tokenizer

HOSTILE = "<script>alert(1)</script>"


def make_checkpoint(folder: Path, tokenizer: Tokenizer, dim: int = 12) -> Path:
    """A checkpoint with drawn embeddings; the last word is the double of the one before it."""
    weight = torch.randn(
        tokenizer.get_vocab_size(), dim, generator=torch.Generator().manual_seed(0)
    )
    weight[-1] = 2 * weight[-2]
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return commit(folder, make_record(path), STATE, {"decoder.embed.weight": weight}, {})


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of the command."""
    monkeypatch.setattr(sys, "argv", ["words", *map(str, arguments)])
    try:
        code = words.main()
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def read_page(path: Path) -> dict:
    page = path.read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(data)


def test_the_words_of_a_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = ["a man and a dog", "a man in 雪", "собака", "naïve", "a\u202eb"]
    tokenizer = train_word_tokenizer(captions, 1)
    # The pre-tokenizer would divide this word, but a vocabulary from elsewhere may hold it.
    vocabulary = json.loads(tokenizer.to_str())
    vocabulary["model"]["vocab"][HOSTILE] = tokenizer.get_vocab_size()
    tokenizer = Tokenizer.from_str(json.dumps(vocabulary))
    checkpoint = make_checkpoint(tmp_path, tokenizer)
    made = []
    for out in (tmp_path / "one", tmp_path / "two"):
        options = ("--checkpoint", checkpoint, "--out", out, "--json")
        code, printed, stderr = run(capsys, monkeypatch, *options)
        assert code == 0, stderr
        made.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert made[0] == made[1]
    result = json.loads(printed)
    assert (result["words"], result["dim"]) == (tokenizer.get_vocab_size() - 3, 12)

    page = (out / "words.html").read_text()
    assert HOSTILE not in page
    assert not re.search(r"https?:|//[a-z]", page.replace("// ", ""))
    data = read_page(out / "words.html")
    assert data["words"][:3] == ["<unk>", "a", "man"]
    assert set(data["words"]) == {
        "<unk>", "a", "man", "and", "dog", "in", "雪", "собака", "naïve", r"a\u202eb", HOSTILE
    }  # fmt: skip
    last = len(data["words"]) - 1
    assert data["neighbours"][last][0] == last - 1
    assert data["cosines"][last][0] == 1
    assert all(number not in near for number, near in enumerate(data["neighbours"]))
    image = Image.open(result["png"])
    image.load()
    assert (image.size, image.mode) == ((1600, 1600), "RGB")
    assert result["labels"] == len(data["words"])


def test_counts_of_a_data_set_order_the_words(
    tmp_path: Path, scenes: Scenes, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tokenizer = Tokenizer.from_file(str(scenes.tokenizer))
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoint = make_checkpoint(folder, tokenizer)
    # Byte for byte the same vocabulary: a data set belongs to a tokenizer by its digest.
    (folder / "tokenizer.json").write_bytes(scenes.tokenizer.read_bytes())
    checkpoint = commit(
        folder / "again", make_record(folder / "tokenizer.json"), STATE,
        {"decoder.embed.weight": torch.randn(tokenizer.get_vocab_size(), 6)}, {},
    )  # fmt: skip
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out")
    code, _, stderr = run(capsys, monkeypatch, *options, "--shards", scenes.train)
    assert code == 0, stderr
    data = read_page(tmp_path / "out" / "words.html")
    annotations = json.loads((scenes.data / "annotations" / "captions_train2017.json").read_text())[
        "annotations"
    ]
    texts = [one["caption"].lower().replace(".", " .").replace(",", " ,") for one in annotations]
    counted = [word for text in texts for word in text.split()]
    assert data["counts"] == sorted(data["counts"], reverse=True)
    assert dict(zip(data["words"], data["counts"], strict=True))["red"] == counted.count("red") > 0
    lines = (tmp_path / "out" / "words.tsv").read_text().splitlines()
    assert lines[0] == "word\trank\tcount"
    assert lines[1] == f"{data['words'][0]}\t1\t{data['counts'][0]}"

    damaged = Path(shutil.copytree(scenes.train, tmp_path / "damaged"))
    tar = min(damaged.glob("*.tar"))
    tar.write_bytes(tar.read_bytes().replace(b'"captions"', b'"caption5"', 1))
    code, _, stderr = run(capsys, monkeypatch, *options, "--shards", damaged)
    assert code == 2
    assert f"{tar}: sample" in stderr.splitlines()[-1]

    other = make_checkpoint(tmp_path, train_word_tokenizer(["a b"], 1))
    wrong = ("--checkpoint", other, "--out", tmp_path / "out", "--shards", scenes.train)
    code, _, stderr = run(capsys, monkeypatch, *wrong)
    assert code == 2
    assert "another tokenizer" in stderr


def test_pieces_of_bpe_are_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_bpe_tokenizer(["ein hübscher Hund", "ein Hund"] * 9, 2, 275)
    checkpoint = make_checkpoint(tmp_path, tokenizer)
    code, _, stderr = run(capsys, monkeypatch, "--checkpoint", checkpoint, "--out", tmp_path / "o")
    assert code == 0, stderr
    shown = read_page(tmp_path / "o" / "words.html")["words"]
    assert len(shown) == tokenizer.get_vocab_size() - 4
    assert "\u2423ein" in shown[:15]
    assert {r"\xc3", r"\xff", r"\n", r"\t", "Z"} <= set(shown[-256:])
    assert not any("\ufffd" in word or "Ġ" in word for word in shown)
    assert len((tmp_path / "o" / "words.tsv").read_text().splitlines()) == len(shown) + 1


def test_tensorboard_opens_the_projector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through TensorBoard's own reader of a log folder, without tensorflow."""
    from tensorboard.backend.application import TensorBoardWSGI
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin

    checkpoint = make_checkpoint(tmp_path, train_word_tokenizer(["a man, a dog, a cat"], 1))
    out = tmp_path / "out"
    assert run(capsys, monkeypatch, "--checkpoint", checkpoint, "--out", out)[0] == 0
    provider = MultiplexerDataProvider(EventMultiplexer(), str(out))
    plugin = ProjectorPlugin(TBContext(data_provider=provider, logdir=str(out)))
    client = Client(TensorBoardWSGI([plugin], data_provider=provider))
    route = "/data/plugin/projector"
    assert client.get(f"{route}/runs").json == ["."]
    found = client.get(f"{route}/metadata?run=.&name=words").text.splitlines()
    assert found == ["word\trank", "<unk>\t1", "a\t2", ",\t3", "cat\t4", "dog\t5", "man\t6"]
    tensor = np.frombuffer(client.get(f"{route}/tensor?run=.&name=words").data, np.float32)
    drawn = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))[3:8].numpy()
    np.testing.assert_array_equal(tensor.reshape(6, 12)[:5], drawn)


def test_unusable_input_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path, train_word_tokenizer(["a b c"], 1))
    out = tmp_path / "out"

    def line(*arguments: object) -> str:
        code, _, stderr = run(capsys, monkeypatch, *arguments)
        assert code == 2
        assert not out.exists()
        (only,) = stderr.splitlines()
        return only

    assert "--shard" in line("--checkpoint", checkpoint, "--out", out, "--shard", out)
    assert "not a checkpoint" in line("--checkpoint", tmp_path, "--out", out)
    assert "is a file" in line("--checkpoint", checkpoint, "--out", tmp_path / "tokenizer.json")
    assert "URL" in line("--checkpoint", checkpoint, "--out", "s3://bucket/words")
    nan = {"decoder.embed.weight": torch.full((7, 2), torch.nan)}
    record = make_record(tmp_path / "tokenizer.json")
    diverged = commit(tmp_path / "nan", record, STATE, nan, {})
    assert "not finite" in line("--checkpoint", diverged, "--out", out)
    small = commit(tmp_path / "s", record, STATE, {"decoder.embed.weight": torch.ones(2, 2)}, {})
    assert "embeddings of 2 tokens" in line("--checkpoint", small, "--out", out)
    none = commit(tmp_path / "none", record, STATE, {"decoder.other": torch.ones(2)}, {})
    assert "no weight decoder.embed.weight" in line("--checkpoint", none, "--out", out)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    missing = line("--checkpoint", checkpoint, "--out", out)
    assert missing == "words: the map needs scikit-learn; run: pip install '.[words]'"


def test_help_answers_without_torch_and_scikit_learn() -> None:
    code = (
        "import sys\nfrom pipeline.words import main\nsys.argv = ['words', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit: print({'torch', 'numpy', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=ONE_THREAD,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "set()"
