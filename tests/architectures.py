"""Small graphs in the shapes of well-known networks, as their exporters write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from placing import net

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.graph import Graph

SAME = "<kernel_shape=[3,3], pads=[1,1,1,1]>"


def resnet() -> Graph:
    """An identity block, then one with a projection shortcut, and the head."""
    body = f"""
        c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0) p0 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r0)
        c1 = Conv{SAME}(p0, w1, b1) r1 = Relu(c1) c2 = Conv{SAME}(r1, w2, b2) a2 = Add(c2, p0) r2 = Relu(a2)
        c3 = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(r2, w3, b3) r3 = Relu(c3)
        c4 = Conv{SAME}(r3, w4, b4) s4 = Conv<strides=[2,2]>(r2, ws, b4) a4 = Add(c4, s4) r4 = Relu(a4)
        g = GlobalAveragePool(r4) f = Flatten(g) y = Gemm<transB=1>(f, wf, bf)"""
    shapes: dict[str, tuple[int, ...]] = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3), "b1": (16,)}
    shapes |= {"w2": (16, 16, 3, 3), "b2": (16,), "w3": (32, 16, 3, 3), "b3": (32,), "w4": (32, 32, 3, 3)}
    shapes |= {"b4": (32,), "ws": (32, 16, 1, 1), "wf": (20, 32), "bf": (20,)}
    return net("float[N,3,16,16] x", body, **shapes)


def mobilenet() -> Graph:
    """Inverted residuals with a depthwise convolution, HardSwish and squeeze-excite."""
    body = f"""
        c0 = Conv{SAME}(x, w0) h0 = HardSwish(c0)
        c1 = Conv(h0, w1) h1 = HardSwish(c1) d1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=64>(h1, wd)
        h2 = HardSwish(d1) g = GlobalAveragePool(h2) s1 = Conv(g, we) s2 = Relu(s1) s3 = Conv(s2, wx)
        s4 = HardSigmoid(s3) m = Mul(h2, s4) c2 = Conv(m, w2) y0 = Add(c2, h0) y = Conv(y0, w3)"""
    return net(
        "float[N,3,8,8] x",
        body,
        w0=(16, 3, 3, 3),
        w1=(64, 16, 1, 1),
        wd=(64, 1, 3, 3),
        we=(8, 64, 1, 1),
        wx=(64, 8, 1, 1),
        w2=(16, 64, 1, 1),
        w3=(32, 16, 1, 1),
    )


def unet() -> Graph:
    """One way down, one up by Resize and one by ConvTranspose, each with its Concat."""
    body = f"""
        c0 = Conv{SAME}(x, w0) r0 = Relu(c0) p0 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r0)
        c1 = Conv{SAME}(p0, w1) r1 = Relu(c1) p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
        c2 = Conv{SAME}(p1, w2) r2 = Relu(c2)
        u1 = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(r2, wt, bt) k1 = Concat<axis=1>(u1, r1)
        c3 = Conv{SAME}(k1, w3) r3 = Relu(c3) u0 = Resize<mode="nearest">(r3, , scales) k0 = Concat<axis=1>(u0, r0)
        c4 = Conv{SAME}(k0, w4) r4 = Relu(c4) y = Conv(r4, w5)"""
    return net(
        "float[1,3,16,16] x",
        body,
        w0=(16, 3, 3, 3),
        w1=(32, 16, 3, 3),
        w2=(32, 32, 3, 3),
        wt=(32, 32, 2, 2),
        bt=(32,),
        w3=(16, 64, 3, 3),
        w4=(16, 32, 3, 3),
        w5=(16, 16, 1, 1),
        scales=np.array([1, 1, 2, 2], np.float32),
    )


def yolo() -> Graph:
    """A C3 block with SiLU, then spatial pyramid pooling, a Resize into a Concat, and a head."""
    body = f"""
        c0 = Conv{SAME}(x, w0) g0 = Sigmoid(c0) m0 = Mul(c0, g0)
        c1 = Conv(m0, w1) g1 = Sigmoid(c1) m1 = Mul(c1, g1) c2 = Conv(m1, w2) g2 = Sigmoid(c2) m2 = Mul(c2, g2)
        c3 = Conv{SAME}(m2, w3) g3 = Sigmoid(c3) m3 = Mul(c3, g3) a3 = Add(m1, m3)
        c4 = Conv(m0, w4) g4 = Sigmoid(c4) m4 = Mul(c4, g4) k = Concat<axis=1>(a3, m4)
        c5 = Conv(k, w5) g5 = Sigmoid(c5) m5 = Mul(c5, g5)
        p1 = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(m5) p2 = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(p1)
        p3 = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(p2) s = Concat<axis=1>(m5, p1, p2, p3)
        c6 = Conv(s, w6) g6 = Sigmoid(c6) m6 = Mul(c6, g6)
        up = Resize<mode="nearest">(m6, , scales) c7 = Conv<strides=[1,1]>(up, w7) y = Sigmoid(c7)"""
    return net(
        "float[1,3,16,16] x",
        body,
        w0=(32, 3, 3, 3),
        w1=(16, 32, 1, 1),
        w2=(16, 16, 1, 1),
        w3=(16, 16, 3, 3),
        w4=(16, 32, 1, 1),
        w5=(32, 32, 1, 1),
        w6=(32, 128, 1, 1),
        w7=(24, 32, 1, 1),
        scales=np.array([1, 1, 2, 2], np.float32),
    )


def transformer() -> Graph:
    """Attention with four heads and an MLP with GELU, LayerNorm before each."""
    body = """
        n1 = LayerNormalization<axis=-1>(x, s1, b1) q0 = MatMul(n1, wq) k0 = MatMul(n1, wk) v0 = MatMul(n1, wv)
        q1 = Reshape(q0, heads) k1 = Reshape(k0, heads) v1 = Reshape(v0, heads) q = Transpose<perm=[0,2,1,3]>(q1)
        k = Transpose<perm=[0,2,3,1]>(k1) v = Transpose<perm=[0,2,1,3]>(v1) l = MatMul(q, k) d = Div(l, root)
        m = Add(d, mask) p = Softmax<axis=-1>(m) o = MatMul(p, v) t = Transpose<perm=[0,2,1,3]>(o)
        f = Reshape(t, flat) z0 = MatMul(f, wo) z = Add(z0, bo) h = Add(z, x)
        n2 = LayerNormalization<axis=-1>(h, s1, b1) u0 = MatMul(n2, wu) u = Add(u0, bu)
        e0 = Div(u, root2) e1 = Erf(e0) e2 = Add(e1, one) e3 = Mul(u, e2) e = Mul(e3, half)
        w0 = MatMul(e, wd) w = Add(w0, bo) y = Add(w, h)"""
    return net(
        "float[1,8,32] x, float[1,1,8,8] mask",
        body,
        **dict.fromkeys(("wq", "wk", "wv", "wo"), (32, 32)),
        s1=np.ones(32, np.float32),
        b1=(32,),
        bo=(32,),
        wu=(32, 64),
        bu=(64,),
        wd=(64, 32),
        heads=np.array([0, 0, 4, 8]),
        flat=np.array([0, 0, 32]),
        root=np.array(np.sqrt(8), np.float32),
        root2=np.array(np.sqrt(2), np.float32),
        one=np.array(1, np.float32),
        half=np.array(0.5, np.float32),
    )


def inception() -> Graph:
    """Four branches into a Concat, whose readers are convolutions and pools."""
    body = f"""
        c0 = Conv{SAME}(x, w0) x0 = Relu(c0) a = Conv(x0, wa) ra = Relu(a) b1 = Conv(x0, wb) rb1 = Relu(b1)
        b2 = Conv{SAME}(rb1, wc) rb = Relu(b2) q = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x0) d = Conv(q, wd)
        rd = Relu(d) p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x0) e = Conv(p, we) re = Relu(e)
        k = Concat<axis=1>(ra, rb, rd, re) h = Conv(k, wh) rh = Relu(h)
        m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(k) i = Conv<kernel_shape=[2,2], strides=[2,2]>(rh, wi)
        ri = Relu(i) k2 = Concat<axis=1>(m, ri) g = GlobalAveragePool(k2) f = Flatten(g) y = Gemm(f, wf)"""
    return net(
        "float[N,3,8,8] x",
        body,
        w0=(16, 3, 3, 3),
        **dict.fromkeys(("wa", "wb", "wd", "we"), (16, 16, 1, 1)),
        wc=(16, 16, 3, 3),
        wh=(16, 64, 1, 1),
        wi=(16, 16, 2, 2),
        wf=(80, 24),
    )


def densenet() -> Graph:
    """Two dense layers: every Concat feeds a BatchNorm and the next Concat."""
    norm = ", ".join
    body = f"""
        x0 = Conv{SAME}(x, w0) n1 = BatchNormalization({norm(("x0", "s1", "z1", "z1", "s1"))}) r1 = Relu(n1)
        c1 = Conv{SAME}(r1, w1) k1 = Concat<axis=1>(x0, c1)
        n2 = BatchNormalization({norm(("k1", "s2", "z2", "z2", "s2"))}) r2 = Relu(n2) c2 = Conv{SAME}(r2, w2)
        k2 = Concat<axis=1>(k1, c2) n3 = BatchNormalization({norm(("k2", "s3", "z3", "z3", "s3"))}) r3 = Relu(n3)
        c3 = Conv(r3, w3) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c3)"""
    constants = {f"s{i}": np.linspace(0.5, 2, 16 * i, dtype=np.float32) for i in (1, 2, 3)}
    constants |= {f"z{i}": np.linspace(-0.1, 0.3, 16 * i, dtype=np.float32) for i in (1, 2, 3)}
    shapes = {"w0": (16, 3, 3, 3), "w1": (16, 16, 3, 3), "w2": (16, 32, 3, 3), "w3": (24, 48, 1, 1)}
    return net("float[1,3,8,8] x", body, **constants, **shapes)


def shufflenet() -> Graph:
    """Two units with channel shuffle: split, a branch, Concat, and a transposition of channel groups."""
    unit = """
        a{i}, b{i} = Split<axis=1>(t{i}, halves) c{i} = Conv(b{i}, u{i}) r{i} = Relu(c{i})
        d{i} = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=16>(r{i}, d{i}w) e{i} = Conv(d{i}, v{i}) f{i} = Relu(e{i})
        k{i} = Concat<axis=1>(a{i}, f{i}) h{i} = Reshape(k{i}, five) g{i} = Transpose<perm=[0,2,1,3,4]>(h{i})
        t{j} = Reshape(g{i}, four)"""
    units = unit.format(i=0, j=1) + unit.format(i=1, j=2)
    body = f"c = Conv{SAME}(x, w0) t0 = Relu(c) {units} y = Conv(t2, w1)"
    shapes = {f"{name}{i}": (16, 16, 1, 1) for name in "uv" for i in (0, 1)}
    shapes |= {f"d{i}w": (16, 1, 3, 3) for i in (0, 1)} | {"w0": (32, 3, 3, 3), "w1": (48, 32, 1, 1)}
    constants = {"halves": np.array([16, 16]), "five": np.array([1, 2, 16, 8, 8]), "four": np.array([1, 32, 8, 8])}
    return net("float[1,3,8,8] x", body, **constants, **shapes)


def convnext() -> Graph:
    """A depthwise convolution, LayerNorm over channels, an MLP with GELU, and the block's input added."""
    body = """
        s0 = Conv<strides=[2,2]>(x, w0) d = Conv<kernel_shape=[7,7], pads=[3,3,3,3], group=32>(s0, wd, b)
        t = Transpose<perm=[0,2,3,1]>(d) n = LayerNormalization<axis=-1>(t, one, b) u0 = MatMul(n, wu) u = Add(u0, bu)
        e0 = Div(u, root2) e1 = Erf(e0) e2 = Add(e1, k1) e3 = Mul(u, e2) e = Mul(e3, half) v0 = MatMul(e, wv)
        v = Add(v0, b) m = Mul(v, gamma) z = Transpose<perm=[0,3,1,2]>(m) a = Add(s0, z)
        y = Conv<strides=[2,2]>(a, w1)"""
    return net(
        "float[1,3,16,16] x",
        body,
        w0=(32, 3, 2, 2),
        wd=(32, 1, 7, 7),
        b=(32,),
        one=np.ones(32, np.float32),
        wu=(32, 64),
        bu=(64,),
        wv=(64, 32),
        gamma=(32,),
        w1=(32, 32, 2, 2),
        root2=np.array(np.sqrt(2), np.float32),
        k1=np.array(1, np.float32),
        half=np.array(0.5, np.float32),
    )


