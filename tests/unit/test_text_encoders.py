"""Text encoders by name, the committed one, and the table of a data set's captions."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from harness.errors import UserError
from harness.text_encoders import TextEncoder, TextFeatures, load_encoder, module_of, require_available
from harness.text_encoders.config import TextConfig
from harness.text_encoders.pretrained import FORMATS, read
from harness.text_encoders.table import BATCH, TextTable, text_identity

DIMENSION, MAX_TOKENS = 5, 12


def strings(*captions: str) -> np.ndarray:
    return np.array(captions, np.dtypes.StringDType())


def word_features(word: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(word.encode()).digest()[:DIMENSION], np.uint8).astype(np.float32) / 100


class Words:
    """An encoder whose tokens are functions of the words alone; it pads a batch to its longest, and with junk."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.encoder = TextEncoder("words", "0" * 64, DIMENSION, MAX_TOKENS, self.encode)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        self.seen.append(list(captions))
        words = [caption.split() for caption in captions]
        mask = np.arange(max(map(len, words)))[None] < np.array([len(own) for own in words])[:, None]
        tokens = np.zeros((*mask.shape, DIMENSION), np.float32)
        tokens[mask] = [word_features(word) for own in words for word in own]
        return TextFeatures(tokens, mask)


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def many() -> np.ndarray:
    """700 images with 600 different captions of 1 to 9 words, in no order."""
    rng = np.random.default_rng(0)
    captions = [" ".join([f"w{i}", *["word"] * int(rng.integers(0, 9))]) for i in range(600)]
    return strings(*(captions[i] for i in rng.permutation([*range(600), *range(100)])))


def test_rows_are_the_features_of_each_image_s_caption(words: Words, many: np.ndarray) -> None:
    table = TextTable.build(many, words.encoder, "captions")
    positions = np.array([5, 0, 699, 5, 123])
    found = table.rows(positions)
    assert (found.tokens.dtype, found.mask.dtype) == (np.float32, np.bool_)
    for row, position in enumerate(positions):
        own = words.encode([many[position]])
        n = own.mask.sum()
        assert found.mask[row].tolist() == [True] * n + [False] * (found.mask.shape[1] - n)
        np.testing.assert_allclose(found.tokens[row, :n], own.tokens[0], rtol=2**-11)
        assert not found.tokens[row, n:].any()


def test_equal_captions_are_encoded_and_stored_once_in_batches(words: Words, many: np.ndarray) -> None:
    table = TextTable.build(many, words.encoder, "captions")
    assert len(table) == 700
    assert table.tokens.shape == (600, max(len(caption.split()) for caption in many), DIMENSION)
    assert table.tokens.dtype == np.float16
    assert table.mask.shape == table.tokens.shape[:2]
    assert sorted(caption for batch in words.seen for caption in batch) == sorted(set(many.tolist()))
    assert [len(batch) for batch in words.seen] == [BATCH, BATCH, 600 - 2 * BATCH]
    same = np.flatnonzero(many == many[3])
    assert len(set(table.index[same])) == 1


def test_the_order_of_the_images_changes_nothing_but_the_index(words: Words, many: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(len(many))
    one, other = (TextTable.build(captions, words.encoder, "captions") for captions in (many, many[order]))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.index[order], other.index)
    assert one.identity != other.identity  # whose index is another one
    assert one.digest != other.digest


def test_a_table_is_as_long_as_its_longest_caption_where_an_encoder_always_pads() -> None:
    def encode(captions: Sequence[str]) -> TextFeatures:
        mask = np.arange(MAX_TOKENS) < np.array([len(caption.split()) for caption in captions])[:, None]
        return TextFeatures(np.where(mask[..., None], np.float32(1), np.float32(0)).repeat(DIMENSION, axis=2), mask)

    encoder = TextEncoder("padded", "0" * 64, DIMENSION, MAX_TOKENS, encode)
    table = TextTable.build(strings("a b c", "a"), encoder, "captions")
    assert table.tokens.shape == (2, 3, DIMENSION)
    assert table.rows(np.array([0, 1])).mask.sum(axis=1).tolist() == [3, 1]


