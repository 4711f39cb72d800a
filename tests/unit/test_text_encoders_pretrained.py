"""Encoders that read published weights: the features of their own libraries, and folders that are checked first."""

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

import tokenizers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer  # noqa: E402

from harness.errors import UserError  # noqa: E402
from harness.text_encoders import TextEncoder, TextFeatures, load_encoder  # noqa: E402
from harness.text_encoders.config import TextConfig  # noqa: E402

CAPTIONS = ["a red circle", "", "zebras, blue and green!", "a red circle above a blue square on a green square", "red"]
WORDS = "a red blue green circle square above on"
T5 = dict(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_decoder_layers=1, num_heads=4)
T5 |= dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)  # as version 1.1
CLIP: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def spread(network: torch.nn.Module) -> Any:
    """The network with weights large enough for its tokens to differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
            elif parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return network.eval()


def save(network: Any, folder: Path, **options: Any) -> None:
    transformers.utils.logging.disable_progress_bar()
    network.save_pretrained(folder, **options)


def make_tokenizer() -> Any:
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((f"▁{word}", -3.0) for word in WORDS.split()),
    ]
    return T5Tokenizer(vocab=pieces + [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz,"], extra_ids=0)


@pytest.fixture
def whole_t5() -> Any:
    """With the weights of `t5_folder` in its encoder."""
    return spread(T5ForConditionalGeneration(T5Config(**T5)))


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder of T5 version 1.1, as transformers saves it."""
    folder = tmp_path_factory.mktemp("t5")
    state, network = spread(T5ForConditionalGeneration(T5Config(**T5))).state_dict(), T5EncoderModel(T5Config(**T5))
    network.load_state_dict({key: state[key] for key in network.state_dict()})
    save(network, folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP, as open_clip saves it for the hub."""
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder, CLIP, spread(open_clip.CLIP(**CLIP)))
    return folder


def write_clip(folder: Path, config: dict[str, Any], network: Any) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")


@pytest.fixture(params=["t5", "open-clip"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy that a test may alter."""
    original = request.getfixturevalue({"t5": "t5_folder", "open-clip": "clip_folder"}[name])
    return shutil.copytree(original, tmp_path / "copy")


def loaded(name: str, folder: Path) -> TextEncoder:
    return load_encoder(TextConfig(encoder=name, weights=str(folder)))


def assert_equal(one: TextFeatures, other: TextFeatures) -> None:
    """Of the same captions, whatever the padding."""
    assert one.mask.sum(axis=1).tolist() == other.mask.sum(axis=1).tolist()
    np.testing.assert_allclose(one.tokens[one.mask], other.tokens[other.mask], rtol=1e-4, atol=1e-5)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_text(folder: Path, **values: Any) -> dict[str, Any]:
    """Write a config of another text tower."""
    config = {**CLIP, "text_cfg": {**CLIP["text_cfg"], **values}}
    change_json(folder / "open_clip_config.json", model_cfg=config)
    return config


class Recorder(logging.Handler):
    """What a library says on the side."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


# Both encoders


def test_features_are_of_the_contract_s_types_and_nothing_on_padding(name: str, folder: Path) -> None:
    encoder = loaded(name, folder)
    features = encoder.encode(CAPTIONS)
    assert (encoder.name, encoder.dimension) == (name, 16)
    assert features.tokens.dtype == np.float32
    assert features.mask.dtype == np.bool_
    assert features.tokens.shape == (*features.mask.shape, 16)
    assert features.mask.shape[1] <= encoder.max_tokens
    assert (np.diff(features.mask.astype(int), axis=1) <= 0).all()
    assert not features.tokens[~features.mask].any()
    assert features.tokens[features.mask].std() > 0.1


def test_a_caption_s_features_depend_on_no_other_caption(name: str, folder: Path) -> None:
    encoder = loaded(name, folder)
    together = encoder.encode(CAPTIONS * 40)  # several batches
    alone = [encoder.encode([caption]) for caption in CAPTIONS]
    for row in range(len(CAPTIONS) * 40):
        own = alone[row % len(CAPTIONS)]
        one = TextFeatures(together.tokens[row : row + 1], together.mask[row : row + 1])
        assert_equal(one, own)
    turned = encoder.encode(CAPTIONS[::-1])
    assert_equal(TextFeatures(turned.tokens[::-1], turned.mask[::-1]), encoder.encode(CAPTIONS))


def test_words_and_their_order_matter(name: str, folder: Path) -> None:
    one, other, turned = loaded(name, folder).encode(["a red circle", "a blue circle", "red a circle"]).tokens
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one - turned).max() > 0.1


def test_the_hash_is_that_of_weights_and_settings_and_is_compared_before_parsing(name: str, folder: Path) -> None:
    found = loaded(name, folder).weights_hash
    stated = TextConfig(encoder=name, weights=str(folder), sha256=found)
    assert load_encoder(stated).weights_hash == found
    path = folder / ("model.safetensors" if name == "t5" else "open_clip_model.safetensors")
    state = load_file(path)
    key = next(key for key in sorted(state) if "ln_final" in key or "final_layer_norm" in key)
    state[key][0] += 0.001
    save_file(state, path, metadata={"format": "pt"})
    assert loaded(name, folder).weights_hash != found
    with pytest.raises(
        UserError, match=rf"copy: the sha256 [0-9a-f]{{64}} of its files is not the stated {found}; rest"
    ):
        load_encoder(stated)
    path.write_bytes(b"no weights at all")
    with pytest.raises(UserError, match=r"is not the stated"):
        load_encoder(stated)


def test_loading_draws_no_random_numbers(name: str, folder: Path) -> None:
    before = torch.get_rng_state()
    loaded(name, folder).encode(["a"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_files_that_cannot_be_read_are_one_line_that_names_the_folder(name: str, folder: Path, content: bytes) -> None:
    for path in sorted(folder.iterdir()):
        if path.name == "tokenizer_config.json":  # which is not read
            continue
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"copy: not weights of this text encoder \(.+\); name another folder"
        ) as raised:
            loaded(name, folder)
        assert "\n" not in str(raised.value)
        path.write_bytes(whole)
    loaded(name, folder)


def test_weights_of_another_network_are_refused_in_one_line(name: str, folder: Path) -> None:
    changes: list[dict[str, Any]]
    if name == "t5":
        path = folder / "config.json"
        changes = [{"num_layers": 3}, {"num_layers": 1}, {"d_ff": 48}, {"num_heads": 2}]
    else:
        path = folder / "open_clip_config.json"
        towers = [{"layers": 3}, {"layers": 1}, {"width": 32}, {"vocab_size": 49409}, {"flavour": "odd"}]
        changes = [{"model_cfg": {**CLIP, "text_cfg": {**CLIP["text_cfg"], **tower}}} for tower in towers]
        changes += [{"model_cfg": {"embed_dim": 8}}]
    whole, handler = path.read_text(), Recorder()
    transformers.utils.logging.add_handler(handler)
    for change in changes:
        change_json(path, **change)
        with pytest.raises(UserError, match="not weights of this text encoder"):
            loaded(name, folder)
        path.write_text(whole)
    transformers.utils.logging.remove_handler(handler)
    assert handler.said == []


# T5


def test_t5_has_the_features_of_transformers(t5_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(t5_folder, local_files_only=True)
    network: Any = T5EncoderModel.from_pretrained(t5_folder, local_files_only=True)
    features = loaded("t5", t5_folder).encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        ids = tokenizer(caption, return_tensors="pt").input_ids
        with torch.inference_mode():
            theirs = network(input_ids=ids).last_hidden_state[0].numpy()
        own = features.tokens[row][features.mask[row]]
        assert own.shape == theirs.shape
        np.testing.assert_allclose(own, theirs, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        batch = tokenizer(CAPTIONS, return_tensors="pt", padding=True, padding_side="right")
        theirs = network(**batch).last_hidden_state.numpy()
    np.testing.assert_array_equal(features.mask, batch.attention_mask.bool().numpy())
    np.testing.assert_allclose(features.tokens[features.mask], theirs[features.mask], rtol=1e-4, atol=1e-5)
    assert features.mask.sum(axis=1).tolist()[:2] == [4, 1]  # the words, and the end


def test_a_whole_t5_serves_and_so_does_one_in_several_files_or_in_half_precision(
    t5_folder: Path, whole_t5: Any, tmp_path: Path
) -> None:
    encoder = loaded("t5", t5_folder)
    expected = encoder.encode(CAPTIONS)
    hashes = {encoder.weights_hash}
    for kind, options in (("whole", {}), ("parts", {"max_shard_size": "5KB"})):
        save(whole_t5, tmp_path / kind, **options)
        make_tokenizer().save_pretrained(tmp_path / kind)
        encoder = loaded("t5", tmp_path / kind)
        assert_equal(encoder.encode(CAPTIONS), expected)
        hashes.add(encoder.weights_hash)
    parts = sorted((tmp_path / "parts").glob("model-*.safetensors"))
    assert len(parts) > 2
    state = load_file(parts[1])
    save_file({key: value + 0.001 for key, value in state.items()}, parts[1], metadata={"format": "pt"})
    hashes.add(loaded("t5", tmp_path / "parts").weights_hash)
    assert len(hashes) == 4
    parts[1].unlink()
    with pytest.raises(UserError, match=r"parts: not weights of this text encoder"):
        loaded("t5", tmp_path / "parts")
    shutil.copytree(t5_folder, tmp_path / "half")
    path = tmp_path / "half" / "model.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    half = loaded("t5", tmp_path / "half").encode(CAPTIONS)
    save(whole_t5.bfloat16().float(), tmp_path / "rounded")
    make_tokenizer().save_pretrained(tmp_path / "rounded")
    assert_equal(half, loaded("t5", tmp_path / "rounded").encode(CAPTIONS))  # the weights alone were rounded
    assert np.abs(half.tokens - expected.tokens).max() > 1e-3


def test_long_captions_are_cut_and_keep_their_end(t5_folder: Path, tmp_path: Path) -> None:
    encoder = loaded("t5", t5_folder)
    assert encoder.max_tokens == 128
    long, cut = encoder.encode(["red " * 200]), encoder.encode(["red " * 127])
    assert long.mask.shape == (1, 128)
    assert_equal(long, cut)
    folder = shutil.copytree(t5_folder, tmp_path / "copy")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=40)  # has no say
    tokenizer.save(str(folder / "tokenizer.json"))
    shorter = loaded("t5", folder)
    assert shorter.max_tokens == 6
    assert_equal(shorter.encode(["red " * 200, "a"]), encoder.encode(["red " * 5, "a"]))


def test_a_tokenizer_that_is_not_this_t5_s_is_refused(t5_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(t5_folder, tmp_path / "copy")
    path = folder / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"more{i}" for i in range(64)])
    tokenizer.save(str(path))
    with pytest.raises(UserError, match=r"tokenizer.json has a token \d+, but the network knows 64"):
        loaded("t5", folder)
    shutil.copy(t5_folder / "tokenizer.json", path)
    change_json(path, post_processor=None)
    with pytest.raises(UserError, match=r"tokenizer.json makes \[\] of the empty text, not T5's end \[1\]"):
        loaded("t5", folder)


# open_clip


def states_of(network: Any, ids: torch.Tensor) -> torch.Tensor:
    """The text tower spelled out, up to its last norm."""
    with torch.inference_mode():
        tower = getattr(network, "text", network)
        x = tower.token_embedding(ids) + tower.positional_embedding
        return tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))


@pytest.mark.parametrize("custom", [False, True])
def test_open_clip_has_the_tokens_that_its_embedding_is_made_of(custom: bool, tmp_path: Path) -> None:
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    write_clip(tmp_path, {**CLIP, "custom_text": custom}, spread(kind(**CLIP)))
    encoder = loaded("open-clip", tmp_path)
    features = encoder.encode(CAPTIONS)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    assert isinstance(theirs, kind)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    ids = tokenizer(CAPTIONS)
    assert encoder.max_tokens == ids.shape[1] == 16
    assert features.mask.sum(axis=1).tolist() == [len(tokenizer.encode(caption)) + 2 for caption in CAPTIONS]
    own = features.mask
    np.testing.assert_allclose(features.tokens[own], states_of(theirs, ids).numpy()[own], rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        embedding = theirs.encode_text(ids).numpy()
    last = features.tokens[np.arange(len(CAPTIONS)), own.sum(axis=1) - 1]
    projection = getattr(theirs, "text", theirs).text_projection.detach().numpy()
    np.testing.assert_allclose(last @ projection, embedding, rtol=1e-3, atol=1e-4)


def test_the_settings_of_the_tower_are_its_config_s(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "copy")
    plain = loaded("open-clip", folder)
    change_json(folder / "open_clip_config.json", model_cfg={**CLIP, "quick_gelu": True})
    quick = loaded("open-clip", folder)
    difference = np.abs(quick.encode(CAPTIONS).tokens - plain.encode(CAPTIONS).tokens)
    assert difference.max() > 1e-3
    assert quick.weights_hash != plain.weights_hash


def test_captions_longer_than_the_context_are_cut_alike_every_time(clip_folder: Path, tmp_path: Path) -> None:
    long, cut = " ".join(WORDS.split() * 5), " ".join((WORDS.split() * 5)[:14])
    encoder = loaded("open-clip", clip_folder)
    assert_equal(encoder.encode([long]), encoder.encode([cut]))
    folder = shutil.copytree(clip_folder, tmp_path / "copy")
    change_text(folder, tokenizer_kwargs={"reduction_mask": "random"})
    assert_equal(loaded("open-clip", folder).encode([long]), encoder.encode([cut]))
    change_text(folder, tokenizer_kwargs={"clean": "whitespace"})
    cased = loaded("open-clip", folder).encode(["RED circle"]).tokens
    assert np.abs(cased - encoder.encode(["RED circle"]).tokens[:, : cased.shape[1]]).max() > 0.01


def test_a_pytorch_file_serves_where_there_is_no_other(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "copy")
    encoder = loaded("open-clip", folder)
    torch.save(load_file(folder / "open_clip_model.safetensors"), folder / "open_clip_pytorch_model.bin")
    assert loaded("open-clip", folder).weights_hash == encoder.weights_hash
    (folder / "open_clip_model.safetensors").unlink()
    other = loaded("open-clip", folder)
    assert other.weights_hash != encoder.weights_hash
    assert_equal(other.encode(CAPTIONS), encoder.encode(CAPTIONS))


class Harmful:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_not_executed(clip_folder: Path, t5_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"logit_scale": Harmful(tmp_path / "harm")}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="not weights of this text encoder"):
        loaded("open-clip", folder)
    folder = shutil.copytree(t5_folder, tmp_path / "t5")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    with pytest.raises(UserError, match=r"model.safetensors: no such file"):
        loaded("t5", folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("hf_model_name", {"hf_model_name": "roberta-base"}),
        ("hf_tokenizer_name", {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}),
        ("embed_cls", {"embed_cls": True}),
    ],
)
def test_towers_of_another_kind_are_refused(
    key: str, values: dict[str, Any], clip_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "copy")
    change_text(folder, **values)
    with pytest.raises(UserError, match=f"{key} in open_clip_config.json: not CLIP's own text tower"):
        loaded("open-clip", folder)
    change_json(folder / "open_clip_config.json", model_cfg={**CLIP, "multimodal_cfg": {}})
    with pytest.raises(UserError, match=r"multimodal_cfg in open_clip_config.json"):
        loaded("open-clip", folder)


def test_a_tower_with_fewer_tokens_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    config = {**CLIP, "text_cfg": {**CLIP["text_cfg"], "vocab_size": 300}}
    write_clip(tmp_path, config, open_clip.CLIP(**config))
    with pytest.raises(UserError, match="knows 300 tokens, and the tokenizer makes 49408"):
        loaded("open-clip", tmp_path)


def test_no_weights_of_an_image_tower_are_fetched(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "copy")
    vision = {"timm_model_name": "vit_base_patch16_224", "timm_model_pretrained": True, "image_size": 224}
    change_json(folder / "open_clip_config.json", model_cfg={**CLIP, "vision_cfg": vision})
    asked: list[bool] = []

    def create_model(name: str, pretrained: bool = False, **options: Any) -> None:
        asked.append(pretrained)
        raise RuntimeError("far enough")

    monkeypatch.setattr("timm.create_model", create_model)
    with pytest.raises(UserError, match="far enough"):
        loaded("open-clip", folder)
    assert asked == [False]
