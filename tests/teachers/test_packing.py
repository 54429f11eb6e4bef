"""Packed teachers: they load from any place without a network, and say when they are not what was packed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from m3di.teachers.clip import Teacher, load_teacher, save_teacher
from m3di.teachers.folder import WEIGHTS_FILE
from m3di.teachers.libraries import import_open_clip
from m3di.teachers.packing import CARD_FILE, check, describe_teacher, pack
from m3di.teachers.towers import TwoTower
from stores.errors import RefusedError

# Cuts the network, loads a folder, and prints the digest of what the teacher makes of two pictures and texts.
_ELSEWHERE = """
import hashlib, socket, sys
import torch
def refuse(*_): raise OSError("the network is cut off")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from m3di.teachers.clip import load_teacher
teacher = load_teacher(f"local-dir:{sys.argv[1]}", dtype="float32")
torch.set_num_threads(1)
images = torch.arange(2 * 32 * 32).reshape(2, 32, 32).remainder(251).to(torch.uint8)
rows = torch.cat([teacher.encode_image(images), teacher.encode_text(["liver", "a lung, left"])])
print(hashlib.sha256(rows.numpy().tobytes()).hexdigest())
"""


def biomedclip_shaped(folder: Path, *, layers: int, width: int) -> Teacher:
    """A model built from a configuration like BiomedCLIP's: timm ViT-B/16, BERT text tower with its own vocabulary.

    Facts of microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224: context 256, cls_last_hidden_state pooling,
    `hf_proj_type` mlp, a linear timm projection without bias, 512 wide, OpenAI's mean and std.
    """
    from transformers import BertConfig, BertTokenizerFast  # noqa: PLC0415

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "liver", "lung", "a", "left", ",", "the"]
    source = folder / "source"
    source.mkdir()
    (source / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(source / "vocab.txt")).save_pretrained(source)
    BertConfig(
        vocab_size=len(words), hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width,
    ).save_pretrained(source)  # fmt: skip
    config = {
        "model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {
                "timm_model_name": "vit_base_patch16_224", "timm_model_pretrained": False, "timm_pool": "",
                "timm_proj": "linear", "image_size": 224,
            },
            "text_cfg": {
                "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                "hf_model_pretrained": False, "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": 256,
            },
        },
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
            "interpolation": "bicubic", "size": 224, "mode": "RGB", "resize_mode": "shortest", "fill_color": 0,
        },
    }  # fmt: skip
    open_clip = import_open_clip(offline=True)
    fields = json.loads(json.dumps(config["model_cfg"]))
    fields["text_cfg"]["hf_model_name"] = str(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.model.CustomTextCLIP(fields["embed_dim"], fields["vision_cfg"], fields["text_cfg"])
    tokenizer = open_clip.tokenizer.HFTokenizer(str(source), context_length=256)
    return Teacher(TwoTower(model, tokenizer, config), dtype="float32")


def in_another_process(folder: Path, cwd: Path) -> str:
    variables = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_HOME")}
    python_path = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(folder)], cwd=cwd, capture_output=True, text=True, check=True,
        env={**variables, "PYTHONPATH": python_path, "HOME": str(cwd), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.slow
def test_a_biomedclip_shaped_model_is_packed_moved_and_loaded_without_a_network(tmp_path):
    """At the real sizes: 86 M parameters of image tower, 12 BERT layers of width 768."""
    teacher = biomedclip_shaped(tmp_path, layers=12, width=768)
    save_teacher(teacher, tmp_path / "hub")
    facts = pack(f"local-dir:{tmp_path / 'hub'}", tmp_path / "packed", precision="float32", licence="MIT")
    assert facts["licence"] == "MIT"
    before = in_another_process(tmp_path / "packed", tmp_path)
    shutil.rmtree(tmp_path / "source")
    shutil.rmtree(tmp_path / "hub")
    (tmp_path / "ward 7").mkdir()
    moved = tmp_path / "ward 7" / "teacher"
    (tmp_path / "packed").rename(moved)
    assert in_another_process(moved, tmp_path) == before
    images = torch.arange(2 * 32 * 32).reshape(2, 32, 32).remainder(251).to(torch.uint8)
    again = load_teacher(f"local-dir:{moved}")
    assert torch.equal(again.encode_image(images), teacher.encode_image(images))
    assert torch.equal(again.encode_text(["liver"]), teacher.encode_text(["liver"]))


def test_a_pack_tells_what_it_is_and_nothing_of_this_machine(tiny, tmp_path):
    save_teacher(tiny, tmp_path / "tiny")
    pack(f"local-dir:{tmp_path / 'tiny'}", tmp_path / "packed", precision="auto")
    card = json.loads((tmp_path / "packed" / CARD_FILE).read_text())
    assert card["schema"] == "m3di.teacher/1"
    assert set(card["files"]) == {p.name for p in (tmp_path / "packed").iterdir()} - {CARD_FILE}
    assert "not known" in card["licence"]
    for path in (tmp_path / "packed").glob("*.json"):
        assert "site-packages" not in path.read_text()


def test_check_names_files_that_are_not_as_they_were_packed(tiny, tmp_path):
    save_teacher(tiny, tmp_path / "tiny")
    pack(f"local-dir:{tmp_path / 'tiny'}", tmp_path / "packed", precision="auto")
    spec = f"local-dir:{tmp_path / 'packed'}"
    assert all(finding.sound for finding in check(spec))
    weights = tmp_path / "packed" / WEIGHTS_FILE
    tensors = safetensors.torch.load(weights.read_bytes())
    tensors["logit_scale"] += 1
    weights.write_bytes(safetensors.torch.save(tensors))
    wrong = [finding for finding in check(spec) if not finding.sound]
    assert [finding.name for finding in wrong] == ["files"]
    assert WEIGHTS_FILE in wrong[0].found


def test_check_names_what_does_not_load_and_what_is_collapsed(tiny, tmp_path):
    (missing,) = check(f"local-dir:{tmp_path / 'nowhere'}")
    assert (missing.name, missing.sound) == ("loads", False)
    save_teacher(tiny, tmp_path / "tiny")
    weights = tmp_path / "tiny" / WEIGHTS_FILE
    tensors = safetensors.torch.load(weights.read_bytes())
    tensors["visual.ln_post.weight"] *= 0  # every image gets the bias of the last norm
    weights.write_bytes(safetensors.torch.save(tensors))
    wrong = {finding.name for finding in check(f"local-dir:{tmp_path / 'tiny'}") if not finding.sound}
    assert "different inputs give different rows" in wrong or "embeddings are finite unit vectors" in wrong


def test_a_random_teacher_is_marked_and_stays_marked(tmp_path):
    teacher = load_teacher("random:RN50", dtype="float32")
    assert teacher.fingerprint == load_teacher("random:RN50", dtype="float32").fingerprint
    assert describe_teacher(teacher, "random:RN50")["random"]
    save_teacher(teacher, tmp_path / "control")
    assert load_teacher(f"local-dir:{tmp_path / 'control'}").towers.random
    assert {finding.name for finding in check(f"local-dir:{tmp_path / 'control'}") if not finding.sound} >= {
        "is trained"
    }


def test_a_plain_checkpoint_must_fill_its_architecture_exactly(tmp_path):
    model = load_teacher("random:RN50", dtype="float32").towers.model
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    safetensors.torch.save_file(tensors, whole)
    teacher = load_teacher(f"checkpoint:RN50:openai:{whole}", dtype="float32")
    assert not teacher.towers.random
    assert torch.equal(teacher.towers.model.logit_scale, model.logit_scale)
    safetensors.torch.save_file({n: t for n, t in tensors.items() if not n.startswith("visual.layer4")}, half)
    for spec, code in (
        (f"checkpoint:RN50:openai:{half}", "E_WEIGHTS"),
        (f"checkpoint:RN50:openai:{tmp_path / 'none.safetensors'}", "E_WEIGHTS"),
        (f"checkpoint:RN50:openai:{tmp_path / 'whole.pt'}", "E_UNSAFE_WEIGHTS"),
        (f"checkpoint:RN50:opanai:{whole}", "E_CONFIG"),
        (f"checkpoint:RN51:openai:{whole}", "E_CONFIG"),
        ("random:RN51", "E_CONFIG"),
    ):
        with pytest.raises(RefusedError) as error:
            load_teacher(spec)
        assert error.value.code == code, spec
