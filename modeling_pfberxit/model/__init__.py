"""What a repository on the Hub carries: exactly the files of this folder."""