def signal() -> Graph:
    """Convolutions over time, with a padded one and a residual."""
    body = """
        q = Pad(x, ends) c0 = Conv<kernel_shape=[5]>(q, w0) r0 = Relu(c0)
        c1 = Conv<kernel_shape=[3], pads=[2,2], dilations=[2]>(r0, w1) r1 = LeakyRelu(c1)
        c2 = Conv<kernel_shape=[3], pads=[1,1]>(r1, w2) a = Add(r0, c2) r2 = Relu(a) g = GlobalAveragePool(r2)
        s = Squeeze(g, last) y = MatMul(s, wf)"""
    return net(
        "float[N,4,32] x",
        body,
        ends=np.array([0, 0, 2, 0, 0, 2]),
        w0=(16, 4, 5),
        w1=(16, 16, 3),
        w2=(16, 16, 3),
        last=np.array([2]),
        wf=(16, 16),
    )


def volume() -> Graph:
    """Convolutions over three dimensions, and a transposed one."""
    body = """
        c0 = Conv<kernel_shape=[3,3,3], pads=[1,1,1,1,1,1]>(x, w0) r0 = Relu(c0)
        p = AveragePool<kernel_shape=[2,2,2], strides=[2,2,2]>(r0) c1 = Conv(p, w1) r1 = Relu(c1)
        t = ConvTranspose<kernel_shape=[2,2,2], strides=[2,2,2]>(r1, wt) k = Concat<axis=1>(t, r0) y = Conv(k, w2)"""
    return net(
        "float[1,2,4,4,4] x",
        body,
        w0=(16, 2, 3, 3, 3),
        w1=(16, 16, 1, 1, 1),
        wt=(16, 16, 2, 2, 2),
        w2=(16, 32, 1, 1, 1),
    )


