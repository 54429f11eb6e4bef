"""PSAT written down literally: a loop over slices, the position added to all tokens, the softmax spelled out.

It shares the weights of a `PlaneSliceAwareTransformer` and nothing of its code.
"""

import math

import torch


def predict(psat, tokens, plane, index, voxel_mm=None):
    """Embeddings (b, k, e) of the slices at (plane, index), both (b, k), from tokens (b, n, c)."""
    b, k = plane.shape
    places = [[float(index[i, j]) for j in range(k)] for i in range(b)]
    if psat.positions == "mm":
        places = [[place_in_table(psat, place, float(voxel_mm[i])) for place in row] for i, row in enumerate(places)]
    rows = [[_predict_one(psat, tokens[i], int(plane[i, j]), places[i][j]) for j in range(k)] for i in range(b)]
    return torch.stack([torch.stack(row) for row in rows])


def place_in_table(psat, index, voxel_mm):
    """Where the middle of a slice falls among the table's entries, which share out extent_mm about the centre."""
    num_slices = psat.position.shape[1]
    mm = (index + 0.5) * voxel_mm - num_slices * voxel_mm / 2
    entry = (mm + psat.extent_mm / 2) / (psat.extent_mm / num_slices) - 0.5
    return min(max(entry, 0.0), num_slices - 1.0)


def _position(table, place):
    below = math.floor(place)
    above = min(below + 1, len(table) - 1)
    return (1 - (place - below)) * table[below] + (place - below) * table[above]


def _predict_one(psat, tokens, plane, place):
    if psat.mode == "linear":
        return _linear(psat.projection, tokens.mean(0))
    volume = _linear(psat.input_projection, tokens)
    queries = psat.queries
    if psat.mode == "full":
        volume = volume + _position(psat.position[plane], place)
        queries = queries + _position(psat.position[plane], place)
    for layer in psat.layers:
        queries = _layer(layer, queries, volume)
    outputs = _linear(psat.projection, _norm(psat.norm, queries))
    if psat.pooling == "query0":
        return outputs[0]
    if psat.pooling == "mean":
        return outputs.mean(0)
    weight = torch.softmax(_norm(psat.norm, queries) @ psat.pool_score, dim=0)
    return (weight[:, None] * outputs).sum(0)


def _layer(layer, queries, volume):
    if layer.norm == "post":
        queries = _norm(layer.self_norm, queries + _attention(layer.self_attention, queries, queries))
        queries = _norm(layer.cross_norm, queries + _attention(layer.cross_attention, queries, volume))
        return _norm(layer.mlp_norm, queries + _mlp(layer.mlp, queries))
    among = _norm(layer.self_norm, queries)
    queries = queries + _attention(layer.self_attention, among, among)
    queries = queries + _attention(layer.cross_attention, _norm(layer.cross_norm, queries), volume)
    return queries + _mlp(layer.mlp, _norm(layer.mlp_norm, queries))


def _mlp(mlp, queries):
    first, activation, second = mlp
    hidden = _linear(first, queries)
    if type(activation).__name__ == "ReLU":
        return _linear(second, hidden * (hidden > 0))
    return _linear(second, 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))


def _attention(maps, queries, memory):
    q, k, v = _linear(maps.query, queries), memory @ maps.key.weight.T, _linear(maps.value, memory)
    d = q.shape[1] // maps.num_heads
    heads = []
    for start in range(0, q.shape[1], d):
        part = slice(start, start + d)
        logits = q[:, part] @ k[:, part].T / math.sqrt(d)
        weight = torch.exp(logits - logits.amax(1, keepdim=True))
        heads.append(weight / weight.sum(1, keepdim=True) @ v[:, part])
    return _linear(maps.output, torch.cat(heads, dim=1))


def _linear(linear, x):
    return x @ linear.weight.T + linear.bias


def _norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias
