"""DPA: Dual Prototype Attention for Unsupervised VOS (Cho et al., CVPR 2024)."""
