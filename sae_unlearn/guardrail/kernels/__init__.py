"""One decoding step of the gate and the edit: on the CPU, and in Triton."""
