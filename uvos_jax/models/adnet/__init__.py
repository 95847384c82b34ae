"""AD-Net: Anchor Diffusion for Unsupervised Video Object Segmentation (Yang et al., ICCV 2019)."""