def test_a_saved_table_is_read_back_and_its_tokens_stay_on_disk(words: Words, many: np.ndarray, tmp_path: Path) -> None:
    table = TextTable.build(many, words.encoder, "captions")
    table.save(tmp_path / "a.npz")
    read = TextTable.load(tmp_path / "a.npz")
    assert isinstance(read.tokens.base, np.memmap)
    for name in ("tokens", "mask", "index"):
        np.testing.assert_array_equal(getattr(read, name), getattr(table, name))
        assert getattr(read, name).dtype == getattr(table, name).dtype
    assert read.identity == table.identity == text_identity(many, words.encoder)
    assert read.digest == table.digest
    np.testing.assert_array_equal(read.rows(np.arange(9)).tokens, table.rows(np.arange(9)).tokens)
    read.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_table_that_is_absent_or_damaged_is_refused(words: Words, many: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "text.npz"
    with pytest.raises(UserError, match=r"text.npz: no such file; write it first, with: fewstep text$"):
        TextTable.load(path)
    table = TextTable.build(many, words.encoder, "captions")
    table.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="truncated, altered"):
        TextTable.load(path)
    altered = bytearray(whole)
    altered[whole.index(table.tokens[300].tobytes())] ^= 1
    path.write_bytes(altered)
    with pytest.raises(UserError, match="does not match its digest; delete it and produce it anew"):
        TextTable.load(path)
    np.savez(path, tokens=table.tokens, mask=table.mask, index=table.index, identity="[1]", digest="")
    with pytest.raises(UserError, match="does not match its digest"):
        TextTable.load(path)
    np.savez(path, tokens=table.tokens)
    with pytest.raises(UserError, match="expected the arrays"):
        TextTable.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_features_that_half_precision_cannot_hold_are_refused(value: float) -> None:
    def encode(captions: Sequence[str]) -> TextFeatures:
        tokens = np.ones((len(captions), 2, DIMENSION), np.float32)
        tokens[[caption == "bad" for caption in captions], 1, 3] = value
        return TextFeatures(tokens, np.ones((len(captions), 2), bool))

    encoder = TextEncoder("odd", "0" * 64, DIMENSION, MAX_TOKENS, encode)
    with pytest.raises(UserError, match="encoder 'odd' are not finite in half precision, first those of 'bad'"):
        TextTable.build(strings("good", "bad", "other"), encoder, "captions")
    TextTable.build(strings("good", "other"), encoder, "captions")


def test_the_identity_says_which_encoder_weights_and_captions(words: Words) -> None:
    one = text_identity(strings("a", "b"), words.encoder)
    assert one == {
        "encoder": "words",
        "encoder_weights": "0" * 64,
        "captions_digest": hashlib.sha256(b'["a", "b"]').hexdigest(),
    }
    assert text_identity(strings("a", "c"), words.encoder) != one
    other = TextEncoder("words", "1" * 64, DIMENSION, MAX_TOKENS, words.encode)
    assert text_identity(strings("a", "b"), other) != one


def test_shapes_clip_has_the_features_of_the_committed_model() -> None:
    pytest.importorskip("open_clip")
    from harness.datasets import load_dataset
    from harness.metrics import shapes_clip

    config = TextConfig(encoder="shapes-clip")
    require_available(config)
    encoder = load_encoder(config)
    assert (encoder.name, encoder.dimension, encoder.max_tokens) == ("shapes-clip", 64, 20)
    assert encoder.weights_hash == shapes_clip.WEIGHTS_SHA256
    captions = load_dataset("shapes", "heldout").captions[:300].tolist()
    found, theirs = encoder.encode(["", *captions]), shapes_clip.load_clip().text_features(captions)
    assert found.mask.sum(axis=1).tolist() == [1, *(len(caption.split()) + 1 for caption in captions)]
    np.testing.assert_array_equal(found.mask[1:], theirs.mask)
    np.testing.assert_allclose(found.tokens[1:][theirs.mask], theirs.tokens[theirs.mask], atol=1e-5)
    assert not found.tokens[~found.mask].any()
    alone, turned = encoder.encode(captions[7:8]), encoder.encode(captions[::-1])
    np.testing.assert_allclose(alone.tokens[0], found.tokens[8], atol=1e-5)
    np.testing.assert_allclose(turned.tokens[::-1], found.tokens[1:], atol=1e-5)
    table = TextTable.build(strings(*captions, captions[0]), encoder, "captions")
    assert table.tokens.shape[1] == max(len(caption.split()) for caption in captions) + 1
    np.testing.assert_allclose(table.rows(np.array([300])).tokens[0], found.tokens[1, : table.mask.shape[1]], atol=0.01)
    with pytest.raises(UserError, match="unknown word 'zebra'"):
        encoder.encode(["a zebra"])


