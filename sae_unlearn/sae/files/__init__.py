"""Containers in which published SAEs come: npz, PyTorch zip files, safetensors, JSON."""
