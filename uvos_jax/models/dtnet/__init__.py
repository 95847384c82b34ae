"""D-Net and T-Net: target-aware object discovery and association (Zhou et al., CVPR 2021)."""
