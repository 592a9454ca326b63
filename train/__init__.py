"""Guard models on torch: data, losses, the streaming model, incremental inference, rewards. No Ray."""