def recurrent() -> Graph:
    """A convolution before an LSTM, and a projection behind it."""
    body = """
        c = Conv<kernel_shape=[3], pads=[1,1]>(x, w0) r = Relu(c) t = Transpose<perm=[2,0,1]>(r)
        o, h, d = LSTM<hidden_size=16>(t, wi, wr) s = Squeeze(o, one) y = MatMul(s, wf)"""
    shapes = {"w0": (16, 8, 3), "wi": (1, 64, 16), "wr": (1, 64, 16), "wf": (16, 32)}
    return net("float[1,8,12] x", body, one=np.array([1]), **shapes)


def pyramid() -> Graph:
    """A feature pyramid: a linear Resize added to a lateral convolution, a nearest one concatenated."""
    body = f"""
        c0 = Conv{SAME}(x, w0) r0 = Relu(c0) c1 = Conv<strides=[2,2]>(r0, w1) r1 = Relu(c1)
        c2 = Conv<strides=[2,2]>(r1, w2) r2 = Relu(c2) l2 = Conv(r2, w3) l1 = Conv(r1, w4)
        u2 = Resize<mode="linear">(l2, , scales) a1 = Add(l1, u2) o1 = Conv{SAME}(a1, w5) v1 = Relu(o1)
        u1 = Resize<mode="nearest">(v1, , scales) k = Concat<axis=1>(u1, r0) y = Conv(k, w6)"""
    shapes = {"w0": (16, 3, 3, 3), "w5": (16, 16, 3, 3), "w6": (32, 32, 1, 1)}
    shapes |= dict.fromkeys(("w1", "w2", "w3", "w4"), (16, 16, 1, 1))
    return net("float[1,3,16,16] x", body, scales=np.array([1, 1, 2, 2], np.float32), **shapes)


