"""CFBI: Collaborative VOS by Foreground-Background Integration (Yang et al., ECCV 2020)."""
