"""Array in, array out: the operations under the networks, with PyTorch's conventions encoded once.

Everything here is a pure function of arrays without parameters, in NHWC, fit for jit, vmap and grad.
"""
