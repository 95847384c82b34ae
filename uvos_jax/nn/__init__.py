"""Flax Linen blocks shared by the models. Parameter names follow Flax; arrays are NHWC, kernels HWIO."""
