"""Pure array functions used by the networks, with PyTorch's conventions implemented once.

No function has parameters or state. Images and features are NHWC; all functions work under jit, vmap and grad unless
stated otherwise.
"""
