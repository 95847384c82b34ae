"""Flax (Linen) blocks that several models share. Parameter names follow Flax; layouts are NHWC and HWIO."""
