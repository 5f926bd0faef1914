"""Readers of the file containers of published SAEs: npz, PyTorch zip files, safetensors, JSON."""