def generator() -> Graph:
    """A GAN's generator: a projection reshaped to a map, transposed convolutions with BatchNorm, tanh."""
    up = "<kernel_shape=[4,4], strides=[2,2], pads=[1,1,1,1]>"
    body = f"""
        p = MatMul(z, wp) m = Reshape(p, map) t0 = ConvTranspose{up}(m, w0) n0 = BatchNormalization(t0, s, b, b, s)
        r0 = Relu(n0) t1 = ConvTranspose{up}(r0, w1) n1 = BatchNormalization(t1, s, b, b, s) r1 = Relu(n1)
        t2 = ConvTranspose{up}(r1, w2) y = Tanh(t2)"""
    shapes = {"wp": (32, 512), "w0": (32, 16, 4, 4), "w1": (16, 16, 4, 4), "w2": (16, 3, 4, 4)}
    scale, shift = np.linspace(0.5, 2, 16, dtype=np.float32), np.linspace(-1, 1, 16, dtype=np.float32)
    return net("float[N,32] z", body, s=scale, b=shift, map=np.array([-1, 32, 4, 4]), **shapes)


ARCHITECTURES: dict[str, Callable[[], Graph]] = {
    build.__name__: build
    for build in (
        resnet,
        mobilenet,
        unet,
        yolo,
        transformer,
        inception,
        densenet,
        shufflenet,
        convnext,
        signal,
        volume,
        recurrent,
        pyramid,
        generator,
    )
}
