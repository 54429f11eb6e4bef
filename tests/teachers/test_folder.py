import json
import stat
from pathlib import Path

import pytest
import torch

from m3di.teachers.clip import Teacher, load_teacher, save_teacher
from m3di.teachers.folder import CONFIG_FILE, WEIGHTS_FILE
from m3di.teachers.libraries import import_open_clip
from stores.errors import RefusedError


@pytest.fixture(scope="module")
def saved(embedded, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "embedded"
    save_teacher(embedded, folder)
    return folder


@pytest.fixture
def saved_tiny(tiny, tmp_path) -> Path:
    save_teacher(tiny, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_saved_teacher_comes_back_from_any_path(embedded, saved, pictures, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").symlink_to(saved)
    monkeypatch.chdir(tmp_path)
    again = load_teacher("local-dir:elsewhere")
    assert again.fingerprint == embedded.fingerprint
    assert again.dtype == "float32"
    assert torch.equal(again.encode_image(pictures), embedded.encode_image(pictures))
    assert torch.equal(again.encode_text(["a liver"]), embedded.encode_text(["a liver"]))


def test_stock_open_clip_loads_the_folder(embedded, saved, pictures):
    open_clip = import_open_clip(offline=True)
    text_config = json.loads((saved / CONFIG_FILE).read_text())["model_cfg"]["text_cfg"]
    local = {**text_config, "hf_model_name": str(saved), "hf_model_pretrained": False}
    model = open_clip.create_model(f"local-dir:{saved}", require_pretrained=True, text_cfg=local).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{saved}")
    assert model.visual.preprocess_cfg["mean"] == [0.5, 0.5, 0.5]
    with torch.no_grad():
        rows = model.encode_text(tokenizer(["a liver"]), normalize=True)
    torch.testing.assert_close(rows, embedded.encode_text(["a liver"]), atol=2e-6, rtol=0)


def test_the_folder_tells_nothing_of_this_machine_and_can_be_shared(saved):
    assert {path.name for path in saved.iterdir()} >= {CONFIG_FILE, WEIGHTS_FILE, "config.json", "tokenizer.json"}
    for path in saved.glob("*.json"):
        assert "site-packages" not in path.read_text()
    assert (saved / WEIGHTS_FILE).stat().st_mode & stat.S_IRUSR
    assert (saved / WEIGHTS_FILE).stat().st_mode == (saved / CONFIG_FILE).stat().st_mode
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_open_clips_own_towers_come_back_too(tiny, saved_tiny, pictures):
    again = load_teacher(f"local-dir:{saved_tiny}")
    assert again.fingerprint == tiny.fingerprint
    assert torch.equal(again.encode_image(pictures), tiny.encode_image(pictures))
    assert torch.equal(again.encode_text(["a liver"]), tiny.encode_text(["a liver"]))


def test_precision_is_kept_with_the_folder(tiny, tmp_path):
    low = Teacher(tiny.towers, dtype="bfloat16")
    save_teacher(low, tmp_path / "low")
    assert load_teacher(f"local-dir:{tmp_path / 'low'}").fingerprint == low.fingerprint
    assert load_teacher(f"local-dir:{tmp_path / 'low'}", dtype="float32").fingerprint == tiny.fingerprint


def test_saving_replaces_a_teacher_but_nothing_else(tiny, saved_tiny, tmp_path):
    save_teacher(tiny, saved_tiny)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("words")
    with pytest.raises(RefusedError, match="thesis") as error:
        save_teacher(tiny, other)
    assert error.value.code == "E_PATH"
    assert (other / "chapter1.txt").read_text() == "words"


def refusal(folder: Path) -> RefusedError:
    with pytest.raises(RefusedError) as error:
        load_teacher(f"local-dir:{folder}")
    assert error.value.hint
    return error.value


def test_missing_folder_or_weights_are_refused(saved_tiny):
    assert refusal(saved_tiny / "nowhere").code == "E_WEIGHTS"
    (saved_tiny / WEIGHTS_FILE).unlink()
    assert refusal(saved_tiny).code == "E_WEIGHTS"


def test_pickled_weights_are_refused_unread(saved_tiny):
    (saved_tiny / WEIGHTS_FILE).unlink()
    (saved_tiny / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert refusal(saved_tiny).code == "E_UNSAFE_WEIGHTS"


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"model_cfg": {"text_cfg": {}}}', '{"model_cfg": {"text_cfg": 1}}']
)
def test_malformed_configuration_is_refused(saved_tiny, text):
    (saved_tiny / CONFIG_FILE).write_text(text)
    assert refusal(saved_tiny).code == "E_CONFIG"


def test_tokenizer_code_is_refused(saved_tiny):
    config = json.loads((saved_tiny / CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (saved_tiny / CONFIG_FILE).write_text(json.dumps(config))
    assert refusal(saved_tiny).code == "E_UNSAFE_WEIGHTS"


def test_damaged_or_foreign_weights_are_refused(saved_tiny):
    weights = saved_tiny / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-100])
    assert refusal(saved_tiny).code == "E_WEIGHTS"
    config = json.loads((saved_tiny / CONFIG_FILE).read_text())
    config["model_cfg"]["embed_dim"] = 8
    (saved_tiny / CONFIG_FILE).write_text(json.dumps(config))
    assert refusal(saved_tiny).code == "E_WEIGHTS"
