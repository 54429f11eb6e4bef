"""Text transformers lowered to bfloat16: how far they are from float32, and what they leave alone."""

import json

import pytest
import torch
import torch.nn.functional as F

from m3di.teachers.clip import Teacher
from m3di.teachers.libraries import import_open_clip
from m3di.teachers.lowering import lower_linears
from m3di.teachers.towers import text_head, text_trunk
from m3di.training.objectives.objective import SAME_TEXT

WORDS = ["liver", "lung", "brain", "axial", "slice", "of", "the", "near", "its", "centre", "left", "grey", "12", "mm"]


def captions(count):
    """Texts of very different lengths, some of them longer than the context."""
    generator = torch.Generator().manual_seed(0)
    texts = []
    for number in range(count):
        length = int(torch.randint(1, 70, (), generator=generator)) if number % 10 else 200
        texts.append(" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist()))
    return texts


@pytest.fixture(scope="module")
def low(embedded):
    return Teacher(embedded.towers, dtype="bfloat16")


def test_text_rows_in_bfloat16_stay_close_to_float32(embedded, low):
    cosine = (low.encode_text(captions(60)) * embedded.encode_text(captions(60))).sum(dim=1)
    assert cosine.mean() > 0.999
    assert cosine.min() > 0.99


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_has_one_row_whatever_it_is_encoded_with(embedded, dtype):
    """Closer than `SAME_TEXT` of the objective asks by far: two slices of one caption are known by their rows.

    Some processors' bfloat16 units sum in an order that depends on how many rows there are: 5e-6 off in cosine.
    """
    teacher, texts = Teacher(embedded.towers, dtype=dtype), captions(40)
    together = teacher.encode_text(texts)
    alone = torch.cat([teacher.encode_text([text]) for text in texts])
    some = teacher.encode_text(texts[::3] + ["something else, and longer " * n for n in range(1, 9)])
    for rows, same in ((alone, together), (some[: len(texts[::3])], together[::3])):
        assert (1 - (rows * same).sum(dim=1)).max() < (1 - SAME_TEXT) / 4
        if dtype == "float32":
            torch.testing.assert_close(rows, same, atol=2e-6, rtol=0)
    assert torch.equal(teacher.encode_text(texts[::-1]).flip(0), together)


def test_the_model_itself_and_its_float32_trunk_are_left_as_they_were(embedded, low):
    model = embedded.towers.model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    trunk = text_trunk(model, text_head(model), torch.bfloat16).text.transformer
    kinds = {
        type(module).__name__: {parameter.dtype for parameter in module.parameters(recurse=False)}
        for module in trunk.modules()
        if list(module.parameters(recurse=False))
    }
    assert kinds == {"Linear": {torch.bfloat16}, "Embedding": {torch.float32}, "LayerNorm": {torch.float32}}
    shared = text_trunk(model, text_head(model), torch.float32).text.transformer.parameters()
    assert {id(parameter) for parameter in shared} <= {id(parameter) for parameter in model.parameters()}


def test_open_clips_own_text_towers_stay_in_float32(tiny):
    low = Teacher(tiny.towers, dtype="bfloat16")
    assert torch.equal(low.encode_text(["a liver", "a lung"]), tiny.encode_text(["a liver", "a lung"]))


SIZES = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 1}
FAMILIES = [
    {"model_type": "bert", **SIZES, "intermediate_size": 128},
    {"model_type": "xlm-roberta", **SIZES, "intermediate_size": 128},
    {"model_type": "mt5", "vocab_size": 50, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4},
]


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config["model_type"])
def test_each_family_of_text_towers_can_be_lowered(config, tmp_path):
    open_clip = import_open_clip(offline=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = open_clip.hf_model.HFTextEncoder(str(tmp_path), 32, pretrained=False, proj_type="linear").eval()
    tokens = torch.randint(2, 50, (6, 24), generator=torch.Generator().manual_seed(1))
    for row in range(6):
        tokens[row, 24 - 3 * row :] = tower.config.pad_token_id
    with torch.no_grad():
        exact = tower(tokens)
        lower_linears(tower.transformer, torch.bfloat16)
        rows = tower(tokens).float()
    assert F.cosine_similarity(rows, exact).min() > 0.999
    assert not torch.equal(rows, exact)