def test_unknown_and_unfit_encoders_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for check in (require_available, module_of, load_encoder):
        with pytest.raises(UserError, match=r"unknown text encoder 'shape-clip'; did you mean 'shapes-clip'\? known: "):
            check(TextConfig(encoder="shape-clip"))
        with pytest.raises(UserError, match="'shapes-clip' is committed with its weights and takes no others"):
            check(TextConfig(encoder="shapes-clip", weights=str(tmp_path)))
        for name in FORMATS:
            with pytest.raises(UserError, match=f"'{name}' has no weights of its own; name their folder"):
                check(TextConfig(encoder=name))
    assert module_of(TextConfig(encoder="t5", weights="anywhere")) == "harness.text_encoders.t5"


def test_the_folder_of_weights_starts_from_that_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TextConfig(encoder="t5", weights="models/t5")
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    with pytest.raises(
        UserError, match=r"models/t5: no such folder; set FEWSTEP_DATA to the folder that holds 'models"
    ):
        require_available(config)
    folder = tmp_path / "models" / "t5"
    folder.mkdir(parents=True)
    for name, message in (
        ("config.json", r"t5/config.json: no such file, and the text encoder 't5' needs it; transformers' save_pre"),
        ("model.safetensors", r"t5/model.safetensors: no such file \(nor model.safetensors.index.json\)"),
        ("tokenizer.json", r"t5/tokenizer.json: no such file, and"),
    ):
        with pytest.raises(UserError, match=message):
            require_available(config)
        with pytest.raises(UserError, match=message):
            load_encoder(config)
        (folder / name).touch()
    require_available(config)
    monkeypatch.setenv("HOME", str(tmp_path))
    require_available(TextConfig(encoder="t5", weights="~/models/t5"))
    monkeypatch.delenv("FEWSTEP_DATA")
    monkeypatch.chdir(tmp_path)
    require_available(config)
    require_available(TextConfig(encoder="t5", weights=str(folder)))


def test_the_hash_is_that_of_the_lines_of_sha256sum(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model-00001-of-00001.safetensors": b"weights", "tokenizer.json": b"words"}
    files |= {"model.safetensors.index.json": b"index"}
    for name, content in {**files, "README.md": b"not a part"}.items():
        (tmp_path / name).write_bytes(content)
    lines = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    weights = read(TextConfig(encoder="t5", weights=str(tmp_path)))
    assert [path.name for path in weights.paths] == sorted(files)
    assert weights.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    for name in files:
        (tmp_path / name).write_bytes(b"other")
        assert read(TextConfig(encoder="t5", weights=str(tmp_path))).sha256 != weights.sha256
        (tmp_path / name).write_bytes(files[name])
    (tmp_path / "README.md").write_bytes(b"other")
    assert read(TextConfig(encoder="t5", weights=str(tmp_path), sha256=weights.sha256)).sha256 == weights.sha256


def test_a_section_states_no_hash_of_nothing_and_no_path_as_content() -> None:
    with pytest.raises(ValidationError, match="sha256 is stated without weights"):
        TextConfig(encoder="shapes-clip", sha256="0" * 64)
    with pytest.raises(ValidationError, match="sha256"):
        TextConfig(encoder="t5", weights="a", sha256="0" * 63)
    with pytest.raises(ValidationError, match="layers"):
        TextConfig.model_validate({"encoder": "t5", "layers": 3})
    assert TextConfig(encoder="shapes-clip").content == "shapes-clip"
    assert TextConfig(encoder="t5", weights="a").content == TextConfig(encoder="t5", weights="b").content
    stated = [TextConfig(encoder="t5", weights="a", sha256=digit * 64).content for digit in "01"]
    assert stated[0] == {"encoder": "t5", "sha256": "0" * 64} != stated[1]


@pytest.mark.parametrize(("name", "library"), [("t5", "transformers"), ("open-clip", "open_clip")])
def test_a_library_that_is_not_installed_is_named(
    name: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for group in FORMATS[name].required:
        (tmp_path / group[0]).touch()
    config = TextConfig(encoder=name, weights=str(tmp_path))
    monkeypatch.delitem(sys.modules, module_of(config), raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    require_available(config)
    with pytest.raises(
        UserError, match=rf"'{name}' needs {library}, .* not installed; pip install 'fewstep\[metrics\]'"
    ):
        load_encoder(config)


def test_heavy_libraries_are_imported_by_the_encoders_alone() -> None:
    heavy = {"torch", "transformers", "open_clip", "PIL"}
    program = f"import sys, harness.text_encoders.table; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "set()"
