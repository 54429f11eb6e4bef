import pytest
import torch
from monai.networks import nets
from monai.networks.nets.swin_unetr import SwinTransformer

from m3di.exports.monai_networks import PLANS, monai_network
from stores.errors import RefusedError
from tests.exports.made import source
from tests.networks.test_encoders import SMALL

VIT = {"hidden_size": 24, "mlp_dim": 32, "num_heads": 4}
OPTIONS = {
    ("encoder", "vit"): {**VIT, "patch_size": 8, "num_layers": 3},
    ("encoder", "unetr"): {**VIT, "patch_size": 8, "num_layers": 3},
    ("encoder", "setr"): {**VIT, "patch_size": 8, "num_layers": 4},
    ("encoder", "swin"): SMALL["swin"],
    ("encoder", "densenet121"): {"cube_size": 64},
    ("encoder", "resnet10"): {"cube_size": 64},
    ("classification", "resnet50"): {"cube_size": 64},
    ("segmentation", "unet"): {"channels": (4, 6, 8, 10), "num_res_units": 1},
    ("segmentation", "attention_unet"): {"channels": (4, 6, 8, 10)},
    ("segmentation", "nnunet"): {"filters": (4, 6, 8, 10, 10), "deep_supervision": True},
    ("segmentation", "unetr"): {**VIT, "feature_size": 4},
    ("segmentation", "swin_unetr"): {**SMALL["swin"], "cube_size": 64},
    ("classification", "vit"): {**VIT, "patch_size": 8, "num_layers": 3},
    ("classification", "densenet121"): {"cube_size": 64},
}
UNSTRIDED = {"stem_stride": 1}  # for cubes of 32
QUICK = [(kind, name) for kind, names in PLANS.items() for name in names if name not in ("resnet34", "resnet101")]


def plain(output, kind):
    if kind == "encoder":
        return output.tokens.mean(dim=1)
    return output.logits if kind == "segmentation" else output


@pytest.mark.parametrize(("kind", "name"), QUICK)
@torch.no_grad()
def test_the_class_takes_the_weights_strictly_and_gives_the_same(kind, name):
    ours = source(kind, name, **OPTIONS.get((kind, name), UNSTRIDED))
    found = monai_network(ours)
    cls = SwinTransformer if name == "swin" else getattr(nets, found.target.rpartition(".")[2])
    theirs = cls(**found.arguments)
    theirs = theirs.get_submodule(found.part) if found.part else theirs
    theirs.load_state_dict(found.state, strict=True)
    cube = torch.rand(2, 1, *(ours.recipe.cube_size,) * 3)
    y = theirs.eval()(cube)
    torch.testing.assert_close(eval(found.output, {"y": y}), plain(ours.network(cube), kind), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [3, 5])
def test_u_nets_of_any_depth(levels):
    widths = (4, 6, 8, 10, 12)[:levels]
    for name in ("unet", "attention_unet"):
        assert monai_network(source("segmentation", name, channels=widths)).num_channels == 3


@pytest.mark.parametrize(
    ("kind", "name", "options", "told"),
    [
        ("encoder", "dynunet", {"filters": (4, 6, 8)}, "fine-tune it first"),
        ("segmentation", "nnformer", SMALL["nnformer"], "swin_unetr"),
        ("classification", "unet", {"channels": (4, 6, 8)}, "densenet121"),
        ("segmentation", "unetr", {**VIT, "patch_size": 8, "num_layers": 3}, "hub"),
        ("segmentation", "unet", {"channels": (4, 6, 8), "num_res_units": 0}, "hub"),
        ("classification", "vit", {**OPTIONS["classification", "vit"], "pooling": "mean"}, "hub"),
    ],
)
def test_a_network_without_a_class_is_refused_with_those_that_have_one(kind, name, options, told):
    cube = {"nnformer": 64}.get(name, 32)
    with pytest.raises(RefusedError) as caught:
        monai_network(source(kind, name, **{"cube_size": cube, **options}))
    assert caught.value.code == "E_NETWORK"
    assert told in caught.value.hint


def test_a_conversion_that_differs_is_refused(monkeypatch):
    ours = source("classification", "resnet10", **UNSTRIDED)
    plan = PLANS["classification"]["resnet10"]

    def wrong(given):
        found = plan(given)
        found.arguments["act"] = "tanh"
        return found

    monkeypatch.setitem(PLANS["classification"], "resnet10", wrong)
    with pytest.raises(RefusedError, match="differs from resnet10"):
        monai_network(ours)
