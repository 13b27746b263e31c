"""The engine on vLLM: models of any size, several GPUs, quantised checkpoints."""
