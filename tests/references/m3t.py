"""M3T's sequence of tokens written down literally, one token after another."""

import torch


def sequence(network, volume):
    """Tokens (n c) that the first layer gets, of one volume (d h w), by a network in evaluation."""
    features = network.volume_features(volume[None, None])[0]
    given = network.tokens
    tokens = [given.class_token + given.plane[0]]
    for plane, slices in enumerate((_coronal(features), _sagittal(features), _axial(features))):
        tokens += [_describe(network.slice_features, picture) + given.plane[plane] for picture in slices]
        tokens.append(given.separator + given.plane[plane])
    return torch.stack([token + given.position[place] for place, token in enumerate(tokens)])


def _sagittal(features):
    return [features[:, i, :, :] for i in range(features.shape[1])]


def _coronal(features):
    return [features[:, :, i, :] for i in range(features.shape[2])]


def _axial(features):
    return [features[:, :, :, i] for i in range(features.shape[3])]


def _describe(module, picture):
    net = module.resnet
    maps = net.maxpool(torch.relu(net.bn1(net.conv1(picture[None]))))
    maps = net.layer4(net.layer3(net.layer2(net.layer1(maps))))[0]
    first, _, second = module.project
    return second(torch.relu(first(maps.flatten(1).mean(1))))
