"""What computes: the experts' blocks, their weights on the host, Ulysses, the denoising loop."""
