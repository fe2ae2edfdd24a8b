"""What a repository on the Hub carries: exactly these files. `docs/architecture.md` is the tour of them."""
