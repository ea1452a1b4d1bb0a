"An ONNX network of two layers, written byte by byte, for tests that must not need the package onnx."


def _varint(n):
    out = b''
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def _field(number, value):
    "A field of a protocol buffer: a whole number, text, or bytes of a message."
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _ints(name, values):
    "An attribute of a node: a list of whole numbers (its type is 7)."
    return _field(1, name) + b''.join(_field(8, v) for v in values) + _field(20, 7)


def _node(op, given, made, *attributes):
    return _field(1, given) + _field(2, made) + _field(4, op) + b''.join(_field(5, a) for a in attributes)


def _value(name, shape):
    "Name, type float and shape of an input or output; text in a shape is a free size."
    dims = b''.join(_field(1, _field(2 if isinstance(d, str) else 1, d)) for d in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def block_means(side, blocks=8):
    "A network whose vector holds the mean of each of `blocks` × `blocks` blocks of a chip, by colour."
    k = side//blocks
    nodes = [_node('AveragePool', 'input', 'pooled', _ints('kernel_shape', [k, k]), _ints('strides', [k, k])),
             _node('Flatten', 'pooled', 'output')]
    graph = b''.join(_field(1, n) for n in nodes) + _field(2, 'blocks')
    graph += _field(11, _value('input', ['n', 3, side, side]))
    graph += _field(12, _value('output', ['n', 3*(side//k)**2]))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, '') + _field(2, 13))
