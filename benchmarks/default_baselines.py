"""Score baselines on the folds of the default network: motion segmentation without learning, and a plain U-Net.

    PYTHONPATH=. python benchmarks/default_baselines.py --data-dir data --method motion
    PYTHONPATH=. python benchmarks/default_baselines.py --data-dir data --method unet --folds 0 --steps 150

``motion``: residual of DIS flow after subtracting a fitted homography, thresholded by Otsu's method; the largest
connected component. ``unet``: two million parameters; input is the frame and the flow without camera motion, 128x224.
Prints J and F of every sequence and fold in percent.
"""

import argparse
import time

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from held_back import Fixed

from configs import default
from uvos_jax.data.examples import pipeline
from uvos_jax.data.storage.store import open_store
from uvos_jax.inference.flow.estimators import dis_estimator
from uvos_jax.labels import VOID
from uvos_jax.nn.layers import BatchNorm, Conv
from uvos_jax.ops.losses import binary_cross_entropy
from uvos_jax.ops.optical_flow import resize_flow, subtract_camera
from uvos_jax.ops.pooling import max_pool
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.training.validation import choose, validate

_SIZE = (128, 224)
_WIDTHS = (16, 32, 64, 128, 256)
_GRID = 8  # spacing in pixels of the flow vectors that the homography is fitted to
_INLIER_DISTANCE = 2.0  # pixels; RANSAC threshold of the homography


def flows_of(frames):
    """Returns the flow of each frame to the next (of the last to the previous), as in ``uvos segment``."""
    targets = np.concatenate([frames[1:], frames[-2:-1]])
    return np.concatenate([dis_estimator(frames[i:i + 2], targets[i:i + 2]) for i in range(0, len(frames), 2)])


def moving_part(flow):
    """Returns the largest component whose motion differs from the fitted homography, bool ``[h, w]``."""
    height, width = flow.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    points = grid[_GRID // 2::_GRID, _GRID // 2::_GRID].reshape(-1, 1, 2)
    moved = points + flow[_GRID // 2::_GRID, _GRID // 2::_GRID].reshape(-1, 1, 2)
    homography, _ = cv2.findHomography(points, moved, cv2.RANSAC, _INLIER_DISTANCE)
    if homography is None:
        return np.zeros((height, width), bool)
    rest = grid + flow - cv2.perspectiveTransform(grid.reshape(-1, 1, 2), homography).reshape(grid.shape)
    length = np.linalg.norm(rest, axis=-1)
    levels = np.clip(255 * length / max(np.percentile(length, 99), 1e-3), 0, 255).astype(np.uint8)
    _, moving = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(moving)
    return parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax() if len(stats) > 1 else parts > 0


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) with batch norm: two convolutions per level, each level half the size."""

    @nn.compact
    def __call__(self, x, train):
        """Returns logits ``[b, h, w, 1]``."""
        kept = []
        for level, width in enumerate(_WIDTHS):
            x = max_pool(x, window=2, stride=2, padding=0) if level else x
            x = self._level(x, width, train)
            kept.append(x)
        for width, fine in zip(_WIDTHS[-2::-1], kept[-2::-1], strict=True):
            x = jnp.concatenate([fine, resize_bilinear(x, fine.shape[1:3], align_corners=False)], -1)
            x = self._level(x, width, train)
        return Conv(1, 1, use_bias=True)(x)

    def _level(self, x, width, train):
        for _ in range(2):
            x = nn.relu(BatchNorm()(Conv(width)(x), train))
        return x


def unet_input(frames, flow):
    """Returns ``[b, h, w, 5]``: colors, and flow without camera motion over its 99th percentile magnitude."""
    rest = subtract_camera(flow)
    length = jnp.percentile(jnp.sqrt(jnp.square(rest).sum(-1)), 99, axis=(1, 2))
    rest = jnp.clip(rest / jnp.maximum(length, flow.shape[2] / 500)[:, None, None, None], -2, 2)
    return jnp.concatenate([frames.astype(jnp.float32) / 127.5 - 1, rest], -1)


def train_unet(k, data_dir, steps):
    """Trains a U-Net for ``steps`` batches of four two-frame clips of fold ``k`` at 128x224; returns its predictor."""
    data = default.fold(k).phases[1]["data"] | {"batch_size": 4, "seed": 0}
    net, optimizer = UNet(), optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    batches = pipeline.batches(pipeline.from_config(data, data_dir), 0)
    variables = net.init(jax.random.key(0), jnp.zeros((1, *_SIZE, 5)), True)
    state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    print(f"{sum(x.size for x in jax.tree.leaves(state[0])):,} parameters", flush=True)

    @jax.jit
    def step(state, frames, flow, labels):
        def loss(params, statistics):
            logits, new = net.apply({"params": params, "batch_stats": statistics}, unet_input(frames, flow), True,
                                    mutable=["batch_stats"])
            void = labels == VOID
            return binary_cross_entropy(logits, (labels > 0) & ~void, ~void).mean(), new["batch_stats"]

        params, statistics, moments = state
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params, statistics)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), statistics, moments), value

    started = time.perf_counter()
    for number in range(1, steps + 1):
        batch = next(batches)
        frames, flow, labels = (np.concatenate(batch[name]) for name in ("frames", "flow", "labels"))
        state, value = step(state, frames, flow, labels[..., None])
        if number % 20 == 0:
            print(f"step {number}  loss {value:.4f}  {time.perf_counter() - started:.0f} s", flush=True)
    batches.close()

    @jax.jit
    def probability(frame, flow):
        small = jax.image.resize(frame[None].astype(jnp.float32), (1, *_SIZE, 3), "linear")
        seen = unet_input(small, resize_flow(flow[None], _SIZE))
        logits = net.apply({"params": state[0], "batch_stats": state[1]}, seen, False)
        return resize_bilinear(logits, frame.shape[:2], align_corners=False)[0, ..., 0]

    return lambda frame, flow: np.asarray(probability(frame, flow)) > 0


def main():
    """Prints J and F of every sequence and fold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--method", choices=("motion", "unet"), required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    store = open_store(args.data_dir, "davis2016", "train")
    folds = []
    for k in args.folds:
        if args.method == "motion":
            def answer(frame, flow):
                return cv2.resize(moving_part(flow).astype(np.uint8), frame.shape[1::-1]) > 0
        else:
            answer = train_unet(k, args.data_dir, args.steps)

        def masks(v, answer=answer):
            frames = np.stack([store.image(v, t) for t in range(store.videos[v].length)])
            return np.stack([answer(*pair) for pair in zip(frames, flows_of(frames), strict=True)])

        scores, _ = validate(Fixed(store, masks), store, choose(store, default.FOLDS[k]))
        for name, row in scores["sequences"].items():
            print(f"| {name} | {100 * row['J']:.1f} | {100 * row['F']:.1f} |")
        print(f"| fold {k} | {100 * scores['J']:.1f} | {100 * scores['F']:.1f} |", flush=True)
        folds.append((scores["J"], scores["F"]))
    if len(folds) > 1:
        print(f"| mean of {len(folds)} folds | {100 * np.mean(folds, 0)[0]:.1f} | {100 * np.mean(folds, 0)[1]:.1f} |")


if __name__ == "__main__":
    main()
