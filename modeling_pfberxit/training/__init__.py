"""Fine-tuning with the stock `Trainer`: tasks, their data, and the arguments that suit adapters."""
